"""The hot path in C: the table of entries, plain requests from body to reply, the log's frames.

It is built where a C compiler and Python's headers are there when zkv is installed; elsewhere, and
for whatever is out of the ordinary, Python does the same, and is the specification: a `dict` for
`Table`, `zkv.requests.commands` for `Lane`, `zkv.durability.segment` for `pack_frames`. Tests run
against both, and compare them (tests/compiled/test_compiled.py). What it gains is in BENCHMARKS.md.

`module.c` is the way in; `store.h` tells what all files share, `lane.h` what those of the lane
share. It needs nothing but Python, and one binary fits every version from 3.11 on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

try:
    from zkv.compiled import _store as store
except ImportError:
    store = None  # type: ignore[assignment]

COMPILED: bool = store is not None
"""Whether it is there, and used by what is made from now on. INFO tells (``stats.store``)."""

ADVICE: Final = "apt install gcc python3-dev, then install zkv anew (in a checkout: make run)"


def what_is_slow(stats: Mapping[str, Any]) -> str:
    """How a server with these ``stats`` in its INFO was built; empty where all is compiled."""
    plain = [part for part in ("store", "mailbox") if stats.get(part) == "plain"]
    return f"without C ({', '.join(plain)}), up to 7 times slower" if plain else ""
