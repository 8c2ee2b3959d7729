"""REPLICATE: what a member gets is the log, all of it, and only what is on disk."""

from __future__ import annotations

import errno
import logging
import os
import random
import threading
from pathlib import Path
from typing import Any, BinaryIO, Final

import pytest
import zmq

from tests.replication.members import Member, on_disk
from tests.support import LIMIT, BadDisk, HeldFiles, Raw, ServerInProcess, ServerProcess, eventually
from tests.users.secured import Secured
from zkv.bounds import key_range
from zkv.durability.files import Files
from zkv.durability.snapshot import Loaded
from zkv.keyspace import Keyspace
from zkv.keyspace.lineage import Lineage, Term
from zkv.replication import source

SMALL: Final = {"segment_bytes": 2_048, "snapshot_interval": 3_600.0}
"""Segments that roll over after a few commits, and snapshots only when a test wants them."""


class FailingSync(Files):
    """A disk of which the next sync fails, once somebody says so."""

    fails = False

    def sync(self, file: BinaryIO) -> None:
        if self.fails:
            self.fails = False
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().sync(file)


def entries_of(keyspace: Keyspace) -> dict[str, tuple[bytes, int, int | None]]:
    """The entries of a store, with all that makes them."""
    pairs = keyspace.entries.pairs(key_range(""), len(keyspace.entries), False)
    return {key: (bytes(entry.value), entry.rev, entry.expires) for key, entry in pairs}


def assert_same(member: Member, server: ServerInProcess) -> None:
    """The member's store is the server's: entries, sessions, revision, terms."""
    keyspace = server.server._engine.keyspace
    copied = member.store()
    with keyspace.lock:
        assert entries_of(copied) == entries_of(keyspace)
        assert (copied.rev, copied.lineage) == (keyspace.rev, keyspace.lineage)
        names = keyspace.sessions.names()
        assert copied.sessions.names() == names
        for name in names:
            ours, theirs = copied.sessions.state(name, 10**9), keyspace.sessions.state(name, 10**9)
            assert ours is not None
            assert theirs is not None
            assert ours[2] == theirs[2]


def last_lsn(server: ServerInProcess) -> int:
    """The number of the newest commit of a server."""
    return server.server._engine.last_lsn


def write_randomly(client: Raw, chance: random.Random, count: int) -> None:
    """Writes of many kinds, some of which are refused, or change nothing."""
    for number in range(count):
        key = f"k{chance.randrange(30)}"
        once: dict[str, Any] = {"session": "s", "seq": number + 1} if chance.random() < 0.5 else {}
        match chance.randrange(7):
            case 0 | 1:
                client.call(op="PUT", key=key, value="v" * chance.randrange(200), **once)
            case 2:
                client.call(op="PUT", key=key, value=1, if_rev=chance.randrange(3), **once)
            case 3:
                client.call(op="DELETE", key=key, **once)
            case 4:
                client.call(op="INCR", key=key, **once)
            case 5:
                client.call(op="PUT", key=key, value=0, ttl=0.001, **once)
            case 6:
                client.call(op="PUT", key=f"cache/{key}", value="c" * 100, **once)


@pytest.mark.parametrize("policy", ["always", "interval", "never"])
def test_a_member_gets_the_log(tmp_path: Path, policy: str) -> None:
    chance = random.Random(policy)
    durability = SMALL | {"fsync": policy}
    cache = [{"prefix": "cache/", "max_bytes": 1_000}]
    server = ServerInProcess(tmp_path / "data", durability=durability, cache=cache)  # type: ignore[arg-type]
    with server, Raw(server.endpoint) as client, Member(server.endpoint) as member:
        write_randomly(client, chance, 100)
        for _ in range(8):
            member.pull(limit=chance.randrange(1, 3_000))
            write_randomly(client, chance, 20)
            if chance.random() < 0.3:
                member.pull_until(last_lsn(server), limit=2_000)  # What it lacks might be removed.
                client.ok(op="SNAPSHOT")
        client.ok(op="PUT", key="last", value=1)
        eventually(lambda: client.ok(op="INFO")["stats"]["expiring"] == 0, "all have expired")
        assert client.ok(op="INFO")["stats"]["evicted"] > 0
        member.pull_until(last_lsn(server), limit=2_000)
        assert_same(member, server)
        kept = on_disk(tmp_path / "data")
        assert member.payloads[-len(kept) :] == kept


def test_a_long_commit_comes_alone(tmp_path: Path) -> None:
    with (
        ServerInProcess(tmp_path) as server,
        Raw(server.endpoint) as client,
        Member(server.endpoint) as member,
    ):
        client.ok(op="PUT", key="a", value=1)
        client.ok(op="PUT", key="b", value=b"x" * 3_000_000)
        client.ok(op="PUT", key="c", value=1)
        assert [member.pull(limit=100) for _ in range(5)] == [1, 1, 1, 1, 0]
        assert_same(member, server)


def test_a_member_waits_for_the_next_commit(tmp_path: Path) -> None:
    with (
        ServerInProcess(tmp_path) as server,
        Raw(server.endpoint) as client,
        Member(server.endpoint) as one,
        Member(server.endpoint, "two") as two,
    ):
        assert one.pull() == two.pull() == 1  # The term.
        one.ask(wait=10_000)
        two.ask(wait=10_000)
        client.ok(op="PUT", key="a", value=1)
        assert one.take(one.receive()) == two.take(two.receive()) == 1
        assert one.pull(wait=1) == 0  # In vain.
        members = client.ok(op="INFO")["replication"]["members"]
        assert [(each["name"], each["durable"]) for each in members] == [("one", 2), ("two", 1)]


def test_two_requests_of_a_member_at_a_time(tmp_path: Path) -> None:
    with (
        ServerInProcess(tmp_path, durability=SMALL) as server,
        Raw(server.endpoint) as client,
        Member(server.endpoint) as one,
        Member(server.endpoint) as same,
    ):
        for number in range(50):
            one.ask(wait=10_000, limit=300)
            same.ask(wait=10_000, limit=500)
            client.ok(op="PUT", key="a", value=number)
            one.take(one.receive())
            same.take(same.receive())
        one.pull_until(51)
        same.pull_until(51)
        assert one.payloads == same.payloads


def test_a_member_goes_on_after_a_restart(tmp_path: Path) -> None:
    with (
        ServerProcess(tmp_path) as server,
        Raw(server.endpoint) as client,
        Member(server.endpoint) as member,
    ):
        client.ok(op="PUT", key="a", value=1)
        assert member.pull() == 2
        client.ok(op="PUT", key="b", value=1)
        server.kill()
        server.start()
        with Raw(server.endpoint) as other, Member(server.endpoint) as again:
            again.payloads, again.lineage = member.payloads, member.lineage
            other.ok(op="PUT", key="c", value=1)
            again.pull_until(4)
            assert [commit.rev for commit in again.commits()] == [1, 1, 2, 3]
            assert other.ok(op="INFO")["replication"]["term"] == 1


def test_the_identity_is_made_once(tmp_path: Path) -> None:
    with ServerInProcess(tmp_path) as server, Raw(server.endpoint) as client:
        assert "replication" not in client.ok(op="INFO")
        members = [Member(server.endpoint, f"m{number}") for number in range(8)]
        for member in members:
            member.ask()
        stores = {member.receive()["store"] for member in members}
        for member in members:
            member.__exit__()
        told = client.ok(op="INFO")["replication"]
        assert {told["store"]} == stores
        assert (told["role"], told["term"], told["leader"], told["applied"]) == (
            "primary", 1, None, 1,
        )  # fmt: skip


def test_without_a_directory_there_is_no_log(tmp_path: Path) -> None:
    server = ServerInProcess(tmp_path, durability={"data_dir": None})
    with server, Member(server.endpoint) as member:
        assert member.call()["code"] == "BAD_REQUEST"


# --- Positions


def test_positions_of_another_history(tmp_path: Path) -> None:
    with (
        ServerInProcess(tmp_path) as server,
        Raw(server.endpoint) as client,
        Member(server.endpoint) as member,
    ):
        client.ok(op="PUT", key="a", value=1)
        member.pull_until(2)
        here = member.position()
        assert member.call(**here)["commits"] == []
        for wrong, common in (
            ({"after": 3}, 2),
            ({"after": 1}, 0),  # Before the term.
            ({"tag": "0" * 16}, 0),
            ({"term": 2}, 0),
            ({"term": 0, "tag": ""}, 0),
            ({"store": "another"}, 0),
        ):
            reply = member.call(**here | {"durable": 0} | wrong)
            assert (reply["code"], reply["common"]) == ("DIVERGED", common), wrong
        assert member.call(after=1, store=here["store"])["ok"]


def test_a_term_that_ended_here(tmp_path: Path) -> None:
    with (
        ServerInProcess(tmp_path) as server,
        Raw(server.endpoint) as client,
        Member(server.endpoint) as member,
    ):
        member.pull_until(1)
        old = member.position()
        engine = server.server._engine
        client.ok(op="PUT", key="a", value=1)
        with engine.keyspace.lock:
            start = engine.keyspace.lineage.next_start()
            engine.keyspace.begin_term(start, engine.keyspace.rev + 2**32)
        client.ok(op="PUT", key="b", value=1)
        reply = member.call(**old | {"after": 4})
        assert (reply["code"], reply["common"]) == ("DIVERGED", 2)
        reply = member.call(**old)
        assert len(reply["commits"]) == 3
        assert [term[:2] for term in reply["terms"]] == [[1, 1], [2, 3]]


# --- What is not on disk, and what is damaged


def test_what_is_rolled_back_is_never_sent(tmp_path: Path) -> None:
    disk = BadDisk()
    with (
        ServerInProcess(tmp_path, disk) as server,
        Raw(server.endpoint) as client,
        Member(server.endpoint) as member,
    ):
        member.pull_until(1)
        member.ask(wait=10_000)
        disk.full = True
        assert client.call(op="PUT", key="a", value="lost")["code"] == "READ_ONLY"
        disk.full = False
        eventually(lambda: client.call(op="PUT", key="a", value="kept")["ok"], "it is written")
        assert member.take(member.receive()) == 1
        member.pull_until(last_lsn(server))
        assert not any(b"lost" in payload for payload in member.payloads)
        assert_same(member, server)


@pytest.mark.parametrize("policy", ["always", "never"])
def test_a_sync_that_fails(tmp_path: Path, policy: str) -> None:
    disk = FailingSync()
    durability = {"fsync": policy, "snapshot_interval": 0.1}
    with (
        ServerInProcess(tmp_path, disk, durability=durability) as server,
        Raw(server.endpoint) as client,
        Member(server.endpoint) as member,
    ):
        client.ok(op="PUT", key="a", value=1)
        member.pull_until(last_lsn(server))
        member.ask(wait=10_000)
        disk.fails = True
        client.call(op="PUT", key="b", value="lost?")  # Kept if a write alone makes it safe.
        eventually(lambda: client.call(op="PUT", key="c", value=2)["ok"], "there is a new log")
        reply = member.receive()
        if reply["ok"]:
            member.take(reply)
        else:  # The old segment cannot be trusted.
            assert reply["code"] == "COMPACTED"
            member.load(tmp_path)
        member.pull_until(last_lsn(server))
        assert_same(member, server)


def test_what_is_not_on_disk_is_not_sent(tmp_path: Path) -> None:
    disk = HeldFiles()
    with (
        ServerInProcess(tmp_path, disk, durability={"fsync": "never"}) as server,
        Raw(server.endpoint) as client,
        Member(server.endpoint) as member,
    ):
        member.pull_until(1)
        disk.hold.set()
        try:
            client.ok(op="PUT", key="a", value=1)  # Written, which is safe here.
            assert member.pull() == 0
            member.ask(wait=10_000)
            assert disk.held.wait(LIMIT)  # The sync that is made for whoever waits.
            assert server.server._engine.safe_lsn == 2
        finally:
            disk.hold.clear()
            disk.release.set()
        assert member.take(member.receive()) == 1


def damage(path: Path, place: int) -> None:
    """Change a byte of a file."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("newest", [False, True])
def test_damage_is_told_and_never_sent(
    tmp_path: Path, newest: bool, caplog: pytest.LogCaptureFixture
) -> None:
    data_dir = tmp_path / "data"
    with (
        ServerInProcess(data_dir, durability=SMALL) as server,
        Raw(server.endpoint) as client,
        Member(server.endpoint) as member,
    ):
        for number in range(40 if not newest else 3):
            client.ok(op="PUT", key=f"k{number}", value="v" * 200)
        member.pull(limit=1)
        path = sorted((data_dir / "wal").glob("*.wal"))[0]
        with caplog.at_level(logging.ERROR, "zkv.durability"):
            damage(path, 600)
            assert member.pull() == 1  # Up to the damage.
            reply = member.call(**member.position())
            assert reply["code"] == "COMPACTED"
            assert member.call(**member.position())["oldest"] == reply["oldest"]
        errors = [each.message for each in caplog.records if each.levelno == logging.ERROR]
        assert [path.name in message for message in errors] == [True]
        assert reply["oldest"] > member.after + 1
        member.load(tmp_path)
        client.ok(op="PUT", key="more", value=1)
        member.pull_until(last_lsn(server))
        assert_same(member, server)


def test_a_log_that_is_gone(tmp_path: Path) -> None:
    with (
        ServerInProcess(tmp_path / "data", durability=SMALL) as server,
        Raw(server.endpoint) as client,
        Member(server.endpoint) as member,
    ):
        for number in range(4):
            for each in range(20):
                client.ok(op="PUT", key=f"{number} {each}", value="v" * 100)
            client.ok(op="SNAPSHOT")
        reply = member.call()
        assert reply["code"] == "COMPACTED"
        assert 1 < reply["oldest"] <= last_lsn(server)
        member.load(tmp_path)
        member.pull_until(last_lsn(server))
        assert_same(member, server)


# --- Snapshots


def test_a_snapshot_is_made_if_there_is_none(tmp_path: Path) -> None:
    with (
        ServerInProcess(tmp_path / "data", durability=SMALL) as server,
        Raw(server.endpoint) as client,
        Member(server.endpoint) as member,
    ):
        client.ok(op="MPUT", items={f"k{number}": number for number in range(1_000)})
        client.ok(op="INCR", key="n", session="s", seq=1)
        reply = member.load(tmp_path, limit=700)
        files = sorted((tmp_path / "data" / "snapshot").glob("*.snapshot"))
        assert files[-1].read_bytes() == (tmp_path / files[-1].name).read_bytes()
        assert reply["snapshot"] == 2
        client.ok(op="INCR", key="n", session="s", seq=2)
        member.pull_until(last_lsn(server))
        assert_same(member, server)


def test_a_snapshot_stays_with_its_log_until_it_is_loaded(tmp_path: Path) -> None:
    with (
        ServerInProcess(tmp_path / "data", durability=SMALL) as server,
        Raw(server.endpoint) as client,
        Member(server.endpoint) as member,
    ):
        client.ok(op="PUT", key="first", value=1)
        first = member.call(snapshot=0, limit=50)
        for number in range(4):  # Each could remove the log of those before.
            for each in range(20):
                client.ok(op="PUT", key=f"{number} {each}", value="v" * 100)
            client.ok(op="SNAPSHOT")
        rest = member.call(snapshot=first["snapshot"], offset=50)
        assert len(first["data"] + rest["data"]) == first["size"]
        name = f"{first['snapshot']:020d}.snapshot"
        assert not (tmp_path / "data" / "snapshot" / name).exists()
        client.ok(op="PUT", key="last", value=1)
        member.start = Loaded(lsn=first["lsn"])
        member.lineage = Lineage(first["store"], tuple(Term(*term) for term in first["terms"]))
        member.pull_until(last_lsn(server))


def test_a_snapshot_that_nobody_asks_for_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "KEPT_SECONDS", 0.05)
    with ServerInProcess(tmp_path, durability=SMALL) as server, Member(server.endpoint) as member:
        rev = member.call(snapshot=0, limit=50)["snapshot"]
        opened = server.server._source
        assert opened is not None
        eventually(lambda: not opened._open, "it is closed")
        reply = member.call(snapshot=rev, offset=50)
        assert (reply["code"], reply["oldest"]) == ("COMPACTED", 1)


def test_not_more_snapshots_are_open_than_allowed(tmp_path: Path) -> None:
    with (
        ServerInProcess(tmp_path, durability=SMALL) as server,
        Raw(server.endpoint) as client,
        Member(server.endpoint) as member,
    ):
        revisions = []
        for number in range(source.MOST_OPEN + 1):
            client.ok(op="PUT", key="a", value=number)
            client.ok(op="SNAPSHOT")
            revisions.append(member.call(snapshot=0, limit=50)["snapshot"])
        codes = [member.call(snapshot=rev, offset=0).get("code") for rev in revisions]
        assert codes == ["COMPACTED"] + [None] * source.MOST_OPEN


# --- Who may, and the end


def test_the_right_to_replicate(tmp_path: Path) -> None:
    users: dict[str, Any] = {"ann": {"write": [""]}, "bob": {"admin": ["replicate"]}}
    with (
        Secured(tmp_path, users) as server,
        zmq.Context() as context,
        server.client(context, "ann") as ann,
        server.client(context, "bob") as bob,
    ):
        assert ann.call(op="REPLICATE", member="m")["code"] == "DENIED"
        assert bob.ok(op="REPLICATE", member="m")["commits"]
        told = bob.ok(op="INFO")["replication"]
        assert sorted(told) == ["leader", "role", "store", "term"]
        assert told == ann.ok(op="INFO")["replication"]


def test_who_waits_at_the_end_is_told(tmp_path: Path) -> None:
    with (
        ServerInProcess(tmp_path) as server,
        Raw(server.endpoint) as client,
        Member(server.endpoint) as member,
    ):
        member.pull_until(1)
        for _ in range(3):
            member.ask(wait=10_000)
        eventually(lambda: len(server.server._parking.parked) == 3, "all are parked")
        client.ok(op="END")
        assert [member.receive()["code"] for _ in range(3)] == ["SHUTTING_DOWN"] * 3
        assert server.wait()
    assert "zkv-parking" not in {thread.name for thread in threading.enumerate()}
