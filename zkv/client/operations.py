"""Every op of the protocol as a request and a way to read its reply, with no I/O.

Both clients, and namespaces, pipelines and all that is built on them, ask through these functions:
each makes an `Operation`, which any client can run. What an op takes and gives is told by the
methods of `zkv.client.namespace.Namespace`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from zkv import __version__, checks
from zkv.client.codec import Codec
from zkv.client.errors import BadRequestError, RefusedError, TooLargeError, UnknownOpError
from zkv.client.messages import bad_reply, pack_request, unpack_reply
from zkv.client.slicing import Sliced, name_errors

if TYPE_CHECKING:
    from zkv.checks import Seconds

T = TypeVar("T")

Reply = dict[str, Any]

LARGE: Final = 4_000
"""Bytes of a reply for which importing msgspec, which takes a while, is worth it."""

PROTOCOL: Final = 1
"""The version that this client speaks."""

PAGE: Final = 1_000
"""Keys or changes that are asked for at once."""


class _Raise:
    """The type of `RAISE`."""

    def __repr__(self) -> str:
        return "RAISE"


RAISE: Final = _Raise()
"""In the place of a default: there is none, an absent key is an error."""


class Entry(NamedTuple):
    """What is stored under a key.

    Args:
        key: text; within a namespace, without its prefix.
        value: as it was put; None where only keys were asked for.
        rev: the revision of the store that wrote it.
        ttl: seconds that it has left; None where it does not expire, and where only `get_entry`
            would tell: in scans and `get_entries`.
    """

    key: str
    value: Any
    rev: int
    ttl: float | None = None


class Change(NamedTuple):
    """One change of the store.

    Args:
        rev: the revision that made it; changes of one transaction share it.
        op: ``PUT`` (also for what INCR writes), ``DELETE``, ``TOUCH`` or ``EXPIRE``.
        key: text; within a namespace, without its prefix.
        value: the new one for ``PUT``, else None.
    """

    rev: int
    op: str
    key: str
    value: Any


def unpack_by_size(op: str, body: bytes, codec: Codec) -> Reply:
    """`unpack_reply`, or `zkv.client.quick` for a body that is worth importing msgspec."""
    if len(body) < LARGE:
        return unpack_reply(op, body, codec)
    from zkv.client.quick import unpack_quickly

    return unpack_quickly(op, body, codec)


class Operation(Generic[T]):
    """One request, and how its reply is read.

    Attributes:
        op: of the protocol.
        fields: of the request, but for those that the client adds.
        read: what is returned for a reply of success.
        absent: what is returned for ``NOT_FOUND``; `RAISE` = that is an error.
        pack: makes its body.
        unpack: reads that of its reply.
    """

    __slots__ = ("absent", "fields", "op", "pack", "read", "unpack")

    def __init__(
        self,
        op: str,
        fields: dict[str, Any],
        read: Callable[[Reply], T],
        absent: Any = RAISE,
        *,
        pack: Callable[[str, int, dict[str, Any], Codec], bytes] = pack_request,
        unpack: Callable[[str, bytes, Codec], Reply] = unpack_by_size,
    ) -> None:
        self.op = op
        self.fields = fields
        self.read = read
        self.absent = absent
        self.pack = pack
        self.unpack = unpack

    def tolerates(self, reply: Reply) -> bool:
        """Whether a refusal is no error, but has a meaning of its own."""
        return self.absent is not RAISE and reply["code"] == "NOT_FOUND"

    def result(self, reply: Reply) -> T:
        """What a reply means.

        Raises:
            BadReplyError: it lacks something.
            BadValueError: the value of a single key cannot be decoded. Where there are others, the
                error stands in the place of the value.
        """
        if not reply["ok"]:
            absent: T = self.absent
            return absent
        try:
            if type(reply) is Sliced:
                name_errors(self.op, self.fields, reply)
            return self.read(reply)
        except (LookupError, TypeError, ValueError) as error:
            raise bad_reply(self.op, f"it is not as the protocol says: {error!r}") from error


def read_nothing(_reply: Reply) -> bool:
    """That there was a reply of success is all."""
    return True


read_value: Final = itemgetter("value")
read_rev: Final[Callable[[Reply], int]] = itemgetter("rev")
_count: Callable[[Reply], int] = itemgetter("count")
_deleted: Callable[[Reply], int] = itemgetter("deleted")


# --- One key


def get(key: str, default: Any) -> Operation[Any]:
    """Read a value."""
    return Operation("GET", {"key": key}, read_value, default)


def get_entry(key: str, shown: str) -> Operation[Entry]:
    """Read an entry, that goes by the name ``shown``."""

    def read(reply: Reply) -> Entry:
        return Entry(shown, reply["value"], reply["rev"], reply.get("ttl"))

    return Operation("GET", {"key": key}, read)


def put(
    key: str, value: Any, ttl: Seconds | None, if_rev: int | None, create: bool
) -> Operation[int]:
    """Write a value."""
    fields = {"key": key, "value": value}
    if ttl is not None:
        fields["ttl"] = checks.ttl(ttl)
    expected = condition(if_rev, create)
    if expected is not None:
        fields["if_rev"] = expected
    return Operation("PUT", fields, read_rev)


def condition(if_rev: int | None, create: bool) -> int | None:
    """The revision that a PUT expects. Raises ValueError where there would have to be two."""
    if create is False and if_rev is None:
        return None
    checks.flag("create", create)
    expected = None if if_rev is None else checks.revision("if_rev", if_rev)
    if create and expected:
        raise ValueError("create=True means if_rev=0: give one of them")
    return 0 if create else expected


def delete(key: str, if_rev: int | None) -> Operation[bool]:
    """Remove an entry; False: there was none."""
    fields: dict[str, Any] = {"key": key}
    if if_rev is not None:
        fields["if_rev"] = checks.revision("if_rev", if_rev)
    return Operation("DELETE", fields, read_nothing, False)


def remove(key: str) -> Operation[int]:
    """Remove an entry that has to be there."""
    return Operation("DELETE", {"key": key}, read_rev)


def touch(key: str, ttl: Seconds | None) -> Operation[int]:
    """Give an entry another time to live."""
    return Operation("TOUCH", {"key": key, "ttl": checks.ttl(ttl)}, read_rev)


def incr(key: str, by: int) -> Operation[int]:
    """Add to a number."""
    return Operation("INCR", {"key": key, "by": addend(by)}, read_value)


def addend(by: int) -> int:
    """A number that INCR adds."""
    return checks.integer("by", by, -(2**63), 2**63 - 1)


def contains(key: str) -> Operation[bool]:
    """Whether a key is there; its value does not travel."""

    def read(reply: Reply) -> bool:
        return any(item[0] == key for item in reply["items"])

    return Operation("SCAN", {"start": key, "limit": 1, "values": False}, read)


# --- Many keys


def get_many(prefix: str, keys: Iterable[str]) -> Operation[dict[str, Any]]:
    """Read many values at one revision; absent keys are left out."""
    names, stored = checks.keys(prefix, keys)

    def read(reply: Reply) -> dict[str, Any]:
        values, revs = reply["values"], reply["revs"]
        if all(revs):  # As a rule; 3 us for 100 keys, instead of 10.
            return dict(zip(names, values, strict=True))
        found = zip(names, values, revs, strict=True)
        return {name: value for name, value, rev in found if rev}

    return Operation("MGET", {"keys": stored}, read)


def get_entries(prefix: str, keys: Iterable[str]) -> Operation[dict[str, Entry]]:
    """Read many entries at one revision; absent keys are left out."""
    names, stored = checks.keys(prefix, keys)

    def read(reply: Reply) -> dict[str, Entry]:
        found = zip(names, reply["values"], reply["revs"], strict=True)
        return {name: Entry(name, value, rev) for name, value, rev in found if rev}

    return Operation("MGET", {"keys": stored}, read)


def put_many(prefix: str, items: Mapping[str, Any], ttl: Seconds | None) -> Operation[int]:
    """Write many values as one revision."""
    checks.instance("items", items, Mapping)  # type: ignore[type-abstract]
    keys = list(items)
    checks.all_text("keys of items", keys)
    fields: dict[str, Any] = {
        "items": dict(zip(checks.stored(prefix, keys), items.values(), strict=True))
    }
    if ttl is not None:
        fields["ttl"] = checks.ttl(ttl)
    return Operation("MPUT", fields, read_rev)


def delete_many(prefix: str, keys: Iterable[str]) -> Operation[int]:
    """Remove many entries as one revision; how many were there."""
    return Operation("MDELETE", {"keys": checks.keys(prefix, keys)[1]}, _deleted)


def count(prefix: str) -> Operation[int]:
    """How many keys there are."""
    return Operation("COUNT", {"prefix": prefix}, _count)


class ScanPages:
    """The pages of a scan: ask for `next_page` until it gives None, and hand it each reply.

    A page that would be too large for a reply is asked for again with half as many keys.

    Args:
        namespace: is taken off the keys that are found.
        fields: of SCAN, but for ``limit``; keys in it are as they are stored.
        limit: entries in all; None = as many as there are.

    Attributes:
        following: the key behind which there are more, as it is stored; None = there are none.
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
        """The request for the next page; None: there is none."""
        if self._done:
            return None
        most = self._page if self._left is None else min(self._page, self._left)
        return Operation("SCAN", {**self._fields, "limit": most}, self._read)

    def too_large(self, error: TooLargeError) -> None:
        """The page was refused. Raises ``error`` where a smaller one would be, too."""
        if self._page == 1:
            raise error
        self._page = max(1, min(self._page, self._left or self._page) // 2)

    def _read(self, reply: Reply) -> list[Entry]:
        strip, following = self._strip, reply["next"]
        if self._fields.get("values", True):
            page = [Entry(key[strip:], value, rev) for key, value, rev in reply["items"]]
        else:
            page = [Entry(key[strip:], None, rev) for key, _, rev in reply["items"]]
        if following is not None and not self._is_further_on(following):
            raise ValueError(f"the next page is after {following!r}, which is not further on")
        if self._left is not None:
            self._left -= len(page)
        self._done = following is None or self._left == 0
        self._fields["after"] = self.following = following
        return page

    def _is_further_on(self, following: object) -> bool:
        """True for a key behind the one after which the page began.

        The page itself may be empty: the server passes over keys that have expired.
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
) -> dict[str, Any]:
    """The fields of a SCAN, with keys as they are stored."""
    fields: dict[str, Any] = {
        "prefix": namespace + checks.text("prefix", prefix),
        "values": checks.flag("values", values),
        "reverse": checks.flag("reverse", reverse),
    }
    for name, key in (("start", start), ("end", end), ("after", after)):
        if key is not None:
            fields[name] = namespace + checks.text(name, key)
    return fields


class ChangePages:
    """The pages of what has changed, up to the store's revision as it is when they are read.

    Args:
        namespace: is taken off the keys that are found.
        prefix: of the keys, behind the namespace.
        since: the revision after which to begin.
    """

    def __init__(self, namespace: str, prefix: str, since: int) -> None:
        self._strip = len(namespace)
        self._prefix = namespace + checks.text("prefix", prefix)
        self._done = False
        self.since = checks.revision("since", since)

    def next_page(self) -> Operation[list[Change]] | None:
        """The request for the next page; None: that was all."""
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
    """Whether the server is there."""
    return Operation("PING", {}, _facts)


def info() -> Operation[dict[str, Any]]:
    """What the server is, holds and has done."""
    return Operation("INFO", {}, _facts)


def place() -> Operation[tuple[int, object]]:
    """The store's revision, and where its changes are published, as INFO tells."""
    return Operation("INFO", {}, itemgetter("rev", "feed"))


def is_unknown_to_server(error: RefusedError) -> bool:
    """Whether the server may know less than this client."""
    return isinstance(error, UnknownOpError) or (
        isinstance(error, BadRequestError) and "unknown" in error.message
    )


def older_than_client(facts: Mapping[str, Any]) -> str:
    """What to add to an error of a server that is older than this client; else nothing.

    Args:
        facts: what INFO tells.
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
    """Have a snapshot written."""
    return Operation("SNAPSHOT", {}, read_rev)


def end() -> Operation[int]:
    """Have the server save everything and end."""
    return Operation("END", {}, read_rev)


def plain(op: str, fields: dict[str, Any]) -> Operation[Reply]:
    """Any op; the reply as it comes."""
    return Operation(op, fields, _itself)


def _itself(reply: Reply) -> Reply:
    return reply


def _facts(reply: Reply) -> dict[str, Any]:
    return {name: value for name, value in reply.items() if name not in {"ok", "id"}}
