"""Checks that no two public classes of the package share a name.

    python tools/names.py    # exit status 1 where two do

One name stands for one thing, across server, client and tools: whoever reads `Change` in a log, a
traceback or a page need not ask which.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).parents[1] / "zkv"


def classes() -> dict[str, list[Path]]:
    """The files in which each public class of a module's top level is defined."""
    found: defaultdict[str, list[Path]] = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(path.relative_to(PACKAGE.parent))
    return found


def main() -> int:
    """Say which names are there twice; returns the exit status."""
    twice = {name: paths for name, paths in classes().items() if len(paths) > 1}
    for name, paths in twice.items():
        print(f"class {name} stands in {' and in '.join(map(str, paths))}", file=sys.stderr)
    return 1 if twice else 0


if __name__ == "__main__":
    sys.exit(main())
