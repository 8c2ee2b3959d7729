"""Texts that users write, in files and elsewhere: what is wrong with one is said in plain words.

All of them are UTF-8, with or without the byte order mark that some editors begin a file with.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final

from zkv.defaults import TOO_DEEP

MARK: Final = b"\xef\xbb\xbf"
"""The byte order mark."""

SAID: Final = {
    "Expecting value": "what stands in the place of a value is none",
    "Expecting property name enclosed in double quotes": 'a name in "..." is missing',
    "Expecting ':' delimiter": "a colon is missing",
    "Expecting ',' delimiter": "a comma, or the end of a list or an object, is missing",
    "Unterminated string starting at": "a text is not ended",
    "Invalid control character at": "a text holds a control character that is not escaped",
    "Invalid \\escape": "a text has a backslash before what is none of its escapes",
    "Invalid \\uXXXX escape": "a text has a \\u without four hexadecimal digits",
    "Extra data": "more stands behind the end",
    "Illegal trailing comma before end of object": "a comma stands before the end of an object",
    "Illegal trailing comma before end of array": "a comma stands before the end of a list",
}
"""What the standard library's decoder says, and what is said here."""


class BadTextError(ValueError):
    """A text is not what it should be: says why, beginning with ``it``."""


def open_file(name: str | Path) -> BinaryIO:
    """A file to read. Raises OSError."""
    if "\0" in str(name):
        raise OSError(errno.EINVAL, "the name holds a NUL character", str(name))
    return open(name, "rb")


def read_file(name: str | Path) -> bytes:
    """All that is in a file, without a byte order mark. Raises OSError."""
    with open_file(name) as file:
        return file.read().removeprefix(MARK)


def decode(data: bytes) -> str:
    """The text in ``data``. Raises BadTextError."""
    begin = len(MARK) if data.startswith(MARK) else 0
    try:
        return data[begin:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadTextError(f"it is no UTF-8 at byte {begin + error.start + 1}") from None


def parse_json(text: str, decode: Callable[[str], Any] = json.loads) -> Any:
    """The value that JSON stands for.

    Args:
        text: the JSON.
        decode: parses it, as `json.loads` does. Its hooks raise BadTextError.

    Raises:
        BadTextError: it is no JSON, or a hook says so.
    """
    try:
        return decode(text)
    except json.JSONDecodeError as error:
        what = SAID.get(error.msg.removesuffix(":"), "something else is expected")
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise BadTextError(f"it is no JSON: {what}, at {line}character {error.colno}") from None
    except RecursionError:
        raise BadTextError(f"it {TOO_DEEP}") from None
    except BadTextError:
        raise
    except ValueError:  # Of a number with thousands of digits, which Python does not read.
        raise BadTextError("an int has more than 64 bits") from None
