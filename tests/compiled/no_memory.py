"""Lets memory end anywhere in a commit: ``python -m tests.compiled.no_memory always 2``.

Each time in a process of its own: either it ends, or what it acknowledges then and later is there
after a crash.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys

from tests.compiled.slices import batch_of
from tests.compiled.test_turn import Front
from tests.requests.contract_stores import DurableStore, FakeClock, request
from tests.support import LIMIT

_testcapi = importlib.import_module("_testcapi")

PLACES = 110
"""Allocations from the first on, of which some fail."""


def outcome(fsync: str, first: int, width: int, *, in_c: bool) -> str:
    """What is wrong after ``width`` allocations have failed; empty if nothing is."""
    store = DurableStore(FakeClock(), fsync=fsync)
    wal, front = store.engine.wal, Front(store)
    wal._is_direct, wal._is_usual, wal.quick_sync_seconds = True, in_c, LIMIT
    front.answer(request("PUT", key="k", value=1))
    for seq in (1, 2):
        front.answer(request("INCR", key="n", session="s", seq=seq))
    store.engine.commit_round()
    with wal._io:  # One is queued already.
        front.answer(request("PUT", key="k", value=2))
    batch = batch_of(
        request("PUT", key="k", value=bytes(20_000)), request("INCR", key="n", session="s", seq=3)
    )
    answered: object = None
    acknowledged = False
    _testcapi.set_nomemory(first, first + width)
    try:
        answered = front.handler.answer(batch)
        acknowledged = answered is None
    except Exception:
        acknowledged = False
    finally:
        _testcapi.remove_mem_hooks()
    if wal._io.locked() or store.engine.keyspace.lock.locked() or wal.on_disk.since is not None:
        return "something is held"
    with contextlib.suppress(AttributeError):
        front.handler.commit(answered, lambda: True)  # type: ignore[arg-type]
        store.engine.commit_round()
    later = [store.call("PUT", key="z", value=value)["ok"] for value in (1, 2)]
    store.crash()
    items = {key: value for key, value, _ in store.items()}
    if acknowledged and (items.get("n"), len(items.get("k", ""))) != (3, 20_000):
        return "what was acknowledged is lost"
    if later[-1] and items.get("z") != 2:
        return "what was acknowledged later is lost"
    return ""


def main() -> None:
    """Run the command line."""
    fsync, width, way = sys.argv[1:]
    logging.disable(logging.CRITICAL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    ended = 0
    for first in range(1, PLACES):
        child = os.fork()
        if child == 0:
            found = outcome(fsync, first, int(width), in_c=way == "c")
            if found:
                print(f"allocation {first}: {found}", flush=True)
            os._exit(0)
        ended += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
    print(f"{ended} of {PLACES - 1} have ended", flush=True)


if __name__ == "__main__":
    main()
