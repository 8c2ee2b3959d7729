"""The half of `watch` that has no I/O, against a model of a server, with everything that may fail.

A store is written to; its feed loses, repeats and delays what it likes; CHANGES forgets what is
old; the store may go back to what it was. Whatever happens, what is told must lead to the store's
state, and where nothing was forgotten it must be the store's changes, each once and in order.
"""

from __future__ import annotations

import random
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import pack
from zkv.client import Change, Codec
from zkv.client.follower import (
    CHECK_SECONDS,
    HEARTBEAT_TOPIC,
    RESET,
    SILENCE_SECONDS,
    ChangeBatch,
    Follower,
    feed_endpoint,
)
from zkv.client.messages import refusal
from zkv.client.operations import FeedInfo
from zkv.client.standing import Standing, StoreTerm

KEYS: Final = ["a/1", "a/2", "a/3", "b/1", "b/2"]

Commit = list[Change]


class Store:
    """A server of a few keys, and what its feed has said."""

    def __init__(self, chance: random.Random, kept: int) -> None:
        self.chance = chance
        self.kept = kept
        self.rev = 0
        self.entries: dict[str, tuple[int, Any]] = {}
        self.commits: list[Commit] = []  # All of them; `kept` are told by CHANGES.
        self.feed: list[list[bytes]] = []

    def write(self) -> None:
        """Commit one change, or some together, and publish them."""
        self.rev += 1
        commit = []
        for key in self.chance.sample(KEYS, self.chance.choice([1, 1, 1, 2, 3])):
            if key in self.entries and self.chance.random() < 0.3:
                commit.append(Change(self.rev, self.chance.choice(["DELETE", "EXPIRE"]), key, None))
                del self.entries[key]
            else:
                op = "TOUCH" if key in self.entries and self.chance.random() < 0.2 else "PUT"
                value = self.entries[key][1] if op == "TOUCH" else self.rev
                commit.append(Change(self.rev, op, key, value))
                self.entries[key] = self.rev, value
        self.commits.append(commit)
        for part, change in enumerate(commit, 1):
            body = {**change._asdict(), "part": part, "parts": len(commit)}
            self.feed.append([change.key.encode(), pack(body)])

    def heartbeat(self) -> None:
        self.feed.append([HEARTBEAT_TOPIC, pack({"rev": self.rev})])

    def go_back(self, commits: int) -> None:
        """Have the state of some commits ago, as from a backup."""
        kept = self.commits[: max(0, len(self.commits) - commits)]
        self.entries, self.commits, self.rev = {}, kept, len(kept)
        for commit in kept:
            for change in commit:
                if change.op in {"PUT", "TOUCH"}:
                    self.entries[change.key] = change.rev, change.value
                else:
                    del self.entries[change.key]

    def answer(self, op: str, fields: dict[str, Any]) -> dict[str, Any]:
        return self.scan(fields) if op == "SCAN" else self.changes(fields)

    def scan(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Pages of one or two, whatever was asked for, with writes in between."""
        after = fields.get("after") or ""
        found = sorted(k for k in self.entries if k.startswith(fields["prefix"]) and k > after)
        size = self.chance.choice([1, 2])
        items = [[key, self.entries[key][1], self.entries[key][0]] for key in found[:size]]
        following = items[-1][0] if len(found) > size else None
        return {"ok": True, "items": items, "next": following, "rev": self.rev}

    def changes(self, fields: dict[str, Any]) -> dict[str, Any]:
        since, oldest = fields["since"], max(1, self.rev - self.kept + 1)
        if since < oldest - 1:
            return {"ok": False, "code": "COMPACTED", "message": "gone", "oldest": oldest}
        commits = self.commits[since : since + self.chance.choice([1, 3, 100])]
        changes = [
            list(c) for commit in commits for c in commit if c.key.startswith(fields["prefix"])
        ]
        return {"ok": True, "changes": changes, "next": since + len(commits), "rev": self.rev}


class Told:
    """What a follower has told, and what a program makes of it."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.entries: dict[str, tuple[int, Any]] = {}
        self.resets = 0

    def take(self, batch: ChangeBatch | None) -> None:
        for change in [] if batch is None else batch.changes:
            if change.op == RESET:
                self.resets += 1
                self.entries.clear()
                continue
            self.changes.append(change)
            before, _ = self.entries.get(change.key, (0, None))
            assert change.rev > before, "a change of a key is told twice, or too late"
            if change.op in {"PUT", "TOUCH"}:
                self.entries[change.key] = change.rev, change.value
            else:
                self.entries.pop(change.key, None)


class World:
    """One follower of one store, and a clock."""

    def __init__(
        self, seed: int, prefix: str, kept: int, since: int | None, has_feed: bool
    ) -> None:
        self.chance = random.Random(seed)
        self.store = Store(self.chance, kept)
        self.now = 100.0
        self.has_feed = has_feed
        self.prefix = prefix
        self.follower = Follower("", prefix, since, Codec(), has_feed, self.now)
        self.told = Told()

    def deliver(self, loss: float) -> None:
        """Some of what the feed has said arrives, or is lost, or arrives twice."""
        for _ in range(self.chance.randrange(6)):
            if not self.store.feed:
                return
            frames = self.store.feed.pop(0)
            wanted = any(frames[0].startswith(topic) for topic in self.follower.topics)
            for _ in range(self.chance.choice([1, 1, 1, 2])):
                if self.has_feed and wanted and self.chance.random() >= loss:
                    self.told.take(self.follower.message(frames, self.now))

    def ask(self) -> bool:
        """Run the follower's request, if it has one and no connection is cut."""
        request = self.follower.request(self.now)
        if request is None:
            return False
        if self.chance.random() < 0.2:
            return True  # No reply.
        reply = self.store.answer(request.op, request.fields)
        if reply["ok"]:
            self.told.take(request.result(reply))
        else:
            self.follower.refused(refusal(request.op, reply))
        return True

    def settle(self) -> None:
        """Nothing happens any more but a heartbeat each second."""
        for _ in range(1_000):
            self.now += CHECK_SECONDS
            self.store.heartbeat()
            while self.store.feed:
                self.deliver(loss=0)
            while self.ask():
                pass
            if not self.follower.settling and self.follower.rev == self.store.rev:
                return
        raise AssertionError("it does not come to rest")

    def expected(self) -> dict[str, tuple[int, Any]]:
        return {k: e for k, e in self.store.entries.items() if k.startswith(self.prefix)}


@given(
    seed=st.integers(0, 2**32),
    prefix=st.sampled_from(["", "a/", "c/"]),
    kept=st.sampled_from([3, 10, 10_000]),
    loss=st.sampled_from([0.0, 0.1, 0.9]),
    scanned=st.booleans(),
    goes_back=st.booleans(),
    has_feed=st.booleans(),
)
@settings(max_examples=400)
def test_whatever_happens_it_comes_to_the_state_of_the_store(
    seed: int, prefix: str, kept: int, loss: float, scanned: bool, goes_back: bool, has_feed: bool
) -> None:
    world = World(seed, prefix, kept, None if scanned else 0, has_feed)
    chance, store = world.chance, world.store
    for _ in range(100):
        for _ in range(chance.randrange(4)):
            store.write()
        if chance.random() < 0.2:
            store.heartbeat()
        if goes_back and chance.random() < 0.05:
            # It is noticed unless as much is written at once: revisions do not tell stores apart.
            world.settle()
            store.go_back(chance.randrange(1, 10))
            world.settle()
        world.deliver(loss)
        if chance.random() < 0.7:
            world.ask()
        world.now += chance.random()
    world.settle()
    assert world.told.entries == world.expected()
    assert world.follower.confirmed > world.now - 3 * CHECK_SECONDS
    if not (scanned or goes_back) and kept == 10_000:
        everything = [c for commit in store.commits for c in commit if c.key.startswith(prefix)]
        assert world.told.changes == everything
        assert world.told.resets == 0


def test_a_heartbeat_older_than_what_was_told_changes_nothing() -> None:
    """CHANGES may be ahead of the feed. What it has told is neither told again nor taken back."""
    world = World(1, "", 10_000, 0, has_feed=True)
    world.settle()
    world.store.write()
    world.store.heartbeat()
    world.store.write()
    late, world.store.feed = world.store.feed, []
    world.follower.want(world.store.rev)
    while world.ask():
        pass
    told = list(world.told.changes)
    assert {change.rev for change in told} == {1, 2}

    for frames in late:
        world.told.take(world.follower.message(frames, world.now))
    world.settle()
    assert (world.told.changes, world.told.resets) == (told, 0)


def test_a_whole_feed_is_believed_without_a_question() -> None:
    world = World(1, "", 10_000, 0, has_feed=True)
    world.settle()
    for _ in range(500):
        world.store.write()
        world.store.heartbeat()
        for frames in world.store.feed:
            world.told.take(world.follower.message(frames, world.now))
        world.store.feed.clear()
        world.now += 1
        assert world.follower.request(world.now) is None
    assert world.told.entries == world.store.entries


def test_other_keys_cost_a_question_a_second_at_most() -> None:
    world = World(1, "c/", 10_000, 0, has_feed=True)
    world.settle()
    questions = 0
    for _ in range(1_000):
        world.store.write()
        world.store.heartbeat()
        frames = world.store.feed[-1]
        world.store.feed.clear()
        world.now += 0.01
        world.follower.message(frames, world.now)
        if world.follower.request(world.now) is not None:
            questions += 1
            while not world.ask() or world.follower.request(world.now) is not None:
                pass
    assert 8 <= questions <= 12


@pytest.mark.parametrize(
    "frames",
    [[], [b"a"], [b"a", b"\xc1"], [b"a", pack(7)], [b"a", pack({})], [b"a", pack({"rev": "x"})],
     [b"a", pack({"rev": 1, "part": 1, "parts": 1})], [HEARTBEAT_TOPIC, b""]],
)  # fmt: skip
def test_nonsense_on_the_feed_makes_it_ask(frames: list[bytes]) -> None:
    world = World(1, "", 10_000, 0, has_feed=True)
    world.settle()
    assert world.follower.request(world.now) is None
    assert world.follower.message(frames, world.now) is None
    assert world.follower.request(world.now) is not None


def test_silence_is_noticed() -> None:
    world = World(1, "", 10_000, 0, has_feed=True)
    world.settle()
    assert not world.follower.silent(world.now)
    assert world.follower.wait_until(world.now) <= world.now + CHECK_SECONDS
    world.now += SILENCE_SECONDS
    assert world.follower.silent(world.now)
    world.follower.joined(True, world.now)
    assert not world.follower.silent(world.now)
    assert world.follower.request(world.now) is not None


# --- Servers with copies of one store


NOW: Final = 100.0


def place(rev: int, history: StoreTerm | None) -> FeedInfo:
    return FeedInfo(rev, None, Standing(history, True, None))


def heartbeat(rev: int, history: StoreTerm | None) -> list[bytes]:
    fields = {"rev": rev} if history is None else {"rev": rev, **history._asdict()}
    return [HEARTBEAT_TOPIC, pack(fields)]


def answer(follower: Follower, rev: int, now: float = NOW) -> list[str]:
    """Answer the requests of a follower as a store without entries; returns the ops."""
    ops = []
    while (request := follower.request(now)) is not None:
        ops.append(request.op)
        following = None if request.op == "SCAN" else max(rev, request.fields["since"])
        request.result({"ok": True, "rev": rev, "changes": [], "items": [], "next": following})
    return ops


def doubts(follower: Follower) -> bool:
    return follower.doubts


def at(rev: int, history: StoreTerm | None) -> Follower:
    """A follower that has told all changes up to a revision."""
    follower = Follower("", "", rev, Codec(), True, NOW, history)
    assert answer(follower, rev) == ["CHANGES"]
    return follower


def test_another_term_is_noticed_and_begins_anew() -> None:
    """Even at a revision that has been told: in the other history it may mean something else."""
    follower = at(5, StoreTerm("s", 1))
    follower.message(heartbeat(5, StoreTerm("s", 2)), NOW)
    assert doubts(follower)
    follower.told(place(5, StoreTerm("s", 2)), NOW)
    assert not doubts(follower)
    assert answer(follower, 7) == ["SCAN", "CHANGES"]
    assert follower.rev == 7


@pytest.mark.parametrize("history", [StoreTerm("t", 1), StoreTerm("s", 1), None])
def test_any_other_history_begins_anew(history: StoreTerm | None) -> None:
    follower = at(5, StoreTerm("s", 2))
    follower.told(place(9, history), NOW)
    assert answer(follower, 9) == ["SCAN", "CHANGES"]


def test_a_store_that_gets_an_identity_stays_the_same() -> None:
    follower = at(5, None)
    follower.message(heartbeat(5, StoreTerm("s", 1)), NOW)
    assert doubts(follower)
    follower.told(place(5, StoreTerm("s", 1)), NOW)
    assert not doubts(follower)
    assert answer(follower, 5) == []


def test_a_store_that_went_back_before_it_had_copies_begins_anew() -> None:
    follower = at(5, None)
    follower.told(place(4, StoreTerm("s", 1)), NOW)
    assert answer(follower, 4) == ["SCAN", "CHANGES"]


def test_who_lags_behind_is_waited_for() -> None:
    history, later = StoreTerm("s", 1), NOW + 10
    follower = at(5, history)
    follower.message(heartbeat(3, history), later)
    assert not doubts(follower)
    assert answer(follower, 3, later) == []
    follower.joined(True, later)
    assert answer(follower, 3, later) == ["CHANGES"]
    assert doubts(follower), "it may also be another history"
    follower.told(place(3, history), later)
    assert answer(follower, 3, later) == []
    assert answer(follower, 6, later + CHECK_SECONDS) == ["CHANGES"]
    assert follower.rev == 6


def test_a_scan_that_cannot_go_on_begins_anew() -> None:
    """The server that has the rest of it lags behind the one that had its first page."""
    follower = Follower("", "", None, Codec(), True, NOW, StoreTerm("s", 1))
    page = follower.request(NOW)
    assert page is not None
    page.result({"ok": True, "items": [["a", 1, 9]], "next": "a", "rev": 9})
    rest = follower.request(NOW)
    assert rest is not None
    assert rest.fields["min_rev"] == 9
    behind = {"code": "BEHIND", "message": "at 4", "rev": 4, "retry": True, "applied": False}
    follower.refused(refusal("SCAN", behind))
    first = follower.request(NOW)
    assert first is not None
    assert "min_rev" not in first.fields
    assert first.fields.get("after") is None


@pytest.mark.parametrize(
    ("told", "endpoint", "there"),
    [
        ("tcp://127.0.0.1:5556", "tcp://10.0.0.5:5555", "tcp://127.0.0.1:5556"),
        ("tcp://0.0.0.0:5556", "tcp://10.0.0.5:5555", "tcp://10.0.0.5:5556"),
        ("tcp://[::]:5556", "tcp://[fe80::1]:5555", "tcp://[fe80::1]:5556"),
        ("tcp://0.0.0.0:5556", "ipc:///run/zkv", "tcp://0.0.0.0:5556"),
        ("ipc:///run/feed", "tcp://10.0.0.5:5555", "ipc:///run/feed"),
        (None, "tcp://10.0.0.5:5555", None),
    ],
)
def test_where_the_feed_is(told: str | None, endpoint: str, there: str | None) -> None:
    assert feed_endpoint(told, endpoint) == there
