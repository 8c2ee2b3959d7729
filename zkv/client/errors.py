"""The errors of requests.

The tree::

    ZkvError
    `-- ClientError                 a request did not succeed
        |-- RefusedError            the server answered that it failed, and why
        |   |-- BadRequestError     BAD_REQUEST    a field is missing, wrong or unknown
        |   |-- UnknownOpError      UNKNOWN_OP     the server does not know the op
        |   |-- NotFoundError       NOT_FOUND      the key is absent; also a KeyError
        |   |-- ConflictError       CONFLICT       an expected revision is not the actual one
        |   |-- WrongTypeError      WRONG_TYPE     INCR of a value that is not an int64, or overflow
        |   |-- TooLargeError       TOO_LARGE      key, value, batch or reply exceeds its limit
        |   |-- CompactedError      COMPACTED      the changes are no longer kept
        |   |-- StaleSeqError       STALE_SEQ      older than the session's window
        |   |-- DeadlineError       DEADLINE       too late, not run
        |   |-- DeniedError         DENIED         the client may not do this
        |   |-- BusyError           BUSY           a load limit is exceeded, not run
        |   |-- FullError           FULL           there is no room for the write, not run
        |   |-- ReadOnlyError       READ_ONLY      the server cannot write to its disk now
    |   |-- NotLeaderError      NOT_LEADER     another server leads
    |   |-- BehindError         BEHIND         the server does not have the revision yet
        |   |-- ShuttingDownError   SHUTTING_DOWN  the server is about to end, not run
        |   `-- InternalError       INTERNAL       a bug in the server
        |-- NoReplyError            no reply arrived in time; also a TimeoutError
        |   `-- UnavailableError    there was no connection: nothing has been sent
        |       |-- UnknownHostError    the host name cannot be resolved
        |       `-- AuthenticationError the server refused the connection, or has other keys
        |-- BadReplyError           a reply arrived that violates the protocol
        |-- BadValueError           a value cannot be decoded, or the codec cannot pack it
        |-- ClosedError             the client, or an object that it made, has been closed
        |-- LockLostError           a lock is no longer held
        `-- MisuseError             the object cannot do this now; also a RuntimeError

Each has ``applied``, which a caller needs to know before it repeats a write. An unknown code
becomes a plain `RefusedError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Self

from zkv.errors import ZkvError


class ClientError(ZkvError):
    """A request did not succeed.

    Args:
        message: one line, for people.
        applied: ``False`` if the request has changed nothing and never will; ``None`` if the
            server may have applied it, or may still do so.
    """

    def __init__(self, message: str, applied: bool | None) -> None:
        super().__init__(message)
        self.message = message
        self.applied = applied

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.applied)


class RefusedError(ClientError):
    """The server answered that the request failed.

    Args:
        code: one of the protocol's error codes: ``NOT_FOUND``, ``CONFLICT`` and so on.
        message: for people; names the field, key or limit.
        retry: True if the same request may succeed later.
        applied: as for `ClientError`.
        details: the reply's other fields, such as ``rev`` of a ``CONFLICT``; for a transaction,
            ``index`` is the place of the op or condition that failed.
    """

    def __init__(
        self,
        code: str,
        message: str,
        retry: bool,
        applied: bool | None,
        details: Mapping[str, Any],
    ) -> None:
        super().__init__(message, applied)
        self.code = code
        self.retry = retry
        self.details = details

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.code, self.message, self.retry, self.applied, self.details)

    def but(self, applied: bool | None) -> Self:
        """Return the same refusal with another ``applied``."""
        return type(self)(self.code, self.message, self.retry, applied, self.details)


class BadRequestError(RefusedError):
    """A field is missing, wrong or unknown."""


class UnknownOpError(RefusedError):
    """The server does not know the op: it is older than the client."""


class NotFoundError(RefusedError, KeyError):
    """The key is absent."""


class ConflictError(RefusedError):
    """An expected revision is not the actual one."""

    @property
    def key(self) -> str:
        """The key that does not have the expected revision."""
        return str(self.details["key"])

    @property
    def rev(self) -> int:
        """The actual revision of the key; 0 = it is absent."""
        return int(self.details["rev"])


class WrongTypeError(RefusedError):
    """INCR of a value that is not a 64-bit int, or the sum would exceed 64 bits."""


class TooLargeError(RefusedError):
    """A key, value, batch or reply exceeds its limit."""


class CompactedError(RefusedError):
    """The server no longer keeps the requested changes."""

    @property
    def oldest(self) -> int:
        """The oldest revision whose changes are still kept."""
        return int(self.details["oldest"])


class StaleSeqError(RefusedError):
    """The sequence number is older than the window of its session."""


class DeadlineError(RefusedError):
    """The request's deadline had passed before the server could run it."""


class DeniedError(RefusedError):
    """The user of this client has no right to do this, or its key has been removed."""

    @property
    def key(self) -> str | None:
        """The key or the prefix that the user has no right to; None = it is not about one."""
        key = self.details.get("key")
        return None if key is None else str(key)


class BusyError(RefusedError):
    """A load limit is exceeded; the server did not run the request."""


class FullError(RefusedError):
    """There is no room for the write: the quota of the user, or the server's memory, is used up."""


class ReadOnlyError(RefusedError):
    """The server cannot write to its disk now: it is full, or it failed."""


class NotLeaderError(RefusedError):
    """The server does not lead: it holds a copy of the store, and another server answers this."""

    @property
    def leader(self) -> list[str] | None:
        """The endpoints of the server that leads; None = unknown."""
        leader = self.details.get("leader")
        return [str(each) for each in leader] if isinstance(leader, list) else None


class BehindError(RefusedError):
    """The server's copy of the store has not reached the revision to read in time."""

    @property
    def rev(self) -> int:
        """The revision that the copy has reached."""
        return int(self.details["rev"])


class ShuttingDownError(RefusedError):
    """The server is about to end; it did not run the request."""


class InternalError(RefusedError):
    """A bug in the server. A write may have been applied."""


class NoReplyError(ClientError, TimeoutError):
    """No reply arrived in time: the server is down, unreachable or busy, or the reply was lost."""


class UnavailableError(NoReplyError):
    """There was no connection to a server, so the request has not been sent.

    Args:
        message: one line, for people; includes the reason.
        applied: ``False``.
        reason: why there was no connection, such as ``connection refused``, without the endpoint;
            empty if unknown.
    """

    def __init__(self, message: str, applied: bool | None = False, reason: str = "") -> None:
        super().__init__(message, applied)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.applied, self.reason)


class UnknownHostError(UnavailableError):
    """The server's host name cannot be resolved; the message names it."""


class AuthenticationError(UnavailableError):
    """The server does not know the client, or their keys do not match: no connection was made.

    The client fails at once, since waiting does not help. The message says what is wrong.
    """


class BadReplyError(ClientError):
    """A reply arrived that cannot be read or does not belong to the request."""


class BadValueError(ClientError):
    """A value cannot be decoded, or the codec failed to pack it.

    The server can hold values that Python cannot: a map with a map as key, or with the keys 1 and
    true; a timestamp of more than 999,999,999 ns. Or a function of the codec raised an error, which
    is the ``__cause__``. The entry still exists, and the other values of the reply can be read.

    Args:
        reason: a few words.
        applied: as for `ClientError`.
        key: of the entry, as stored, with the prefix of its namespace; None = unknown.
        packed: the value as msgpack; None if packing it failed.
    """

    def __init__(
        self,
        reason: str,
        applied: bool | None = False,
        key: str | None = None,
        packed: bytes | None = None,
    ) -> None:
        what = "a value" if key is None else f"the value of {key!r}"
        super().__init__(
            f"{what} cannot be {'packed' if packed is None else 'decoded'}: {reason}", applied
        )
        self.reason = reason
        self.key = key
        self.packed = packed

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.applied, self.key, self.packed)

    def of(self, key: str | None, applied: bool | None = False) -> BadValueError:
        """Return the same error for the entry of ``key``, not raised yet."""
        error = BadValueError(self.reason, applied, key, self.packed)
        error.__cause__ = self.__cause__
        return error


class ClosedError(ClientError):
    """The client was closed before or during the request.

    Or the process was forked, and the object belongs to the parent.
    """


class LockLostError(ClientError):
    """The lock is no longer held: its lease expired before it could be renewed."""


class MisuseError(ClientError, RuntimeError):
    """The object cannot do this now, and nothing was sent.

    Examples: releasing or using a lock that was not acquired, or that the parent process acquired
    before a fork; a second thread that waits at one watch.
    """


REFUSALS: Final[Mapping[str, type[RefusedError]]] = {
    "BAD_REQUEST": BadRequestError,
    "UNKNOWN_OP": UnknownOpError,
    "NOT_FOUND": NotFoundError,
    "CONFLICT": ConflictError,
    "WRONG_TYPE": WrongTypeError,
    "TOO_LARGE": TooLargeError,
    "COMPACTED": CompactedError,
    "STALE_SEQ": StaleSeqError,
    "DEADLINE": DeadlineError,
    "DENIED": DeniedError,
    "BUSY": BusyError,
    "FULL": FullError,
    "READ_ONLY": ReadOnlyError,
    "NOT_LEADER": NotLeaderError,
    "BEHIND": BehindError,
    "SHUTTING_DOWN": ShuttingDownError,
    "INTERNAL": InternalError,
}
"""The error for each of the protocol's codes."""
