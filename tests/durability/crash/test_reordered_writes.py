"""The power is cut at every moment, and the disk has kept whatever it liked of what was not synced.

As SQLite's crash tests and ALICE (OSDI 2014) do. A few lives of a server are recorded, most of them
ended by a kill at some call of the file layer. Then, for every prefix of what was recorded, the
directory is rebuilt as a kill would leave it, with nothing that was not synced, and with parts of
that (see `disk_model`). A server is started on it, and compared with what was told.

With ``always``, that is everything that anybody was told. With the other policies it is what was
told to be durable, and behind it a prefix in revision order; and everything, after a mere kill.
"""

from __future__ import annotations

from random import Random

import pytest

from tests.durability.crash.disk_model import (
    Disk,
    Mark,
    Operation,
    Tree,
    Truncate,
    read_tree,
    write_tree,
)
from tests.durability.crash.driver import DATA, FIRST_SEED, POLICIES, Driver, explained, scratch
from tests.durability.crash.faults import Fault, FaultyFiles, Killed, RecordingFiles
from tests.durability.crash.ledger import Ledger, Reply, Request, State
from tests.durability.crash.work import (
    Meanwhile,
    check_live,
    check_restart,
    exchange,
    play,
    random_steps,
)

LIVES = 3


class RecordingLedger(Ledger):
    """A ledger that also has what it hears written down, among the file operations."""

    def __init__(self, policy: str, files: RecordingFiles) -> None:
        super().__init__(policy)
        self._files = files

    def send(self, requests: list[Request]) -> None:
        self._files.mark("send", requests)
        super().send(requests)

    def put_off(self, requests: list[Request]) -> None:
        self._files.mark("put_off", requests)
        super().put_off(requests)

    def hear(self, request: Request, reply: Reply) -> None:
        self._files.mark("hear", request, reply)
        super().hear(request, reply)

    def adopt(self, state: State) -> None:
        self._files.mark("adopt", state)
        super().adopt(state)


def _record(seed: int, policy: str) -> list[Operation]:
    """What some lives of a server do to an empty disk, and what they tell."""
    random = Random(seed)
    with scratch() as root:
        files = FaultyFiles(root)
        ledger = RecordingLedger(policy, files)
        for _ in range(LIVES):
            calls = random.randrange(random.choice([30, 200]))
            files.faults[files.calls + calls] = Fault(None, partial=random.random() < 0.5)
            try:
                with Driver(root / DATA, files, policy) as driver:
                    _live(driver, files, ledger, random)
            except Killed:
                pass
            files.abandon()
            files.heal()
    return files.operations


def _live(driver: Driver, files: FaultyFiles, ledger: Ledger, random: Random) -> None:
    state = driver.state()
    ledger.check_recovered(state, power_cut=False)
    ledger.adopt(state)
    check_live(driver, ledger)
    if random.random() < 0.3:
        files.meanwhile = Meanwhile(driver, ledger, random.randrange(1000))
    for step in random_steps(random, random.randrange(1, 12)):
        play(step, driver, ledger)
    if random.random() < 0.3:
        exchange(driver, ledger, [{"op": "END"}])


def _replay(operations: list[Operation], policy: str, seed: int, stride: int, ways: int) -> None:
    """Cut the power at every moment, or every so many.

    Args:
        operations: what was recorded.
        policy: of the server that it was recorded from.
        seed: chooses what is left.
        stride: how many operations there are, on average, between two moments.
        ways: of tearing what was not synced, for each moment.
    """
    random = Random(seed)
    disk = Disk()
    ledger = Ledger(policy)
    for number, operation in enumerate(operations, 1):
        disk.apply(operation)
        if isinstance(operation, Mark):
            what, *about = operation.what
            getattr(ledger, what)(*about)
        elif random.random() * stride < 1:
            with explained(seed=seed, policy=policy, operations=number, last=repr(operation)[:99]):
                _check(disk.as_written(), ledger, random, power_cut=False)
                _check(disk.as_synced(), ledger, random, power_cut=True)
                for _ in range(ways if disk.unsynced() else 0):
                    _check(disk.torn(random), ledger, random, power_cut=True)


def _check(tree: Tree, ledger: Ledger, random: Random, power_cut: bool) -> None:
    with scratch() as root:
        write_tree(tree, root)
        files = RecordingFiles(root)
        if random.random() < 0.2:
            check_restart(files, ledger, random, power_cut)
        else:
            with Driver(root / DATA, files, ledger.policy) as driver:
                ledger.check_recovered(driver.state(), power_cut)
        files.abandon()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(4))
def test_power_cut(seed: int, policy: str) -> None:
    _replay(_record(seed, policy), policy, seed, stride=4, ways=2)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(FIRST_SEED + 1000, FIRST_SEED + 1040))
def test_power_cut_for_long(seed: int, policy: str) -> None:
    _replay(_record(seed, policy), policy, seed, stride=1, ways=5)


def test_what_is_cut_off_a_torn_tail_is_on_disk_before() -> None:
    with scratch() as root:
        with Driver(root / DATA, RecordingFiles(root)) as driver:
            assert driver.call(op="PUT", key="k0", value="x")["ok"]
        (segment,) = (path for path in read_tree(root) if path.suffix == ".wal")
        with open(root / segment, "ab") as file:
            file.write(b"torn")
        files = FaultyFiles(root)
        with Driver(root / DATA, files) as driver:
            assert driver.call(op="GET", key="k0")["ok"]
        files.abandon()

    disk = Disk(files.before)
    for operation in files.operations:
        disk.apply(operation)
        for tree in [disk.as_synced(), *(disk.torn(Random(seed)) for seed in range(20))]:
            assert b"torn" in tree.values() or (tree[segment] or b"").endswith(b"torn")
    assert any(isinstance(operation, Truncate) for operation in files.operations)
