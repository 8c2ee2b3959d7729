"""From the parsed arguments of a command to the fields of its request.

What an op takes is the server's to judge. Here only that is refused which could not be sent, or
which the server could not see, such as the same KEY twice.
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
    """Makes fields of the arguments of these names, without those that were not given."""

    def fields(options: argparse.Namespace) -> Fields:
        values = {name: getattr(options, name) for name in names}
        # By identity: 0 is something to be sent.
        return {
            name: value for name, value in values.items() if not (value is None or value is False)
        }

    return fields


def write(fields: ToFields) -> ToFields:
    """Adds to ``fields`` what may stand with every write."""
    common = given("session", "seq", "durable")

    def both(options: argparse.Namespace) -> Fields:
        found = fields(options) | common(options)
        if options.deadline:  # Looked at last: reading standard input may have taken long.
            found["deadline"] = int((time.time() + options.timeout) * 1000)
        return found

    return both


def put(options: argparse.Namespace) -> Fields:
    """Of PUT."""
    value = read_value(options.value, options.json_value)
    return given("key", "prev", "if_rev", "ttl")(options) | {"value": value}


def mput(options: argparse.Namespace) -> Fields:
    """Of MPUT. Raises ValueError."""
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
    """Of TOUCH. Raises ValueError."""
    if options.ttl.lower() in NO_EXPIRY:
        return {"key": options.key, "ttl": None}
    try:
        return {"key": options.key, "ttl": durations.seconds(options.ttl)}
    except ValueError as error:
        raise ValueError(f"TIME: {error}; or none, for a key that stays") from None


def scan(options: argparse.Namespace) -> Fields:
    """Of SCAN, but for the limit, which is that of a page."""
    fields = given("prefix", "start", "end", "after", "reverse")(options)
    return fields | {"values": False} if options.keys_only or options.meta else fields


def txn(options: argparse.Namespace) -> Fields:
    """Of TXN. Raises ValueError and OSError."""
    fields = read_fields(options.file)
    if fields is None or not fields.keys() <= TXN_FIELDS:
        raise ValueError(f'{options.file} is no {{"if": [[KEY, REV], ...], "ops": [{{...}}, ...]}}')
    return dict(fields)
