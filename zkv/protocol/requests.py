"""One class per op: the schema of what a client may send.

A request body is a msgpack map. Its ``op`` chooses the class here, and the class's fields are the
map's other fields: a field that the class does not have is refused, a field without a default is
required. Values stay ``Raw``: the bytes the client packed, neither decoded nor changed.

Fields are listed in `TEXT_FIELDS` and its neighbours where a msgpack bin that holds UTF-8 is taken
as str.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Union, get_args

from msgspec import Meta, Raw, Struct, field

from zkv.errors import RequestId

Revision = Annotated[int, Meta(ge=0)]
Limit = Annotated[int, Meta(ge=1)]
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Ttl = Annotated[float, Meta(gt=0, le=1e10)]
"""Seconds; a whole number may come as an int."""


class Request(
    Struct,
    frozen=True,
    kw_only=True,
    tag_field="op",
    forbid_unknown_fields=True,
    omit_defaults=True,  # Packed anew, for its digest, it says no more than the client did.
):
    """What every request may carry beside its ``op``.

    Attributes:
        id: echoed in the reply.
        session: with ``seq``, makes a write exactly-once.
        seq: number of the logical write in its session.
        deadline: Unix time in ms after which the request must not run.
        durable: whether a write is to be answered only once it is on disk.
        writes: whether the op may change something.
    """

    writes: ClassVar[bool] = False

    id: RequestId | None = None
    session: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    seq: Limit | None = None
    deadline: int | None = None
    durable: bool = False

    def subject(self) -> str | int | None:
        """What the request is about, for the log: a key, how many keys, or nothing."""
        return None


class KeyRequest(Request, frozen=True, kw_only=True):
    """A request about one key."""

    key: str

    def subject(self) -> str:
        """The key."""
        return self.key


class KeysRequest(Request, frozen=True, kw_only=True):
    """A request about many keys."""

    keys: list[str]

    def subject(self) -> int:
        """How many keys."""
        return len(self.keys)


class Ping(Request, frozen=True, kw_only=True, tag="PING"):
    """Is the server there, and which protocol does it speak?"""


class Get(KeyRequest, frozen=True, kw_only=True, tag="GET"):
    """Read one entry."""


class Put(KeyRequest, frozen=True, kw_only=True, tag="PUT"):
    """Write one entry; ``prev`` asks for what it replaced."""

    writes = True

    value: Raw
    ttl: Ttl | None = None
    if_rev: Revision | None = None
    prev: bool = False


class Delete(KeyRequest, frozen=True, kw_only=True, tag="DELETE"):
    """Remove one entry; ``prev`` asks for what it was."""

    writes = True

    if_rev: Revision | None = None
    prev: bool = False


class Touch(KeyRequest, frozen=True, kw_only=True, tag="TOUCH"):
    """Give an entry another time to live; nil = it stays."""

    writes = True

    ttl: Ttl | None


class Incr(KeyRequest, frozen=True, kw_only=True, tag="INCR"):
    """Add to an int64; an absent one starts at 0."""

    writes = True

    by: Int64 = 1


class MGet(KeysRequest, frozen=True, kw_only=True, tag="MGET"):
    """Read many entries at one revision."""


class MPut(Request, frozen=True, kw_only=True, tag="MPUT"):
    """Write many entries with one revision, all or nothing."""

    writes = True

    items: dict[str, Raw]
    ttl: Ttl | None = None

    def subject(self) -> int:
        """How many keys."""
        return len(self.items)


class MDelete(KeysRequest, frozen=True, kw_only=True, tag="MDELETE"):
    """Remove many entries with one revision, all or nothing; absent keys are passed over."""

    writes = True


SubRequest = Union[Put, Get, Delete, Touch, Incr]  # noqa: UP007  evaluated by msgspec


class Txn(Request, frozen=True, kw_only=True, tag="TXN"):
    """Conditions and ops that are committed with one revision, all or nothing."""

    writes = True

    conditions: list[tuple[str, Revision]] = field(name="if", default_factory=list)
    ops: list[SubRequest]

    def subject(self) -> int:
        """How many ops."""
        return len(self.ops)


class Scan(Request, frozen=True, kw_only=True, tag="SCAN"):
    """Read entries in the order of their keys, a page at a time."""

    prefix: str = ""
    start: str | None = None
    end: str | None = None
    after: str | None = None
    limit: Limit = 100
    values: bool = True
    reverse: bool = False


class Count(Request, frozen=True, kw_only=True, tag="COUNT"):
    """How many keys begin with a prefix?"""

    prefix: str = ""


class Changes(Request, frozen=True, kw_only=True, tag="CHANGES"):
    """What has changed after a revision."""

    since: Revision
    prefix: str = ""
    limit: Limit = 1_000


class Info(Request, frozen=True, kw_only=True, tag="INFO"):
    """What the server is, holds and has done."""


class Snapshot(Request, frozen=True, kw_only=True, tag="SNAPSHOT"):
    """Have a snapshot on disk that holds every write answered before."""


class End(Request, frozen=True, kw_only=True, tag="END"):
    """Save everything and stop the server."""


AnyRequest = Union[  # noqa: UP007  evaluated by msgspec
    Ping, Get, Put, Delete, Touch, Incr, MGet, MPut, MDelete, Txn, Scan, Count, Changes, Info,
    Snapshot, End,
]  # fmt: skip

REQUEST_TYPES: dict[str, type[Request]] = {
    str(cls.__struct_config__.tag): cls for cls in get_args(AnyRequest)
}
"""Op name -> its class. Nothing is ever called by a name that came from the wire."""

OP_NAMES: dict[type[Request], str] = {cls: op for op, cls in REQUEST_TYPES.items()}
"""A class -> the name of its op."""

TEXT_FIELDS = frozenset({"op", "id", "key", "session", "prefix", "start", "end", "after"})
"""Fields that hold text: a bin that holds UTF-8 is taken as str."""
TEXT_LIST_FIELDS = frozenset({"keys"})
"""Fields that hold an array of texts."""
TEXT_MAP_FIELDS = frozenset({"items"})
"""Fields that hold a map with texts as keys, and raw values."""
CONDITION_FIELDS = frozenset({"if"})
"""Fields that hold an array of pairs, each beginning with a text."""
REQUEST_LIST_FIELDS = frozenset({"ops"})
"""Fields that hold an array of requests."""
