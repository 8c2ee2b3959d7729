"""The n-th call of the file layer fails, or is the last one, for n = 1, 2, 3, ...

As SQLite's I/O error tests do. A fixed piece of work is done again and again, and each time another
call goes wrong: once or for ever, before or in the middle of what it does; until no call is left.
After each, whatever was answered must still be so: in the running store, after a kill, and after a
power cut.
"""

from __future__ import annotations

import errno
import itertools
import logging
from random import Random, randint

import pytest

from tests.durability.crash.disk_model import Tree, read_tree, write_tree
from tests.durability.crash.driver import DATA, FIRST_SEED, POLICIES, Driver, explained, scratch
from tests.durability.crash.faults import FOR_EVER, Fault, FaultyFiles, Killed, RecordingFiles
from tests.durability.crash.ledger import Ledger
from tests.durability.crash.work import (
    Meanwhile,
    check_live,
    check_restart,
    exchange,
    play,
    random_steps,
)
from zkv.errors import DamageError, DataDirError

DISK_FULL = Fault(errno.ENOSPC)
HALF_WRITTEN = Fault(errno.ENOSPC, partial=True)
FULL_FOR_EVER = Fault(errno.ENOSPC, lasts=FOR_EVER, partial=True)
BROKEN = Fault(errno.EIO)
BROKEN_FOR_EVER = Fault(errno.EIO, lasts=FOR_EVER)
KILLED_BEFORE = Fault(None)
KILLED_AFTER = Fault(None, partial=True)
FAULTS = [
    DISK_FULL, HALF_WRITTEN, FULL_FOR_EVER, BROKEN, BROKEN_FOR_EVER, KILLED_BEFORE, KILLED_AFTER,
]  # fmt: skip


class Work:
    """What is done each time: steps on a directory that an earlier process was killed in.

    Args:
        seed: of the steps.
        policy: when the log is synced.
        length: how many batches.
        busy: whether requests are served while snapshots are written.
    """

    def __init__(self, seed: int, policy: str, length: int, busy: bool = False) -> None:
        self._seed = seed
        self._policy = policy
        self._busy = busy
        random = Random(seed)
        before = random_steps(random, 4)
        self._steps = random_steps(random, length)
        with scratch() as root:
            files = RecordingFiles(root)
            with Driver(root / DATA, files, policy) as driver:
                ledger = Ledger(policy)
                for step in before:
                    play(step, driver, ledger)
                self._before = driver.state()
            files.abandon()
            self._tree = _untidied(read_tree(root))

    def run(self, faults: dict[int, Fault], heals: bool, ways: int = 1) -> FaultyFiles:
        """Do the work and look at what becomes of it.

        Args:
            faults: what goes wrong, by the number of the call.
            heals: whether the disk can be written again in the end, which is a kill then, or END.
            ways: in which the power is cut at the end.
        """
        shown = {number: str(fault) for number, fault in faults.items()}
        with (
            scratch() as root,
            explained(
                seed=self._seed, policy=self._policy, steps=len(self._steps), busy=self._busy,
                faults=shown, heals=heals,
            ) as complaints,
        ):  # fmt: skip
            write_tree(self._tree, root)
            files = FaultyFiles(root, faults)
            ledger = Ledger(self._policy, self._before)
            self._run_until_it_ends(files, ledger, heals)
            complaints.check_said_once()
            assert not ledger.refusals or complaints.lines(logging.ERROR), "refused in silence"
            files.abandon()
            files.heal()
            self._check_what_is_left(files, ledger, ways)
        return files

    def _run_until_it_ends(self, files: FaultyFiles, ledger: Ledger, heals: bool) -> None:
        refusal = ""
        try:
            with Driver(files.root / DATA, files, self._policy) as driver:
                self._live(driver, files, ledger, heals)
        except Killed:
            pass
        except DamageError:
            raise
        except DataDirError as error:
            refusal = str(error)
        assert not refusal or (str(files.root) in refusal and files.failed), refusal

    def _live(self, driver: Driver, files: FaultyFiles, ledger: Ledger, heals: bool) -> None:
        if self._busy:
            files.meanwhile = Meanwhile(driver, ledger, self._seed)
        for step in self._steps:
            play(step, driver, ledger)
            check_live(driver, ledger)
            if isinstance(step, str):
                driver.let_time_pass()
        files.meanwhile = None
        if heals:
            files.heal()
            _check_writes_resume(driver, ledger, files)
        else:
            exchange(driver, ledger, [{"op": "END"}])

    def _check_what_is_left(self, files: FaultyFiles, ledger: Ledger, ways: int) -> None:
        random = Random(self._seed + files.calls)
        for number in range(ways):
            tree = files.disk.torn(random) if number else files.disk.as_synced()
            with scratch() as copy:
                write_tree(tree, copy)
                check_restart(RecordingFiles(copy), ledger, random, power_cut=True)
        check_restart(files, ledger, random)


def _untidied(tree: Tree) -> Tree:
    """``tree`` with what crashes leave: a torn tail, and files that were not finished."""
    segment = max(path for path in tree if path.suffix == ".wal")
    data = tree[segment]
    assert data is not None
    unfinished = {
        segment.with_name(segment.name + ".tmp"): b"",
        segment.parents[1] / "snapshot" / "00000000000000009999.snapshot.tmp": b"half",
    }
    return tree | {segment: data + bytes(11)} | unfinished


def _check_writes_resume(driver: Driver, ledger: Ledger, files: FaultyFiles) -> None:
    """Once the disk can be written again, so can the store, without a restart."""
    driver.let_time_pass()
    if len(files.failed) > 1 or "sync" in files.failed:
        driver.snapshotter_round()  # Behind a snapshot, the log is begun anew.
    for request in ({"op": "SNAPSHOT"}, {"op": "PUT", "key": "k1", "value": "resumed"}):
        (reply,) = exchange(driver, ledger, [request])
        assert reply["ok"], reply


def _sweep(work: Work, fault: Fault, heals: bool = True, ways: int = 1, step: int = 2) -> None:
    """Have each call in turn meet ``fault``, until there was none left to meet it.

    Or one of so many, from another one on in each run.
    """
    for number in itertools.count(randint(1, step), step):
        if not work.run({number: fault}, heals, ways).failed:
            break


def _random_faults(random: Random, calls: int) -> dict[int, Fault]:
    """Several things that go wrong, one of them perhaps the process's end."""
    faults = {
        random.randrange(1, calls): Fault(
            random.choice([errno.ENOSPC, errno.EIO]),
            random.choice([1, 1, 2, 3, 5, 8, 20, FOR_EVER]),
            random.random() < 0.5,
        )
        for _ in range(random.randrange(1, 5))
    }
    if random.random() < 0.5:
        last = random.randrange(max(faults), max(faults) + 30)
        faults[last] = Fault(None, partial=random.random() < 0.5)
    return faults


def _several(policy: str, seeds: range) -> None:
    for seed in seeds:
        random = Random(seed)
        work = Work(seed, policy, random.randrange(5, 20), busy=random.random() < 0.5)
        work.run(_random_faults(random, 100), heals=random.random() < 0.7, ways=2)


def test_every_kind_of_call_is_made() -> None:
    files = Work(1, "always", 7).run({}, heals=False)

    assert set(files.kinds) >= {
        "make_directory", "names", "create", "open_append", "open_read", "write", "rewrite",
        "sync", "truncate", "rename", "remove", "sync_directory", "lock",
    }  # fmt: skip


@pytest.mark.parametrize("fault", [HALF_WRITTEN, FULL_FOR_EVER, BROKEN, KILLED_AFTER], ids=str)
def test_any_call(fault: Fault) -> None:
    _sweep(Work(1, "always", 7), fault)


def test_any_call_up_to_the_end() -> None:
    _sweep(Work(1, "always", 7), FULL_FOR_EVER, heals=False)


@pytest.mark.parametrize("fault", [BROKEN, KILLED_AFTER], ids=str)
def test_any_call_without_waiting_for_the_disk(fault: Fault) -> None:
    _sweep(Work(1, "interval", 7), fault)


@pytest.mark.parametrize(("policy", "fault"), [("always", BROKEN), ("interval", KILLED_AFTER)])
def test_any_call_while_requests_come_during_snapshots(policy: str, fault: Fault) -> None:
    _sweep(Work(2, policy, 7, busy=True), fault, ways=2)


@pytest.mark.parametrize("policy", POLICIES)
def test_killed_after_a_failed_sync(policy: str) -> None:
    """What was on its way to be put right is met half done by the next process."""
    random = Random(policy)
    work = Work(3, policy, 7)
    kinds = work.run({}, heals=False).kinds
    for number in (number for number, kind in enumerate(kinds, 1) if kind == "sync"):
        for calls in random.sample(range(1, 20), 2):
            work.run({number: BROKEN, number + calls: KILLED_AFTER}, heals=False, ways=4)


@pytest.mark.parametrize("policy", POLICIES)
def test_what_was_refused_stays_away(policy: str) -> None:
    """Also where the power is cut, and what was cut back is there again."""
    work = Work(4, policy, 7)
    kinds = work.run({}, heals=False).kinds
    for number in (number for number, kind in enumerate(kinds, 1) if kind == "write"):
        work.run({number: HALF_WRITTEN, number + 3: KILLED_BEFORE}, heals=False, ways=5)


@pytest.mark.parametrize("policy", POLICIES)
def test_refused_commits_that_were_written_whole_stay_away(policy: str) -> None:
    """The disk takes half of a write, and so some of its commits; then the power is cut."""
    random = Random(policy)
    with scratch() as root, explained(policy=policy):
        files, ledger = FaultyFiles(root), Ledger(policy)
        with Driver(root / DATA, files, policy) as driver:
            exchange(driver, ledger, [{"op": "PUT", "key": "k0", "value": "before"}])
            files.faults = {files.calls + 1: HALF_WRITTEN}
            batch = [{"op": "PUT", "key": f"k{n}", "value": "refused"} for n in range(6)]
            replies = exchange(driver, ledger, batch)
            assert {reply["applied"] for reply in replies} == {False}
            assert files.failed == ["write"]
        files.abandon()
        files.heal()
        for _ in range(10):
            with scratch() as copy:
                write_tree(files.disk.torn(random), copy)
                check_restart(RecordingFiles(copy), ledger, random, power_cut=True)


@pytest.mark.parametrize("policy", POLICIES)
def test_several_calls(policy: str) -> None:
    _several(policy, range(30))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_any_call_for_long(fault: Fault, policy: str) -> None:
    _sweep(Work(FIRST_SEED, policy, 20, busy=True), fault, heals=True, ways=4, step=1)
    _sweep(Work(FIRST_SEED + 1, policy, 20), fault, heals=False, ways=4, step=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(FIRST_SEED + 1000, FIRST_SEED + 3000, 500))
def test_several_calls_for_long(policy: str, seed: int) -> None:
    _several(policy, range(seed, seed + 500))
