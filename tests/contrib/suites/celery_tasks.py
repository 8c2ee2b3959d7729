"""The tasks that a real worker runs for `celery_suite`. Set by variables of the environment."""

from __future__ import annotations

import os
import time

from celery import Celery

folder = os.environ["BROKER_FOLDER"]
app = Celery("tasks", broker="filesystem://", backend=os.environ["RESULTS"])
app.conf.update(
    broker_transport_options={
        "data_folder_in": folder,
        "data_folder_out": folder,
        "control_folder": f"{folder}/control",
    },
    result_backend_transport_options={"timeout": 30},
    result_expires=3600,
    result_extended=True,
    broker_connection_retry_on_startup=True,
)


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task
def fail(text: str) -> None:
    raise ValueError(text)


@app.task(bind=True)
def progress(self: object) -> str:
    self.update_state(state="PROGRESS", meta={"done": 50})  # type: ignore[attr-defined]
    time.sleep(1)
    return "done"
