"""Descriptors: connections do not get those that the data needs."""

from __future__ import annotations

import contextlib
import logging
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.broker.zmtp import Wire
from tests.support import FREE_PORT, LIMIT, Raw, ServerProcess, eventually
from zkv.broker.room import Room, room_for_connections
from zkv.durability.files import Files

FILES: Final = 128
IDLE: Final = 300


def limit_files(server: ServerProcess, files: int) -> None:
    """Change how many files a server may have open."""
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (files, files))


def limits(client: Raw, room: int) -> Callable[[], bool]:
    """Tells whether the connections beyond a room are cut off, and all are counted."""

    def hold() -> bool:
        stats = client.ok(op="INFO")["stats"]
        connections, refused = stats["connections"], stats["connections_cut"]["files"]
        return bool(connections + refused == IDLE + 1 and connections < room)

    return hold


def test_idle_connections_do_not_keep_the_server_from_its_work(tmp_path: Path) -> None:
    """The earlier client is served, a snapshot can be written, and later ones get in again."""
    with ServerProcess(tmp_path) as server, Raw(server.endpoint) as early:
        early.ok(op="PING")
        limit_files(server, FILES)
        with contextlib.ExitStack() as stack:
            for _ in range(IDLE):
                stack.enter_context(Wire(server.endpoint))
            for number in range(5):
                early.ok(op="PING")
                early.ok(op="PUT", key="k", value=number)
                assert early.ok(op="SNAPSHOT")["rev"] == number + 1
            eventually(
                limits(early, room_for_connections(FILES, is_tcp=True)), "the others are cut off"
            )
            assert early.ok(op="INFO")["stats"]["process"]["max_open_files"] == FILES
        with Raw(server.endpoint) as late:
            assert late.ok(op="GET", key="k")["value"] == 4
        assert "connections by tcp are refused from 96 on" in server.log()
        assert "was cut off: the peer came when too many files were open" in server.log()
        assert "Too many open files" not in server.log()


def test_connections_by_ipc_have_half_of_the_descriptors(tmp_path: Path) -> None:
    """Those by tcp still have some then."""
    ipc, files = f"ipc://{tmp_path}/s", 2 * IDLE
    with (
        ServerProcess(tmp_path, "--endpoint", FREE_PORT, "--endpoint", ipc) as server,
        Raw(server.endpoint) as early,
    ):
        early.ok(op="PING")
        limit_files(server, files)
        with contextlib.ExitStack() as stack:
            for _ in range(IDLE):
                stack.enter_context(Wire(ipc))
            eventually(limits(early, files // 2), "the others are cut off")
            with Raw(server.endpoint) as late:
                late.ok(op="PING")
        with Raw(ipc) as late:
            late.ok(op="PING")


def test_they_are_not_counted_as_failed_handshakes(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server, Raw(server.endpoint) as early:
        early.ok(op="PING")
        limit_files(server, FILES)
        with contextlib.ExitStack() as stack:
            wires = [stack.enter_context(Wire(server.endpoint)) for _ in range(IDLE)]
            for wire in wires:
                wire.wait_for_end()

            def counted() -> tuple[int, int]:
                """Those who were too slow, or cut off; and all whose handshakes failed, or were."""
                stats = early.ok(op="INFO")["stats"]
                failed, cut = stats["handshakes_failed"], stats["connections_cut"]["files"]
                return failed["timeout"] + cut, sum(failed.values()) + cut

            eventually(lambda: counted()[1] >= IDLE, "all are counted")
            assert counted() == (IDLE, IDLE)


@pytest.mark.parametrize(
    ("limit", "tcp", "ipc"),
    [(128, 96, 64), (256, 192, 128), (1_024, 960, 512), (1_000_000, 999_936, 500_000)],
)
def test_room(limit: int, tcp: int, ipc: int) -> None:
    assert room_for_connections(limit, is_tcp=True) == tcp
    assert room_for_connections(limit, is_tcp=False) == ipc


def test_the_warning_comes_once_for_each_time(caplog: pytest.LogCaptureFixture) -> None:
    room = Room()
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = room_for_connections(limit, is_tcp=True)
    assert room.admits(most // 2, is_tcp=True)
    assert not caplog.records
    assert room.admits(most - 1, is_tcp=True)
    assert not room.admits(most, is_tcp=True)
    assert room.admits(most * 3 // 4, is_tcp=True)
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.WARNING
    assert room.admits(most // 2, is_tcp=True)
    assert room.admits(most * 9 // 10, is_tcp=True)
    assert len(caplog.records) == 2


def test_a_file_waits_for_a_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until a connection that has taken the last one is cut off."""
    held = socket.socket()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr("zkv.durability.files.time.sleep", lambda _seconds: held.close())
    resource.setrlimit(resource.RLIMIT_NOFILE, (held.fileno() + 1, hard))
    others = []
    try:
        with contextlib.suppress(OSError):
            while True:
                others.append(socket.socket())
        with Files().create(tmp_path / "file"):
            pass
        assert held.fileno() == -1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for each in others:
            each.close()


CROWD: Final = 5_000
CONNECT: Final = f"""
import resource, socket, sys
host, port = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_NOFILE, ({CROWD} + 100,) * 2)
greeting = b"\\xff" + bytes(8) + b"\\x7f\\x03\\0NULL" + bytes(16) + bytes(32)
ready = b"\\x05READY\\x0bSocket-Type\\0\\0\\0\\x03REQ"
ready = bytes([4, len(ready)]) + ready
open_ = []
for number in range({CROWD}):
    open_.append(socket.create_connection((host, int(port))))
    open_[-1].sendall(greeting)
    open_[-1].recv(64, socket.MSG_WAITALL)
    open_[-1].sendall(ready)
    open_[-1].recv(open_[-1].recv(2)[1], socket.MSG_WAITALL)
for each in open_[::1000]:
    each.sendall(b"\\x01\\0\\0\\x09\\x81\\xa2op\\xa4PING")
    assert b"\\x01\\0\\0" in each.recv(100)  # Its handshake is done.
print("all", flush=True)
sys.stdin.read()
"""


def test_five_thousand_connections(tmp_path: Path) -> None:
    """All of them are clients whose handshake is done; the server serves one more beside them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < CROWD + 200:
        pytest.skip("this system allows too few open files")
    with ServerProcess(tmp_path) as server, Raw(server.endpoint) as client:
        client.ok(op="PUT", key="k", value=1)
        host, _, port = server.endpoint.removeprefix("tcp://").rpartition(":")
        crowd = subprocess.Popen(
            [sys.executable, "-c", CONNECT, host, port],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        with crowd:
            assert crowd.stdin is not None
            assert crowd.stdout is not None
            assert crowd.stdout.readline() == b"all\n"
            assert client.ok(op="GET", key="k")["value"] == 1
            eventually(
                lambda: client.ok(op="INFO")["stats"]["connections"] == CROWD + 1,
                "all are counted",
                3 * LIMIT,
            )
            assert client.ok(op="SNAPSHOT")["rev"] == 1
            crowd.stdin.close()
            assert crowd.wait(LIMIT) == 0
        eventually(lambda: client.ok(op="INFO")["stats"]["connections"] == 1, "all have left")
