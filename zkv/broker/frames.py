"""Receives and sends batches of messages: in pure Python, and in C.

The cost of a thread of the broker is in socket calls, not in bytes. `PythonFrames` makes as few of
them as pyzmq allows, and specifies the behaviour. `_frames.c` does the same with one call for each
batch, and without holding Python's lock. It is built if a C compiler and Python's headers are there
when zkv is installed. `FRAMES` is the class in use; INFO names it.

The C part is not linked with libzmq. It looks the functions up in the library that pyzmq has
loaded, so one binary works with every pyzmq, and the process never has a second libzmq.
"""

from __future__ import annotations

import logging
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeGuard, TypeVar, Union

import zmq

from zkv import compiled
from zkv.broker.in_flight import COUNTED, OVERLOAD, USER_OVERLOAD, Parked, PythonInFlight
from zkv.requests.batch import (
    NO_BODY,
    NO_DELIMITER,
    NO_MEMORY,
    TWO_BODIES,
    BadEnvelope,
    Batch,
)

if TYPE_CHECKING:
    from zkv.broker import _frames
    from zkv.broker.arrivals import Arrivals
    from zkv.broker.in_flight import Owner
    from zkv.broker.waker import Waker
    from zkv.users.registry import Users
    from zkv.users.rights import User

_log = logging.getLogger("zkv.broker")

A = TypeVar("A")


class Bounds(NamedTuple):
    """Bounds of a batch, which bound how long its first request waits for its last."""

    requests: int
    """Requests at most."""
    size: int
    """Bytes after which a batch ends: its memory, apart from that of its largest message."""


class PassedMessages(NamedTuple):
    """The messages that a mailbox's socket has received and sent, and those that it could not."""

    unroutable: int = 0
    """Messages without a receiver, or without a sender to reply to."""
    dropped: int = 0
    """Replies for which a client had no capacity."""
    bytes_in: int = 0
    """Bytes of the bodies that were received."""
    bytes_out: int = 0
    """Bytes of the bodies that were sent."""


STAMP: Final = struct.Struct("=dd")
"""The first frame of a message to a worker: when the front took it up, by `time.perf_counter`, and
for how many seconds the front has waited for the lock since then. If users are known, the User-Id
follows, in UTF-8."""
COPIED: Final = 4_096
"""Bytes of a body above which it is copied before its envelope is sent."""


InFlight = Union[PythonInFlight, "_frames.InFlight"]
"""Counts the replies that wait for each connection: the kind that goes with the `Frames`."""


class Frames(Protocol):
    """The sockets of a mailbox: one to clients and, in the front, one to the workers behind it.

    Must be used in one thread.
    """

    @property
    def passed(self) -> tuple[int, int, int, int]:
        """The fields of `PassedMessages`."""

    def receive(
        self,
        batch: Batch,
        /,
        *,
        wait: bool,
        take: bool = True,
        capacity: bool = False,
        answer: Callable[[Batch], A | None] | None = None,
    ) -> A | None:
        """Empty the batch, and receive the messages that are queued into it, within the bounds.

        Replies of the workers are sent on unchanged. Requests of connections for which too much
        waits are marked: see `Batch.overload`.

        With ``answer``, a batch that is answered whole is sent, and the next one received, until
        the waker is awake: so most batches take only one call.

        Args:
            batch: takes the messages.
            wait: if nothing is queued, wait for a message, the waker, or a worker's reply. The
                batch may be empty after each of them.
            take: receive messages; if false, only send the workers' replies on.
            capacity: end the wait also when the workers have capacity.
            answer: adds the replies to a batch; returns None if it has all of them. None = nobody.

        Returns:
            What ``answer`` has returned for the batch; None if that is empty, or there is no
            ``answer``.

        What ``answer`` raises is passed on; then the batch has all its requests. If there is no
        memory for a body, `NO_MEMORY` takes its place. If there is none for anything
        else, MemoryError is raised; the next call returns the messages that follow.
        """

    def look_again(self, batch: Batch, /) -> None:
        """Mark those requests of a batch received before for whose connections too much waits."""

    def park(self, batch: Batch, sizes: list[int], /) -> None:
        """Count the replies of a batch that will be sent later.

        Args:
            batch: the batch.
            sizes: by place, of replies that are not packed yet: about their bytes.
        """

    def send(self, batch: Batch, /) -> None:
        """Send the replies that the batch has.

        Raises MemoryError if there was none for some of them; the others have been sent.
        """

    @property
    def bytes_forwarded(self) -> int:
        """Bytes of the bodies that were forwarded."""

    def forward(self, batch: Batch, places: list[int], room: int, /) -> int:
        """Forward requests to the workers as long as they have capacity; return how many.

        None follows once ``room`` bytes of bodies have been forwarded.

        Raises MemoryError if there is none for the first message. A lack of memory for a later one
        only ends the call.
        """

    def readable(self) -> bool:
        """Return True if a message is queued."""

    def close(self) -> None:
        """Close the sockets. Only `close` may be called afterwards."""


class MakeFrames(Protocol):
    """Makes `Frames`. The arguments are those of `PythonFrames`."""

    def __call__(
        self,
        socket: zmq.Socket[bytes],
        waker: Waker,
        bounds: Bounds,
        behind: zmq.Socket[bytes] | None = None,
        stamped: bool = False,
        users: Users | None = None,
        arrivals: Arrivals | None = None,
        in_flight: Any = None,
    ) -> Frames:
        """Return `Frames`, which own the sockets from now on."""


class PythonFrames:
    """`Frames` by means of pyzmq.

    Args:
        socket: receives messages and sends replies. This object closes it.
        waker: ends a wait.
        bounds: bounds of a batch.
        behind: forwards messages to workers and receives their replies, likewise; None if there
            are none.
        stamped: each message begins with a `STAMP`: those that `forward` sends.
        users: the users, looked up for each message; None = everybody may do everything.
        arrivals: takes notes of the senders; None = nobody asks for them.
        in_flight: counts the replies that wait, shared by all threads of a broker; None = nobody
            does.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        waker: Waker,
        bounds: Bounds,
        behind: zmq.Socket[bytes] | None = None,
        stamped: bool = False,
        users: Users | None = None,
        arrivals: Arrivals | None = None,
        in_flight: PythonInFlight | None = None,
    ) -> None:
        self._socket = socket
        self._in_flight = in_flight
        self._parked: dict[int, Parked] = {}  # By the identity of a batch that is parked.
        self._stamped = stamped
        self._users = users
        self._arrivals = arrivals
        self._behind = behind
        self._waker = waker
        self._bounds = bounds
        self._poller = self._make_poller(take=True, capacity=False)
        self._unroutable = self._dropped = self._bytes_in = self._bytes_out = 0
        self.bytes_forwarded = 0
        """See `Frames`."""

    @property
    def passed(self) -> tuple[int, int, int, int]:
        """See `Frames`."""
        return self._unroutable, self._dropped, self._bytes_in, self._bytes_out

    def receive(
        self,
        batch: Batch,
        /,
        *,
        wait: bool,
        take: bool = True,
        capacity: bool = False,
        answer: Callable[[Batch], A | None] | None = None,
    ) -> A | None:
        """See `Frames`."""
        self._receive(batch, wait, take, capacity)
        while answer is not None and len(batch):
            answered = answer(batch)
            if answered is not None:
                return answered
            self.send(batch)
            batch.clear()
            if self._waker.awake[0]:
                break
            self._receive(batch, wait, take, capacity)
        return None

    def _receive(self, batch: Batch, wait: bool, take: bool, capacity: bool) -> None:
        """Receive one batch."""
        batch.clear()
        self._pass_on()
        if wait and not (take and self.readable()):
            usual = take and not capacity
            (self._poller if usual else self._make_poller(take, capacity)).poll()
            self._pass_on()
        question = 0 if self._arrivals is None else self._arrivals.asked
        # Three calls of recv and a look at EVENTS are the cheapest way in pyzmq: `recv_multipart`,
        # and exceptions if nothing is queued, cost more than a whole request.
        size = 0
        while (
            take
            and len(batch) < self._bounds.requests
            and size < self._bounds.size
            and self.readable()
        ):
            size += self._take(batch)
        self._bytes_in += sum(map(len, batch))
        if self._arrivals is not None and question and take:
            self._arrivals.heard(question, len(batch), not self.readable())
        batch.taken = time.perf_counter()
        self.look_again(batch)
        if self._users is not None and self._users.limited and not self._stamped:
            _limit_rates(batch)

    def look_again(self, batch: Batch, /) -> None:
        """See `Frames`."""
        counts = self._in_flight
        if counts is None:
            return
        for place in range(len(batch)):
            envelope, user = batch.envelope(place), batch.user(place)
            if not envelope or not batch.is_request(place):
                continue
            if counts.is_over(envelope[0], counts.limit):
                batch.refuse(place, OVERLOAD)
            elif _is_limited(user) and counts.is_over(user.name, user.max_in_flight_bytes):
                batch.refuse(place, USER_OVERLOAD)

    def park(self, batch: Batch, sizes: list[int], /) -> None:
        """See `Frames`."""
        parked = Parked()
        for place, size in enumerate(sizes):
            if self._in_flight is not None and size >= COUNTED:
                self._in_flight.count(_owners(batch, place), parked, size)
                self._parked[id(batch)] = parked

    def send(self, batch: Batch, /) -> None:
        """See `Frames`."""
        failed: MemoryError | None = None
        self._parked.pop(id(batch), Parked()).done = True  # Each is counted when it is sent.
        for place in range(len(batch)):
            reply = batch.reply(place)
            if reply is None:
                continue
            try:
                self._send_reply(batch, place, reply)
            except MemoryError as error:
                failed = error
            batch.sent(place)
        if failed is not None:
            raise failed

    def forward(self, batch: Batch, places: list[int], room: int, /) -> int:
        """See `Frames`."""
        end = self.bytes_forwarded + room
        for number, place in enumerate(places):
            if self.bytes_forwarded >= end:
                return number
            body: Any = batch[place]  # Never malformed: the front has answered those.
            try:
                stamp = STAMP.pack(batch.taken, batch.waited)
                envelope = [stamp + batch.user_id(place).encode(), *(batch.envelope(place) or [])]
                if self._behind is None or _send(self._behind, envelope, copied(body)):
                    return number
                self.bytes_forwarded += len(body)
            except MemoryError:
                if number:
                    return number
                raise
        return len(places)

    def readable(self) -> bool:
        """See `Frames`."""
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def close(self) -> None:
        """See `Frames`."""
        self._socket.close()
        if self._behind is not None:
            self._behind.close()

    def _make_poller(self, take: bool, capacity: bool) -> zmq.Poller:
        poller = zmq.Poller()
        poller.register(self._waker, zmq.POLLIN)
        if take:
            poller.register(self._socket, zmq.POLLIN)
        if self._behind is not None:
            poller.register(self._behind, zmq.POLLIN | zmq.POLLOUT if capacity else zmq.POLLIN)
        return poller

    def _pass_on(self) -> None:
        """Send all replies of the workers on."""
        behind = self._behind
        while behind is not None and int(behind.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            # The worker has counted its reply, which is this frame until it is written.
            *envelope, last = behind.recv_multipart(copy=False)
            self._note(_send(self._socket, envelope, last), len(last))

    def _send_reply(self, batch: Batch, place: int, reply: bytes) -> None:
        size, counts, envelope = len(reply), self._in_flight, batch.envelope(place) or []
        if counts is None or size < COUNTED:
            number = _send(self._socket, envelope, copied(reply))
        else:
            frame = _tracked(reply)
            number = _send(self._socket, envelope, frame)
            if not number and frame.tracker is not None:
                counts.count(_owners(batch, place), frame.tracker, size)
        self._note(number, size)

    def _note(self, number: int, size: int) -> None:
        """Count a message that was sent; or that was not, for an error of this number.

        Only the socket to clients, a ROUTER, tells one that has left from one that has no capacity.
        A worker's has a capacity without bound.
        """
        if number == zmq.EHOSTUNREACH or (number == zmq.EAGAIN and self._behind is None):
            self._unroutable += 1
        elif number == zmq.EAGAIN:
            self._dropped += 1
        else:
            self._bytes_out += size

    def _take(self, batch: Batch) -> int:
        """Receive one message; return its size. It is discarded if there is no memory for it."""
        try:
            return self._take_frames(batch)
        except MemoryError:
            self._skip_rest()
            self._unroutable += 1
            raise

    def _take_frames(self, batch: Batch) -> int:
        """Receive one message. Its first frame is the sender's address, which the ROUTER adds."""
        recv, option = self._socket.recv, self._socket.getsockopt
        first = recv() if self._stamped else b""
        self._stamp = STAMP.unpack(first[: STAMP.size]) if first else (0.0, 0.0)
        self._user_id = first[STAMP.size :].decode(errors="replace")
        envelope = [self._recv_address()]
        while option(zmq.RCVMORE):
            frame = recv()
            envelope.append(frame)
            if not frame:
                body = self._take_body()
                self._add(batch, envelope, body)
                return len(body) + sum(map(len, envelope))
        if len(envelope) < 2:
            self._unroutable += 1
            return 0
        # Without a delimiter, only the first frame is known to be an address.
        self._add(batch, [envelope[0], b""], NO_DELIMITER)
        return len(envelope[0])

    def _recv_address(self) -> bytes:
        """Receive the first frame; note the User-Id, if users are known, and the sender."""
        asked = self._arrivals is not None and self._arrivals.asked
        needs_user = self._users is not None and not self._stamped
        if not (asked or needs_user):
            return self._socket.recv()
        frame = self._socket.recv(copy=False)
        if self._arrivals is not None and asked:
            self._arrivals.note(frame)
        if needs_user:
            try:
                self._user_id = str(frame.get("User-Id"))
            except zmq.ZMQError:
                self._user_id = ""  # It came by inproc.
        return frame.bytes

    def _add(self, batch: Batch, envelope: list[bytes], body: bytes | BadEnvelope) -> None:
        user = None if self._users is None else self._users.of(self._user_id)
        arrived, waited = self._stamp
        batch.add(envelope, body, arrived, waited, user, self._user_id)

    def _take_body(self) -> bytes | BadEnvelope:
        recv, option = self._socket.recv, self._socket.getsockopt
        if not option(zmq.RCVMORE):
            return NO_BODY
        try:
            body: bytes | BadEnvelope = recv()
        except MemoryError:
            body = NO_MEMORY
        if not option(zmq.RCVMORE):
            return body
        self._skip_rest()
        return TWO_BODIES

    def _skip_rest(self) -> None:
        """Receive and discard the remaining frames of a message."""
        while self._socket.getsockopt(zmq.RCVMORE):
            self._socket.recv(copy=False)


def _is_limited(user: User | None) -> TypeGuard[User]:
    """Return True if there is a limit for the replies that wait for a user."""
    return user is not None and user.max_in_flight_bytes > 0


def _owners(batch: Batch, place: int) -> Iterator[Owner]:
    """Yield those for whom a reply waits."""
    envelope, user = batch.envelope(place), batch.user(place)
    if envelope:
        yield envelope[0]
    if _is_limited(user):
        yield user.name


def _limit_rates(batch: Batch) -> None:
    """Refuse the requests of users who send too many."""
    for place in range(len(batch)):
        user = batch.user(place)
        if user is not None and user.meter is not None and batch.overload(place) is None:
            overload = user.meter.take()
            if overload is not None:
                batch.refuse(place, overload)


def _send(socket: zmq.Socket[bytes], envelope: Sequence[Any], last: bytes | zmq.Frame) -> int:
    """Send a message; return 0, or the error number if there is no receiver with capacity."""
    send = socket.send
    try:
        for frame in envelope:
            send(frame, zmq.SNDMORE | zmq.NOBLOCK)
        send(last, zmq.NOBLOCK)
    except zmq.ZMQError as error:
        if error.errno not in {zmq.EAGAIN, zmq.EHOSTUNREACH}:
            raise
        return error.errno
    return 0


def copied(frame: bytes) -> bytes | zmq.Frame:
    """Copy a large last frame before the frames in front of it are sent. Raises MemoryError.

    If memory ran out after those were sent, the next message would become part of this one.
    """
    if len(frame) <= COPIED:
        return frame
    return _frame(frame, copy=True)


def _tracked(frame: bytes) -> zmq.Frame:
    """Make a frame that tells when libzmq has given it back; see `copied`. Raises MemoryError."""
    return _frame(frame, copy=False, track=True)


def _frame(frame: bytes, **how: bool) -> zmq.Frame:
    try:
        return zmq.Frame(frame, **how)
    except zmq.ZMQError as error:
        raise MemoryError from error  # The only possible cause.


def _find_compiled() -> MakeFrames | None:
    """Return the C part, attached to pyzmq's libzmq; None if it is not built or does not fit.

    docs/tried.md compares it with `PythonFrames`. It needs the compiled batches.
    """
    if not compiled.COMPILED:
        return None
    try:
        from zkv.broker import _frames
    except ImportError:
        return None
    if not _attach(_frames.attach):
        _log.warning("the compiled mailbox does not find pyzmq's libzmq; using pure Python")
        return None

    def make(
        socket: zmq.Socket[bytes],
        waker: Waker,
        bounds: Bounds,
        behind: zmq.Socket[bytes] | None = None,
        stamped: bool = False,
        users: Users | None = None,
        arrivals: Arrivals | None = None,
        in_flight: _frames.InFlight | None = None,
    ) -> Frames:
        return _frames.Frames(
            socket=socket,
            waker=waker.fileno(),
            woken=waker.awake,
            batch_type=compiled.store.Batch,
            most=bounds.requests,
            most_bytes=bounds.size,
            no_delimiter=NO_DELIMITER,
            no_body=NO_BODY,
            two_bodies=TWO_BODIES,
            error=error,
            behind=behind,
            stamped=stamped,
            users=users,
            question=None if arrivals is None else arrivals.words,
            senders=None if arrivals is None else arrivals.senders,
            in_flight=in_flight,
        )

    return make


def new_in_flight(make: MakeFrames, limit: int) -> InFlight:
    """Return what counts the replies that wait, for the `Frames` that ``make`` makes.

    Args:
        make: `PythonFrames`, or the C part.
        limit: bytes that may wait for one connection.
    """
    if make is PythonFrames:
        return PythonInFlight(limit)
    from zkv.broker import _frames

    return _frames.InFlight(
        limit=limit, least=COUNTED, overload=OVERLOAD, user_overload=USER_OVERLOAD
    )


def _attach(attach: Callable[[str], tuple[int, int, int]]) -> bool:
    """Find libzmq through pyzmq's own extension module, whichever of its backends is in use."""
    wanted = zmq.zmq_version_info()
    if not (4, 1) <= wanted < (5,):
        return False  # The C part was written for another ABI.
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if name.startswith("zmq.") and path and not path.endswith(".py"):
            try:
                if attach(path) == wanted:
                    return True
            except ImportError:
                continue  # An extension module of pyzmq that does not use libzmq.
    return False


def error(number: int) -> zmq.ZMQError:
    """Return the exception that pyzmq raises for an error number of libzmq."""
    return zmq.ContextTerminated(number) if number == zmq.ETERM else zmq.ZMQError(number)


COMPILED: Final = _find_compiled()
FRAMES: Final[MakeFrames] = COMPILED or PythonFrames
