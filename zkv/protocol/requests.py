"""One class per op: the schema of requests.

A request body is a msgpack map. Its ``op`` selects the class; the other fields of the map are the
fields of the class. Unknown fields are refused. Fields without a default are required. Values stay
``Raw``: the bytes that the client packed, neither decoded nor changed.

`TEXT_FIELDS` and the sets after it name the fields in which a msgpack bin that holds UTF-8 counts
as str.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Union, get_args

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from zkv.defaults import LONGEST_TTL
from zkv.errors import RequestId

Revision = Annotated[int, Meta(ge=0)]
Limit = Annotated[int, Meta(ge=1)]
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
LogNumber = Annotated[int, Meta(ge=0, le=2**63 - 1)]
MOST_REPLICATED: Final = 4 * 1024 * 1024
"""The largest ``limit`` of REPLICATE, in bytes."""
Ttl = Annotated[float, Meta(gt=0, le=LONGEST_TTL)]
"""Seconds, as a float or an int."""


class Request(
    Struct,
    frozen=True,
    kw_only=True,
    tag_field="op",
    forbid_unknown_fields=True,
    omit_defaults=True,  # The digest must not depend on defaults that the client sent.
):
    """The fields that every request may have, besides ``op``.

    Attributes:
        id: echoed in the reply.
        session: makes a write exactly-once, together with ``seq``.
        seq: number of the write in its session.
        deadline: Unix time in ms after which the request must not run.
        durable: answer a write only once it is on disk.
        timing: add to the reply how long each part of the request took.
        trace: the caller's name for what the request is part of, for the logs.
        writes: the op may change something.
    """

    writes: ClassVar[bool] = False

    id: RequestId | None = None
    session: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    seq: Limit | None = None
    deadline: int | None = None
    durable: bool = False
    timing: bool = False
    trace: Annotated[str, Meta(min_length=1, max_length=64)] | None = None

    def subject(self) -> str | int | None:
        """Return the key, or the number of keys, for the request log; None if there is neither."""
        return None


class KeyRequest(Request, frozen=True, kw_only=True):
    """A request about one key."""

    key: str

    def subject(self) -> str:
        """Return the key."""
        return self.key


class ReadRequest(Request, frozen=True, kw_only=True):
    """A read that a server may answer which does not lead its store.

    Attributes:
        stale: what is read may be old.
        min_rev: wait until the store has this revision.
    """

    stale: bool = False
    min_rev: Revision | None = None


READ_FIELDS = frozenset(ReadRequest.__struct_fields__) - frozenset(Request.__struct_fields__)
"""The fields of reads, which the reads in a TXN do not have."""


class Ping(Request, frozen=True, kw_only=True, tag="PING"):
    """Check that the server answers, and ask for its protocol version and clock."""


class Get(ReadRequest, frozen=True, kw_only=True, tag="GET"):
    """Read one entry."""

    key: str

    def subject(self) -> str:
        """Return the key."""
        return self.key


class Put(KeyRequest, frozen=True, kw_only=True, tag="PUT"):
    """Write one entry; ``prev`` asks for the replaced value and revision."""

    writes = True

    value: Raw
    ttl: Ttl | None = None
    if_rev: Revision | None = None
    prev: bool = False


class Delete(KeyRequest, frozen=True, kw_only=True, tag="DELETE"):
    """Remove one entry; ``prev`` asks for its value and revision."""

    writes = True

    if_rev: Revision | None = None
    prev: bool = False


class Touch(KeyRequest, frozen=True, kw_only=True, tag="TOUCH"):
    """Set the time to live of an entry; nil = it never expires."""

    writes = True

    ttl: Ttl | None


class Incr(KeyRequest, frozen=True, kw_only=True, tag="INCR"):
    """Add to an int64; an absent entry counts as 0."""

    writes = True

    by: Int64 = 1


class MGet(ReadRequest, frozen=True, kw_only=True, tag="MGET"):
    """Read many entries at one revision."""

    keys: list[str]

    def subject(self) -> int:
        """Return the number of keys."""
        return len(self.keys)


class MPut(Request, frozen=True, kw_only=True, tag="MPUT"):
    """Write many entries with one revision, all or nothing."""

    writes = True

    items: dict[str, Raw]
    ttl: Ttl | None = None

    def subject(self) -> int:
        """Return the number of keys."""
        return len(self.items)


class MDelete(Request, frozen=True, kw_only=True, tag="MDELETE"):
    """Remove many entries with one revision, all or nothing; absent keys are ignored."""

    writes = True

    keys: list[str]

    def subject(self) -> int:
        """Return the number of keys."""
        return len(self.keys)


SubRequest = Union[Put, Get, Delete, Touch, Incr]  # noqa: UP007  evaluated by msgspec


class Txn(Request, frozen=True, kw_only=True, tag="TXN"):
    """Check conditions and run ops, committed with one revision, all or nothing."""

    writes = True

    conditions: list[tuple[str, Revision]] = field(name="if", default_factory=list)
    ops: list[SubRequest]

    def subject(self) -> int:
        """Return the number of ops."""
        return len(self.ops)


class Scan(ReadRequest, frozen=True, kw_only=True, tag="SCAN"):
    """Read entries in key order, one page at a time."""

    prefix: str = ""
    start: str | None = None
    end: str | None = None
    after: str | None = None
    limit: Limit = 100
    values: bool = True
    reverse: bool = False


class Count(ReadRequest, frozen=True, kw_only=True, tag="COUNT"):
    """Count the keys that begin with a prefix."""

    prefix: str = ""


class Changes(Request, frozen=True, kw_only=True, tag="CHANGES"):
    """Read the changes after a revision."""

    since: Revision
    prefix: str = ""
    limit: Limit = 1_000


class Info(Request, frozen=True, kw_only=True, tag="INFO"):
    """Ask for version, limits, settings and statistics."""


class Slow(Request, frozen=True, kw_only=True, tag="SLOW"):
    """Ask for the newest slow requests; ``reset`` then forgets them all."""

    limit: Limit = 100
    reset: bool = False


class Promote(Request, frozen=True, kw_only=True, tag="PROMOTE"):
    """Have a standby take over from its primary; ``force``: also without that."""

    force: bool = False


class Supersede(Struct, frozen=True, forbid_unknown_fields=True):
    """Tells a primary that a standby takes over, or that it has failed to.

    Attributes:
        attempt: numbers the attempts of this standby, the later the higher.
        term: the term that it is going to begin.
        leader: where clients find it; nil: this attempt has failed, the primary leads again.
    """

    attempt: LogNumber
    term: LogNumber
    leader: Annotated[list[str], Meta(min_length=1, max_length=64)] | None


class Promise(Struct, frozen=True, forbid_unknown_fields=True):
    """Has a server promise to confirm nothing to a lower term, or withdraws that.

    Attributes:
        attempt: numbers the attempts of the asker, the later the higher.
        term: the term that it is going to begin.
        tag: the tag of that term; nil: this attempt has failed, the promise is void.
    """

    attempt: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    term: LogNumber
    tag: Annotated[str, Meta(min_length=1, max_length=64)] | None


class Replicate(Request, frozen=True, kw_only=True, tag="REPLICATE"):
    """Ask for the commits after a log number, or for a part of a snapshot.

    Attributes:
        member: the name of the asker.
        after: the log number of the newest commit that it has.
        term: the number of that commit's term; 0 = it has none.
        tag: the tag of that term.
        store: the identity of the asker's store; empty = any.
        durable: the log number of the newest commit on the asker's disk.
        durable_rev: the newest revision there.
        wait: milliseconds to wait for commits if there are none.
        limit: bytes of commits, or of a snapshot, to return.
        sync: the asker may count for `[replication] sync`.
        snapshot: the revision of the snapshot of which a part is asked for; 0 = the newest one.
        offset: the place of that part, in bytes.
        supersede: the primary stops to lead, in favour of the asker, or leads again.
        promise: the server confirms nothing to a lower term from now on, or may do so again.
    """

    member: Annotated[str, Meta(min_length=1, max_length=64)]
    after: LogNumber = 0
    term: LogNumber = 0
    tag: Annotated[str, Meta(max_length=64)] = ""
    store: Annotated[str, Meta(max_length=64)] = ""
    durable: LogNumber = 0  # type: ignore[assignment]  # Here it is a number.
    durable_rev: LogNumber = 0
    wait: Annotated[int, Meta(ge=0, le=10_000)] = 0
    limit: Annotated[int, Meta(ge=1, le=MOST_REPLICATED)] = 1024 * 1024
    sync: bool = True
    snapshot: LogNumber | None = None
    offset: LogNumber | None = None
    supersede: Supersede | UnsetType = UNSET
    promise: Promise | UnsetType = UNSET


class Snapshot(Request, frozen=True, kw_only=True, tag="SNAPSHOT"):
    """Write a snapshot that holds every write answered before."""


class End(Request, frozen=True, kw_only=True, tag="END"):
    """Save everything and stop the server."""


AnyRequest = Union[  # noqa: UP007  evaluated by msgspec
    Ping, Get, Put, Delete, Touch, Incr, MGet, MPut, MDelete, Txn, Scan, Count, Changes, Info,
    Slow, Snapshot, End, Replicate, Promote,
]  # fmt: skip

REQUEST_TYPES: dict[str, type[Request]] = {
    str(cls.__struct_config__.tag): cls for cls in get_args(AnyRequest)
}
"""Op name -> class. No function is ever looked up by a name that came from a client."""

OP_NAMES: dict[type[Request], str] = {cls: op for op, cls in REQUEST_TYPES.items()}
"""Class -> op name."""


def needs_leader(request: AnyRequest) -> bool:
    """Return True if only the server that leads the store may run a request."""
    if isinstance(request, ReadRequest):
        return not request.stale and request.min_rev is None
    return request.writes


TEXT_FIELDS = frozenset({
    "op", "id", "key", "session", "prefix", "start", "end", "after", "trace", "member", "tag",
    "store",
})  # fmt: skip
"""Fields that hold text: a bin that holds UTF-8 counts as str."""
TEXT_LIST_FIELDS = frozenset({"keys"})
"""Fields that hold an array of texts."""
TEXT_MAP_FIELDS = frozenset({"items"})
"""Fields that hold a map from text to packed values."""
CONDITION_FIELDS = frozenset({"if"})
"""Fields that hold an array of pairs of which the first item is text."""
REQUEST_LIST_FIELDS = frozenset({"ops"})
"""Fields that hold an array of requests."""
