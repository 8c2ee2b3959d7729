"""Measures what Python programs share a dict with, and writes the table of docs/sharing.md.

    python -m benchmarks.sharing --json benchmarks/sharing.json docs/sharing.md

All do the same work: processes put and get the same small dict under a thousand keys, and count
with one number. Each is used as its own documentation does, with a lock where it has none of its
own. What a value is packed with is part of the work: pickle, where the library has chosen that,
else msgpack.

A measurement starts its processes anew; all begin together, and count what they finish in a given
time. The contenders take turns within a round, so ratios are taken round by round. After each
counting the number must be the sum of what the processes counted.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib
import multiprocessing
import platform
import random
import shelve
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from importlib.util import find_spec
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgpack

import zkv
from benchmarks import report
from benchmarks.activity import Meter
from benchmarks.record import Present, Record
from benchmarks.rows import Section
from benchmarks.servers import DISK, MEMORY, SYSTEM, AbsentError, named, running
from zkv.bench import result
from zkv.bench.connections import BenchError
from zkv.reading import decode, read_file
from zkv.writing import Target

KEYS: Final = [f"job/{number:04}" for number in range(1_000)]
VALUE: Final = {"state": "running", "worker": "worker-17", "tries": 3, "load": 0.25}
COUNTER: Final = "count"
SECONDS: Final = 0.5
ROUNDS: Final = 5
PROCESSES: Final = 4
READS: Final = 0.9
"""The share of reads where they are mixed."""
LIMIT: Final = 60.0
"""Seconds in which processes start, and in which a lock is had."""
SECTION: Final = Section("Sharing a dict", ("rate",), ("rate",))


class Ops(NamedTuple):
    """The operations of one process on the shared dict.

    Args:
        get: returns the value of a key; None if it is absent.
        put: stores a value.
        put_many: stores many, at best in one step.
        add: adds 1 to a number, whoever else does so; returns the sum.
    """

    get: Callable[[str], Any]
    put: Callable[[str, Any], object]
    put_many: Callable[[dict[str, Any]], object]
    add: Callable[[str], int]


Open = Callable[[], AbstractContextManager[Ops]]
"""Opens what is shared, in any process. It can be pickled."""


class Contender(NamedTuple):
    """A way to share a dict.

    Args:
        name: also shown.
        durability: where a write is when it is done: a key of `DURABILITY`.
        version: the version as text; asked for only where the contender takes part.
        start: starts what it needs, in a directory and until the stack is left. Raises AbsentError.
        needs: a package; empty = none.
    """

    name: str
    durability: str
    version: Callable[[], str]
    start: Callable[[Path, ExitStack], Open]
    needs: str = ""


# --- The contenders --------------------------------------------------------------------------


@contextlib.contextmanager
def manager_ops(shared: Any, lock: Any) -> Iterator[Ops]:
    """``Manager().dict()``: the lock makes an addition of a get and a put."""

    def add(key: str) -> int:
        with lock:
            shared[key] = total = shared.get(key, 0) + 1
        return int(total)

    yield Ops(shared.get, shared.__setitem__, shared.update, add)


def start_manager(_: Path, stack: ExitStack) -> Open:
    """Start the process that has the dict."""
    manager: SyncManager = stack.enter_context(multiprocessing.get_context("spawn").Manager())
    return partial(manager_ops, manager.dict(), manager.Lock())


@contextlib.contextmanager
def shelve_ops(path: str) -> Iterator[Ops]:
    """`shelve`, which several processes may use only one after the other: opened under a lock."""
    with open(f"{path}.lock", "wb") as lock:

        @contextlib.contextmanager
        def opened() -> Iterator[Any]:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                with shelve.open(path) as shelf:  # noqa: S301  our own pickles
                    yield shelf
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)

        def get(key: str) -> Any:
            with opened() as shelf:
                return shelf.get(key)

        def put_many(items: dict[str, Any]) -> None:
            with opened() as shelf:
                shelf.update(items)

        def add(key: str) -> int:
            with opened() as shelf:
                shelf[key] = total = shelf.get(key, 0) + 1
            return int(total)

        yield Ops(get, lambda key, value: put_many({key: value}), put_many, add)


@contextlib.contextmanager
def diskcache_ops(path: str) -> Iterator[Ops]:
    """`diskcache.Cache`: pickles in SQLite."""
    with importlib.import_module("diskcache").Cache(path) as cache:

        def put_many(items: dict[str, Any]) -> None:
            with cache.transact(retry=True):
                for key, value in items.items():
                    cache.set(key, value)

        yield Ops(
            cache.get, partial(cache.set, retry=True), put_many, partial(cache.incr, retry=True)
        )


@contextlib.contextmanager
def sqlite_ops(path: str, synchronous: str) -> Iterator[Ops]:
    """`sqlite3`, with a write-ahead log."""
    connection = sqlite3.connect(path, timeout=LIMIT, isolation_level=None)
    run = connection.execute
    run("PRAGMA journal_mode = WAL")
    run(f"PRAGMA synchronous = {synchronous}")
    run("CREATE TABLE IF NOT EXISTS shared (key TEXT PRIMARY KEY, value) WITHOUT ROWID")
    write = (
        "INSERT INTO shared VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
    )

    def get(key: str) -> Any:
        row = run("SELECT value FROM shared WHERE key = ?", (key,)).fetchone()
        return None if row is None else msgpack.unpackb(row[0])

    def put_many(items: dict[str, Any]) -> None:
        run("BEGIN IMMEDIATE")
        connection.executemany(write, [(key, msgpack.packb(each)) for key, each in items.items()])
        run("COMMIT")

    def add(key: str) -> int:
        added = "INSERT INTO shared VALUES (?, 1) ON CONFLICT (key) DO UPDATE SET value = value + 1"
        ((total,),) = run(f"{added} RETURNING value", (key,)).fetchall()
        return int(total)

    with contextlib.closing(connection):
        yield Ops(get, lambda key, value: run(write, (key, msgpack.packb(value))), put_many, add)


@contextlib.contextmanager
def redis_ops(port: int) -> Iterator[Ops]:
    """redis-py."""
    with importlib.import_module("redis").Redis(port=port) as client:

        def get(key: str) -> Any:
            packed = client.get(key)
            return None if packed is None else msgpack.unpackb(packed)

        def put_many(items: dict[str, Any]) -> None:
            client.mset({key: msgpack.packb(value) for key, value in items.items()})

        yield Ops(
            get, lambda key, value: client.set(key, msgpack.packb(value)), put_many, client.incr
        )


@contextlib.contextmanager
def zkv_ops(port: int) -> Iterator[Ops]:
    """`zkv.Client`."""
    with zkv.Client(f"tcp://127.0.0.1:{port}") as client:
        yield Ops(client.get, client.put, client.put_many, client.incr)


def _start_file(ops: Callable[..., AbstractContextManager[Ops]], *more: str) -> Any:
    def start(directory: Path, _: ExitStack) -> Open:
        return partial(ops, str(directory / "shared"), *more)

    return start


def _start_server(ops: Callable[[int], AbstractContextManager[Ops]], name: str) -> Any:
    def start(directory: Path, stack: ExitStack) -> Open:
        return partial(ops, stack.enter_context(running(named(name), str(directory))).port)

    return start


def _version(package: str) -> str:
    return str(importlib.import_module(package).__version__)


def _of_zkv() -> str:
    return zkv.__version__


def _of_python() -> str:
    return f"of Python {platform.python_version()}"


def _of_sqlite() -> str:
    return f"of SQLite {sqlite3.sqlite_version}"


def _of_redis() -> str:
    return f"{_version('redis')} and Redis {named('Redis').version()}"


CONTENDERS: Final = (
    Contender("zkv", SYSTEM, _of_zkv, _start_server(zkv_ops, "zkv never")),
    Contender("Manager().dict()", MEMORY, _of_python, start_manager),
    Contender("shelve, locked", SYSTEM, _of_python, _start_file(shelve_ops)),
    Contender(
        "diskcache", SYSTEM, partial(_version, "diskcache"), _start_file(diskcache_ops),
        needs="diskcache",
    ),
    Contender("sqlite3", SYSTEM, _of_sqlite, _start_file(sqlite_ops, "NORMAL")),
    Contender(
        "redis-py", SYSTEM, _of_redis, _start_server(redis_ops, "Redis AOF no fsync"), needs="redis"
    ),
    Contender("zkv, always", DISK, _of_zkv, _start_server(zkv_ops, "zkv always")),
    Contender("sqlite3, FULL", DISK, _of_sqlite, _start_file(sqlite_ops, "FULL")),
    Contender(
        "redis-py, AOF always", DISK, _of_redis, _start_server(redis_ops, "Redis AOF always"),
        needs="redis",
    ),
)  # fmt: skip


# --- The work --------------------------------------------------------------------------------


def changed(chance: random.Random) -> dict[str, Any]:
    """A value that is not there yet: SQLite writes nothing where nothing changes."""
    return VALUE | {"tries": chance.getrandbits(30)}


def read(ops: Ops, chance: random.Random) -> None:
    """Get a value."""
    ops.get(chance.choice(KEYS))


def write(ops: Ops, chance: random.Random) -> None:
    """Put a value."""
    ops.put(chance.choice(KEYS), changed(chance))


def mix(ops: Ops, chance: random.Random) -> None:
    """Get a value mostly, else put one."""
    (read if chance.random() < READS else write)(ops, chance)


def count(ops: Ops, _: random.Random) -> None:
    """Add 1."""
    ops.add(COUNTER)


def write_many(ops: Ops, chance: random.Random) -> None:
    """Put 100 values."""
    ops.put_many(dict.fromkeys(chance.sample(KEYS, 100), changed(chance)))


Step = Callable[[Ops, random.Random], None]


class Row(NamedTuple):
    """A line of the table: what is done, by how many processes, and where writes then are."""

    name: str
    step: Step
    processes: int
    on_disk: bool = False

    def takes(self, contender: Contender) -> bool:
        """True if a contender is measured in it."""
        return self.on_disk == (contender.durability == DISK)


ROWS: Final = (
    Row("read, 1 process", read, 1),
    Row("write, 1 process", write, 1),
    Row("write 100 keys at once, 1 process", write_many, 1),
    Row(f"9 reads to 1 write, {PROCESSES} processes", mix, PROCESSES),
    Row(f"count together, {PROCESSES} processes", count, PROCESSES),
    Row("write, 1 process, on disk", write, 1, on_disk=True),
    Row(f"write, {PROCESSES} processes, on disk", write, PROCESSES, on_disk=True),
)


class _Told(NamedTuple):
    """The report of a process: how often it did the step, and in how many seconds."""

    steps: int
    seconds: float


def _work(
    open_shared: Open, step: Step, seconds: float, number: int, ready: Any, told: Any
) -> None:
    """Do a step again and again, in a process of its own."""
    chance = random.Random(number)  # noqa: S311  no secret
    with open_shared() as ops:
        step(ops, chance)
        ready.wait(LIMIT)
        steps, began = 0, time.perf_counter()
        while (passed := time.perf_counter() - began) < seconds:
            step(ops, chance)
            steps += 1
        told.put(_Told(steps, passed))


def measure(open_shared: Open, row: Row, seconds: float) -> float:
    """The rate of a row, in steps per second of all processes. Raises BenchError."""
    spawn = multiprocessing.get_context("spawn")
    ready, told = spawn.Barrier(row.processes), spawn.Queue()
    with open_shared() as ops:
        ops.put_many(dict.fromkeys(KEYS, VALUE))
        before = ops.add(COUNTER)
    processes = [
        spawn.Process(target=_work, args=(open_shared, row.step, seconds, number, ready, told))
        for number in range(row.processes)
    ]
    for process in processes:
        process.start()
    found: list[_Told] = [told.get(timeout=2 * LIMIT + seconds) for _ in processes]
    for process in processes:
        process.join()
    if row.step is count:
        with open_shared() as ops:
            counted = ops.add(COUNTER) - before - 1
        steps = sum(each.steps + 1 for each in found)
        if counted != steps:
            raise BenchError(f"{row.name}: {steps} were counted, and {counted} are there")
    return sum(each.steps / each.seconds for each in found)


# --- The run ---------------------------------------------------------------------------------


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sharing",
        description="Measure what Python programs share a dict with.",
    )
    parser.add_argument("document", type=Path, metavar="docs/sharing.md")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record to FILE")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N")
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="S")
    options = parser.parse_args(words)
    try:
        record = compete(options.rounds, options.seconds)
        if options.json is not None:
            result.save(record, options.json)
        write_page(record, options.document)
    except (BenchError, OSError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    return 0


def compete(rounds: int, seconds: float) -> Record:
    """Measure all that is installed."""
    record = Record(
        when=result.now(), machine=result.machine(), versions=result.versions(), seconds=seconds,
        rounds=rounds,
    )  # fmt: skip
    meter = Meter()
    with tempfile.TemporaryDirectory(prefix="zkv-bench-") as root, ExitStack() as stack:
        opened = dict(_started(record, Path(root), stack))
        for row in ROWS:
            playing = [each for each in CONTENDERS if each.name in opened and row.takes(each)]
            for number in range(rounds):
                first = number % len(playing)
                for each in playing[first:] + playing[:first]:
                    _add(record, row, each.name, opened[each.name], seconds)
    record.passes.append(meter.read())
    return record


def _started(record: Record, root: Path, stack: ExitStack) -> Iterator[tuple[str, Open]]:
    for number, each in enumerate(CONTENDERS):
        directory = root / str(number)
        directory.mkdir()
        if each.needs and find_spec(each.needs) is None:
            record.miss(each.name)
            continue
        try:
            yield each.name, each.start(directory, stack)
        except AbsentError:
            record.miss(each.name)
            continue
        record.meet(Present(each.name, each.version(), each.durability))


def _add(record: Record, row: Row, name: str, open_shared: Open, seconds: float) -> None:
    if (row.name, name) in record.dropped:
        return
    try:
        record.add("sharing", row.name, name, {"rate": measure(open_shared, row, seconds)})
    except BenchError as error:
        record.drop(row.name, name, f"{name}: {error}")


def write_page(record: Record, document: Path) -> None:
    """Fill the blocks of the page. Raises BenchError, OSError."""
    blocks = {
        "sharing": report.markdown(report.table(record, "sharing", SECTION)),
        "machine": report.machine(record),
    }
    filled = report.fill(decode(read_file(document)), blocks, str(document))
    with Target(document).open() as file:
        file.write(filled.encode())
    print(f"wrote {document}")


if __name__ == "__main__":
    sys.exit(main())
