"""Reads texts that users write, in files and elsewhere, and explains what is wrong with them.

All are UTF-8, with or without the byte order mark with which some editors begin a file.
"""

from __future__ import annotations

import errno
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from zkv.defaults import TOO_DEEP

MARK: Final = b"\xef\xbb\xbf"
"""The byte order mark."""

EXPLANATIONS: Final = {
    "Expecting value": "a value is missing or malformed",
    "Expecting property name enclosed in double quotes": 'a name in "..." is missing',
    "Expecting ':' delimiter": "a colon is missing",
    "Expecting ',' delimiter": "a comma, or the end of a list or an object, is missing",
    "Unterminated string starting at": "a string does not end",
    "Invalid control character at": "a string contains a control character that is not escaped",
    "Invalid \\escape": "a string contains an invalid escape after a backslash",
    "Invalid \\uXXXX escape": "a string contains \\u without four hexadecimal digits",
    "Extra data": "there is more text after the end",
    "Illegal trailing comma before end of object": "there is a comma before the end of an object",
    "Illegal trailing comma before end of array": "there is a comma before the end of a list",
}
"""Messages of the standard library's decoder, and ours."""
_CLOSES: Final = re.compile(r"[]}]|'''|\"\"\"")
"""Text without which no statement of several lines ends."""


class BadTextError(ValueError):
    """A text is invalid. The message begins with ``it``."""


def open_file(name: str | Path) -> BinaryIO:
    """Open a file for reading. Raises OSError."""
    if "\0" in str(name):
        raise OSError(errno.EINVAL, "the name holds a NUL character", str(name))
    return open(name, "rb")


def read_file(name: str | Path) -> bytes:
    """Return the content of a file, without a byte order mark. Raises OSError."""
    with open_file(name) as file:
        return file.read().removeprefix(MARK)


def decode(data: bytes) -> str:
    """Decode UTF-8. Raises BadTextError."""
    begin = len(MARK) if data.startswith(MARK) else 0
    try:
        return data[begin:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadTextError(f"it is no UTF-8 at byte {begin + error.start + 1}") from None


def parse_json(text: str, decode: Callable[[str], Any] = json.loads) -> Any:
    """Parse JSON, with errors of our own.

    Args:
        text: the JSON.
        decode: parses it as `json.loads` does. Its hooks may raise BadTextError.

    Raises:
        BadTextError: it is not JSON, or a hook refuses it.
    """
    try:
        return decode(text)
    except json.JSONDecodeError as error:
        what = EXPLANATIONS.get(error.msg.removesuffix(":"), "something else is expected")
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise BadTextError(f"it is no JSON: {what}, at {line}character {error.colno}") from None
    except RecursionError:
        raise BadTextError(f"it {TOO_DEEP}") from None
    except BadTextError:
        raise
    except ValueError:  # A number with thousands of digits, which Python refuses to convert.
        raise BadTextError("an int has more than 64 bits") from None


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML, with errors of our own. Raises BadTextError."""
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadTextError(str(error)) from None
    except RecursionError:
        raise BadTextError("it is nested too deeply") from None
    except ValueError:  # A number with thousands of digits, which Python refuses to convert.
        raise BadTextError("an int has more than 64 bits") from None


def statements(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the statements of valid TOML: the lines of each, and what it gives by itself.

    A statement is a header, which gives empty tables; or what gives a key; or a line that is empty
    or a comment, which gives nothing. It ends with the first line up to which it can be parsed.
    """
    import tomllib

    statement = ""
    for line in io.StringIO(text, newline="\n"):
        is_first = not statement
        statement += line
        if not is_first and not _CLOSES.search(line):
            continue
        try:
            given = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue
        yield statement, given
        statement = ""
