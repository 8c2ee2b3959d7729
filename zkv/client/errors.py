"""What a request may end in, other than success.

The tree::

    ZkvError
    `-- ClientError                 a request that was not answered with success
        |-- RefusedError            the server answered that it failed, and why
        |   |-- BadRequestError     BAD_REQUEST    a field is missing, wrong or unknown
        |   |-- UnknownOpError      UNKNOWN_OP     the server does not know the op
        |   |-- NotFoundError       NOT_FOUND      the key is not there; also a KeyError
        |   |-- ConflictError       CONFLICT       an expected revision is not the actual one
        |   |-- WrongTypeError      WRONG_TYPE     INCR on what is no int64, or past its range
        |   |-- TooLargeError       TOO_LARGE      key, value, batch or reply over its limit
        |   |-- CompactedError      COMPACTED      changes that are not kept any more
        |   |-- StaleSeqError       STALE_SEQ      older than what the session remembers
        |   |-- DeadlineError       DEADLINE       too late, not run
        |   |-- DeniedError         DENIED         the client may not do this
        |   |-- BusyError           BUSY           over a load limit, not run
        |   |-- ReadOnlyError       READ_ONLY      data cannot be written to disk now
        |   |-- ShuttingDownError   SHUTTING_DOWN  the server is about to end, not run
        |   `-- InternalError       INTERNAL       a bug in the server
        |-- NoReplyError            no reply came in time; also a TimeoutError
        |   `-- UnavailableError    there was not even a connection: nothing has been sent
        |       `-- UnknownHostError    the host's name cannot be looked up
        |-- BadReplyError           a reply came, and breaks the protocol
        |-- BadValueError           a value cannot be decoded, or its codec cannot pack it
        |-- ClosedError             the client, or what it has made, has been closed
        |-- LockLostError           a lock is not held any more
        `-- MisuseError             the object cannot do this now; also a RuntimeError

What every caller needs to know before it repeats a write stands on each of them: ``applied``.
A code that is not known here is a plain `RefusedError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Self

from zkv.errors import ZkvError


class ClientError(ZkvError):
    """A request that was not answered with success.

    Args:
        message: one line, for people.
        applied: ``False`` where nothing was changed by the request, and nothing will be; ``None``
            where it may have been carried out, or may yet be.
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
        code: what went wrong, one of the protocol's codes: ``NOT_FOUND``, ``CONFLICT`` and so on.
        message: for people; names the field, key or limit.
        retry: whether the same request may succeed later.
        applied: as for `ClientError`.
        details: what else the reply says, such as ``rev`` of a ``CONFLICT``; in a transaction,
            ``index`` tells which of its ops or conditions it was.
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
        """The same refusal, with something else known of ``applied``."""
        return type(self)(self.code, self.message, self.retry, applied, self.details)


class BadRequestError(RefusedError):
    """A field is missing, wrong or unknown."""


class UnknownOpError(RefusedError):
    """The server does not know the op: it is older than the client."""


class NotFoundError(RefusedError, KeyError):
    """The key is not there."""


class ConflictError(RefusedError):
    """An expected revision is not the actual one."""

    @property
    def key(self) -> str:
        """The key whose revision was not as expected."""
        return str(self.details["key"])

    @property
    def rev(self) -> int:
        """Its actual revision; 0 = it is not there."""
        return int(self.details["rev"])


class WrongTypeError(RefusedError):
    """INCR on something that is no int64, or past its range."""


class TooLargeError(RefusedError):
    """A key, value, batch or reply is over its limit."""


class CompactedError(RefusedError):
    """The changes asked for are not kept any more."""

    @property
    def oldest(self) -> int:
        """The oldest revision whose changes are still kept."""
        return int(self.details["oldest"])


class StaleSeqError(RefusedError):
    """The sequence number is older than what its session remembers."""


class DeadlineError(RefusedError):
    """The request's deadline had passed when it would have run."""


class DeniedError(RefusedError):
    """The client may not do this."""


class BusyError(RefusedError):
    """Over a load limit; the request was not run."""


class ReadOnlyError(RefusedError):
    """The server cannot write to its disk now: it is full, or failed."""


class ShuttingDownError(RefusedError):
    """The server is about to end; the request was not run."""


class InternalError(RefusedError):
    """A bug in the server. Whether a write was applied is not known."""


class NoReplyError(ClientError, TimeoutError):
    """No reply came in time: the server is down, out of reach or busy, or the reply was lost."""


class UnavailableError(NoReplyError):
    """There was no connection to a server: the request has not been sent.

    Args:
        message: one line, for people; with the reason.
        applied: ``False``.
        reason: why there was none, such as ``connection refused``, without the endpoint; empty
            where nobody knows.
    """

    def __init__(self, message: str, applied: bool | None = False, reason: str = "") -> None:
        super().__init__(message, applied)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.applied, self.reason)


class UnknownHostError(UnavailableError):
    """The name of the server's host cannot be looked up; the message names it."""


class BadReplyError(ClientError):
    """A reply came that cannot be read, or that does not belong to the request."""


class BadValueError(ClientError):
    """A value that cannot be decoded, or that the codec failed to pack.

    The server holds values that Python cannot: a map with a map as key, or with the keys 1 and
    true; a timestamp of more than 999,999,999 ns. Or a function of the codec raised an error, which
    is the ``__cause__``. The entry is still there, and so is what stands beside it.

    Args:
        reason: what is wrong, in a few words.
        applied: as for `ClientError`.
        key: of the entry, as it is stored: with the prefix of its namespace. None: not known.
        packed: the value as msgpack; None where it was to be packed.
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
        """The same error, not yet raised, for the entry of ``key``."""
        error = BadValueError(self.reason, applied, key, self.packed)
        error.__cause__ = self.__cause__
        return error


class ClosedError(ClientError):
    """The client has been closed, before the request or while it was under way.

    Or the process was forked, and the object belongs to the parent.
    """


class LockLostError(ClientError):
    """The lock is not held any more: its lease ran out before it could be renewed."""


class MisuseError(ClientError, RuntimeError):
    """The object cannot do this now, and nothing was sent.

    As where a lock is released or used that was not acquired, or was acquired by the process that
    this one was forked from; and where a second thread waits at a watch.
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
    "READ_ONLY": ReadOnlyError,
    "SHUTTING_DOWN": ShuttingDownError,
    "INTERNAL": InternalError,
}
"""The error for each of the protocol's codes."""
