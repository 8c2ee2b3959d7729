"""msgpack as text that a person reads, and as trees that keep what a decoder forgets.

The notation is that of PROTOCOL.md: JSON, and beside it ``nil``, ``h'00ff'`` (a bin),
``ext(5, h'00')``, ``inf``, ``nan``, and floats of 32 bits as ``1.5_32``. For what only tests need:

- ``7_u16``, ``-1_i64``, ``"a"_8``, ``h'00'_32``, ``[]_16``, ``{}_32``: packed in that width, where
  the shortest would do. Without, it is packed as short as can be, and compared whatever its width.
- ``s'ff'``: a str of these bytes, which need be no UTF-8.
- ``x'c1'``: these bytes just as they are, msgpack or not.
- ``"k" * 1025``, ``h'00' * 70000``, ``[1] * 3``: repeated. ``nested(3)``: ``[[[]]]``.

In what a reply is compared with:

- ``_`` stands for any value, ``_int``, ``_num``, ``_str``, ``_bool``, ``_array``, ``_map`` for any
  of that kind. In hex: an ext of type 127 that holds the kind's name, ``any`` for ``_``.
- ``rev(N)``: the revision of the store before the sequence, and N. It may stand in requests, too.
  In hex: an ext of type 126 that holds N in a byte.

Shorthands, written out in what is generated: ``success({...})``, ``written(N, {...})`` (success
of a write that took ``rev(N)``), ``failure("CODE", {...})``; the map may be left out.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple

WILDCARD_TYPE: Final = 127
REVISION_TYPE: Final = 126
KINDS: Final = {
    "any": frozenset({"nil", "bool", "int", "float", "str", "bin", "array", "map", "ext"}),
    "int": frozenset({"int"}),
    "num": frozenset({"int", "float"}),
    "str": frozenset({"str"}),
    "bool": frozenset({"bool"}),
    "array": frozenset({"array"}),
    "map": frozenset({"map"}),
}
"""Wildcard -> the kinds that it stands for."""


class NotationError(ValueError):
    """A text that is not in the notation, or bytes that are no msgpack."""


class Node(NamedTuple):
    """A msgpack value.

    Attributes:
        kind: nil, bool, int, float, str, bin, array, map, ext; and of the notation alone: raw,
            wildcard, rev.
        value: of a str or bin its bytes, of an array a tuple of nodes, of a map a tuple of pairs,
            of an ext its type and bytes.
        width: as it stands behind ``_``; "" for the shortest form, of a float for 64 bits.
    """

    kind: str
    value: Any = None
    width: str = ""

    def get(self, name: str) -> Node | None:
        """The value under a str in a map; None where there is none."""
        for key, value in self.value if self.kind == "map" else ():
            if key.kind == "str" and key.value == name.encode():
                return value  # type: ignore[no-any-return]
        return None


def text(string: str) -> Node:
    """A str."""
    return Node("str", string.encode())


def mapping(fields: dict[str, Node]) -> Node:
    """A map with names as keys."""
    return Node("map", tuple((text(name), value) for name, value in fields.items()))


# --- Text to tree ----------------------------------------------------------------------------

TOKEN: Final = re.compile(
    r"""\s*(?:
      (?P<str>"(?:[^"\\]|\\.)*")
    | (?P<bytes>[hsx])'(?P<hex>[0-9a-f\s]*)'
    | (?P<float>-?\d+(?:\.\d+(?:e[-+]?\d+)?|e[-+]?\d+)|-?inf|nan)
    | (?P<int>-?\d+)
    | (?P<name>[a-z_]+)
    | (?P<mark>[][{}(),:*])
    )(?(mark)|(?:_(?P<width>[ui]?(?:8|16|32|64)))?)""",
    re.VERBOSE,
)
WIDTH: Final = re.compile(r"_(8|16|32)")


class _Parser:
    def __init__(self, source: str) -> None:
        self.source = source
        self.at = 0

    def whole(self) -> Node:
        node = self.value()
        if self.source[self.at :].strip():
            raise NotationError(f"something stands behind: {self.source[self.at :]!r:.60}")
        return node

    def token(self) -> re.Match[str]:
        match = TOKEN.match(self.source, self.at)
        if match is None:
            raise NotationError(f"not understood: {self.source[self.at :]!r:.60}")
        self.at = match.end()
        return match

    def looking_at(self, mark: str) -> bool:
        """Whether the next thing is this mark; if so it is taken."""
        match = TOKEN.match(self.source, self.at)
        if match is None or match["mark"] != mark:
            return False
        self.at = match.end()
        return True

    def expect(self, mark: str) -> None:
        if not self.looking_at(mark):
            raise NotationError(f"`{mark}` expected: {self.source[self.at :]!r:.60}")

    def width(self) -> str:
        match = WIDTH.match(self.source, self.at)
        if match is None:
            return ""
        self.at = match.end()
        return match[1]

    def listed(self, end: str, item: Callable[[], Any]) -> tuple[Any, ...]:
        items: list[Any] = []
        while not self.looking_at(end):
            if items:
                self.expect(",")
            items.append(item())
        return tuple(items)

    def value(self) -> Node:
        node = self.atom()
        if self.looking_at("*"):
            return Node(node.kind, node.value * int(self.token()["int"]))
        return node

    def pair(self) -> tuple[Node, Node]:
        key = self.value()
        self.expect(":")
        return key, self.value()

    def atom(self) -> Node:  # noqa: PLR0911  one for each kind
        match = self.token()
        width = match["width"] or ""
        if match["str"]:
            return Node("str", json.loads(match["str"]).encode(), width)
        if match["bytes"]:
            kind = {"h": "bin", "s": "str", "x": "raw"}[match["bytes"]]
            return Node(kind, bytes.fromhex(match["hex"]), width)
        if match["float"]:
            return Node("float", float(match["float"]), width)
        if match["int"]:
            return Node("int", int(match["int"]), width)
        if match["mark"] == "[":
            return Node("array", self.listed("]", self.value), self.width())
        if match["mark"] == "{":
            return Node("map", self.listed("}", self.pair), self.width())
        if match["name"] is None:
            raise NotationError(f"misplaced: {match[0]!r}")
        return self.named(match["name"])

    def named(self, name: str) -> Node:
        if name in CONSTANTS:
            return CONSTANTS[name]
        if name.startswith("_") and (name[1:] or "any") in KINDS:
            return Node("wildcard", name[1:] or "any")
        if name not in FUNCTIONS:
            raise NotationError(f"unknown: {name}")
        self.expect("(")
        node = FUNCTIONS[name](*self.listed(")", self.value))
        return node._replace(width=self.width()) if name == "ext" else node


CONSTANTS: Final = {"nil": Node("nil"), "true": Node("bool", True), "false": Node("bool", False)}
NO_FIELDS: Final = Node("map", ())


def _nested(levels: Node) -> Node:
    node = Node("array", ())
    for _ in range(levels.value - 1):
        node = Node("array", (node,))
    return node


def _success(more: Node = NO_FIELDS) -> Node:
    return Node("map", mapping({"ok": CONSTANTS["true"]}).value + more.value)


def _written(number: Node, more: Node = NO_FIELDS) -> Node:
    fields = mapping({"rev": Node("rev", number.value), "durable": Node("wildcard", "bool")})
    return _success(Node("map", fields.value + more.value))


def _failure(code: Node, more: Node = NO_FIELDS) -> Node:
    fields = mapping(
        {
            "ok": CONSTANTS["false"], "code": code, "message": Node("wildcard", "str"),
            "retry": CONSTANTS["false"], "applied": CONSTANTS["false"],
        }
    )  # fmt: skip
    return Node("map", fields.value + more.value)


FUNCTIONS: Final[dict[str, Callable[..., Node]]] = {
    "ext": lambda kind, data: Node("ext", (kind.value, data.value)),
    "rev": lambda number: Node("rev", number.value),
    "nested": _nested,
    "success": _success,
    "written": _written,
    "failure": _failure,
}


def parse(source: str) -> Node:
    """The tree that a text stands for. Raises NotationError."""
    return _Parser(source).whole()


def render(node: Node) -> str:  # noqa: PLR0911  one for each kind
    """The text of a tree, without shorthands; long ones are cut short."""
    suffix = f"_{node.width}" if node.width else ""
    match node.kind, node.value:
        case "nil", _:
            return "nil"
        case "bool", value:
            return "true" if value else "false"
        case "int" | "float", value:
            return f"{value!r}{suffix}"
        case "str", value:
            try:
                string = json.dumps(value.decode(), ensure_ascii=False)
            except UnicodeDecodeError:
                return f"s'{value.hex()}'{suffix}"
            return f"{string}{suffix}" if len(value) <= 200 else f"{string[:20]}... {len(value)}"
        case "bin" | "raw", value:
            letter = "h" if node.kind == "bin" else "x"
            shown = value[:100].hex() + (f"... {len(value)}" if len(value) > 100 else "")
            return f"{letter}'{shown}'{suffix}"
        case "array", value:
            levels = depth(node)
            if levels > 20 and encode(node) == b"\x91" * (levels - 1) + b"\x90":
                return f"nested({levels})"
            more = f", ... {len(value)}" if len(value) > 20 else ""
            return f"[{', '.join(map(render, value[:20]))}{more}]{suffix}"
        case "map", value:
            pairs = (f"{render(key)}: {render(item)}" for key, item in value)
            return f"{{{', '.join(pairs)}}}{suffix}"
        case "ext", (kind, data):
            return f"ext({kind}, h'{data.hex()}'){suffix}"
        case "wildcard", value:
            return "_" if value == "any" else f"_{value}"
        case _:
            return f"rev({node.value})"


def depth(node: Node) -> int:
    """How many arrays and maps stand in each other."""
    if node.kind not in ("array", "map"):
        return 0
    parts = node.value if node.kind == "array" else [part for pair in node.value for part in pair]
    deepest = 0
    for part in parts:
        deepest = max(deepest, depth(part))
    return deepest + 1


# --- Tree to bytes ---------------------------------------------------------------------------

INT_FORMS: Final = {
    "u8": (0xCC, ">B"), "u16": (0xCD, ">H"), "u32": (0xCE, ">I"), "u64": (0xCF, ">Q"),
    "i8": (0xD0, ">b"), "i16": (0xD1, ">h"), "i32": (0xD2, ">i"), "i64": (0xD3, ">q"),
}  # fmt: skip
LENGTH_FORMS: Final = {
    "str": {"8": 0xD9, "16": 0xDA, "32": 0xDB},
    "bin": {"8": 0xC4, "16": 0xC5, "32": 0xC6},
    "array": {"16": 0xDC, "32": 0xDD},
    "map": {"16": 0xDE, "32": 0xDF},
    "ext": {"8": 0xC7, "16": 0xC8, "32": 0xC9},
}
FIX_FORMS: Final = {"str": (0xA0, 32), "array": (0x90, 16), "map": (0x80, 16)}
"""Kind -> the first byte of its short form, and the first length that is too long for that."""
FIX_EXT: Final = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}
LENGTHS: Final = {"8": ">B", "16": ">H", "32": ">I"}
FLOATS: Final = {"32": (0xCA, ">f"), "": (0xCB, ">d")}


def encode(node: Node, base: int | None = None) -> bytes:
    """A tree as msgpack.

    Args:
        node: the tree.
        base: what ``rev(N)`` counts from; None leaves it, like wildcards, as an ext of its own.
    """
    out = bytearray()
    _encode(node, base, out)
    return bytes(out)


def _encode(node: Node, base: int | None, out: bytearray) -> None:  # noqa: PLR0912  one each
    match node.kind, node.value:
        case "nil", _:
            out.append(0xC0)
        case "bool", value:
            out.append(0xC3 if value else 0xC2)
        case "int", value:
            out += _int(value, node.width)
        case "float", value:
            first, form = FLOATS[node.width]
            out += bytes([first]) + struct.pack(form, value)
        case (("str" | "bin"), value):
            out += _head(node.kind, len(value), node.width) + value
        case "raw", value:
            out += value
        case "array", value:
            out += _head("array", len(value), node.width)
            for item in value:
                _encode(item, base, out)
        case "map", value:
            out += _head("map", len(value), node.width)
            for key, item in value:
                _encode(key, base, out)
                _encode(item, base, out)
        case "ext", (kind, data):
            out += _ext(kind, data, node.width)
        case "wildcard", value:
            out += _ext(WILDCARD_TYPE, value.encode(), "")
        case "rev", value:
            out += _ext(REVISION_TYPE, bytes([value]), "") if base is None else _int(base + value)


def _int(value: int, width: str = "") -> bytes:
    if not width:
        if -32 <= value < 128:
            return struct.pack(">b", value)
        letter = "u" if value >= 0 else "i"
        sizes = (8, 16, 32, 64)
        width = next(
            f"{letter}{bits}" for bits in sizes
            if (value >> bits == 0 if value >= 0 else value >= -(1 << (bits - 1)))
        )  # fmt: skip
    first, form = INT_FORMS[width]
    return bytes([first]) + struct.pack(form, value)


def _head(kind: str, length: int, width: str) -> bytes:
    if not width and kind in FIX_FORMS:
        first, too_long = FIX_FORMS[kind]
        if length < too_long:
            return bytes([first + length])
    forms = LENGTH_FORMS[kind]
    width = width or next(width for width in forms if length < 1 << int(width))
    return bytes([forms[width]]) + struct.pack(LENGTHS[width], length)


def _ext(kind: int, data: bytes, width: str) -> bytes:
    code = struct.pack(">b", kind)
    if not width and len(data) in FIX_EXT:
        return bytes([FIX_EXT[len(data)]]) + code + data
    return _head("ext", len(data), width) + code + data


# --- Bytes to tree ---------------------------------------------------------------------------

INT_WIDTHS: Final = {first: (width, form) for width, (first, form) in INT_FORMS.items()}
LENGTH_WIDTHS: Final = {
    first: (kind, width) for kind, forms in LENGTH_FORMS.items() for width, first in forms.items()
}
FLOAT_WIDTHS: Final = {first: (width, form) for width, (first, form) in FLOATS.items()}
FIX_EXT_LENGTHS: Final = {first: length for length, first in FIX_EXT.items()}
SIMPLE: Final[dict[int, tuple[str, Any, str]]] = {
    0xC0: ("nil", None, ""), 0xC2: ("bool", False, ""), 0xC3: ("bool", True, ""),
}  # fmt: skip


class _Decoder:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        piece = self.data[self.at : self.at + count]
        if len(piece) < count:
            raise NotationError("it ends too early")
        self.at += count
        return piece

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def value(self) -> Node:
        # Containers are read here and not in a function of their own: a value may be nested deeper
        # than half of what Python's stack takes.
        kind, content, width = self.head()
        if kind == "array":
            items = []
            for _ in range(content):
                items.append(self.value())
            return Node(kind, tuple(items), width)
        if kind == "map":
            pairs = []
            for _ in range(content):
                key = self.value()
                pairs.append((key, self.value()))
            return Node(kind, tuple(pairs), width)
        if kind == "ext":
            content = (self.number(">b"), self.take(content))
        elif kind in ("str", "bin"):
            content = self.take(content)
        return Node(kind, content, width)

    def head(self) -> tuple[str, Any, str]:
        """Kind, value or length, and width of what begins here."""
        first = self.take(1)[0]
        if first in SIMPLE:
            return SIMPLE[first]
        if first < 0x80 or first >= 0xE0:
            return "int", first - (0x100 if first >= 0xE0 else 0), ""
        if first < 0xC0:
            kind = "map" if first < 0x90 else "array" if first < 0xA0 else "str"
            return kind, first & (0x1F if kind == "str" else 0x0F), ""
        for kind, widths in (("int", INT_WIDTHS), ("float", FLOAT_WIDTHS)):
            if first in widths:
                width, form = widths[first]
                return kind, self.number(form), width
        if first in FIX_EXT_LENGTHS:
            return "ext", FIX_EXT_LENGTHS[first], ""
        if first not in LENGTH_WIDTHS:
            raise NotationError(f"no value begins with the byte {first:02x}")
        kind, width = LENGTH_WIDTHS[first]
        return kind, self.number(LENGTHS[width]), width


def decode(data: bytes) -> Node:
    """msgpack as a tree. Raises NotationError unless it is one value, with nothing behind it."""
    decoder = _Decoder(data)
    node = decoder.value()
    if decoder.at != len(data):
        raise NotationError(f"{len(data) - decoder.at} bytes stand behind")
    return node


# --- Hex -------------------------------------------------------------------------------------


REPEATED: Final = re.compile(rb"(.{1,40}?)\1{15}", re.DOTALL)
STEP: Final = 4096
"""Repetitions that are looked at together."""


def squeeze(data: bytes) -> str:
    """Hex, with long repetitions of 1 to 40 bytes as ``(00){70000}``."""
    pieces, end = [], 0
    while match := REPEATED.search(data, end):
        unit, last = match[1], match.end()
        for times in (STEP, 1):  # the pattern itself would take long to go on to the end
            while data.startswith(unit * times, last):
                last += len(unit) * times
        count = (last - match.start()) // len(unit)
        pieces.append(f"{data[end : match.start()].hex()}({unit.hex()}){{{count}}}")
        end = last
    return "".join([*pieces, data[end:].hex()])


def stretch(hex_text: str) -> bytes:
    """The bytes that `squeeze` wrote."""
    return bytes.fromhex(
        re.sub(r"\((\w+)\)\{(\d+)\}", lambda match: match[1] * int(match[2]), hex_text)
    )


# --- Comparing -------------------------------------------------------------------------------

ORDERED: Final = re.compile(r'"(value|values|prev|items|changes)"')
"""Where values stand in a reply: their maps keep their order. The reply's own fields do not."""

Pair = tuple[Node, Node, str]
"""What is expected, what came, and where that is."""


def difference(expected: Node, actual: Node, base: int, *, exact: bool) -> str:
    """Where ``actual`` is not as ``expected``, in words; "" if it is.

    Args:
        expected: the tree, with wildcards; of its widths only those that are not "" count.
        actual: what came.
        base: what ``rev(N)`` counts from.
        exact: whether widths and the order in maps count. They do between server and client, and
            are lost in most languages.
    """
    waiting: list[Pair] = [(expected, actual, "the reply")]
    while waiting:
        left, right, at = waiting.pop()
        if left.kind == "rev":
            left = Node("int", base + left.value)
        parts = _parts(left, right, at, exact and bool(ORDERED.search(at)))
        if parts is None or (exact and left.width not in ("", right.width)):
            return f"{at}: expected {render(left):.200}, got {render(right):.200}"
        waiting += reversed(parts)
    return ""


def _parts(left: Node, right: Node, at: str, in_order: bool) -> list[Pair] | None:
    """What remains to be compared; None if it is clear that there is a difference."""
    if left.kind == "wildcard":
        return [] if right.kind in KINDS[left.value] else None
    if left.kind not in ("array", "map"):
        return [] if _same(left, right) else None
    if left.kind != right.kind or len(left.value) != len(right.value):
        return None
    if left.kind == "array":
        pairs = zip(left.value, right.value, strict=True)
        return [(ours, theirs, f"{at}[{index}]") for index, (ours, theirs) in enumerate(pairs)]
    parts = []
    found = list(right.value)
    for key, value in left.value:
        same = (i for i, (k, _) in enumerate(found) if not difference(key, k, 0, exact=False))
        index = 0 if in_order else next(same, 0)
        their_key, theirs = found.pop(index)
        inner = f"{at}.{render(key)}"
        parts += [(key, their_key, f"the name of {inner}"), (value, theirs, inner)]
    return parts


def _same(left: Node, right: Node) -> bool:
    if left.kind != right.kind:
        return False
    if left.kind == "float":
        same_value = struct.pack(">d", left.value) == struct.pack(">d", right.value)
        nan = math.isnan(left.value) and math.isnan(right.value)
        return left.width == right.width and (same_value or nan)
    return bool(left.value == right.value)
