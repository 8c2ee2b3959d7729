"""Machines: a server process on each, and a network between them that can fail."""

from __future__ import annotations

import json
import re
import resource
import signal
import subprocess
from pathlib import Path

from tests.client.proxy import Proxy
from tests.replication.following import Follower, State, state_of
from tests.support import LIMIT, ServerProcess, free_ports, zkv_command
from zkv.cli.dumped import commit_line
from zkv.durability import dump
from zkv.durability.files import Files
from zkv.durability.frozen_view import FrozenView

WINDOW = 64
"""Replies that a session remembers."""

CONFIG = f"""
[durability]
segment_bytes = 65536
snapshot_interval = 5.0
[limits]
session_window = {WINDOW}
[log]
requests = false
"""


class Machine:
    """One machine. Its server is found at the same ports whenever it is started.

    Args:
        directory: of its data.
        sync: how many standbys have to confirm its writes.
        host: the address at which its server listens.
        proxy_host: the address at which others reach it.
    """

    def __init__(
        self,
        directory: Path,
        sync: int = 0,
        host: str = "127.0.0.1",
        proxy_host: str = "127.0.0.1",
    ) -> None:
        self.directory = directory
        self._config = f"{CONFIG}[replication]\nsync = {sync}\n"
        port, feed = free_ports(2)
        self.endpoint = f"tcp://{host}:{port}"
        self.feed = f"tcp://{host}:{feed}"
        self._flags = ("--endpoint", self.endpoint, "--feed", self.feed)
        self.data_dir = directory / "data"
        self.proxy = Proxy(self.endpoint, proxy_host)
        """By which the other machines reach this one."""
        self.follows: tuple[Machine, ...] = ()
        """Whom it was told to follow at its last start as a standby."""
        self.server: ServerProcess | None = None
        self.is_stopped = False
        """Whether SIGSTOP was sent, and nothing that undoes it."""

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process of its server."""
        assert self.server is not None
        return self.server.process

    def serve(self) -> None:
        """Start it as a primary."""
        self.server = ServerProcess(self.directory, *self._flags, config=self._config)
        self.server.start()

    def follow(self, *places: Machine) -> None:
        """Start it as a standby of whichever of these it can follow."""
        self.follows = places
        endpoints = ",".join(place.proxy.endpoint for place in places)
        self.server = Follower(self.directory, endpoints, *self._flags, config=self._config)
        self.server.start()

    @property
    def is_standby(self) -> bool:
        """Whether its directory is a standby's."""
        path = self.data_dir / "replication.json"
        return path.exists() and json.loads(path.read_text())["role"] == "standby"

    def kill(self) -> None:
        """SIGKILL."""
        if self.server is not None:
            self.server.kill()
        self.is_stopped = False

    def stop(self) -> None:
        """SIGSTOP."""
        self.process.send_signal(signal.SIGSTOP)
        self.is_stopped = True

    def go_on(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)
        self.is_stopped = False

    def fill_disk(self) -> None:
        """Let no file grow any more: the next writes fail as on a full disk, in the log at last."""
        sizes = [path.stat().st_size for path in self.data_dir.glob("wal/*")]
        own = (self.directory / "stderr.txt").stat().st_size
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (max([own, *sizes]) + 500, -1))

    def free_disk(self) -> None:
        """Undo `fill_disk`."""
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (-1, -1))

    def log(self) -> str:
        """What its servers have written to standard error."""
        return (self.directory / "stderr.txt").read_text(encoding="utf-8", errors="replace")

    def state(self) -> State:
        """What is in its data directory."""
        return state_of(self.data_dir, WINDOW)

    def commits(self) -> dict[int, str]:
        """What is in its log, as files of what was given up have it, by log number."""
        with FrozenView(Files(), self.data_dir) as view:
            return {commit.lsn: commit_line(commit) for commit in dump.log(view, None)}

    def given_up(self) -> set[str]:
        """The lines of the files of what it has given up."""
        paths = self.data_dir.glob("diverged-after-*.jsonl")
        return {line for path in paths for line in path.read_text("utf-8").splitlines()}

    def said_to_be_gone(self) -> set[int]:
        """The log numbers of what it gave up and had no more, as it has said."""
        ranges = re.findall(r"those from (\d+) to (\d+) are in no file", self.log())
        return {lsn for first, last in ranges for lsn in range(int(first), int(last) + 1)}


def promote(machine: Machine, *flags: str) -> subprocess.Popen[str]:
    """Begin a promotion."""
    return subprocess.Popen(
        zkv_command("promote", "-e", machine.endpoint, *flags),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def outcome(promotion: subprocess.Popen[str]) -> tuple[bool, str]:
    """Wait for a promotion; whether it led to a new primary, and what was said."""
    try:
        said, _ = promotion.communicate(timeout=3 * LIMIT)
    except subprocess.TimeoutExpired:
        promotion.kill()
        said, _ = promotion.communicate()
    return promotion.returncode == 0, said.strip()
