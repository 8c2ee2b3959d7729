"""The query of a URL, read strictly: nothing is guessed, repaired or ignored.

Starlette would put U+FFFD in the place of bytes that are not UTF-8, and so name another key.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final
from urllib.parse import parse_qsl

from starlette.requests import Request

from zkv.web import MOST
from zkv.web.answers import HttpFailure

MOST_FIELDS: Final = 20


class Query:
    """The fields of a query.

    Args:
        request: the request.
        known: the fields that it may have.

    Raises:
        HttpFailure: it cannot be read, or has another field, or one twice.
    """

    def __init__(self, request: Request, known: Collection[str]) -> None:
        try:
            pairs = parse_qsl(
                request.scope["query_string"].decode("ascii"),
                keep_blank_values=True,
                errors="strict",
                max_num_fields=MOST_FIELDS,
            )
        except UnicodeError:
            raise HttpFailure("BAD_REQUEST", "the query is not UTF-8, percent-encoded") from None
        except ValueError:
            raise HttpFailure("BAD_REQUEST", f"the query has over {MOST_FIELDS} fields") from None
        self._fields: dict[str, str] = {}
        for name, text in pairs:
            if name not in known:
                takes = ", ".join(known)
                raise HttpFailure("BAD_REQUEST", f"unknown field {name!r:.60}; it takes {takes}")
            if name in self._fields:
                raise HttpFailure("BAD_REQUEST", f"{name}: it is there twice")
            self._fields[name] = text

    def text(self, name: str, default: str | None = None) -> str:
        """Return a field that is text. Raises HttpFailure if it is missing without a default."""
        found = self._fields.get(name, default)
        if found is None:
            raise HttpFailure("BAD_REQUEST", f"{name}: it is missing")
        return found

    def maybe(self, name: str) -> str | None:
        """Return a field that is text; None if it is missing."""
        return self._fields.get(name)

    def flag(self, name: str, default: bool = False) -> bool:
        """Return a field that is ``true`` or ``false``; alone it means ``true``."""
        text = self._fields.get(name)
        if text is None:
            return default
        if text not in {"true", "false", ""}:
            raise HttpFailure("BAD_REQUEST", f"{name}: expected true or false, not {text!r:.60}")
        return text != "false"

    def integer(self, name: str) -> int | None:
        """Return a field that is a whole number from 0; None if it is missing."""
        text = self._fields.get(name)
        if text is None:
            return None
        found = whole_number(text)
        if found is None:
            raise HttpFailure("BAD_REQUEST", f"{name}: expected a whole number, not {text!r:.60}")
        return found

    def seconds(self, name: str) -> float | None:
        """Return a field that is a number of seconds above 0; None if it is missing."""
        text = self._fields.get(name)
        if text is None:
            return None
        try:
            found = float(text)
        except ValueError:
            found = -1.0
        if not 0 < found <= 1e10:
            raise HttpFailure("BAD_REQUEST", f"{name}: {text!r:.60} is not seconds, up to 10^10")
        return found

    def limit(self, default: int = 100) -> int:
        """Return the field ``limit``, at most `MOST`."""
        found = self.integer("limit")
        if found is not None and not 1 <= found <= MOST:
            raise HttpFailure("BAD_REQUEST", f"limit: expected 1 to {MOST}, not {found}")
        return default if found is None else found


def whole_number(text: str) -> int | None:
    """Return the whole number from 0 that a text is, with few digits; None if it is not one."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None
