"""A client's side of HTTP/2 (RFC 9113), as far as calls over gRPC need it.

Whoever makes a call sends and receives in its own thread; a connection has none. Between calls
nobody receives: what has come meanwhile is taken when the next call begins (`is_usable`). Answers
to the peer, such as those to its pings, leave with the next request, or before the next wait.

Invariants:

- One thread at a time uses a connection.
- Each wait ends by a deadline, also if the peer sends without end.
- What is kept of what a peer sends has a limit: a frame, headers, and the data of an answer.
- After an error a connection is of no use.

Headers are decoded by the package hpack. They are encoded here, without a table: each call has the
same few.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import ClassVar, Final

from hpack import Decoder
from hpack.exceptions import HPACKError
from hpack.hpack import encode_integer

from zkv.etcd.link import Link, LinkError

FRAME_BYTES: Final = 16_384
"""Of the content of a frame, as every peer takes it (SETTINGS_MAX_FRAME_SIZE by default)."""
HEADER_BYTES: Final = 65_536
"""Of the headers that come together."""
MOST_HEADERS: Final = 256
"""Of an answer, with those at its end."""
DATA_BYTES: Final = (1 << 30) + 5
"""Of an answer, as far as it has not been taken."""
WINDOW_BYTES: Final = 16 * 1024 * 1024
"""Bytes that a peer may send before it is told to go on: many, as somebody waits for them."""
LAST_ID: Final = 0x7FFF_FFFF

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE = range(9)
CONTINUATION: Final = 9
END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
WITH_PRIORITY: Final = 0x20
REFUSED_STREAM: Final = 0x7
CANCEL: Final = 0x8
_ERRORS: Final = (
    "NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT",
    "STREAM_CLOSED", "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR",
    "CONNECT_ERROR", "ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
)  # fmt: skip
MOST_KNOWN: Final = 16
_REFERENCE: Final = 0x80
_LONG_REFERENCE: Final = 0xFF
_FRAME: Final = struct.Struct(">BHBBI")
_SETTING: Final = struct.Struct(">HI")
_NUMBER: Final = struct.Struct(">I")
_ENABLE_PUSH, _INITIAL_WINDOW, _MAX_FRAME, _MAX_HEADERS = 2, 4, 5, 6
_FIRST_WINDOW: Final = 65_535
_SIZES: Final = {RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4, PRIORITY: 5}


class Stream:
    """A request and what has come of its answer.

    Args:
        number: its number.
        window: bytes that may be sent.
    """

    def __init__(self, number: int, window: int) -> None:
        self.number = number
        self.window = window
        self.headers: dict[bytes, bytes] = {}
        """With those that come after the data."""
        self.data = bytearray()
        """Bytes that the caller has not taken yet."""
        self.has_ended = False
        """Nothing comes any more."""
        self.reset = ""
        """Why the peer broke it off; empty if it did not."""
        self.is_refused = False
        """The peer has not done anything about it, and never will."""
        self.taken = 0


class Http2Connection:
    """A connection over a link that has been made.

    Args:
        link: is its own from now on.
        deadline: for `open`.
    """

    def __init__(self, link: Link, deadline: float) -> None:
        self.idle_since = 0.0
        """For whoever keeps it."""
        self.link = link
        self._in = b""
        self._out = bytearray(_PREFACE)
        self._decoder = Decoder(HEADER_BYTES)
        self._streams: dict[int, Stream] = {}
        self._next_id = 1
        self._window = self._stream_window = _FIRST_WINDOW
        self._frame_bytes = FRAME_BYTES
        self._taken = 0
        self._block: tuple[int, int, bytes] | None = None  # Of headers, to be continued.
        self._known: dict[bytes, dict[bytes, bytes]] = {}  # Blocks, with what they mean.
        self._has_settings = False
        self._goes_away = ""
        while not self._has_settings:
            self.receive(deadline)

    def is_usable(self) -> bool:
        """Return False if the peer has ended it meanwhile, or is about to. Does not wait."""
        try:
            if chunk := self.link.receive_now():
                self._take(chunk)
            elif chunk is not None:
                return False
        except LinkError:
            return False
        return not self._goes_away and self._next_id < LAST_ID

    def request(self, head: bytes, body: bytes, deadline: float, *, ends: bool = True) -> Stream:
        """Send a request. An answer may have come before all of it was sent.

        Args:
            head: its headers, by `header`.
            body: its data.
            deadline: by the monotonic clock.
            ends: False if the peer shall wait for more of it, which never comes.

        Raises:
            LinkError, TimeoutError
        """
        if len(head) > FRAME_BYTES:
            raise LinkError(f"{len(head)} bytes of headers are too many")
        before = self.link.sent
        stream = Stream(self._next_id, self._stream_window)
        self._streams[stream.number] = stream
        self._next_id += 2
        self._out += _frame(HEADERS, END_HEADERS, stream.number, head)
        try:
            self._send(stream, body, END_STREAM if ends else 0, deadline)
        except LinkError as error:
            error.is_unsent = self.link.sent == before
            raise
        return stream

    def receive(self, deadline: float) -> None:
        """Take what comes next, whatever it is for; wait until something does.

        Raises:
            LinkError, TimeoutError
        """
        self._flush(deadline)
        chunk = self.link.receive(deadline)
        if not chunk:
            raise LinkError(self._goes_away or "the node has closed the connection")
        self._take(chunk)

    # What is sent

    def _send(self, stream: Stream, body: bytes, flags: int, deadline: float) -> None:
        at = 0
        while at < len(body) and not stream.has_ended:
            room = min(len(body) - at, self._frame_bytes, self._window, stream.window)
            if room <= 0:
                self.receive(deadline)
                continue
            end = at + room
            is_last = end == len(body)
            self._out += _frame(DATA, flags if is_last else 0, stream.number, body[at:end])
            self._window -= room
            stream.window -= room
            at = end
        if at < len(body):
            self._out += _frame(RST_STREAM, 0, stream.number, _NUMBER.pack(CANCEL))
        self._flush(deadline)

    def _flush(self, deadline: float) -> None:
        if self._out:
            self.link.send(self._out, deadline)
            self._out.clear()

    # What comes

    def _take(self, chunk: bytes) -> None:
        data = self._in + chunk if self._in else chunk
        at, size = 0, len(data)
        while size - at >= _FRAME.size:
            high, low, kind, flags, number = _FRAME.unpack_from(data, at)
            length = high << 16 | low
            if not self._has_settings and (kind != SETTINGS or flags & ACK or length > FRAME_BYTES):
                raise LinkError("the node does not speak HTTP/2")
            if length > FRAME_BYTES:
                raise _malformed(f"a frame has {length} bytes")
            begin = at + _FRAME.size
            if begin + length > size:
                break
            at = begin + length
            self._take_frame(kind, flags, number & LAST_ID, data[begin:at])
        self._in = data[at:]

    def _take_frame(self, kind: int, flags: int, number: int, content: bytes) -> None:
        if self._block is not None and (kind != CONTINUATION or number != self._block[0]):
            raise _malformed("headers break off")
        if len(content) != _SIZES.get(kind, len(content)):
            raise _malformed(f"a frame of type {kind} has {len(content)} bytes")
        if (taker := self._takers.get(kind)) is not None:  # Others are for extensions.
            taker(self, flags, number, content)

    def _stream(self, number: int) -> Stream | None:
        """Return a stream; None if it is over. Raises LinkError if it never was."""
        if not number % 2 or number >= self._next_id:
            raise _malformed(f"it answers request {number}, which was not made")
        return self._streams.get(number)

    def _take_data(self, flags: int, number: int, content: bytes) -> None:
        stream = self._stream(number)
        size = len(content)
        self._taken += size
        if self._taken >= WINDOW_BYTES // 2:
            self._out += _frame(WINDOW_UPDATE, 0, 0, _NUMBER.pack(self._taken))
            self._taken = 0
        if stream is None:
            return
        stream.data += _unpadded(flags, content)
        if len(stream.data) > DATA_BYTES:
            raise LinkError("the answer is too large")
        if flags & END_STREAM:
            self._end(stream)
            return
        stream.taken += size
        if stream.taken >= WINDOW_BYTES // 2:
            self._out += _frame(WINDOW_UPDATE, 0, number, _NUMBER.pack(stream.taken))
            stream.taken = 0

    def _take_headers(self, flags: int, number: int, content: bytes) -> None:
        content = _unpadded(flags, content)
        self._block = (number, flags, content[5 if flags & WITH_PRIORITY else 0 :])
        if flags & END_HEADERS:
            self._end_headers(self._block)

    def _take_more_headers(self, flags: int, number: int, content: bytes) -> None:
        if self._block is None:
            raise _malformed("headers are continued that have not begun")
        _, first_flags, block = self._block
        self._block = (number, first_flags, block + content)
        if len(self._block[2]) > HEADER_BYTES:
            raise _malformed(f"there are more than {HEADER_BYTES} bytes of headers")
        if flags & END_HEADERS:
            self._end_headers(self._block)
        elif not content:  # There is no limit else to how many come.
            raise _malformed("headers are continued without any")

    def _end_headers(self, whole: tuple[int, int, bytes]) -> None:
        number, flags, block = whole
        self._block = None
        stream = self._stream(number)
        found = self._known.get(block) or self._decode(block)
        if stream is not None:
            stream.headers.update(found)
            if len(stream.headers) > MOST_HEADERS:
                raise _malformed(f"there are more than {MOST_HEADERS} headers")
            if flags & END_STREAM:
                self._end(stream)

    def _decode(self, block: bytes) -> dict[bytes, bytes]:
        """Decode headers. Answers are alike, so most blocks only refer to the decoder's table."""
        try:
            found = dict(self._decoder.decode(block, raw=True))
        except HPACKError as error:
            raise _malformed(f"headers: {error}") from None
        if not block or min(block) < _REFERENCE or max(block) == _LONG_REFERENCE:
            self._known.clear()  # The table may have changed.
        elif len(self._known) < MOST_KNOWN:
            self._known[block] = found
        return found

    def _take_settings(self, flags: int, _: int, content: bytes) -> None:
        if flags & ACK:
            return
        if len(content) % _SETTING.size:
            raise _malformed("its settings break off")
        for name, value in _SETTING.iter_unpack(content):
            if name == _INITIAL_WINDOW:
                if value > LAST_ID:
                    raise _malformed(f"its window is {value}")
                for stream in self._streams.values():
                    stream.window += value - self._stream_window
                self._stream_window = value
            elif name == _MAX_FRAME:
                if not FRAME_BYTES <= value < 1 << 24:
                    raise _malformed(f"its frames have {value} bytes")
                self._frame_bytes = value
        self._has_settings = True
        self._out += _frame(SETTINGS, ACK, 0, b"")

    def _take_ping(self, flags: int, _: int, content: bytes) -> None:
        if not flags & ACK:
            self._out += _frame(PING, ACK, 0, content)

    def _take_push(self, flags: int, number: int, content: bytes) -> None:
        raise _malformed("it pushes")

    def _take_reset(self, _: int, number: int, content: bytes) -> None:
        (code,) = _NUMBER.unpack(content)
        if (stream := self._stream(number)) is not None:
            stream.reset = f"the node broke the call off: {_name(code)}"
            stream.is_refused = code == REFUSED_STREAM
            self._end(stream)

    def _take_goaway(self, _: int, number: int, content: bytes) -> None:
        if len(content) < 8:
            raise _malformed("its farewell breaks off")
        last, code = (each & LAST_ID for (each,) in _NUMBER.iter_unpack(content[:8]))
        self._goes_away = f"the node ends the connection: {_name(code)}"
        for stream in [each for each in self._streams.values() if each.number > last]:
            stream.reset, stream.is_refused = self._goes_away, True
            self._end(stream)

    def _take_window(self, _: int, number: int, content: bytes) -> None:
        more = _NUMBER.unpack(content)[0] & LAST_ID
        stream = self._stream(number) if number else None
        if number == 0:
            self._window += more
        elif stream is not None:
            stream.window += more
        if not more or max(self._window, stream.window if stream else 0) > LAST_ID:
            raise _malformed(f"it widens a window by {more}")

    def _end(self, stream: Stream) -> None:
        stream.has_ended = True
        del self._streams[stream.number]

    _takers: ClassVar[dict[int, Callable[[Http2Connection, int, int, bytes], None]]] = {
        DATA: _take_data,
        HEADERS: _take_headers,
        RST_STREAM: _take_reset,
        SETTINGS: _take_settings,
        PUSH_PROMISE: _take_push,
        PING: _take_ping,
        GOAWAY: _take_goaway,
        WINDOW_UPDATE: _take_window,
        CONTINUATION: _take_more_headers,
    }


def header(name: bytes, value: bytes) -> bytes:
    """Return a header as it is sent: as a literal that no table keeps (RFC 7541, 6.2.3)."""
    return b"\x10" + _string(name) + _string(value)


def _string(text: bytes) -> bytes:
    return (bytes((size,)) if (size := len(text)) < 0x7F else bytes(encode_integer(size, 7))) + text


def _frame(kind: int, flags: int, number: int, content: bytes) -> bytes:
    length = len(content)
    return _FRAME.pack(length >> 16, length & 0xFFFF, kind, flags, number) + content


def _unpadded(flags: int, content: bytes) -> bytes:
    if not flags & PADDED:
        return content
    if not content or content[0] >= len(content):
        raise _malformed("a frame has only padding")
    return content[1 : len(content) - content[0]]


def _name(code: int) -> str:
    return _ERRORS[code] if code < len(_ERRORS) else str(code)


def _malformed(what: str) -> LinkError:
    return LinkError(f"the node breaks the rules of HTTP/2: {what}")


_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"".join(
    (
        _frame(SETTINGS, 0, 0, b"".join(
            _SETTING.pack(name, value)
            for name, value in (
                (_ENABLE_PUSH, 0), (_INITIAL_WINDOW, WINDOW_BYTES), (_MAX_HEADERS, HEADER_BYTES),
            )
        )),
        _frame(WINDOW_UPDATE, 0, 0, _NUMBER.pack(WINDOW_BYTES - _FIRST_WINDOW)),
    )
)  # fmt: skip
