"""Checks the arguments of the client and of an embedded server.

Each function checks one kind of argument, and returns it in the one type that the rest of the
client works with. A wrong argument is refused before anything is sent, with a TypeError or a
ValueError whose message names the argument and the allowed values.

The rules are the same everywhere:

- Seconds are an int, a float or a ``timedelta``. nan and inf are refused.
- A bool is an int in Python, but is not accepted as a number. A flag must be a bool.
- Text is a str without surrogates; bytes are not decoded.

Values of the usual types pass after one or two comparisons.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Final, Literal, NoReturn, TypeVar, get_args

from zkv.compiled import COMPILED, store
from zkv.defaults import LONGEST_TTL

Seconds = float | timedelta
"""A length of time, as arguments take it."""
ReadFrom = Literal["leader", "stale"]
"""Which servers answer reads: the one that leads; or any, although it may lag behind."""

LONGEST_TIMEOUT: Final = 86_400.0
"""The longest timeout of a request: a day, in seconds. ZeroMQ counts milliseconds in a C int."""
LONGEST_WAIT: Final = 31_536_000.0
"""The longest wait for others: a year, in seconds. Python's locks accept 292 years."""
MOST_REVISION: Final = 2**63 - 1
"""Revisions, and other ints of the protocol, fit into 64 bits with sign."""
SHOWN: Final = 60
"""The maximum number of characters of a value in a message."""

T = TypeVar("T")


# --- Lengths of time


def ttl(value: Seconds | None) -> float | None:
    """Check a time to live; None = the entry does not expire."""
    return None if value is None else lease("ttl", value)


def lease(name: str, value: Seconds) -> float:
    """Check a time to live that must not be None."""
    number = _seconds(name, value)
    if not 0 < number <= LONGEST_TTL:
        _refuse_seconds(name, "above 0", LONGEST_TTL, value)
    return number


def timeout(value: Seconds) -> float:
    """Check the timeout of a request."""
    number = _seconds("timeout", value)
    if not 0 < number <= LONGEST_TIMEOUT:
        _refuse_seconds("timeout", "above 0", LONGEST_TIMEOUT, value)
    return number


def wait(value: Seconds | None) -> float | None:
    """Check the timeout of a wait for others; None = no limit."""
    return None if value is None else seconds("timeout", value, 0, LONGEST_WAIT)


def seconds(name: str, value: Seconds, low: float, most: float) -> float:
    """Check a length of time from ``low`` to ``most`` seconds."""
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
    """Check an int from ``low`` to ``high``."""
    if type(value) is not int:
        if isinstance(value, bool) or not isinstance(value, int):
            _refuse_type(name, "an int", value)
        value = int(value)
    if not low <= value <= high:
        raise ValueError(f"{name}: an int {_range(low, high)}; not {shown(value)}")
    return value


def revision(name: str, value: int) -> int:
    """Check a revision of the store or of an entry."""
    return integer(name, value, 0, MOST_REVISION)


def _range(low: int, high: int) -> str:
    if high < MOST_REVISION:
        return f"from {low} to {high}"
    return f"of 64 bits, from {low}" if low >= 0 else "of 64 bits with sign"


def flag(name: str, value: bool) -> bool:
    """Check a bool."""
    if value is not True and value is not False:
        _refuse_type(name, "True or False", value)
    return value


def read_from(value: ReadFrom) -> ReadFrom:
    """Check which servers are to answer reads."""
    if not isinstance(value, str):
        _refuse_type("read", "'leader' or 'stale'", value)
    if value not in get_args(ReadFrom):
        raise ValueError(f"read: 'leader' or 'stale'; not {shown(value)}")
    return value


# --- Text


def key(prefix: str, value: str) -> str:
    """Check a key, and add the prefix of its namespace.

    The server checks the contents: a key must not be empty or too long.
    """
    if not isinstance(value, str):
        _refuse_type("key", "a str", value)
    return prefix + value


def keys(prefix: str, values: Iterable[str]) -> tuple[list[str], list[str]]:
    """Check keys. Returns them as they were given, and as they are stored."""
    try:
        given = list(iter(values))
    except TypeError:
        _refuse_type("keys", "an iterable of str", values)
    return given, stored("keys", prefix, given)


def stored(name: str, prefix: str, given: list[str]) -> list[str]:
    """Check keys, and return them as they are stored, each of exactly the type `str`.

    The result is ``given`` itself if the keys are stored as they are.
    """
    if _are_texts(given):
        return [prefix + value for value in given] if prefix else given
    for at, value in enumerate(given):
        if not isinstance(value, str):
            _refuse_type(f"{name}[{at}]", "a str", value)
    return [prefix + value for value in given]


def _python_are_texts(values: list[Any]) -> bool:
    """Return True if each is exactly a `str`."""
    return _TEXT.issuperset(map(type, values))


_TEXT: Final = frozenset({str})
_are_texts: Final = store.are_texts if COMPILED else _python_are_texts


def text(name: str, value: str) -> str:
    """Check text, such as a prefix."""
    if not isinstance(value, str):
        _refuse_type(name, "a str", value)
    if not value.isascii():
        _check_characters(name, value)
    return value


def text_or_none(name: str, value: str | None) -> str | None:
    """Check text or None."""
    return None if value is None else text(name, value)


def _check_characters(name: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        raise ValueError(
            f"{name}: a str without surrogates, which are not characters; it has U+{code:04X}"
        ) from None


# --- Objects


def instance(name: str, value: object, kind: type[T]) -> T:
    """Check that an object is an instance of a class."""
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        _refuse_type(name, f"{article} {kind.__name__}", value)
    return value


def function(name: str, value: T) -> T:
    """Check that a value is callable."""
    if not callable(value):
        _refuse_type(name, "a function", value)
    return value


def named(name: str, error: Exception) -> TypeError | ValueError:
    """Add the name of an argument to a TypeError or ValueError."""
    kind = TypeError if isinstance(error, TypeError) else ValueError
    return kind(f"{name}: {error}")


def shown(value: object) -> str:
    """Return a value as messages show it."""
    try:
        text = repr(value)
    except Exception:  # An int with thousands of digits, or a broken ``__repr__``.
        return f"this {type(value).__qualname__}"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _refuse_type(name: str, allowed: str, value: object) -> NoReturn:
    if value is None:
        raise TypeError(f"{name}: {allowed}; not None") from None
    given = f"{type(value).__qualname__}: {shown(value)}"
    raise TypeError(f"{name}: {allowed}; not {given}") from None
