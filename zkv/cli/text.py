"""Formats replies as text, for people to read and for shell scripts to parse.

Lists have one item per line. A value in a line is JSON, so that it takes one line and the text "1"
differs from the number. A key in a line is text; if it has characters that are not printable, or
begins with a quotation mark, it is JSON, too.

On a terminal, keys and ops have colours.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from os.path import isfile
from typing import Any, Final

from zkv import figures
from zkv.cli.output import RESET, STYLES, has_colours
from zkv.entries.text import to_json, unquoted

Reply = dict[str, Any]
"""The fields of a reply and of its request."""

GONE: Final = frozenset({"DELETE", "EXPIRE"})
"""Ops after which a key is gone."""
_LINES: Final = str.maketrans("\n\t", "  ")
"""Removes the characters that are not printable, but harmless to a terminal."""


def value(reply: Reply) -> str | bytes:
    """A single value: text and bin unchanged, others as JSON."""
    content = unquoted(reply["value"])
    return to_json(reply["value"]) if content is None else content


def value_shown(reply: Reply) -> str:
    """A single value for a terminal: unambiguous, and without control characters.

    Text that looks like JSON is quoted, so that "1" differs from 1, and so is text with control
    characters. bin is JSON. Other text is unchanged.
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
    """The metadata of an entry: lines ``name: fact``; the value is JSON."""
    lines = {name: _fact(fact) for name, fact in facts.items()} | {"value": to_json(facts["value"])}
    return "\n".join(f"{name}: {fact}" for name, fact in lines.items())


def number(name: str) -> Callable[[Reply], str]:
    """Return a function that formats the number of this name in a reply."""
    return lambda reply: to_json(reply[name])


def values(reply: Reply) -> str | bytes:
    """The reply to MGET."""
    return _lines(map(to_json, reply["values"]))


def written(reply: Reply) -> str:
    """The reply to a write."""
    deleted = f" {reply['deleted']} deleted," if "deleted" in reply else ""
    on_disk = "on disk" if reply["durable"] else "not yet on disk"
    again = ", answered before" if reply.get("replayed") else ""
    return f"OK,{deleted} revision {reply['rev']}, {on_disk}{again}{_before(reply)}"


def after_put(reply: Reply) -> str:
    """The note after PUT, if the value looks like ``@FILE``: other tools would read that file."""
    value = reply["value"]
    if not isinstance(value, str) or not value.startswith("@") or not isfile(value[1:]):
        return ""
    return f"stored the text {value[:60]}; to store the file's contents: zkv-cli put KEY - <FILE"


def deleted(reply: Reply) -> str:
    """The result of delete --prefix, which has no revision if there was nothing to delete."""
    return written(reply) if "rev" in reply else "OK, 0 deleted"


def transaction(reply: Reply) -> str:
    """The reply to TXN."""
    return "\n".join([written(reply), *map(to_json, reply["results"])])


def page(reply: Reply) -> str | bytes:
    """A page of SCAN: keys and values, or only keys if the request excluded values."""
    key = _painter("key", _key)
    if not reply.get("values", True):
        return _lines(key(name) for name, _, _ in reply["items"])
    return _lines(f"{key(name)}\t{to_json(found)}" for name, found, _ in reply["items"])


def entries(items: Iterable[Mapping[str, Any]]) -> str | bytes:
    """A page of SCAN with metadata: key, value, type, revision, time to live."""
    key = _painter("key", _key)
    return _lines(
        "\t".join(
            key(fact) if name == "key" else to_json(fact) if name == "value" else _fact(fact)
            for name, fact in item.items()
        )
        for item in items
    )


def wildcard(prefix: str) -> str:
    """The hint if no key begins with ``prefix`` and it ends with a ``*``; otherwise empty."""
    if not prefix.endswith("*"):
        return ""
    return f"no key begins with {word(prefix)}; a * in a PREFIX is not a wildcard"


def after_count(reply: Reply) -> str:
    """The note after COUNT."""
    return "" if reply["count"] else wildcard(reply.get("prefix", ""))


def after_page(following: str) -> str:
    """The note after a scan that ended at its limit."""
    return f"there is more; to continue, add --after={word(following)}"


def changes(reply: Reply) -> str | bytes:
    """The reply to CHANGES: revision, op, key and, unless the key is gone, value."""
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
    """The note after CHANGES: how to continue."""
    following, newest = reply["next"], reply["rev"]
    if following > newest:
        return f"the newest revision is {newest}: there is nothing after {following} yet"
    return f"up to revision {following} of {newest}; to continue: SINCE {following}"


PARTS: Final = ("queue", "lock", "execute", "sync")
"""The parts of a request's time, in their order."""


def slow(reply: Reply) -> str | bytes:
    """The reply to SLOW: a line for each request."""
    return _lines(map(_slow, reply["entries"]))


def _slow(entry: Mapping[str, Any]) -> str:
    key, verb = _painter("key", _key), _painter("op", str)
    timing = entry["timing"]
    parts = [f"{name} {_ms(timing[name])}" for name in PARTS if timing[name]]
    subject = key(entry["key"]) if "key" in entry else _number_of_keys(entry.get("keys"))
    others = [f"batch of {entry['batch']}"] if entry["batch"] > 1 else []
    others += [f"beside {', '.join(entry['beside'])}"] if entry["beside"] else []
    others += [f"trace {word(entry['trace'])}"] if entry["trace"] is not None else []
    others += [f"user {entry['user']}"] if entry["user"] is not None else []
    when = datetime.fromtimestamp(entry["time"] / 1000, UTC).isoformat("T", "milliseconds")
    fields = [when.replace("+00:00", "Z"), verb(entry["op"]), subject]
    took = f"{_ms(timing['total'])}: {', '.join(parts) or 'less than 1 us'}"
    return "\t".join([*fields, took, *others])


def _number_of_keys(keys: int | None) -> str:
    return "-" if keys is None else f"{keys} keys"


def _ms(microseconds: int) -> str:
    return f"{microseconds / 1000:g} ms"


def after_slow(reply: Reply) -> str:
    """The note after SLOW, if there is nothing."""
    return "" if reply["entries"] else "no request has been slow; metrics.slow sets what is"


def ping(reply: Reply) -> str:
    """The reply to PING."""
    return f"zkv {reply['version']}, protocol {reply['protocol']}"


def info(reply: Reply) -> str:
    """The reply to INFO: lines ``name: value``; facts in a nested map are ``map.name: value``."""
    return "\n".join(_facts({name: reply[name] for name in reply if name not in {"ok", "id"}}))


def after_info(reply: Reply) -> str:
    """The reason why the reply to INFO has no statistics."""
    return figures.hidden(reply)


def saved(reply: Reply) -> str:
    """The reply to SNAPSHOT."""
    return f"OK, revision {reply['rev']} is on disk"


def ended(reply: Reply) -> str:
    """The reply to END."""
    return f"{saved(reply)}, and the server ends"


def _lines(lines: Iterable[str]) -> str | bytes:
    """The lines to print; without any, bytes, so that not even an empty line is printed."""
    return "\n".join(lines) or b""


def _painter(style: str, form: Callable[[str], str]) -> Callable[[str], str]:
    """``form`` with a style, if standard output may have colours."""
    if not has_colours(sys.stdout):
        return form
    return lambda text: f"{STYLES[style]}{form(text)}{RESET}"


def _key(key: str) -> str:
    return key if key.isprintable() and not key.startswith('"') else to_json(key)


def word(key: str) -> str:
    """``key`` quoted as one word for a shell such as bash, or for zkv-cli's, in one line."""
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
        return "; there was no such key before"
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
            return " ".join(map(_fact, fact)) or "none"
        case _:
            return to_json(fact)
