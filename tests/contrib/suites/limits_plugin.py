"""Puts the storage of zkv in the place of all that limits' own tests run with.

These tests are a package called `tests`, as ours are. So nothing of ours is imported here, and the
server is that of the variable ``ZKV_ENDPOINT``.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest

import zkv.contrib.limits

URI = os.environ.get("ZKV_ENDPOINT", "").replace("tcp://", "zkv://") + "/limits-tests/"


def pytest_configure() -> None:
    utils: Any = importlib.import_module("tests.utils")
    storages = pytest.mark.parametrize(
        ("uri", "args", "fixture"), [pytest.param(URI, {}, None, id="zkv")]
    )
    for name in ("all_storage", "moving_window_storage", "sliding_window_counter_storage"):
        setattr(utils, name, storages)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of storages name theirs in a mark of their class."""
    for mark in metafunc.definition.iter_markers("parametrize"):
        if mark.args[0] == "uri, args, expected_instance, fixture":
            cases: Any = mark.args[1]
            cases[:] = [
                pytest.param(URI, {}, zkv.contrib.limits.ZkvStorage, None, id="zkv"),
            ]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if "zkv" in item.name]


@pytest.fixture(autouse=True)
def empty() -> None:
    zkv.contrib.limits.ZkvStorage(URI).reset()
