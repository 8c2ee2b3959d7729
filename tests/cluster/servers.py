"""Members of a replicated store in this process, over a fake etcd, with clocks that a test sets.

The clock of a member's lease stands still until the test moves it. So nothing here depends on how
quick the machine is: a lease is over when a test says so, and another member takes over when its
own clock was moved, and not before.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from tests.etcd.fake import NONE, FakeClient, FakeEtcd
from tests.support import LIMIT, Raw, ServerInProcess, eventually
from zkv.cluster import joining, wal
from zkv.cluster.lease import Lease
from zkv.cluster.shared_log import SharedLog
from zkv.config import build
from zkv.durability.files import Files
from zkv.etcd import Compare, EtcdError, Op, TxnResult

URL: Final = "etcd://nowhere:2379/test"
LEASE: Final = 2.0
WAIT: Final = 0.5
"""Seconds for which a commit waits for etcd."""
BEYOND: Final = 10 * LEASE
"""Seconds after which each lease is over, and each follower has waited for long enough."""


class StandingClock:
    """An uptime that stands still, or goes at another rate than that of others."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class MemberEtcd(FakeClient):
    """The client of one member, of which a test can stop transactions on their way.

    Attributes:
        hook: called before each transaction, with its operations; may wait, or raise.
        after: called after each transaction that was answered.
    """

    hook: Callable[[Sequence[Op]], None] | None = None
    after: Callable[[Sequence[Op]], None] | None = None

    def transact(
        self,
        compares: Sequence[Compare],
        then: Sequence[Op],
        otherwise: Sequence[Op] = (),
        *,
        timeout: float,
    ) -> TxnResult:
        if self.hook is not None:
            self.hook(then)
        result = super().transact(compares, then, otherwise, timeout=timeout)
        if self.after is not None:
            self.after(then)
        return result


class MemberServer(ServerInProcess):
    """A member. Use as a context manager.

    Args:
        directory: of its data.
        name: of the member.
        **keywords: as of `ServerInProcess`.
    """

    def __init__(self, directory: Path, name: str, **keywords: Any) -> None:
        store = {"url": URL, "member": name, "lease": LEASE} | keywords.pop("store", {})
        super().__init__(directory, store=store, **keywords)
        self.name = name
        self.clock: StandingClock
        self.etcd: MemberEtcd

    @property
    def leads(self) -> bool:
        """True if it leads now."""
        return self.server.role.leads

    def await_lead(self) -> None:
        """Wait until it leads."""
        eventually(lambda: self.leads, f"{self.name} leads")

    def await_log(self, other: MemberServer) -> None:
        """Wait until it has what another one has."""
        eventually(lambda: self.lsn >= other.lsn, f"{self.name} has the log")

    @property
    def lsn(self) -> int:
        """The newest safe log number."""
        return self.server._engine.safe_lsn

    def call(self, **fields: Any) -> Any:
        """Send a request by a connection of its own."""
        with Raw(self.endpoint) as client:
            return client.call(**fields)

    def outcome(self, **fields: Any) -> Any:
        """The value of a reply, or the code of its error."""
        reply = self.call(**fields)
        return reply.get("value", "ok") if reply["ok"] else reply["code"]


class Cluster:
    """The store.

    Args:
        directory: of all data.
        monkeypatch: puts the fake etcd and the clocks in their places.
    """

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._directory = directory
        self.fake = FakeEtcd(1)
        self._clock = StandingClock()
        self._etcd = MemberEtcd(self.fake, random.Random(0), NONE)
        monkeypatch.setattr(wal, "WAIT_SECONDS", WAIT)
        monkeypatch.setattr(joining, "_client", lambda *_: self._etcd)
        monkeypatch.setattr(joining, "Lease", lambda seconds: Lease(seconds, self._clock))
        settings = build({"store": {"url": URL}})
        self.log: SharedLog = joining.shared_log(settings)
        """The log in etcd, by a client of its own."""
        joining.found(self.log, settings.limits)

    def member(self, name: str, files: Files | None = None, **tables: Any) -> MemberServer:
        """A member, not started yet; the next one must not be made before it is."""
        server = MemberServer(self._directory / name, name, files=files, **tables)
        server.clock = self._clock = StandingClock()
        server.etcd = self._etcd = MemberEtcd(self.fake, random.Random(0), NONE)
        with self.fake.changed:
            self.fake._clients.append(server.etcd)
        return server


def take_over(new: MemberServer, after: float = BEYOND) -> None:
    """Have a follower take over whose leader is silent, as it has waited for long enough."""
    await_look(new)
    new.clock.now += after
    new.await_lead()


def await_look(follower: MemberServer) -> None:
    """Wait until a follower has seen the newest record of the leader, which is silent."""
    member = follower.server._member
    assert member is not None
    etcd = member._shared

    def has_looked() -> bool:
        try:
            return member._leader_revision == etcd.look().leader_revision
        except EtcdError:
            return False

    eventually(has_looked, "a look at the leader's record")


class Gate:
    """A place where a thread waits until a test lets it go on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()
        self.armed = False

    def arm(self) -> None:
        """Have the next one that comes wait."""
        self.armed = True

    def pass_through(self) -> None:
        """Called by the thread."""
        if self.armed:
            self.armed = False
            self.reached.set()
            assert self._open.wait(LIMIT)

    def await_thread(self) -> None:
        """Wait until the thread is there."""
        assert self.reached.wait(LIMIT), "nobody has come"

    def open(self) -> None:
        """Let it go on."""
        self._open.set()
