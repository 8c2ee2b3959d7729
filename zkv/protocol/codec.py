"""Decodes request bodies into typed requests, and encodes replies.

Strategy: msgspec decodes the body straight into the class of its op. It checks every field on the
way and keeps values as the packed bytes of the client. This is enough for nearly every request. If
msgspec refuses the body, a second pass decodes it field by field: it turns bin into str where some
languages pack text as bin, and decodes the result by the same classes, so there is only one schema.
Errors name the field that is wrong, and carry the ``id`` if it can be read.

Invariant: for any bytes, `decode` returns a request or raises a `RequestError`.

msgspec is used here, and not msgpack, because it validates while it decodes, takes half the time of
msgpack's untyped decoding, and keeps values byte for byte as ``Raw``. It has two pitfalls. The
depth that it can decode depends on the Python version, so bodies that nest too deeply are refused
before it sees them. It refuses bin as map keys, which the second pass handles.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar, cast, get_args

import msgpack
import msgspec
from msgspec import Raw

from zkv.defaults import MAX_LEVELS, TOO_DEEP
from zkv.errors import (
    BadRequest,
    RequestError,
    RequestId,
    TooLarge,
    UnknownOp,
    shorten,
)
from zkv.nesting import LEVELS_ABOVE, may_be_deep, measure
from zkv.protocol.replies import Failure, Reply
from zkv.protocol.requests import (
    CONDITION_FIELDS,
    READ_FIELDS,
    REQUEST_LIST_FIELDS,
    REQUEST_TYPES,
    TEXT_FIELDS,
    TEXT_LIST_FIELDS,
    TEXT_MAP_FIELDS,
    AnyRequest,
    MPut,
    Put,
    Request,
    SubRequest,
)

PROTOCOL_VERSION: Final = 1
FEATURES: Final = ("timing", "trace", "SLOW", "stale", "min_rev", "REPLICATE")
"""INFO's ``features``: ops and fields that this server takes and an earlier one may not."""
MAX_SESSION_BYTES: Final = 64
MAX_TRACE_BYTES: Final = 64
MAP15, MAP16 = 0x8F, 0xDE
"""Heads of the largest map with a head of one byte, and of a larger one."""

_T = TypeVar("_T")

_decode_typed: Callable[[bytes], AnyRequest] = msgspec.msgpack.Decoder(AnyRequest).decode
_fields = msgspec.msgpack.Decoder(dict[Any, Raw])
_list_of_fields = msgspec.msgpack.Decoder(list[dict[str, Raw]])
_array = msgspec.msgpack.Decoder(list[Any])
_raw_array = msgspec.msgpack.Decoder(list[Raw])
_untyped = msgspec.msgpack.Decoder()
_encoder = msgspec.msgpack.Encoder()
_in_order = msgspec.msgpack.Encoder(order="deterministic")

_DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, TypeError)
"""Exceptions of msgspec for bytes that it does not accept. TypeError: an unhashable map key."""


def encode_reply(reply: Reply | Failure) -> bytes:
    """Pack a reply as the body of a message."""
    return _encoder.encode(reply)


def pack_array(packed: list[bytes]) -> Raw:
    """Pack an array of values that are packed already."""
    size = len(packed)
    if size < 16:
        head = bytes([0x90 | size])
    elif size < 1 << 16:
        head = b"\xdc" + size.to_bytes(2)
    else:
        head = b"\xdd" + size.to_bytes(4)
    return Raw(head + b"".join(packed))


def encode_repeat(packed: bytes, request_id: RequestId | None, durable: bool) -> bytes:
    """Encode a remembered reply as the reply to a repeat of its request."""
    reply: dict[str, Any] = _fields.decode(packed)
    if request_id is not None:
        reply["id"] = request_id
    if "durable" in reply:
        reply["durable"] = durable
    if "results" in reply:
        results = _list_of_fields.decode(reply["results"])
        reply["results"] = [
            result | {"durable": durable} if "durable" in result else result for result in results
        ]
    reply["replayed"] = True
    return _encoder.encode(reply)


def decode(body: bytes) -> AnyRequest:
    """Unpack a request body.

    Raises:
        BadRequest: not msgpack, not a map, a missing, wrong or unknown field, or one that is
            nested too deeply.
        UnknownOp: there is no such op.
    """
    if may_be_deep(body):
        _require_shallow(body)
    try:
        request = _decode_typed(body)
    except _DECODE_ERRORS:
        request = _decode_again(body)
    if request.session is not None or request.seq is not None:
        _check_session(request)
    if request.trace is not None and len(request.trace.encode()) > MAX_TRACE_BYTES:
        error = f"field `trace` is longer than {MAX_TRACE_BYTES} bytes"
        raise BadRequest(error, request_id=request.id)
    return request


def add_field(reply: bytes, packed: bytes) -> bytes:
    """Return a reply with a further field, which is packed with its name, at its end."""
    first = reply[0]
    if first < MAP15:
        return bytes((first + 1,)) + reply[1:] + packed
    count, rest = (15, reply[1:]) if first == MAP15 else (_uint16(reply), reply[3:])
    return bytes((MAP16, *(count + 1).to_bytes(2, "big"))) + rest + packed


def _uint16(head: bytes) -> int:
    return int.from_bytes(head[1:3], "big")


def digest(request: AnyRequest) -> bytes:
    """Return the digest of a request: 8 bytes that depend on everything that it asks for.

    `zkv.keyspace.change` specifies it. It does not depend on the order of an MPUT's items: in some
    languages, a map has another order each time that it is packed. A PUT or MPUT without further
    fields is hashed without packing it again. zkv/compiled/request.c computes the same digests, and
    those of INCR and TXN.
    """
    match request:
        case Put(key=key, value=value, ttl=None, if_rev=None, prev=False):
            return _hash(b"PUT", key, value).to_bytes(8, "little")
        case MPut(items=items, ttl=None):
            total = sum([_hash(b"MPUT", key, value) for key, value in items.items()])
            return (total % 2**64).to_bytes(8, "little")
        case _:
            asked = msgspec.structs.replace(
                request,
                id=None,
                session=None,
                seq=None,
                deadline=None,
                durable=False,
                timing=False,
                trace=None,
            )
            return hashlib.blake2b(_in_order.encode(asked), digest_size=8).digest()


def _hash(op: bytes, key: str, value: Raw) -> int:
    packed = b"".join((op, _encoder.encode(key), value))
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little")


def _check_session(request: Request) -> None:
    if request.session is None or request.seq is None:
        missing = "session" if request.session is None else "seq"
        error = f"missing field `{missing}`: session and seq belong together"
        raise BadRequest(error, request_id=request.id)
    if len(request.session.encode()) > MAX_SESSION_BYTES:
        error = f"field `session` is longer than {MAX_SESSION_BYTES} bytes"
        raise BadRequest(error, request_id=request.id)


def _decode_again(body: bytes) -> AnyRequest:
    """Decode a body in the second pass, field by field. Raises as `decode` does."""
    fields = _split(body)
    request_id = _readable_id(fields)
    op = ""
    repaired: dict[str, object] = {}
    try:
        op = _read_op(fields)
        repaired = _repair_all(fields)
        return _decode_typed(_encoder.encode(repaired))
    except RequestError as error:
        error.request_id = request_id
        raise
    except msgspec.ValidationError as error:
        raise BadRequest(_explain(op, error, repaired), request_id=request_id) from None


def _split(body: bytes) -> dict[str, Raw]:
    """Return the body's fields, each still packed. Raises BadRequest if it is not a map."""
    try:
        packed = _fields.decode(body)
        return {_text(name, "a field name"): raw for name, raw in packed.items()}
    except BadRequest as error:
        error.request_id = _salvage_id(body)
        raise
    except _DECODE_ERRORS as error:
        raise BadRequest(_why_no_map(error), request_id=_salvage_id(body)) from None


def _why_no_map(error: Exception) -> str:
    match error:
        case UnicodeDecodeError():
            return "a field name is not valid UTF-8"
        case TypeError():
            return "a field name is not a str"
        case msgspec.ValidationError():
            return "the body is not a msgpack map"
        case _:
            return f"the body is not one whole msgpack value: {error}"


def _require_shallow(body: bytes) -> None:
    """Raise BadRequest if a field nests too deeply."""
    if not _is_map(body):
        raise BadRequest("the body is not a msgpack map")
    for name, _, levels in _walk(body):
        if levels > MAX_LEVELS + LEVELS_ABOVE.get(name, 0):
            what = f"field `{name}`" if name else "a field"
            raise BadRequest(f"{what} {TOO_DEEP}", request_id=_salvage_id(body))


def _salvage_id(body: bytes) -> RequestId | None:
    """Return the ``id``, if readable, of a body that nests too deeply or is not a whole map."""
    for name, value, levels in _walk(body):
        if name == "id":
            return None if levels else _readable_id({"id": Raw(value)})
    return None


def _walk(body: bytes) -> Iterator[tuple[str, bytes, int]]:
    """Yield the fields of a body: name (empty if it is not text), packed value, levels of nesting.

    It ends at the first field that is incomplete, of which it still yields the levels.
    """
    reader = msgpack.Unpacker()
    try:
        reader.feed(body[:5])
        count = reader.read_map_header()
    except (ValueError, msgpack.UnpackException):
        return
    at = reader.tell()
    for _ in range(count):
        name_end, levels = measure(body, at)
        if name_end < 0 or levels:
            yield "", b"", levels
        name = "" if levels else _name_of(body[at:name_end])
        at, levels = measure(body, name_end) if name_end >= 0 else (-1, 0)
        yield name, body[name_end:at] if at >= 0 else b"", levels
        if at < 0:
            return


def _name_of(packed: bytes) -> str:
    """Return a field's name; empty if it is not text."""
    try:
        return _text(_untyped.decode(packed), "a field name")
    except (*_DECODE_ERRORS, BadRequest):
        return ""


def _int_or_none(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _readable_id(fields: dict[str, Raw]) -> RequestId | None:
    """Return the ``id`` if there is one and it is an int or text."""
    if "id" not in fields:
        return None
    try:
        value = _unpack("id", fields["id"], _untyped)
        return _text(value, "id") if isinstance(value, str | bytes) else _int_or_none(value)
    except BadRequest:
        return None


def _read_op(fields: dict[str, Raw]) -> str:
    if "op" not in fields:
        raise BadRequest("missing field `op`")
    op = _text(_unpack("op", fields["op"], _untyped), "field `op`")
    if op not in REQUEST_TYPES:
        known = op.upper() in REQUEST_TYPES
        hint = f"did you mean {op.upper()}?" if known else f"there are {', '.join(REQUEST_TYPES)}"
        raise UnknownOp(f"no such op: {shorten(op)}; {hint}")
    return op


def _repair_all(fields: dict[str, Raw]) -> dict[str, object]:
    return {name: _repair(name, raw) for name, raw in fields.items()}


def _repair(name: str, raw: Raw) -> object:
    """Return ``raw``, with bin turned into str if the field ``name`` holds text."""
    if name in TEXT_FIELDS:
        return _as_text(_unpack(name, raw, _untyped), name)
    if name in TEXT_LIST_FIELDS:
        return [_as_text(item, name) for item in _unpack(name, raw, _array)]
    if name in TEXT_MAP_FIELDS:
        items = _unpack(name, raw, _fields)
        return {_text(key, f"a key in field `{name}`"): value for key, value in items.items()}
    if name in CONDITION_FIELDS:
        return [_repair_condition(item) for item in _unpack(name, raw, _array)]
    if name in REQUEST_LIST_FIELDS:
        return [_repair_request(name, item) for item in _unpack(name, raw, _raw_array)]
    return raw


def _repair_condition(condition: object) -> object:
    if isinstance(condition, list) and condition:
        return [_as_text(condition[0], "if"), *condition[1:]]
    return condition


def _repair_request(name: str, raw: Raw) -> object:
    """Repair one request in an array of requests; the typed decoder refuses what is not a map."""
    if not _is_map(raw):
        return raw
    fields = _unpack(name, raw, _fields)
    return _repair_all({_text(key, "a field name"): value for key, value in fields.items()})


def _is_map(packed: Raw | bytes) -> bool:
    first = memoryview(packed)[0]
    return 0x80 <= first <= 0x8F or first in {0xDE, 0xDF}


def _unpack(name: str, raw: Raw, decoder: msgspec.msgpack.Decoder[_T]) -> _T:
    try:
        return decoder.decode(raw)
    except UnicodeDecodeError:
        raise BadRequest(f"field `{name}` is not valid UTF-8") from None
    except (msgspec.DecodeError, TypeError) as error:
        raise BadRequest(f"field `{name}`: {_expected(str(error))}{_got(raw)}") from None


def _as_text(value: object, name: str) -> object:
    """Turn bin into str; the typed decoder judges all other values."""
    return _text(value, f"field `{name}`") if isinstance(value, bytes) else value


def _text(value: object, what: str) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise BadRequest(f"{what} is not valid UTF-8") from None
    if not isinstance(value, str):
        raise BadRequest(f"{what} is not a str")
    return value


_TYPES: Final = {"object": "map", "null": "nil", "bytes": "bin", "float": "number"}
"""msgspec's names of types that have another name in the protocol."""


def _explain(op: str, error: Exception, fields: dict[str, object]) -> str:
    """Explain msgspec's error in the protocol's terms: the field, what it may be, what it is."""
    text, at, place = str(error).rpartition(" - at `")
    text, place = (text, place) if at else (place, "")
    place = place.rstrip("`").removeprefix("key` in `").removeprefix("$").removeprefix(".")
    inside, found = _follow(place, fields)
    if text.startswith("Object contains unknown field"):
        taken = _own_fields(inside or op, alone=inside in {"", op})
        return f"{op}: unknown field {_cut(text[30:])}{_in(place)}; {inside or op} takes {taken}"
    if text.startswith("Object missing required field"):
        return f"{op}: missing field{text[29:]}{_in(place)}"
    if text.startswith("Invalid value"):  # The op of one of several requests.
        parts = ", ".join(str(cls.__struct_config__.tag) for cls in get_args(SubRequest))
        return f"{op}: field `{place}`: expected one of {parts}{_got(found)}"
    return f"{op}: {f'field `{place}`: ' if place else ''}{_expected(text)}{_got(found)}"


def _cut(quoted: str, most: int = 60) -> str:
    return quoted if len(quoted) <= most else f"{quoted[:most]}...`"


def _in(place: str) -> str:
    return f" in field `{place}`" if place else ""


def _own_fields(op: str, alone: bool) -> str:
    """List the fields that an op has besides the common ones, alone or in a TXN."""
    cls = REQUEST_TYPES.get(op, Request)
    declared = inspect.get_annotations(cls)
    common = [name for name in Request.__struct_fields__ if name not in declared]
    own = [name for name in cls.__struct_encode_fields__ if name not in common]
    of_reads = [name for name in own if name in READ_FIELDS]
    own = [name for name in own if name not in READ_FIELDS] + (of_reads if alone else [])
    return ", ".join(f"`{name}`" for name in own) or "no fields of its own"


def _follow(place: str, fields: dict[str, object]) -> tuple[str, object]:
    """Return the op of the request around a place such as ``ops[1].key``, and the value there.

    The op is empty if there is no such request; the value is `msgspec.UNSET` if it is unknown.
    """
    op, found = "", cast("Any", fields)
    try:
        for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", place):
            found = found[name] if name else found[int(index)]
            if index and isinstance(found, dict):
                op = str(found.get("op", ""))
    except (LookupError, TypeError):
        return op, msgspec.UNSET
    return op, found


def _expected(text: str) -> str:
    """Return what msgspec expected, with the protocol's names of types."""
    expected = text.partition(", got ")[0]
    if not expected.startswith("Expected "):
        return expected
    types = re.sub(r"`([^`]*)`", lambda match: " or ".join(map(_type, match[1].split(" | "))), text)
    return "expected" + types.partition(", got ")[0].removeprefix("Expected").removesuffix(".0")


def _type(name: str) -> str:
    return _TYPES.get(name, name)


def _got(found: object) -> str:
    """Describe the value that came, if a few words can."""
    if isinstance(found, Raw):
        try:
            found = _untyped.decode(found)
        except _DECODE_ERRORS:
            found = msgspec.UNSET
    match found:
        case None:
            shown = "nil"
        case bool():
            shown = str(found).lower()
        case int() | float():
            shown = f"{found} ({type(found).__name__})"
        case str():
            shown = f"{shorten(found)} (str)"
        case bytes():
            shown = f"bin of {len(found)} bytes"
        case list() | dict():
            shown = f"{'map' if isinstance(found, dict) else 'array'} of {len(found)}"
        case msgspec.msgpack.Ext():
            shown = "ext"
        case _:
            return ""
    return f", got {shown}"


class KeyLimits:
    """Checks keys and values against the configured limits.

    Args:
        max_key_bytes: bytes of the longest key, in UTF-8.
        max_value_bytes: bytes of the largest packed value.
        max_batch: number of keys in the largest request.
    """

    def __init__(self, max_key_bytes: int, max_value_bytes: int, max_batch: int) -> None:
        self.max_key_bytes = max_key_bytes
        self.max_value_bytes = max_value_bytes
        self.max_batch = max_batch
        # A character has at most 4 bytes in UTF-8: most keys are measured without encoding them.
        self._surely_short = max_key_bytes // 4

    def check_key(self, key: str) -> None:
        """Check a key. Raises BadRequest, TooLarge."""
        if key >= "\x01" and len(key) <= self._surely_short:
            return
        if not key:
            raise BadRequest("the key is empty")
        if key[0] == "\0":
            raise BadRequest(f"the key {shorten(key)} begins with U+0000, which is reserved")
        size = len(key.encode())
        if size > self.max_key_bytes:
            raise TooLarge(
                f"the key {shorten(key)} has {size} bytes; max_key_bytes is {self.max_key_bytes}"
            )

    def check_batch(self, size: int, field: str) -> None:
        """Raise TooLarge if ``field`` may not have ``size`` items."""
        if size > self.max_batch:
            raise TooLarge(f"{size} in field `{field}`; max_batch is {self.max_batch}")

    def check_keys(self, keys: list[str] | dict[str, Raw]) -> None:
        """Check all keys of a request, and their number. Raises BadRequest, TooLarge."""
        self.check_batch(len(keys), "items" if isinstance(keys, dict) else "keys")
        # min and max run in C: a batch of valid keys costs no Python step for each key.
        if keys and (min(keys) < "\x01" or max(map(len, keys)) > self._surely_short):
            for key in keys:
                self.check_key(key)

    def values(self, items: dict[str, Raw]) -> dict[str, bytes]:
        """Return the packed bytes of all values. Raises TooLarge."""
        values = dict(zip(items, map(bytes, items.values()), strict=True))
        if values and max(map(len, values.values())) > self.max_value_bytes:
            for key, raw in items.items():
                self.value(key, raw)
        return values

    def value(self, key: str, raw: Raw) -> bytes:
        """Return a copy of the packed bytes of ``raw``. Raises TooLarge."""
        value = bytes(raw)
        if len(value) > self.max_value_bytes:
            raise TooLarge(
                f"the value of {shorten(key)} has {len(value)} bytes; "
                f"max_value_bytes is {self.max_value_bytes}"
            )
        return value
