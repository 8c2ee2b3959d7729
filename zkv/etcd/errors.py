"""Errors of the client of etcd, and which answer of etcd means which.

    EtcdError
    |-- UnknownOutcomeError      no answer, or one that leaves open if the call was executed
    |-- NoSpaceError             etcd's quota is used up: it refuses what writes
    |-- CompactedRevisionError   the revision is older than what etcd keeps
    |-- FutureRevisionError      etcd has not got to the revision
    |-- RequestTooLargeError     the request exceeds a limit of etcd
    |-- AccessError              password, token, rights or TLS
    |-- EtcdBusyError            etcd has too many requests
    |-- InvalidCallError         the request can never succeed, such as a key put twice
    |-- WatchLostError           a watch ended: its node is dead, cut off or without a leader
    `-- EtcdClosedError          the client has been closed

Invariant: only after an `UnknownOutcomeError` may the call have been executed, or be executed
later. Any answer that is not known to mean the opposite becomes one. Each message names the
endpoint.
"""

from __future__ import annotations

import re
from typing import Final

from zkv.errors import ZkvError

_STALE_TOKEN: Final = re.compile(r"invalid auth token|auth\b.* is old|user name is empty")


class EtcdError(ZkvError):
    """A call of etcd failed. It was not executed, unless this is an `UnknownOutcomeError`.

    Args:
        message: for people.
        endpoint: host and port of the node that was asked; empty if none was.
    """

    def __init__(self, message: str, endpoint: str = "") -> None:
        super().__init__(f"etcd at {endpoint}: {message}" if endpoint else message)
        self.endpoint = endpoint


class UnknownOutcomeError(EtcdError):
    """No answer came, or one that leaves open if the call was, or will be, executed."""


class NoSpaceError(EtcdError):
    """The quota of etcd's database is used up, and its alarm has to be ended by hand."""


class CompactedRevisionError(EtcdError):
    """The revision has been compacted.

    Args:
        message: for people.
        endpoint: of the node.
        revision: where what etcd keeps begins; 0 if it did not say.
    """

    def __init__(self, message: str, endpoint: str = "", revision: int = 0) -> None:
        super().__init__(message, endpoint)
        self.revision = revision


class FutureRevisionError(EtcdError):
    """The revision is newer than all that this node has, or that etcd has at all."""


class RequestTooLargeError(EtcdError):
    """The request exceeds a limit of etcd: in bytes, 1.5 MiB by default."""


class AccessError(EtcdError):
    """Wrong user or password, no permission, or a TLS handshake that failed."""


class EtcdBusyError(EtcdError):
    """The node has too many requests under way."""


class InvalidCallError(EtcdError):
    """The request can never succeed: a key put twice, too many operations, an unknown call."""


class WatchLostError(EtcdError):
    """A watch ended because its node is dead, cut off, stopped or without a leader."""


class EtcdClosedError(EtcdError):
    """The client has been closed."""


_ANY: Final = re.compile("")
_Kinds = tuple[tuple[re.Pattern[str], type[EtcdError]], ...]
_KINDS: Final[dict[str, _Kinds]] = {
    "RESOURCE_EXHAUSTED": (
        (re.compile("database space exceeded"), NoSpaceError),
        (re.compile("too large|larger than max"), RequestTooLargeError),
        (re.compile("too many requests"), EtcdBusyError),
    ),
    "INVALID_ARGUMENT": (
        (re.compile("too large"), RequestTooLargeError),
        (re.compile("authentication failed"), AccessError),
        (_STALE_TOKEN, AccessError),
        (_ANY, InvalidCallError),
    ),
    "OUT_OF_RANGE": (
        (re.compile("compacted"), CompactedRevisionError),
        (re.compile("future"), FutureRevisionError),
    ),
    "PERMISSION_DENIED": ((_ANY, AccessError),),
    "UNAUTHENTICATED": ((_ANY, AccessError),),
    "UNIMPLEMENTED": ((_ANY, InvalidCallError),),
    "FAILED_PRECONDITION": ((_ANY, EtcdError),),
    "DATA_LOSS": ((_ANY, EtcdError),),  # The alarm CORRUPT: etcd refuses everything.
}
"""By status, patterns of its text: the first one that is found tells the error."""


def error_of(code: str, details: str, endpoint: str) -> EtcdError:
    """Return the error for an answer of etcd that is one.

    Args:
        code: the name of gRPC's status, such as ``"UNAVAILABLE"``.
        details: its text.
        endpoint: of the node that was asked.
    """
    kind = _kind(code, details)
    text = details.removeprefix("etcdserver: ") or code
    return kind(text if kind is not UnknownOutcomeError else f"{text} ({code})", endpoint)


def has_stale_token(details: str) -> bool:
    """Return True if a call was refused, unexecuted, for its token, so that a new one may do."""
    return bool(_STALE_TOKEN.search(details))


def _kind(code: str, details: str) -> type[EtcdError]:
    kinds = _KINDS.get(code, ())
    return next((kind for pattern, kind in kinds if pattern.search(details)), UnknownOutcomeError)
