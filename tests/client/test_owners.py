"""Who may use what a client has made: forks, signal handlers, finalizers, errors, copies.

`OBJECTS` lists every object that a client makes. Each row tells how to make one that is in use, how
to use it, and what becomes of that in each situation. Most tests run with either client.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final, NamedTuple

import pytest

import zkv
from tests.client.blocking import AnyClient, Blocking, Kind
from tests.support import LIMIT, ROOT, environment, eventually
from zkv import AsyncClient, Client, ClientError, ClosedError, LockLostError, MisuseError

LONG: Final = 1_000.0
"""Seconds: a lease that does not run out by itself in a test."""
SHORT: Final = 15.0
"""Seconds after which a test counts as hung, much less than `LIMIT` and yet more than any needs."""
ENTRIES: Final = 2_500
"""More than two pages of a scan."""
WORKS: Final = "works"


class Owned(NamedTuple):
    """One kind of object.

    Args:
        make: by a client; in use already.
        use: returns something, or raises.
        in_child: what ``use`` does in a child by fork: it works, or raises this.
        after_close: the same after its ``close``; None = it has none.
        copies: whether it can be copied; in no case pickled, or copied with what it stands on.
        is_sync: whether only the client for threads makes it.
        whole: a use that runs more of the code, for what interrupts it; None = ``use``.
        interrupted: whether a signal's handler that interrupts ``use`` may use it, too.
    """

    make: Callable[[AnyClient], Any]
    use: Callable[[Any], Any]
    in_child: Any = WORKS
    after_close: Any = None
    copies: bool = False
    is_sync: bool = False
    whole: Callable[[Any], Any] | None = None
    interrupted: bool = True


def begun(iterator: Any) -> Any:
    """An iterator that has given something."""
    next(iterator)
    return iterator


def opened(thing: Any) -> Any:
    """What a ``with`` block would begin."""
    thing.__enter__()
    return thing


def acquired(lock: Any) -> Any:
    assert lock.acquire()
    return lock


def written(ops: Any) -> Any:
    """A pipeline or transaction with an op."""
    ops.incr("n")
    return ops


def commit(lock: Any) -> Any:
    txn = lock.txn()
    txn.incr("guarded")
    return txn.commit()


def taken(kv: AnyClient) -> Any:
    jobs = kv.queue("jobs", lease=LONG)
    jobs.put(1)
    return jobs.take()


def square(number: int) -> int:
    return number * number


async def async_square(number: int) -> int:
    return number * number


def cached(kv: AnyClient) -> Any:
    if isinstance(kv, Blocking):
        return kv._seen(kv._target.cache(prefix="c/")(async_square))
    return kv.cache(prefix="c/")(square)


def run_again(ops: Any) -> Any:
    ops.incr("n")
    return ops.execute() if hasattr(ops, "execute") else ops.commit()


def fill(kv: Client) -> None:
    numbers = range(ENTRIES)
    for start in range(0, ENTRIES, 500):
        kv.put_many({f"d/{n}": n for n in numbers[start : start + 500]})


OBJECTS: Final = {
    "client": Owned(lambda kv: kv, lambda kv: kv.incr("n"), after_close=ClosedError),
    "namespace": Owned(lambda kv: kv.namespace("a/"), lambda kv: kv.incr("n"), copies=True),
    "scan": Owned(lambda kv: begun(kv.scan("d/1")), next, ClosedError, whole=list),
    "keys": Owned(lambda kv: begun(iter(kv)), next, ClosedError, is_sync=True, whole=list),
    "items": Owned(
        lambda kv: begun(iter(kv.items())), next, ClosedError, is_sync=True, whole=list
    ),
    "view": Owned(lambda kv: kv.namespace("v/").items(), list, copies=True, is_sync=True),
    "changes": Owned(lambda kv: begun(kv.changes(0, "d/1")), next, ClosedError, whole=list),
    "leaders": Owned(
        lambda kv: begun(kv.election("x").leaders()), next, ClosedError, interrupted=False
    ),
    "watch": Owned(
        lambda kv: begun(opened(kv.watch("d/", since=0))),
        lambda watch: (watch.next(LIMIT), watch.rev),
        ClosedError, after_close=WORKS,
    ),
    "mirror": Owned(
        lambda kv: opened(kv.mirror("d/")),
        lambda mirror: (mirror["d/1"], len(mirror), len(mirror.copy()), mirror.get_entry("d/1")),
        ClosedError, after_close=WORKS,
    ),
    "mirror's revision": Owned(
        lambda kv: opened(kv.mirror("d/")),
        lambda mirror: (mirror.rev, mirror.staleness, mirror.wait_for(1, LIMIT)),
        ClosedError, after_close=WORKS,
    ),
    "mirror's wait": Owned(
        lambda kv: (opened(kv.mirror("d/")), kv.namespace("d/")),
        lambda both: both[0].wait_for(both[1].put("1", 1), LIMIT),
        ClosedError,
    ),
    "pipeline": Owned(lambda kv: written(kv.pipeline()), run_again, ClosedError),
    "transaction": Owned(lambda kv: written(kv.txn()), run_again, ClosedError),
    "lock": Owned(lambda kv: acquired(kv.lock("l", ttl=LONG)), commit, MisuseError),
    "lock's transaction": Owned(
        lambda kv: written(acquired(kv.lock("t", ttl=LONG)).txn()), run_again, ClosedError
    ),
    "lock's release": Owned(
        lambda kv: acquired(kv.lock("r", ttl=LONG)), lambda lock: lock.release(), MisuseError
    ),
    "election": Owned(lambda kv: acquired(kv.election("e", ttl=LONG)), commit, MisuseError),
    "queue": Owned(lambda kv: kv.queue("q"), lambda jobs: (jobs.put(1), jobs.take(0).done()),
                   copies=True),
    "job": Owned(taken, lambda job: job.done(), MisuseError),
    "limiter": Owned(
        lambda kv: kv.rate_limiter("r", limit=1_000_000, period=1e6),
        lambda limiter: limiter.allow(), copies=True,
    ),
    "cached function": Owned(cached, lambda function: function(12), copies=True),
}  # fmt: skip
NAMES: Final = sorted(OBJECTS)


@pytest.fixture(scope="module")
def server() -> Iterator[zkv.Server]:
    with zkv.Server("tcp://127.0.0.1:*") as server, Client(server.endpoint) as kv:
        fill(kv)
        yield server


@pytest.fixture
def kv(kind: Kind, server: zkv.Server) -> Iterator[AnyClient]:
    """A client of either kind."""
    with kind(server.endpoint) as client:
        yield client


@pytest.fixture
def plain(server: zkv.Server) -> Iterator[Client]:
    """A client for threads, to use or to look at what is there."""
    with Client(server.endpoint, LIMIT) as client:
        for key in client:
            if not key.startswith("d/"):
                client.delete(key)
        yield client


class HungError(BaseException):
    """Raised in the main thread, wherever it waits."""


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """Have a test that hangs fail: a signal's handler that raises ends any wait for a lock."""

    def hung(*_: object) -> None:
        raise HungError

    before = signal.signal(signal.SIGUSR1, hung)
    timer = threading.Timer(
        2 * SHORT, signal.pthread_kill, [threading.main_thread().ident, signal.SIGUSR1]
    )
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGUSR1, before)


def outcome(use: Callable[[Any], Any], thing: Any) -> str:
    """What using a thing ends in: it works, or the name of what is raised."""
    try:
        use(thing)
    except Exception as error:
        return type(error).__name__
    return WORKS


def expected(what: Any) -> str:
    return what if isinstance(what, str) else str(what.__name__)


# --- After a fork ----------------------------------------------------------------------------


class Inline:
    """An event loop that runs here, as long as something is waited for."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)


def in_child(work: Callable[[], str]) -> str:
    """What ``work`` returns in a child by fork."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(int(SHORT))  # Ends a child that hangs.
        try:
            os.write(writer, work().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as told:
        text = told.read()
    os.waitpid(child, 0)
    return text or "hangs"


def fork_all(is_async: bool) -> None:
    """Use each object in a child, then here, and print what came of it."""
    warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks beside any thread.
    inline = Inline()
    told = {}
    with zkv.Server("tcp://127.0.0.1:*") as server, Client(server.endpoint, LIMIT) as plain:
        fill(plain)
        for name in NAMES:
            owned = OBJECTS[name]
            if is_async and owned.is_sync:
                continue
            kv: Any = Kind(inline if is_async else None)(server.endpoint)  # type: ignore[arg-type]
            kv.incr("n")  # If it belongs to a loop, then to this one.
            thing = owned.make(kv)

            def use(owned: Owned = owned, thing: Any = thing) -> str:
                inline.loop = asyncio.new_event_loop()
                return outcome(owned.use, thing)

            before = dict(plain.items())
            there = in_child(use)
            unchanged = there == WORKS or dict(plain.items()) == before
            here = "waits" if name == "leaders" else outcome(owned.use, thing)
            told[name] = [there, here, unchanged]
            kv.close()
        print(json.dumps(told), flush=True)
        os._exit(0)


@pytest.fixture(scope="module")
def forked() -> dict[bool, dict[str, list[str]]]:
    """What `fork_all` tells of either client."""
    told = {}
    for is_async in (False, True):
        code = f"from tests.client.test_owners import fork_all; fork_all({is_async})"
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment(), cwd=ROOT,
            capture_output=True, text=True, timeout=6 * LIMIT, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        told[is_async] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "asyncio"])
@pytest.mark.parametrize("name", NAMES)
def test_a_child_by_fork(
    forked: dict[bool, dict[str, list[str]]], name: str, is_async: bool
) -> None:
    owned = OBJECTS[name]
    if is_async and owned.is_sync:
        pytest.skip("only the client for threads has it")
    there, here, unchanged = forked[is_async][name]
    assert there == expected(owned.in_child)
    assert here in {WORKS, "waits"}, "the parent goes on"
    assert unchanged, "an error has no effect"


def run(code: str, *arguments: str) -> str:
    """What a program prints that has to end by itself, and well."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=2 * LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


LEAVING = """
import os, sys, zkv
kv = zkv.Client(sys.argv[1], 20)
try:
    with kv.lock("leaving", ttl=1000) as lock:
        child = os.fork()
        if child == 0:
            assert not lock.held
            assert not kv.lock("leaving").acquire(0)
            if sys.argv[2] == "exit":
                sys.exit(7)
        else:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            assert "leaving" in kv
except zkv.MisuseError as error:
    print("child:", "forked" in str(error), "leaving" in kv, flush=True)
    os._exit(7)
"""


def test_a_child_that_leaves_a_block_does_not_hold_the_lock(plain: Client) -> None:
    assert run(LEAVING, plain.endpoint, "end") == "child: True True\n"
    assert run(LEAVING, plain.endpoint, "exit") == ""
    assert "leaving" not in plain, "the parent has released it"


AGAIN = """
import os, sys, zkv
kv = zkv.Client(sys.argv[1], 20)
lock = kv.lock("again", ttl=1000)
lock.acquire()
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    assert not lock.acquire(0)
    os.write(writer, b".")
    assert lock.acquire(20)
    with lock.txn() as txn:
        txn.put("by", "child")
    lock.release()
    os._exit(0)
os.read(reader, 1)
lock.release()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert kv["by"] == "child"
"""


def test_a_child_may_acquire_the_same_object_anew(plain: Client) -> None:
    run(AGAIN, plain.endpoint)


INSIDE = """
import os, sys, zkv
where, endpoint = sys.argv[1:]
child = None

def fork(*_):
    global child
    if child is None:
        child = os.fork()
    return b""

class Thing: pass

codec = zkv.Codec(zkv.ValueType(1, Thing, fork if where == "pack" else lambda _: b"",
                                fork if where == "unpack" else lambda _: b""))
kv = zkv.Client(endpoint, 20, codec=codec)
kv["thing"] = Thing()
kv["thing"]
"""


@pytest.mark.parametrize("where", ["pack", "unpack"])
def test_a_fork_in_the_midst_of_a_request_shares_nothing(plain: Client, where: str) -> None:
    code = INSIDE + (
        "for _ in range(20): kv.incr('n')\n"
        "if child: assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
    )
    if where == "pack":  # The request is the parent's: the child is told so.
        code = code.replace('kv["thing"] = Thing()\n', (
            "reader, writer = os.pipe()\n"
            "try:\n"
            "    kv['thing'] = Thing()\n"
            "    os.write(writer, b'.')\n"
            "except zkv.ClosedError as error:\n"
            "    assert child == 0 and 'forked' in str(error)\n"
            "    os.close(writer)\n"
            "    os.read(reader, 1)  # Until the parent's thing is there.\n"
        ))  # fmt: skip
    run(code, where, plain.endpoint)
    assert plain["n"] == 40


LOOP = """
import asyncio, os, sys, zkv
loop = asyncio.new_event_loop()
kv = zkv.AsyncClient(sys.argv[1], 20)
loop.run_until_complete(kv.incr("n"))
child = os.fork()
if child == 0:
    try:
        loop.run_until_complete(kv.incr("n"))
    except zkv.MisuseError as error:
        assert "event loop" in str(error)
    else:
        raise AssertionError
    asyncio.run(kv.incr("n"))
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
loop.run_until_complete(kv.incr("n"))
"""


def test_a_child_does_not_go_on_in_the_event_loop_of_its_parent(plain: Client) -> None:
    run(LOOP, plain.endpoint)
    assert plain["n"] == 3
    assert plain.info()["stats"]["sessions"]["sessions"] >= 2


# --- Copies, and other processes -------------------------------------------------------------


def unwrapped(thing: Any) -> Any:
    return thing._target if isinstance(thing, Blocking) else thing


@pytest.mark.parametrize("name", NAMES)
def test_copies(kv: AnyClient, kind: Kind, plain: Client, name: str) -> None:
    owned = OBJECTS[name]
    if kind.loop is not None and owned.is_sync:
        pytest.skip("only the client for threads has it")
    made = owned.make(kv)
    thing = unwrapped(made[0] if isinstance(made, tuple) else made)
    for refused in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"cannot (be )?pickle"):
            refused(thing)
    if not owned.copies:
        with pytest.raises(TypeError, match=r"cannot (be )?pickle"):
            copy.copy(thing)
    else:
        twin = copy.copy(thing)
        assert outcome(owned.use, kv._seen(twin) if kind.loop else twin) == WORKS
    with suppress(ClientError):
        close(made)


def close(thing: Any) -> None:
    for each in thing if isinstance(thing, tuple) else [thing]:
        for name in ("close", "release"):
            if hasattr(unwrapped(each), name) or hasattr(unwrapped(each), f"a{name}"):
                getattr(each, name)()


# --- After close, and before it is acquired --------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NAMES if OBJECTS[name].after_close])
def test_after_close(kind: Kind, server: zkv.Server, plain: Client, name: str) -> None:
    owned = OBJECTS[name]
    kv = kind(server.endpoint)
    thing = owned.make(kv)
    thing.close()
    thing.close()
    assert outcome(owned.use, thing) == expected(owned.after_close)
    with suppress(ClientError):
        close(thing)
    kv.close()


@pytest.mark.parametrize("name", NAMES)
def test_after_the_client_was_closed(
    kind: Kind, server: zkv.Server, plain: Client, name: str
) -> None:
    owned = OBJECTS[name]
    if kind.loop is not None and owned.is_sync:
        pytest.skip("only the client for threads has it")
    kv = kind(server.endpoint)
    thing = owned.make(kv)
    kv.close()
    in_memory = {"scan", "keys", "items", "changes", "watch", "mirror", "mirror's revision"}
    if name == "leaders":
        return  # It tells so when something changes.
    assert outcome(owned.use, thing) == (WORKS if name in in_memory else "ClosedError")
    with suppress(ClientError):
        close(thing)


@pytest.mark.parametrize("make", ["lock", "election"])
def test_before_it_is_acquired(kv: AnyClient, plain: Client, make: str) -> None:
    lock = getattr(kv, make)("l")
    for _ in range(2):
        with pytest.raises(MisuseError, match="not been acquired"), lock.txn() as txn:
            txn.put("data", 1)
        with pytest.raises(MisuseError, match="not been acquired"):
            lock.release()
        with pytest.raises(LockLostError):
            lock.check()
        assert not lock.held
        assert "data" not in plain
        with lock:
            lock.check()
            with lock.txn() as txn:
                txn.put("other", 1)


def test_a_job_that_is_done_or_given_back(kv: AnyClient, plain: Client) -> None:
    job = taken(kv)
    with job:
        job.done()  # So the end of the block does not.
    for again in (job.done, job.release):
        with pytest.raises(MisuseError, match="not been acquired"):
            again()
    job = taken(kv)
    with job:
        job.release()
    assert kv.queue("jobs").take(0).value == 1


# --- A lock inside itself --------------------------------------------------------------------


def test_a_transaction_of_a_lock_inside_another(kv: AnyClient, plain: Client) -> None:
    with kv.lock("l", ttl=LONG) as lock, lock.txn() as outer:
        outer.incr("n")
        with lock.txn() as inner:
            inner.incr("n", 10)
        assert plain["n"] == 10
        outer.commit()
        outer.incr("n", 100)
    assert plain["n"] == 111


def test_a_lock_released_inside_its_transaction(kv: AnyClient, plain: Client) -> None:
    lock = kv.lock("l", ttl=LONG)
    lock.acquire()
    with pytest.raises(LockLostError), lock.txn() as txn:  # noqa: PT012
        txn.incr("n")
        lock.release()
    lock.acquire()
    with pytest.raises(LockLostError), lock.txn() as txn:  # noqa: PT012
        txn.incr("n")
        lock.release()
        lock.acquire()  # It is held, but has not been all the time.
    assert "n" not in plain
    lock.release()


def test_each_commit_is_guarded(kv: AnyClient, plain: Client) -> None:
    lock = kv.lock("l", ttl=LONG)
    lock.acquire()
    txn = lock.txn()
    txn.incr("n")
    txn.commit()
    plain.delete("l")
    txn.incr("n")
    with pytest.raises(LockLostError):
        txn.commit()
    assert plain["n"] == 1


def test_a_lock_is_not_acquired_by_two_at_once(kv: AnyClient, plain: Client) -> None:
    plain["l"] = "held by somebody else"
    lock = kv.lock("l", ttl=LONG)
    failure: list[BaseException] = []

    def second() -> None:
        try:
            eventually(lambda: unwrapped(lock)._acquiring is not None, "the first one waits")
            lock.acquire()
        except BaseException as error:
            failure.append(error)
        finally:
            del plain["l"]

    thread = threading.Thread(target=second)
    thread.start()
    assert lock.acquire(LIMIT)
    thread.join(LIMIT)
    assert isinstance(failure[0], MisuseError)
    lock.release()


# --- Signal handlers and finalizers ----------------------------------------------------------


def in_finalizer(frame: FrameType | None) -> bool:
    """Whether a finalizer runs, of what the garbage collector has found: Python ignores, and
    reports, whatever is raised there.
    """
    while frame is not None:
        if frame.f_code is weakref.finalize.__call__.__code__:
            return True
        frame = frame.f_back
    return False


def interrupt(
    work: Callable[[], Any],
    handler: Callable[[], Any],
    at: int,
    lines: Iterator[int] | None = None,
) -> None:
    """Run ``handler`` before the ``at``-th line of the client that ``work`` runs."""
    lines = itertools.count() if lines is None else lines
    done = False

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal done
        if "zkv/client" not in frame.f_code.co_filename or in_finalizer(frame):
            return None
        if event == "line" and not done and next(lines) == at:
            done = True
            sys.settrace(None)
            handler()
        return None if done else trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)


def count_lines(work: Callable[[], Any]) -> int:
    """How many lines of the client ``work`` runs."""
    counted = itertools.count()
    interrupt(work, lambda: None, -1, counted)
    return next(counted)


MOST_INTERRUPTIONS: Final = 20
"""Of one use, evenly distributed: all lines of a long one would take minutes."""

MISUSES: Final = (ClientError, ValueError, RuntimeError)
"""What a use that interrupts another may end in: at once, and by its name."""


@pytest.mark.parametrize("by", ["handler", "finalizer"])
@pytest.mark.parametrize("name", [name for name in NAMES if OBJECTS[name].interrupted])
def test_a_use_that_interrupts_another_never_hangs(plain: Client, name: str, by: str) -> None:
    """At every line of the client: what a handler does, and what the garbage collector may run."""
    owned = OBJECTS[name]
    things: dict[str, Any] = {}

    def use() -> None:
        with suppress(*MISUSES, StopIteration, AttributeError):  # No job is there for a second.
            (owned.whole or owned.use)(things["it"])

    class Finalized:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            use()

    def collected() -> None:
        Finalized()
        gc.collect(0)

    def prepare() -> None:
        for key in [*plain.scan("jobs/", values=False), *plain.scan("r", values=False)]:
            plain.delete(key.key)
        things["it"] = owned.make(plain)

    spent = owned.whole is not None or name in {"job", "lock's release"}  # By being used once.
    prepare()
    lines = count_lines(use)
    assert lines > 5
    for at in range(0, lines, max(1, lines // MOST_INTERRUPTIONS)):
        if spent:
            prepare()
        interrupt(use, use if by == "handler" else collected, at)
    assert plain.incr("after") == 1
    with suppress(ClientError):
        close(things["it"])


def test_a_mirror_read_while_it_changes_shows_one_revision(kv: AnyClient, plain: Client) -> None:
    """By a finalizer in the very thread or task that applies the changes, at each of its lines."""
    seen: list[tuple[object, object]] = []
    mirror = kv.mirror("m/")
    target = unwrapped(mirror)
    apply = type(target)._apply

    def read() -> None:
        shown = target.copy()
        seen.append((shown.get("m/a"), shown.get("m/b")))
        assert shown.get("m/b") == (target.get_entry("m/b").value if "m/b" in shown else None)

    def interrupted(batch: Any) -> Any:
        at = next(numbers)
        result: list[Any] = []
        interrupt(lambda: result.append(apply(target, batch)), read, at)
        return result[0]

    numbers = itertools.count()
    with opened(mirror):
        target._apply = interrupted
        for number in range(40):
            mirror.wait_for(plain.put_many({"m/a": number, "m/b": number}), LIMIT)
    assert len(seen) > 10
    assert all(a == b for a, b in seen)


def test_a_mirror_is_awaited_by_who_has_interrupted_a_reader(plain: Client) -> None:
    with plain.mirror("m/") as mirror:
        lines = count_lines(mirror.copy)
        for at in range(lines):
            interrupt(mirror.copy, lambda: mirror.wait_for(plain.put("m/a", 1), LIMIT), at)


CHURN = """
import sys, zkv
with zkv.Client(sys.argv[1], 20) as kv:
    for number in range(300):
        zkv.Client(sys.argv[1], 20).incr("n")  # Nobody closes it.
    assert kv["n"] == 300
"""


def test_clients_that_nobody_closes_hold_up_nobody(plain: Client) -> None:
    run(CHURN, plain.endpoint)


def test_a_connection_that_nobody_has_closes_its_sockets(plain: Client) -> None:
    client = Client(plain.endpoint)
    connection: Any = client._pool.take(lambda: 0.0)
    sockets = [connection.socket, connection._monitor]
    client.close()
    assert not any(each.closed for each in sockets)
    del connection
    assert all(each.closed for each in sockets)


AT_EXIT = """
import atexit, sys, weakref, zkv

class Last:
    def __del__(self):
        kv.incr("n")
        print("finalizer", mirror["d/1"], flush=True)

kv = zkv.Client(sys.argv[1], 20)
mirror = kv.mirror("d/1")
lock = kv.lock("exit", ttl=1000)
lock.acquire()
weakref.finalize(mirror, print, "weakref", flush=True)

@atexit.register
def end():
    kv.incr("n")
    other = kv.lock("other", ttl=1000)
    assert other.acquire(0)
    with other.txn() as txn:
        txn.incr("n")
    other.release()
    lock.release()
    mirror.close()
    print("atexit", flush=True)

last = Last()
last.me = last
del last
"""


def test_at_the_end_of_the_program(plain: Client) -> None:
    told = run(AT_EXIT, plain.endpoint).split("\n")
    assert "atexit" in told
    assert plain["n"] >= 2
    assert "exit" not in plain
    assert "other" not in plain


# --- Errors in the user's code ---------------------------------------------------------------

ERRORS: Final[list[type[BaseException]]] = [
    KeyError, ValueError, StopIteration, StopAsyncIteration, GeneratorExit, asyncio.CancelledError,
    KeyboardInterrupt, SystemExit,
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS)
def test_what_a_listener_of_a_mirror_raises(
    kv: AnyClient, plain: Client, error: type[BaseException]
) -> None:
    heard: list[int] = []

    def fails(_change: zkv.Change) -> None:
        raise error

    with opened(kv.mirror("m/")) as mirror:
        mirror.subscribe(fails)
        mirror.subscribe(lambda change: heard.append(change.value))
        for number in range(3):
            mirror.wait_for(plain.put("m/a", number), LIMIT)
        eventually(lambda: heard == [0, 1, 2], "the other one hears all")
        assert mirror["m/a"] == 2


BLOCKS: Final = {
    "lock": lambda kv: kv.lock("l", ttl=LONG),
    "election": lambda kv: kv.election("l", ttl=LONG),
    "lock's transaction": lambda kv: acquired(kv.lock("t", ttl=LONG)).txn(),
    "transaction": lambda kv: kv.txn(),
    "pipeline": lambda kv: kv.pipeline(),
    "watch": lambda kv: kv.watch(),
    "mirror": lambda kv: kv.mirror(),
    "job": taken,
}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", BLOCKS)
def test_what_a_block_raises(
    server: zkv.Server, plain: Client, name: str, error: type[BaseException]
) -> None:
    raised = error("its own")
    with Client(server.endpoint, LIMIT) as kv:
        thing = BLOCKS[name](kv)
        with pytest.raises(error) as caught, thing:  # noqa: PT012
            if hasattr(thing, "incr"):
                thing.incr("never")
            raise raised
        assert caught.value is raised
        if hasattr(thing, "incr"):
            run_again(thing)
        assert kv.get("l") is None
        assert kv.get("never") is None
        if name == "job":
            job = plain.queue("jobs").take(0)
            assert job is not None
            assert job.value == 1


@pytest.mark.parametrize("error", [each for each in ERRORS if "Stop" not in each.__name__])
@pytest.mark.parametrize("name", BLOCKS)
def test_what_a_block_raises_in_a_loop(
    server: zkv.Server, plain: Client, name: str, error: type[BaseException]
) -> None:
    raised = error("its own")

    async def block() -> None:
        async with AsyncClient(server.endpoint, LIMIT) as kv:
            if name == "job":
                jobs = kv.queue("jobs", lease=LONG)
                await jobs.put(1)
                thing: Any = await jobs.take()
            elif name == "lock's transaction":
                lock = kv.lock("t", ttl=LONG)
                await lock.acquire()
                thing = lock.txn()
            else:
                thing = BLOCKS[name](kv)
            with pytest.raises(error) as caught:  # noqa: PT012
                async with thing:
                    if hasattr(thing, "incr"):
                        thing.incr("never")
                    raise raised
            assert caught.value is raised
            assert await kv.get("l") is None
            assert await kv.get("never") is None

    asyncio.run(block())


@pytest.mark.parametrize("error", ERRORS)
def test_what_a_cached_function_raises(
    server: zkv.Server, plain: Client, error: type[BaseException]
) -> None:
    raised = error("its own")
    entered, leave = threading.Event(), threading.Event()
    results: list[Any] = []

    def compute(number: int) -> int:
        if not entered.is_set():
            entered.set()
            leave.wait(LIMIT)
            raise raised
        return number

    with Client(server.endpoint, LIMIT) as kv:
        function = kv.cache(prefix="c/")(compute)

        def first() -> None:
            try:
                function(1)
            except BaseException as caught:
                results.append(caught)

        def second() -> None:
            results.append(function(1))

        threads = [threading.Thread(target=first), threading.Thread(target=second)]
        threads[0].start()
        assert entered.wait(LIMIT)
        threads[1].start()
        leave.set()
        for thread in threads:
            thread.join(LIMIT)
    assert sorted(map(repr, results)) == sorted(map(repr, [raised, 1]))
    assert any(each is raised for each in results)


def test_a_cached_function_that_asks_for_the_same_value(plain: Client) -> None:
    calls: list[int] = []

    @plain.cache(prefix="c/", lease=LONG)
    def nested(depth: int) -> int:
        calls.append(depth)
        return 7 if len(calls) > 2 else nested(depth)

    assert nested(1) == 7
    assert nested(1) == 7
    assert len(calls) == 3

    async def in_a_loop() -> list[int]:
        async with AsyncClient(plain.endpoint, LIMIT) as kv:
            times = itertools.count()

            @kv.cache(prefix="a/", lease=LONG)
            async def parallel() -> int:
                if next(times) == 0:
                    return sum(await asyncio.gather(parallel(), parallel()))
                return 1

            return [await parallel(), await parallel(), next(times)]

    assert asyncio.run(in_a_loop()) == [2, 2, 3]


def test_a_handler_that_raises_during_acquire_leaves_no_lock(plain: Client) -> None:
    class TooLate(Exception):
        pass

    def too_late() -> None:
        raise TooLate

    lines = count_lines(lambda: acquired(plain.lock("l", ttl=LONG)).release())
    for at in range(lines):
        lock = plain.lock("l", ttl=LONG)
        with suppress(TooLate):
            interrupt(lambda lock=lock: acquired(lock), too_late, at)  # type: ignore[misc]
        if lock.held:
            lock.release()
        plain.delete("l")
    assert plain.incr("after") == 1


def test_a_reader_of_a_mirror_hears_why_it_ended(plain: Client) -> None:
    mirror = plain.mirror("m/")

    def broken(_batch: Any) -> Any:
        raise ZeroDivisionError

    mirror._apply = broken  # type: ignore[assignment]
    rev = plain.put("m/a", 1)
    with pytest.raises(ClientError, match="ZeroDivisionError") as caught:
        mirror.wait_for(rev, LIMIT)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    mirror.close()


@contextmanager
def interval(seconds: float, handler: Callable[[], Any]) -> Iterator[None]:
    """Have a signal's handler run again and again."""
    before = signal.signal(signal.SIGALRM, lambda *_: handler())
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_real_signals_while_everything_is_used(plain: Client) -> None:
    with plain.mirror("m/") as mirror, plain.lock("l", ttl=LONG) as lock:
        handled = itertools.count()

        def handler() -> None:
            next(handled)
            mirror.wait_for(plain.put("m/handled", 1), LIMIT)
            commit(lock)
            assert mirror.copy()["m/handled"] == 1

        with interval(0.01, handler):
            for _ in range(150):
                plain.incr("m/main")
                commit(lock)
                mirror.copy()
        assert plain["m/main"] == 150
        assert plain["guarded"] == 150 + next(handled)


def test_a_test_can_hang_no_longer_than_its_limit() -> None:
    """The limit itself: a wait for a lock ends where a handler raises."""
    gate = threading.Lock()
    gate.acquire()
    timer = threading.Timer(
        0.05, signal.pthread_kill, [threading.main_thread().ident, signal.SIGUSR1]
    )
    timer.start()
    with pytest.raises(HungError):
        gate.acquire()
    timer.join()
