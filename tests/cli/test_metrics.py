"""`zkv metrics`: the metrics of a server that does not serve them itself."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.forking import run_zkv
from tests.metrics.scraping import ask
from tests.support import LIMIT, ServerInProcess, environment, read_line, zkv_command


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerInProcess]:
    with ServerInProcess(tmp_path / "data") as server:
        yield server


class Exporter:
    """``zkv metrics`` on a free port. Use as a context manager."""

    def __init__(self, endpoint: str) -> None:
        words = ["metrics", "-e", endpoint, "--listen", "127.0.0.1:*", "--timeout", "2"]
        self._process = subprocess.Popen(
            zkv_command(*words), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self._process.stdout is not None
        ready = read_line(self._process.stdout).decode().split()
        assert ready[:1] == ["READY"], self._process.communicate(timeout=LIMIT)
        self.url = ready[1]

    def __enter__(self) -> Exporter:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def end(self, number: int) -> tuple[int, bytes]:
        """End it by a signal: exit status, and standard error."""
        self._process.send_signal(number)
        _, complaints = self._process.communicate(timeout=LIMIT)
        return self._process.returncode, complaints


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_what_info_tells(server: ServerInProcess, number: int) -> None:
    with Exporter(server.endpoint) as exporter:
        for path in ("/healthz", "/readyz", "/readyz?for=write"):
            assert ask(exporter.url, path).status == 200
        text = ask(exporter.url, "/metrics").text
        assert 'zkv_requests_total{code="OK",op="PING"} 1.0' in text
        assert "zkv_read_only 0.0" in text
        assert exporter.end(number) == (0, b"")


def test_a_server_that_refuses_writes(
    server: ServerInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = server.server._engine
    told = engine.statistics

    def refusing() -> dict[str, Any]:
        return told() | {"refusal": "the disk is full"}

    monkeypatch.setattr(engine, "statistics", refusing)
    with Exporter(server.endpoint) as exporter:
        assert ask(exporter.url, "/readyz").status == 200
        assert ask(exporter.url, "/readyz?for=write").status == 503
        assert "zkv_read_only 1.0" in ask(exporter.url, "/metrics").text


def test_a_user_who_may_not_see_the_statistics(tmp_path: Path) -> None:
    users = tmp_path / "users.toml"
    users.write_text(f"[users.ann]\nuids = [{os.getuid()}]\n")
    endpoint = f"ipc://{tmp_path}/socket"
    with (
        ServerInProcess(
            tmp_path / "data",
            server={"endpoints": [endpoint]},
            security={"users": str(users)},
        ),
        Exporter(endpoint) as exporter,
    ):
        for path in ("/metrics", "/readyz?for=write"):
            answer = ask(exporter.url, path)
            assert answer.status == 503
            assert answer.text == (
                "user ann may not see the statistics: it needs the right monitor\n"
            )
        assert ask(exporter.url, "/readyz").status == 200


def test_a_server_that_is_away(server: ServerInProcess) -> None:
    with Exporter(server.endpoint) as exporter:
        assert server.stop()
        for path in ("/metrics", "/readyz", "/readyz?for=write"):
            answer = ask(exporter.url, path)
            assert answer.status == 503
            assert server.endpoint in answer.text
        assert ask(exporter.url, "/healthz").status == 200


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["-e", "nonsense"], "--endpoint: "), (["--listen", "9555"], "--listen: "),
        (["--listen", "http://127.0.0.1:9555"], "--listen: "), (["--timeout", "0"], "timeout"),
        (["x"], "unrecognized"),
    ],
)  # fmt: skip
def test_wrong_usage(words: list[str], why: str, tmp_path: Path) -> None:
    done = run_zkv("metrics", *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert why in done.stderr


def test_an_address_that_is_taken(server: ServerInProcess, tmp_path: Path) -> None:
    taken = server.endpoint.removeprefix("tcp://")
    done = run_zkv("metrics", "--listen", taken, cwd=tmp_path)
    assert done.returncode == 2
    assert "--listen: " in done.stderr
    assert "in use" in done.stderr
