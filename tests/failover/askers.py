"""Clients that go to whichever server leads, and note what they asked and what came of it."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import zmq

from tests.linearizability.checker import NEVER, Operation
from tests.support import Message, NoReplyError, Raw

REPLY_SECONDS = 1.0
"""After that, the next server is asked."""
SETTLED = frozenset({"CONFLICT", "NOT_FOUND"})
"""Codes of failures that are the outcome of a request."""
PASSING = frozenset({"NOT_LEADER", "READ_ONLY", "SHUTTING_DOWN", "BUSY", "OVERLOAD"})
"""Codes after which the same request is sent again, to the next server."""


class WrongReplyError(Exception):
    """A reply that must never come."""


class Asker(threading.Thread):
    """Counts up a key of its own and works on shared ones, each write exactly once.

    The shared keys have the number of the era in their names, and so does the history: an era ends
    where a promotion by force may lose what was answered.

    Args:
        number: of this asker.
        seed: decides what is asked.
        endpoints: the servers.
        context: for the sockets.
    """

    def __init__(
        self, number: int, seed: int, endpoints: list[str], context: zmq.Context[Any]
    ) -> None:
        super().__init__(name=f"asker-{number}", daemon=True)
        self.number = number
        self.counter = f"counter/{number}"
        self.history: list[Operation] = []
        self.counted: list[tuple[int, int]] = [(0, 0)]
        """Of this era: each value of the counter that was answered, and its revision."""
        self.answered = 0
        self.error: BaseException | None = None
        self._random = random.Random(f"{seed} {number}")
        self._endpoints = endpoints
        self._zmq_context = context
        self._session = f"{seed}-{number}"
        self._seq = 0
        self._era = 0
        self._value = 0
        self._written = 0
        self._raw: Raw | None = None
        self._place = number
        self._may_ask = threading.Event()
        self._idle = threading.Event()
        self._over = False
        self._pending: Message | None = None  # A count that may have been taken up.
        self._on_its_way: tuple[Message, int] | None = None
        self._may_be_counted = False

    # --- Called by the one who directs

    def go_on(self) -> None:
        """Ask from now on."""
        self._idle.clear()
        self._may_ask.set()

    def pause(self) -> None:
        """Ask no more; return once nothing is under way. What got no answer yet is kept."""
        self._may_ask.clear()
        self._idle.wait()

    def told(self) -> list[Operation]:
        """The history of this era, while paused, with what has got no answer yet."""
        if self._on_its_way is None or self._on_its_way[0]["key"] == self.counter:
            return self.history
        request, called = self._on_its_way
        return [*self.history, Operation(self.number, called, NEVER, request, None)]

    def end(self) -> None:
        """End the thread."""
        self._over = True
        self._may_ask.set()
        self.join()

    def begin_era(self, era: int, value: int) -> None:
        """Begin anew after a promotion by force, while paused.

        Args:
            era: its number.
            value: that of the own counter, at the new primary.
        """
        if self._on_its_way is not None:
            request, _ = self._on_its_way
            self._on_its_way = None
            if request["key"] == self.counter:
                self._pending = request
                self._may_be_counted = True
        self._era, self._value = era, value
        self.history, self.counted = [], [(value, 0)]

    # --- The thread

    def run(self) -> None:
        """See the class."""
        try:
            while True:
                self._idle.set()
                self._may_ask.wait()
                if self._over:
                    break
                self._ask_one()
        except BaseException as error:
            self.error = error
        finally:
            self._idle.set()
            self._close()

    def _ask_one(self) -> None:
        request, called = self._next()
        self._on_its_way = request, called
        while self._may_ask.is_set() and not self._over:  # At the end nobody may answer any more.
            reply = self._exchange(request)
            if reply is not None:
                self._on_its_way = None
                self._take(request, called, reply)
                return

    def _next(self) -> tuple[Message, int]:
        if self._on_its_way is not None:
            return self._on_its_way
        now = time.monotonic_ns()
        if self._pending is not None:
            request, self._pending = self._pending, None
            return request, now
        pick, era = self._random, self._era
        kind = pick.choice(["count", "count", "get", "put", "incr"])
        if kind == "get":
            return {"op": "GET", "key": pick.choice([f"r/{era}", f"n/{era}"])}, now
        self._seq += 1
        once = {"session": self._session, "seq": self._seq}
        if kind == "count":
            return {"op": "INCR", "key": self.counter} | once, now
        if kind == "incr":
            return {"op": "INCR", "key": f"n/{era}"} | once, now
        self._written += 1
        value = self._written * 1000 + self.number
        return {"op": "PUT", "key": f"r/{era}", "value": value} | once, now

    def _take(self, request: Message, called: int, reply: Message) -> None:
        self.answered += 1
        if not reply["ok"] and reply["code"] not in SETTLED:
            raise WrongReplyError(f"{request} -> {reply}")
        if request["key"] != self.counter:
            operation = Operation(self.number, called, time.monotonic_ns(), request, reply)
            self.history.append(operation)
            return
        may_be_counted, self._may_be_counted = self._may_be_counted, False
        value = reply["value"]
        if may_be_counted and reply.get("replayed") and value <= self._value:
            return
        if value != self._value + 1:
            raise WrongReplyError(f"{request} -> {reply}, and {self._value} was the count before")
        self._value = value
        self.counted.append((value, reply["rev"]))

    def _exchange(self, request: Message) -> Message | None:
        """Send a request; return its outcome, None if it is to be sent again."""
        if self._raw is None:
            endpoint = self._endpoints[self._place % len(self._endpoints)]
            self._raw = Raw(endpoint, context=self._zmq_context, timeout=REPLY_SECONDS)
        try:
            reply = self._raw.call(**request)
        except NoReplyError:
            self._turn()
            return None
        if not reply["ok"] and reply["code"] in PASSING:
            self._turn()
            time.sleep(0.02)  # Else it would keep a server busy that has nothing to say.
            return None
        return reply

    def _turn(self) -> None:
        self._close()
        self._place += 1

    def _close(self) -> None:
        if self._raw is not None:
            self._raw.close()
            self._raw = None
