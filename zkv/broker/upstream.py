"""The connection to a primary: one request at a time, to whichever of its endpoints answers.

One thread asks; another may interrupt it. If no reply comes in time, or the server asked says that
it is not the one to ask, the asker may go on to the next place: an endpoint, with one of the keys
that the servers may have. Until then all requests go to the same one. A late reply is never taken
for that to a later request: each socket is closed after a failure.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any, Final

import msgpack
import zmq

from zkv.broker.waker import Waker
from zkv.keys import read_key_file
from zkv.replication.stream import StreamError, StreamTimeoutError

if TYPE_CHECKING:
    from collections.abc import Sequence

HEARTBEAT_MS: Final = 2_000
"""Time between two signs of life to the primary, which cuts off who gives none."""
NO_TIMEOUT: Final = 0
"""The connection is not cut where no sign of life comes back: libzmq counts whole messages only,
and one may take long on a slow link. Whoever asks knows how long to wait."""
MOST_BYTES: Final = 64 * 1024 * 1024
"""Bytes of the largest reply."""


class Upstream:
    """Asks a primary.

    Args:
        endpoints: where it, or those that may take its place, listen.
        server_keys: their public keys; empty = they have no CURVE.
        key_file: the file with the own secret key; "" = made at random.

    Raises:
        ConfigError: the key file cannot be read.
    """

    def __init__(
        self, endpoints: Sequence[str], server_keys: Sequence[str] = (), key_file: str = ""
    ) -> None:
        self._pair = read_key_file(key_file) if key_file else None
        self._places = [
            (endpoint, key)
            for endpoint in endpoints
            for key in (server_keys if server_keys and endpoint.startswith("tcp://") else [""])
        ]
        self._turn = itertools.cycle(self._places)
        self._endpoint, self._server_key = next(self._turn)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._waker = Waker()
        self._interrupted = False
        self.patient = False
        """True if requests wait on although somebody calls `hurry`. Of the thread that asks."""

    @property
    def places(self) -> int:
        """The number of places to ask."""
        return len(self._places)

    @property
    def endpoint(self) -> str:
        """The endpoint that is asked."""
        return self._endpoint

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Return the reply to a request, a success or a failure.

        Raises StreamTimeoutError if none comes in time, StreamError after `interrupt` or `hurry`.
        """
        if self._interrupted:
            raise StreamError("interrupted")
        socket = self._socket or self._connect()
        socket.send(msgpack.packb(request))
        try:
            self._await(socket, seconds)
        except StreamError:
            self._disconnect()
            raise
        try:
            reply = msgpack.unpackb(socket.recv(), strict_map_key=False)
        except (ValueError, msgpack.UnpackException):
            reply = None
        if not isinstance(reply, dict):
            self._disconnect()
            raise StreamError(f"{self._endpoint}: what answers there is no zkv server")
        return reply

    def go_on(self) -> None:
        """Ask at the next place from now on."""
        self._disconnect()
        self._endpoint, self._server_key = next(self._turn)

    def hurry(self) -> None:
        """Have a request that waits fail, if the asker is not `patient`. Any thread."""
        self._waker.wake()

    def interrupt(self) -> None:
        """Have a request that waits fail, and all later ones. Any thread."""
        self._interrupted = True
        self._waker.wake()

    def close(self) -> None:
        """Close the connection. Call it in the thread that asks, or after its end."""
        self._disconnect()
        self._context.term()
        self._waker.close()

    def _await(self, socket: zmq.Socket[bytes], seconds: float) -> None:
        """Return once there is a reply. Raises StreamTimeoutError, StreamError."""
        end = time.monotonic() + seconds
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(self._waker, zmq.POLLIN)
        while True:
            events = dict(poller.poll(max(0, round((end - time.monotonic()) * 1000))))
            if socket in events:
                return
            if not events:
                raise StreamTimeoutError(f"{self._endpoint}: no reply within {seconds:.3g} s")
            self._waker.clear()
            if self._interrupted or not self.patient:
                raise StreamError("interrupted")

    def _connect(self) -> zmq.Socket[bytes]:
        key = self._server_key
        self._socket = socket = self._context.socket(zmq.REQ)
        socket.linger = 0
        socket.maxmsgsize = MOST_BYTES
        socket.heartbeat_ivl = HEARTBEAT_MS
        socket.heartbeat_timeout = NO_TIMEOUT
        socket.tcp_keepalive = 1
        if key:
            public, secret = self._own_pair()
            socket.curve_serverkey = key.encode()
            socket.curve_publickey, socket.curve_secretkey = public, secret
        if "[" in self._endpoint:
            socket.ipv6 = True
        socket.connect(self._endpoint)
        return socket

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close(0)
            self._socket = None

    def _own_pair(self) -> tuple[bytes, bytes]:
        if self._pair is None:
            return zmq.curve_keypair()
        return self._pair.public.encode(), self._pair.secret.encode()
