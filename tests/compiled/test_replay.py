"""A start in C, beside the Python that specifies it: same state, same refusals, same log lines."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from msgspec.msgpack import encode

from tests.compiled.loading import (
    Tree,
    Writing,
    bad_commits,
    damaged,
    loaded,
    segment_file,
    snapshot_file,
)
from zkv import compiled
from zkv.durability import segment, snapshot
from zkv.keyspace.change import PUT, Commit, KeyChange, Once

pytestmark = pytest.mark.skipif(
    not compiled.COMPILED, reason="zkv was installed without a C compiler"
)

VERSIONS: Final = Path(__file__).parents[1] / "durability" / "versions"
ONCE: Final = Once("session", 1, b"digest..", b"\x80")


@pytest.fixture(params=[64, 700, 1 << 20], ids=lambda size: f"{size} bytes at a time")
def _pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The frames are cut by the ends of what is read at once, or not."""
    monkeypatch.setattr(segment, "_PIECE_BYTES", request.param)


def check_alike(tree: Tree) -> str:
    """C and Python do the same with a directory; whether they take it."""
    in_c, in_python = loaded(tree, in_c=True), loaded(tree, in_c=False)
    assert in_c == in_python
    return "refused" if isinstance(in_c[0], str) else "cut" if in_c[2] else "loaded"


@pytest.mark.usefixtures("_pieces")
def test_directories_are_loaded_alike() -> None:
    outcomes = Counter(
        check_alike(Writing(Random(seed), 1 + seed % 2).run(120)) for seed in range(30)
    )
    assert outcomes["loaded"] >= 15
    assert outcomes["cut"] + outcomes["refused"] >= 3


@pytest.mark.parametrize("number", range(len(bad_commits(3, 3, 1))))
def test_each_bad_commit_is_judged_alike(number: int) -> None:
    good = [Commit(rev, 1, rev, (KeyChange(PUT, "key"),)).pack() for rev in (1, 2)]
    payloads = [*good, bad_commits(3, 3, 1)[number]]
    tree = dict([segment_file(1, [(payload, 0) for payload in payloads])])
    assert check_alike(tree) != "loaded"


@pytest.mark.usefixtures("_pieces")
def test_damaged_directories_are_judged_alike() -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(10):
        chance = Random(seed)
        tree = Writing(chance, 1 + seed % 2).run(100)
        outcomes.update(check_alike(damaged(chance, tree)) for _ in range(12))
    assert min(outcomes[each] for each in ("loaded", "cut", "refused")) >= 4


def test_what_is_usual_makes_no_object_for_each_key(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = tuple(KeyChange(PUT, f"key {number}") for number in range(70))
    commits = [
        Commit(rev, 1, rev, changes, once) for rev, once in [(8, None), (9, ONCE), (10, None)]
    ]
    entries = encode([("a", 1, 6), ("b", [2], 7, 2**50)])
    tree = dict([
        snapshot_file(7, 1, [(2, entries)], 2),
        segment_file(8, [(commit.pack(), 0) for commit in commits]),
    ])  # fmt: skip
    expected = loaded(tree, in_c=False)
    for module, name in [(segment, "unpack"), (snapshot, "_decode_entries")]:
        monkeypatch.setattr(module, name, None)
    assert loaded(tree, in_c=True) == expected
    assert len(expected[0]) == 72


def test_directories_of_earlier_versions_are_loaded_alike() -> None:
    directories = sorted(VERSIONS.glob("*/*/data"))
    assert directories
    for data in directories:
        names = [*data.glob("wal/*.wal"), *data.glob("snapshot/*.snapshot")]
        assert check_alike({path.relative_to(data): path.read_bytes() for path in names}) != (
            "refused"
        )


@given(data=st.data())
def test_frames_are_unpacked_alike(data: st.DataObject) -> None:
    """Whole, cut or damaged frames, from any commit up to any other, in any number of bytes."""
    commits = [
        Commit(number, 1, number, (KeyChange(PUT, "k", Raw(b"\xc4\x02" + bytes(number % 7)[:2])),))
        for number in range(1, data.draw(st.integers(1, 12)) + 1)
    ]
    packed = bytearray(segment.pack_frames([commit.pack() for commit in commits], 0, 99))
    if data.draw(st.booleans()):
        packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    frames = bytes(packed[: data.draw(st.integers(0, len(packed)))])
    first, last, most = (data.draw(st.integers(0, top)) for top in (14, 14, 400))
    asked = (frames, 0, 99, 1, first, last, most)
    built = segment.unpack_frames(*asked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "COMPILED", False)
        assert segment.unpack_frames(*asked) == built
