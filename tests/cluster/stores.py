"""A replicated store of real processes, over a real etcd."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.etcd.nodes import EtcdCluster
from tests.forking import run_zkv
from tests.support import (
    FREE_PORT,
    LIMIT,
    Message,
    NoReplyError,
    Raw,
    ServerProcess,
    eventually,
)
from zkv.cluster.shared_log import SharedLog
from zkv.etcd.client import EtcdClient

CONFIG: Final = """
[store]
log_bytes = 0
lease = 2.0
[durability]
snapshot_interval = 0.5
[log]
requests = false
"""
"""Members that trim as much as they may, as soon as they may."""
LONG: Final = 3 * LIMIT
"""Seconds after which a fail-over, or a round of upkeep, counts as hung."""


class StoreMember(ServerProcess):
    """A member. Use as a context manager.

    Args:
        directory: of its data; its name is that of the member.
        url: of the store.
        *flags: further flags of ``zkv serve``.
        config: the text of the config file.
        named: False: its data directory tells its name.
    """

    def __init__(
        self, directory: Path, url: str, *flags: str, config: str = CONFIG, named: bool = True
    ) -> None:
        name = ("--member", directory.name) if named else ()
        place = ("--store", url, "--feed", FREE_PORT)
        super().__init__(directory, *place, *name, *flags, config=config)
        self.name = directory.name

    def end(self) -> None:
        """Kill it, if it was ever started."""
        if hasattr(self, "process"):
            self.kill()

    def info(self) -> Message:
        """INFO's ``replication``; empty if there is no answer."""
        try:
            with Raw(self.endpoint, timeout=5.0) as client:
                reply = client.call(op="INFO")
        except NoReplyError:
            return {}
        return dict(reply.get("replication", {}))

    @property
    def leads(self) -> bool:
        """True if it leads."""
        return self.info().get("role") == "leader"

    def await_lsn(self, lsn: int) -> None:
        """Wait until it has the log up to a number."""
        eventually(lambda: self.info().get("applied", 0) >= lsn, f"{self.name} has {lsn}", LONG)

    def snapshot(self) -> None:
        """Have it write one."""
        with Raw(self.endpoint) as client:
            client.ok(op="SNAPSHOT")

    def get(self, key: str) -> Any:
        """The value of a key in its copy."""
        with Raw(self.endpoint) as client:
            return client.ok(op="GET", key=key, stale=True)["value"]


class StoreInEtcd:
    """A store. Use as a context manager: it is founded then, and has no members.

    Args:
        directory: of all data.
        *flags: further flags of ``etcd``.
        config: of the members.
        founded: False: it is not.
    """

    def __init__(
        self, directory: Path, *flags: str, config: str = CONFIG, founded: bool = True
    ) -> None:
        self.directory = directory
        self.etcd = EtcdCluster(directory / "etcd", 1, *flags)
        self.config = config
        self._founded = founded
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> StoreInEtcd:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.etcd)
            client = EtcdClient(self.etcd.endpoints)
            stack.callback(client.close)
            self.log = SharedLog(client, "store", 5.0)
            if self._founded:
                self.run("store", "found")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """Its URL."""
        places = (each.removeprefix("http://") for each in self.etcd.endpoints)
        return f"etcd://{','.join(places)}/store"

    def run(self, *arguments: str) -> str:
        """Run a command that must succeed; what it prints."""
        done = run_zkv(*arguments, self.url)
        assert done.returncode == 0, done
        return done.stdout

    def member(self, name: str, *flags: str, named: bool = True) -> StoreMember:
        """A member, which is killed in the end; not started."""
        directory = self.directory / name
        member = StoreMember(directory, self.url, *flags, config=self.config, named=named)
        self._stack.callback(member.end)
        return member

    def start(self, *names: str) -> list[StoreMember]:
        """Start some members."""
        members = [self.member(name) for name in names]
        for each in members:
            each.start()
        return members

    @property
    def first(self) -> int:
        """Where the log begins."""
        return self.log.look().first.lsn

    def trim(self, members: list[StoreMember], lsn: int) -> None:
        """Write, and take snapshots, until the log begins at a number, or later.

        Args:
            members: those that are to have snapshots; the first one leads.
            lsn: the number.
        """

        def is_trimmed() -> bool:
            fill(members[0], 1)
            for each in members:
                each.snapshot()
            return self.first >= lsn

        eventually(is_trimmed, f"the log begins at {lsn}", LONG)


def await_leader(members: list[StoreMember]) -> StoreMember:
    """Wait until one of them leads; that one."""
    found: list[StoreMember] = []

    def one_leads() -> bool:
        found[:] = [each for each in members if each.running and each.leads]
        return bool(found)

    eventually(one_leads, "one leads", LONG)
    return found[0]


def put(members: list[StoreMember], key: str, value: Any) -> None:
    """Write at whoever leads, until it is acknowledged."""

    def written() -> bool:
        leader = await_leader(members)
        with contextlib.suppress(NoReplyError), Raw(leader.endpoint, timeout=5.0) as client:
            return bool(client.call(op="PUT", key=key, value=value)["ok"])
        return False

    eventually(written, f"{key} is written", LONG)


def fill(member: StoreMember, count: int, size: int = 1_000, first: int = 0) -> None:
    """Write entries ``k0``, ``k1`` and so on, each by a request, at a member that leads."""
    with Raw(member.endpoint) as client:
        for number in range(first, first + count):
            client.ok(op="PUT", key=f"k{number}", value=[number, "x" * size])


@contextlib.contextmanager
def writing(members: list[StoreMember]) -> Iterator[list[int]]:
    """Write the entries ``n0``, ``n1`` and so on all the time; yields those acknowledged."""
    done: list[int] = []
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            put(members, f"n{len(done)}", len(done))
            done.append(len(done))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield done
    finally:
        over.set()
        thread.join()
