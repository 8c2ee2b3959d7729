"""Every op of the protocol: its request, and how to read its reply. Does no I/O.

Clients, namespaces, pipelines and everything built on them use these functions. Each makes an
`Operation`, which any client can run. The methods of `zkv.client.namespace.Namespace` document the
arguments and results of the ops.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from zkv import __version__, checks
from zkv.client.codec import Codec
from zkv.client.errors import BadRequestError, RefusedError, TooLargeError, UnknownOpError
from zkv.client.messages import bad_reply, pack_request
from zkv.client.slicing import Sliced, name_errors
from zkv.client.standing import Standing, standing_in

if TYPE_CHECKING:
    from zkv.checks import Seconds

T = TypeVar("T")

Reply = dict[str, Any]
Pack = Callable[[str, int, dict[str, Any], Codec], bytes]
Unpack = Callable[[str, bytes, Codec], Reply]

PROTOCOL: Final = 1
"""The protocol version of this client."""

PAGE: Final = 1_000
"""Keys or changes in one request."""


class _Raise:
    """The type of `RAISE`."""

    def __repr__(self) -> str:
        return "RAISE"


RAISE: Final = _Raise()
"""In place of a default: an absent key raises an error."""


class Entry(NamedTuple):
    """A key with its value and revision.

    Args:
        key: text; in a namespace, without its prefix.
        value: the stored value; None in a scan without values.
        rev: the revision of the store that wrote the entry.
        ttl: seconds until it expires; None if it does not expire. Only `get_entry` sets it: it is
            always None in scans and `get_entries`.
    """

    key: str
    value: Any
    rev: int
    ttl: float | None = None


class Change(NamedTuple):
    """One change of the store.

    Args:
        rev: the revision of the change; changes of one transaction share it.
        op: ``PUT`` (also for INCR), ``DELETE``, ``TOUCH`` or ``EXPIRE``; in a watch also ``RESET``.
        key: text; in a namespace, without its prefix.
        value: the entry's value for ``PUT`` and ``TOUCH``, otherwise None.
    """

    rev: int
    op: str
    key: str
    value: Any


class Operation(Generic[T]):
    """One request, and how to read its reply.

    Attributes:
        op: of the protocol.
        fields: of the request, except those that the client adds.
        read: converts a reply that reports success to the result.
        absent: the result for ``NOT_FOUND``; `RAISE` = raise an error.
        pack: packs the body of the request; None = as the client packs any request.
    """

    __slots__ = ("absent", "fields", "op", "pack", "read")

    def __init__(
        self,
        op: str,
        fields: dict[str, Any],
        read: Callable[[Reply], T],
        absent: Any = RAISE,
        pack: Pack | None = None,
    ) -> None:
        self.op = op
        self.fields = fields
        self.read = read
        self.absent = absent
        self.pack = pack

    def tolerates(self, reply: Reply) -> bool:
        """True if a refusal is not an error: the key is absent, and `absent` is the result."""
        return self.absent is not RAISE and reply["code"] == "NOT_FOUND"

    def result(self, reply: Reply) -> T:
        """Return the result of a reply.

        Raises:
            BadReplyError: a field is missing or malformed.
            BadValueError: the value of a single key cannot be decoded. If the reply has several
                values, the result contains the error in place of the value.
        """
        try:
            if not reply["ok"]:
                absent: T = self.absent
                return absent
            if type(reply) is Sliced:
                name_errors(self.op, self.fields, reply)
            return self.read(reply)
        except (LookupError, TypeError, ValueError) as error:
            raise bad_reply(self.op, f"it violates the protocol: {error!r}") from error


def read_nothing(_reply: Reply) -> bool:
    """Return True: success is the whole result."""
    return True


read_value: Final = itemgetter("value")
read_rev: Final[Callable[[Reply], int]] = itemgetter("rev")
_count: Callable[[Reply], int] = itemgetter("count")
_deleted: Callable[[Reply], int] = itemgetter("deleted")


# --- One key


def get(key: str, default: Any, min_rev: int | None = None) -> Operation[Any]:
    """Read a value."""
    fields: dict[str, Any] = {"key": key}
    if min_rev is not None:
        fields = _reaching(min_rev, fields)
    return Operation("GET", fields, read_value, default)


def _reaching(min_rev: int | None, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a read that must show a revision; None = any."""
    if min_rev is not None:
        fields["min_rev"] = checks.revision("min_rev", min_rev)
    return fields


def get_entry(key: str, shown: str, min_rev: int | None = None) -> Operation[Entry]:
    """Read an entry; the result has the key ``shown``."""

    def read(reply: Reply) -> Entry:
        return Entry(shown, reply["value"], reply["rev"], reply.get("ttl"))

    return Operation("GET", _reaching(min_rev, {"key": key}), read)


def put(
    key: str, value: Any, ttl: Seconds | None, if_rev: int | None, create: bool
) -> Operation[int]:
    """Write a value."""
    fields = {"key": key, "value": value}
    if ttl is not None:
        fields["ttl"] = checks.ttl(ttl)
    if if_rev is not None or create is not False:
        expected = condition(if_rev, create)
        if expected is not None:
            fields["if_rev"] = expected
    return Operation("PUT", fields, read_rev)


def condition(if_rev: int | None, create: bool) -> int | None:
    """Return the revision that a PUT expects. Raises ValueError if the arguments contradict."""
    checks.flag("create", create)
    expected = None if if_rev is None else checks.revision("if_rev", if_rev)
    if create and expected:
        raise ValueError("create=True means if_rev=0: pass only one of them")
    return 0 if create else expected


def delete(key: str, if_rev: int | None) -> Operation[bool]:
    """Remove an entry; the result is False if it was absent."""
    fields: dict[str, Any] = {"key": key}
    if if_rev is not None:
        fields["if_rev"] = checks.revision("if_rev", if_rev)
    return Operation("DELETE", fields, read_nothing, False)


def remove(key: str) -> Operation[int]:
    """Remove an entry; an absent key is an error."""
    return Operation("DELETE", {"key": key}, read_rev)


def touch(key: str, ttl: Seconds | None) -> Operation[int]:
    """Set a new time to live for an entry."""
    return Operation("TOUCH", {"key": key, "ttl": checks.ttl(ttl)}, read_rev)


def incr(key: str, by: int) -> Operation[int]:
    """Add to a number."""
    return Operation("INCR", {"key": key, "by": addend(by)}, read_value)


def addend(by: int) -> int:
    """Check the number that INCR adds."""
    return checks.integer("by", by, -(2**63), 2**63 - 1)


def contains(key: str) -> Operation[bool]:
    """Check that a key exists, without transferring its value."""

    def read(reply: Reply) -> bool:
        return any(item[0] == key for item in reply["items"])

    return Operation("SCAN", {"start": key, "limit": 1, "values": False}, read)


# --- Many keys


def get_many(
    prefix: str, keys: Iterable[str], min_rev: int | None = None
) -> Operation[dict[str, Any]]:
    """Read many values at one revision; absent keys are left out."""
    names, stored = checks.keys(prefix, keys)

    def read(reply: Reply) -> dict[str, Any]:
        values, revs = reply["values"], reply["revs"]
        if all(revs):  # The usual case: 3 us for 100 keys, instead of 10.
            return dict(zip(names, values, strict=True))
        found = zip(names, values, revs, strict=True)
        return {name: value for name, value, rev in found if rev}

    return Operation("MGET", _reaching(min_rev, {"keys": stored}), read)


def get_entries(
    prefix: str, keys: Iterable[str], min_rev: int | None = None
) -> Operation[dict[str, Entry]]:
    """Read many entries at one revision; absent keys are left out."""
    names, stored = checks.keys(prefix, keys)

    def read(reply: Reply) -> dict[str, Entry]:
        found = zip(names, reply["values"], reply["revs"], strict=True)
        return {name: Entry(name, value, rev) for name, value, rev in found if rev}

    return Operation("MGET", _reaching(min_rev, {"keys": stored}), read)


def put_many(prefix: str, items: Mapping[str, Any], ttl: Seconds | None) -> Operation[int]:
    """Write many values as one revision."""
    checks.instance("items", items, Mapping)  # type: ignore[type-abstract]
    given = list(items)
    keys = checks.stored("keys of items", prefix, given)
    entries = dict(items) if keys is given else dict(zip(keys, items.values(), strict=True))
    fields: dict[str, Any] = {"items": entries}
    if ttl is not None:
        fields["ttl"] = checks.ttl(ttl)
    return Operation("MPUT", fields, read_rev)


def delete_many(prefix: str, keys: Iterable[str]) -> Operation[int]:
    """Remove many entries as one revision; the result is how many existed."""
    return Operation("MDELETE", {"keys": checks.keys(prefix, keys)[1]}, _deleted)


def count(prefix: str, min_rev: int | None = None) -> Operation[int]:
    """Count the keys with a prefix."""
    return Operation("COUNT", _reaching(min_rev, {"prefix": prefix}), _count)


class ScanPages:
    """The pages of a scan: run `next_page` until it returns None.

    If a page is too large for a reply, it is requested again with half as many keys.

    Args:
        namespace: the prefix to remove from the keys that are found.
        fields: of SCAN, except ``limit``; keys in them are as stored.
        limit: the maximum number of entries; None = all.

    Attributes:
        following: the key after which to continue, as stored; None = there are no more.
    """

    def __init__(self, namespace: str, fields: dict[str, Any], limit: int | None) -> None:
        if limit is not None:
            limit = checks.integer("limit", limit, 0, checks.MOST_REVISION)
        self._strip = len(namespace)
        self._fields = fields
        self._left = limit
        self._page = PAGE
        self._done = limit == 0
        self.following: str | None = None

    def next_page(self) -> Operation[list[Entry]] | None:
        """Return the request for the next page; None = there are no more."""
        if self._done:
            return None
        most = self._page if self._left is None else min(self._page, self._left)
        return Operation("SCAN", {**self._fields, "limit": most}, self._read)

    def too_large(self, error: TooLargeError) -> None:
        """Make the refused page smaller. Raises ``error`` if it has only one key."""
        if self._page == 1:
            raise error
        self._page = max(1, min(self._page, self._left or self._page) // 2)

    def _read(self, reply: Reply) -> list[Entry]:
        strip, items, following = self._strip, reply["items"], reply["next"]
        new = tuple.__new__  # The `__new__` of a named tuple is in Python, and takes longer.
        if self._fields.get("values", True):
            page = [new(Entry, (key[strip:], value, rev, None)) for key, value, rev in items]
        else:
            page = [new(Entry, (key[strip:], None, rev, None)) for key, _, rev in items]
        if following is not None and not self._is_further_on(following):
            raise ValueError(f"the next page begins after {following!r}, which is not further on")
        if self._left is not None:
            self._left -= len(page)
        self._done = following is None or self._left == 0
        self._fields["after"] = self.following = following
        return page

    def _is_further_on(self, following: object) -> bool:
        """True for a key beyond the one after which the page began.

        The page itself may be empty: the server skips keys that have expired.
        """
        if not isinstance(following, str):
            return False
        after = self._fields.get("after")
        if after is None:
            return True
        return bool(following < after if self._fields.get("reverse") else following > after)


def scan_fields(
    namespace: str,
    prefix: str = "",
    *,
    start: str | None = None,
    end: str | None = None,
    after: str | None = None,
    values: bool = True,
    reverse: bool = False,
    min_rev: int | None = None,
) -> dict[str, Any]:
    """Return the fields of a SCAN, with keys as they are stored."""
    fields: dict[str, Any] = {
        "prefix": namespace + checks.text("prefix", prefix),
        "values": checks.flag("values", values),
        "reverse": checks.flag("reverse", reverse),
    }
    for name, key in (("start", start), ("end", end), ("after", after)):
        if key is not None:
            fields[name] = namespace + checks.text(name, key)
    return _reaching(min_rev, fields)


class ChangePages:
    """The pages of changes, up to the store's revision when they are read.

    Args:
        namespace: the prefix to remove from the keys.
        prefix: of the keys, after the namespace.
        since: the revision after which to begin.
    """

    def __init__(self, namespace: str, prefix: str, since: int) -> None:
        self._strip = len(namespace)
        self._prefix = namespace + checks.text("prefix", prefix)
        self._done = False
        self.since = checks.revision("since", since)

    def next_page(self) -> Operation[list[Change]] | None:
        """Return the request for the next page; None = there are no more."""
        if self._done:
            return None
        fields = {"since": self.since, "prefix": self._prefix, "limit": PAGE}
        return Operation("CHANGES", fields, self._read)

    def _read(self, reply: Reply) -> list[Change]:
        strip = self._strip
        page = [Change(rev, op, key[strip:], value) for rev, op, key, value in reply["changes"]]
        self._done = reply["next"] >= reply["rev"] or reply["next"] == self.since
        self.since = reply["next"]
        return page


# --- The server


def ping() -> Operation[dict[str, Any]]:
    """Ask if the server is up."""
    return Operation("PING", {}, _facts)


def info() -> Operation[dict[str, Any]]:
    """Ask for the server's settings, contents and counters."""
    return Operation("INFO", {}, _facts)


def slow(limit: int, reset: bool) -> Operation[list[dict[str, Any]]]:
    """Ask for the newest slow requests."""
    return Operation("SLOW", {"limit": limit, "reset": reset}, itemgetter("entries"))


class FeedInfo(NamedTuple):
    """Where a follower of changes is to begin.

    Args:
        rev: of the store.
        feed: the endpoint of its feed, unchecked; None = there is none.
        standing: of the server.
    """

    rev: int
    feed: object
    standing: Standing


def place() -> Operation[FeedInfo]:
    """Ask for the store's revision, the endpoint of its feed and the server's standing, by INFO."""

    def read(facts: Reply) -> FeedInfo:
        return FeedInfo(facts["rev"], facts["feed"], standing_in(facts))

    return Operation("INFO", {}, read)


def features_in(facts: Mapping[str, Any]) -> frozenset[str]:
    """Return the features of a server, from its reply to INFO."""
    features = facts.get("features")
    return frozenset(features if isinstance(features, list) else ())


def is_unknown_to_server(error: RefusedError) -> bool:
    """True if the server may be older than this client."""
    return isinstance(error, UnknownOpError) or (
        isinstance(error, BadRequestError) and "unknown" in error.message
    )


def is_unknown_field(name: str, error: RefusedError) -> bool:
    """True if the server has refused the field because it does not know it."""
    return isinstance(error, BadRequestError) and f"unknown field `{name}`" in error.message


def older_than_client(facts: Mapping[str, Any]) -> str:
    """Return text for an error of a server that is older than this client; otherwise empty.

    Args:
        facts: the reply to INFO.
    """
    protocol, version = facts.get("protocol"), facts.get("version")
    if type(protocol) is not int or type(version) is not str:
        return ""
    if (protocol, _parts(version)) >= (PROTOCOL, _parts(__version__)):
        return ""
    return (
        f"; the server is older than this client: "
        f"zkv {version}, protocol {protocol}, not zkv {__version__}, protocol {PROTOCOL}"
    )


def _parts(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


def snapshot() -> Operation[int]:
    """Make the server write a snapshot."""
    return Operation("SNAPSHOT", {}, read_rev)


def end() -> Operation[int]:
    """Make the server save all data and end."""
    return Operation("END", {}, read_rev)


def plain(op: str, fields: dict[str, Any]) -> Operation[Reply]:
    """Run any op; the result is the whole reply."""
    return Operation(op, fields, _itself, pack=pack_request)


def _itself(reply: Reply) -> Reply:
    return reply


def _facts(reply: Reply) -> dict[str, Any]:
    return {name: value for name, value in reply.items() if name not in {"ok", "id"}}
