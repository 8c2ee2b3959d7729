"""Tells `make` if the C parts of the installation are built, and if not, why.

``python -m zkv.cli.built LOG`` prints nothing if they are built; otherwise one line with the reason
and the remedy. LOG is pip's log of the build. The exit status is 1 if the build failed although
compiler and headers are installed. ``python -m zkv.cli.built --possible`` prints nothing; its exit
status is 0 if compiler and headers are installed, otherwise 1.
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
    why = lacking or f"{complaint(Path(log))} (full log: {log})"
    print(f"zkv: built without C, up to 7 times slower: {why}", file=sys.stderr)
    return 0 if lacking else 1


def is_compiled() -> bool:
    """True if all C parts are built for this Python."""
    try:
        for name in EXTENSIONS:
            importlib.import_module(name)
    except ImportError:
        return False
    return True


def what_is_lacking() -> str:
    """The tool that is missing for a build, and how to install it; empty if nothing is missing."""
    compiler, *_ = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if shutil.which(compiler) is None:
        return f"there is no {compiler}; apt install gcc python3-dev, then make run"
    if not header.exists():
        return f"there is no {header}; apt install python3-dev, then make run"
    return ""


def complaint(log: Path) -> str:
    """The first error in the log of a build."""
    found = COMPLAINT.search(log.read_text(encoding="utf-8", errors="replace"))
    return (found[1] or found[0]) if found else "the reason is not known"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
