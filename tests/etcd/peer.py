"""A node of etcd that does to its clients whatever a test says, frame by frame."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Final, NamedTuple, Self

from hpack import Decoder, Encoder

from tests.support import LIMIT
from zkv.etcd import rpc

DATA, HEADERS, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    0, 1, 3, 4, 5, 6, 7, 8, 9,
)  # fmt: skip
END_STREAM, END_HEADERS, PADDED, PRIORITY = 1, 4, 8, 32
ACK: Final = 1
INITIAL_WINDOW: Final = 4
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
OK: Final = (("grpc-status", "0"), ("grpc-message", ""))
FIRST: Final = ((":status", "200"), ("content-type", "application/grpc"))
ANSWER: Final = rpc.RangeResponse(count=7).SerializeToString()
"""What each call of these tests gets: a read says ``count`` 7."""


class Frame(NamedTuple):
    """A frame that came."""

    kind: int
    flags: int
    number: int
    content: bytes


class Request(NamedTuple):
    """A request that came, all of it."""

    number: int
    headers: dict[str, str]
    message: bytes


class Session:
    """A connection, as the node sees it."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.frames: list[Frame] = []
        self.encoder = Encoder()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = connection.makefile("rb")
        self._decoder = Decoder()

    def greet(self, *settings: tuple[int, int]) -> None:
        """Begin the connection."""
        assert self.file.read(len(PREFACE)) == PREFACE
        self.send(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *each) for each in settings))

    def send(self, kind: int, flags: int, number: int, content: bytes = b"") -> None:
        """Send a frame."""
        length = struct.pack(">I", len(content))[1:]
        self.socket.sendall(length + bytes([kind, flags]) + struct.pack(">I", number) + content)

    def receive(self, *kinds: int) -> Frame:
        """The next frame, of one of these kinds; all that come are kept. EOFError at the end."""
        while True:
            head = self.file.read(9)
            if len(head) < 9:
                raise EOFError
            length = int.from_bytes(head[:3], "big")
            number = int.from_bytes(head[5:], "big")
            frame = Frame(head[3], head[4], number, self.file.read(length))
            self.frames.append(frame)
            if not kinds or frame.kind in kinds:
                return frame

    def request(self) -> Request:
        """The next request."""
        frame = self.receive(HEADERS)
        headers = dict(self._decoder.decode(frame.content))
        body = b""
        while not frame.flags & END_STREAM:
            frame = self.receive(DATA)
            body += frame.content
        assert struct.unpack(">?I", body[:5]) == (False, len(body) - 5)
        return Request(frame.number, headers, body[5:])  # type: ignore[arg-type]

    def headers(self, number: int, *fields: tuple[str, str], flags: int = END_HEADERS) -> None:
        """Send headers."""
        self.send(HEADERS, flags, number, self.encoder.encode(fields))

    def message(self, number: int, message: bytes = ANSWER) -> None:
        """Send a message as one frame."""
        self.send(DATA, 0, number, struct.pack(">?I", False, len(message)) + message)

    def end(self, number: int, *fields: tuple[str, str]) -> None:
        """Send the last headers."""
        self.headers(number, *fields, flags=END_HEADERS | END_STREAM)

    def answer(self, number: int, message: bytes = ANSWER) -> None:
        """Answer a request as etcd does."""
        self.headers(number, *FIRST)
        self.message(number, message)
        self.end(number, *OK)

    def serve(self) -> None:
        """Answer all requests."""
        while True:
            self.answer(self.request().number)

    def hold(self) -> None:
        """Say nothing more, until the client closes."""
        while True:
            self.receive()

    def close(self) -> None:
        """End the connection."""
        self.socket.shutdown(socket.SHUT_RDWR)

    def flood(self, *frames: tuple[int, int, int, bytes]) -> None:
        """Send frames without end."""
        while True:
            for frame in frames:
                self.send(*frame)


Script = Callable[[Session], object]


class Peer:
    """The node. A context manager.

    Args:
        *scripts: one for each connection, in their order; the last one for all further ones.
    """

    def __init__(self, *scripts: Script, host: str = "127.0.0.1") -> None:
        self._scripts = list(scripts)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._server = socket.create_server((host, 0), family=family)
        self.port = self._server.getsockname()[1]
        self.endpoint = f"{f'[{host}]' if ':' in host else host}:{self.port}"
        self.sessions: list[Session] = []
        self.failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for session in self.sessions:
            with contextlib.suppress(OSError):
                session.socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(LIMIT)
        assert self.failures == []

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                session = Session(self._server.accept()[0])
                script = self._scripts[min(len(self.sessions), len(self._scripts) - 1)]
                self.sessions.append(session)
                self._threads.append(
                    threading.Thread(target=self._play, args=(script, session), daemon=True)
                )
                self._threads[-1].start()

    def _play(self, script: Script, session: Session) -> None:
        try:
            script(session)
        except (OSError, EOFError):
            pass  # The client has closed the connection.
        except BaseException as error:
            self.failures.append(error)
        finally:
            session.file.close()
            session.socket.close()
