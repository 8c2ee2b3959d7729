"""Runs a server for an hour beside clients of every bad kind, and says what it takes in the end.

The kinds: clients that never read their replies, followers that never read the feed or subscribe to
endless topics, messages that never end, connections that say nothing, writers quicker than the
disk, a full store, a cache that evicts, sessions by the thousand. Beside them, well-behaved clients
check what they get: a counter that is incremented exactly once, and a mirror that is the store.

Exit status: 0 if the well-behaved got what is right, and the process's memory and descriptors
are no more in the last quarter of the time than in the second.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import zmq

from tests.broker.zmtp import MORE, frame, greeting, ready
from tests.support import FREE_PORT, Raw, ServerProcess, pack
from zkv import Client
from zkv.client import BusyError, ClientError, FullError

MIB: Final = 2**20
CONFIG: Final = f"""
[server]
feed = "{FREE_PORT}"
[durability]
snapshot_interval = 20.0
segment_bytes = {16 * MIB}
[limits]
max_memory = {128 * MIB}
[log]
requests = false
[[cache]]
prefix = "cache/"
max_bytes = {16 * MIB}
policy = "lru"
"""
SAMPLE_SECONDS: Final = 5.0
MORE_MEMORY: Final = 48 * MIB
"""The last quarter may have so much more memory than the second: what bursts leave varies."""
MORE_FILES: Final = 64


class Sample(NamedTuple):
    """What the process takes at one moment."""

    rss: int
    files: int
    threads: int


def sample(pid: int) -> Sample:
    """Look at a process."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    files = len(os.listdir(f"/proc/{pid}/fd"))
    return Sample(int(status["VmRSS"].split()[0]) * 1024, files, int(status["Threads"]))


class Soak:
    """The run.

    Args:
        server: the server.
        seconds: how long.
    """

    def __init__(self, server: ServerProcess, seconds: float) -> None:
        self._server = server
        self._endpoint = server.endpoint
        with Raw(self._endpoint) as raw:
            self._feed: str = raw.ok(op="INFO")["feed"]
        self._over = threading.Event()
        self._seconds = seconds
        self.failures: list[str] = []
        self.samples: list[Sample] = []
        self.counted = 0

    def run(self) -> None:
        """Run all kinds beside a mirror, which in the end must be the store."""
        client = Client(self._endpoint, timeout=60)
        small = client.namespace("small/")
        with client, small.mirror("") as mirror:
            self._run_all()
            mirror.wait_for(client.info()["rev"], 60)
            if dict(mirror) != dict(small.items()):
                self.failures.append("the mirror is not the store")
            if client.get("counter") != self.counted:
                self.failures.append("the counter is not what was counted")

    def _run_all(self) -> None:
        """Run all kinds, each in its thread, and sample the process meanwhile."""
        kinds = [
            self.count, self.write_and_read, self.fill, self.use_cache,
            self.never_read, self.never_read_feed, self.subscribe_to_all, self.never_end,
            self.say_nothing, self.overwhelm_the_disk, self.begin_sessions,
        ]  # fmt: skip
        threads = [threading.Thread(target=self._repeat, args=(kind,)) for kind in kinds]
        for thread in threads:
            thread.start()
        end, began = time.monotonic() + self._seconds, time.monotonic()
        while time.monotonic() < end and not self.failures:
            self._over.wait(SAMPLE_SECONDS)
            now = sample(self._server.process.pid)
            self.samples.append(now)
            print(
                f"{time.monotonic() - began:6.0f} s  {now.rss / MIB:6.0f} MiB  "
                f"{now.files:5} files  {now.threads:3} threads  {self.counted:8} counted",
                flush=True,
            )
        self._over.set()
        for thread in threads:
            thread.join()

    def _repeat(self, kind: Callable[[], None]) -> None:
        while not self._over.is_set():
            try:
                kind()
            except (BusyError, FullError):
                continue
            except Exception as error:
                self.failures.append(f"{kind.__name__}: {traceback.format_exc()}")
                self._tell_more(error)
                return

    def _tell_more(self, error: Exception) -> None:
        """Have the server log what its threads do, and say what the client had tried, and met."""
        self._server.signal(signal.SIGUSR1)
        for place, _ in traceback.walk_tb(error.__traceback__):
            attempts = place.f_locals.get("attempts")
            if attempts is not None:
                self.failures.append(f"attempts: {vars(attempts)}")
                break
        with Raw(self._endpoint) as raw:
            info = raw.call(op="INFO")
            self.failures.append(f"INFO after it: {info.get('stats', info)}")

    def _pause(self, seconds: float) -> None:
        self._over.wait(seconds)

    # --- The well-behaved

    def count(self) -> None:
        """Increment a counter; each increment is there once."""
        with Client(self._endpoint, timeout=60) as client:
            while not self._over.is_set():
                self.counted += 1
                found = client.incr("counter")
                if found != self.counted:
                    raise AssertionError(f"{found} instead of {self.counted}")
                self._pause(0.01)

    def write_and_read(self) -> None:
        """Many small entries."""
        with Client(self._endpoint, timeout=60) as client:
            for number in range(1_000):
                key = f"small/{random.randrange(5_000)}"
                client.put(key, number)
                if client.get(key) is None:
                    raise AssertionError("a value is gone")
                if self._over.is_set():
                    return

    # --- The others

    def fill(self) -> None:
        """Entries until the store is full; then some are removed."""
        with Raw(self._endpoint, timeout=60) as raw:
            for number in range(10_000):
                reply = raw.call(op="PUT", key=f"fill/{number}", value=bytes(100_000))
                if self._over.is_set() or reply.get("code") == "FULL":
                    break
            for first in range(0, 10_000, 1_000):
                raw.ok(op="MDELETE", keys=[f"fill/{n}" for n in range(first, first + 1_000)])
            self._pause(1)

    def use_cache(self) -> None:
        """A cache that evicts."""
        with Raw(self._endpoint, timeout=60) as raw:
            for _ in range(1_000):
                key = f"cache/{random.randrange(10_000)}"
                if not raw.call(op="GET", key=key)["ok"]:
                    raw.call(op="PUT", key=key, value=bytes(5_000))
                if self._over.is_set():
                    return

    def never_read(self) -> None:
        """A client that asks for much and reads nothing."""
        with Raw(self._endpoint, zmq.DEALER, options={zmq.RCVHWM: 1, zmq.SNDHWM: 0}) as raw:
            raw.send(pack({"op": "PUT", "key": "large", "value": bytes(65_536)}))
            for _ in range(5_000):
                raw.send(pack({"op": "GET", "key": "large"}))
            self._pause(20)

    def never_read_feed(self) -> None:
        """A follower that reads nothing."""
        context = zmq.Context()
        follower = context.socket(zmq.SUB)
        follower.rcvhwm, follower.linger = 1, 0
        follower.connect(self._feed)
        follower.subscribe(b"")
        self._pause(30)
        follower.close()
        context.term()

    def subscribe_to_all(self) -> None:
        """A follower with topics without end."""
        context = zmq.Context()
        follower = context.socket(zmq.SUB)
        follower.sndhwm = 0
        follower.linger = 0
        follower.connect(self._feed)
        for number in range(20_000):
            follower.subscribe(f"{number}-{random.random()}".encode())
        self._pause(10)
        follower.close()
        context.term()

    def never_end(self) -> None:
        """A message that goes on and on."""
        host, _, port = self._endpoint.rpartition("://")[2].rpartition(":")
        with socket.create_connection((host, int(port)), timeout=5) as peer:
            peer.sendall(greeting() + ready())
            try:
                for _ in range(500):
                    peer.sendall(frame(bytes(MIB), MORE))
            except OSError:
                pass  # It was cut off.
        self._pause(20)

    def say_nothing(self) -> None:
        """Connections that only are there."""
        host, _, port = self._endpoint.rpartition("://")[2].rpartition(":")
        peers = [socket.create_connection((host, int(port)), timeout=5) for _ in range(200)]
        self._pause(10)
        for peer in peers:
            peer.close()

    def overwhelm_the_disk(self) -> None:
        """Large writes in flight, more than the disk takes."""
        with Raw(self._endpoint, zmq.DEALER, timeout=120, options={zmq.SNDHWM: 0}) as raw:
            for number in range(60):
                items = {f"burst/{place}": bytes(100_000) for place in range(10)}
                raw.send(pack({"op": "MPUT", "items": items, "id": number}))
            for _ in range(60):
                raw.receive()
            self._pause(5)

    def begin_sessions(self) -> None:
        """Sessions by the thousand."""
        with Raw(self._endpoint, timeout=60) as raw:
            for _ in range(1_000):
                name = f"{random.random()}"
                raw.call(op="PUT", key="session/last", value=name, session=name, seq=1)
                if self._over.is_set():
                    return


def compare(samples: list[Sample]) -> list[str]:
    """What has grown between the second and the last quarter, beside what comes and goes."""
    quarter = max(1, len(samples) // 4)
    parts = samples[quarter : 2 * quarter], samples[-quarter:]
    memory, memory_after = (median(each.rss for each in part) for part in parts)
    files, files_after = (min(each.files for each in part) for part in parts)
    found = []
    if memory_after > memory + MORE_MEMORY:
        found.append(f"memory: {memory / MIB:.0f} to {memory_after / MIB:.0f} MiB")
    if files_after > files + MORE_FILES:
        found.append(f"descriptors: {files} to {files_after}")
    return found


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="how long (default: 60)")
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as directory:
        with ServerProcess(Path(directory), config=CONFIG) as server:
            soak = Soak(server, 60 * minutes)
            try:
                soak.run()
            except (ClientError, OSError) as error:
                soak.failures.append(repr(error))
            if server.stop() != 0:
                soak.failures.append("the server did not stop well")
            log = server.log()
        failures = soak.failures + compare(soak.samples)
        failures += ["a traceback is in the log"] if "Traceback" in log else []
        for failure in failures:
            print(failure)
        if failures:
            print(log[-20_000:])
    print("FAILED" if failures else "all well")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
