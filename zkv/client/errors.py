"""What a request may end in, other than success.

    ZkvError
    `-- ClientError          a request that was not answered with success
        |-- RefusedError     the server answered that it failed, and why
        |-- NoReplyError     no reply came in time
        `-- BadReplyError    a reply came, and breaks the protocol

What every caller needs to know before it repeats a write stands on each of them: ``applied``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zkv.errors import ZkvError


class ClientError(ZkvError):
    """A request that was not answered with success.

    Args:
        message: one line, for people.
        applied: ``False`` where nothing was changed by the request, and nothing will be; ``None``
            where it may have been carried out, or may yet be.
    """

    def __init__(self, message: str, applied: bool | None) -> None:
        super().__init__(message, applied)  # all of it, so that pickle can make another one
        self.message = message
        self.applied = applied

    def __str__(self) -> str:
        return self.message


class RefusedError(ClientError):
    """The server answered that the request failed.

    Args:
        code: what went wrong, one of the protocol's codes: ``NOT_FOUND``, ``CONFLICT`` and so on.
        message: for people; names the field, key or limit.
        retry: whether the same request may succeed later.
        applied: as for `ClientError`.
        details: what else the reply says, such as ``rev`` of a ``CONFLICT``.
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
        self.args = (code, message, retry, applied, details)
        self.code = code
        self.retry = retry
        self.details = details

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class NoReplyError(ClientError):
    """No reply came in time: the server is down, out of reach or busy, or the reply was lost."""


class BadReplyError(ClientError):
    """A reply came that cannot be read, or that does not belong to the request."""
