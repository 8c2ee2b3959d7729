"""Disks that take no more: full, read-only, gone, or failing at the sync.

Whatever the disk does, reads go on with the right values, no write is acknowledged that is not
there, a refused write says truly whether it may have been applied, and once the disk is well again
writing resumes by itself.

Filling a disk and taking it away need root and mount; failing syncs need a C compiler.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.durability.crash.disks import (
    PowerCutMount,
    SmallDisk,
    SyncShim,
    needs_compiler,
    needs_mounts,
    needs_power_cuts,
)
from tests.durability.crash.history import Outcome, State, violations
from tests.durability.crash.load import POLICIES, Load, Server, choose_seed
from tests.support import Message, Raw, eventually, pack, unpack
from zkv.durability.wal import RETRY_SECONDS

QUIET = 3600.0
"""A snapshot interval that no test lives to see the end of."""
LEEWAY = 200
"""Milliseconds for a server to make a mistake in; one that makes none is right all the same."""
BIG = "v" * 20_000
"""A value that does not fit into what is left of a page of a full disk."""
REFUSED = "writes are refused"
AGAIN = "the log can be written again"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 4 MiB."""
    needs_mounts()
    with SmallDisk(tmp_path / "disk") as mount:
        yield mount


def make_server(tmp_path: Path, disk: SmallDisk, policy: str, **durability: Any) -> Server:
    return Server(
        tmp_path / "server", "--fsync", policy, data_dir=disk.path / "data",
        **{"snapshot_interval": QUIET, "fsync_interval": 0.05} | durability,
    )  # fmt: skip


def refuse(client: Raw, **fields: Any) -> Message:
    """Send what must be refused, because of the disk."""
    reply = client.call(**fields)
    assert (reply["ok"], reply.get("code"), reply.get("retry")) == (False, "READ_ONLY", True), reply
    return reply


def put_again(client: Raw, key: str, value: str) -> None:
    """Write as soon as the server takes it: by itself, once the disk does."""
    eventually(lambda: client.call(op="PUT", key=key, value=value)["ok"], "writing has resumed")


def _is_logged(server: Server, text: str, times: int) -> bool:
    """Whether a text is in the log, so many times and no more; that may take a moment."""
    count = server.log().count(text)
    assert count <= times, server.log()
    return count == times


def value_of(client: Raw, key: str) -> object:
    return client.ok(op="GET", key=key)["value"]


@pytest.mark.parametrize("policy", ["always", "never"])
def test_a_full_disk_refuses_writes_until_there_is_room(
    tmp_path: Path, disk: SmallDisk, policy: str
) -> None:
    with make_server(tmp_path, disk, policy) as server, Raw(server.endpoint) as client:
        client.ok(op="PUT", key="key", value="first")
        disk.fill()
        for _ in range(20):
            assert refuse(client, op="PUT", key="key", value=BIG)["applied"] is False
            assert refuse(client, op="PUT", key="new", value=BIG)["applied"] is False
            assert refuse(client, op="DELETE", key="key", durable=True)["applied"] is False
            assert value_of(client, "key") == "first"
            assert client.call(op="GET", key="new")["code"] == "NOT_FOUND"
        disk.make_room()
        put_again(client, "key", BIG)

        server.kill()
        server.start()
        with Raw(server.endpoint) as other:
            assert value_of(other, "key") == BIG
            assert other.ok(op="INFO")["keys"] == 1


def test_a_full_disk_is_logged_once_and_not_at_every_try(tmp_path: Path, disk: SmallDisk) -> None:
    with make_server(tmp_path, disk, "always") as server, Raw(server.endpoint) as client:
        for streak, tries in ((1, 2), (2, 0)):  # The server tries again now and then.
            disk.fill()
            enough = time.monotonic() + (tries + 0.2) * RETRY_SECONDS
            while time.monotonic() < enough:
                refuse(client, op="PUT", key="key", value=BIG)
            disk.make_room()
            put_again(client, "key", BIG)

            for line in (REFUSED, AGAIN):
                eventually(partial(_is_logged, server, line, streak), f"{line!r} is logged")


def test_what_fits_is_taken_after_what_did_not(tmp_path: Path, disk: SmallDisk) -> None:
    """A write that fills the last page is taken back, and what is written next is whole."""
    with make_server(tmp_path, disk, "always") as server, Raw(server.endpoint) as client:
        disk.fill(but=100_000)
        refuse(client, op="PUT", key="large", value="v" * 200_000)
        put_again(client, "small", BIG)
        client.ok(op="PUT", key="next", value="small")

        server.kill()
        server.start()
        with Raw(server.endpoint) as other:
            assert value_of(other, "small") == BIG
            assert value_of(other, "next") == "small"
            assert other.ok(op="INFO")["rev"] == 2


def test_a_snapshot_on_a_full_disk_is_refused_and_works_later(
    tmp_path: Path, disk: SmallDisk
) -> None:
    with make_server(tmp_path, disk, "always") as server, Raw(server.endpoint) as client:
        client.ok(op="PUT", key="key", value=BIG)
        disk.fill()
        for _ in range(5):
            refuse(client, op="SNAPSHOT")
        eventually(lambda: _is_logged(server, "the snapshot cannot be written", 1), "it is logged")
        assert list(disk.path.glob("data/snapshot/*")) == [], "left behind by a failed snapshot"
        disk.make_room()

        assert client.ok(op="SNAPSHOT")["rev"] == 1
        eventually(lambda: _is_logged(server, "snapshots can be written again", 1), "it is logged")
        assert "ResourceWarning" not in server.log()


@pytest.mark.parametrize("policy", ["always", "never"])
def test_a_kill_while_the_disk_is_full(tmp_path: Path, disk: SmallDisk, policy: str) -> None:
    with make_server(tmp_path, disk, policy) as server:
        with Raw(server.endpoint) as client:
            client.ok(op="PUT", key="key", value="value")
            disk.fill()
            refuse(client, op="PUT", key="key", value=BIG)
        server.kill()
        (segment,) = server.data_dir.glob("wal/*.wal")
        with open(segment, "ab") as file:
            file.write(b"torn")

        server.start()  # On what is there: nothing new has to be made.
        assert "so there is no copy" in server.log()
        with Raw(server.endpoint) as client:
            assert value_of(client, "key") == "value"
            refuse(client, op="PUT", key="key", value=BIG)
            disk.make_room()
            put_again(client, "key", BIG)


def test_a_full_disk_that_was_never_used(tmp_path: Path, disk: SmallDisk) -> None:
    disk.fill()
    server = make_server(tmp_path, disk, "always")
    for _ in range(2):
        status, said = server.start_and_fail()
        assert status == 2, said
        assert str(server.data_dir) in said.splitlines()[-1]
        assert "No space left on device" in said.splitlines()[-1]
        assert "Traceback" not in said


@pytest.mark.parametrize("policy", ["always", "never"])
def test_a_log_that_fills_the_disk_by_itself_makes_room(
    tmp_path: Path, disk: SmallDisk, policy: str
) -> None:
    """However much is written: the store is small, and so is what snapshots leave of the log."""
    settings = {"segment_bytes": 65536, "snapshot_interval": 1.0}
    with (
        make_server(tmp_path, disk, policy, **settings) as server,
        Raw(server.endpoint) as client,
    ):
        client.ok(op="PUT", key="kept", value="x" * 100_000)
        for number in range(50):
            client.ok(op="PUT", key="key", value=f"{number}{BIG}")
        client.ok(op="SNAPSHOT")
        written = refused = 0
        while written < 8 << 20:
            reply = client.call(op="PUT", key="key", value=f"{written}{BIG}")
            if reply["ok"]:
                written += len(BIG)
            else:
                refused += 1
                assert reply["code"] == "READ_ONLY"
        assert refused, "the disk was never full"
        last = value_of(client, "key")

        server.kill()
        server.start()
        with Raw(server.endpoint) as other:
            assert value_of(other, "key") == last
            assert value_of(other, "kept") == "x" * 100_000


@pytest.mark.parametrize("policy", ["always", "never"])
def test_a_stop_while_the_disk_is_full(tmp_path: Path, disk: SmallDisk, policy: str) -> None:
    """The final snapshot cannot be written: that is said, and the log has it all."""
    with make_server(tmp_path, disk, policy) as server:
        with Raw(server.endpoint) as client:
            client.ok(op="PUT", key="key", value="value")
            disk.fill()
            refuse(client, op="PUT", key="key", value=BIG)
        assert server.stop() == 1
        assert "not everything is saved" in server.log()
        assert "Traceback" not in server.log()

        disk.make_room()
        server.start()
        with Raw(server.endpoint) as client:
            assert value_of(client, "key") == "value"


@pytest.mark.parametrize("policy", ["always", "never"])
def test_a_disk_that_fills_up_under_load(tmp_path: Path, disk: SmallDisk, policy: str) -> None:
    _fill_again_and_again(tmp_path, disk, policy, rounds=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_disk_that_fills_up_often_under_load(
    tmp_path: Path, disk: SmallDisk, policy: str
) -> None:
    _fill_again_and_again(tmp_path, disk, policy, rounds=25)


def _fill_again_and_again(tmp_path: Path, disk: SmallDisk, policy: str, rounds: int) -> None:
    """Fill, make room, fill, kill: nothing acknowledged is lost, nothing refused is there."""
    seed = choose_seed()
    chance = random.Random(seed)
    state = State()
    writes = refused = 0
    server = make_server(tmp_path, disk, policy, segment_bytes=65536, snapshot_interval=0.1)
    with Load(tmp_path, seed, value_bytes=9000, rate=2000.0) as load, server:
        for number in range(rounds):
            load.go(server.endpoint)
            load.wait(chance.randint(20, 200))
            disk.fill(but=chance.choice([0, 4096, 50_000]))
            load.wait(load.count("x") + chance.randint(1, 30), "x")
            disk.make_room()
            load.wait(load.count(".") + chance.randint(1, 100))
            disk.fill()
            load.wait(load.count("x") + 1, "x")
            server.kill()
            ops = load.abandon()
            disk.make_room()
            server.start()

            after = load.read_state(server.endpoint)
            problems = violations(state, ops, after)
            where = f"round {number + 1}, seed {seed}; histories and data: {tmp_path}"
            assert not problems, "\n".join([where, *problems])
            state = after
            writes += sum(op.commit_rev is not None for op in ops)
            refused += sum(op.outcome is Outcome.FAIL for op in ops)
    print(f"{policy}: {rounds} rounds, {writes} writes answered, {refused} refused")


def test_a_directory_that_vanishes(tmp_path: Path) -> None:
    """What POSIX gives: an open file is written on, without a name; nothing new can be made."""
    server = Server(tmp_path / "server", segment_bytes=1024, snapshot_interval=QUIET)
    with server, Raw(server.endpoint) as client:
        client.ok(op="PUT", key="key", value="before")
        shutil.rmtree(server.data_dir)

        client.ok(op="PUT", key="key", value="x" * 2000)
        assert refuse(client, op="PUT", key="key", value="after")["applied"] is False
        refuse(client, op="SNAPSHOT")
        assert value_of(client, "key") == "x" * 2000
        assert server.stop() == 1
        assert "Traceback" not in server.log()


@pytest.mark.parametrize("policy", ["always", "never"])
def test_a_file_system_that_turns_read_only(tmp_path: Path, policy: str) -> None:
    """As the kernel does it after an error: at any moment, whoever has files open."""
    needs_power_cuts()
    with PowerCutMount(tmp_path / "disk") as disk:
        server = Server(
            tmp_path / "server", "--fsync", policy,
            data_dir=disk.path / "data", snapshot_interval=QUIET,
        )  # fmt: skip
        with server, Raw(server.endpoint) as client:
            client.ok(op="PUT", key="key", value="value", durable=True)
            disk.remount("abort")
            for _ in range(3):
                refuse(client, op="PUT", key="key", value="refused")
                assert value_of(client, "key") == "value"
            refuse(client, op="SNAPSHOT")
            assert server.stop() == 1

            status, said = server.start_and_fail()
            assert (status, "Traceback" in said) == (2, False), said
            assert str(server.data_dir) in said.splitlines()[-1]
            disk.power_on()
            server.start()
            with Raw(server.endpoint) as other:
                assert value_of(other, "key") == "value"


@pytest.fixture
def shim(tmp_path: Path) -> SyncShim:
    """Makes the syncs of a server fail."""
    needs_compiler()
    return SyncShim(tmp_path / "shim")


@pytest.mark.parametrize("policy", ["always", "never"])
def test_a_failed_sync_acknowledges_nothing_and_a_snapshot_heals_it(
    tmp_path: Path, shim: SyncShim, policy: str
) -> None:
    server = Server(
        tmp_path / "server", "--fsync", policy,
        launcher=shim.launcher, snapshot_interval=0.05, fsync_interval=QUIET,
    )  # fmt: skip
    with server, Raw(server.endpoint) as client:
        client.ok(op="PUT", key="key", value="synced", durable=True)
        shim.fail()
        reply = refuse(client, op="PUT", key="key", value="unknown", durable=True)
        assert reply["applied"] is None
        for _ in range(5):
            assert refuse(client, op="PUT", key="other", value="x")["applied"] is False
            assert value_of(client, "key") == ("synced" if policy == "always" else "unknown")
        refuse(client, op="SNAPSHOT")
        shim.heal()
        put_again(client, "key", "healed")
        rev = client.ok(op="PUT", key="next", value="x", durable=True)["rev"]

        server.kill()
        server.start()
        with Raw(server.endpoint) as other:
            assert value_of(other, "key") == "healed"
            assert other.call(op="GET", key="other")["code"] == "NOT_FOUND"
            assert other.ok(op="INFO")["rev"] == rev


def test_a_read_does_not_show_what_a_failed_sync_takes_back(tmp_path: Path, shim: SyncShim) -> None:
    server = Server(tmp_path / "server", launcher=shim.launcher, snapshot_interval=QUIET)
    with server, Raw(server.endpoint) as writer, Raw(server.endpoint) as reader:
        writer.ok(op="PUT", key="key", value="old")
        shim.hold(then_fail=True)
        writer.send(pack({"op": "PUT", "key": "key", "value": "new"}))
        eventually(shim.holds, "the new value is on its way to the disk")
        reader.send(pack({"op": "GET", "key": "key"}))
        reader.socket.poll(LEEWAY)  # For the wrong answer; the right one may have to wait.
        shim.heal()

        assert unpack(reader.receive())["value"] == "old"
        assert unpack(writer.receive())["applied"] is None
        assert value_of(reader, "key") == "old"


@pytest.mark.parametrize("policy", ["always", "never"])
def test_a_sync_that_fails_during_a_snapshot(tmp_path: Path, shim: SyncShim, policy: str) -> None:
    """The snapshot is of before: what has been acknowledged since is only in the log."""
    server = Server(
        tmp_path / "server", "--fsync", policy,
        launcher=shim.launcher, snapshot_interval=QUIET, fsync_interval=QUIET,
    )  # fmt: skip
    with server, Raw(server.endpoint) as client, Raw(server.endpoint) as other:
        client.ok(op="PUT", key="before", value=1)
        shim.hold(".snapshot")
        other.send(pack({"op": "SNAPSHOT"}))
        eventually(shim.holds, "the snapshot is on its way to the disk")
        client.ok(op="PUT", key="since", value=2)
        shim.fail(".wal")
        assert refuse(client, op="PUT", key="k", value=3, durable=True)["applied"] is None
        shim.heal()
        other.receive()
        assert value_of(client, "since") == 2

        eventually(lambda: client.call(op="SNAPSHOT")["ok"], "a snapshot can be written")
        rev = client.ok(op="PUT", key="after", value=4)["rev"]
        server.kill()
        server.start()
        with Raw(server.endpoint) as again:
            found = [value_of(again, key) for key in ("before", "since", "after")]
            assert found == [1, 2, 4]
            assert again.ok(op="INFO")["rev"] == rev


def test_what_is_said_to_be_not_applied_is_not_there(tmp_path: Path, shim: SyncShim) -> None:
    """Two writes get into the log together, and each has a worker that waits for the disk."""
    server = Server(
        tmp_path / "server", "--workers", "8", launcher=shim.launcher, snapshot_interval=QUIET
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(server)
        clients = [stack.enter_context(Raw(server.endpoint)) for _ in range(5)]
        shim.hold()
        clients[0].send(pack({"op": "PUT", "key": "0", "value": 0}))
        eventually(shim.holds, "the first write is on its way to the disk")
        for number, client in enumerate(clients[1:], 1):
            client.send(pack({"op": "PUT", "key": str(number), "value": number}))
        clients[1].socket.poll(LEEWAY)  # For all of them to get into the log.
        shim.fail()
        assert unpack(clients[0].receive())["ok"] is True
        replies = [unpack(client.receive()) for client in clients[1:]]
        assert {reply.get("code") for reply in replies} == {"READ_ONLY"}

        server.kill()
        shim.heal()
        server.start()
        with Raw(server.endpoint) as client:
            for number, reply in enumerate(replies, 1):
                found = client.call(op="GET", key=str(number))
                assert not found["ok"] or reply["applied"] is None


@pytest.mark.parametrize("policy", ["always", "never"])
def test_syncs_that_fail_under_load(tmp_path: Path, shim: SyncShim, policy: str) -> None:
    _fail_again_and_again(tmp_path, shim, policy, rounds=2)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("policy", POLICIES)
def test_syncs_that_fail_often_under_load(tmp_path: Path, shim: SyncShim, policy: str) -> None:
    _fail_again_and_again(tmp_path, shim, policy, rounds=25)


def _fail_again_and_again(tmp_path: Path, shim: SyncShim, policy: str, rounds: int) -> None:
    """Fail, heal, fail, kill: what is said of each write is true after the restart, too.

    Before it fails, a sync takes long: that gathers those who wait for it, in several threads.
    """
    seed = choose_seed()
    chance = random.Random(seed)
    state = State()
    writes = unknown = 0
    server = Server(
        tmp_path / "server", "--fsync", policy, "--workers", "4", launcher=shim.launcher,
        segment_bytes=16384, snapshot_interval=0.1, fsync_interval=0.05,
    )  # fmt: skip
    with Load(tmp_path, seed, rate=2000.0, durable=0.3) as load, server:
        for number in range(rounds):
            load.go(server.endpoint)
            for _ in range(chance.randint(1, 2)):
                load.wait(load.count(".") + chance.randint(20, 100))
                shim.slow(milliseconds=20)
                load.wait(load.count(".") + 3)
                shim.fail()
                load.wait(load.count("x") + chance.randint(1, 20), "x")
                shim.heal()
                load.wait(load.count(".") + 1)
            shim.slow(milliseconds=20)
            load.wait(load.count(".") + 3)
            shim.fail()
            load.wait(load.count("x") + 1, "x")
            server.kill()
            ops = load.abandon()
            shim.heal()
            server.start()

            after = load.read_state(server.endpoint)
            problems = violations(state, ops, after)
            where = f"round {number + 1}, seed {seed}; histories and data: {tmp_path}"
            assert not problems, "\n".join([where, *problems])
            state = after
            writes += sum(op.commit_rev is not None for op in ops)
            unknown += sum(op.end is not None and op.outcome is Outcome.UNKNOWN for op in ops)
    print(f"{policy}: {rounds} rounds, {writes} writes answered, {unknown} answered as unknown")
