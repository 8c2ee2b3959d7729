"""A real worker of Celery with its results in zkv, and messages in files.

Celery's own integration tests run beside this, where Redis is installed as a broker.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group
from celery.app.base import Celery
from celery.exceptions import BackendStoreError, ImproperlyConfigured, TaskRevokedError

import zkv
from tests.docs.sessions import run_sessions
from tests.support import ServerProcess, eventually

LIMIT = 60


class Worker:
    """A worker in a process of its own, and the app of this process, for the same server."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        self.prefix = f"celery-{uuid.uuid4().hex}/"
        (folder / "control").mkdir(parents=True)
        results = endpoint.replace("tcp", "zkv") + "/" + self.prefix
        os.environ.update(BROKER_FOLDER=str(folder), RESULTS=results)
        sys.modules.pop("tests.contrib.suites.celery_tasks", None)  # It may be of another server.
        from tests.contrib.suites import celery_tasks

        self.tasks: Any = celery_tasks
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "tests.contrib.suites.celery_tasks",
                 "worker", "--concurrency", "2", "--loglevel", "info"],
                stdout=log, stderr=log,
            )  # fmt: skip
        eventually(self._is_ready, "the worker is ready", LIMIT)

    def _is_ready(self) -> bool:
        text = self.log.read_text()
        assert self._process.poll() is None, text
        return " ready." in text

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(LIMIT)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    made = Worker(tmp_path_factory.mktemp("celery"), os.environ["ZKV_ENDPOINT"])
    yield made
    made.stop()


def test_results_groups_chains_and_chords(worker: Worker) -> None:
    add, total = worker.tasks.add, worker.tasks.total
    assert add.delay(2, 3).get(LIMIT) == 5
    assert group(add.s(n, n) for n in range(6)).delay().get(LIMIT) == [0, 2, 4, 6, 8, 10]
    assert chain(add.s(1, 2), add.s(3)).delay().get(LIMIT) == 6
    assert chord((add.s(n, 1) for n in range(8)), total.s()).delay().get(LIMIT) == 36
    nested = chain(add.si(1, 200), group(add.si(1, 1000), add.si(1, 2000)))
    for _ in range(5):
        whole = chain(add.si(1, 0), group(add.si(1, 100), nested), add.si(1, 10))
        assert whole.delay().get(LIMIT) == 11
    assert "too many times" not in worker.log.read_text()
    inner = chord([add.s(1, 1), add.s(2, 2)], total.s())
    assert chord([inner, add.s(0, 4)], total.s()).delay().get(LIMIT) == 10


def test_failures(worker: Worker) -> None:
    fail, add, total = worker.tasks.fail, worker.tasks.add, worker.tasks.total
    failed = fail.delay("why")
    with pytest.raises(ValueError, match="why"):
        failed.get(LIMIT)
    assert failed.status == "FAILURE"
    assert "ValueError" in failed.traceback
    with pytest.raises(Exception, match="why"):
        chord([add.s(1, 1), fail.s("why")], total.s()).delay().get(LIMIT)


def test_states_and_forgetting(worker: Worker, endpoint: str) -> None:
    running = worker.tasks.progress.delay()
    eventually(lambda: running.status == "PROGRESS", "it is under way", LIMIT)
    assert running.info == {"done": 50}
    assert running.get(LIMIT) == "done"
    with zkv.Client(endpoint) as kv:
        entry = kv.get_entry(f"{worker.prefix}celery-task-meta-{running.id}")
        assert json.loads(entry.value)["result"] == "done"
        assert 3500 < (entry.ttl or 0) <= 3600
        running.forget()
        assert f"{worker.prefix}celery-task-meta-{running.id}" not in kv
    assert worker.tasks.add.AsyncResult("nobody").status == "PENDING"


def test_revoked_and_expired_tasks(worker: Worker) -> None:
    for task in (
        worker.tasks.add.apply_async((1, 1), expires=-5),
        worker.tasks.add.apply_async((1, 1), expires=0.001, countdown=2),
    ):
        with pytest.raises(TaskRevokedError):
            task.get(LIMIT)
        assert task.status == "REVOKED"
    later = worker.tasks.add.apply_async((1, 1), countdown=5)
    later.revoke()
    with pytest.raises(TaskRevokedError):
        later.get(LIMIT)


def test_a_saved_group_is_restored_by_another_app(worker: Worker) -> None:
    result = group(worker.tasks.add.s(n, 1) for n in range(3)).delay()
    result.save()
    other = Celery("other", backend=os.environ["RESULTS"])
    restored = other.GroupResult.restore(result.id)
    assert restored.get(LIMIT) == [1, 2, 3]
    assert pickle.loads(pickle.dumps(other.backend)).url == os.environ["RESULTS"]
    result.delete()
    assert other.GroupResult.restore(result.id) is None


def test_a_result_is_pickled_only_where_celery_is_told_so(
    tmp_path: Path, endpoint: str, worker: Worker
) -> None:
    with zkv.Client(endpoint) as kv:
        prefix = f"{worker.prefix}celery-task-meta-"
        assert all(isinstance(value, str) for key, value in kv.items() if key.startswith(prefix))
        app = Celery("pickling", backend=endpoint.replace("tcp", "zkv") + "/pickled/")
        app.conf.update(result_serializer="pickle", result_accept_content=["pickle"])
        app.backend.store_result("task", (1, {2}), "SUCCESS")
        assert app.AsyncResult("task").get(LIMIT) == (1, {2})
        assert isinstance(kv["pickled/celery-task-meta-task"], bytes)


def test_what_is_not_allowed_is_named(endpoint: str) -> None:
    for url in ("zkv://", "zkv:///prefix"):
        with pytest.raises(ImproperlyConfigured, match="zkv://127"):
            assert Celery("bad", backend=url).backend
    app = Celery("bad", backend=endpoint.replace("tcp", "zkv"))
    app.conf.result_backend_transport_options = {"timeuot": 1}
    with pytest.raises(ImproperlyConfigured, match="timeuot"):
        assert app.backend


def test_a_killed_server_gives_no_wrong_result(fragile: ServerProcess) -> None:
    def make(**conf: Any) -> Celery:
        app = Celery("killed", backend=fragile.endpoint.replace("tcp", "zkv"))
        app.conf.update(result_backend_transport_options={"timeout": 0.5}, **conf)
        return app

    app, retrying = make(), make(result_backend_always_retry=True, result_backend_max_retries=2)
    app.backend.store_result("task", 1, "SUCCESS")
    fragile.kill()
    with pytest.raises(zkv.ClientError):
        assert app.AsyncResult("task").status
    with pytest.raises(zkv.ClientError):
        app.backend.store_result("task", 2, "SUCCESS")
    with pytest.raises(BackendStoreError):
        retrying.backend.store_result("other", 3, "SUCCESS")
    fragile.start()
    assert app.AsyncResult("task").result == 1
    assert app.AsyncResult("other").status == "PENDING"


def test_a_chord_survives_a_server_that_is_killed(fragile: ServerProcess, tmp_path: Path) -> None:
    worker = Worker(tmp_path / "worker", fragile.endpoint)
    try:
        parts = [worker.tasks.add.s(n, 1) for n in range(12)]
        chords = [chord(parts, worker.tasks.total.s()).delay() for _ in range(3)]
        for _ in range(3):
            fragile.kill()
            fragile.start()
        assert [each.get(LIMIT) for each in chords] == [78, 78, 78]
    finally:
        worker.stop()


def test_the_page_runs_as_shown(tmp_path: Path) -> None:
    run_sessions("docs/celery.md", tmp_path / "page")
