"""Binds and releases endpoints.

A child made by fork releases them at once. It inherits the listening sockets and the connections of
all clients, but not the threads that serve them. As long as it held them, nobody else could listen
there, and clients would not notice the server's end. Programs that a child executes do not inherit
them: ZeroMQ marks its sockets as close-on-exec.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import select
import socket as posix
import stat
import struct
import threading
from collections.abc import Iterable, Iterator
from typing import Final
from weakref import WeakKeyDictionary

import zmq

from zkv.errors import EndpointError

INPROC: Final = "inproc://"
_DESCRIPTORS: Final = "/proc/self/fd"
_RESET: Final = struct.pack("=2i", 1, 0)  # The system's `struct linger`.
CHILD_CLOSE_SECONDS: Final = 1.0
"""How long a fork waits at most for the child to close the sockets."""

_bound: WeakKeyDictionary[zmq.Socket[bytes], list[str]] = WeakKeyDictionary()
"""Open sockets, and the endpoints that they are bound to, with real port numbers."""

ADVICE: Final = {
    "server.endpoints": "; a second server needs its own --endpoint and --data-dir",
    "server.feed": "; choose another endpoint for the change feed with --feed, or none with ''",
}
"""Advice if an endpoint is in use, by the setting that names it."""


def bind(socket: zmq.Socket[bytes], endpoint: str, setting: str) -> str:
    """Bind a socket, and return the endpoint with its real port number.

    Args:
        socket: the socket.
        endpoint: the endpoint.
        setting: the setting that names it: ``server.endpoints`` or ``server.feed``.

    Raises:
        EndpointError: it cannot be bound; names the setting, and says what to do.
    """
    try:
        _refuse_live_ipc(endpoint)
        socket.ipv6 = "[" in endpoint  # Otherwise tcp://* would also bind IPv6.
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        raise refusal(endpoint, setting, error) from None
    except OSError as error:
        raise _refusal(endpoint, setting, error.strerror, error.errno) from None
    bound = socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0")
    _bound.setdefault(socket, []).append(bound)
    return bound


def cut_off(connection: posix.socket) -> None:
    """End a connection of libzmq, which notices it as if the peer had left. Raises OSError.

    When libzmq then closes it, it is reset: else a peer whose data is still on its way would learn
    of it only after minutes.
    """
    connection.setsockopt(posix.SOL_SOCKET, posix.SO_LINGER, _RESET)
    connection.shutdown(posix.SHUT_RDWR)


def connections_at(
    endpoint: str, descriptors: Iterable[int] | None = None
) -> Iterator[posix.socket]:
    """Yield a copy of each connection that was accepted at an endpoint by tcp or ipc.

    A copy stays the same even if libzmq closes the original. It is closed after its turn. There may
    be none if the process has no descriptors left.

    Args:
        endpoint: the endpoint, as bound.
        descriptors: those among which to look; None = all of the process.
    """
    if descriptors is None:
        descriptors = []
        with contextlib.suppress(OSError):
            descriptors = map(int, os.listdir(_DESCRIPTORS))
    for descriptor in descriptors:
        if is_connection_at(descriptor, endpoint):
            with contextlib.suppress(OSError), _copy(descriptor) as copy:
                if is_connection_at(copy.fileno(), endpoint):
                    yield copy


def is_connection_at(descriptor: int, endpoint: str) -> bool:
    """Return True if a descriptor is that of a connection accepted at an endpoint, as bound."""
    try:
        socket = posix.socket(fileno=descriptor)
    except OSError:
        return False
    try:
        socket.getpeername()  # One that listens has no peer.
        return _is_at(endpoint, socket.getsockname())
    except (OSError, ValueError):  # It has ended, or is of another family.
        return False
    finally:
        socket.detach()


def _copy(descriptor: int) -> posix.socket:
    """Copy a socket. Raises OSError."""
    copied = os.dup(descriptor)
    try:
        return posix.socket(fileno=copied)
    except OSError:
        os.close(copied)
        raise


def close(socket: zmq.Socket[bytes], endpoints: list[str]) -> None:
    """Close a socket. Its inproc names are free at once: libzmq closes in the background."""
    for endpoint in endpoints:
        if endpoint.startswith(INPROC):
            with contextlib.suppress(zmq.ZMQError):  # It was never bound.
                socket.unbind(endpoint)
    if not socket.closed:
        socket.disable_monitor()  # Else its last event would come only after it has lingered.
    socket.close()
    _bound.pop(socket, None)


def refusal(endpoint: str, setting: str, error: zmq.ZMQError | OSError) -> EndpointError:
    """Return the error that explains why an endpoint cannot be bound."""
    reason = _reason(endpoint, error.errno or 0) or error.strerror
    return _refusal(endpoint, setting, reason, error.errno)


def _refusal(endpoint: str, setting: str, reason: object, number: int | None) -> EndpointError:
    advice = ADVICE[setting] if number == errno.EADDRINUSE else ""
    return EndpointError(f"{setting}: {endpoint}: {reason}{advice}")


def _reason(endpoint: str, number: int) -> str:
    """Explain why an endpoint cannot be bound; empty if the system's text suffices."""
    reason = ""
    match number:
        case errno.EADDRINUSE:
            reason = os.strerror(number)  # ZeroMQ has another text for inproc.
            if _is_left_over(endpoint):
                reason += ", by a file that this user may not replace"
        case errno.EACCES | errno.EPERM:
            reason = f"{os.strerror(number)}: "
            if endpoint.startswith("tcp://"):
                reason += "ports below 1024 usually need root"
            else:
                reason += "the directory must be writable"
        case errno.EADDRNOTAVAIL:
            reason = "this machine does not have this address"
        case errno.ENODEV:
            reason = "the host is neither an address nor a network interface of this machine; "
            reason += "host names are not resolved here"
        case errno.ENOENT | errno.ENOTDIR:
            reason = "there is no such directory"
    return reason


def _is_left_over(endpoint: str) -> bool:
    """Return True if a file has the path; a running server there has been detected before."""
    path = endpoint.removeprefix("ipc://")
    return path != endpoint and os.path.lexists(path)


def _refuse_live_ipc(endpoint: str) -> None:
    """Raise OSError if an ipc path is in use: libzmq would remove the file."""
    path = endpoint.removeprefix("ipc://")
    if path in {endpoint, "*"} or not os.path.lexists(path):
        return
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        raise OSError(errno.EEXIST, "a file that is not a socket has this path")
    with posix.socket(posix.AF_UNIX, posix.SOCK_STREAM) as probe:
        probe.setblocking(False)  # Do not wait for a server that hangs.
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return  # A socket file that a dead server has left behind.
        except BlockingIOError:
            pass
        raise OSError(errno.EADDRINUSE, f"{os.strerror(errno.EADDRINUSE)}, by a running server")


def _close_in_child() -> None:
    """Close all sockets that listen, or were accepted, at a bound endpoint."""
    endpoints = [endpoint for bound in list(_bound.values()) for endpoint in bound]
    _bound.clear()
    if not endpoints:
        return
    with contextlib.suppress(OSError):  # There is no /proc.
        for name in os.listdir(_DESCRIPTORS):
            with contextlib.suppress(OSError):
                if any(_is_at(endpoint, _address(int(name))) for endpoint in endpoints):
                    os.close(int(name))


def _address(descriptor: int) -> object:
    """Return the local address of a socket. Raises OSError if it is not a socket."""
    socket = posix.socket(fileno=descriptor)
    try:
        return socket.getsockname()
    finally:
        socket.detach()


def _is_at(endpoint: str, address: object) -> bool:
    """Return True if ``address``, as the system returns it, belongs to ``endpoint``."""
    transport, _, place = endpoint.partition("://")
    if transport == "ipc":
        # The second form is an abstract address, which has no file.
        return address in {place, b"\0" + os.fsencode(place[1:])}
    if transport != "tcp" or not isinstance(address, tuple) or len(address) < 2:
        return False
    host, _, port = place.rpartition(":")
    listening, actual = _ip(host.strip("[]")), _ip(str(address[0]))
    return str(address[1]) == port and (listening.is_unspecified or listening == actual)


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(host.partition("%")[0])


class _Fork(threading.local):
    """Makes the parent wait until the child has closed the sockets, since it may stop its server.

    The child closes its end of a pipe when it is done.
    """

    ends: tuple[int, int] | None = None

    def before(self) -> None:
        with contextlib.suppress(OSError):  # For instance, too many open files.
            self.ends = os.pipe() if _bound else None

    def in_child(self) -> None:
        _close_in_child()
        self._close()

    def in_parent(self) -> None:
        if self.ends is not None:
            os.close(self.ends[1])
            poll = select.poll()
            poll.register(self.ends[0], select.POLLIN)
            poll.poll(CHILD_CLOSE_SECONDS * 1000)
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
