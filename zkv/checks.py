"""Checks of what programs pass to the client and to an embedded server.

Each function checks one kind of argument, and returns it in the one type that the rest of the
client works with. What is wrong is refused before anything is sent: a TypeError or a ValueError
whose message names the argument and says what is allowed.

The rules are the same everywhere:

- Seconds are an int, a float or a ``timedelta``. nan and inf are refused.
- A bool is an int to Python, and refused where a number is meant. A flag is a bool.
- Text is a str without surrogates; bytes are not decoded.

Values of the usual types pass after one or two comparisons.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import timedelta
from typing import Any, Final, NoReturn, TypeVar

from zkv.defaults import LONGEST_TTL

Seconds = float | timedelta
"""A length of time, as arguments take it."""

LONGEST_TIMEOUT: Final = 86_400.0
"""Seconds for a request: a day. ZeroMQ counts milliseconds in a C int."""
LONGEST_WAIT: Final = 31_536_000.0
"""Seconds to wait for others: a year. Python's locks take 292."""
MOST_REVISION: Final = 2**63 - 1
"""Revisions, and other ints of the protocol, fit into 64 bits with sign."""
SHOWN: Final = 60
"""Characters of a value that a message shows."""

T = TypeVar("T")


# --- Lengths of time


def ttl(value: Seconds | None) -> float | None:
    """A time to live; None = it does not expire."""
    return None if value is None else lease("ttl", value)


def lease(name: str, value: Seconds) -> float:
    """A time to live that there must be."""
    number = _seconds(name, value)
    if not 0 < number <= LONGEST_TTL:
        _refuse_seconds(name, "above 0", LONGEST_TTL, value)
    return number


def timeout(value: Seconds) -> float:
    """How long a request may take."""
    number = _seconds("timeout", value)
    if not 0 < number <= LONGEST_TIMEOUT:
        _refuse_seconds("timeout", "above 0", LONGEST_TIMEOUT, value)
    return number


def wait(value: Seconds | None) -> float | None:
    """How long to wait for something that others do; None = as long as it takes."""
    return None if value is None else seconds("timeout", value, 0, LONGEST_WAIT)


def seconds(name: str, value: Seconds, low: float, most: float) -> float:
    """A length of time from ``low`` to ``most`` seconds."""
    number = _seconds(name, value)
    if not low <= number <= most:
        _refuse_seconds(name, f"from {low:g}", most, value)
    return number


def _seconds(name: str, value: Any) -> float:
    if type(value) is float or type(value) is int:
        return value
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        _refuse_type(name, "a number of seconds or a timedelta", value)
    return float(value) if isinstance(value, float) else int(value)


def _refuse_seconds(name: str, low: str, most: float, value: Any) -> NoReturn:
    raise ValueError(f"{name}: seconds {low}, up to {most:,.0f}; not {shown(value)}")


# --- Other numbers, and flags


def integer(name: str, value: int, low: int, high: int) -> int:
    """An int from ``low`` to ``high``."""
    if type(value) is not int:
        if isinstance(value, bool) or not isinstance(value, int):
            _refuse_type(name, "an int", value)
        value = int(value)
    if not low <= value <= high:
        raise ValueError(f"{name}: an int {_range(low, high)}; not {shown(value)}")
    return value


def revision(name: str, value: int) -> int:
    """A revision of the store, or of an entry."""
    return integer(name, value, 0, MOST_REVISION)


def _range(low: int, high: int) -> str:
    if high < MOST_REVISION:
        return f"from {low} to {high}"
    return f"of 64 bits, from {low}" if low >= 0 else "of 64 bits with sign"


def flag(name: str, value: bool) -> bool:
    """True or False."""
    if value is not True and value is not False:
        _refuse_type(name, "True or False", value)
    return value


# --- Text


def key(prefix: str, value: str) -> str:
    """A key behind the prefix of its namespace, as it is stored.

    The server judges what is in it: it must not be empty, nor be too long.
    """
    if not isinstance(value, str):
        _refuse_type("key", "a str", value)
    return prefix + value


def keys(prefix: str, values: Iterable[str]) -> tuple[list[str], list[str]]:
    """Keys as they were given, and as they are stored."""
    try:
        given = list(iter(values))
    except TypeError:
        _refuse_type("keys", "an iterable of str", values)
    all_text("keys", given)
    return given, stored(prefix, given)


def stored(prefix: str, given: list[str]) -> list[str]:
    """Keys as they are stored: each a `str`, also where a subclass was given."""
    if prefix or not _TEXT.issuperset(map(type, given)):
        return [prefix + value for value in given]
    return given


_TEXT: Final = frozenset({str})


def all_text(name: str, values: Collection[Any]) -> None:
    """See that all are text, in a fifth of the time that it takes to look at each."""
    try:
        "".join(values)
    except TypeError:
        at, value = next(each for each in enumerate(values) if not isinstance(each[1], str))
        _refuse_type(f"{name}[{at}]", "a str", value)


def text(name: str, value: str) -> str:
    """Any text, as a prefix may be."""
    if not isinstance(value, str):
        _refuse_type(name, "a str", value)
    if not value.isascii():
        _check_characters(name, value)
    return value


def text_or_none(name: str, value: str | None) -> str | None:
    """Text, or None."""
    return None if value is None else text(name, value)


def _check_characters(name: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        raise ValueError(
            f"{name}: a str without surrogates, which are no characters; not one with U+{code:04X}"
        ) from None


# --- Objects


def instance(name: str, value: object, kind: type[T]) -> T:
    """An object of a class."""
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        _refuse_type(name, f"{article} {kind.__name__}", value)
    return value


def function(name: str, value: T) -> T:
    """Something that can be called."""
    if not callable(value):
        _refuse_type(name, "a function", value)
    return value


def named(name: str, error: Exception) -> TypeError | ValueError:
    """A TypeError or ValueError that was raised for an argument, with its name."""
    kind = TypeError if isinstance(error, TypeError) else ValueError
    return kind(f"{name}: {error}")


def shown(value: object) -> str:
    """A value as a message shows it."""
    try:
        text = repr(value)
    except Exception:  # An int with thousands of digits, or whatever a class does.
        return f"this {type(value).__qualname__}"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _refuse_type(name: str, allowed: str, value: object) -> NoReturn:
    if value is None:
        raise TypeError(f"{name}: {allowed}; not None") from None
    given = f"{type(value).__qualname__}: {shown(value)}"
    raise TypeError(f"{name}: {allowed}; not {given}") from None
