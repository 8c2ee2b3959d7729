"""Generates the modules for threads from those for asyncio: ``async_NAME.py`` gives ``NAME.py``.

The two halves of the client differ only in ``await``, so only one of them is written by hand. A
line that must differ ends in a comment with its replacement; if the comment is empty, the line is
removed::

    async def count(self) -> int:  # sync: def __len__(self) -> int:

Parts that differ more are written twice by hand, with the same interface: ``tasks.py`` and
``threads.py``, ``aio.py`` and ``sync.py``.

Run it as ``make generate``. With ``--check``, as in ``make lint``, it writes nothing, and its exit
status is 1 if a module is outdated.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
CLIENT: Final = ROOT / "zkv" / "client"
MARK: Final = "async_"
HEADER: Final = "# Generated from {} by tools/unasync.py. Change that file, then: make generate"

INSTEAD: Final = re.compile(r"^( *)(?:.*  )?# sync:(?: (.*))?\n", re.MULTILINE)
"""A line with its replacement in a comment."""

RULES: Final = [
    (re.compile(pattern, re.MULTILINE), replacement)
    for pattern, replacement in (
        (r"\(await ([\w.]+\(\))\)", r"\1"),
        (r"\basync (?=def\b|with\b|for\b)", ""),
        (r"\bawait ", ""),
        (r"\bAwaitable\[(\w+)\]", r"\1"),
        (r"\bAsync(?=[A-Z])", ""),
        (r"\basync_(?=[a-z])", ""),
        (r"\basynccontextmanager\b", "contextmanager"),
        (r"\bStopAsyncIteration\b", "StopIteration"),
        (r"\b__a(enter|exit|iter|next)__", r"__\1__"),
        (r"\ba(close|next)\b", r"\1"),
        (r"\btask(s?)\b", r"thread\1"),
        (r"  # noqa: ASYNC.*$", ""),
    )
]
LEFT_OVER: Final = re.compile(r"(?i)\b(async\w*|await)\b")


def generated(source: Path) -> str:
    """The text of the module for threads for a module for asyncio. Raises ValueError."""
    text = INSTEAD.sub(_instead, source.read_text(encoding="utf-8"))
    for pattern, replacement in RULES:
        text = pattern.sub(replacement, text)
    if left := LEFT_OVER.search(text):
        number = text.count("\n", 0, left.start()) + 1
        raise ValueError(f"{source.relative_to(ROOT)}: no rule for {left[0]!r} in line {number}")
    text = f"{HEADER.format(source.name)}\n{text}"
    tidied = _ruff(text, "check", "--select", "I,F401", "--fix-only", "--quiet", target(source))
    return _ruff(tidied, "format", "--quiet", target(source))


def target(source: Path) -> Path:
    """The path of the module for threads."""
    return source.with_name(source.name.removeprefix(MARK))


def sources() -> list[Path]:
    """The modules for asyncio."""
    return sorted(CLIENT.rglob(f"{MARK}*.py"))


def outdated() -> Iterator[tuple[Path, str]]:
    """The outdated modules for threads, and the texts that they should have."""
    for source in sources():
        text, path = generated(source), target(source)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            yield path, text


def _instead(line: re.Match[str]) -> str:
    return f"{line[1]}{line[2]}\n" if line[2] else ""


def _ruff(text: str, command: str, *options: object) -> str:
    """``text`` after a run of ruff: lines may become shorter, and imports change their order."""
    ruff = str(Path(sysconfig.get_path("scripts"), "ruff"))
    *flags, path = map(str, options)
    done = subprocess.run(
        [ruff, command, *flags, "--stdin-filename", path, "-"],
        input=text, capture_output=True, encoding="utf-8", cwd=ROOT, check=True,
    )  # fmt: skip
    return done.stdout


def main() -> int:
    """Write the outdated modules, or only report them; returns the exit status."""
    check = sys.argv[1:] == ["--check"]
    status = 0
    for path, text in outdated():
        name = path.relative_to(ROOT)
        if check:
            print(f"{name} is outdated: run make generate", file=sys.stderr)
            status = 1
        else:
            path.write_text(text, encoding="utf-8")
            print(f"{name} written")
    return status


if __name__ == "__main__":
    sys.exit(main())
