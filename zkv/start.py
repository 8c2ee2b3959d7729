"""Where the commands begin: before what they need is imported, which takes longer than many run.

Ctrl-C meanwhile ends the process at once and in silence, as the system does it; so it does again
while the interpreter ends. In between the command sees to it, as `zkv.streams` says.
"""

from __future__ import annotations

import signal
from importlib import import_module
from typing import Any


def server() -> int:
    """``zkv``."""
    return _run("zkv.cli.main")


def client() -> int:
    """``zkv-cli``."""
    return _run("zkv.cli.client")


def bench() -> int:
    """``zkv-bench``."""
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
    """Have Ctrl-C do something else; not where it does nothing, or the command handles it."""
    if signal.getsignal(signal.SIGINT) is old:
        signal.signal(signal.SIGINT, new)
