"""Binding endpoints, and letting go of them."""

from __future__ import annotations

import contextlib
import errno
import os
import socket as posix
import stat
from typing import Final

import zmq

from zkv.errors import EndpointError

INPROC: Final = "inproc://"


def bind(socket: zmq.Socket[bytes], endpoint: str) -> str:
    """Bind, and return the endpoint with its real port. Raises EndpointError."""
    try:
        _refuse_live_ipc(endpoint)
        socket.ipv6 = "[" in endpoint  # Else tcp://* would open IPv6, too, unasked.
        socket.bind(endpoint)
    except (zmq.ZMQError, OSError) as error:
        reason = os.strerror(error.errno) if error.errno == errno.EADDRINUSE else error.strerror
        raise EndpointError(f"{endpoint}: {reason or error}") from None
    return socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0")


def close(socket: zmq.Socket[bytes], endpoints: list[str]) -> None:
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
