"""What PROTOCOL.md shows of the wire: real requests, and what a real server answers to them.

One exchange, and a connection without a ZeroMQ library, are shown as bytes; all else is shown as
maps, since `tests/conformance` has the bytes.

To document an op, add its examples to `EXAMPLES` and run ``ZKV_UPDATE_DOCS=1 python -m pytest
tests/docs/test_docs.py``: it renders all anew, and says which section is still missing. Examples
run from the top to the bottom, over one connection, on a store that is empty at first. What differs
from run to run is pinned to what it is here.
"""

from __future__ import annotations

import functools
import textwrap
import zlib
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgpack
import msgspec
from msgspec import inspect

from tests.support import Frames, Raw, pack, unpack
from zkv.protocol.requests import REQUEST_TYPES, Request

Fields = dict[str, Any]


class Example(NamedTuple):
    """A request and its reply.

    Args:
        title: what it shows; stands above it.
        fields: of the request. Without ``op``, that of the block is taken.
        code: of the failure that it gets, if it gets one.
        pinned: fields of the reply that no two runs have in common, and what is shown there.
            A name with a dot leads into a map.
    """

    title: str
    fields: Fields
    code: str = ""
    pinned: Fields | None = None


PINNED_SLOW: Final[Fields] = {
    "entries": [
        {
            "time": 1_767_225_600_000,
            "user": None,
            "op": "PUT",
            "key": "visits",
            "bytes": 39,
            "timing": {"queue": 0, "lock": 0, "execute": 29, "sync": 20_411, "total": 20_440},
            "batch": 3,
            "beside": ["snapshot"],
            "trace": None,
        }
    ],
    "minutes": [],
}
PINNED_INFO: Final[Fields] = {
    "uptime": 12.5,
    "endpoints": ["tcp://127.0.0.1:5555"],
    "feed": "tcp://127.0.0.1:5556",
    "durability.data_dir": "var",
    "durability.log_bytes": 600,
    "durability.syncs": 7,
    "durability.snapshots": 1,
    "durability.snapshot_rev": 2,
    "durability.snapshot_seconds": 0.002,
    "durability.snapshot_bytes": 210,
    "stats.requests": {"PING": 1, "PUT": 3, "GET": 2, "INFO": 1},
    "stats.latencies": {
        "PING": [0, 0, 0, 0, 0, 0, 1],
        "PUT": [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 1],
        "GET": [0, 0, 0, 0, 0, 0, 2],
        "INFO": [0, 0, 0, 0, 0, 0, 0, 0, 1],
    },
    "stats.succeeded": {"PING": 1, "PUT": 3, "GET": 1, "INFO": 1},
    "stats.seconds": {"PING": 0.000041, "PUT": 0.002731, "GET": 0.000066, "INFO": 0.000192},
    "stats.queue_wait": {"count": 5, "sum": 0.000512},
    "stats.bytes_in": 2350,
    "stats.bytes_out": 1730,
    "stats.lock_wait": {"counts": [0, 0, 0, 0, 0, 1], "sum": 0.000021},
    "stats.fsync": {"counts": [0, 0, 0, 0, 0, 0, 0, 0, 2, 5], "sum": 0.002105},
    "stats.group_commits": {"counts": [0, 7], "sum": 7},
    "stats.log_bytes": 651,
    "stats.snapshot": {"age": 1.25, "failures": 0, "failed_at": None, "failure": None},
    "stats.failures": {"NOT_FOUND": 1},
    "stats.failures_by_op": {"GET": {"NOT_FOUND": 1}},
    "stats.mailbox": "compiled",
    "stats.store": "compiled",
    "stats.process": {
        "pid": 4711,
        "cpu_seconds": 0.25,
        "max_open_files": 20000,
        "rss": 31_457_280,
        "open_files": 30,
    },
    "stats.feed": {"published": 18, "dropped": 0, "skipped": 0, "cut_off": 0, "rev": 13},
}


PINNED_TERM: Final[Fields] = {
    "store": "6f1c0a52d83b4e9790f2a6c15b7d3e48",
    "terms": [[1, 16, "c0ffee12ab34cd56"]],
}
COMMIT: Final = bytes.fromhex("94cf0000000000000001cf0000019b76dac800cf0000000000000001") + pack(
    [["PUT", "greeting", "hello", None]]
)
PINNED_COMMIT: Final[Fields] = {
    **PINNED_TERM,
    "commits": [COMMIT],
    "crc": zlib.crc32(COMMIT),
    "time": 1_767_225_600_000,
}
PART: Final = bytes.fromhex("93ce00000001ce5a3c11d7c6")
PINNED_PART: Final[Fields] = {
    **PINNED_TERM,
    "size": 812,
    "data": PART,
    "crc": zlib.crc32(PART),
}


EXAMPLES: Final[dict[str, list[Example]]] = {
    "PING": [Example("", {"id": 1}, pinned={"time": 1_767_225_600_000})],
    "PUT": [
        Example("Store a new key:", {"key": "greeting", "value": "hello"}),
        Example(
            "Another value; the reply includes the previous one:",
            {"key": "greeting", "value": {"en": "hello", "fr": "bonjour"}, "prev": True},
        ),
        Example(
            "A bin, which must be on disk before the reply, whatever the server's policy:",
            {"key": "logo", "value": b"\x89PNG", "durable": True, "id": "put-3"},
        ),
        Example(
            "A lock: stored only if the key is absent, and for half a minute:",
            {"key": "lock", "value": "worker 7", "if_rev": 0, "ttl": 30},
        ),
        Example(
            "Another worker comes too late:",
            {"key": "lock", "value": "worker 8", "if_rev": 0, "ttl": 30},
            "CONFLICT",
        ),
    ],
    "GET": [
        Example("", {"key": "greeting", "id": 4}),
        Example("A key that expires:", {"key": "lock"}, pinned={"ttl": 29.5}),
        Example("An absent key:", {"key": "nobody", "id": 5}, "NOT_FOUND"),
    ],
    "DELETE": [
        Example("", {"key": "logo", "prev": True}),
        Example("An absent key:", {"key": "logo"}, "NOT_FOUND"),
        Example(
            "A key that has changed since it was read:",
            {"key": "greeting", "if_rev": 1},
            "CONFLICT",
        ),
    ],
    "TOUCH": [
        Example("", {"key": "greeting", "ttl": 3600}),
        Example("Remove the expiry:", {"key": "greeting", "ttl": None}),
    ],
    "INCR": [
        Example("", {"key": "visits"}),
        Example("", {"key": "visits", "by": -3}),
        Example("A value that is not an int:", {"key": "greeting"}, "WRONG_TYPE"),
    ],
    "MGET": [
        Example("`nobody` is absent, as its revision says:", {"keys": ["visits", "nobody"]}),
    ],
    "MPUT": [Example("", {"items": {"a": 1, "b": 2.5, "c": None}})],
    "MDELETE": [
        Example("", {"keys": ["a", "b", "x"]}),
        Example("No key is present, so there is no new revision:", {"keys": ["x"]}),
    ],
    "TXN": [
        Example(
            "If `visits` still has revision 9, copy it and remove `c`; all or nothing:",
            {
                "if": [["visits", 9]],
                "ops": [
                    {"op": "GET", "key": "visits"},
                    {"op": "PUT", "key": "visits/old", "value": -2},
                    {"op": "DELETE", "key": "c"},
                    {"op": "INCR", "key": "resets"},
                ],
            },
        ),
        Example(
            "The second op fails, so the first one is not applied either:",
            {"ops": [{"op": "INCR", "key": "resets"}, {"op": "DELETE", "key": "nobody"}]},
            "NOT_FOUND",
        ),
    ],
    "exactly-once": [
        Example("", {"op": "INCR", "key": "visits", "session": "kV9w2", "seq": 1, "id": 30}),
        Example(
            "The reply was lost, so the client sends the same write again, with a new `id`:",
            {"op": "INCR", "key": "visits", "session": "kV9w2", "seq": 1, "id": 31},
        ),
    ],
    "SCAN": [
        Example("", {"prefix": "vis", "limit": 1}),
        Example("The next page:", {"prefix": "vis", "limit": 1, "after": "visits"}),
        Example(
            "The last two keys, without values:",
            {
                "limit": 2,
                "reverse": True,
                "values": False,
            },
        ),
    ],
    "COUNT": [Example("", {"prefix": "vis"})],
    "CHANGES": [
        Example("", {"since": 10, "limit": 2}),
        Example("", {"since": 11, "prefix": "visits", "limit": 100}),
    ],
    "INFO": [Example("", {}, pinned=PINNED_INFO)],
    "SLOW": [Example("", {"limit": 1}, pinned=PINNED_SLOW)],
    "SNAPSHOT": [Example("", {})],
    "REPLICATE": [
        Example(
            "The first commit; the store gets its identity:",
            {"member": "b", "after": 0, "limit": 1},
            pinned=PINNED_COMMIT,
        ),
        Example(
            "A position that is in no history of this store:",
            {"member": "b", "after": 9, "term": 3, "tag": "90ab12cd34ef5678"},
            "DIVERGED",
        ),
        Example(
            "The beginning of a snapshot:",
            {"member": "b", "snapshot": 0, "limit": 12},
            pinned=PINNED_PART,
        ),
    ],
    "PROMOTE": [Example("A server that leads already:", {}, "BAD_REQUEST")],
    "failures": [
        Example("A field that the op does not know:", {"op": "GET", "kye": "a"}, "BAD_REQUEST"),
        Example("A field of the wrong type:", {"op": "GET", "key": 7, "id": 8}, "BAD_REQUEST"),
        Example("No such op:", {"op": "get", "key": "a"}, "UNKNOWN_OP"),
        Example("A key that is too long:", {"op": "GET", "key": "k" * 1_025}, "TOO_LARGE"),
        Example(
            "A request that runs after its deadline:",
            {"op": "GET", "key": "a", "deadline": 1_767_225_600_000},
            "DEADLINE",
        ),
    ],
    "END": [Example("", {"id": 9})],
}
"""By the name of the block in PROTOCOL.md, which is that of the op; END has to be the last."""

NO_OPS: Final = frozenset({"failures", "exactly-once"})
"""Blocks that are not about one op."""


# --- Running ---------------------------------------------------------------------------------


class Exchange(NamedTuple):
    """An example with the bodies that were sent and received."""

    example: Example
    request: bytes
    reply: bytes


def run(client: Raw) -> dict[str, list[Exchange]]:
    """Run all examples against a server that has just been started on an empty directory."""
    return {
        block: [_run_one(client, block, example) for example in examples]
        for block, examples in EXAMPLES.items()
    }


def _run_one(client: Raw, block: str, example: Example) -> Exchange:
    fields = {"op": block} | example.fields
    request = pack(fields)
    reply = client.exchange(request)
    assert unpack(reply).get("code", "") == example.code, (fields, unpack(reply))
    return Exchange(example, request, _pin(reply, example.pinned or {}))


def _pin(reply: bytes, pinned: Fields) -> bytes:
    fields = unpack(reply)
    assert pack(fields) == reply, "packed again, the reply has other bytes"
    for path, value in pinned.items():
        *outer, name = path.split(".")
        place = functools.reduce(dict.__getitem__, outer, fields)
        assert name in place, f"{path} is pinned, and not in the reply"
        place[name] = value
    return pack(fields)


# --- Rendering -------------------------------------------------------------------------------

WIDTH: Final = 92


def render_examples(exchanges: list[Exchange]) -> str:
    """The examples of one block, as Markdown."""
    return "\n\n".join(_render_one(exchange) for exchange in exchanges)


def _render_one(exchange: Exchange) -> str:
    lines = [*_render_body("request", exchange.request), *_render_body("reply  ", exchange.reply)]
    title = [exchange.example.title, ""] if exchange.example.title else []
    return "\n".join([*title, "```text", *lines, "```"])


def _render_body(label: str, body: bytes) -> Iterator[str]:
    for line in _wrap(notation(body), WIDTH - len(label) - 2):
        yield f"{label}  {line}"
        label = " " * len(label)


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=" ", break_on_hyphens=False)


def render_feed(**messages: Frames) -> str:
    """Named messages of the feed: the topic and the body of each."""
    lines: list[str] = []
    for name, (topic, body) in messages.items():
        lines.append(f"{name}: topic  {_quote(topic.decode())}")
        lines += _render_body(" " * len(name) + "  body ", body)
    return "\n".join(["```text", *lines, "```"])


def render_frames(**messages: Frames) -> str:
    """Named messages, frame by frame and, where a frame is msgpack, value by value."""
    lines = [
        line
        for name, frames in messages.items()
        for number, frame in enumerate(frames, 1)
        for line in _render_frame(f"{name}, frame {number}", frame, is_last=number == len(frames))
    ]
    return "\n".join(["```text", *lines, "```"])


def _render_frame(name: str, frame: bytes, *, is_last: bool) -> Iterator[str]:
    size = f"{len(frame)} byte{'' if len(frame) == 1 else 's'}"
    if not is_last:
        yield f"{name}: {size}, the delimiter"
        return
    yield f"{name}: {size}, the body"
    for packed, depth, meaning in dissect(frame):
        yield f"    {'  ' * depth + packed.hex(' '):<44} {meaning}"


def render_ops() -> str:
    """The table of ops and their fields, from the classes that decode them."""
    rows = [
        "| op | fields | optional fields |",
        "|---|---|---|",
        *(_op_row(op, cls) for op, cls in REQUEST_TYPES.items()),
    ]
    return "\n".join(rows)


def _op_row(op: str, cls: type[Request]) -> str:
    required: list[str] = []
    optional: list[str] = []
    for name, field in inspected(cls).items():
        if inspected(Request).get(name) != field:
            kind = type_name(field.type)
            if field.default is None:  # That nil is as good as none is said once, for all.
                kind = kind.replace(" or nil", "")
            shown = f"`{name}` {kind}"
            (required if field.required else optional).append(shown)
    return f"| `{op}` | {', '.join(required)} | {', '.join(optional)} |"


def inspected(cls: type[msgspec.Struct]) -> dict[str, inspect.Field]:
    """The fields of a class by the name that they have on the wire."""
    info = inspect.type_info(cls)
    assert isinstance(info, inspect.StructType)
    return {field.encode_name: field for field in info.fields}


def type_name(kind: inspect.Type) -> str:
    """A type in the words of PROTOCOL.md."""
    match kind:
        case inspect.ListType():
            return f"array of {type_name(kind.item_type)}"
        case inspect.TupleType():
            return f"[{', '.join(map(type_name, kind.item_types))}]"
        case inspect.DictType():
            return f"map of {type_name(kind.key_type)} to {type_name(kind.value_type)}"
        case inspect.UnionType():
            return " or ".join(dict.fromkeys(type_name(each) for each in kind.types))
    return _TYPE_NAMES[type(kind)]


_TYPE_NAMES: Final[dict[type[inspect.Type], str]] = {
    inspect.AnyType: "any value",
    inspect.RawType: "any value",
    inspect.NoneType: "nil",
    inspect.BoolType: "bool",
    inspect.IntType: "int",
    inspect.FloatType: "number",
    inspect.StrType: "str",
    inspect.BytesType: "bin",
    inspect.StructType: "map",
    inspect.VarTupleType: "array",
}


# --- Notation --------------------------------------------------------------------------------


def notation(data: bytes) -> str:
    """One msgpack value as the text that PROTOCOL.md explains."""
    reader = _Reader(data)
    return reader.read(0)


def dissect(data: bytes) -> list[tuple[bytes, int, str]]:
    """The parts of one msgpack value: their bytes, how deep they stand, what they mean."""
    reader = _Reader(data)
    reader.read(0)
    return reader.parts


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._unpacker = msgpack.Unpacker(
            strict_map_key=False, unicode_errors="surrogateescape", timestamp=0
        )
        self._unpacker.feed(data)
        self._offset = 0
        self.parts: list[tuple[bytes, int, str]] = []

    def read(self, depth: int) -> str:
        """The next value in notation."""
        first = self._data[self._offset]
        if first & 0xF0 == 0x80 or first in (0xDE, 0xDF):
            count = self._unpacker.read_map_header()
            self._take(depth, f"map of {count}")
            pairs = [f"{self.read(depth + 1)}: {self.read(depth + 1)}" for _ in range(count)]
            return "{" + ", ".join(pairs) + "}"
        if first & 0xF0 == 0x90 or first in (0xDC, 0xDD):
            count = self._unpacker.read_array_header()
            self._take(depth, f"array of {count}")
            return "[" + ", ".join(self.read(depth + 1) for _ in range(count)) + "]"
        text = _leaf(self._unpacker.unpack(), first)
        self._take(depth, text)
        return text

    def _take(self, depth: int, meaning: str) -> None:
        end = self._unpacker.tell()
        self.parts.append((self._data[self._offset : end], depth, meaning))
        self._offset = end


def _leaf(value: Any, first: int) -> str:
    match value:
        case None | bool():
            text = {None: "nil", True: "true", False: "false"}[value]
        case bytes():
            text = f"h'{value.hex()}'"
        case str():
            text = _quote(value)
        case float() if first == FLOAT32:
            text = f"{value!r}_32"
        case msgpack.ExtType():
            text = f"ext({value.code}, h'{value.data.hex()}')"
        case msgpack.Timestamp():
            text = f"ext(-1, h'{value.to_bytes().hex()}')"
        case _:
            text = repr(value)
    return text


FLOAT32: Final = 0xCA
LONGEST_TEXT: Final = 200


def _quote(text: str) -> str:
    shown = text if len(text) <= LONGEST_TEXT else f"{text[:20]}..."
    shown = shown.replace("\\", "\\\\").replace('"', '\\"').replace("\0", "\\0")
    quoted = f'"{shown}"'
    return quoted if len(text) <= LONGEST_TEXT else f"{quoted} ({len(text)} characters)"
