"""What has to hold while machines fail, whoever leads: shared by all runs of fail-overs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.failover.askers import Asker
from tests.linearizability.checker import Operation, UndecidedError, check, save
from tests.support import LIMIT, Raw, eventually

SOME_ANSWERS = 60
"""Answers between two faults."""


class BrokenError(Exception):
    """An invariant does not hold."""


def await_progress(askers: Sequence[Asker]) -> None:
    """Wait until some more is answered. Raises BrokenError if an asker has failed."""
    goal = sum(asker.answered for asker in askers) + SOME_ANSWERS

    def enough() -> bool:
        for asker in askers:
            if asker.error is not None:
                raise BrokenError(f"{asker.name}: {asker.error}") from asker.error
        return sum(asker.answered for asker in askers) >= goal

    eventually(enough, "progress of the askers", 3 * LIMIT)


def is_decided(history: list[Operation], path: Path) -> bool:
    """Return False if nobody can tell in time whether a history is linearizable.

    Raises BrokenError if it is not; then it is kept in a file.
    """
    try:
        violation = check(history)
    except UndecidedError:
        return False
    if violation is not None:
        save(history, path)
        raise BrokenError(f"not linearizable, kept as {path}: {violation}")
    return True


def check_counter(asker: Asker, client: Raw) -> None:
    """Check that each count of an asker was made once. Raises BrokenError."""
    reply = client.call(op="GET", key=asker.counter)
    value, last = reply.get("value", 0), asker.counted[-1][0]
    if not last <= value <= last + 1:
        raise BrokenError(f"{asker.counter} is {value}, and {last} was answered")
