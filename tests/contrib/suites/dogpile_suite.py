"""dogpile.cache's own fixtures, with the backend ``zkv``."""

from __future__ import annotations

from pathlib import Path

import pytest
from dogpile.cache import make_region
from dogpile.testing.fixtures import (
    _GenericBackendTestSuite,
    _GenericMutexTestSuite,
    _GenericSerializerTestSuite,
)

import zkv
from tests.docs.sessions import run_sessions
from tests.support import ServerProcess


class TestBackend(_GenericBackendTestSuite):
    backend = "zkv"
    config_args = {"arguments": {"prefix": "plain/"}}


class TestSerializer(_GenericSerializerTestSuite, TestBackend):
    pass


class TestBackendWithLocks(_GenericBackendTestSuite):
    backend = "zkv"
    config_args = {"arguments": {"distributed_lock": True}}


class TestMutex(_GenericMutexTestSuite):
    backend = "zkv"
    config_args = {"arguments": {"distributed_lock": True}}


def test_a_killed_server_is_no_empty_cache(fragile: ServerProcess) -> None:
    arguments = {"endpoint": fragile.endpoint, "distributed_lock": True, "timeout": 1}
    region = make_region().configure("zkv", arguments=arguments)
    assert region.get_or_create("a", lambda: "made") == "made"
    fragile.kill()
    with pytest.raises(zkv.ClientError):
        region.get_or_create("a", lambda: "made again")
    with pytest.raises(zkv.ClientError):
        region.set("a", "other")
    fragile.start()
    assert region.get_or_create("a", lambda: "made again") == "made"


def test_the_page_runs_as_shown(tmp_path: Path) -> None:
    run_sessions("docs/dogpile.md", tmp_path / "page")
