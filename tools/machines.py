"""Three nodes of etcd and three members of a store, as processes on this machine.

What `tools/cluster.py` shows, and `tools/outages.py` measures.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import zkv
from zkv.etcd import connect

if TYPE_CHECKING:
    from collections.abc import Callable

BIN: Final = Path(sys.executable).parent
ETCD: Final = shutil.which(os.environ.get("ETCD", "etcd"))
PATIENCE: Final = 60.0
"""Seconds for which anything is awaited."""
NAMES: Final = ("a", "b", "c")


class NotThereError(Exception):
    """Something did not happen, or is not installed."""


def free_ports(count: int) -> list[int]:
    """Return ports that nobody uses at the moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def wait_for(what: str, condition: Callable[[], bool]) -> None:
    """Wait until a condition holds. Raises NotThereError."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise NotThereError(f"waited in vain: {what}")
        time.sleep(0.02)


class Process:
    """A process that may be killed, stopped, continued, and started again.

    Args:
        directory: where it runs; its output is in a file there.
        name: of that file.
        *words: the command.
    """

    def __init__(self, directory: Path, name: str, *words: str) -> None:
        self.name = name
        self.words = words
        self._directory = directory
        self.log = directory / f"{name}.log"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it, unless it runs."""
        if self._process is None:
            with open(self.log, "ab") as log:
                self._process = subprocess.Popen(
                    self.words, cwd=self._directory, stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE, stderr=log, text=True,
                )  # fmt: skip

    def first_line(self) -> str:
        """Wait for what it says first; empty if it ends before."""
        out = None if self._process is None else self._process.stdout
        return "" if out is None else out.readline()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self._process is not None:
            self._process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGKILL) -> int | None:
        """End it by a signal; return its exit status."""
        if self._process is None:
            return None
        process, self._process = self._process, None
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        status = process.wait()
        if process.stdout is not None:
            process.stdout.close()
        return status


class Node(Process):
    """A node of etcd. It waits for the disk, and has etcd's own timing, as in production.

    Args:
        directory: for its data and its log.
        name: its name.
        port: for its clients.
        peers: the ports at which the nodes find each other, by name.
    """

    def __init__(self, directory: Path, name: str, port: int, peers: dict[str, int]) -> None:
        here, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peers[name]}"
        members = ",".join(f"{each}=http://127.0.0.1:{there}" for each, there in peers.items())
        super().__init__(
            directory, name, ETCD or "etcd", "--name", name, "--data-dir", name,
            "--listen-client-urls", here, "--advertise-client-urls", here,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", members, "--log-outputs", "stderr", "--logger", "zap",
        )  # fmt: skip
        self.endpoint = f"127.0.0.1:{port}"


class Member(Process):
    """A member of the store: ``zkv serve``.

    Args:
        directory: for its data and its log.
        name: its name.
        store: the URL of the store.
        port: where it listens, also after a restart.
        *flags: further ones.
    """

    def __init__(self, directory: Path, name: str, store: str, port: int, *flags: str) -> None:
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self.command = (
            "zkv", "serve", "--store", store, "--member", name, "--data-dir", name,
            "--endpoint", self.endpoint, *flags,
        )  # fmt: skip
        super().__init__(directory, name, str(BIN / "zkv"), *self.command[1:])

    def await_ready(self) -> None:
        """Wait until it is ready. Raises NotThereError."""
        if not self.first_line().startswith("READY"):
            raise NotThereError(f"{self.name} does not start")

    def replication(self) -> dict[str, Any]:
        """Return what it says of itself; empty if it does not answer."""
        try:
            with zkv.Client(self.endpoint, timeout=0.5) as client:
                return dict(client.info()["replication"])
        except zkv.ZkvError:
            return {}


class Cluster:
    """Three nodes and three members. Use as a context manager: all of them run.

    Args:
        directory: empty.
        *flags: further ones of the members.
    """

    def __init__(self, directory: Path, *flags: str) -> None:
        if ETCD is None:
            raise NotThereError("etcd is not installed here: `make etcd-deps` installs it")
        ports = free_ports(9)
        peers = {f"etcd-{each}": port for each, port in zip(NAMES, ports[:3], strict=True)}
        self.nodes = [
            Node(directory, name, port, peers)
            for name, port in zip(peers, ports[3:6], strict=True)
        ]  # fmt: skip
        self.url = f"etcd://{','.join(each.endpoint for each in self.nodes)}/shown"
        self.members = [
            Member(directory, name, self.url, port, *flags)
            for name, port in zip(NAMES, ports[6:], strict=True)
        ]
        self.directory = directory

    @property
    def endpoints(self) -> str:
        """Those of all members, as clients take them."""
        return ",".join(each.endpoint for each in self.members)

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _start(self) -> None:
        for node in self.nodes:
            node.start()
        found = [str(BIN / "zkv"), "store", "found", self.url]
        wait_for("etcd answers", lambda: not subprocess.run(
            found, cwd=self.directory, capture_output=True, check=False
        ).returncode)  # fmt: skip
        for member in self.members:
            member.start()
        for member in self.members:
            member.await_ready()

    def _end(self) -> None:
        for process in [*self.members, *self.nodes]:
            process.end()

    def leader(self) -> Member:
        """Wait until a member leads, and return it."""
        leading: list[Member] = []

        def look() -> bool:
            leading[:] = [
                each for each in self.members if each.replication().get("role") == "leader"
            ]
            return bool(leading)

        wait_for("a member leads", look)
        return leading[0]

    def node(self, leads: bool) -> Node:
        """Wait until a node of etcd leads; return it, or another one that runs."""
        etcd = connect([each.endpoint for each in self.nodes])
        found: list[Node] = []

        def look() -> bool:
            states = etcd.status(1.0)
            if any(each.leader for each in states):
                found[:] = [
                    node
                    for node, each in zip(self.nodes, states, strict=True)
                    if each.error is None and (each.leader == each.member_id) is leads
                ]
            return bool(found)

        try:
            wait_for("etcd has a leader", look)
        finally:
            etcd.close()
        return found[0]

    def follower(self) -> Member:
        """Return a member that follows."""
        leader = self.leader()
        return next(each for each in self.members if each is not leader)
