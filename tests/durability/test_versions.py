"""Data directories that earlier versions have written are opened by this one, for ever.

`tests/durability/versions/make.py` wrote them. What the version that wrote them read from them is
what this one must read: entries with values byte for byte, revisions, deadlines, changes, and the
remembered replies of exactly-once requests.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
import zmq

from tests.durability.versions.make import HERE, read_back
from tests.forking import run_zkv
from tests.support import Raw, ServerInProcess, raw_fields
from zkv import clock

CASES: Final = sorted(path.parent for path in HERE.glob("*/*/expected.json"))
YEAR: Final = 31_536_000.0
SECONDS_TO_READ: Final = 60
"""A ttl is told as of its reading, which came later than the time that is noted."""


@pytest.fixture(params=CASES, ids=lambda case: f"{case.parent.name}-{case.name}")
def case(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture
def data(case: Path, tmp_path: Path) -> Path:
    """A copy of the case's data directory."""
    return Path(shutil.copytree(case / "data", tmp_path / "data"))


@pytest.fixture
def expected(case: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((case / "expected.json").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture
def client(data: Path, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Raw]:
    """A client of a server on the directory, at the time at which it was read by its version."""
    then = SimpleNamespace(
        time_ns=lambda: expected["now"] * 1_000_000, clock_gettime_ns=time.clock_gettime_ns
    )
    monkeypatch.setattr(clock, "time", then)
    limits = {"session_ttl": YEAR}
    with ServerInProcess(data, limits=limits) as server, Raw(server.endpoint, zmq.REQ) as client:
        yield client


def test_there_are_directories_of_earlier_versions() -> None:
    assert {"0.1"} <= {case.parent.name for case in CASES}


def test_a_directory_of_an_earlier_version_is_read_whole(
    client: Raw, expected: dict[str, Any]
) -> None:
    found = read_back(client, expected["now"])
    was = {key: (value, rev) for key, value, rev, _ in expected["entries"]}
    assert {key: (value, rev) for key, value, rev, _ in found["entries"]} == was
    for (key, *_, expires), (*_, then) in zip(found["entries"], expected["entries"], strict=True):
        assert (expires is None) == (then is None), key
        assert then is None or abs(expires - then) < SECONDS_TO_READ, key
    assert (found["rev"], found["changes"]) == (expected["rev"], expected["changes"])


def test_what_an_earlier_version_has_answered_is_remembered(
    client: Raw, expected: dict[str, Any]
) -> None:
    for request, reply, replayed in expected["repeats"]:
        again = raw_fields(client.exchange(bytes.fromhex(request)))
        if replayed:
            assert again.pop("replayed") == b"\xc3"
            assert again == raw_fields(bytes.fromhex(reply))


def test_a_directory_of_an_earlier_version_passes_the_check(
    case: Path, data: Path, tmp_path: Path
) -> None:
    checked = run_zkv("check", str(data), cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr
