"""A client of etcd (https://etcd.io), of which zkv needs little: transactions, reads, watches.

`connect` makes one. `Etcd` is its interface, which tests also have in memory. It knows nothing of
zkv. What comes with the extra ``etcd`` is imported by `connect` alone.
"""

from __future__ import annotations

from typing import Final

from zkv.errors import ConfigError
from zkv.etcd.errors import (
    AccessError,
    CompactedRevisionError,
    EtcdBusyError,
    EtcdClosedError,
    EtcdError,
    FutureRevisionError,
    InvalidCallError,
    NoSpaceError,
    RequestTooLargeError,
    UnknownOutcomeError,
    WatchLostError,
)
from zkv.etcd.interface import (
    Alarm,
    Compare,
    DeleteOp,
    Etcd,
    EtcdWatch,
    Item,
    ItemEvent,
    NodeStatus,
    Op,
    PutOp,
    ReadOp,
    ReadResult,
    TxnResult,
    with_prefix,
)
from zkv.etcd.security import EtcdSecurity

__all__ = [
    "AccessError",
    "Alarm",
    "CompactedRevisionError",
    "Compare",
    "DeleteOp",
    "Etcd",
    "EtcdBusyError",
    "EtcdClosedError",
    "EtcdError",
    "EtcdSecurity",
    "EtcdWatch",
    "FutureRevisionError",
    "InvalidCallError",
    "Item",
    "ItemEvent",
    "NoSpaceError",
    "NodeStatus",
    "Op",
    "PutOp",
    "ReadOp",
    "ReadResult",
    "RequestTooLargeError",
    "TxnResult",
    "UnknownOutcomeError",
    "WatchLostError",
    "connect",
    "with_prefix",
]

MISSING: Final = (
    "etcd needs the packages hpack and protobuf, which are not installed here: "
    "pip install 'zkv[etcd]'"
)


def connect(endpoints: list[str], security: EtcdSecurity | None = None) -> Etcd:
    """Return a client of etcd. It connects when it is first used.

    Args:
        endpoints: each ``host:port``, ``http://host:port`` or ``https://host:port``; one or more.
        security: TLS, user and password; None without.

    Raises:
        ConfigError: an endpoint is malformed, a file cannot be used, or the extra ``etcd`` is not
            installed.
    """
    try:
        from zkv.etcd.client import EtcdClient
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"hpack", "google"}:
            raise
        raise ConfigError(MISSING) from None
    return EtcdClient(endpoints, security=security)
