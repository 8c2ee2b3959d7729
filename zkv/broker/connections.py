"""Counts connections, by the events that libzmq reports of the server's sockets.

A thread receives the events of all monitored sockets. It runs only when a client connects or
leaves: an open connection costs nothing. Connections by inproc have no events, and are not counted.
"""

from __future__ import annotations

import itertools
import logging
import threading
from typing import Final

import zmq
from zmq.utils.monitor import parse_monitor_message

_log = logging.getLogger("zkv.broker")

_numbers = itertools.count()

_OPENED: Final = zmq.Event.ACCEPTED
_CLOSED: Final = zmq.Event.DISCONNECTED
_STOPPED: Final = zmq.Event.MONITOR_STOPPED
_FAILED: Final = {
    zmq.Event.HANDSHAKE_FAILED_AUTH: "auth",
    zmq.Event.HANDSHAKE_FAILED_PROTOCOL: "protocol",
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL: "other",
}


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
        self.failed = dict.fromkeys(_FAILED.values(), 0)

    @property
    def open(self) -> int:
        """Number of open connections."""
        return self.opened - self.closed

    def take(self, event: int) -> None:
        """Count an event."""
        if event == _OPENED:
            self.opened += 1
        elif event == _CLOSED:
            self.closed += 1
        elif event in _FAILED:
            self.failed[_FAILED[zmq.Event(event)]] += 1


class Monitor:
    """The thread that receives the events.

    Args:
        context: the server's ZeroMQ context.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._context = context
        self._sources: dict[zmq.Socket[bytes], ConnectionCounter] = {}
        self._thread = threading.Thread(target=self._run, name="zkv-monitor")

    def watch(self, socket: zmq.Socket[bytes]) -> ConnectionCounter:
        """Count the connections of ``socket``, which is not bound yet. In the socket's thread.

        Call this before `start`.
        """
        events = _OPENED | _CLOSED | _STOPPED
        for event in _FAILED:
            events |= event
        source = self._context.socket(zmq.PAIR)
        source.linger = 0
        source.rcvhwm = 0  # A full queue would make the I/O thread wait.
        socket.monitor(address := f"inproc://zkv-monitor-{next(_numbers)}", events)
        source.connect(address)
        counter = self._sources[source] = ConnectionCounter()
        return counter

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread. The sockets must have been closed."""
        if self._thread.ident is not None:
            self._thread.join()
        for source in self._sources:
            source.close()

    def _run(self) -> None:
        poller = zmq.Poller()
        for source in self._sources:
            poller.register(source, zmq.POLLIN)
        try:
            while poller.sockets:
                for source, _ in poller.poll():
                    if not self._take(source):
                        poller.unregister(source)
        except Exception:  # A bug, or no memory: the counts stay as they are.
            _log.critical("connections are not counted any more", exc_info=True)

    def _take(self, source: zmq.Socket[bytes]) -> bool:
        """Count the events of a socket that wait; return False after its last."""
        while int(source.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            event = parse_monitor_message(source.recv_multipart())["event"]
            if event == _STOPPED:
                return False
            self._sources[source].take(event)
        return True
