"""Counts connections and failed handshakes, by the events that libzmq reports of the sockets.

A thread receives the events of all monitored sockets. It runs when a client connects or leaves,
when one sends something in its handshake, and up to 50 times a second while clients send: a silent
connection costs nothing. Connections by inproc have no events, and are not counted.

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

from zkv.broker.handshakes import HANDSHAKE_BYTES, HANDSHAKE_MS, HandshakeWatch
from zkv.broker.peers import Descriptors
from zkv.broker.refusals import (
    AUTH,
    CUTS,
    FILES,
    MESSAGE,
    OTHER,
    PROTOCOL,
    REASONS,
    SIZE,
    TIMEOUT,
    Refusal,
)
from zkv.broker.room import Room
from zkv.broker.unfinished import MessageWatch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zkv.broker.arrivals import Arrivals
    from zkv.broker.peers import Peer
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
_IN: Final = int(zmq.POLLIN)
_HEAD: Final = struct.Struct("=HI")
"""An event and its value."""

_TOO_MUCH: Final = Refusal(
    SIZE, f"was cut off, since the peer sent more than {HANDSHAKE_BYTES:,} bytes before its end"
)
_NO_ROOM: Final = Refusal(FILES, "came when too many files were open")
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
        cut: those that were cut off apart from that, by reason.
    """

    def __init__(self) -> None:
        self.opened = 0
        self.closed = 0
        self.failed = dict.fromkeys(REASONS, 0)
        self.cut = dict.fromkeys(CUTS, 0)

    @property
    def open(self) -> int:
        """Number of open connections."""
        return self.opened - self.closed


class _Connections:
    """The connections of one socket.

    Args:
        is_curve: True if those by tcp have CURVE.
        reordered: seconds by which a success may be reported before the connection.
        refusals: logs failed handshakes, and connections that are cut off.
        descriptors: copies descriptors.
        room: says how many connections there may be.
        messages: watches for messages without an end.
    """

    def __init__(
        self,
        is_curve: bool,
        reordered: float,
        refusals: RefusalLog,
        descriptors: Descriptors,
        room: Room,
        messages: MessageWatch,
    ) -> None:
        self._is_curve = is_curve
        self._reordered = reordered
        self._refusals = refusals
        self._peers: dict[int, Peer] = {}  # By descriptor.
        self._cut: set[int] = set()  # In their handshake.
        self._refused: set[int] = set()  # For lack of descriptors.
        self._ending: set[int] = set()  # Those that count as ended before their event.
        self._failures: list[Refusal] = []  # Those whose connections are about to end.
        self._succeeded_at = -reordered
        self.counter = ConnectionCounter()
        self.handshakes = HandshakeWatch(is_curve, descriptors)
        self.messages = messages
        self._descriptors = descriptors
        self._room = room
        why = "before it was taken" if messages.waiting else "of a message without its end"
        self._endless = Refusal(MESSAGE, f"sent more than {messages.most:,} bytes {why}")

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
        self._cut.update(filter(self.handshakes.cut, suspects))

    @property
    def watches(self) -> tuple[HandshakeWatch, MessageWatch]:
        """Both watches."""
        return self.handshakes, self.messages

    def look_at_messages(self) -> None:
        """Cut off those whose message has no end."""
        for descriptor in self.messages.look():
            self._note_cut(self._peers[descriptor].address, self._endless)

    def _note_cut(self, address: str, why: Refusal) -> None:
        self.counter.cut[why.reason] += 1
        self._refusals.note(address, why)

    def close(self) -> None:
        """Close the watches."""
        self.handshakes.close()
        self.messages.close()

    def _accepted(self, descriptor: int, endpoint: str) -> None:
        self.counter.opened += 1
        self._ending.discard(descriptor)
        peer = self._descriptors.find_peer(descriptor, endpoint)
        if peer is None:
            return
        self._peers[descriptor] = peer
        if not self._room.admits(descriptor, peer.is_tcp):
            if self._descriptors.cut_off(descriptor, peer):
                self._refused.add(descriptor)
                self._note_cut(peer.address, _NO_ROOM)
        elif peer.is_tcp:
            self._watch(descriptor, peer)

    def _watch(self, descriptor: int, peer: Peer) -> None:
        self.messages.add(descriptor, peer)
        if peer.accepted_at >= self._succeeded_at + self._reordered:
            self.handshakes.add(descriptor, peer)

    def _succeeded(self) -> None:
        if not self._is_curve:  # With CURVE the watch sees by itself which one it was.
            self.handshakes.remove_all()
            self._succeeded_at = time.monotonic()

    def _all_ended(self) -> None:
        """Count all as ended: the feed has closed its endpoint, to open it again.

        libzmq ends the connections, and reports only of those to which it still has to send.
        """
        self.counter.closed += len(self._peers)
        self._ending.update(self._peers)
        self._peers.clear()
        self._cut.clear()
        self._refused.clear()
        self.handshakes.remove_all()
        self.messages.remove_all()

    def _ended(self, descriptor: int) -> None:
        if descriptor in self._ending:
            self._ending.remove(descriptor)
            return
        self.counter.closed += 1
        self.handshakes.remove(descriptor)
        self.messages.remove(descriptor)
        peer = self._peers.pop(descriptor, None)
        failure = self._failures.pop() if self._failures else None
        if descriptor in self._refused:
            self._refused.remove(descriptor)
            failure = None  # It is counted already.
        elif descriptor in self._cut:
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
        self._descriptors = Descriptors()
        self._room = Room()
        self._sources: dict[zmq.Socket[bytes], _Connections] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="zkv-monitor")

    def watch(
        self, socket: zmq.Socket[bytes], most: int, waiting: bool, arrivals: Arrivals
    ) -> ConnectionCounter:
        """Watch the connections of ``socket``, which is not bound yet. In the socket's thread.

        Call this before `start`.

        Args:
            socket: the socket.
            most: bytes that one message may have, whatever is sent with it included.
            waiting: True if all messages of a connection that wait may have no more.
            arrivals: where the thread notes what it receives.
        """
        self._descriptors.open()
        source = self._context.socket(zmq.PAIR)
        source.linger = 0
        source.rcvhwm = 0  # A full queue would make the I/O thread wait.
        socket.monitor(address := f"inproc://zkv-monitor-{next(_numbers)}", _EVENTS)
        source.connect(address)
        reordered = _REORDERED_SECONDS if self._context.get(zmq.IO_THREADS) > 1 else 0.0
        messages = MessageWatch(most, waiting, arrivals, self._descriptors)
        connections = _Connections(
            self._is_curve, reordered, self._refusals, self._descriptors, self._room, messages
        )
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
            connections.close()
        self._descriptors.close()

    def _run(self) -> None:
        followed = dict(self._sources)
        poller = zmq.Poller()
        for source in followed:
            poller.register(source, zmq.POLLIN)
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
        for connections in followed.values():
            for watch in connections.watches:
                poller.register(watch, 0 if watch.seconds_left > 0 else zmq.POLLIN)
        poller.poll(self._timeout_ms(followed.values()))
        for source, connections in list(followed.items()):
            if not _follow(source, connections):
                for each in (source, *connections.watches):
                    poller.register(each, 0)
                del followed[source]
        self._refusals.tell()

    def _timeout_ms(self, followed: Iterable[_Connections]) -> int | None:
        """Return how long to wait for events and data; None: until there are any."""
        watches = [watch for each in followed for watch in each.watches]
        waits = [left for each in watches if (left := each.seconds_left) > 0]
        waits += [0.0 for each in watches if each.must_look and each.seconds_left <= 0]
        seconds = self._refusals.seconds_left()
        if seconds is not None:
            waits.append(seconds)
        return ceil(min(waits) * 1000) if waits else None


def _follow(source: zmq.Socket[bytes], connections: _Connections) -> bool:
    """Take the events of a socket, and watch its handshakes; return False after its last event."""
    if not _take_all(source, connections):
        return False
    if connections.handshakes.seconds_left <= 0:
        suspects = connections.handshakes.suspects()
        # Some of them may have done their handshake since: the events tell that.
        if suspects and not _take_all(source, connections):
            return False
        connections.cut(suspects)
    if connections.messages.seconds_left <= 0:
        connections.look_at_messages()
    return True


def _take_all(source: zmq.Socket[bytes], connections: _Connections) -> bool:
    """Take the events that wait; return False after the socket's last."""
    while int(source.getsockopt(zmq.EVENTS)) & _IN:
        head, endpoint = source.recv_multipart()
        event, value = _HEAD.unpack(head)
        if event == _STOPPED:
            return False
        connections.take(event, value, endpoint)
    return True
