"""Checks names and docstrings.

    python tools/names.py    # exit status 1 after a fault

- No two public classes of the package share a name: one name stands for one thing, across server,
  client and tools, so nobody has to ask which `Change` a log, a traceback or a page means.
- No docstring begins with "What" or "Whether". Such a sentence names its subject last; "The ...",
  "True if ..." or a verb name it first.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
PACKAGE: Final = ROOT / "zkv"
DOCUMENTED: Final = ("zkv", "benchmarks", "clients/python", "tools")
"""Directories with the docstrings that are checked: all Python code but the tests."""
REFUSED: Final = ("What ", "Whether ")


def classes() -> dict[str, list[Path]]:
    """The files in which each public class of a module's top level is defined.

    Adapters are told apart by their modules: that is how the settings of frameworks name them.
    """
    found: defaultdict[str, list[Path]] = defaultdict(list)
    for path in sorted(set(PACKAGE.rglob("*.py")) - set(PACKAGE.glob("contrib/*.py"))):
        for node in _parse(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(path.relative_to(ROOT))
    return found


def faulty_docstrings() -> Iterator[str]:
    """A line for each docstring in `DOCUMENTED` that begins with one of `REFUSED`."""
    for path in (path for place in DOCUMENTED for path in sorted((ROOT / place).rglob("*.py"))):
        for node in ast.walk(_parse(path)):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                text = node.value.value
                if isinstance(text, str) and text.startswith(REFUSED):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}: {text.splitlines()[0]}"


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def main() -> int:
    """Print the faults; returns the exit status."""
    faults = [
        f"class {name} is defined in {' and in '.join(map(str, paths))}"
        for name, paths in classes().items()
        if len(paths) > 1
    ]
    faults += [f'{line} (begin with "The", "True if" or a verb)' for line in faulty_docstrings()]
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
