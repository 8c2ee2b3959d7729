"""A client of etcd (https://etcd.io), of which zkv needs little: transactions, reads, watches.

`connect` makes one. `Etcd` is its interface, which tests also have in memory. It knows nothing of
zkv. gRPC is imported by `connect` alone, as it comes with the extra ``etcd`` and takes its time.
"""

from __future__ import annotations

import os
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
    "etcd needs the packages grpcio and protobuf, which are not installed here: "
    "pip install 'zkv[etcd]'"
)


def connect(endpoints: list[str], security: EtcdSecurity | None = None) -> Etcd:
    """Return a client of etcd. It connects when it is first used.

    Args:
        endpoints: each ``host:port``, ``http://host:port`` or ``https://host:port``; one or more.
        security: TLS, user and password; None without.

    Raises:
        ConfigError: an endpoint is malformed, a file cannot be used, or gRPC is not installed.
    """
    # gRPC's own lines on standard error would stand among those of the log. The messages of the
    # errors say the same. It reads this when it is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from zkv.etcd.client import EtcdClient
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"grpc", "google"}:
            raise
        raise ConfigError(MISSING) from None
    return EtcdClient(endpoints, security=security)
