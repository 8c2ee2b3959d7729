"""A socket to a node, made and used before a deadline, that another thread may cut.

The thread that has a link connects, sends and receives. Each wait ends by a deadline, that for the
name of the host and that for TLS included. `Link.cut` alone is for other threads: it ends these
waits at once, and later ones.

Invariant: whoever closes or cuts the socket holds the link's lock. So no number of a descriptor is
used after another thread has closed it.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as WaitedTooLong
from typing import Final, TypeVar

CHUNK: Final = 65_536
"""Bytes that are received at once, at most."""
PROTOCOL: Final = "h2"
"""HTTP/2, as TLS names it (ALPN)."""
_PLACE: Final = re.compile(r" \(_ssl\.c:\d+\)$")

Result = TypeVar("Result")
_Address = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]


class LinkError(Exception):
    """There is no connection, or it is of no use any more."""

    is_unsent = False
    """True if nothing of the request has been sent."""


class TlsError(LinkError):
    """One of both sides does not accept the other."""


class Resolver:
    """Finds the addresses of a host. Any thread.

    Args:
        host: a name, or an address of IPv4 or IPv6.
        port: the port.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self._port = port
        self._lock = threading.Lock()
        self._asked: Future[list[_Address]] | None = None

    def addresses(self, deadline: float) -> list[_Address]:
        """Return each address with its family.

        Names are looked up in a thread of their own, one at a time: the system has its own limits.

        Raises:
            LinkError: there is none.
            TimeoutError: none was found before the deadline.
        """
        with contextlib.suppress(OSError):  # It is a name.
            return self._find(socket.AI_NUMERICHOST)
        with self._lock:
            if self._asked is None or self._asked.done():
                self._asked = in_thread(lambda: self._find(0), "etcd-name")
            asked = self._asked
        try:
            return asked.result(max(0.0, deadline - time.monotonic()))
        except WaitedTooLong:
            raise TimeoutError from None
        except (OSError, UnicodeError) as error:
            raise LinkError(f"the host is not found: {text_of(error)}") from None

    def _find(self, flags: int) -> list[_Address]:
        found = socket.getaddrinfo(self.host, self._port, type=socket.SOCK_STREAM, flags=flags)
        return [(family, address) for family, _, _, _, address in found]  # type: ignore[misc]


class Link:
    """A socket. One thread at a time uses it; any may call `cut`.

    Args:
        resolver: knows the host.
        tls: how connections are encrypted; None if they are not.
    """

    def __init__(self, resolver: Resolver, tls: ssl.SSLContext | None) -> None:
        self._resolver = resolver
        self._tls = tls
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._is_cut = False
        self.sent = 0
        """Bytes that the system has taken so far."""

    def connect(self, deadline: float) -> None:
        """Connect to the first address that answers.

        Raises:
            TlsError: one of both does not accept the other.
            LinkError: there is no such host, or nobody there.
            TimeoutError: it took too long.
        """
        addresses = self._resolver.addresses(deadline)
        for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            now = time.monotonic()
            try:
                self._connect(address, now + (deadline - now) / left)
            except (LinkError, TimeoutError):
                self.close()
                if left == 1:
                    raise
            else:
                break
        if self._tls is not None:
            self._encrypt(self._tls, deadline)

    def send(self, data: bytes | bytearray, deadline: float) -> None:
        """Send all of this.

        Raises:
            TimeoutError: it was not possible before the deadline.
            LinkError: the connection is broken.
        """
        with memoryview(data) as view:
            at = 0
            while at < len(view):
                used = self._within(deadline)
                try:
                    sent = used.send(view[at:] if at else view)
                except OSError as error:
                    raise _failure(error) from None
                self.sent += sent
                at += sent

    def receive(self, deadline: float) -> bytes:
        """Return what has come: a byte at least, and nothing at the end.

        Raises:
            TimeoutError: nothing came before the deadline.
            LinkError: the connection is broken.
        """
        used = self._within(deadline)
        try:
            return used.recv(CHUNK)
        except OSError as error:
            raise _failure(error) from None

    def receive_now(self) -> bytes | None:
        """Return what has come; None if nothing has, and nothing at the end. Raises LinkError."""
        used = self._used()
        used.settimeout(0.0)
        try:
            return used.recv(CHUNK)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        except OSError as error:
            raise _failure(error) from None

    def cut(self) -> None:
        """End the connection, and all that waits for it. Any thread."""
        with self._lock:
            self._is_cut = True
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    # That of a socket with TLS would have it go on unencrypted.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket, in the thread that uses it."""
        with self._lock:
            used, self._socket = self._socket, None
            if used is not None:
                used.close()

    def _connect(self, address: _Address, deadline: float) -> None:
        family, place = address
        try:
            self._use(socket.socket(family, socket.SOCK_STREAM))
            used = self._within(deadline)
            used.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            used.connect(place)
        except OSError as error:
            raise _failure(error) from None

    def _encrypt(self, tls: ssl.SSLContext, deadline: float) -> None:
        host = self._resolver.host
        try:
            wrapped = tls.wrap_socket(
                self._used(), server_hostname=host, do_handshake_on_connect=False
            )
            self._use(wrapped)
            self._within(deadline)
            wrapped.do_handshake()
        except (OSError, ValueError) as error:  # The name may be none for a certificate.
            raise _failure(error) from None
        if wrapped.selected_alpn_protocol() != PROTOCOL:
            raise LinkError("the node does not speak HTTP/2 over TLS")

    def _use(self, made: socket.socket) -> None:
        with self._lock:
            self._socket = made
            if self._is_cut:
                raise LinkError("the connection was cut")

    def _used(self) -> socket.socket:
        if self._socket is None:
            raise LinkError("the connection is closed")
        return self._socket

    def _within(self, deadline: float) -> socket.socket:
        """Return the socket, on which the next call ends by a deadline."""
        used = self._used()
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        used.settimeout(left)
        return used


def in_thread(call: Callable[[], Result], name: str) -> Future[Result]:
    """Begin a call in a thread of its own, which nobody waits for at the end."""
    answer: Future[Result] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return answer


def _failure(error: OSError | ValueError) -> Exception:
    if isinstance(error, TimeoutError):
        return error
    is_of_tls = isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError)
    return (TlsError if is_of_tls else LinkError)(text_of(error))


def text_of(error: Exception) -> str:
    """Return what an error of the system or of TLS says."""
    return _PLACE.sub("", getattr(error, "strerror", None) or str(error))
