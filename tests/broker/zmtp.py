"""ZeroMQ's wire protocol by hand, for peers that do what libzmq would not."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, Self

from tests.support import LIMIT, Message, pack, unpack

SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
GREETING_BYTES = 64
MORE, LONG, COMMAND = 1, 2, 4


def greeting(mechanism: bytes = b"NULL", as_server: bool = False) -> bytes:
    """The greeting of version 3.0."""
    return SIGNATURE + b"\x03\x00" + mechanism.ljust(20, b"\0") + bytes([as_server]) + bytes(31)


def frame(content: bytes, flags: int = 0) -> bytes:
    """A frame, in the shorter form if it has one."""
    if len(content) < 256:
        return bytes([flags, len(content)]) + content
    return bytes([flags | LONG]) + struct.pack(">Q", len(content)) + content


def command(name: bytes, content: bytes = b"") -> bytes:
    """A command."""
    return frame(bytes([len(name)]) + name + content, COMMAND)


def properties(*pairs: tuple[bytes, bytes]) -> bytes:
    """Metadata."""
    return b"".join(
        bytes([len(name)]) + name + struct.pack(">I", len(value)) + value for name, value in pairs
    )


def ready(kind: bytes = b"DEALER", *more: tuple[bytes, bytes]) -> bytes:
    """The READY of a socket of a kind, with further properties."""
    return command(b"READY", properties((b"Socket-Type", kind), *more))


def request(**fields: Any) -> bytes:
    """A request, as a DEALER sends it."""
    return frame(b"", MORE) + frame(pack(fields))


def begun(name: bytes, size: int) -> bytes:
    """The beginning of a command that claims to have ``size`` bytes."""
    head = bytes([len(name)]) + name
    return bytes([COMMAND | LONG]) + struct.pack(">Q", size) + head


class Wire:
    """A connection to a server, which says nothing by itself. Use as a context manager."""

    def __init__(self, endpoint: str) -> None:
        transport, _, place = endpoint.partition("://")
        if transport == "ipc":
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(LIMIT)
            self.socket.connect(place)
        else:
            host, _, port = place.rpartition(":")
            self.socket = socket.create_connection((host, int(port)), timeout=LIMIT)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send; the server may have hung up."""
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(data)

    def receive(self, size: int) -> bytes:
        """Exactly so many bytes. Raises ConnectionError where the server hangs up before."""
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                raise ConnectionResetError(f"the server has hung up after {data!r}")
            data += more
        return data

    def greet(self, mechanism: bytes = b"NULL") -> None:
        """Exchange greetings; libzmq hangs up on whoever goes on before."""
        self.socket.sendall(greeting(mechanism))
        assert self.receive(GREETING_BYTES).startswith(b"\xff")

    def introduce(self, kind: bytes = b"DEALER", *more: tuple[bytes, bytes]) -> Self:
        """Complete a handshake of NULL."""
        self.greet()
        self.socket.sendall(ready(kind, *more))
        assert self.next_frame()[1].startswith(b"\x05READY")
        return self

    def next_frame(self) -> tuple[int, bytes]:
        """Flags and content of the next frame."""
        flags, size = self.receive(2)
        if flags & LONG:
            (size,) = struct.unpack(">Q", bytes([size]) + self.receive(7))
        return flags, self.receive(size)

    def reply(self) -> Message:
        """The next reply."""
        while True:
            flags, content = self.next_frame()
            if content and not flags & COMMAND:
                message: Message = unpack(content)
                return message

    def call(self, **fields: Any) -> Message:
        """Send a request, and return its reply."""
        self.socket.sendall(request(**fields))
        return self.reply()

    def has_sent(self) -> bool:
        """Whether the server has sent something that is not received yet."""
        return bool(select.select([self.socket], [], [], 0)[0])

    def wait_for_end(self) -> bytes:
        """What the server still sends before it hangs up. Fails where it does not."""
        data = b""
        with contextlib.suppress(ConnectionError):
            while more := self.socket.recv(65_536):
                data += more
        return data


class Proxy:
    """Passes on what a client and a server send each other, as far as it is told to.

    Args:
        endpoint: of the server.
        cut: takes the number of a connection, from 0; returns how many bytes of the client's are
            passed on before both sides are hung up on; None: all.
        piece: bytes that are passed on at once.
    """

    def __init__(
        self,
        endpoint: str,
        cut: Callable[[int], int | None] = lambda _number: None,
        piece: int = 65_536,
    ) -> None:
        self._server = endpoint
        self._cut = cut
        self._piece = piece
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []
        self.sent: list[bytes] = []
        """What the client of each connection has sent."""
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in (self._listener, *self._open):
            each.close()

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=target, args=arguments))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # The listener is shut down.
            while True:
                client, _ = self._listener.accept()
                server = Wire(self._server).socket
                self._open += [client, server]
                self.sent.append(b"")
                self._start(self._forth, len(self.sent) - 1, client, server)

    def _forth(self, number: int, client: socket.socket, server: socket.socket) -> None:
        most = self._cut(number)
        back = threading.Thread(target=self._back, args=(client, server))
        back.start()
        with contextlib.suppress(OSError):
            while len(self.sent[number]) != most and (data := client.recv(self._piece)):
                data = data if most is None else data[: most - len(self.sent[number])]
                self.sent[number] += data
                server.sendall(data)
        _hang_up(client, server)
        back.join()
        client.close()  # At once: a test may make more connections than a process has descriptors.
        server.close()

    @staticmethod
    def _back(client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65_536):
                client.sendall(data)
        _hang_up(client, server)


def _hang_up(*sockets: socket.socket) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
