"""What a service manager is told: by real servers, at a socket as systemd makes it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

import pytest

from tests.etcd.nodes import EtcdCluster
from tests.forking import run_zkv
from tests.replication.following import Follower, compact, fixed_ports
from tests.support import (
    LIMIT,
    Raw,
    ServerProcess,
    children_of,
    eventually,
    free_ports,
    halt,
    pack,
    unpack,
)
from zkv.cli.manager import EXTEND_SECONDS, SIGNS
from zkv.cli.outcome import NOT_STARTED

SOON: Final = 0.2
"""Seconds within which a server here has to give a sign of life."""

FAULTY: Final = """
import os, signal, sys, time
from zkv.cli.main import main
from zkv import engine
from zkv.durability.files import Files
from zkv.durability import wal
from zkv.keyspace.lock import StoreLock

wal.SLOW_SECONDS = float(os.environ.get("SLOW_SECONDS", 1))
locks = []
make = StoreLock.__init__

class SlowFiles(Files):
    def sync(self, file):
        while os.path.exists("slow"):
            open("waits", "w").close()
            time.sleep(0.01)
        super().sync(file)

def note(self):
    make(self)
    locks.append(self)

engine.Files, StoreLock.__init__ = SlowFiles, note
signal.signal(signal.SIGUSR2, lambda *_: locks[-1].acquire())
sys.exit(main())
"""
"""A server that waits for its disk while there is a file `slow`. SIGUSR2 has it hold the lock of
the store for ever."""


HANGS: Final = "nothing has happened there for a while"
SIGN: Final = {"WATCHDOG": "1"}
"""A sign of life."""


class FaultyServer(ServerProcess):
    """A server on which faults can be brought."""

    def __init__(self, directory: Path, env: dict[str, str]) -> None:
        super().__init__(directory, env=env)
        self._command = [
            sys.executable,
            "-c",
            FAULTY,
            *self._command[self._command.index("serve") :],
        ]
        self.slow = directory / "slow"
        self.waits = directory / "waits"


class Manager:
    """The socket of a service manager. Use as a context manager.

    Args:
        address: a path, or @ and a name.
    """

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0", 1))
        self.socket.settimeout(LIMIT)
        self.env = {"NOTIFY_SOCKET": address}
        self.watching = self.env | {"WATCHDOG_USEC": str(round(SOON * 1e6))}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def receive(self) -> dict[str, str]:
        """The next message."""
        lines = self.socket.recv(4096).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)

    def until(self, name: str) -> list[dict[str, str]]:
        """The messages up to one that has the line of that name."""
        messages = [self.receive()]
        while name not in messages[-1]:
            messages.append(self.receive())
        return messages

    def drain(self) -> list[dict[str, str]]:
        """The messages that have come."""
        messages = []
        self.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                messages.append(self.receive())
        self.socket.settimeout(LIMIT)
        return messages

    def is_silent(self) -> bool:
        """Whether no message comes for several times as long as a server may be silent."""
        self.socket.settimeout(3 * SOON)
        try:
            self.receive()
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(LIMIT)
        return False


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with Manager(str(tmp_path / "notify")) as manager:
        yield manager


@contextlib.contextmanager
def launched(server: ServerProcess) -> Iterator[ServerProcess]:
    """A server whose READY line is not waited for."""
    server.launch()
    try:
        yield server
    finally:
        server.kill()


def await_hang(server: ServerProcess) -> None:
    """Wait until a server that hangs has noticed that, once more."""
    before = server.log().count(HANGS)
    eventually(lambda: server.log().count(HANGS) > before, "it hangs")


def asks_for_time(message: dict[str, str]) -> bool:
    return message.get("EXTEND_TIMEOUT_USEC") == str(EXTEND_SECONDS * 1_000_000)


# --- Start and stop --------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["path", "abstract"])
def test_start_and_end(tmp_path: Path, address: str) -> None:
    place = str(tmp_path / "notify") if address == "path" else f"@zkv-{os.getpid()}-{tmp_path.name}"
    with Manager(place) as manager, ServerProcess(tmp_path / "s", env=manager.env) as server:
        loading, *_, ready = manager.until("READY")
        assert ready == {"READY": "1", "STATUS": f"serving at {server.endpoint}"}
        assert loading["STATUS"] == "loading the data"
        assert asks_for_time(loading)
        assert server.stop() == 0
        (stopping,) = manager.drain()
        assert stopping["STOPPING"] == "1"
        assert stopping["STATUS"] == "saving everything"
        assert asks_for_time(stopping)


def test_a_start_that_takes_long_asks_for_time(manager: Manager, tmp_path: Path) -> None:
    """A standby without data waits until there is a primary."""
    primary = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    with launched(Follower(tmp_path / "s", primary, env=manager.watching)) as standby:
        for _ in range(2 * SIGNS):
            message = manager.receive()
            assert asks_for_time(message)
            assert "READY" not in message
        assert standby.stop() == 0


def test_a_save_that_takes_long_asks_for_time(manager: Manager, tmp_path: Path) -> None:
    with FaultyServer(tmp_path / "s", manager.watching) as server:
        with Raw(server.endpoint) as client:
            client.ok(op="PUT", key="k", value=1)
        manager.until("READY")
        server.slow.touch()
        server.signal(signal.SIGTERM)
        manager.until("STOPPING")
        for _ in range(2 * SIGNS):
            message = manager.receive()
            assert asks_for_time(message)
            assert message["WATCHDOG"] == "1"
        server.slow.unlink()
        assert server.wait() == 0


def test_a_server_that_does_not_start_is_not_ready(manager: Manager, tmp_path: Path) -> None:
    place = "--endpoint", "tcp://192.0.2.1:5555"
    with launched(ServerProcess(tmp_path / "s", *place, env=manager.env)) as server:
        assert server.wait() == NOT_STARTED
        assert not [each for each in manager.drain() if "READY" in each]


def test_a_standby_is_ready_once_and_begins_anew_without_a_word_of_the_end(
    manager: Manager, tmp_path: Path
) -> None:
    """To a service manager it is one service, whichever server runs in its process."""
    config = "[durability]\nsegment_bytes = 4096\n"
    with (
        ServerProcess(tmp_path / "p", *fixed_ports(), config=config) as primary,
        Follower(tmp_path / "s", primary.endpoint, env=manager.watching) as standby,
    ):
        ready = manager.until("READY")[-1]
        assert ready["STATUS"] == f"serving at {standby.endpoint}"
        with Raw(standby.endpoint) as client:
            assert client.ok(op="INFO")["replication"]["role"] == "standby"
        standby.signal(signal.SIGSTOP)
        compact(primary)
        standby.signal(signal.SIGCONT)
        messages = manager.until("READY")
        assert "STOPPING" not in {name for each in messages for name in each}
        status = [each["STATUS"] for each in messages if "STATUS" in each]
        assert status == ["beginning anew from a snapshot of another server", ready["STATUS"]]
        manager.until("WATCHDOG")
        assert standby.stop() == 0
        assert "STOPPING" in manager.until("STOPPING")[-1]


def test_a_member_is_ready_although_etcd_does_not_answer(
    manager: Manager, node: EtcdCluster, tmp_path: Path
) -> None:
    """Else all would wait for it in vain, and none could be asked what is wrong."""
    hosts = node.endpoints[0].removeprefix("http://")
    url = f"etcd://{hosts}/{tmp_path.name}"
    assert run_zkv("store", "found", url).returncode == 0
    with ServerProcess(tmp_path / "s", "--store", url, env=manager.env) as member:
        manager.until("READY")
        assert member.stop() == 0
        manager.until("STOPPING")
    nobody = f"etcd://127.0.0.1:{free_ports(1)[0]}/{tmp_path.name}"
    with ServerProcess(tmp_path / "s", "--store", nobody, env=manager.env) as member:
        manager.until("READY")
        with Raw(member.endpoint) as client:
            assert client.ok(op="INFO")["replication"]["role"] == "follower"


# --- Signs of life ---------------------------------------------------------------------------


def test_signs_of_life_until_the_process_stands_still(manager: Manager, tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "s", env=manager.watching) as server:
        manager.until("READY")
        assert [manager.receive() for _ in range(SIGNS)] == SIGNS * [SIGN]
        halt(server.process)
        manager.drain()
        assert manager.is_silent()
        server.signal(signal.SIGCONT)
        assert manager.receive() == SIGN


def test_none_while_the_store_is_locked(manager: Manager, tmp_path: Path) -> None:
    """The process runs, and answers nobody. What a manager does next shows where it hangs."""
    with FaultyServer(tmp_path / "s", manager.watching) as server:
        manager.until("READY")
        manager.until("WATCHDOG")
        server.signal(signal.SIGUSR2)
        await_hang(server)
        manager.drain()
        assert manager.is_silent()
        server.signal(signal.SIGABRT)
        assert server.wait() == -signal.SIGABRT
        assert "Fatal Python error: Aborted" in server.log()
        assert "_next_event" in server.log()


@pytest.mark.parametrize("slow", [True, False], ids=["slow", "not-slow-yet"])
def test_signs_of_life_while_the_disk_is_slow(manager: Manager, tmp_path: Path, slow: bool) -> None:
    """One that waits for the disk is no worse for that. Only how long it waits tells the two apart,
    and a disk that is quick explains nothing.
    """
    env = manager.watching | {"SLOW_SECONDS": "0" if slow else "1000"}
    with FaultyServer(tmp_path / "s", env) as server, Raw(server.endpoint) as client:
        manager.until("READY")
        server.slow.touch()
        client.send(pack({"op": "PUT", "key": "k", "value": 1}))
        eventually(server.waits.exists, "the server waits for its disk")
        manager.drain()
        if slow:
            assert [manager.receive() for _ in range(2 * SIGNS)] == 2 * SIGNS * [SIGN]
        else:
            await_hang(server)
            manager.drain()
            assert manager.is_silent()
        server.slow.unlink()
        assert unpack(client.receive())["ok"]
        assert manager.receive() == SIGN


@pytest.mark.parametrize("told", [{"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "-1"}])
def test_no_signs_where_nobody_waits_for_them(
    manager: Manager, tmp_path: Path, told: dict[str, str]
) -> None:
    """The variables are those of another process, or make no sense."""
    env = manager.watching | told
    with ServerProcess(tmp_path / "s", env=env) as server:
        manager.until("READY")
        assert server.stop() == 0
        assert not [each for each in manager.drain() if "WATCHDOG" in each]


# --- The first process of a container --------------------------------------------------------

ALONE: Final = ["unshare", "--pid", "--fork", "--kill-child"]
"""Begins a command that is the first process, of which all others are children."""


def can_be_alone() -> bool:
    return (
        shutil.which("unshare") is not None
        and not subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode
    )


needs_namespaces = pytest.mark.skipif(
    not can_be_alone(), reason="NOT RUN: no namespaces of processes may be made here (root may)"
)


class FirstProcess(FaultyServer):
    """A server that is the first process of a namespace."""

    def __init__(self, directory: Path, env: dict[str, str]) -> None:
        super().__init__(directory, env)
        self._command = [*ALONE, *self._command]

    @property
    def number(self) -> int:
        """The number of the server's process here."""
        (number,) = children_of(self.process.pid)
        return number


@needs_namespaces
def test_the_first_process_ends_in_order(tmp_path: Path) -> None:
    with FirstProcess(tmp_path / "s", {}) as server:
        with Raw(server.endpoint) as client:
            client.ok(op="PUT", key="k", value=1)
        os.kill(server.number, signal.SIGTERM)
        assert server.wait() == 0
        assert "everything is saved at revision 1" in server.log()


@needs_namespaces
def test_the_first_process_ends_while_it_loads(tmp_path: Path) -> None:
    """The system ignores signals that it has no handler for."""
    server = FirstProcess(tmp_path / "s", {})
    server.slow.touch()
    with launched(server):
        eventually(server.waits.exists, "it begins its log")
        os.kill(server.number, signal.SIGTERM)
        assert server.wait() == 128 + signal.SIGTERM


@needs_namespaces
def test_the_first_process_waits_for_orphans(tmp_path: Path) -> None:
    with FirstProcess(tmp_path / "s", {}) as server:
        orphan = "sleep 0.1 & echo $!"
        subprocess.run(
            ["nsenter", "--target", str(server.number), "--pid", "sh", "-c", orphan],
            stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        eventually(lambda: not children_of(server.number), "the orphan is gone")
