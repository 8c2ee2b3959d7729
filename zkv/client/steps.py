"""The ops of pipelines and transactions, as they are collected and packed.

Each is a small msgspec object: msgspec packs a hundred of them faster than dicts could be made of
them. If a value is of a type that msgspec might pack differently from msgpack, or text is not
UTF-8, they become dicts, and are packed as any other request.

This is a separate module, imported when it is needed, because importing msgspec takes some time.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final, cast

from msgspec import UNSET, Struct, UnsetType
from msgspec.msgpack import Encoder
from msgspec.structs import asdict

from zkv.client.codec import PLAIN, Codec
from zkv.client.messages import check_size
from zkv.client.operations import RAISE
from zkv.client.plain import pack_first
from zkv.client.values import FLAT


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


def _as_map(step: Step) -> dict[str, Any]:
    if type(step) is PutStep:  # The usual case, in a fifth of the time.
        return {"op": "PUT", "key": step.key, "value": step.value}
    return {"op": name_of(step), **fields_of(step)}


_encode = Encoder().encode


def pack_steps(op: str, request_id: int, fields: dict[str, Any], codec: Codec = PLAIN) -> bytes:
    """Pack a request whose ``ops`` are steps. Raises the same errors as `pack_request`."""
    steps: list[Step] = fields["ops"]
    if _packed_alike(steps):
        try:
            body = _encode({"op": op, "id": request_id, **fields})
        except (ValueError, OverflowError):  # `pack_request` packs or explains it.
            pass
        else:
            check_size(body)
            return body
    ops = list(map(_as_map, steps))
    return pack_first(op, request_id, {**fields, "ops": ops}, codec)


def _packed_alike(steps: list[Step]) -> bool:
    """True if all values are of types that msgspec packs as msgpack does."""
    if not _WRITES & set(map(type, steps)):  # The usual case of reads only, in C.
        return True
    return FLAT.issuperset([type(step.value) for step in steps if isinstance(step, PutStep)])


_WRITES: Final = frozenset({PutStep, PutIfStep})
