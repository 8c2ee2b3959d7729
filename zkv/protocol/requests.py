"""One class per op: the schema of what a client may send.

A request body is a msgpack map. Its ``op`` chooses the class here, and the class's fields are the
map's other fields: a field that the class does not have is refused, a field without a default is
required. Values stay ``Raw``: the bytes the client packed, neither decoded nor changed.

Fields are listed in `TEXT_FIELDS` where a msgpack bin that holds UTF-8 is taken as str.
"""

from __future__ import annotations

from typing import Union

from msgspec import Raw, Struct

from zkv.errors import RequestId


class Request(Struct, frozen=True, kw_only=True, tag_field="op", forbid_unknown_fields=True):
    """What every request may carry beside its ``op``."""

    id: RequestId | None = None

    def subject(self) -> str | int | None:
        """What the request is about, for the log: a key, how many keys, or nothing."""
        return None


class WriteRequest(Request, frozen=True, kw_only=True):
    """A request that may change something; ``durable`` asks for it to be on disk first."""

    durable: bool = False


class KeyRequest(Request, frozen=True, kw_only=True):
    """A request that reads one key."""

    key: str

    def subject(self) -> str:
        """The key."""
        return self.key


class KeyWriteRequest(WriteRequest, frozen=True, kw_only=True):
    """A request that writes one key."""

    key: str

    def subject(self) -> str:
        """The key."""
        return self.key


class Ping(Request, frozen=True, kw_only=True, tag="PING"):
    """Is the server there, and which protocol does it speak?"""


class Get(KeyRequest, frozen=True, kw_only=True, tag="GET"):
    """Read one entry."""


class Put(KeyWriteRequest, frozen=True, kw_only=True, tag="PUT"):
    """Write one entry; ``prev`` asks for what it replaced."""

    value: Raw
    prev: bool = False


class Delete(KeyWriteRequest, frozen=True, kw_only=True, tag="DELETE"):
    """Remove one entry; ``prev`` asks for what it was."""

    prev: bool = False


class MGet(Request, frozen=True, kw_only=True, tag="MGET"):
    """Read many entries at one revision."""

    keys: list[str]

    def subject(self) -> int:
        """How many keys."""
        return len(self.keys)


class MPut(WriteRequest, frozen=True, kw_only=True, tag="MPUT"):
    """Write many entries with one revision, all or nothing."""

    items: dict[str, Raw]

    def subject(self) -> int:
        """How many keys."""
        return len(self.items)


class MDelete(WriteRequest, frozen=True, kw_only=True, tag="MDELETE"):
    """Remove many entries with one revision, all or nothing; absent keys are passed over."""

    keys: list[str]

    def subject(self) -> int:
        """How many keys."""
        return len(self.keys)


class Info(Request, frozen=True, kw_only=True, tag="INFO"):
    """What the server is, holds and has done."""


class Snapshot(Request, frozen=True, kw_only=True, tag="SNAPSHOT"):
    """Have a snapshot on disk that holds every write answered before."""


class End(Request, frozen=True, kw_only=True, tag="END"):
    """Save everything and stop the server."""


AnyRequest = Union[Ping, Get, Put, Delete, MGet, MPut, MDelete, Info, Snapshot, End]  # noqa: UP007  msgspec wants a Union at run time

REQUEST_TYPES: dict[str, type[Request]] = {
    str(cls.__struct_config__.tag): cls
    for cls in (Ping, Get, Put, Delete, MGet, MPut, MDelete, Info, Snapshot, End)
}
"""Op name -> its class. Nothing is ever called by a name that came from the wire."""

OP_NAMES: dict[type[Request], str] = {cls: op for op, cls in REQUEST_TYPES.items()}
"""A class -> the name of its op."""

TEXT_FIELDS = frozenset({"op", "id", "key"})
"""Fields that hold text: a bin that holds UTF-8 is taken as str."""
TEXT_LIST_FIELDS = frozenset({"keys"})
"""Fields that hold an array of texts."""
TEXT_MAP_FIELDS = frozenset({"items"})
"""Fields that hold a map with texts as keys, and raw values."""
