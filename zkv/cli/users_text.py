"""Edits the text of a users file, and keeps what else a person has written in it.

No library writes TOML and keeps comments reliably, so an edit is tried in the ways in which files
are usually written, and counts only if the result says exactly what it should. What is written in
another way, such as all users in one line, has to be edited by hand.

The comments and blank lines after the last field of a user belong to what follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

from zkv.config import toml_value
from zkv.reading import BadTextError, parse_toml, statements

Fields = dict[str, Any]
"""The fields of a user, as the file has them."""

FIRST_LINE: Final = "# The users of a zkv server; `zkv user` edits this file.\n"
ENDS_OF_ITEMS: Final = frozenset("\"'0123456789abcdefABCDEF")
"""Characters with which an item of a list can end: text, or a number."""
MOST_TRIES: Final = 2_000
INDENT: Final = "    "


class CannotEditError(ValueError):
    """The file is written in another way than this module knows."""


def with_user(text: str, name: str, fields: Fields) -> str:
    """Add the table of a new user. Raises CannotEditError.

    Args:
        text: the content of the file.
        name: of the user.
        fields: of the user.
    """
    before = _whole(text) or FIRST_LINE
    lines = ["", f"[users.{name}]", *(_line(field, value) for field, value in fields.items())]
    table = "".join(f"{line}\n" for line in lines)
    return _verified(before + _with_newlines(table, before), _users(text) | {name: fields})


def with_fields(text: str, name: str, fields: Fields) -> str:
    """Give fields of a user other values, of which lists only grow. Raises CannotEditError."""
    before, body, after = _split(_whole(text), name)
    for field, value in fields.items():
        at = next((at for at, part in enumerate(body) if field in parse_toml(part)), None)
        if at is None:
            body.append(_with_newlines(f"{_line(field, value)}\n", text))
        else:
            body[at] = _changed(body[at], field, value)
    users = _users(text)
    users[name] |= fields
    return _verified("".join([*before, *body, *after]), users)


def without_user(text: str, name: str) -> str:
    """Remove the table of a user. Raises CannotEditError."""
    before, _, after = _split(_whole(text), name)
    while after and _is_blank(after[0]) and (not before or _is_blank(before[-1])):
        del after[0]
    while not after and before and _is_blank(before[-1]):
        del before[-1]
    users = _users(text)
    del users[name]
    return _verified("".join([*before, *after]), users)


def _split(text: str, name: str) -> tuple[list[str], list[str], list[str]]:
    """Split a text into the statements before a user's table, in it, and after its last field.

    Raises CannotEditError.
    """
    parts = [part for part, _ in statements(text)]
    header: Fields = {"users": {name: {}}}
    begin = next((n for n, part in enumerate(parts) if _gives_header(part, header)), None)
    if begin is None:
        raise CannotEditError(f"the table of {name} does not begin with [users.{name}]")
    end = begin + 1
    for number, part in enumerate(parts[end:], end):
        if _is_header(part):
            break
        if parse_toml(part):
            end = number + 1
    return parts[:begin], parts[begin:end], parts[end:]


def _is_header(part: str) -> bool:
    return part.lstrip().startswith("[")


def _gives_header(part: str, header: Fields) -> bool:
    return _is_header(part) and parse_toml(part) == header


def _is_blank(part: str) -> bool:
    return not part.strip()


def _users(text: str) -> dict[str, Fields]:
    users: dict[str, Fields] = parse_toml(text).get("users", {})
    return users


def _verified(text: str, users: dict[str, Fields]) -> str:
    """Return a text that holds certain users, and nothing else. Raises CannotEditError."""
    try:
        if parse_toml(text) == {"users": users}:
            return text
    except BadTextError:
        pass
    raise CannotEditError("it is not written as zkv user writes it")


def _line(field: str, value: Any) -> str:
    return f"{field} = {toml_value(value)}"


def _whole(text: str) -> str:
    """Return a text whose last line has an end."""
    return text if not text or text.endswith("\n") else text + _with_newlines("\n", text)


def _with_newlines(text: str, like: str) -> str:
    """Return ``text`` with the ends of lines that ``like`` has."""
    return text.replace("\n", "\r\n") if "\r\n" in like else text


def _changed(part: str, field: str, value: Any) -> str:
    """Change the value in the statement of a field. Raises CannotEditError."""
    before = parse_toml(part)[field]
    if isinstance(before, list) and isinstance(value, list):
        candidates = _extended(part, value[len(before) :])
    else:
        candidates = _replaced(part, value)
    for candidate in islice(candidates, MOST_TRIES):
        try:
            if parse_toml(candidate) == {field: value}:
                return candidate
        except BadTextError:
            continue
    raise CannotEditError(f"its field {field} is not written as zkv user writes it")


def _replaced(part: str, value: Any) -> Iterator[str]:
    """Yield a statement with another value, each time with less of what follows the old one."""
    begin = part.index("=") + 1
    for end in range(begin, len(part) + 1):
        yield f"{part[:begin]} {toml_value(value)}{part[end:]}"


def _extended(part: str, items: list[Any]) -> Iterator[str]:
    """Yield a statement with more items in its list, for each bracket that may be the last."""
    for end in reversed(range(len(part))):
        if part[end] != "]":
            continue
        head, tail = part[:end], part[end:]
        more = _more(head, items)
        yield head + more + tail
        for at in reversed(range(len(head))):  # The last item may have no comma.
            if head[at] in ENDS_OF_ITEMS:
                yield f"{head[: at + 1]},{head[at + 1 :]}{more}{tail}"


def _more(head: str, items: Iterable[Any]) -> str:
    """Return the text of more items: on lines of their own, if the bracket after them is on one."""
    lines = head.split("\n")
    if len(lines) == 1 or lines[-1].strip():
        gap = "" if head.endswith(("[", " ")) else " "
        return gap + ", ".join(map(toml_value, items))
    beside = lines[-2]
    indent = beside[: len(beside) - len(beside.lstrip())] if len(lines) > 2 else INDENT
    rows = f"\n{indent}".join(f"{toml_value(item)}," for item in items)
    return _with_newlines(f"{indent[len(lines[-1]) :]}{rows}\n{lines[-1]}", head)
