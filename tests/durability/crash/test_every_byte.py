"""Every byte of the log and of the snapshots is changed in turn, every file cut at every offset.

Whatever is done to one file, three outcomes are right: the exact state; a state from before, up to
which nothing else vouches, said in the log, with a copy kept of what was cut off; or a refusal that
names the file and the place in it. And a refusal is right only where something vouches for what is
bad: a later frame that knew it to be on disk, a later segment, a snapshot.

(In trials with one flipped byte, etcd 3.4 cut its log far before the end, and Redis 7.0 served a
changed value.)
"""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from random import Random
from typing import Final, NamedTuple

import pytest

from tests.durability.crash.disk_model import Mark, Sync, Tree, Write, read_tree, write_tree
from tests.durability.crash.driver import DATA, KEYS, Complaints, Driver, explained, scratch
from tests.durability.crash.faults import RecordingFiles, UnsyncedFiles
from tests.durability.crash.ledger import Ledger, State, applied
from tests.durability.crash.work import exchange, random_batch
from zkv.errors import DamageError

WAL: Final = DATA / "wal"
NEVER: Final = 1 << 60
"""Beyond the end of any file."""


class Piece(NamedTuple):
    """What one call wrote to a segment: the commits of the revisions from ``first`` to ``last``."""

    begin: int
    end: int
    first: int
    last: int
    synced: int
    """Up to where the file was on disk when this was written: what its frames vouch for."""

    @property
    def many(self) -> bool:
        """Whether there are boundaries inside that only the file itself knows."""
        return self.last > self.first


@dataclass
class Sample:
    """A directory that a server was killed in, and all that is known of it from the outside."""

    policy: str
    tree: Tree = field(default_factory=dict)
    states: list[State] = field(default_factory=list)
    pieces: dict[PurePath, list[Piece]] = field(default_factory=dict)

    def files(self, suffix: str) -> list[PurePath]:
        """The segments, or the snapshots, oldest first."""
        return sorted(path for path in self.tree if path.suffix == suffix)

    def content(self, path: PurePath) -> bytes:
        """What is in the file."""
        data = self.tree[path]
        assert data is not None
        return data

    def vouched(self, path: PurePath, first_good: int = NEVER) -> int:
        """The newest revision that is vouched for, when a file is good from an offset on only."""
        others = [rev for other in self.tree if other != path for rev in _vouched_by_name(other)]
        pieces = self.pieces.get(path, [])
        known = max((piece.synced for piece in pieces if piece.begin >= first_good), default=0)
        return max([0, *others, *(piece.last for piece in pieces if piece.end <= known)])


def _vouched_by_name(path: PurePath) -> Iterator[int]:
    """The revision up to which the existence of a file says that all was on disk."""
    if path.suffix == ".snapshot":
        yield int(path.stem)
    elif path.suffix == ".wal":
        yield int(path.stem) - 1


def _make(policy: str, seed: int, batches: int, snapshots: int, most: int) -> Sample:
    """Let a server run, and kill it.

    Args:
        policy: of the server.
        seed: of what it is asked to do.
        batches: how many of them.
        snapshots: how many of them, spread evenly.
        most: requests in a batch.
    """
    random = Random(seed)
    states = [State(0, {})]
    snapshot_at = {batches * n // (snapshots + 1) for n in range(1, snapshots + 1)}
    with scratch() as root:
        files = RecordingFiles(root)
        with Driver(root / DATA, files, policy) as driver:
            ledger = Ledger(policy)
            for number in range(batches):
                if number in snapshot_at:
                    exchange(driver, ledger, [{"op": "SNAPSHOT"}])
                if number % 4 == 3:
                    driver.sync_round()
                first = states[-1].rev + 1
                batch = random_batch(random, number, most, sizes=[0, 10])
                exchange(driver, ledger, batch)
                for request in batch:
                    after = applied(request, states[-1])
                    states += [after] if after.rev > states[-1].rev else []
                files.mark(first, states[-1].rev)
            assert driver.state() == states[-1]
        files.abandon()
        return Sample(policy, read_tree(root), states, dict(_pieces(files)))


def _pieces(files: RecordingFiles) -> Iterator[tuple[PurePath, list[Piece]]]:
    """What each segment is made of, as the calls of the file layer tell."""
    pieces: dict[int, list[Piece]] = {}
    ends: dict[int, int] = {}
    synced: dict[int, int] = {}
    inode = begin = known = 0
    for operation in files.operations:
        match operation:
            case Write(inode, begin, data):
                known = synced.get(inode, 0)
                ends[inode] = begin + len(data)
            case Sync(synced_inode):
                synced[synced_inode] = ends[synced_inode]
            case Mark((int(first), int(last))) if first <= last:
                piece = Piece(begin, ends[inode], first, last, known)
                pieces.setdefault(inode, []).append(piece)
    for path in files.disk.as_written():
        if (found := files.disk.inode(path)) in pieces:
            yield path, pieces[found]


SAMPLES: Final = {
    "one segment": ("always", 3, 7, 0, 1),
    "batches": ("always", 4, 4, 0, 3),
    "synced now and then": ("interval", 5, 10, 0, 1),
    "snapshots": ("always", 6, 15, 2, 1),
}


OTHERS: Final = {
    "segments": ("always", 7, 40, 0, 1),
    "a snapshot within a segment": ("always", 8, 6, 1, 1),
}
"""For tests of one kind of damage."""


@functools.cache
def _sample(name: str) -> Sample:
    """One of the directories that are damaged here."""
    return _make(*(SAMPLES | OTHERS)[name])


class Damage:
    """One file of a sample as it is not.

    Args:
        of: the sample.
        path: of the file.
        data: what it holds now.
    """

    def __init__(self, of: Sample, path: PurePath, data: bytes) -> None:
        self.of = of
        self.path = path
        self.data = data
        good = of.content(path)
        both = min(len(data), len(good))
        differing = [n for n in range(both) if data[n] != good[n]]
        self.first_bad = differing[0] if differing else both
        self.first_good = differing[-1] + 1 if differing and len(data) >= len(good) else NEVER
        if not differing and len(data) > len(good):
            self.first_good = 0  # Something was added, and nothing else.

    def check(self, thorough: bool) -> str:
        """Start on it, and if ``thorough`` again, and again after a write; says what came of it."""
        with scratch() as root, explained(path=self.path, first_bad=self.first_bad) as complaints:
            write_tree(self.of.tree | {self.path: self.data}, root)
            try:
                with Driver(root / DATA, UnsyncedFiles(), self.of.policy) as driver:
                    state = driver.state()
            except DamageError as error:
                self._check_refusal(str(error), root)
                return "refused"
            self._check_accepted(state, root, complaints)
            if thorough:
                self._check_later_starts(state, root)
        return "exact" if state == self.of.states[-1] else "cut"

    def _check_later_starts(self, state: State, root: Path) -> None:
        ledger = Ledger(self.of.policy, state)
        with Driver(root / DATA, UnsyncedFiles(), self.of.policy) as driver:
            ledger.check_recovered(driver.state(), power_cut=False)
            exchange(driver, ledger, [{"op": "PUT", "key": KEYS[0], "value": "later"}])
        with Driver(root / DATA, UnsyncedFiles(), self.of.policy) as driver:
            ledger.check_recovered(driver.state(), power_cut=False)

    def _check_refusal(self, message: str, root: Path) -> None:
        place = re.search(r"at offset (\d+)", message)
        assert f"{root / self.path}:" in message
        assert place is not None, message
        if "the footer does not match" not in message:  # It tells of frames that are missing whole.
            assert int(place[1]) <= self.first_bad
        if self.path.suffix == ".wal":
            bad = self._first_bad_revision()
            assert self.of.vouched(self.path, self.first_good) >= bad, f"{message}: needlessly"

    def _check_accepted(self, state: State, root: Path, complaints: Complaints) -> None:
        if state == self.of.states[-1]:
            return
        vouched = self.of.vouched(self.path, self.first_good)
        assert state.rev >= vouched, f"{state.rev} is left, and {vouched} was vouched for"
        assert state == self.of.states[state.rev]
        if not self._is_clean_cut():
            assert any(str(root / self.path) in line for line in complaints.lines())
            kept = [data for data in self._new_files(root) if data]
            assert any(self.data.endswith(data) for data in kept), "what was cut off is not kept"

    def _first_bad_revision(self) -> int:
        for piece in self.of.pieces.get(self.path, []):
            if self.first_bad < piece.end:
                return piece.first if self.first_bad >= piece.begin else 0
        return NEVER

    def _is_clean_cut(self) -> bool:
        """Whether the file ends between two commits, which leaves no trace in it."""
        end = len(self.data)
        if self.data != self.of.content(self.path)[:end]:
            return False
        return any(
            end in {piece.begin, piece.end} or (piece.begin < end < piece.end and piece.many)
            for piece in self.of.pieces[self.path]
        )

    def _new_files(self, root: Path) -> list[bytes | None]:
        return [data for path, data in read_tree(root).items() if path not in self.of.tree]


Ways = Callable[[bytes, Random], Iterable[bytes]]
"""From what is in a file to what it might become."""


def _flipped(data: bytes, random: Random) -> Iterator[bytes]:
    """One bit of each byte."""
    for offset in range(len(data)):
        yield _with_flipped(data, offset, 1 << random.randrange(8))


def _flipped_all(data: bytes, _: Random) -> Iterator[bytes]:
    """Each bit, all bits and every other bit of each byte."""
    for offset in range(len(data)):
        for mask in [*(1 << bit for bit in range(8)), 0xFF, 0x55]:
            yield _with_flipped(data, offset, mask)


def _with_flipped(data: bytes, offset: int, mask: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ mask]) + data[offset + 1 :]


def _truncated(data: bytes, _: Random) -> Iterator[bytes]:
    """Cut at each offset."""
    return (data[:end] for end in range(len(data)))


def _zeroed(data: bytes, _: Random) -> Iterator[bytes]:
    """Zeros from each offset on."""
    return (data[:end] + bytes(len(data) - end) for end in range(len(data)))


def _lengthened(data: bytes, random: Random) -> Iterator[bytes]:
    """Its end once more, from each offset on; and zeros, or noise, behind the end."""
    for size in range(1, len(data)):
        yield data + data[-size:]
    for size in [*range(1, 40), 512, 4096]:
        yield data + bytes(size)
        yield data + random.randbytes(size)


def _overwritten(data: bytes, random: Random) -> Iterator[bytes]:
    """Zeros, noise, or less than a frame from elsewhere in the file, at each offset."""
    for offset in range(len(data)):
        size = random.randrange(2, 100)
        other = random.randrange(len(data))
        piece = random.choice(
            [bytes(size), random.randbytes(size), data[other : other + size % 30]]
        )
        yield (data[:offset] + piece + data[offset + len(piece) :])[: len(data)]


def _damage_all(
    name: str, ways: Ways, share: float = 1.0, thoroughly: float = 0.25
) -> Counter[str]:
    """Damage each file of a sample in each of these ways; counts what came of it.

    Args:
        name: of the sample.
        ways: in which it is damaged.
        share: of the ways that are tried, chosen at random.
        thoroughly: of these, the share after which it is started three times.
    """
    of = _sample(name)
    random = Random(name)
    outcomes: Counter[str] = Counter()
    for path in of.files(".wal") + of.files(".snapshot"):
        for data in ways(of.content(path), random):
            if random.random() < share and data != of.content(path):
                thorough = random.random() < share * thoroughly
                outcomes[Damage(of, path, data).check(thorough)] += 1
    return outcomes


every_sample = pytest.mark.parametrize("name", SAMPLES)


@every_sample
def test_one_bit_of_every_byte(name: str) -> None:
    outcomes = _damage_all(name, _flipped, thoroughly=0.08)

    assert outcomes["refused"]


@every_sample
@pytest.mark.parametrize("ways", [_truncated, _zeroed, _lengthened, _overwritten])
def test_some_of_every_kind(name: str, ways: Ways) -> None:
    outcomes = _damage_all(name, ways, share=0.15)

    assert outcomes["refused"] + outcomes["cut"] + outcomes["exact"]


@every_sample
@pytest.mark.parametrize("ways", [_flipped_all, _truncated, _zeroed, _lengthened, _overwritten])
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_one_of_every_kind(name: str, ways: Ways) -> None:
    assert _damage_all(name, ways)


@pytest.mark.parametrize("name", [*SAMPLES, "segments"])
def test_missing_files(name: str) -> None:
    """Without one file, all is there, or the server refuses, unless nothing vouches for it."""
    of = _sample(name)
    for path in of.files(".wal") + of.files(".snapshot"):
        with scratch() as root, explained(path=path):
            write_tree({p: data for p, data in of.tree.items() if p != path}, root)
            state = _recovered(of, root)
            assert state is None or state == of.states[state.rev]
            assert state is None or state.rev >= of.vouched(path)
            if path.suffix == ".snapshot":
                assert state == of.states[-1], "there is another way back"


@pytest.mark.parametrize("name", [*SAMPLES, "segments"])
def test_swapped_files(name: str) -> None:
    of = _sample(name)
    for paths in (of.files(".wal"), of.files(".snapshot")):
        for one, other in itertools.combinations(paths, 2):
            swapped: Tree = {one: of.content(other), other: of.content(one)}
            with scratch() as root, explained(swapped=swapped):
                write_tree(of.tree | swapped, root)
                assert _recovered(of, root) in (None, of.states[-1])


def _recovered(of: Sample, root: Path) -> State | None:
    """What a server recovers; None where it refuses."""
    refusal = ""
    try:
        with Driver(root / DATA, UnsyncedFiles(), of.policy) as driver:
            return driver.state()
    except DamageError as error:
        refusal = str(error)
    assert str(root / DATA) in refusal
    return None


def test_older_segments_that_end_too_early() -> None:
    """Cut between two commits, which leaves no trace in the file: the next one's name tells."""
    of = _sample("segments")
    for path in of.files(".wal")[:-1]:
        for piece in of.pieces[path]:
            damage = Damage(of, path, of.content(path)[: piece.begin])
            assert damage.check(thorough=False) == "refused"


def test_a_newest_segment_that_ends_before_the_snapshot() -> None:
    """Cut between two commits, too: what the snapshot holds was in the log, so that is damaged.

    The state is all there. But the log could not go on where it ends: a revision would be missing.
    """
    of = _sample("a snapshot within a segment")
    (path,), (snapshot,) = of.files(".wal"), of.files(".snapshot")
    rev = int(snapshot.stem)
    covered = [piece for piece in of.pieces[path] if piece.last <= rev]
    assert covered
    for piece in covered:
        damage = Damage(of, path, of.content(path)[: piece.begin])
        assert damage.check(thorough=False) == "refused"


@pytest.mark.parametrize("name", ["one segment", "synced now and then"])
def test_commits_that_are_missing_whole(name: str) -> None:
    """Those behind them have good frames, which cannot be where they are."""
    of = _sample(name)
    (path,) = of.files(".wal")
    data = of.content(path)
    *pieces, last = of.pieces[path]
    for piece in pieces:
        with scratch() as root, explained(piece=piece):
            write_tree(of.tree | {path: data[: piece.begin] + data[piece.end :]}, root)
            state = _recovered(of, root)
            if state is None:
                assert last.synced > piece.begin, "nothing says that it was on disk"
            else:
                assert state == of.states[piece.first - 1]
                assert last.synced <= piece.begin


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_snapshots_with_a_piece_missing() -> None:
    of = _sample("snapshots")
    path = of.files(".snapshot")[-1]
    data = of.content(path)
    for begin, end in itertools.combinations(range(len(data) + 1), 2):
        assert Damage(of, path, data[:begin] + data[end:]).check(thorough=False) == "refused"


def test_a_value_is_no_evidence() -> None:
    """A torn tail is cut, whatever its values hold: here, a copy of a longer log."""
    of = _sample("one segment")
    (path,) = of.files(".wal")
    with scratch() as root:
        files = RecordingFiles(root)
        with Driver(root / DATA, files) as driver:
            begin = len((root / path).read_bytes())
            assert driver.call(op="PUT", key=KEYS[0], value=of.content(path))["ok"]
        files.abandon()
        data = (root / path).read_bytes()
    torn = data[:begin] + bytes(16) + data[begin + 16 :]
    with scratch() as root:
        write_tree(of.tree | {path: torn}, root)
        with Driver(root / DATA, UnsyncedFiles()) as driver:
            assert driver.state() == State(0, {})
