r"""Splits a line of the shell into words.

A word ends at white space. Quotes are those of Unix shells: ``'...'`` is literal; in ``"..."`` a
backslash escapes a quote or another backslash; ``$'...'`` has ``\xHH`` and ``\n`` for characters
that cannot be printed. A word that begins with a brace or a bracket is JSON: it extends to the
closing one, across white space, quotes and lines, so JSON needs no quoting. As a VALUE it is stored
as JSON, not as text.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from zkv.cli.values import Json

PLAIN: Final = re.compile(r"[^\s'\"\\$]+|\$(?!')")
JSON_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|.', re.DOTALL)
QUOTED: Final = {
    "'": re.compile(r"'([^']*)'"),
    '"': re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL),
    "$": re.compile(r"\$'((?:[^'\\]|\\.)*)'", re.DOTALL),
}
ESCAPE: Final = re.compile(rb"\\(?:x([0-9a-fA-F]{1,2})|(.))", re.DOTALL)
CONTROLS: Final = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"e": b"\x1b"}


class Word(NamedTuple):
    """A word of a line.

    Args:
        text: the word without its quotes.
        begin: its offset in the line.
    """

    text: str
    begin: int


class Line(NamedTuple):
    """The words of a line.

    Args:
        words: the words in order.
        is_whole: False if a quotation or JSON is not closed.
    """

    words: list[Word]
    is_whole: bool


def split(line: str) -> Line:
    """Split a line. A line that begins with ``#`` is a comment, and has no words."""
    words: list[Word] = []
    if line.lstrip().startswith("#"):
        return Line(words, True)
    at = 0
    while at < len(line):
        if line[at].isspace():
            at += 1
            continue
        begin = at
        text, at, is_whole = _json(line, at) if line[at] in "{[" else _word(line, at)
        words.append(Word(text, begin))
        if not is_whole:
            return Line(words, False)
    return Line(words, True)


def _json(line: str, begin: int) -> tuple[str, int, bool]:
    """A word of JSON, the offset after it, and True if it is closed."""
    depth = 0
    for token in JSON_TOKEN.finditer(line, begin):
        if token[0] == '"':
            break  # A string that is not closed.
        if token[0] in {"{", "["}:
            depth += 1
        elif token[0] in {"}", "]"}:
            depth -= 1
            if depth == 0:
                rest, end, is_whole = _word(line, token.end())
                json = line[begin : token.end()]
                return (json + rest if rest else Json(json)), end, is_whole
    return line[begin:], len(line), False


def _word(line: str, at: int) -> tuple[str, int, bool]:
    """The same for any other word."""
    text = ""
    while at < len(line) and not line[at].isspace():
        if plain := PLAIN.match(line, at):
            text, at = text + plain[0], plain.end()
        elif line[at] == "\\":
            if at + 1 == len(line):
                return text, at, False
            text, at = text + line[at + 1].replace("\n", ""), at + 2
        else:
            quote = line[at]
            quoted = QUOTED[quote].match(line, at)
            if quoted is None:
                return text + line[at:].lstrip("$").removeprefix(quote), len(line), False
            text, at = text + _meaning(quote, quoted[1]), quoted.end()
    return text, at, True


def _meaning(quote: str, text: str) -> str:
    if quote == '"':
        return re.sub(r'\\(["\\])', r"\1", text)
    if quote == "$":
        return ESCAPE.sub(_unescape, text.encode("utf-8", "surrogateescape")).decode(
            "utf-8", "surrogateescape"
        )
    return text


def _unescape(escape: re.Match[bytes]) -> bytes:
    if escape[1] is not None:
        return bytes([int(escape[1], 16)])
    return CONTROLS.get(escape[2], escape[2])
