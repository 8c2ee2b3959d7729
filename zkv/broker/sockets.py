"""Binding endpoints, and letting go of them.

A child made by fork lets go of them at once: it has the descriptors of whatever listens here, and
of each client's connection, but none of the threads that serve them. As long as it lived, nobody
else could listen there, and clients would never learn that the server has ended. A program that is
run by a child gets none of them to begin with: ZeroMQ has them closed then.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import select
import socket as posix
import stat
import threading
from typing import Final
from weakref import WeakKeyDictionary

import zmq

from zkv.errors import EndpointError

INPROC: Final = "inproc://"
LETTING_GO_SECONDS: Final = 1.0
"""How long a fork waits at most until the child has let go."""

_bound: WeakKeyDictionary[zmq.Socket[bytes], list[str]] = WeakKeyDictionary()
"""Sockets that are open, and the endpoints that they are bound to, with real ports."""

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
    bound = socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0")
    _bound.setdefault(socket, []).append(bound)
    return bound


def close(socket: zmq.Socket[bytes], endpoints: list[str]) -> None:
    """Close, and have inproc names free at once: libzmq closes behind the caller's back."""
    for endpoint in endpoints:
        if endpoint.startswith(INPROC):
            with contextlib.suppress(zmq.ZMQError):  # It was not bound here.
                socket.unbind(endpoint)
    socket.close()
    _bound.pop(socket, None)


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


def _let_go_in_child() -> None:
    """Close the descriptors of all that listens or has been accepted at a bound endpoint."""
    endpoints = [endpoint for bound in list(_bound.values()) for endpoint in bound]
    _bound.clear()
    if not endpoints:
        return
    with contextlib.suppress(OSError):  # Only without /proc.
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if any(_is_at(endpoint, _address(int(name))) for endpoint in endpoints):
                    os.close(int(name))


def _address(descriptor: int) -> object:
    """The local address of a socket. Raises OSError where that is none."""
    socket = posix.socket(fileno=descriptor)
    try:
        return socket.getsockname()
    finally:
        socket.detach()


def _is_at(endpoint: str, address: object) -> bool:
    """Whether ``address``, as the system tells it, belongs to ``endpoint``."""
    transport, _, place = endpoint.partition("://")
    if transport == "ipc":
        return address in {
            place,
            b"\0" + os.fsencode(place[1:]),
        }  # The latter is one without a file.
    if transport != "tcp" or not isinstance(address, tuple) or len(address) < 2:
        return False
    host, _, port = place.rpartition(":")
    listening, actual = _ip(host.strip("[]")), _ip(str(address[0]))
    return str(address[1]) == port and (listening.is_unspecified or listening == actual)


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(host.partition("%")[0])


class _Fork(threading.local):
    """Has the parent wait until the child has let go: it may be about to stop its server.

    The child's end of a pipe is closed then.
    """

    ends: tuple[int, int] | None = None

    def before(self) -> None:
        with contextlib.suppress(OSError):  # As where no more files can be opened.
            self.ends = os.pipe() if _bound else None

    def in_child(self) -> None:
        _let_go_in_child()
        self._close()

    def in_parent(self) -> None:
        if self.ends is not None:
            os.close(self.ends[1])
            poll = select.poll()
            poll.register(self.ends[0], select.POLLIN)
            poll.poll(LETTING_GO_SECONDS * 1000)
            os.close(self.ends[0])
            self.ends = None

    def _close(self) -> None:
        for end in self.ends or ():
            os.close(end)
        self.ends = None


_fork = _Fork()
os.register_at_fork(
    before=_fork.before, after_in_child=_fork.in_child, after_in_parent=_fork.in_parent
)
