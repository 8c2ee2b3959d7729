"""What is done to a store that is going to crash, and how it is looked at afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

from tests.durability.crash.disk_model import write_tree
from tests.durability.crash.driver import DATA, KEYS, Driver, scratch
from tests.durability.crash.faults import RecordingFiles, UnsyncedFiles
from tests.durability.crash.ledger import Batch, Ledger, Reply, Request

Step = list[Batch] | str
"""Batches that run at the same time, or the name of what else `Driver` has happen."""


def exchange(driver: Driver, ledger: Ledger, *batches: Batch) -> list[Reply]:
    """Run ``batches`` at the same time, and hold the replies to what the ledger says."""
    outcomes = driver.run(batches, ledger.send, ledger.put_off)
    answered = [each for outcome in outcomes for each in outcome]
    for request, reply in answered:
        ledger.hear(request, reply)
    return [reply for _, reply in answered]


def check_live(driver: Driver, ledger: Ledger) -> None:
    """Read everything: the running store holds what it may."""
    exchange(driver, ledger, [{"op": "MGET", "keys": KEYS}, {"op": "INFO"}])


def random_write(random: Random, number: int, sizes: Sequence[int]) -> Request:
    """A write with a value that no other write has."""
    value = f"{number}:" + "x" * random.choice(sizes)
    keys = random.sample(KEYS, random.randrange(1, 4))
    kind = random.choices(["PUT", "MPUT", "DELETE", "MDELETE"], [5, 3, 1, 1])[0]
    match kind:
        case "PUT":
            request: Request = {"key": keys[0], "value": value}
        case "MPUT":
            request = {"items": {key: f"{value}:{key}" for key in keys}}
        case "DELETE":
            request = {"key": keys[0]}
        case _:
            request = {"keys": keys}
    request["op"] = kind
    if kind in {"PUT", "DELETE"} and random.random() < 0.2:
        request["prev"] = True
    if random.random() < 0.1:
        request["durable"] = True
    return request


def random_batch(
    random: Random, number: int, most: int = 3, sizes: Sequence[int] = (0, 10, 100, 200)
) -> Batch:
    """Some writes, one at least, and perhaps a read."""
    writes = min(most, random.choice([1, 1, 2, 3]))
    batch = [random_write(random, 10 * number + n, sizes) for n in range(writes)]
    if random.random() < 0.3:
        batch.append({"op": "GET", "key": random.choice(KEYS)})
    return batch


def random_steps(random: Random, length: int) -> list[Step]:
    """Work that rotates segments, and takes a snapshot now and then."""
    steps: list[Step] = []
    for number in range(length):
        workers = random.choice([1, 1, 1, 1, 2, 3])
        step = [random_batch(random, 3 * number + n) for n in range(workers)]
        if workers == 3:  # A read in the first could be answered late, and tell of the others.
            step[0] = [request for request in step[0] if request["op"] != "GET"]
        steps.append(step)
        if number % 3 == 2:
            steps.append([[{"op": "SNAPSHOT"}]])
        elif random.random() < 0.4:
            steps.append(random.choice(["sync_round", "sync_round", "snapshotter_round"]))
    return steps


def play(step: Step, driver: Driver, ledger: Ledger) -> None:
    """Do one step, and hold the store to what the ledger says."""
    if isinstance(step, str):
        getattr(driver, step)()
    else:
        exchange(driver, ledger, *step)


class Meanwhile:
    """Serves requests, by another worker, at some moments while a snapshot is being written.

    Args:
        driver: of the server.
        ledger: hears the replies.
        seed: of the moments and the requests.
    """

    def __init__(self, driver: Driver, ledger: Ledger, seed: int) -> None:
        self._driver = driver
        self._ledger = ledger
        self._random = Random(seed)
        self._number = 1000

    def __call__(self, path: Path) -> None:
        if path.parent.name == "snapshot" and self._random.random() < 0.3:
            self._number += 1
            exchange(self._driver, self._ledger, random_batch(self._random, self._number))


def check_restart(
    files: RecordingFiles, ledger: Ledger, random: Random, power_cut: bool = False
) -> None:
    """Start on what ``files`` holds, read, write, cut the power, and start once more.

    Args:
        files: on which everything before was done.
        ledger: what was told before.
        random: chooses what is left after the power cut.
        power_cut: whether the power was cut before.
    """
    policy = ledger.policy
    with Driver(files.root / DATA, files, policy) as driver:
        assert not list(files.root.rglob("*.tmp")), "unfinished files are left from before"
        state = driver.state()
        ledger.check_recovered(state, power_cut)
        later = Ledger(policy, state)
        check_live(driver, later)
        exchange(driver, later, [{"op": "PUT", "key": "k0", "value": "after", "durable": True}])
    files.abandon()
    with scratch() as root:
        write_tree(files.disk.torn(random), root)
        with Driver(root / DATA, UnsyncedFiles(), policy) as driver:
            later.check_recovered(driver.state(), power_cut=True)
