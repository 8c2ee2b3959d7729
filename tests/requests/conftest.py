"""Fixtures of the suite in requests and replies, which any implementation of the store can run.

It asks for nothing beyond `Store`, needs no socket, and its clock stands still. A test that takes
`store` or `make_store` runs once for each line of `STORES`; another implementation joins by a line
there (`tests/requests/contract_stores.py`). Tests of the log and the disk take `durable_store`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest

from tests.requests.contract_stores import (
    STORES,
    DurableStore,
    FakeClock,
    MakeStore,
    Store,
    opened,
)  # fmt: skip


@pytest.fixture(params=STORES)
def make_store(request: pytest.FixtureRequest) -> Iterator[MakeStore]:
    """Makes stores of every kind: ``make_store(session_window=2)``."""
    with contextlib.ExitStack() as stack:
        yield lambda clock=None, **limits: stack.enter_context(
            opened(request.param, clock, **limits)
        )


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    """An empty store."""
    return make_store()


@pytest.fixture
def remembering(make_store: MakeStore) -> MakeStore:
    """`make_store`, where a store remembers the changes of a whole test."""

    def make(**limits: Any) -> Store:
        store = make_store(**limits)
        if not store.remembers_changes:
            pytest.skip("a snapshot lets it forget the changes before")
        return store

    return make


@pytest.fixture
def durable_store() -> Iterator[DurableStore]:
    """An empty store with a log."""
    with contextlib.closing(DurableStore(FakeClock())) as store:
        yield store


@pytest.fixture
def impatient_log() -> Iterator[None]:
    """After a refusal the very next write tries the disk again."""
    with mock.patch("zkv.durability.wal.RETRY_SECONDS", 0):
        yield
