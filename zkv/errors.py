"""All errors that zkv raises on purpose, in one tree, with the codes of the protocol.

    ZkvError
    |-- StartupError             the server does not start: one line on standard error, exit 2
    |   |-- ConfigError          a setting is unknown, of the wrong type or out of range
    |   |-- EndpointError        an endpoint is malformed, busy or not permitted
    |   `-- DataDirError         the data directory cannot be used
    |       |-- LockedError      another server uses it
    |       `-- DamageError      a file in it is damaged
    |-- ServerFailedError        an embedded server stopped, and not everything is saved
    `-- RequestError             a request fails: becomes a reply ``{"ok": false, "code": ...}``
        |-- BadRequest           BAD_REQUEST    malformed frame, missing, wrong or unknown field
        |-- UnknownOp            UNKNOWN_OP     no such op
        |-- NotFound         NOT_FOUND      the key is absent
        |-- Conflict             CONFLICT       an expected revision is not the actual one
        |-- WrongType            WRONG_TYPE     INCR on what is no int64, or past its range
        |-- Denied               DENIED         the user has no right to it
        |-- TooLarge             TOO_LARGE      key, value, batch or reply over its limit
        |-- Compacted            COMPACTED      changes that are not kept any more
        |-- Diverged             DIVERGED       a log number of another history
        |-- NotLeader            NOT_LEADER     another server answers this, not run
        |-- Behind               BEHIND         a read waited for a revision in vain
        |-- StaleSeq             STALE_SEQ      older than what the session remembers
        |-- Deadline             DEADLINE       too late, not run
        |-- Busy                 BUSY           over a load limit, not run
        |-- Full                 FULL           a write beyond a quota
        |-- ReadOnly             READ_ONLY      data cannot be written to disk now
        |   `-- OutOfMemory      FULL           there is no memory for it now
        |-- ShuttingDown         SHUTTING_DOWN  END or a signal has been received, not run
        `-- Internal             INTERNAL       a bug; logged with a traceback

Invariant: a ``RequestError`` other than ``Internal`` is raised before anything has been changed, so
its reply may say ``applied: false``. Code that cannot ensure this passes ``applied=None``.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, NamedTuple

RequestId = int | str
"""The ``id`` of a request, which the reply echoes. It has no meaning for the server."""


class ZkvError(Exception):
    """Base of every error that zkv raises on purpose."""


class StartupError(ZkvError):
    """The server cannot start. The message is one line that names the cause."""


class ConfigError(StartupError, ValueError):
    """A setting is unknown, of the wrong type or out of range; the message names it."""


class EndpointError(StartupError):
    """An endpoint is malformed, busy or not permitted; the message names it."""


class DataDirError(StartupError):
    """The data directory cannot be read, written or created; the message names the path."""


class LockedError(DataDirError):
    """Another server uses the data directory."""


class FormatError(DataDirError):
    """A newer version of zkv has written a file; the message names the file and its version."""


class DamageError(DataDirError):
    """A file has content that zkv did not write; the message names the file and the place."""


class ServerFailedError(ZkvError):
    """An embedded server has stopped, but not everything is saved. Its log says why."""


class RequestError(ZkvError):
    """A request fails. Carries the fields of the reply.

    Args:
        message: for people; names the field, key or limit.
        applied: False if the write has certainly not been applied, None if that is unknown.
        request_id: the ``id`` of the request, if decoding failed but the ``id`` could be read.
        seen_rev: the newest revision that the error reveals; 0 if it reveals none.
        **details: further fields of the reply, such as ``rev`` of a conflict.
    """

    code: ClassVar[str]
    retry: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        applied: bool | None = False,
        request_id: RequestId | None = None,
        seen_rev: int = 0,
        **details: object,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.applied = applied
        self.request_id = request_id
        self.seen_rev = seen_rev
        self.details = details


class BadRequest(RequestError):
    """Malformed frame, or a missing, wrong or unknown field."""

    code = "BAD_REQUEST"


class UnknownOp(RequestError):
    """There is no such op."""

    code = "UNKNOWN_OP"


class NotFound(RequestError):
    """The key is absent."""

    code = "NOT_FOUND"


class Conflict(RequestError):
    """An expected revision is not the actual one; the reply carries ``key`` and ``rev``."""

    code = "CONFLICT"


class WrongType(RequestError):
    """INCR on a value that is not an int64, or with a sum that is not one."""

    code = "WRONG_TYPE"


class Compacted(RequestError):
    """The requested changes are no longer kept; the reply carries ``oldest``."""

    code = "COMPACTED"


class Diverged(RequestError):
    """The asker's log is not part of this store's history; the reply carries ``common``, ``term``.

    There is no ``term`` if it is the log of another store.
    """

    code = "DIVERGED"


class NotLeader(RequestError):
    """This server does not lead its store; the reply carries ``leader``. Not run."""

    code = "NOT_LEADER"
    retry = True


class Behind(RequestError):
    """A read waited for a revision that has not come; the reply carries ``rev``.

    Or a standby is ahead of the other one that it asks.
    """

    code = "BEHIND"
    retry = True


class StaleSeq(RequestError):
    """The sequence number is older than those that its session remembers; not run."""

    code = "STALE_SEQ"


class Deadline(RequestError):
    """The request's deadline has passed; not run."""

    code = "DEADLINE"


class Busy(RequestError):
    """A load limit is exceeded; not run."""

    code = "BUSY"
    retry = True


class Overload(NamedTuple):
    """Why a request must not run now, and when its client may repeat it.

    Args:
        reason: for people; names the limit.
        retry_after: milliseconds.
    """

    reason: str
    retry_after: int

    def error(self) -> Busy:
        """Return the error with which the request is answered."""
        return Busy(self.reason, retry_after=self.retry_after)


class Denied(RequestError):
    """The user has no right to it; the reply carries ``key`` where one is meant. Not run."""

    code = "DENIED"


class TooLarge(RequestError):
    """A key, value, batch or reply exceeds its limit."""

    code = "TOO_LARGE"


class Full(RequestError):
    """A write would exceed a quota; the message says which."""

    code = "FULL"
    retry = True


class ReadOnly(RequestError):
    """Data cannot be written to disk at the moment; the message says why."""

    code = "READ_ONLY"
    retry = True


class OutOfMemory(ReadOnly):
    """There is no memory for a request. The log refuses writes for it as for a full disk."""

    code = "FULL"


class ShuttingDown(RequestError):
    """The server has received END or a signal; not run."""

    code = "SHUTTING_DOWN"
    retry = True


class Internal(RequestError):
    """A bug in the server. A write may or may not have been applied."""

    code = "INTERNAL"


def suggest(name: str, names: Collection[str]) -> str:
    """Return the advice for an unknown name: the one that was probably meant, or all."""
    from difflib import get_close_matches  # Only then: it takes time to import.

    near = get_close_matches(name, names, 1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"


def shorten(text: str, most: int = 40) -> str:
    """Show a client's ``text`` in a message: quoted, escaped, and cut if it is long."""
    return repr(text if len(text) <= most else text[: most - 3] + "...")
