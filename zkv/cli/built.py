"""What `make` asks of an installation: is all of it compiled, and if not, why?

``python -m zkv.cli.built LOG`` says so in one line where something is not, and what helps; LOG is
pip's of the build. The exit status is 1 where the build failed although there was what it takes.
``python -m zkv.cli.built --possible`` prints nothing: 0 = there is what it takes.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Final

EXTENSIONS: Final = ("zkv.broker._frames", "zkv.compiled._store")
COMPLAINT: Final = re.compile(r"\S+:\d+: (?:fatal )?error: .*|: (building extension .* failed: .*)")


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit status."""
    lacking = what_is_lacking()
    if arguments == ["--possible"]:
        return 1 if lacking else 0
    if is_compiled():
        return 0
    (log,) = arguments
    why = lacking or f"{complaint(Path(log))} (all of it: {log})"
    print(f"zkv: built without C, up to 7 times slower: {why}", file=sys.stderr)
    return 0 if lacking else 1


def is_compiled() -> bool:
    """Whether all that can be compiled is, for this Python."""
    try:
        for name in EXTENSIONS:
            importlib.import_module(name)
    except ImportError:
        return False
    return True


def what_is_lacking() -> str:
    """What it would take to compile, and how to come by it; empty where nothing is lacking."""
    compiler, *_ = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if shutil.which(compiler) is None:
        return f"there is no {compiler}; apt install gcc python3-dev, then make run"
    if not header.exists():
        return f"there is no {header}; apt install python3-dev, then make run"
    return ""


def complaint(log: Path) -> str:
    """The first thing that the compiler, or whoever was to call it, complained about."""
    found = COMPLAINT.search(log.read_text(encoding="utf-8", errors="replace"))
    return (found[1] or found[0]) if found else "nobody says why"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
