"""Makes a run from end to end: server, load phase, ceiling, run phase, record."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec.structs import replace

from zkv.bench import generator, result, servers
from zkv.bench.connections import BenchError
from zkv.bench.generator import LoadJob, LoadTarget, Measured, Watch
from zkv.bench.result import Result
from zkv.bench.servers import Running
from zkv.bench.verify import SHARED_COUNTERS, keys_of, shared_counter
from zkv.bench.workload import Workload, key_name
from zkv.client import ClientError
from zkv.client.curve import server_key_of
from zkv.endpoint import host_of, is_name

LOAD_BYTES: Final = 1 << 20
"""The approximate size of a request of the load phase."""


def load_phase(target: LoadTarget, workload: Workload) -> float:
    """Store all keys in large batches; returns the seconds that it took. Raises BenchError."""
    values = [msgspec.msgpack.decode(value) for value in workload.make_values()]
    batch = max(1, min(1000, LOAD_BYTES // (workload.size() + 32)))
    begin = time.perf_counter()
    with result.connect(target) as client:
        for first in range(0, workload.keys, batch):
            keys = range(first, min(first + batch, workload.keys))
            try:
                client.call(
                    "MPUT", items={key_name(key): values[key % len(values)] for key in keys}
                )
            except ClientError as error:
                raise BenchError(f"the load phase failed: {error}") from error
    return time.perf_counter() - begin


@contextlib.contextmanager
def target(given: LoadTarget, start: str, policy: str) -> Iterator[Running]:
    """The server to measure: the one that is ``given``, or a new one if ``start`` is not empty."""
    if start:
        with servers.zkv(policy, start) as running:
            yield running
    else:
        endpoint = _numeric(given.endpoint)
        found = replace(given, endpoint=endpoint)
        yield Running(name="zkv", version="", target=_with_one_key(found))


def _numeric(endpoint: str) -> str:
    """``endpoint`` with the address, IPv4 or IPv6, at which its host accepts connections."""
    if not is_name(endpoint):
        return endpoint
    port = int(endpoint.rpartition(":")[2])
    try:
        with socket.create_connection((host_of(endpoint), port), result.ASK_LIMIT) as probe:
            host = probe.getpeername()[0]
    except OSError:
        return endpoint  # The first request there reports the reason.
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def _with_one_key(target: LoadTarget) -> LoadTarget:
    """``target`` with the key that the server has, of those that it may have."""
    if len(target.server_keys) < 2:
        return target
    with result.connect(target) as client:
        try:
            client.ping()
        except ClientError:
            return target  # The first request there reports the reason.
        return replace(target, server_keys=(server_key_of(client),))


def ceiling(job: LoadJob, seconds: float) -> tuple[float, str]:
    """The rate of the load of ``job`` against the floor in a closed loop; and the floor's kind."""
    transport = "ipc" if job.target.endpoint.startswith("ipc:") else "tcp"
    plain = replace(job.workload, ycsb="", batch=1)
    with servers.floor(transport) as floor:
        echo = replace(
            job, target=floor.target, workload=plain, duration=seconds, operations=0, rate=0.0,
            verify="",
        )  # fmt: skip
        measured = result.make("ceiling", echo, generator.run(echo), {})
        return measured.rate, floor.version


def measure(
    name: str, running: Running, job: LoadJob, watch: Watch, ceiling_seconds: float
) -> Result:
    """Measure a running zkv server, whose keys are loaded. Raises BenchError."""
    facts = result.ask(running.target, job.pipeline)
    is_inside = job.target.endpoint.startswith("inproc:")  # The floor cannot use inproc.
    limit, limit_is = 0.0, ""
    if ceiling_seconds and not is_inside:
        limit, limit_is = ceiling(job, ceiling_seconds)
    before = running.cpu() if running.pid else 0.0
    measured = generator.run(job, watch)
    used = running.cpu() - before if running.pid else 0.0
    made = result.make(name, job, measured, facts)
    if running.pid:
        made.server_cpu_per_op = used / max(1, made.operations) * 1e6
    made.generator.ceiling, made.generator.ceiling_is = limit, limit_is
    result.judge_generator(made)
    if job.verify:
        _check_shared_counters(job, measured, made)
    return made


def _check_shared_counters(job: LoadJob, measured: Measured, made: Result) -> None:
    """Check that the shared counters have the sums that all processes have added."""
    with result.connect(job.target) as client:
        for number in range(SHARED_COUNTERS):
            key = shared_counter(job.verify, number)
            added = sum(report.shared[key] for report in measured.reports)
            (there,) = client.call("MGET", keys=[key])["values"]
            if (there or 0) != added:
                made.wrong_count += 1
                made.wrong.append(f"counter {key}: it is {there}, but {added} was added")
        if not made.wrong_count:  # After a wrong answer, the keys remain for inspection.
            client.namespace(keys_of(job.verify)).clear()
