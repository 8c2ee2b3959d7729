"""``zkv-cli watch``: every change, once, in order, whatever happens to server and feed."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from tests.cli.test_commands import COMMAND, NOWHERE, assert_fails, run
from tests.conftest import Connect
from tests.support import LIMIT, ROOT, Raw, ServerInProcess, ServerProcess, environment, read_line


class Watching:
    """A ``zkv-cli watch`` that runs."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self.process = process
        self.lines: IO[bytes] = process.stdout
        self.notes: IO[bytes] = process.stderr

    def take(self, count: int) -> list[list[Any]]:
        """The next changes, each as CHANGES tells it."""
        found = [json.loads(read_line(self.lines)) for _ in range(count)]
        return [[each["rev"], each["op"], each["key"], each.get("value")] for each in found]


@contextmanager
def watching(endpoint: str, *words: str) -> Iterator[Watching]:
    """Runs the command, and waits until it follows."""
    with subprocess.Popen(
        [*COMMAND, "-e", endpoint, "--json", "--timeout", "2", "watch", *words],
        cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
    ) as process:  # fmt: skip
        try:
            watch = Watching(process)
            assert b"watching from revision" in read_line(watch.notes)
            yield watch
        finally:
            process.kill()


def all_changes(client: Raw, since: int = 0) -> list[list[Any]]:
    """Everything behind a revision, as the server tells it."""
    found: list[list[Any]] = []
    while True:
        reply = client.ok(op="CHANGES", since=since, limit=10_000)
        found += reply["changes"]
        since = reply["next"]
        if since >= reply["rev"]:
            return found


def test_changes_are_printed_as_they_come(server: ServerInProcess, client: Raw) -> None:
    client.ok(op="PUT", key="before", value=0)
    with watching(server.endpoint) as watch:
        client.ok(op="PUT", key="a", value=[1, b"\x00"])
        assert watch.take(1) == [[2, "PUT", "a", [1, {"$bin": "AA=="}]]]
        client.ok(op="TOUCH", key="a", ttl=0.001)
        assert [change[1] for change in watch.take(2)] == ["TOUCH", "EXPIRE"]
        client.ok(op="DELETE", key="before")
        assert watch.take(1) == [[5, "DELETE", "before", None]]


def test_lines_are_those_of_changes(server: ServerInProcess, client: Raw) -> None:
    client.ok(op="MPUT", items={"a": "x", "b\n": 1})
    client.ok(op="DELETE", key="a")

    printed = run("-e", server.endpoint, "watch", "--since", "0", "--limit", "3")

    assert printed.returncode == 0, printed.stderr
    assert printed.stdout == run("-e", server.endpoint, "changes", "0").stdout
    assert printed.stdout.count(b"\n") == 3


def test_only_keys_with_a_prefix(server: ServerInProcess, client: Raw) -> None:
    with watching(server.endpoint, "user/", "--since", "0") as watch:
        for number in range(300):
            client.ok(op="MPUT", items={"noise": number, f"other/{number}": 0})
            if number % 100 == 0:
                client.ok(op="PUT", key=f"user/{number}", value=number)
        assert [change[2] for change in watch.take(3)] == ["user/0", "user/100", "user/200"]


def test_large_bursts_come_whole(server: ServerInProcess, client: Raw) -> None:
    with watching(server.endpoint) as watch:
        for burst in range(4):
            client.ok(op="MPUT", items={f"{burst}/{number}": number for number in range(2500)})
            for number in range(50):
                client.ok(op="PUT", key=f"single/{number}", value=burst)
        expected = all_changes(client)
        assert watch.take(len(expected)) == expected


@pytest.mark.parametrize("end", [ServerProcess.kill, ServerProcess.stop], ids=["kill", "stop"])
def test_a_restart_of_the_server_leaves_no_gap_and_repeats_nothing(
    tmp_path: Path, connect: Connect, end: Callable[[ServerProcess], object]
) -> None:
    """The feed is at another port then."""
    endpoint = f"ipc://{tmp_path}/socket"
    with ServerProcess(tmp_path / "server", "--endpoint", endpoint) as server:
        client = connect(endpoint)
        with watching(endpoint, "--since", "0") as watch:
            for number in range(20):
                client.ok(op="PUT", key="before", value=number)
            end(server)
            server.start()
            client = connect(endpoint)
            for number in range(20):
                client.ok(op="PUT", key="after", value=number)
            assert watch.take(40) == all_changes(client)


def test_a_server_that_is_away_is_waited_for_and_that_is_said(
    tmp_path: Path, connect: Connect
) -> None:
    endpoint = f"ipc://{tmp_path}/socket"
    with (
        ServerProcess(tmp_path / "server", "--endpoint", endpoint) as server,
        watching(endpoint) as watch,
    ):
        server.kill()
        assert b"trying again" in read_line(watch.notes)
        server.start()
        assert b"answers again" in read_line(watch.notes)
        connect(endpoint).ok(op="PUT", key="k", value=1)
        assert watch.take(1) == [[1, "PUT", "k", 1]]


def test_without_a_feed_changes_come_a_little_later(tmp_path: Path, connect: Connect) -> None:
    with ServerProcess(tmp_path, "--feed", "") as server:
        client = connect(server.endpoint)
        with watching(server.endpoint) as watch:
            client.ok(op="PUT", key="k", value=1)
            assert watch.take(1) == [[1, "PUT", "k", 1]]


def test_a_gap_is_a_failure(tmp_path: Path, connect: Connect) -> None:
    with ServerProcess(tmp_path, config="[limits]\nhistory = 1\n") as server:
        client = connect(server.endpoint)
        for value in range(3):
            client.ok(op="PUT", key="k", value=value)

        forgotten = run("-e", server.endpoint, "watch", "--since", "0")
        ahead = run("-e", server.endpoint, "watch", "--since", "9")

    for result, why in ((forgotten, b"no longer keeps"), (ahead, b"gone back")):
        assert (result.returncode, result.stdout) == (2, b"")
        assert why in result.stderr
        assert b"read the store again" in result.stderr


def test_nobody_there_is_no_answer_in_time() -> None:
    assert_fails(run("-e", NOWHERE, "--timeout", "0.2", "watch"), 3, NOWHERE)


@pytest.mark.parametrize("limit", ["0", "-1", "x"])
def test_a_limit_below_one_is_wrong_usage(limit: str) -> None:
    assert_fails(run("-e", NOWHERE, "watch", f"--limit={limit}"), 2, "--limit")


@pytest.mark.parametrize("since", ["-1", "9" * 30])
def test_a_revision_that_there_cannot_be_is_wrong_usage(since: str) -> None:
    assert_fails(run("-e", NOWHERE, "watch", f"--since={since}"), 2, "--since")


def test_ctrl_c_ends_it(server: ServerInProcess) -> None:
    with watching(server.endpoint) as watch:
        watch.process.send_signal(signal.SIGINT)
        assert watch.process.wait(LIMIT) == 130
        assert watch.notes.read() == b""


def test_a_closed_pipe_ends_it_quietly(server: ServerInProcess, client: Raw) -> None:
    with watching(server.endpoint) as watch:
        watch.lines.close()
        client.ok(op="PUT", key="k", value=1)
        assert watch.process.wait(LIMIT) == 141
        assert watch.notes.read() == b""
