"""Makes the fields of a request from the parsed arguments of a command.

The server validates requests. This module refuses only what cannot be sent, or what the server
would not see, such as the same KEY twice.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, Final

from zkv import durations
from zkv.cli.values import read_fields, read_value

Fields = dict[str, Any]
ToFields = Callable[[argparse.Namespace], Fields]

NO_EXPIRY: Final = frozenset({"none", "-"})
TXN_FIELDS: Final = frozenset({"if", "ops"})


def given(*names: str) -> ToFields:
    """Return a function that makes fields of the named arguments; absent ones are omitted."""

    def fields(options: argparse.Namespace) -> Fields:
        values = {name: getattr(options, name) for name in names}
        # By identity, because 0 must be sent.
        return {
            name: value for name, value in values.items() if not (value is None or value is False)
        }

    return fields


def write(fields: ToFields) -> ToFields:
    """Return a function that adds the fields of every write to those that ``fields`` makes."""
    common = given("session", "seq", "durable")

    def both(options: argparse.Namespace) -> Fields:
        found = fields(options) | common(options)
        if options.deadline:  # Computed last, since reading standard input may have taken long.
            found["deadline"] = int((time.time() + options.timeout) * 1000)
        return found

    return both


def read(*names: str) -> ToFields:
    """Return a function that makes fields of the named arguments and of those of every read."""
    return given(*names, "stale", "min_rev")


def put(options: argparse.Namespace) -> Fields:
    """The fields of PUT."""
    value = read_value(options.value, options.json_value)
    return given("key", "prev", "if_rev", "ttl")(options) | {"value": value}


def mput(options: argparse.Namespace) -> Fields:
    """The fields of MPUT. Raises ValueError."""
    keys, values = options.pairs[::2], options.pairs[1::2]
    if len(keys) != len(values):
        raise ValueError(f"the last KEY has no VALUE: {keys[-1]!r}")
    if values.count("-") > 1:
        raise ValueError("only one VALUE can come from standard input")
    items: Fields = {}
    for key, value in zip(keys, values, strict=True):
        if key in items:
            raise ValueError(f"the same KEY twice: {key!r}")
        items[key] = read_value(value, options.json_value)
    return given("ttl")(options) | {"items": items}


def touch(options: argparse.Namespace) -> Fields:
    """The fields of TOUCH. Raises ValueError."""
    if options.ttl.lower() in NO_EXPIRY:
        return {"key": options.key, "ttl": None}
    try:
        return {"key": options.key, "ttl": durations.seconds(options.ttl)}
    except ValueError as error:
        raise ValueError(f"TIME: {error}; or none, for a key that does not expire") from None


def scan(options: argparse.Namespace) -> Fields:
    """The fields of SCAN, without the limit."""
    fields = read("prefix", "start", "end", "after", "reverse")(options)
    return fields | {"values": False} if options.keys_only or options.meta else fields


def txn(options: argparse.Namespace) -> Fields:
    """The fields of TXN. Raises ValueError and OSError."""
    fields = read_fields(options.file)
    if fields is None or not fields.keys() <= TXN_FIELDS:
        raise ValueError(
            f'{options.file} must be {{"if": [[KEY, REV], ...], "ops": [{{...}}, ...]}}'
        )
    return dict(fields)
