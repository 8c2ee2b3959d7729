"""Values as text: those of clients that keep them packed, alone or within other facts.

`zkv.entries.value_writer` describes the text.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack

from zkv.entries import value_writer
from zkv.entries.value_writer import head_at


def to_json(value: Any) -> str:
    """A value, or what holds several and is told with them, as JSON in one line.

    Args:
        value: a `Packed`, or a dict, list or scalar that may have some in it.
    """
    if isinstance(value, bytes) and type(value) is not bytes:  # A `Packed`, and not a bin.
        return value_writer.write(value)
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return to_object({name: to_json(field) for name, field in value.items()})
    if type(value) in {list, tuple}:
        return f"[{', '.join(map(to_json, value))}]"
    if isinstance(value, str):
        return _quoted(value)
    return value_writer.write(msgpack.packb(value))


def to_object(fields: dict[str, str]) -> str:
    """A JSON object of fields that are JSON already."""
    return f"{{{', '.join(f'{_quoted(name)}: {text}' for name, text in fields.items())}}}"


def _quoted(text: str) -> str:
    return value_writer.printable(value_writer.encode(text))


def unquoted(packed: bytes) -> str | bytes | None:
    """The content of a str or a bin; None for any other value."""
    kind, begin, _ = head_at(packed, 0)
    content = packed[begin:]
    if kind == "str":
        return value_writer.text_of(content)
    return content if kind == "bin" else None


def type_name(packed: bytes) -> str:
    """The protocol's name for the type of a value."""
    kind, begin, _ = head_at(packed, 0)
    if kind == "ext":
        return "ext" if value_writer.timestamp_of(packed[begin:]) is None else "timestamp"
    return _TYPES.get(kind, kind)


_TYPES: Final = {"uint": "int", "false": "bool", "true": "bool"}
