"""The processes that make the load: started together, stopped together, their figures merged.

Each process has connections, a source and a loop of its own, and sends what happened in each
interval through a pipe. The parent only adds up, and shows progress; it takes part in nothing that
is measured. Processes come from multiprocessing's fork server, which has imported everything and
has no socket open: so one is there in milliseconds, and inherits no state of ZeroMQ.

For ``inproc://`` the load is made by a thread of the server's own process, since that is where the
endpoint is.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import resource
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
from zkv.streams import bug

CONNECT_LIMIT: Final = 20.0
"""Seconds within which every connection has to be there."""
HEAD_START: Final = 0.05
"""Seconds from the moment when all processes are ready to the begin of the run."""


class LoadTarget(Struct, frozen=True, kw_only=True):
    """Where the load goes."""

    endpoint: str = ""


class LoadJob(Struct, frozen=True, kw_only=True):
    """A run: what to send where, from how many processes over how many connections.

    ``clients`` is the number of connections of all processes together; ``rate`` and ``operations``
    are those of all, too, 0 = no such bound. ``verify`` names the run whose answers are checked.
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
        """What falls to a process of an amount that is dealt out evenly."""
        return amount // self.processes + (process < amount % self.processes)


def check(processes: int, clients: int, operations: int, is_inside: bool) -> None:
    """Raises BenchError where a job cannot be dealt out to its processes."""
    if is_inside and processes > 1:
        raise BenchError("inproc: the load comes from the server's own process: --processes 1")
    for name, count in (("clients", clients), ("operations", operations)):
        if 0 < count < processes:
            raise BenchError(f"{count} {name} are too few for {processes} processes")


class ProcessReport(Struct):
    """What a process says at its end. Seconds, and nanoseconds in ``totals``."""

    totals: Totals
    cpu: float
    loop_cpu: float
    wall: float
    errors: Counter[str]
    wrong: list[str]
    wrong_count: int
    shared: Counter[str]


class Measured(Struct):
    """What all processes together have measured."""

    kinds: list[str]
    latencies: dict[str, Histogram]
    intervals: dict[int, tuple[Histogram, int]] = field(default_factory=dict)
    failed: int = 0
    reports: list[ProcessReport] = field(default_factory=list)

    def add(self, interval: Interval) -> None:
        """Add what a process did in an interval."""
        known, failed = self.intervals.get(interval.number, (Histogram(), 0))
        self.failed += interval.failed
        self.intervals[interval.number] = (known, failed + interval.failed)
        for kind, counts in zip(self.kinds, interval.counts, strict=True):
            self.latencies[kind].merge(counts)
            known.merge(counts)


Watch = Callable[[Measured, int], None]
"""Told now and then what there is so far, and how many nanoseconds of the run have passed."""


def run(job: LoadJob, watch: Watch = lambda _measured, _elapsed: None) -> Measured:
    """Make the load and wait for its end. An interrupt ends it early, a second one at once.

    Raises:
        BenchError: the run cannot go on.
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
    """Add up what the processes say until all have ended; have them end when interrupted."""
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
                    with contextlib.suppress(OSError):  # That one has just ended.
                        pipe.send("stop")


@contextlib.contextmanager
def _interrupt_noted() -> Iterator[Callable[[], bool]]:
    """Have the first interrupt only noted: raised, it would tear a message that is being read.

    Gives whether one has come since it was last asked.
    """
    notes: list[int] = []

    def note(number: int, _frame: object) -> None:
        notes.append(number)
        signal.signal(signal.SIGINT, before)  # The second one is as always.

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(notes) and bool(notes.pop())
    finally:
        signal.signal(signal.SIGINT, before)


def _take(pipe: Any) -> Any:
    """What a process says next. Raises BenchError where that is an error, or its end."""
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
    """The main function of a process. An interrupt is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.disable()  # Nothing here makes cycles, and a collection would show as a latency.
    _work(job, process, pipe)


def _work(job: LoadJob, process: int, pipe: Connection) -> None:
    """Make a process's share of the load; tell everything through the pipe."""
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
    with contextlib.suppress(OSError):  # The parent may have gone: nobody is there to be told.
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
    """So many connections to the target."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    return ZmqConnections(context, job.target.endpoint, clients, job.pipeline)


def make_source(job: LoadJob, process: int) -> Source:
    """What a process sends."""
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
    """Have one request answered on each connection, so that all of them are up.

    Or until it is over: whoever started this says nothing yet, and so has gone.
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
