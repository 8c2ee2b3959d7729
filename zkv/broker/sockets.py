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

ADVICE: Final = {
    "server.endpoints": "; a second server takes --endpoint and --data-dir of its own",
    "server.feed": "; the change feed wants it: --feed gives it another place, or none with ''",
}
"""For an endpoint that is taken, by the setting that names it."""


def bind(socket: zmq.Socket[bytes], endpoint: str, setting: str) -> str:
    """Bind, and return the endpoint with its real port.

    Args:
        socket: to bind.
        endpoint: where.
        setting: that names the endpoint: ``server.endpoints`` or ``server.feed``.

    Raises:
        EndpointError: it cannot be bound; with the setting and what to do.
    """
    try:
        _refuse_live_ipc(endpoint)
        socket.ipv6 = "[" in endpoint  # Else tcp://* would open IPv6, too, unasked.
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        reason = _reason(endpoint, error.errno or 0) or error.strerror
        raise _refusal(endpoint, setting, reason, error.errno) from None
    except OSError as error:
        raise _refusal(endpoint, setting, error.strerror, error.errno) from None
    return socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0")


def close(socket: zmq.Socket[bytes], endpoints: list[str]) -> None:
    """Close, and have inproc names free at once: libzmq closes behind the caller's back."""
    for endpoint in endpoints:
        if endpoint.startswith(INPROC):
            with contextlib.suppress(zmq.ZMQError):  # It was not bound here.
                socket.unbind(endpoint)
    socket.close()


def _refusal(endpoint: str, setting: str, reason: object, number: int | None) -> EndpointError:
    advice = ADVICE[setting] if number == errno.EADDRINUSE else ""
    return EndpointError(f"{setting}: {endpoint}: {reason}{advice}")


def _reason(endpoint: str, number: int) -> str:
    """Why it cannot be bound, where there is more to say than the system's words."""
    reason = ""
    match number:
        case errno.EADDRINUSE:
            reason = os.strerror(number)  # ZeroMQ's text for inproc is another.
            if _is_left_over(endpoint):
                reason += ", by a file that this user may not replace"
        case errno.EACCES | errno.EPERM:
            reason = f"{os.strerror(number)}: "
            if endpoint.startswith("tcp://"):
                reason += "low ports, mostly those below 1024, are for root"
            else:
                reason += "the directory must be writable"
        case errno.EADDRNOTAVAIL:
            reason = "this machine does not have this address"
        case errno.ENODEV:
            reason = "the host is neither an address nor a network interface of this machine; "
            reason += "a server looks up no other names"
        case errno.ENOENT | errno.ENOTDIR:
            reason = "there is no such directory"
    return reason


def _is_left_over(endpoint: str) -> bool:
    """Whether a path is in the way: a server that runs there has been told from it before."""
    path = endpoint.removeprefix("ipc://")
    return path != endpoint and os.path.lexists(path)


def _refuse_live_ipc(endpoint: str) -> None:
    """Raise if an ipc path is taken: libzmq would remove whatever stands there."""
    path = endpoint.removeprefix("ipc://")
    if path in {endpoint, "*"} or not os.path.lexists(path):
        return
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        raise OSError(errno.EEXIST, "something that is no socket has this path")
    with posix.socket(posix.AF_UNIX, posix.SOCK_STREAM) as probe:
        probe.setblocking(False)  # It would wait at a server that hangs.
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return  # Left over by a server that is gone.
        except BlockingIOError:
            pass
        raise OSError(errno.EADDRINUSE, f"{os.strerror(errno.EADDRINUSE)}, by a server that runs")
