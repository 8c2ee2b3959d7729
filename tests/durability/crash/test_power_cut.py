"""A power cut: an ext4 file system under the server forgets everything that was not synced.

What each policy promises is held to the letter. ``always``: nothing that was answered is lost.
``interval``: what is lost was answered within the last interval, and one sync, before the cut.
``never``: what a snapshot or a durable write vouched for is there. And under each, what is lost is
the end of the history, in revision order, and nothing from the middle of it.

Everything here needs root and a loop device. `tests.durability.crash.disks` cuts the power.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.durability.crash.disks import PowerCutMount, SyncShim, needs_compiler, needs_power_cuts
from tests.durability.crash.history import (
    NOTHING_IS_LOST,
    Promise,
    State,
    before_the_cut,
    lost,
    violations,
)
from tests.durability.crash.load import MIXED, POLICIES, Load, Server, choose_seed
from tests.support import LIMIT, Raw, eventually, pack

INTERVAL = 0.2
"""Seconds between syncs under the policy ``interval``."""
PATIENCE = 1.5
"""Seconds that a sync, and a machine with other things to do, may add to that."""
WITH_SNAPSHOTS = MIXED | {"SNAPSHOT": 1, "INFO": 1}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[PowerCutMount]:
    """A disk to cut the power of."""
    needs_power_cuts()
    with PowerCutMount(tmp_path / "disk") as mount:
        yield mount


def make_server(
    tmp_path: Path,
    disk: PowerCutMount,
    policy: str,
    *flags: str,
    quiet: bool = True,
    launcher: Sequence[str] = (),
) -> Server:
    """A server on the disk; a quiet one writes no snapshot and begins no segment by itself."""
    return Server(
        tmp_path / "server", "--fsync", policy, *flags, data_dir=disk.path / "data",
        launcher=launcher, fsync_interval=INTERVAL,
        segment_bytes=1 << 26 if quiet else 1 << 14, snapshot_interval=3600.0 if quiet else 0.1,
    )  # fmt: skip


def test_what_was_synced_survives_a_cut_and_the_rest_does_not(disk: PowerCutMount) -> None:
    """The rig itself: without this, the tests below would show nothing."""
    path = disk.path / "file"
    with open(path, "wb", buffering=0) as file:
        file.write(b"synced")
        os.fsync(file.fileno())
        file.write(b", and not")
    path.rename(disk.path / "renamed")

    disk.cut()
    disk.power_on()

    assert path.read_bytes() == b"synced"
    assert not (disk.path / "renamed").exists()


@pytest.mark.parametrize("policy", POLICIES)
def test_each_policy_keeps_its_promise(tmp_path: Path, disk: PowerCutMount, policy: str) -> None:
    rounds = 1 if policy == "interval" else 2
    _cut_again_and_again(tmp_path, disk, policy, rounds, most_writes=500)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("policy", POLICIES)
def test_each_policy_keeps_its_promise_at_many_cuts(
    tmp_path: Path, disk: PowerCutMount, policy: str
) -> None:
    _cut_again_and_again(tmp_path, disk, policy, rounds=25, most_writes=1000)


def _cut_again_and_again(
    tmp_path: Path, disk: PowerCutMount, policy: str, rounds: int, most_writes: int
) -> None:
    seed = choose_seed()
    chance = random.Random(seed)
    state = State()
    writes = gone = 0
    timed = policy == "interval"  # Where nothing but the interval may make a write durable.
    with Load(
        tmp_path, seed, rate=1500.0,
        weights=MIXED if timed else WITH_SNAPSHOTS, durable=0.0 if timed else 0.02,
    ) as load:  # fmt: skip
        for number in range(rounds):
            server = make_server(tmp_path, disk, policy, quiet=number % 2 == 0)
            with server:
                assert load.read_state(server.endpoint) == state
                load.go(server.endpoint)
                if timed:  # Long enough for some of it to be too old to be lost.
                    time.sleep(INTERVAL + PATIENCE + chance.uniform(0.1, 0.5))
                load.wait(load.count(".") + chance.randint(1, most_writes))
                cut_at = disk.cut()
            # What was answered later, no client of a real machine would have heard of.
            ops = before_the_cut(load.abandon(), cut_at)
            disk.power_on()
            copy = _copy(disk, tmp_path)

            with server:
                after = load.read_state(server.endpoint)
                problems = violations(state, ops, after, _promise(policy, cut_at))
                where = f"round {number + 1}, seed {seed}; histories: {tmp_path}, data: {copy}"
                assert not problems, "\n".join([where, *problems])
                if number % 2:  # What has been read back is as safe as what was there before.
                    disk.cut()
            if number % 2:
                disk.power_on()
            state = after
            writes += sum(op.commit_rev is not None for op in ops)
            gone += len(lost(ops, after))
    print(f"{policy}: {rounds} cuts, {writes} writes answered, {gone} of them lost")


def _promise(policy: str, cut_at: int) -> Promise:
    """What a policy promises of writes that were answered before ``cut_at``."""
    if policy == "always":
        return NOTHING_IS_LOST
    if policy == "never":
        return Promise(survives=lambda op: False, reads_survive=False)
    oldest = cut_at - round((INTERVAL + PATIENCE) * 1e9)
    return Promise(survives=lambda op: op.end is not None and op.end < oldest, reads_survive=False)


@pytest.mark.parametrize("policy", ["always", "never"])
def test_a_kill_and_then_a_cut(tmp_path: Path, disk: PowerCutMount, policy: str) -> None:
    """What a server reads back after a kill need not be on disk yet, although it can be read."""
    seed = choose_seed()
    server = make_server(tmp_path, disk, policy)
    with Load(tmp_path, seed) as load:
        with server:
            load.go(server.endpoint)
            load.wait(random.Random(seed).randint(100, 500))
            server.kill()
            ops = load.abandon()
            server.start()
            killed = load.read_state(server.endpoint)
            assert violations(State(), ops, killed) == []
            with Raw(server.endpoint) as client:
                durable_rev = client.ok(op="INFO")["durable_rev"]
            disk.cut()
        disk.power_on()
        copy = _copy(disk, tmp_path)

        with server:
            after = load.read_state(server.endpoint)

    promise = _promise(policy, 0)
    assert violations(State(), ops, after, promise) == [], f"seed {seed}; {tmp_path}; {copy}"
    assert after.rev >= durable_rev
    if policy == "always":
        assert after == killed, "reads showed what a cut could still take back"


@pytest.mark.parametrize("policy", ["always", "never"])
def test_a_kill_before_the_sync_and_then_a_cut(
    tmp_path: Path, disk: PowerCutMount, policy: str
) -> None:
    """The same, at the one moment when even ``always`` has written what is not on disk."""
    needs_compiler()
    shim = SyncShim(tmp_path / "shim")
    server = make_server(tmp_path, disk, policy, launcher=shim.launcher)
    with server:
        with Raw(server.endpoint) as client:
            client.ok(op="PUT", key="key", value="old", durable=True)
            shim.kill()
            client.send(pack({"op": "PUT", "key": "key", "value": "new", "durable": True}))
            assert server.process.wait(LIMIT) == -signal.SIGKILL
        shim.heal()
        server.kill()
        server.start()
        with Raw(server.endpoint) as client:
            shown = client.ok(op="GET", key="key")
            durable_rev = client.ok(op="INFO")["durable_rev"]
        disk.cut()
    disk.power_on()

    with server, Raw(server.endpoint) as client:
        found = client.ok(op="GET", key="key")
        rev = client.ok(op="INFO")["rev"]

    assert found["value"] in {"old", "new"}
    assert rev >= durable_rev
    if policy == "always":
        assert found == shown, "a read showed what a cut could still take back"


@pytest.mark.parametrize("policy", ["always", "never"])
def test_nothing_is_answered_before_it_is_on_disk(
    tmp_path: Path, disk: PowerCutMount, policy: str
) -> None:
    """The cut comes while a sync takes long: whoever does not wait for it is caught."""
    needs_compiler()
    seed = choose_seed()
    shim = SyncShim(tmp_path / "shim")
    server = make_server(tmp_path, disk, policy, "--workers", "4", launcher=shim.launcher)
    with Load(tmp_path, seed, weights=WITH_SNAPSHOTS, durable=0.5) as load:
        with server:
            load.go(server.endpoint)
            load.wait(random.Random(seed).randint(50, 300))
            shim.hold()
            eventually(shim.holds, "something is on its way to the disk")
            time.sleep(0.2)  # For wrong answers; the right ones have to wait.
            cut_at = time.monotonic_ns()
            disk.cut()
        ops = before_the_cut(load.abandon(), cut_at)
        disk.power_on()
        shim.heal()

        with server:
            after = load.read_state(server.endpoint)
    problems = violations(State(), ops, after, _promise(policy, cut_at))
    assert not problems, "\n".join([f"seed {seed}; histories: {tmp_path}", *problems])


def test_the_power_is_on_again_once_nobody_else_has_the_disk(disk: PowerCutMount) -> None:
    """Else what is read there afterwards, by tests, fails as on the disk that was cut off."""
    (disk.path / "file").write_text("kept")
    os.sync()
    holder = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", "echo; read _"], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"\n"
        disk.cut()
        leave = threading.Timer(0.3, holder.kill)
        leave.start()
        disk.power_on()
        leave.join()

    assert (disk.path / "file").read_text() == "kept"


def test_a_durable_write_survives_whatever_the_policy(tmp_path: Path, disk: PowerCutMount) -> None:
    server = make_server(tmp_path, disk, "never")
    with server, Raw(server.endpoint) as client:
        client.ok(op="PUT", key="before", value=1)
        assert client.ok(op="PUT", key="key", value=2, durable=True)["durable"] is True
        assert client.ok(op="PUT", key="key", value=3)["durable"] is False
        disk.cut()
    disk.power_on()

    with server, Raw(server.endpoint) as client:
        assert client.ok(op="GET", key="before")["value"] == 1
        assert client.ok(op="GET", key="key")["value"] in {2, 3}


def test_a_snapshot_that_was_answered_is_on_disk_under_its_name(
    tmp_path: Path, disk: PowerCutMount
) -> None:
    server = make_server(tmp_path, disk, "never")
    for number in range(2):
        with server, Raw(server.endpoint) as client:
            client.ok(op="PUT", key="key", value=number)
            rev = client.ok(op="SNAPSHOT")["rev"]
            disk.cut()
        disk.power_on()

        saved = sorted(int(path.stem) for path in disk.path.glob("data/snapshot/*.snapshot"))
        assert saved[-1] == rev
        with server, Raw(server.endpoint) as client:
            assert client.ok(op="GET", key="key")["value"] == number


@pytest.mark.parametrize("how", ["END", "SIGTERM"])
def test_after_an_orderly_stop_a_cut_takes_nothing(
    tmp_path: Path, disk: PowerCutMount, how: str
) -> None:
    server = make_server(tmp_path, disk, "never")
    with server, Raw(server.endpoint) as client:
        for number in range(20):
            client.ok(op="PUT", key=f"key-{number}", value=number)
        if how == "END":
            assert client.ok(op="END")["rev"] == 20
            assert server.wait() == 0
        else:
            assert server.stop() == 0
        disk.cut()
    disk.power_on()

    with server, Raw(server.endpoint) as client:
        assert client.ok(op="INFO")["rev"] == 20
        for number in range(20):
            assert client.ok(op="GET", key=f"key-{number}")["value"] == number


def _copy(disk: PowerCutMount, tmp_path: Path) -> Path:
    """Keep what the disk held after the last cut, to look at when a test fails."""
    copy = tmp_path / "data-after-the-last-cut"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(disk.path / "data", copy)
    return copy
