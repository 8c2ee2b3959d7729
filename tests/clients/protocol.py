"""The vectors of the protocol, through a client."""

from __future__ import annotations

from typing import Final

from tests.clients.languages import Driver
from tests.conformance.runner import Driven, run
from tests.conformance.vectors import LAST, load
from tests.support import Raw

SEQUENCES: Final = [
    sequence for sequence in load() if sequence.name not in {"limits", "history", LAST}
]
"""What a client is driven through. The rest is of messages that are too large to pass on so."""


def check_protocol(driver: Driver, raw: Raw) -> None:
    """Check all replies that a client gets, at a server whose store is fresh.

    Args:
        driver: drives the client.
        raw: sends what the client cannot.
    """
    driven = Driven(driver.exchange, driver.language.lacks)
    outcomes = list(run(SEQUENCES, raw.exchange, driven))
    faults = [
        f"{outcome.sequence.name}: {outcome.case.name}: {outcome.fault}"
        for outcome in outcomes if outcome.fault
    ]  # fmt: skip
    assert not faults, "\n".join(faults)
    assert sum(outcome.through_client for outcome in outcomes) > 250
