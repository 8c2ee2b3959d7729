"""Every error that zkv raises on purpose, in one tree, with the codes that travel on the wire.

    ZkvError
    |-- StartupError             the server does not start: one line on standard error, exit 2
    |   |-- ConfigError          a setting is unknown, of the wrong type or out of range
    |   |-- EndpointError        an endpoint is malformed, busy or not permitted
    |   `-- DataDirError         the data directory cannot be used
    |       |-- LockedError      another server holds it
    |       `-- DamageError      a file in it is damaged and is not served
    |-- ServerFailedError        an embedded server stopped, and not everything is saved
    `-- RequestError             a request fails: becomes a reply ``{"ok": false, "code": ...}``
        |-- BadRequest           BAD_REQUEST    malformed frame, missing, wrong or unknown field
        |-- UnknownOp            UNKNOWN_OP     no such op
        |-- NotFound             NOT_FOUND      the key is not there
        |-- Conflict             CONFLICT       an expected revision is not the actual one
        |-- WrongType            WRONG_TYPE     INCR on what is no int64, or past its range
        |-- TooLarge             TOO_LARGE      key, value, batch or reply over its limit
        |-- Compacted            COMPACTED      changes that are not kept any more
        |-- StaleSeq             STALE_SEQ      older than what the session remembers
        |-- Deadline             DEADLINE       too late, not run
        |-- Busy                 BUSY           over a load limit, not run
        |-- ReadOnly             READ_ONLY      data cannot be written to disk now
        |-- ShuttingDown         SHUTTING_DOWN  END or a signal has been received, not run
        `-- Internal             INTERNAL       a bug; logged with a traceback

Invariant: a ``RequestError`` other than ``Internal`` is raised before anything was changed, so
its reply may say ``applied: false``; where that is not so, the raiser passes ``applied=None``.
"""

from __future__ import annotations

from typing import ClassVar

RequestId = int | str
"""What a client may send as ``id``: echoed in the reply, never interpreted."""


class ZkvError(Exception):
    """Base of every error that zkv raises on purpose."""


class StartupError(ZkvError):
    """The server cannot start. The message is one line that names the culprit."""


class ConfigError(StartupError):
    """A setting is unknown, of the wrong type or out of range; the message names it."""


class EndpointError(StartupError):
    """An endpoint is malformed, busy or not permitted; the message names it."""


class DataDirError(StartupError):
    """The data directory cannot be read, written or created; the message names the path."""


class LockedError(DataDirError):
    """Another server holds the data directory."""


class DamageError(DataDirError):
    """A file holds something that zkv did not write; the message names file and place."""


class ServerFailedError(ZkvError):
    """An embedded server has stopped, and not everything is saved. Its log says why."""


class RequestError(ZkvError):
    """A request fails; carries what its reply says.

    Args:
        message: for people; names the field, key or limit.
        applied: ``False`` where the write has certainly not been applied, ``None`` where unknown.
        request_id: the ``id`` of the request, where it could be read although decoding failed.
        seen_rev: the newest revision that the error tells of; 0 where it tells of none.
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
    """The key is not there."""

    code = "NOT_FOUND"


class Conflict(RequestError):
    """An expected revision is not the actual one; the reply carries ``key`` and ``rev``."""

    code = "CONFLICT"


class WrongType(RequestError):
    """INCR on something that is no int64, or past its range."""

    code = "WRONG_TYPE"


class Compacted(RequestError):
    """The changes asked for are not kept any more; the reply carries ``oldest``."""

    code = "COMPACTED"


class StaleSeq(RequestError):
    """The sequence number is older than what its session remembers; never run."""

    code = "STALE_SEQ"


class Deadline(RequestError):
    """The request's deadline had passed when it would have run."""

    code = "DEADLINE"


class Busy(RequestError):
    """Over a load limit; the request was not run."""

    code = "BUSY"
    retry = True


class TooLarge(RequestError):
    """A key, value, batch or reply is over its limit."""

    code = "TOO_LARGE"


class ReadOnly(RequestError):
    """Data cannot be written to disk now; the message says why."""

    code = "READ_ONLY"
    retry = True


class ShuttingDown(RequestError):
    """END or a signal has been received; the request was not run."""

    code = "SHUTTING_DOWN"
    retry = True


class Internal(RequestError):
    """A bug in the server. Whether a write was applied is not known."""

    code = "INTERNAL"


def shorten(text: str, most: int = 40) -> str:
    """``text`` from a client as a message may show it: quoted, escaped, cut where it is long."""
    return repr(text if len(text) <= most else text[: most - 3] + "...")
