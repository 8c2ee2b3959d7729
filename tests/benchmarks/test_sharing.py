"""The comparison of what Python programs share a dict with. No test asserts a speed."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks import sharing
from benchmarks.record import Present, Record
from benchmarks.servers import DISK, AbsentError
from benchmarks.sharing import CONTENDERS, KEYS, ROWS, VALUE, Contender, Ops, Row
from tests.support import ROOT, environment
from zkv.bench import result
from zkv.bench.connections import BenchError


def named(name: str) -> Contender:
    return next(each for each in CONTENDERS if each.name == name)


@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda contender: contender.name)
def test_each_does_the_same_work(contender: Contender, tmp_path: Path) -> None:
    if contender.needs and find_spec(contender.needs) is None:
        pytest.skip(f"NOT RUN: the package {contender.needs} is not installed here (make bench)")
    with contextlib.ExitStack() as stack:
        try:
            opened = contender.start(tmp_path, stack)
        except AbsentError as error:
            pytest.skip(f"NOT RUN: {error} (make peers)")
        with opened() as one, opened() as other:
            one.put_many(dict.fromkeys(KEYS[:10], VALUE))
            one.put(KEYS[0], [1, "text"])
            assert other.get(KEYS[0]) == [1, "text"]
            assert other.get(KEYS[9]) == VALUE
            assert other.get(KEYS[10]) is None
            assert [one.add("n"), other.add("n"), one.add("n")] == [1, 2, 3]


def test_processes_count_together_and_the_sum_is_checked(tmp_path: Path) -> None:
    row = Row("count", sharing.count, 2)
    with contextlib.ExitStack() as stack:
        opened = named("sqlite3").start(tmp_path, stack)
        assert sharing.measure(opened, row, 0.02) > 0
        with pytest.raises(BenchError, match="were counted, and"):
            sharing.measure(Forgetful(opened), row, 0.02)


class Forgetful:
    """Does not count what is added."""

    def __init__(self, opened: sharing.Open) -> None:
        self._opened = opened

    @contextlib.contextmanager
    def __call__(self) -> Any:
        with self._opened() as ops:
            yield Ops(ops.get, ops.put, ops.put_many, lambda key: ops.get("other") or 0)


def test_it_runs_nothing_before_it_measures() -> None:
    """Each process that takes part imports it, also where the servers are not installed."""
    subprocess.run(
        [sys.executable, "-c", "import benchmarks.sharing"], cwd=ROOT,
        env=environment() | {"PATH": ""}, check=True,
    )  # fmt: skip


def test_writes_are_compared_with_those_that_are_as_safe() -> None:
    for row in ROWS:
        playing = [each for each in CONTENDERS if row.takes(each)]
        assert [each.name for each in playing if each.name.startswith("zkv")]
        assert {each.durability == DISK for each in playing} == {row.on_disk}


def test_the_page_is_filled(tmp_path: Path) -> None:
    record = Record(
        when=result.now(), machine=result.machine(), versions=result.versions(), seconds=0.1,
        rounds=1,
    )  # fmt: skip
    for name, rate in (("zkv", 500.0), ("sqlite3", 1_000.0)):
        record.meet(Present(name, "1", named(name).durability))
        record.add("sharing", ROWS[0].name, name, {"rate": rate})
    page = tmp_path / "page.md"
    page.write_text(
        "Before.\n<!-- generated: sharing -->\n<!-- end -->\n"
        "<!-- generated: machine -->\nold\n<!-- end -->\nAfter.\n"
    )

    sharing.write_page(record, page)

    text = page.read_text()
    assert "|  | sqlite3 (with the system) | 1,000 (1,000 - 1,000) | 0.50 (0.50 - 0.50) |" in text
    assert text.startswith("Before.")
    assert text.endswith("After.\n")
    assert "old" not in text
