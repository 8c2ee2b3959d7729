"""The check that a user may run a request, op by op.

A request is refused as a whole, before it looks at any key: no reply, code, message or count may
depend on a key that the user may not read. Who may write a key may read it. The conditions of a
TXN are reads. SCAN, COUNT and CHANGES need a prefix all of whose keys may be read; a request for
more is refused, since to leave keys out would look as if they were absent.

The lane checks its requests by the same rules (`is_permitted` in zkv/compiled/lane.c).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from zkv.errors import Denied, shorten
from zkv.figures import MONITOR
from zkv.protocol import requests
from zkv.users.rights import NOBODY, OPERATE, REPLICATE, User

Check = tuple[bool, str]
"""True if the key is written, else it is read; and the key."""

_ADMIN: Final[dict[type[requests.Request], str]] = {
    requests.Slow: MONITOR,
    requests.Snapshot: OPERATE,
    requests.End: OPERATE,
    requests.Promote: OPERATE,
    requests.Replicate: REPLICATE,
}


def require(user: User | None, request: requests.AnyRequest) -> None:
    """Raise Denied if a user may not run a request; None = everybody may do everything."""
    if user is None:
        return
    if user is NOBODY:
        raise Denied("this key is of no user any more: the users file was changed")
    right = _ADMIN.get(type(request))
    if right is not None and right not in user.admin:
        op = requests.OP_NAMES[type(request)]
        raise Denied(f"user {user.name} may not {op}: it needs the right {right!r}")
    if isinstance(request, requests.Scan | requests.Count | requests.Changes):
        _require_prefix(user, request)
        return
    if isinstance(request, requests.Txn):
        _require_txn(user, request)
        return
    if right is None:
        for writes, key in _keys(request):
            _require_key(user, writes, key)


def may_monitor(user: User | None) -> bool:
    """Return True if a user may see the statistics."""
    return user is None or MONITOR in user.admin


def _require_key(user: User, writes: bool, key: str, **place: Any) -> None:
    if not (user.may_write(key) if writes else user.may_read(key)):
        verb = "write" if writes else "read"
        raise Denied(f"user {user.name} may not {verb} {shorten(key)}", key=key, **place)


def _require_prefix(user: User, request: requests.Scan | requests.Count | requests.Changes) -> None:
    if not user.may_read(request.prefix):
        raise Denied(
            f"user {user.name} may not read all keys with the prefix {shorten(request.prefix)}: "
            f"ask for a prefix within the user's rights"
        )


def _require_txn(user: User, request: requests.Txn) -> None:
    for index, (key, _) in enumerate(request.conditions):
        _require_key(user, False, key, field="if", index=index)
    for index, op in enumerate(request.ops):
        for writes, key in _keys(op):
            _require_key(user, writes, key, field="ops", index=index)


def _keys(request: requests.AnyRequest | requests.SubRequest) -> Iterable[Check]:
    """Yield the keys that a request names, apart from those of a TXN."""
    match request:
        case requests.MGet():
            return [(False, key) for key in request.keys]
        case requests.MPut():
            return [(True, key) for key in request.items]
        case requests.MDelete():
            return [(True, key) for key in request.keys]
        case requests.Get():
            return [(False, request.key)]
        case requests.Put() | requests.Delete() | requests.Touch() | requests.Incr():
            return [(True, request.key)]
        case requests.Ping() | requests.Info():
            return []
    raise TypeError(f"{type(request).__name__}: nobody has said who may")
