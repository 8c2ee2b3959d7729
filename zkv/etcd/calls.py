"""gRPC over a connection of HTTP/2: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md.

A call sends a message, which is preceded by its length, and gets messages, and at the end a status
with a text, in headers. Messages are never compressed: nothing here offers it.
"""

from __future__ import annotations

import struct
import time
from typing import Final
from urllib.parse import unquote

from zkv.etcd.http2 import DATA_BYTES, Http2Connection, Stream, header

DETAILS_LENGTH: Final = 1_000
"""Characters of the text of a status that are kept."""
LONGEST_TIMEOUT: Final = 99_999_999
"""In milliseconds: it has 8 digits."""
Metadata = tuple[tuple[str, str], ...]

_LENGTH: Final = struct.Struct(">?I")
MESSAGE_BYTES: Final = DATA_BYTES - _LENGTH.size
"""Of an answer, at most. A watch that is behind gets up to a thousand revisions in one."""
_CODES: Final = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
    "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",
    "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
_OF_HTTP: Final = {
    "401": "UNAUTHENTICATED", "403": "PERMISSION_DENIED", "404": "UNIMPLEMENTED",
    "429": "UNAVAILABLE", "502": "UNAVAILABLE", "503": "UNAVAILABLE", "504": "UNAVAILABLE",
}  # fmt: skip


class CallError(Exception):
    """A call failed.

    Args:
        code: the name of gRPC's status, such as ``"UNAVAILABLE"``.
        details: its text.
        is_unexecuted: True if the node has done nothing about it, and never will.
    """

    def __init__(self, code: str, details: str, *, is_unexecuted: bool = False) -> None:
        super().__init__(f"{details} ({code})")
        self.code = code
        self.details = details
        self.is_unexecuted = is_unexecuted


def common_head(scheme: str, authority: str, path: str) -> bytes:
    """Return the headers that each call of a path begins with.

    Args:
        scheme: ``"http"`` or ``"https"``.
        authority: the node's host and port.
        path: of what is called.
    """
    return b"".join(
        header(name.encode(), value.encode())
        for name, value in (
            (":method", "POST"), (":scheme", scheme), (":path", path), (":authority", authority),
            ("content-type", "application/grpc"), ("te", "trailers"),
        )
    )  # fmt: skip


def begin(
    connection: Http2Connection,
    head: bytes,
    metadata: Metadata,
    message: bytes,
    deadline: float,
    *,
    has_timeout: bool = True,
) -> Stream:
    """Send a call with a message.

    Args:
        connection: over which.
        head: made by `common_head`.
        metadata: more headers.
        message: the message.
        deadline: by the monotonic clock.
        has_timeout: the node gives up the call at the deadline. Else it has no end, and no further
            message comes.

    Raises:
        LinkError, TimeoutError
    """
    for name, value in metadata:
        head += header(name.encode(), value.encode())
    if has_timeout:
        left = max(1, min(LONGEST_TIMEOUT, int((deadline - time.monotonic()) * 1_000)))
        head += header(b"grpc-timeout", b"%dm" % left)
    body = _LENGTH.pack(False, len(message)) + message
    return connection.request(head, body, deadline, ends=has_timeout)


def take_message(stream: Stream) -> bytes | None:
    """Return the next message; None if it has not all come.

    Raises CallError: it is compressed, or too large.
    """
    if len(stream.data) < _LENGTH.size:
        return None
    is_compressed, length = _LENGTH.unpack_from(stream.data)
    if is_compressed:
        raise CallError("INTERNAL", "the answer is compressed")
    if length > MESSAGE_BYTES:
        raise CallError("INTERNAL", f"the answer has {length} bytes, which are too many")
    end = _LENGTH.size + length
    if len(stream.data) < end:
        return None
    with memoryview(stream.data) as view:
        message = bytes(view[_LENGTH.size : end])
    del stream.data[:end]
    return message


def only_answer(connection: Http2Connection, stream: Stream, deadline: float) -> bytes | None:
    """Wait until a call has ended; return the message that has come, if one has.

    Raises:
        CallError: what comes is no single message.
        LinkError, TimeoutError
    """
    answer = take_message(stream)
    while not stream.has_ended:
        connection.receive(deadline)
        if answer is None:
            answer = take_message(stream)
        if answer is not None and stream.data:
            raise CallError("INTERNAL", "there is more than one answer")
    return answer


def check_status(stream: Stream) -> None:
    """Return if a call that has ended was carried out. Raises CallError."""
    if stream.reset:
        raise CallError("UNAVAILABLE", stream.reset, is_unexecuted=stream.is_refused)
    found = {name: _text(value) for name, value in stream.headers.items()}
    status, http = found.get(b"grpc-status"), found.get(b":status", "")
    if status is None:
        if http == "200":
            raise CallError("UNKNOWN", "the answer has no status")
        raise CallError(_OF_HTTP.get(http, "UNKNOWN"), f"the answer has HTTP's status {http!r}")
    if status != "0":
        is_known = status.isdecimal() and int(status) < len(_CODES)
        details = unquote(found.get(b"grpc-message", ""))[:DETAILS_LENGTH]
        raise CallError(_CODES[int(status)] if is_known else "UNKNOWN", details)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
