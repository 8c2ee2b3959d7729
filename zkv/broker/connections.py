"""Counts connections and failed handshakes, by the events that libzmq reports of the sockets.

A thread receives the events of all monitored sockets. It runs when a client connects or leaves, and
when one sends something in its handshake: an open connection costs nothing. Connections by inproc
have no events, and are not counted.

The events of a handshake do not tell whose it was. A failure precedes the end of its connection,
whose event does, so that one's address is logged. With several I/O threads events of others may
come in between: then a line may show an address that failed at the same moment for another reason.
"""

from __future__ import annotations

import errno
import itertools
import logging
import struct
import threading
import time
from math import ceil
from typing import TYPE_CHECKING, Final

import zmq

from zkv.broker.handshakes import HANDSHAKE_BYTES, HANDSHAKE_MS, PAUSE_SECONDS, HandshakeWatch
from zkv.broker.refusals import AUTH, OTHER, PROTOCOL, REASONS, SIZE, TIMEOUT, Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zkv.broker.handshakes import Peer
    from zkv.broker.refusals import RefusalLog

_log = logging.getLogger("zkv.broker")

_numbers = itertools.count()

# As ints, which are compared in a tenth of the time.
_ACCEPTED: Final = int(zmq.Event.ACCEPTED)
_ENDED: Final = int(zmq.Event.DISCONNECTED)
_NOT_LISTENING: Final = int(zmq.Event.CLOSED)
_STOPPED: Final = int(zmq.Event.MONITOR_STOPPED)
_SUCCEEDED: Final = int(zmq.Event.HANDSHAKE_SUCCEEDED)
_FAILED_AUTH: Final = int(zmq.Event.HANDSHAKE_FAILED_AUTH)
_FAILED_PROTOCOL: Final = int(zmq.Event.HANDSHAKE_FAILED_PROTOCOL)
_FAILED: Final = int(zmq.Event.HANDSHAKE_FAILED_NO_DETAIL)
_EVENTS: Final = (
    _ACCEPTED
    | _ENDED
    | _NOT_LISTENING
    | _STOPPED
    | _SUCCEEDED
    | _FAILED_AUTH
    | _FAILED_PROTOCOL
    | _FAILED
)
_HEAD: Final = struct.Struct("=HI")
"""An event and its value."""

_TOO_MUCH: Final = Refusal(
    SIZE, f"was cut off, since the peer sent more than {HANDSHAKE_BYTES:,} bytes before its end"
)
_TOO_SLOW: Final = Refusal(TIMEOUT, f"was not done within {HANDSHAKE_MS / 1000:g} s")
_LEFT: Final = Refusal(OTHER, "was not done when the peer left", logging.INFO)
_FAULTS: Final = {
    int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH): Refusal(
        PROTOCOL, "asked for another mechanism: either the peer or the server has no CURVE"
    ),
    int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC): Refusal(
        PROTOCOL, "could not be decrypted: the peer may have a wrong key of this server"
    ),
}
_FAULT: Final = Refusal(PROTOCOL, "broke ZeroMQ's protocol")

ERROR_PAUSE_SECONDS: Final = 1.0
"""Time after an unexpected error, so that the log is not filled."""
_UNKNOWN: Final = "an unknown address"
"""Of a connection that had ended before the thread saw that it was accepted."""
_LATE_SECONDS: Final = 0.8 * HANDSHAKE_MS / 1000
"""Age at which a peer that leaves was hardly still in its handshake."""
_REORDERED_SECONDS: Final = 0.1
"""Time by which several I/O threads may report a success before the connection."""


class ConnectionCounter:
    """Counts the connections of one socket. `Monitor` makes it.

    Attributes:
        opened: connections that were accepted.
        closed: of these, those that have ended.
        failed: of these, those that ended in the handshake, by reason.
    """

    def __init__(self) -> None:
        self.opened = 0
        self.closed = 0
        self.failed = dict.fromkeys(REASONS, 0)

    @property
    def open(self) -> int:
        """Number of open connections."""
        return self.opened - self.closed


class _Connections:
    """The connections of one socket.

    Args:
        is_curve: True if those by tcp have CURVE.
        reordered: seconds by which a success may be reported before the connection.
        refusals: logs failed handshakes.
    """

    def __init__(self, is_curve: bool, reordered: float, refusals: RefusalLog) -> None:
        self._is_curve = is_curve
        self._reordered = reordered
        self._refusals = refusals
        self._peers: dict[int, Peer] = {}  # By descriptor.
        self._cut: set[int] = set()
        self._ending: set[int] = set()  # Those that count as ended before their event.
        self._failures: list[Refusal] = []  # Those whose connections are about to end.
        self._succeeded_at = -reordered
        self.counter = ConnectionCounter()
        self.watch = HandshakeWatch(is_curve)

    def take(self, event: int, value: int, endpoint: bytes) -> None:
        """Take an event, with the value and the endpoint that libzmq gives it."""
        if event == _ACCEPTED:
            self._accepted(value, endpoint.decode())
        elif event == _ENDED:
            self._ended(value)
        elif event == _SUCCEEDED:
            self._succeeded()
        elif event == _FAILED_PROTOCOL:
            self._failures.append(_FAULTS.get(value, _FAULT))
        elif event == _FAILED:
            # When time is up, libzmq leaves errno as it is after a read that found nothing.
            self._failures.append(_TOO_SLOW if value == errno.EAGAIN else _LEFT)
        elif event == _NOT_LISTENING:
            self._all_ended()
        elif event == _FAILED_AUTH:
            self.counter.failed[AUTH] += 1  # The guard has logged it: see `zkv.broker.doors`.

    def cut(self, suspects: list[int]) -> None:
        """Cut off those of the watch's suspects that are still in their handshake."""
        self._cut.update(filter(self.watch.cut, suspects))

    def _accepted(self, descriptor: int, endpoint: str) -> None:
        self.counter.opened += 1
        self._ending.discard(descriptor)
        peer = self.watch.find_peer(descriptor, endpoint)
        if peer is None:
            return
        self._peers[descriptor] = peer
        if peer.is_tcp and peer.accepted_at >= self._succeeded_at + self._reordered:
            self.watch.add(descriptor, peer)

    def _succeeded(self) -> None:
        if not self._is_curve:  # With CURVE the watch sees by itself which one it was.
            self.watch.remove_all()
            self._succeeded_at = time.monotonic()

    def _all_ended(self) -> None:
        """Count all as ended: the feed has closed its endpoint, to open it again.

        libzmq ends the connections, and reports only of those to which it still has to send.
        """
        self.counter.closed += len(self._peers)
        self._ending.update(self._peers)
        self._peers.clear()
        self._cut.clear()
        self.watch.remove_all()

    def _ended(self, descriptor: int) -> None:
        if descriptor in self._ending:
            self._ending.remove(descriptor)
            return
        self.counter.closed += 1
        self.watch.remove(descriptor)
        peer = self._peers.pop(descriptor, None)
        failure = self._failures.pop() if self._failures else None
        if descriptor in self._cut:
            self._cut.remove(descriptor)
            failure = _TOO_MUCH
        elif failure is _LEFT and peer is not None and peer.age > _LATE_SECONDS:
            failure = None  # The peer has ZMTP 2, whose connections libzmq always ends like this.
        if failure is not None:
            self.counter.failed[failure.reason] += 1
            self._refusals.note(_UNKNOWN if peer is None else peer.address, failure)


class Monitor:
    """The thread that receives the events.

    Args:
        context: the server's ZeroMQ context.
        is_curve: True if connections by tcp have CURVE.
        refusals: logs failed handshakes.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], is_curve: bool, refusals: RefusalLog
    ) -> None:
        self._context = context
        self._is_curve = is_curve
        self._refusals = refusals
        self._sources: dict[zmq.Socket[bytes], _Connections] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="zkv-monitor")

    def watch(self, socket: zmq.Socket[bytes]) -> ConnectionCounter:
        """Count the connections of ``socket``, which is not bound yet. In the socket's thread.

        Call this before `start`.
        """
        source = self._context.socket(zmq.PAIR)
        source.linger = 0
        source.rcvhwm = 0  # A full queue would make the I/O thread wait.
        socket.monitor(address := f"inproc://zkv-monitor-{next(_numbers)}", _EVENTS)
        source.connect(address)
        reordered = _REORDERED_SECONDS if self._context.get(zmq.IO_THREADS) > 1 else 0.0
        connections = _Connections(self._is_curve, reordered, self._refusals)
        self._sources[source] = connections
        return connections.counter

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread. The sockets must have been closed."""
        self._closing = True
        if self._thread.ident is not None:
            self._thread.join()
        for source, connections in self._sources.items():
            source.close()
            connections.watch.close()

    def _run(self) -> None:
        followed = dict(self._sources)
        poller = zmq.Poller()
        for source, connections in followed.items():
            poller.register(source, zmq.POLLIN)
            poller.register(connections.watch, zmq.POLLIN)
        while followed:
            try:
                self._turn(followed, poller)
            except Exception:  # A bug, or no memory. The next connection may be all right.
                _log.critical("some connections may not be counted, or not watched", exc_info=True)
                if self._closing:
                    return
                time.sleep(ERROR_PAUSE_SECONDS)

    def _turn(self, followed: dict[zmq.Socket[bytes], _Connections], poller: zmq.Poller) -> None:
        """Wait for events and data, and take them; forget the sockets that are closed."""
        poller.poll(self._timeout_ms(followed.values()))
        for source, connections in list(followed.items()):
            if not _follow(source, connections):
                poller.unregister(source)
                poller.unregister(connections.watch)
                del followed[source]
        self._refusals.tell()
        if any(each.watch for each in followed.values()):
            time.sleep(PAUSE_SECONDS)

    def _timeout_ms(self, followed: Iterable[_Connections]) -> int | None:
        """Return how long to wait for events and data; None: until there are any."""
        if any(each.watch.must_look for each in followed):
            return 0
        seconds = self._refusals.seconds_left()
        return None if seconds is None else ceil(seconds * 1000)


def _follow(source: zmq.Socket[bytes], connections: _Connections) -> bool:
    """Take the events of a socket, and watch its handshakes; return False after its last event."""
    if not _take_all(source, connections):
        return False
    suspects = connections.watch.suspects()
    # Some of them may have done their handshake since: the events tell that.
    if suspects and not _take_all(source, connections):
        return False
    connections.cut(suspects)
    return True


def _take_all(source: zmq.Socket[bytes], connections: _Connections) -> bool:
    """Take the events that wait; return False after the socket's last."""
    while int(source.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
        head, endpoint = source.recv_multipart()
        event, value = _HEAD.unpack(head)
        if event == _STOPPED:
            return False
        connections.take(event, value, endpoint)
    return True
