"""The ops of pipelines and transactions, as they are collected and packed.

Each is a small msgspec object: msgspec packs a hundred of them faster than dicts could be made of
them. msgpack packs what msgspec would pack differently: values of types that are not msgpack's own
or that hold others, and text that is not UTF-8.

This is a separate module, imported when it is needed, because importing msgspec takes some time.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final, cast

from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.msgpack import Encoder
from msgspec.structs import asdict, replace

from zkv.client.codec import PACKED, PLAIN, Codec, IntTooLargeError
from zkv.client.errors import BadValueError
from zkv.client.messages import check_size, pack_request
from zkv.client.operations import RAISE
from zkv.client.values import FLAT, check_levels, explained, pack


class Step(Struct, tag_field="op", gc=False):
    """One op of a pipeline or transaction.

    Attributes:
        told: the field of its reply that is its result.
        absent: the result for ``NOT_FOUND``; `RAISE` = raise an error.
    """

    told: ClassVar[str]
    absent: ClassVar[Any] = RAISE

    key: str


class GetStep(Step, tag="GET", gc=False):
    """Read a value."""

    told = "value"
    absent = None


class PutStep(Step, tag="PUT", gc=False):
    """Write a value."""

    told = "rev"

    value: Any


class PutIfStep(PutStep, tag="PUT", gc=False):
    """Write a value on a condition or with a time to live."""

    ttl: float | UnsetType = UNSET
    if_rev: int | UnsetType = UNSET


class DeleteStep(Step, tag="DELETE", gc=False):
    """Remove an entry."""

    told = "ok"
    absent = False

    if_rev: int | UnsetType = UNSET


class TouchStep(Step, tag="TOUCH", gc=False):
    """Set a new time to live for an entry."""

    told = "rev"

    ttl: float | None


class IncrStep(Step, tag="INCR", gc=False):
    """Add to a number."""

    told = "value"

    by: int


def name_of(step: Step) -> str:
    """Return the op of a step."""
    return cast("str", step.__struct_config__.tag)


def fields_of(step: Step) -> dict[str, Any]:
    """Return the fields of a step without ``op``."""
    return {name: value for name, value in asdict(step).items() if value is not UNSET}


_encode = Encoder().encode


def pack_steps(op: str, request_id: int, fields: dict[str, Any], codec: Codec = PLAIN) -> bytes:
    """Pack a request whose ``ops`` are steps. Raises the same errors as `pack_request`."""
    steps: list[Step] = fields["ops"]
    if codec is PACKED:
        return _pack_as_maps(op, request_id, fields, codec)
    request = dict(op=op, id=request_id, **fields)
    try:
        if not _packed_alike(steps):
            request["ops"] = [_with_packed_value(step, codec) for step in steps]
        body = _encode(request)
    except UnicodeEncodeError:  # With surrogates.
        return _pack_as_maps(op, request_id, fields, codec)
    except ValueError as error:
        raise explained(error) from None
    except OverflowError:
        raise IntTooLargeError("an int has more than 64 bits") from None
    check_size(body)
    return body


def _pack_as_maps(op: str, request_id: int, fields: dict[str, Any], codec: Codec) -> bytes:
    ops = [{"op": name_of(step), **fields_of(step)} for step in fields["ops"]]
    return pack_request(op, request_id, {**fields, "ops": ops}, codec)


def _packed_alike(steps: list[Step]) -> bool:
    """True if all values are of types that msgspec packs as msgpack does."""
    if not _WRITES & set(map(type, steps)):  # The usual case of reads only, in C.
        return True
    return {type(step.value) for step in steps if isinstance(step, PutStep)} <= FLAT


_WRITES: Final = frozenset({PutStep, PutIfStep})


def _with_packed_value(step: Step, codec: Codec) -> Step:
    if not isinstance(step, PutStep) or type(step.value) in FLAT:
        return step
    try:
        packed = pack(step.value, codec)
        check_levels(b"\x91" + packed, 1)  # In an array, since `check_levels` expects a level.
    except BadValueError as error:
        raise error.of(step.key) from error.__cause__
    return replace(step, value=Raw(packed))
