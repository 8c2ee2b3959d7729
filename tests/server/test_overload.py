"""More requests than the server can run: an open loop, whose clients do not wait for replies."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import zmq

from tests.conftest import Connect
from tests.support import Message, Raw, ServerProcess, eventually, pack, unpack

Socket = zmq.Socket[bytes]

MEGABYTE = 1_000_000
CONNECTIONS = 8
IN_FLIGHT = 16
"""Requests in flight on each connection, where clients do wait for replies."""
PATIENCE = 0.3
"""Seconds until the deadline of a request."""
EACH_LATE = 10
"""Of so many requests with a deadline, one is sent when it has passed."""
SHORT, LONG = 1.5, 60.0
"""Seconds of an overload."""


def now_ms() -> int:
    return round(time.time() * 1000)


def in_workers(number: int) -> bytes:
    """A write with a deadline, which a worker runs. Some are late from the beginning."""
    late = number % EACH_LATE == 0
    first = {f"late/{number}" if late else "first": number}
    deadline = now_ms() + (-1 if late else round(PATIENCE * 1000))
    return pack({"op": "MPUT", "items": ITEMS | first, "deadline": deadline})


def in_the_front(_number: int) -> bytes:
    """A simple request of many steps, which the front runs."""
    return MGET


ITEMS = {f"k{number}": number for number in range(100)}
MGET = pack({"op": "MGET", "keys": [f"k{number}" for number in range(1_000)]})


class Replies(NamedTuple):
    """The replies to a load."""

    late: int
    """Number of requests whose deadline had passed before they were sent."""
    codes: Counter[str]
    """How many there were of each code."""
    seconds: float

    @property
    def was_overload(self) -> bool:
        """True if requests waited until their deadline."""
        return self.codes["DEADLINE"] > self.late

    @property
    def rate(self) -> float:
        """Replies per second."""
        return self.codes.total() / self.seconds


class Load:
    """Requests on several connections. Use as a context manager.

    Args:
        endpoint: of the server.
        request: makes a request, given its number.
    """

    def __init__(self, endpoint: str, request: Callable[[int], bytes]) -> None:
        self._request = request
        self._sent = 0
        self._context: zmq.Context[Socket] = zmq.Context()
        self._sockets: list[Socket] = []
        for _ in range(CONNECTIONS):
            socket = self._context.socket(zmq.DEALER)
            socket.sndhwm = socket.rcvhwm = 0
            socket.connect(endpoint)
            self._sockets.append(socket)
        self._codes: Counter[str] = Counter()

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy(0)

    def closed(self, seconds: float) -> Replies:
        """As many requests as the server runs, with some in flight."""
        begin = time.monotonic()
        for socket in self._sockets * IN_FLIGHT:
            self._send(socket)
        while time.monotonic() < begin + seconds:
            for socket in self._answered():
                self._send(socket)
        return self._end(begin)

    def open(self, seconds: float, rate: float, meanwhile: Callable[[], None]) -> Replies:
        """So many requests per second, whatever becomes of them; return once all are answered."""
        begin = time.monotonic()
        half = seconds / 2
        while (elapsed := time.monotonic() - begin) < seconds:
            for socket in itertools.islice(itertools.cycle(self._sockets), 64):
                if self._sent < elapsed * rate:
                    self._send(socket)
            for _ in self._answered():
                pass
            if elapsed > half:
                half = seconds
                meanwhile()
        return self._end(begin)

    def _send(self, socket: Socket) -> None:
        socket.send(b"", zmq.SNDMORE)
        socket.send(self._request(self._sent))
        self._sent += 1

    def _answered(self) -> Iterator[Socket]:
        """The connections of the replies that are there."""
        for socket in self._sockets:
            while int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                reply = unpack(socket.recv_multipart()[-1])
                self._codes[reply.get("code", "OK")] += 1
                yield socket

    def _end(self, begin: float) -> Replies:
        """Take all replies that are still to come: after a long overload that takes as long."""
        while (missing := self._sent - self._codes.total()) > 0:

            def are_there_more(missing: int = missing) -> bool:
                for _ in self._answered():
                    pass
                return self._sent - self._codes.total() < missing

            eventually(are_there_more, f"that one of {missing} of {self._sent} is answered")
        late = len(range(0, self._sent, EACH_LATE))
        replies = Replies(late, self._codes, time.monotonic() - begin)
        self._sent, self._codes = 0, Counter()
        return replies


def rss(info: Message) -> int:
    """The memory that the server takes, by its own account."""
    return int(info["stats"]["process"]["rss"])


class Measured:
    """A load, with INFO before and after it."""

    def __init__(self, client: Raw, run: Callable[[], Replies]) -> None:
        self.begin: Message = client.ok(op="INFO")
        self.replies = run()
        self.end: Message = client.ok(op="INFO")

    @property
    def cpu_each(self) -> float:
        """The processor time that the server took for each reply."""
        begin, end = (info["stats"]["process"]["cpu_seconds"] for info in (self.begin, self.end))
        return float(end - begin) / self.replies.codes.total()


@pytest.mark.parametrize("request_of", [in_workers, in_the_front])
@pytest.mark.parametrize(
    "seconds", [SHORT, pytest.param(LONG, marks=[pytest.mark.slow, pytest.mark.timeout(400)])]
)
def test_twice_as_many_requests_as_the_server_can_run(
    tmp_path: Path, connect: Connect, request_of: Callable[[int], bytes], seconds: float
) -> None:
    config = '[durability]\nfsync = "never"\n[log]\nrequests = false\n'
    config += "[limits]\nmax_in_flight = 100000\n"  # An open loop does not wait for replies.
    with (
        ServerProcess(tmp_path, "--feed", "", config=config) as server,
        Load(server.endpoint, request_of) as load,
    ):
        client = connect(server.endpoint)
        client.ok(op="MPUT", items={f"k{number}": number for number in range(1_000)})
        load.closed(0.3)  # Else the first requests would count, which are slower.
        usual = Measured(client, lambda: load.closed(0.7))
        during: list[Message] = []
        for factor in (2, 4, 8):  # What else this machine does may have made `usual` too low.
            overload = Measured(
                client,
                lambda: load.open(
                    seconds,
                    factor * usual.replies.rate,  # noqa: B023
                    lambda: during.append(client.ok(op="INFO")),
                ),
            )
            if overload.replies.was_overload or overload.replies.seconds > seconds + PATIENCE:
                break
        else:
            pytest.fail("there was no overload")
        if seconds == LONG:
            time.sleep(10)
            assert overload.replies.rate > usual.replies.rate / 2
        afterwards = Measured(client, lambda: load.closed(0.7))

        assert overload.replies.codes.keys() <= {"OK", "DEADLINE"}
        # By the server's own time, so that what else runs on this machine does not count.
        assert overload.cpu_each < 2 * usual.cpu_each
        assert afterwards.cpu_each < 2 * usual.cpu_each
        for info in (*during, overload.end, afterwards.end):
            # It has what waits in the queues of sockets, and no more with time.
            assert rss(info) - rss(usual.begin) < 90 * MEGABYTE
        if request_of is in_workers:
            # Each that ran is a revision: so those that were late have not run.
            assert overload.end["rev"] - overload.begin["rev"] == overload.replies.codes["OK"]
            assert client.ok(op="COUNT", prefix="late/")["count"] == 0
            assert afterwards.replies.codes["OK"] > 0
