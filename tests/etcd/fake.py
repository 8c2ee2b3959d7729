"""An etcd in memory, with the same interface as the client, and with faults.

`FakeEtcd` is the cluster. `FakeEtcd.client` makes a client, which may have faults of its own: a
random number generator for each client decides what happens to each of its calls, so that a client
which calls the same meets the same, whatever others do. Time is virtual: a call that waits only
sets the clock forward.

With ``threads=False`` nothing runs by itself: `FakeEtcd.deliver` calls the watches back, in the
thread that calls it. A test with one thread is then the same in each run.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol, TypeVar, cast

from sortedcontainers import SortedDict

from zkv.etcd import (
    Alarm,
    CompactedRevisionError,
    Compare,
    DeleteOp,
    Etcd,
    EtcdClosedError,
    EtcdError,
    FutureRevisionError,
    InvalidCallError,
    Item,
    ItemEvent,
    NodeStatus,
    NoSpaceError,
    Op,
    PutOp,
    ReadOp,
    ReadResult,
    RequestTooLargeError,
    TxnResult,
    UnknownOutcomeError,
    WatchLostError,
)
from zkv.etcd.interface import NO_END, OnEnd, OnEvents

MOST_BYTES: Final = 3 << 19
"""Of a request, as etcd is configured by default."""
MOST_OPS: Final = 128
PUT_COST: Final = 256
"""Bytes of the quota that each put takes beside key and value."""
BATCH: Final = 1_000
"""Revisions that a watch is handed at a time."""

Result = TypeVar("Result")


class FakeClock(Protocol):
    """The time of a fake etcd."""

    def now(self) -> float: ...
    def sleep(self, seconds: float) -> None: ...


class VirtualClock:
    """A time that passes only while somebody sleeps, and then at once."""

    def __init__(self) -> None:
        self._now = 0.0
        self._lock = threading.Lock()

    def now(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self._now += seconds


class Faults(NamedTuple):
    """The probabilities with which a call meets a fault.

    Args:
        lost: it is not executed, and not answered.
        unanswered: it is executed, but not answered.
        late: it is not answered, and executed after up to `LATEST` later calls.
        delayed: it takes up to ``delay``, and is not answered if that is more than its timeout.
        delay: seconds.
    """

    lost: float = 0.0
    unanswered: float = 0.0
    late: float = 0.0
    delayed: float = 0.0
    delay: float = 0.0


NONE: Final = Faults()
LATEST: Final = 5
"""Calls after which a late one is executed at most."""


class State(NamedTuple):
    """A copy of a fake etcd, as a backup has it."""

    cluster_id: int
    revision: int
    compacted: int
    base: dict[bytes, Item]
    events: tuple[ItemEvent, ...]


class Store:
    """What one cluster keeps: the state at the compacted revision, and all events after that."""

    def __init__(self, state: State) -> None:
        self.cluster_id = state.cluster_id
        self.revision = state.revision
        self.compacted = state.compacted
        self.base = dict(state.base)
        self.events = list(state.events)
        self.now: SortedDict[bytes, Item] = SortedDict(self.base)
        for event in self.events:
            apply(self.now, event)

    def state(self) -> State:
        """A copy."""
        return State(
            self.cluster_id, self.revision, self.compacted, dict(self.base), tuple(self.events)
        )

    def used(self) -> int:
        """Bytes of all that is kept."""
        kept = [*self.base.values(), *(event.item for event in self.events)]
        return sum(PUT_COST + len(item.key) + len(item.value) for item in kept)

    def at(self, revision: int) -> SortedDict[bytes, Item]:
        """The items at a revision; 0 for now, as etcd takes any that is not positive."""
        if revision > self.revision:
            raise FutureRevisionError("required revision is a future revision")
        if revision <= 0:
            return self.now
        if revision < self.compacted:
            raise CompactedRevisionError("required revision has been compacted")
        items = SortedDict(self.base)
        for event in self.events:
            if event.item.mod_revision <= revision:
                apply(items, event)
        return items

    def compact(self, revision: int) -> None:
        """Forget all states before a revision."""
        if revision <= self.compacted:
            raise CompactedRevisionError("required revision has been compacted")
        self.base = dict(self.at(revision))
        self.events = [each for each in self.events if each.item.mod_revision > revision]
        self.compacted = revision

    def since(self, revision: int) -> Iterator[ItemEvent]:
        """The events from a revision on."""
        for item in self.base.values():
            if item.mod_revision >= revision:
                yield ItemEvent(False, item)
        for event in self.events:
            if event.item.mod_revision >= revision:
                yield event

    def transact(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op]
    ) -> TxnResult:
        """See `Etcd.transact`."""
        succeeded = all(self._holds(each) for each in compares)
        revision = self.revision + 1
        reads: list[list[Item]] = []
        events: list[ItemEvent] = []
        for op in then if succeeded else otherwise:
            if isinstance(op, ReadOp):
                reads.append(cut(in_range(self.now, op.begin, op.end), op.limit, op.keys_only))
                continue
            found = self._put(op, revision) if isinstance(op, PutOp) else self._delete(op, revision)
            for event in found:
                apply(self.now, event)
            events += found
        if events:
            self.revision = revision
            self.events += events
        return TxnResult(succeeded, self.revision, self.cluster_id, reads)

    def _holds(self, compare: Compare) -> bool:
        item = self.now.get(compare.key)
        if compare.target == "value":
            return item is not None and holds(item.value, compare.op, compare.value)
        if item is None:
            return holds(0, compare.op, compare.value)
        actual = {
            "version": item.version,
            "create": item.create_revision,
            "mod": item.mod_revision,
        }[compare.target]
        return holds(actual, compare.op, compare.value)

    def _put(self, op: PutOp, revision: int) -> list[ItemEvent]:
        old = self.now.get(op.key)
        made, version = (old.create_revision, old.version + 1) if old else (revision, 1)
        return [ItemEvent(False, Item(op.key, op.value, made, revision, version))]

    def _delete(self, op: DeleteOp, revision: int) -> list[ItemEvent]:
        return [
            ItemEvent(True, Item(item.key, b"", 0, revision, 0))
            for item in in_range(self.now, op.begin, op.end)
        ]


class FakeEtcd:
    """A cluster.

    Args:
        seed: of all that is random.
        clock: the time.
        threads: True if each watch has a thread; else they are called by `deliver`.
        quota: bytes that it keeps at most; 0 without a limit.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        clock: FakeClock | None = None,
        threads: bool = True,
        quota: int = 0,
    ) -> None:
        self.clock = clock or VirtualClock()
        self.threads = threads
        self.quota = quota
        self.full = False
        """True while the alarm NOSPACE is raised; a test may end it."""
        self.changed = threading.Condition()
        self._seed = seed
        self._random = random.Random(seed)
        self._clients: list[FakeClient] = []
        self._late: list[_Late] = []
        self.store = Store(State(0, 1, 0, {}, ()))
        self.wipe()

    def client(self, name: str = "", faults: Faults = NONE) -> FakeClient:
        """A client. Its name, with the seed, decides what faults it meets."""
        client = FakeClient(self, random.Random(f"{self._seed}/{name}"), faults)
        with self.changed:
            self._clients.append(client)
        return client

    def copy(self) -> State:
        """A backup."""
        with self.changed:
            return self.store.state()

    def restore(self, state: State) -> None:
        """Go back to a backup. All watches end."""
        with self.changed:
            self.store = Store(state)
            self._late.clear()
            self._end_watches(WatchLostError("the node was restarted"))

    def wipe(self) -> None:
        """Begin as a new, empty cluster. All watches end."""
        self.restore(State(self._random.getrandbits(63) | 1, 1, 0, {}, ()))

    def settle(self) -> None:
        """Execute what is late."""
        with self.changed:
            late, self._late = self._late, []
            for each in late:
                each.execute()

    def deliver(self) -> int:
        """Call the watches back until nothing is left, without threads; returns how often."""
        count = 0
        while found := [
            watch for client in self._clients for watch in client.watches if watch.step()
        ]:
            count += len(found)
        return count

    def execute(self, call: Callable[[], Result]) -> Result:
        """Execute a call, and those late ones whose time has come. With the lock held."""
        try:
            return call()
        finally:
            due = [each for each in self._late if each.is_due()]
            self._late = [each for each in self._late if each not in due]
            for each in due:
                each.execute()
            self.changed.notify_all()

    def postpone(self, call: Callable[[], object], calls: int) -> None:
        """Execute a call later, after some others. With the lock held."""
        self._late.append(_Late(call, calls))

    def admit(self, ops: Sequence[Op]) -> None:
        """Refuse operations for which there is no space. With the lock held."""
        cost = sum(
            PUT_COST + len(each.key) + len(each.value) for each in ops if isinstance(each, PutOp)
        )
        if not cost:
            return
        if self.quota and self.store.used() + cost > self.quota:
            self.full = True
        if self.full:
            raise NoSpaceError("mvcc: database space exceeded")

    def _end_watches(self, error: EtcdError) -> None:
        for client in self._clients:
            client.end_watches(error)
        self.changed.notify_all()


class _Late:
    """A call that is executed later."""

    def __init__(self, call: Callable[[], object], calls: int) -> None:
        self._call = call
        self._calls = calls

    def is_due(self) -> bool:
        """Count one call more."""
        self._calls -= 1
        return self._calls < 0

    def execute(self) -> None:
        try:
            self._call()
        except EtcdError:
            pass  # Nobody waits for the answer.


class FakeClient:
    """A client of a `FakeEtcd`; see `Etcd` for the methods."""

    def __init__(self, etcd: FakeEtcd, chooser: random.Random, faults: Faults) -> None:
        self.faults = faults
        """May be changed at any time."""
        self.watches: list[FakeWatch] = []
        self.calls = 0
        """How many were made."""
        self._etcd = etcd
        self._random = chooser
        self._closed = False
        self._cut = False

    def partition(self, *, silent: bool = False) -> None:
        """Cut it off. Its watches end, or with ``silent`` only stand still."""
        with self._etcd.changed:
            self._cut = True
            if not silent:
                self.end_watches(WatchLostError("the node is silent"))
            self._etcd.changed.notify_all()

    def heal(self) -> None:
        """End the partition."""
        with self._etcd.changed:
            self._cut = False
            self._etcd.changed.notify_all()

    @property
    def is_cut(self) -> bool:
        """True in a partition."""
        return self._cut

    def end_watches(self, error: EtcdError) -> None:
        """End its watches. With the lock held."""
        for watch in self.watches:
            watch.end(error)
        self._etcd.changed.notify_all()

    def transact(
        self,
        compares: Sequence[Compare],
        then: Sequence[Op],
        otherwise: Sequence[Op] = (),
        *,
        timeout: float,
    ) -> TxnResult:
        compares, then, otherwise = tuple(compares), tuple(then), tuple(otherwise)

        def call() -> TxnResult:
            check_transaction(compares, then, otherwise)
            self._etcd.admit((*then, *otherwise))
            return self._etcd.store.transact(compares, then, otherwise)

        return self._once(call, timeout)

    def read(
        self,
        begin: bytes,
        end: bytes | None = None,
        *,
        limit: int = 0,
        serializable: bool = False,
        revision: int = 0,
        keys_only: bool = False,
        timeout: float,
    ) -> ReadResult:
        def call() -> ReadResult:
            check_key(begin)
            store = self._etcd.store
            found = in_range(store.at(revision), begin, end)
            items = cut(found, limit, keys_only)
            more = len(items) < len(found)
            return ReadResult(store.revision, store.cluster_id, items, more, len(found))

        return self._once(call, timeout)

    def watch(
        self,
        begin: bytes,
        end: bytes | None,
        from_revision: int,
        on_events: OnEvents,
        on_end: OnEnd,
    ) -> FakeWatch:
        with self._etcd.changed:
            self._check_open()
            watch = FakeWatch(
                self._etcd, self, begin, end,
                from_revision or self._etcd.store.revision + 1, on_events, on_end,
            )  # fmt: skip
            self.watches.append(watch)
            if self._cut:
                watch.end(WatchLostError("the node is silent"))
        if self._etcd.threads:
            watch.start()
        return watch

    def lease_time_to_live(self, lease: int, timeout: float) -> int | None:
        return self._once(lambda: None, timeout)  # Nothing puts a key with a lease.

    def status(self, timeout: float) -> list[NodeStatus]:
        def call() -> NodeStatus:
            store, used = self._etcd.store, self._etcd.store.used()
            return NodeStatus(
                "fake", cluster_id=store.cluster_id, member_id=1, leader=1,
                revision=store.revision, raft_term=2, version="3.4.23", db_size=used,
                db_size_in_use=used, db_quota=self._etcd.quota,
                errors=("NOSPACE",) if self._etcd.full else (),
            )  # fmt: skip

        try:
            return [self._once(call, timeout)]
        except UnknownOutcomeError as error:
            return [NodeStatus("fake", error)]

    def alarms(self, timeout: float) -> list[Alarm]:
        return self._once(lambda: [Alarm(1, "NOSPACE")] if self._etcd.full else [], timeout)

    def compact(self, revision: int, timeout: float) -> None:
        self._once(lambda: self._etcd.store.compact(revision), timeout)

    def close(self) -> None:
        with self._etcd.changed:
            self._closed = True
            self.end_watches(EtcdClosedError("the client has been closed"))

    def _check_open(self) -> None:
        if self._closed:
            raise EtcdClosedError("the client has been closed")

    def _once(self, call: Callable[[], Result], timeout: float) -> Result:
        """Execute a call, unless it meets a fault."""
        with self._etcd.changed:
            self._check_open()
            self.calls += 1
            fate, delay = self._fate(), self._random.random() * self.faults.delay
            later = self._random.randint(1, LATEST)
            if fate == "late" and not self._cut:
                self._etcd.postpone(call, later)
            is_lost = self._cut or fate in ("lost", "late")
            result = None if is_lost else self._etcd.execute(call)
        if fate == "delayed":
            self._etcd.clock.sleep(min(delay, timeout))
            fate = "" if delay < timeout else "unanswered"
            timeout = 0.0
        if is_lost or fate == "unanswered":
            self._etcd.clock.sleep(timeout)
            raise UnknownOutcomeError("no answer came in time", "fake")
        return cast(Result, result)

    def _fate(self) -> str:
        """What happens to the next call: the name of a fault, or nothing."""
        chosen = self._random.random()
        for name in ("lost", "late", "unanswered", "delayed"):
            share: float = getattr(self.faults, name)
            if chosen < share:
                return name
            chosen -= share
        return ""


class FakeWatch:
    """A watch; see `EtcdWatch` for `close` and `join`."""

    def __init__(
        self,
        etcd: FakeEtcd,
        client: FakeClient,
        begin: bytes,
        end: bytes | None,
        from_revision: int,
        on_events: OnEvents,
        on_end: OnEnd,
    ) -> None:
        self._etcd = etcd
        self._client = client
        self._range = begin, end
        self._next = from_revision
        self._on_events = on_events
        self._on_end = on_end
        self._reason: EtcdError | None = None
        self._over = False
        self._thread = threading.Thread(target=self._run, name="fake-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        with self._etcd.changed:
            self._over = True
            self._forget()
            self._etcd.changed.notify_all()

    def join(self, timeout: float) -> bool:
        if self._etcd.threads:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def end(self, reason: EtcdError) -> None:
        """End it. With the lock held."""
        self._reason = self._reason or reason

    def step(self) -> bool:
        """Call back once, if there is something to tell; returns True if there was."""
        with self._etcd.changed:
            call = self._task()
        if call is not None:
            call()
        return call is not None

    def _run(self) -> None:
        while True:
            with self._etcd.changed:
                while (call := self._task()) is None and not self._over:
                    self._etcd.changed.wait()
            if call is None:
                return
            call()

    def _task(self) -> Callable[[], None] | None:
        """What to call now. With the lock held."""
        if self._over:
            return None
        store = self._etcd.store
        reason = self._reason
        if reason is None and self._client.is_cut:
            return None
        if reason is None and self._next < store.compacted:
            reason = CompactedRevisionError("has been compacted", "fake", store.compacted)
        if reason is not None:
            self._over = True
            self._forget()
            return lambda: self._on_end(reason)
        return self._events_task(store)

    def _events_task(self, store: Store) -> Callable[[], None] | None:
        last = self._next + BATCH - 1
        begin, end = self._range
        found = [
            each
            for each in store.since(self._next)
            if is_in(each.item.key, begin, end) and each.item.mod_revision <= last
        ]
        self._next = max(self._next, min(last, store.revision) + 1)
        if not found:
            return self._events_task(store) if self._next <= store.revision else None
        return lambda: self._on_events(found[-1].item.mod_revision, found)

    def _forget(self) -> None:
        if self in self._client.watches:
            self._client.watches.remove(self)


def check_key(key: bytes) -> None:
    if not key:
        raise InvalidCallError("key is not provided", "fake")


def check_transaction(
    compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op]
) -> None:
    """Refuse what etcd refuses."""
    if max(len(compares), len(then), len(otherwise)) > MOST_OPS:
        raise InvalidCallError("too many operations in txn request", "fake")
    size = sum(len(each.key) + 32 for each in compares)
    for ops in (then, otherwise):
        size += sum(16 + len(each[0]) + len(each[1] or b"") for each in ops)
        check_ops(ops)
    if size > MOST_BYTES:
        raise RequestTooLargeError("request is too large", "fake")
    for compare in compares:
        check_key(compare.key)


def check_ops(ops: Sequence[Op]) -> None:
    """Refuse a key that is put twice, or put and deleted."""
    seen: set[bytes] = set()
    for op in ops:
        check_key(op[0])
        if isinstance(op, PutOp):
            deleted = any(
                isinstance(each, DeleteOp) and is_in(op.key, each.begin, each.end) for each in ops
            )
            if op.key in seen or deleted:
                raise InvalidCallError("duplicate key given in txn request", "fake")
            seen.add(op.key)


def apply(items: SortedDict[bytes, Item], event: ItemEvent) -> None:
    if event.deleted:
        items.pop(event.item.key, None)
    else:
        items[event.item.key] = event.item


def is_in(key: bytes, begin: bytes, end: bytes | None) -> bool:
    if not end:
        return key == begin
    return begin <= key and (end == NO_END or key < end)


def in_range(items: SortedDict[bytes, Item], begin: bytes, end: bytes | None) -> list[Item]:
    if not end:
        return [items[begin]] if begin in items else []
    stop = None if end == NO_END else end
    return [items[key] for key in items.irange(begin, stop, (True, False))]


def cut(items: list[Item], limit: int, keys_only: bool) -> list[Item]:
    items = items[:limit] if limit else items
    return [each._replace(value=b"") for each in items] if keys_only else list(items)


def holds(actual: int | bytes, op: str, wanted: int | bytes) -> bool:
    if op in ("=", "!="):
        return (actual == wanted) == (op == "=")
    less = actual < wanted if isinstance(actual, int) else actual < bytes(wanted)  # type: ignore[operator]
    return less if op == "<" else not less and actual != wanted


def _is_an_etcd(client: FakeClient) -> Etcd:
    """Checked by mypy."""
    return client
