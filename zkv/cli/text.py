"""Replies as a person reads them, and as a shell script takes them apart.

What lists things gives a line for each. A value in a line is JSON, so that it is one line and that
the text "1" is told from the number. A key in a line is text; only one that holds what cannot be
printed, or that begins with a quotation mark, is JSON, too.

On a terminal keys and ops have colours.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from os.path import isfile
from typing import Any, Final

from zkv.cli.output import RESET, STYLES, has_colours
from zkv.cli.values import to_json, unquoted

Reply = dict[str, Any]
"""A reply's fields, and with them the request's."""

GONE: Final = frozenset({"DELETE", "EXPIRE"})
"""Ops after which a key is gone."""
_LINES: Final = str.maketrans("\n\t", "  ")
"""Takes away what is not printable, and yet no harm to a terminal."""


def value(reply: Reply) -> str | bytes:
    """A value alone: text and bin as they are."""
    content = unquoted(reply["value"])
    return to_json(reply["value"]) if content is None else content


def value_shown(reply: Reply) -> str:
    """A value alone, at a terminal: nobody takes it for another one, and it does nothing to it.

    Text that reads like JSON has quotes, so that "1" is told from 1; text with control characters
    has, too; bin is JSON. What else there is stands as it is.
    """
    content = unquoted(reply["value"])
    if isinstance(content, str) and not _is_misread(content):
        return content
    return to_json(reply["value"])


def _is_misread(found: str) -> bool:
    if not found.translate(_LINES).isprintable() or found.strip() != found or not found:
        return True
    try:
        json.loads(found)
    except (ValueError, RecursionError):
        return False
    return True


def meta(facts: Mapping[str, Any]) -> str:
    """What is known of an entry: a line ``name: fact`` for each; the value is JSON."""
    lines = {name: _fact(fact) for name, fact in facts.items()} | {"value": to_json(facts["value"])}
    return "\n".join(f"{name}: {fact}" for name, fact in lines.items())


def number(name: str) -> Callable[[Reply], str]:
    """Prints the number that has this name in the reply."""
    return lambda reply: to_json(reply[name])


def values(reply: Reply) -> str | bytes:
    """Of MGET."""
    return _lines(map(to_json, reply["values"]))


def written(reply: Reply) -> str:
    """Of a write."""
    deleted = f" {reply['deleted']} deleted," if "deleted" in reply else ""
    on_disk = "on disk" if reply["durable"] else "not yet on disk"
    again = ", answered before" if reply.get("replayed") else ""
    return f"OK,{deleted} revision {reply['rev']}, {on_disk}{again}{_before(reply)}"


def after_put(reply: Reply) -> str:
    """Of PUT: some tools read a file whose name stands behind an @."""
    value = reply["value"]
    if not isinstance(value, str) or not value.startswith("@") or not isfile(value[1:]):
        return ""
    return f"stored is the text {value[:60]}; what the file holds: zkv-cli put KEY - <FILE"


def deleted(reply: Reply) -> str:
    """Of many requests that delete: they may have found nothing, and so have no revision."""
    return written(reply) if "rev" in reply else "OK, 0 deleted"


def transaction(reply: Reply) -> str:
    """Of TXN."""
    return "\n".join([written(reply), *map(to_json, reply["results"])])


def page(reply: Reply) -> str | bytes:
    """Of SCAN: key and value, or keys alone where no values were asked for."""
    key = _painter("key", _key)
    if not reply.get("values", True):
        return _lines(key(name) for name, _, _ in reply["items"])
    return _lines(f"{key(name)}\t{to_json(found)}" for name, found, _ in reply["items"])


def entries(items: Iterable[Mapping[str, Any]]) -> str | bytes:
    """Of SCAN with what is known of each entry: key, value, type, revision, time to live."""
    key = _painter("key", _key)
    return _lines(
        "\t".join(
            key(fact) if name == "key" else to_json(fact) if name == "value" else _fact(fact)
            for name, fact in item.items()
        )
        for item in items
    )


def wildcard(prefix: str) -> str:
    """What to say where no key begins with ``prefix``; empty = nothing."""
    if not prefix.endswith("*"):
        return ""
    return f"no key begins with {word(prefix)}; a PREFIX is taken as it is, * and all"


def after_count(reply: Reply) -> str:
    """Of COUNT."""
    return "" if reply["count"] else wildcard(reply.get("prefix", ""))


def after_page(following: str) -> str:
    """How to go on where a scan ended at its limit."""
    return f"there is more: the same again with --after={word(following)}"


def changes(reply: Reply) -> str | bytes:
    """Of CHANGES: revision, op, key and value; none where the key is gone."""
    key, verb = _painter("key", _key), _painter("op", str)
    return _lines(
        "\t".join([to_json(rev), verb(op), key(name), *([] if op in GONE else [to_json(found)])])
        for rev, op, name, found in reply["changes"]
    )


def change_fields(rev: int, op: str, key: str, value: Any) -> dict[str, Any]:
    """A change as ``--output json`` prints it."""
    fields = {"rev": rev, "op": op, "key": key}
    return fields if op in GONE else fields | {"value": value}


def after_changes(reply: Reply) -> str:
    """How to go on after CHANGES."""
    following, newest = reply["next"], reply["rev"]
    if following > newest:
        return f"the newest revision is {newest}: there is nothing behind {following} yet"
    return f"up to revision {following} of {newest}; to go on: the same with SINCE {following}"


def ping(reply: Reply) -> str:
    """Of PING."""
    return f"zkv {reply['version']}, protocol {reply['protocol']}"


def info(reply: Reply) -> str:
    """Of INFO: a line ``name: value`` for each fact; a map within gives ``map.name: value``."""
    return "\n".join(_facts({name: reply[name] for name in reply if name not in {"ok", "id"}}))


def saved(reply: Reply) -> str:
    """Of SNAPSHOT."""
    return f"OK, revision {reply['rev']} is on disk"


def ended(reply: Reply) -> str:
    """Of END."""
    return f"{saved(reply)}, and the server ends"


def _lines(lines: Iterable[str]) -> str | bytes:
    """Lines to be printed; where there is none, nothing, and not an empty line."""
    return "\n".join(lines) or b""


def _painter(style: str, form: Callable[[str], str]) -> Callable[[str], str]:
    """``form`` in a style, where standard output may have colours."""
    if not has_colours(sys.stdout):
        return form
    return lambda text: f"{STYLES[style]}{form(text)}{RESET}"


def _key(key: str) -> str:
    return key if key.isprintable() and not key.startswith('"') else to_json(key)


def word(key: str) -> str:
    """``key`` as a word for a shell such as bash, or for that of zkv-cli, in one line."""
    from shlex import quote

    if key.isprintable():
        return quote(key)
    plain = set(range(0x20, 0x7F)) - set(b"'\\")
    escaped = [chr(byte) if byte in plain else f"\\x{byte:02x}" for byte in key.encode()]
    return f"$'{''.join(escaped)}'"


def _before(reply: Reply) -> str:
    if "prev_rev" not in reply:
        return ""
    if reply["prev_rev"] == 0:
        return "; there was none before"
    return f"; before: {to_json(reply['prev'])}, revision {reply['prev_rev']}"


def _facts(facts: Mapping[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for name, fact in facts.items():
        if isinstance(fact, dict):
            lines += _facts(fact, f"{prefix}{name}.")
        else:
            lines.append(f"{prefix}{name}: {_fact(fact)}")
    return lines


def _fact(fact: Any) -> str:
    match fact:
        case str():
            return fact
        case None:
            return "none"
        case list():
            return " ".join(map(_fact, fact))
        case _:
            return to_json(fact)
