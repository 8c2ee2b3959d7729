"""The hot path in C: the table of entries, simple requests from body to reply, log and loading.

It is built if a C compiler and Python's headers are there when zkv is installed. Elsewhere, and for
everything unusual, Python does the same, and specifies the behaviour: `PythonTable` for `Table`,
`zkv.requests.commands` for `Lane`, `zkv.broker.front` for `Turn`, the classes of their names for
what each write needs of log, history and keyspace, `zkv.durability` for the log's frames and the
loading. Tests run with both and compare them (tests/compiled). docs/tried.md has the
gain.

`module.c` defines the module. `store.h` declares what all files share, `lane.h` what those of the
lane share, `writes.h` what a run's commits go through. It needs only Python, and one binary works
with every version from 3.11 on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

try:
    from zkv.compiled import _store as store
except ImportError:
    store = None  # type: ignore[assignment]

COMPILED: bool = store is not None
"""True if it is there; new objects then use it. INFO shows it (``stats.store``)."""

ADVICE: Final = "apt install gcc python3-dev, then reinstall zkv (in a checkout: make run)"


def what_is_slow(stats: Mapping[str, Any]) -> str:
    """Say which parts a server with these ``stats`` has not compiled; empty if it has all."""
    plain = [part for part in ("store", "mailbox") if stats.get(part) == "plain"]
    return f"without C ({', '.join(plain)}), up to 7 times slower" if plain else ""
