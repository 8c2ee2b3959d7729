"""The processes that make the load: starts and stops them together, and merges their figures.

Each process has its own connections, source and loop, and sends the figures of each interval
through a pipe. The parent only adds them up and shows progress; it sends no requests. Processes are
forked by multiprocessing's fork server, which has imported everything and has no socket open. So
they start in milliseconds, and inherit no state of ZeroMQ.

For ``inproc://`` a thread in the server's own process makes the load, since the endpoint exists
only there.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, Final

import zmq
from msgspec import Struct, field

from zkv.bench.connections import BenchError, Connections, ZmqConnections
from zkv.bench.drive import INTERVAL, Interval, Loop, Pace, Totals, clock
from zkv.bench.histogram import Histogram
from zkv.bench.verify import Verifier
from zkv.bench.workload import Mix, Requests, Source, Workload
from zkv.client.curve import KEY_FILE, CurveKeys
from zkv.streams import bug
from zkv.system import raise_file_limit

CONNECT_LIMIT: Final = 20.0
"""Seconds within which the server must have answered on every connection."""
HEAD_START: Final = 0.05
"""Seconds from the moment when all processes are ready to the beginning of the run."""


class LoadTarget(Struct, frozen=True, kw_only=True):
    """The server that gets the load, and the keys for it. Each process reads the key file itself.

    If there are no ``server_keys``, connections are not encrypted. If there is no ``key_file``,
    each process makes a key.
    """

    endpoint: str = ""
    server_keys: tuple[str, ...] = ()
    key_file: str = ""

    def keys(self) -> dict[str, Any]:
        """The keys, as the arguments of a client."""
        return {"server_key": self.server_keys, "key_file": self.key_file or KEY_FILE}


class LoadJob(Struct, frozen=True, kw_only=True):
    """The settings of a run: target, workload, processes, connections, duration.

    ``clients``, ``rate`` and ``operations`` are totals of all processes. A ``rate`` of 0 is a
    closed loop; ``operations`` of 0 is no limit. If ``verify`` is not empty, replies are checked;
    it is then a unique name for the run.
    """

    target: LoadTarget
    workload: Workload = Workload()
    processes: int = 1
    clients: int = 50
    pipeline: int = 1
    duration: float = 10.0
    operations: int = 0
    rate: float = 0.0
    timeout: float = 5.0
    verify: str = ""

    def share(self, amount: int, process: int) -> int:
        """The share of a process, if ``amount`` is divided evenly among all processes."""
        return amount // self.processes + (process < amount % self.processes)


def check(processes: int, clients: int, operations: int, is_inside: bool) -> None:
    """Raise BenchError if a job cannot be divided among its processes."""
    if is_inside and processes > 1:
        raise BenchError("with inproc, the load comes from the server's process: --processes 1")
    for name, count in (("clients", clients), ("operations", operations)):
        if 0 < count < processes:
            raise BenchError(f"{count} {name} are too few for {processes} processes")


class ProcessReport(Struct):
    """The report of a process at its end. Times are in seconds, in ``totals`` in nanoseconds."""

    totals: Totals
    cpu: float
    loop_cpu: float
    wall: float
    errors: Counter[str]
    wrong: list[str]
    wrong_count: int
    shared: Counter[str]


class Measured(Struct):
    """The figures of all processes together."""

    kinds: list[str]
    latencies: dict[str, Histogram]
    intervals: dict[int, tuple[Histogram, int]] = field(default_factory=dict)
    failed: int = 0
    reports: list[ProcessReport] = field(default_factory=list)

    def add(self, interval: Interval) -> None:
        """Add the figures of a process for an interval."""
        known, failed = self.intervals.get(interval.number, (Histogram(), 0))
        self.failed += interval.failed
        self.intervals[interval.number] = (known, failed + interval.failed)
        for kind, counts in zip(self.kinds, interval.counts, strict=True):
            self.latencies[kind].merge(counts)
            known.merge(counts)


Watch = Callable[[Measured, int], None]
"""Called now and then with the figures so far, and the nanoseconds since the beginning."""


def run(job: LoadJob, watch: Watch = lambda _measured, _elapsed: None) -> Measured:
    """Make the load and wait for its end. Ctrl-C ends it early; a second one aborts it.

    Raises:
        BenchError: the run cannot continue.
    """
    is_inside = job.target.endpoint.startswith("inproc:")
    start = _start_thread if is_inside else _start_process
    members = [start(job, process) for process in range(job.processes)]
    pipes = [pipe for pipe, _ in members]
    try:
        (kinds, *_) = [_take(pipe) for pipe in pipes]
        measured = Measured(kinds, {kind: Histogram() for kind in kinds})
        begin = clock() + round(HEAD_START * 1e9)
        for pipe in pipes:
            pipe.send(begin)
        _collect(pipes, measured, begin, watch)
        return measured
    finally:
        for pipe, end in members:
            pipe.close()
            end()


def _collect(pipes: list[Connection], measured: Measured, begin: int, watch: Watch) -> None:
    """Add up the figures until all processes have ended; stop the processes on an interrupt."""
    running: list[Any] = list(pipes)
    with _interrupt_noted() as interrupted:
        while running:
            for pipe in wait(running, INTERVAL / 1e9):
                message = _take(pipe)
                if isinstance(message, Interval):
                    measured.add(message)
                else:
                    measured.reports.append(message)
                    running.remove(pipe)
            watch(measured, clock() - begin)
            if interrupted():
                for pipe in running:
                    with contextlib.suppress(OSError):  # The process may just have ended.
                        pipe.send("stop")


@contextlib.contextmanager
def _interrupt_noted() -> Iterator[Callable[[], bool]]:
    """Record the first interrupt instead of raising it, which could break the read of a message.

    Gives a function that returns True once after an interrupt.
    """
    notes: list[int] = []

    def note(number: int, _frame: object) -> None:
        notes.append(number)
        signal.signal(signal.SIGINT, before)  # A second interrupt is raised as usual.

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(notes) and bool(notes.pop())
    finally:
        signal.signal(signal.SIGINT, before)


def _take(pipe: Any) -> Any:
    """The next message of a process. Raises BenchError if that is an error, or if it has died."""
    try:
        message = pipe.recv()
    except (EOFError, OSError):
        raise BenchError("a process of the load generator has died") from None
    if isinstance(message, BenchError):
        raise message
    return message


def _start_process(job: LoadJob, process: int) -> tuple[Connection, Callable[[], None]]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    ours, theirs = context.Pipe()
    member = context.Process(target=_member, args=(job, process, theirs), daemon=True)
    member.start()
    theirs.close()

    def end() -> None:
        member.join(2.0)
        member.kill()
        member.join()
        member.close()

    return ours, end


def _start_thread(job: LoadJob, process: int) -> tuple[Connection, Callable[[], None]]:
    ours, theirs = Pipe()
    thread = threading.Thread(target=_work, args=(job, process, theirs), name="zkv-bench")
    thread.start()
    return ours, thread.join


def _member(job: LoadJob, process: int, pipe: Connection) -> None:
    """The main function of a process. The parent handles interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise_file_limit()
    gc.disable()  # This code makes no reference cycles, and a collection would add to a latency.
    _work(job, process, pipe)


def _work(job: LoadJob, process: int, pipe: Connection) -> None:
    """Make the share of a process, and send the figures through the pipe."""
    try:
        connections = connect(job, job.share(job.clients, process))
        try:
            _drive(job, process, pipe, connections)
        finally:
            connections.close()
    except BenchError as error:
        _tell(pipe, error)
    except Exception as error:
        _tell(pipe, BenchError(bug(error)))
    finally:
        pipe.close()


def _tell(pipe: Connection, error: BenchError) -> None:
    with contextlib.suppress(OSError):  # The parent may have ended.
        pipe.send(error)


def _drive(job: LoadJob, process: int, pipe: Connection, connections: Connections) -> None:
    clients = job.share(job.clients, process)
    source = make_source(job, process)
    _greet(job, connections, clients, pipe.poll)
    pipe.send(source.kinds)
    begin: int = pipe.recv()
    offset = round(process / job.rate * 1e9) if job.rate else 0  # Their schedules interleave.
    pace = Pace(
        begin=begin + offset,
        rate=job.rate / job.processes,
        duration=0 if job.operations else round(job.duration * 1e9),
        operations=job.share(job.operations, process),
        timeout=round(job.timeout * 1e9),
    )
    loop = Loop(
        connections, source, clients * job.pipeline, pace,
        pipe.send, pipe.poll,
    )  # fmt: skip
    wall, cpu, loop_cpu = time.perf_counter(), time.process_time(), time.thread_time()
    totals = loop.run()
    checked = source if isinstance(source, Verifier) else None
    pipe.send(
        ProcessReport(
            totals=totals,
            cpu=time.process_time() - cpu,
            loop_cpu=time.thread_time() - loop_cpu,
            wall=time.perf_counter() - wall,
            errors=source.errors,
            wrong=checked.wrong if checked else [],
            wrong_count=checked.wrong_count if checked else 0,
            shared=checked.shared if checked else Counter(),
        )
    )


def connect(job: LoadJob, clients: int) -> Connections:
    """Make ``clients`` connections to the target. Raises BenchError."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    try:
        keys = CurveKeys(**job.target.keys())
        return ZmqConnections(context, job.target.endpoint, clients, job.pipeline, keys)
    except ValueError as error:
        raise BenchError(str(error)) from error


def make_source(job: LoadJob, process: int) -> Source:
    """The source of requests of a process."""
    open_ended = job.pipeline > 1
    if job.verify:
        slots = job.share(job.clients, process) * job.pipeline
        workload = job.workload
        return Verifier(
            job.verify, workload.seed, slots, process, open_ended, workload.value_bytes
        )  # fmt: skip
    requests = Requests(job.workload.make_values(), open_ended)
    return Mix(job.workload, requests, process, job.processes)


def _greet(
    job: LoadJob, connections: Connections, clients: int, is_over: Callable[[], bool]
) -> None:
    """Wait for the reply to a PING on each connection, so that all of them are established.

    Stop early if ``is_over``: the parent sends nothing at this stage, so its pipe is readable only
    if it has ended.
    """
    request = b"\x81\xa2op\xa4PING" if job.pipeline == 1 else b"\x82\xa2op\xa4PING\xa2id"
    waiting = set()
    for client in range(clients):
        connections.send(client * job.pipeline, request)
        waiting.add(client * job.pipeline)
    connections.flush()
    deadline = time.monotonic() + CONNECT_LIMIT
    while waiting and not is_over():
        for slot, _ in connections.receive(0.05):
            waiting.discard(slot)
        if time.monotonic() > deadline:
            where = job.target.endpoint
            raise BenchError(f"no answer from {where} on {len(waiting)} of {clients} connections")
