#!/usr/bin/env python3
"""Measure how long a replicated store takes no writes, fault by fault, on this machine.

Three nodes of etcd and three members, with the settings that are the default. All the time, a probe
at each member writes, and so does a client that has all three endpoints. A fault's outage is the
longest time between two writes that were acknowledged: by any member to its probe, and to the
client. The latter adds what the client takes to find the new leader.

Prints the table of docs/cluster.md: of each fault the median and the longest of some runs.

Exit status: 0 if all was measured, 1 if not.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import zkv
from tools.machines import Cluster, NotThereError, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tools.machines import Node

PROBE_SECONDS: Final = 0.3
"""How long a probe waits for a member."""
PAUSE_SECONDS: Final = 0.01
"""Pause between two writes of one writer: what is measured is not how much the store can take."""
BEFORE, AFTER = 1.0, 12.0
"""Seconds that are measured before a fault, and after it."""
NO_MAJORITY_SECONDS: Final = 10.0


class Writer:
    """A thread that writes all the time. Use as a context manager.

    Args:
        endpoints: where.
        timeout: seconds for a write.
    """

    def __init__(self, endpoints: str, timeout: float) -> None:
        self.endpoints = endpoints
        self.timeout = timeout
        self.times: list[float] = []
        """When each write was acknowledged, by `time.monotonic`."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        with zkv.Client(self.endpoints, timeout=self.timeout) as client:
            while not self._ended.is_set():
                try:
                    client.put("probe", 1)
                except zkv.ZkvError:
                    pass
                else:
                    self.times.append(time.monotonic())
                self._ended.wait(PAUSE_SECONDS)


class Outage(NamedTuple):
    """Seconds without an acknowledged write: of all probes, and of the client."""

    store: float
    client: float


def longest_gap(times: list[float]) -> float:
    """Return the longest time between two that follow each other."""
    return max((later - earlier for earlier, later in pairwise(times)), default=0.0)


Fault = contextlib.AbstractContextManager[None]


def measure(cluster: Cluster, fault: Callable[[Cluster], Fault]) -> Outage:
    """Measure the outage of one fault, and heal it."""
    cluster.leader()
    with contextlib.ExitStack() as stack:
        probes = [
            stack.enter_context(Writer(each.endpoint, PROBE_SECONDS)) for each in cluster.members
        ]
        client = stack.enter_context(Writer(cluster.endpoints, 60.0))
        wait_for("the client writes", lambda: bool(client.times))
        time.sleep(BEFORE)
        with fault(cluster):
            time.sleep(AFTER)
        time.sleep(BEFORE)
    every = sorted(moment for probe in probes for moment in probe.times)
    return Outage(longest_gap(every), longest_gap(client.times))


@contextlib.contextmanager
def nothing(cluster: Cluster) -> Iterator[None]:
    """Let all go on: what is measured then is how busy the machine is."""
    cluster.leader()
    yield


@contextlib.contextmanager
def leader_killed(cluster: Cluster) -> Iterator[None]:
    """Kill the member that leads; start it again afterwards."""
    yield from _ended(cluster, signal.SIGKILL)


@contextlib.contextmanager
def leader_ended(cluster: Cluster) -> Iterator[None]:
    """End the member that leads in order; start it again afterwards."""
    yield from _ended(cluster, signal.SIGTERM)


def _ended(cluster: Cluster, number: signal.Signals) -> Iterator[None]:
    leader = cluster.leader()
    leader.end(number)
    yield
    leader.start()
    leader.await_ready()


@contextlib.contextmanager
def leader_stopped(cluster: Cluster) -> Iterator[None]:
    """Stop the member that leads, as a machine that hangs; let it go on afterwards."""
    leader = cluster.leader()
    leader.send(signal.SIGSTOP)
    yield
    leader.send(signal.SIGCONT)


@contextlib.contextmanager
def follower_killed(cluster: Cluster) -> Iterator[None]:
    """Kill a member that follows; start it again afterwards."""
    follower = cluster.follower()
    follower.end()
    yield
    follower.start()
    follower.await_ready()


@contextlib.contextmanager
def node_killed(cluster: Cluster) -> Iterator[None]:
    """Kill a node of etcd that does not lead; start it again afterwards."""
    yield from _node_killed(cluster, cluster.node(leads=False))


@contextlib.contextmanager
def leading_node_killed(cluster: Cluster) -> Iterator[None]:
    """Kill the node of etcd that leads; start it again afterwards."""
    yield from _node_killed(cluster, cluster.node(leads=True))


def _node_killed(cluster: Cluster, node: Node) -> Iterator[None]:
    node.end()
    yield
    node.start()
    cluster.node(leads=True)


@contextlib.contextmanager
def no_majority(cluster: Cluster) -> Iterator[None]:
    """Stop two of three nodes of etcd for ten seconds."""
    nodes = [cluster.node(leads=True), cluster.node(leads=False)]
    for node in nodes:
        node.send(signal.SIGSTOP)
    time.sleep(NO_MAJORITY_SECONDS)
    for node in nodes:
        node.send(signal.SIGCONT)
    yield


FAULTS: Final[dict[str, Callable[[Cluster], Fault]]] = {
    "nothing fails": nothing,
    "a follower is killed": follower_killed,
    "the leader is ended in order (END, SIGTERM)": leader_ended,
    "the leader is killed": leader_killed,
    "the leader hangs (SIGSTOP)": leader_stopped,
    "a node of etcd that does not lead is killed": node_killed,
    "the node of etcd that leads is killed": leading_node_killed,
    "no majority of etcd for 10 s": no_majority,
}


def run(directory: Path, runs: int, words: str) -> None:
    """Measure the faults with these words in their names. Raises NotThereError."""
    print("| fault | store: median, longest | client: median, longest |\n|---|---|---|")
    with Cluster(directory, "--wait", "leader") as cluster:
        for name, fault in FAULTS.items():
            if words not in name:
                continue
            outages = [measure(cluster, fault) for _ in range(runs)]
            cells = " | ".join(
                f"{statistics.median(each):.2f} s, {max(each):.2f} s"
                for each in zip(*outages, strict=True)
            )
            print(f"| {name} | {cells} |", flush=True)


def main() -> int:
    """Run the measurement; returns the exit status."""
    parser = argparse.ArgumentParser(description="Measure seconds without writes.")
    parser.add_argument("--runs", type=int, default=5, help="of each fault")
    parser.add_argument("--only", default="", metavar="WORDS", help="faults with this in the name")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # So that all processes are ended.
    directory = Path(tempfile.mkdtemp(prefix="zkv-outages-"))
    try:
        run(directory, options.runs, options.only)
    except (NotThereError, zkv.ZkvError) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
