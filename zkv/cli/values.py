"""Values between the command line and the client, which takes and returns them packed.

In: text, or JSON with the tags of `zkv.entries.value_writer`. Out: lines of `zkv.entries.text`.

`zkv` imports this, too, so the client is imported only where JSON is read.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

from zkv.reading import BadTextError, decode, read_file

if TYPE_CHECKING:
    from zkv.client.codec import Packed


class Json(str):
    """A word that is JSON and not text, because it began with a brace in the shell."""

    __slots__ = ()


# --- In


def read_value(word: str, as_json: bool) -> str | bytes | Packed:
    """The value that a VALUE on the command line stands for; ``-`` is all of standard input.

    Text that is not UTF-8 becomes bytes, JSON a `Packed`. Raises ValueError for bad JSON, OSError
    for bad input.
    """
    if isinstance(word, Json) and not as_json:
        try:
            return _packed(word.encode("utf-8", "surrogateescape"), "VALUE")
        except ValueError as error:
            raise ValueError(f"{error}; if it is text, put it in quotes") from None
    # Bytes that are not UTF-8 come as surrogates, whatever the locale; this gives them back.
    data = _read_input() if word == "-" else word.encode("utf-8", "surrogateescape")
    if as_json:
        return _packed(data, "standard input" if word == "-" else "VALUE")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data


def read_fields(name: str) -> dict[str, Packed] | None:
    """The fields of the JSON object in a file, each packed; None if it is not an object.

    Args:
        name: of the file; ``-`` is standard input. A name that begins with a brace is the JSON.

    Raises:
        ValueError: it is not JSON, or a tag in it is wrong.
        OSError: it cannot be read.
    """
    from zkv.client.codec import Packed
    from zkv.entries.value_reader import pack_parsed

    data, source = _read_source(name)
    text, parsed = _parse(data, source)
    if not isinstance(parsed, dict):
        return None
    try:
        return {field: Packed(pack_parsed(value, text, field)) for field, value in parsed.items()}
    except BadTextError as error:
        raise BadTextError(f"{source}: {error}") from None


def _read_source(name: str) -> tuple[bytes, str]:
    """The value in a file of JSON, and its name in messages."""
    if name == "-":
        return _read_input(), "standard input"
    if name.startswith("{"):
        return name.encode("utf-8", "surrogateescape"), "the argument"
    try:
        return read_file(name), name
    except OSError as error:
        raise OSError(f"{name}: {error.strerror or error}") from error


def _read_input() -> bytes:
    if sys.stdin is None:
        raise OSError("standard input is closed")
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise OSError(f"standard input: {error.strerror or error}") from error


def _packed(data: bytes, source: str) -> Packed:
    from zkv.client.codec import Packed
    from zkv.entries.value_reader import pack_parsed

    text, parsed = _parse(data, source)
    try:
        return Packed(pack_parsed(parsed, text))
    except BadTextError as error:
        raise BadTextError(f"{source}: {error}") from None


def _parse(data: bytes, source: str) -> tuple[str, Any]:
    """JSON as text, and as `zkv.entries.value_reader.parse` returns it."""
    from zkv.entries.value_reader import parse

    try:
        text = decode(data)
        return text, parse(text)
    except BadTextError as error:
        reason = str(error).removeprefix("it is no JSON: ")
        hint = ""
        if source == "VALUE" and re.fullmatch(rb"[\w .-]+", data):
            hint = f"; text in JSON has quotes: '\"{data.decode()}\"'"
        raise BadTextError(f"{source} is not JSON: {reason}{hint}") from None


# --- Out


def to_bytes(text: str) -> bytes:
    """A line of text as it is printed; a str that was not UTF-8 gives its bytes back."""
    return text.encode("utf-8", "surrogateescape") + b"\n"
