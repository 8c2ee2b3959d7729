"""Entry points of the commands. They import a command's modules, which may take most of its time.

During these imports, and while the interpreter ends, Ctrl-C ends the process at once and silently,
which is the system's default. In between the command handles it, as described in `zkv.streams`.
"""

from __future__ import annotations

import signal
from importlib import import_module
from typing import Any


def server() -> int:
    """Run ``zkv``."""
    return _run("zkv.cli.main")


def client() -> int:
    """Run ``zkv-cli``."""
    return _run("zkv.cli.client")


def bench() -> int:
    """Run ``zkv-bench``."""
    return _run("zkv.bench.main")


def _run(module: str) -> int:
    _replace(signal.default_int_handler, signal.SIG_DFL)
    main = import_module(module).main
    _replace(signal.SIG_DFL, signal.default_int_handler)
    try:
        status: int = main()
        return status
    finally:
        _replace(signal.default_int_handler, signal.SIG_DFL)


def _replace(old: Any, new: Any) -> None:
    """Change what Ctrl-C does, unless it is ignored or the command handles it."""
    if signal.getsignal(signal.SIGINT) is old:
        signal.signal(signal.SIGINT, new)
