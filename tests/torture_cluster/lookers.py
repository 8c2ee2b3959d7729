"""Clients that look on: one that measures for how long nobody takes writes, and one that reads."""

from __future__ import annotations

import itertools
import threading
import time

import zmq

from tests.linearizability.checker import Operation
from tests.support import Message, NoReplyError, Raw, eventually, pack, unpack

PROBE_SECONDS = 0.03
"""How often each member is asked to write."""
LOST_SECONDS = 0.5
"""After that a probe is taken for lost, and a new connection is made."""
READ_SECONDS = 0.002
"""How often a stuck reader looks for answers, and reads."""
MOST_UNANSWERED = 100
"""Reads of a stuck reader that wait for an answer, at most, while it goes on asking."""


class Prober(threading.Thread):
    """Writes at all members again and again, and notes when one of them took it.

    Args:
        endpoints: of the members.
        context: for the sockets.
    """

    def __init__(self, endpoints: list[str], context: zmq.Context[zmq.Socket[bytes]]) -> None:
        super().__init__(name="prober", daemon=True)
        self._endpoints = endpoints
        self._zmq_context = context
        self._over = threading.Event()
        self._done: list[float] = []
        self._lock = threading.Lock()
        self._may_probe = threading.Event()
        self._may_probe.set()
        self._idle = threading.Event()

    def pause(self) -> None:
        """Write no more; return once nothing is under way, or given up."""
        self._may_probe.clear()
        self._idle.wait()

    def go_on(self) -> None:
        """Go on."""
        self._idle.clear()
        self._may_probe.set()

    def run(self) -> None:
        """See the class."""
        probes = [_Probe(each, self._zmq_context) for each in self._endpoints]
        number = 0
        while not self._over.wait(PROBE_SECONDS):
            number += 1
            goes_on = self._may_probe.is_set()
            for probe in probes:
                if probe.took(number if goes_on else None):
                    with self._lock:
                        self._done.append(time.monotonic())
            if not goes_on and not any(probe.waits for probe in probes):
                self._idle.set()
                self._may_probe.wait()
        for probe in probes:
            probe.close()

    def end(self) -> None:
        """End the thread."""
        self._over.set()
        self._may_probe.set()
        self.join()

    def longest_gap(self, since: float) -> float:
        """Return for how long nobody has taken a write, at the longest, since a moment."""
        with self._lock:
            earlier = [each for each in self._done if each <= since][-1:]
            later = [each for each in self._done if each > since]
            self._done = self._done[-1000:]
        times = [*earlier, *later, time.monotonic()]
        return max(b - a for a, b in itertools.pairwise(times))


class _Probe:
    """One connection of the prober, with at most one request under way."""

    def __init__(self, endpoint: str, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._endpoint = endpoint
        self._context = context
        self._raw = Raw(endpoint, zmq.DEALER, context=context, timeout=0.0)
        self._sent_at: float | None = None

    @property
    def waits(self) -> bool:
        """True while a request is under way."""
        return self._sent_at is not None

    def took(self, number: int | None) -> bool:
        """Return True if a write was taken since the last call; then send another one.

        Args:
            number: what to write; None to write nothing.
        """
        took = False
        if self._sent_at is not None:
            try:
                took = unpack(self._raw.receive())["ok"]
            except NoReplyError:
                if time.monotonic() - self._sent_at < LOST_SECONDS:
                    return False
                self.close()
                self._raw = Raw(self._endpoint, zmq.DEALER, context=self._context, timeout=0.0)
        self._sent_at = None if number is None else time.monotonic()
        if number is None:
            return took
        self._raw.send(pack({"op": "PUT", "key": "probe", "value": number}))
        return took

    def close(self) -> None:
        self._raw.close()


class StuckReader(threading.Thread):
    """A client that reads at one member, also while that is stopped or cut off.

    It notes each answer when it comes: one that is out of date is found out by that.

    Args:
        endpoint: of the member.
        number: of this client in the history.
        context: for the socket.
    """

    def __init__(self, endpoint: str, number: int, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        super().__init__(name="stuck-reader", daemon=True)
        self._raw = Raw(endpoint, zmq.DEALER, context=context)
        self._number = number
        self._lock = threading.Lock()  # Of the socket.
        self._asked: dict[int, tuple[dict[str, object], int]] = {}
        self._history: list[Operation] = []
        self._key: str | None = None  # What it asks for again and again.
        self._over = threading.Event()
        self.asked = 0
        """How many reads were sent."""
        self._raw.call(op="PING")  # From now on there is a connection.
        self.start()

    def ask(self, keys: list[str], times: int) -> None:
        """Send reads, without waiting."""
        with self._lock:
            for number in range(times):
                self._ask(keys[number % len(keys)])

    def go_on_asking(self, key: str) -> None:
        """Read a key again and again from now on, until `answers`."""
        self._key = key

    def answers(self) -> list[Operation]:
        """Wait for all answers; return the reads that were answered as by a leader."""
        self._key = None
        eventually(lambda: not self._asked or not self.is_alive(), "answers to all reads")
        self._over.set()
        self.join()
        self._raw.close()
        return self._history

    def run(self) -> None:
        """See the class."""
        while not self._over.wait(READ_SECONDS):
            with self._lock:
                if self._key is not None and len(self._asked) < MOST_UNANSWERED:
                    self._ask(self._key)
                while self._raw.socket.poll(0):
                    self._take(unpack(self._raw.receive()))

    def _ask(self, key: str) -> None:
        self.asked += 1
        request: dict[str, object] = {"op": "GET", "key": key, "id": self.asked}
        self._asked[self.asked] = request, time.monotonic_ns()
        self._raw.send(pack(request))

    def _take(self, reply: Message) -> None:
        request, called = self._asked.pop(reply["id"])
        if reply["ok"] or reply["code"] == "NOT_FOUND":
            now = time.monotonic_ns()
            self._history.append(Operation(self._number, called, now, request, reply))
