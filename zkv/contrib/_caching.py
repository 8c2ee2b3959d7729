"""The common part of the caches: any object as a value, and numbers counted atomically.

Frameworks that cache any object need pickle. What msgpack stores as it is (text, bytes, numbers,
True, False, None) is stored so: it can be counted, and other clients can read it. All else is
pickled, and marked by an ext. So whoever may write to the prefix of such a cache can run code in
the programs that read it, as with any cache of these frameworks.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from msgpack import ExtType

from zkv.contrib._requests import until_alone
from zkv.defaults import LONGEST_TTL

if TYPE_CHECKING:
    from zkv.client import Namespace

PICKLED: Final = 100
"""The code of the ext."""
PLAIN: Final = frozenset({bytes, float, bool, type(None)})
"""Types that msgpack stores as they are, in addition to some of `int` and `str`."""


def dump(value: Any) -> Any:
    """Return what to store for an object.

    Raises:
        Exception: it cannot be pickled: pickle raises many kinds.
    """
    if is_counted(value) or type(value) in PLAIN or _is_text(value):
        return value
    return ExtType(PICKLED, pickle.dumps(value, pickle.HIGHEST_PROTOCOL))


def load(stored: Any) -> Any:
    """Return the object of a stored value."""
    if type(stored) is ExtType and stored.code == PICKLED:
        return pickle.loads(stored.data)  # noqa: S301  the framework requires it, see above
    return stored


def is_counted(value: Any) -> bool:
    """Return True for a number that the server can add to."""
    return type(value) is int and -(2**63) <= value < 2**63


def _is_text(value: Any) -> bool:
    """Return True for text without surrogates, which UTF-8 does not have."""
    if type(value) is not str:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def lifetime(seconds: float | None) -> float | None:
    """Return a time to live that the server takes; None = for ever."""
    return None if seconds is None else min(seconds, LONGEST_TTL)


@until_alone
def add(
    keys: Namespace,
    key: str,
    delta: Any,
    dumps: Callable[[Any], Any] = dump,
    loads: Callable[[Any], Any] = load,
) -> Any:
    """Add to a number that exists, and return the sum. Its time to live remains.

    Args:
        keys: the namespace with the key.
        key: of the number.
        delta: to be added.
        dumps: makes what is stored of a number.
        loads: makes a number of what is stored.

    Raises:
        NotFoundError: the key is absent.
        TypeError: the value is not a number.
    """
    entry = keys.get_entry(key)
    total = loads(entry.value) + delta
    if is_counted(entry.value) and is_counted(total):
        with keys.txn() as txn:
            txn.check(key, entry.rev)
            txn.incr(key, delta)
    else:
        keys.put(key, dumps(total), ttl=entry.ttl, if_rev=entry.rev)
    return total
