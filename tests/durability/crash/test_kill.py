"""A server killed with SIGKILL under load, again and again, on the same directory.

A killed process loses nothing that it handed to the operating system. So nothing that was answered
with ok may be missing after a kill, whatever the fsync policy, and nothing that a read showed.
"""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path
from typing import Any, Final

import pytest

from tests.durability.crash.history import State, violations
from tests.durability.crash.load import POLICIES, Load, Server, choose_seed
from tests.support import eventually

SMALL: Final[dict[str, Any]] = {"segment_bytes": 4096, "snapshot_interval": 0.05}
"""So that segments are begun and snapshots written at any moment."""


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_that_was_answered_is_lost_by_a_kill(tmp_path: Path, policy: str) -> None:
    _kill_again_and_again(tmp_path, policy, rounds=3, most_writes=300)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_that_was_answered_is_lost_by_many_kills(tmp_path: Path, policy: str) -> None:
    _kill_again_and_again(tmp_path, policy, rounds=50, most_writes=2000)


def _kill_again_and_again(directory: Path, policy: str, rounds: int, most_writes: int) -> None:
    seed = choose_seed()
    chance = random.Random(seed)
    server = Server(directory / "server", "--fsync", policy, fsync_interval=0.05, **SMALL)
    copy = directory / "data-before-the-last-start"
    state = State()
    rotated = False
    writes = unanswered = 0
    with Load(directory, seed) as load, server:
        for number in range(rounds):
            load.go(server.endpoint)
            load.wait(chance.randint(20, most_writes))
            if number == 0:
                eventually(lambda: "wrote " in server.log(), "a snapshot is written under load")
            server.kill()
            ops = load.abandon()

            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(server.data_dir, copy)
            rotated = rotated or _newest_segment(server.data_dir) > state.rev + 1
            if number % 3 == 2:
                _kill_while_it_starts(server, chance)
            server.start()

            after = load.read_state(server.endpoint)
            problems = violations(state, ops, after)
            assert not problems, "\n".join(
                [f"round {number + 1}, seed {seed}; histories and data: {directory}", *problems]
            )
            state = after
            writes += sum(op.commit_rev is not None for op in ops)
            unanswered += sum(op.reply is None for op in ops)
        print(f"{policy}: {rounds} kills, {writes} writes answered, {unanswered} ops unanswered")

        assert rotated, "no segment was begun under load: the test does not test enough"
        assert server.stop() == 0
        server.start()
        assert load.read_state(server.endpoint) == state


def _newest_segment(data_dir: Path) -> int:
    return max(int(path.stem) for path in (data_dir / "wal").glob("*.wal"))


def _kill_while_it_starts(server: Server, chance: random.Random) -> None:
    """One more start, killed before it has got far: at a random moment, for want of a better."""
    server.launch()
    time.sleep(chance.uniform(0.02, 0.2))
    server.kill()
