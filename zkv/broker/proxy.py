"""The proxy thread: ROUTER in front, DEALER behind, and libzmq's own loop in C between them.

Requests pass without a step of Python. Python comes in only at the end, to drain: what had arrived
is still handed to the workers, and every reply that they send before they say goodbye is passed on.

Both sockets are made, used and closed in this thread. Others reach it through the control socket.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket as posix
import stat
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final

import zmq

from zkv.broker.mailbox import GOODBYE, QUEUED_PER_WORKER
from zkv.errors import EndpointError

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger("zkv.broker")

REPLIES_PER_CLIENT: Final = 100_000
"""Replies that may wait for one client that does not read; further ones to it are dropped."""
LINGER_MS: Final = 5_000
"""How long the end waits for clients to take their last replies."""
HEARTBEAT_MS: Final = 10_000
"""A connection that stays silent this long is asked whether its peer lives."""

HANDED_OVER: Final = 10_000
"""Most messages given to the workers at the end: a client that never stops is not waited for."""
LIVENESS_MS: Final = 1_000
"""How often the end looks whether a worker that has not said goodbye is still there."""

INPROC: Final = "inproc://"
CONNECTING: Final = 4_096
"""Connections that may wait to be taken. With libzmq's 100, of 500 clients that came at once, as
after a restart, many waited a second for the system to try again."""

_Socket = zmq.Socket[bytes]


class Proxy:
    """Binds the endpoints and forwards between clients and workers.

    Args:
        context: the server's.
        endpoints: where clients connect.
        backend: inproc address where mailboxes connect.
        max_message_bytes: a larger frame ends the connection it came on.
        died: told, in the proxy's thread, when forwarding ends without having been asked to.
    """

    def __init__(
        self,
        context: zmq.Context[_Socket],
        endpoints: list[str],
        backend: str,
        max_message_bytes: int,
        died: Callable[[], None],
    ) -> None:
        self._context = context
        self._endpoints = endpoints
        self._backend = backend
        self._max_message_bytes = max_message_bytes
        self._died = died
        self._bound: Future[list[str]] = Future()
        self._emptied = threading.Event()
        self._goodbyes = 0
        self._workers_alive: Callable[[], bool] = lambda: False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="zkv-proxy")

    def start(self) -> list[str]:
        """Start the thread; the endpoints as bound, with real port numbers.

        Raises EndpointError.
        """
        self._thread.start()
        return self._bound.result()

    def drain(self, workers: int, alive: Callable[[], bool]) -> None:
        """Take no more requests; return once all that had arrived is with the workers.

        Args:
            workers: how many mailboxes will say goodbye.
            alive: whether any worker still runs: one that is killed by a bug may miss its goodbye.
        """
        self._goodbyes = workers
        self._workers_alive = alive
        self._stopping = True
        control = self._context.socket(zmq.PAIR)
        control.connect(self._control)
        control.send(b"TERMINATE")
        self._emptied.wait()
        control.close()

    def join(self) -> None:
        """Wait until every reply has been passed on and the sockets are closed."""
        self._thread.join()

    @property
    def _control(self) -> str:
        return f"{self._backend}-control"

    def _run(self) -> None:
        sockets: list[_Socket] = []
        try:
            frontend, backend, control = self._open(sockets)
            try:
                bound = [bind(frontend, endpoint) for endpoint in self._endpoints]
            except EndpointError as error:
                self._bound.set_exception(error)
                return
            self._bound.set_result(bound)
            zmq.proxy_steerable(frontend, backend, None, control)
            if not self._stopping:
                raise RuntimeError("the proxy ended without having been asked to")
            if self._goodbyes:
                self._hand_over(frontend, backend)
            self._emptied.set()
            self._pass_replies(frontend, backend)
        except Exception as error:
            _log.critical("the proxy died", exc_info=True)
            if not self._bound.done():
                self._bound.set_exception(error)
            self._died()
        finally:
            self._emptied.set()
            for socket in sockets:
                close(socket, self._endpoints)

    def _open(self, sockets: list[_Socket]) -> tuple[_Socket, _Socket, _Socket]:
        frontend, backend, control = (
            self._context.socket(kind) for kind in (zmq.ROUTER, zmq.DEALER, zmq.PAIR)
        )
        sockets += [frontend, backend, control]
        frontend.linger = LINGER_MS
        frontend.sndhwm = REPLIES_PER_CLIENT
        frontend.backlog = CONNECTING
        frontend.maxmsgsize = self._max_message_bytes
        frontend.heartbeat_ivl = HEARTBEAT_MS
        frontend.heartbeat_timeout = 3 * HEARTBEAT_MS
        frontend.tcp_keepalive = 1
        backend.linger = 0
        backend.rcvhwm = 0  # Bounded by the requests in the workers' hands.
        backend.sndhwm = QUEUED_PER_WORKER
        backend.bind(self._backend)
        control.bind(self._control)
        return frontend, backend, control

    def _hand_over(self, frontend: _Socket, backend: _Socket) -> None:
        """Give the workers what has arrived. What comes later is not read any more.

        The endpoints stay bound until the sockets close: libzmq's unbind would also cut the
        connections on which the last replies are to leave.
        """
        for _ in range(HANDED_OVER):
            if not int(frontend.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                return
            backend.send_multipart(frontend.recv_multipart())

    def _pass_replies(self, frontend: _Socket, backend: _Socket) -> None:
        while self._goodbyes:
            if not backend.poll(LIVENESS_MS):
                if self._workers_alive():
                    continue
                return
            frames = backend.recv_multipart()
            if frames == [b"", GOODBYE]:
                self._goodbyes -= 1
            else:
                frontend.send_multipart(frames)


def bind(socket: _Socket, endpoint: str) -> str:
    """Bind, and return the endpoint with its real port. Raises EndpointError."""
    try:
        _refuse_live_ipc(endpoint)
        socket.ipv6 = "[" in endpoint  # Else tcp://* would open IPv6, too, unasked.
        socket.bind(endpoint)
    except (zmq.ZMQError, OSError) as error:
        reason = os.strerror(error.errno) if error.errno == errno.EADDRINUSE else error.strerror
        raise EndpointError(f"{endpoint}: {reason or error}") from None
    return socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0")


def close(socket: _Socket, endpoints: list[str]) -> None:
    """Close, and have inproc names free at once: libzmq closes behind the caller's back."""
    for endpoint in endpoints:
        if endpoint.startswith(INPROC):
            with contextlib.suppress(zmq.ZMQError):  # It was not bound here.
                socket.unbind(endpoint)
    socket.close()


def _refuse_live_ipc(endpoint: str) -> None:
    """Raise OSError if an ipc path is taken: libzmq would remove whatever stands there."""
    path = endpoint.removeprefix("ipc://")
    if path in {endpoint, "*"} or not os.path.lexists(path):
        return
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        raise OSError(errno.EEXIST, "something that is no socket has this path")
    with posix.socket(posix.AF_UNIX, posix.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return  # Left over by a server that is gone.
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
