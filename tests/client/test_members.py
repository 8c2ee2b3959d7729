"""A client with several servers that have copies of one store: to which of them it goes, and when.

The servers are scripted, so that each can be in a state that real ones reach only for a moment.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import zmq

import zkv
from tests.client.blocking import Kind
from tests.client.members import Member, Store, running
from tests.peer import Peer, reply
from tests.support import LIMIT, eventually
from zkv import (
    BehindError,
    NoReplyError,
    NotFoundError,
    NotLeaderError,
    RetryPolicy,
    UnavailableError,
)

HASTY = RetryPolicy(patience=0.2, pause=0.01, longest_pause=0.05)
SOON = 1.0
"""A timeout in seconds for what does not succeed."""


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def pair(store: Store) -> Iterator[tuple[Member, Member]]:
    """A standby, which names the primary; and the primary."""
    standby, primary = Member("standby", store), Member("primary", store)
    with running(standby, primary):
        standby.leader = [primary.endpoint]
        yield standby, primary


def both(*members: Member) -> list[str]:
    return [member.endpoint for member in members]


# --- NOT_LEADER


def test_it_goes_to_the_leader_and_stays_there(kind: Kind, pair: tuple[Member, Member]) -> None:
    standby, primary = pair
    with kind(both(*pair)) as kv:
        assert kv.put("k", 1) == 1
        assert kv.get("k") == 1
        assert kv.endpoint == primary.endpoint
    assert standby.ops == ["INFO", "PUT"]
    assert primary.ops == ["INFO", "PUT", "GET"]
    assert standby.asked("PUT") == primary.asked("PUT"), "the same session and number"


def test_a_text_with_commas_is_a_list(
    kind: Kind, pair: tuple[Member, Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    standby, primary = pair
    with kind(f"{standby.endpoint}, {primary.endpoint}") as kv:
        assert kv.put("k", 1) == 1
    monkeypatch.setenv("ZKV_ENDPOINT", ",".join(both(*pair)))
    with zkv.Client() as kv:
        assert kv["k"] == 1


def test_the_leader_that_is_named_comes_first(kind: Kind, store: Store) -> None:
    standbys = [Member("standby", store), Member("standby", store)]
    primary = Member("primary", store)
    with running(*standbys, primary), kind(both(*standbys, primary)) as kv:
        standbys[0].leader = [primary.endpoint]
        kv.put("k", 1)
        assert standbys[1].ops == []


@pytest.mark.parametrize("named", [None, [], ["nonsense"], [5], "tcp://127.0.0.1:1", True])
def test_without_a_leader_it_tries_the_next(
    kind: Kind, pair: tuple[Member, Member], named: Any
) -> None:
    pair[0].leader = named
    with kind(both(*pair)) as kv:
        assert kv.put("k", 1) == 1


def test_one_endpoint_has_nowhere_to_go(kind: Kind, pair: tuple[Member, Member]) -> None:
    standby, primary = pair
    with kind(standby.endpoint) as kv:
        asks: list[Callable[[], Any]] = [lambda: kv.put("k", 1), lambda: kv.get("k"), kv.count]
        for ask in asks:
            with pytest.raises(NotLeaderError) as caught:
                ask()
            assert caught.value.leader == [primary.endpoint]
            assert caught.value.applied is False
            copy = pickle.loads(pickle.dumps(caught.value))
            assert copy.leader == [primary.endpoint]
    assert "INFO" not in standby.ops, "who has no choice asks nothing"
    assert primary.ops == []


def test_strangers_are_not_followed(kind: Kind, store: Store) -> None:
    first, second, stranger = (Member("standby", store) for _ in range(3))
    stranger.role = "primary"
    # Its last attempt has all the time that a reply may take.
    brief = RetryPolicy(patience=0.2, pause=0.01, longest_pause=0.05, repeat_for=0.5)
    with running(first, second, stranger):
        first.leader = second.leader = [stranger.endpoint]
        with (
            kind(both(first, second), LIMIT, retry=brief) as kv,
            pytest.raises(NotLeaderError) as caught,
        ):
            kv.put("k", 1)
        assert caught.value.leader == [stranger.endpoint]
        assert stranger.ops == []
        assert len(first.asked("PUT")) > 1, "the one that leads may change"


def test_whoever_has_the_key_is_followed(kind: Kind, store: Store) -> None:
    standby, primary, impostor = (Member("primary", store) for _ in range(3))
    standby.role = "standby"
    keys = zmq.curve_keypair()
    with running(standby, primary, keys=keys), running(impostor, keys=zmq.curve_keypair()):
        standby.leader = [primary.endpoint]
        with kind(standby.endpoint, server_key=keys[0].decode()) as kv:
            assert kv.put("k", 1) == 1
            assert kv.endpoint == primary.endpoint
        standby.leader = [impostor.endpoint]
        with (
            kind(standby.endpoint, SOON, server_key=keys[0].decode(), retry=HASTY) as kv,
            pytest.raises((NotLeaderError, NoReplyError)),
        ):
            kv.put("k", 1)
        assert impostor.ops == []


def test_a_write_that_may_have_been_applied_is_repeated_under_its_session_only(
    kind: Kind, pair: tuple[Member, Member]
) -> None:
    standby, primary = pair
    standby.applied = None
    with kind(both(*pair)) as kv:
        with pytest.raises(NotLeaderError) as caught:
            kv.call("PUT", key="k", value=1)
        assert caught.value.applied is None
        assert primary.asked("PUT") == []
    with kind(both(*pair)) as kv:
        assert kv.put("k", 1) == 1
        assert standby.asked("PUT")[1:] == primary.asked("PUT")
    standby.applied = False
    with kind(both(*pair)) as kv:
        assert kv.call("PUT", key="k", value=2)["rev"] == 2


# --- Servers that fail


def test_a_write_without_a_reply_keeps_its_number(kind: Kind, store: Store) -> None:
    first, second = Member("primary", store), Member("primary", store)
    first.swallows = {"PUT"}
    with running(first, second), kind(both(first, second), retry=HASTY) as kv:
        assert kv.put("k", 1) == 1
        assert first.asked("PUT") == second.asked("PUT")
        assert len(store.commits) == 1


def test_a_write_without_session_goes_nowhere_else(kind: Kind, store: Store) -> None:
    first, second = Member("primary", store), Member("primary", store)
    first.swallows = {"PUT"}
    with running(first, second), kind(both(first, second), SOON) as kv:
        with pytest.raises(NoReplyError) as caught:
            kv.call("PUT", key="k", value=1)
        assert caught.value.applied is None
        assert second.ops == []


def test_end_ends_nobody_else(kind: Kind, store: Store, free_endpoint: str) -> None:
    first, second = Member("primary", store), Member("primary", store)
    first.swallows = {"END"}
    with running(first, second):
        with kind(both(first, second), SOON) as kv:
            for _ in range(2):
                with pytest.raises(NoReplyError):
                    kv.end()
                assert kv.endpoint == first.endpoint
        with kind([free_endpoint, second.endpoint], SOON) as kv:
            with pytest.raises(UnavailableError, match=free_endpoint):
                kv.end()
            kv.ping()
            assert second.ops == ["INFO", "PING"]
            assert kv.end() == 0


def test_it_never_goes_to_another_store(kind: Kind, store: Store) -> None:
    first, other = Member("primary", store, "blue"), Member("primary", Store(), "red")
    with running(other), ExitStack() as stack:
        stack.enter_context(running(first))
        with kind(both(first, other), SOON, retry=HASTY) as kv:
            kv.put("k", 1)
            stack.close()
            with pytest.raises(NoReplyError, match="it has the store red") as caught:
                kv.put("k", 2)
            assert "this client uses the store blue" in str(caught.value)
        assert set(other.ops) == {"INFO"}


def test_a_store_without_identity_is_another_one(kind: Kind, store: Store) -> None:
    first = Member("primary", store, "blue")
    with Peer(afterwards=reply(ok=True, rev=1)) as plain, ExitStack() as stack:
        stack.enter_context(running(first))
        with kind([first.endpoint, plain.endpoint], SOON, retry=HASTY) as kv:
            kv.put("k", 1)
            stack.close()
            with pytest.raises(NoReplyError, match="a store without identity"):
                kv.get("k")


def test_it_never_goes_back_to_a_lower_term(kind: Kind, store: Store) -> None:
    new, old = Member("primary", store, term=3), Member("primary", store, term=2)
    with running(old), ExitStack() as stack:
        stack.enter_context(running(new))
        with kind(both(new, old), SOON, retry=HASTY) as kv:
            kv.put("k", 1)
            stack.close()
            with pytest.raises(NoReplyError, match=r"it has term 2 .* has seen term 3"):
                kv.get("k")
            old.term, old.rev = 3, 1  # It has caught up.
            assert kv.get("k") == 1


def test_the_term_of_a_standby_that_is_promoted_is_noticed(kind: Kind, store: Store) -> None:
    standby, old = Member("standby", store), Member("primary", store)
    with running(old), ExitStack() as stack:
        stack.enter_context(running(standby))
        with kind(both(standby, old), SOON, retry=HASTY, read="stale") as kv:
            with pytest.raises(NotFoundError):
                kv.get_entry("k")
            standby.role, standby.term = "primary", 2
            kv.put("k", 1)
            stack.close()
            with pytest.raises(NoReplyError, match=r"it has term 1 .* has seen term 2"):
                kv.put("k", 2)


def test_a_server_that_refuses_info_is_not_used(kind: Kind, store: Store) -> None:
    ending = reply(ok=False, code="SHUTTING_DOWN", message="ending", retry=True, applied=False)
    member = Member("primary", store)
    with (
        Peer(afterwards=ending) as first,
        running(member),
        kind([first.endpoint, member.endpoint], retry=HASTY) as kv,
    ):
        assert kv.put("k", 1) == 1


# --- Reads that any server may answer


def test_stale_reads_stay_where_they_are(kind: Kind, pair: tuple[Member, Member]) -> None:
    standby, primary = pair
    with kind(both(*pair), read="stale") as kv:
        assert kv.get("k", "none") == "none"
        assert kv.get_many(["k"]) == {}
        assert kv.count() == 0
        assert list(kv.namespace("a/").scan()) == []
        assert primary.ops == []
        for op in ("GET", "MGET", "COUNT", "SCAN"):
            assert [request["stale"] for request in standby.asked(op)] == [True]
        kv.put("k", 1)
    assert "stale" not in primary.asked("PUT")[0]


def test_an_older_server_gets_no_new_field(kind: Kind, store: Store) -> None:
    member = Member("primary", store)
    member.features = []
    with running(member), kind(member.endpoint, read="stale") as kv:
        kv.put("k", 1)
        assert kv.get("k", min_rev=1) == 1
        assert member.asked("GET") == [{"op": "GET", "key": "k"}]


@pytest.mark.parametrize("read", ["newest", "", 5, None, True])
def test_read_is_checked(kind: Kind, read: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="read: 'leader' or 'stale'"):
        kind("tcp://127.0.0.1:1", read=read)


def test_reading_ones_own_write_at_a_standby(kind: Kind, pair: tuple[Member, Member]) -> None:
    standby, primary = pair
    with kind(primary.endpoint) as writer, kind(standby.endpoint, SOON, retry=HASTY) as kv:
        rev = writer.put("k", 1)
        asks: list[Callable[[], Any]] = [
            lambda: kv.get("k", min_rev=rev), lambda: kv.get_entry("k", min_rev=rev).value,
            lambda: kv.get_many(["k"], min_rev=rev)["k"], lambda: kv.count(min_rev=rev),
            lambda: kv.get_entries(["k"], min_rev=rev)["k"].rev,
            lambda: len(list(kv.scan(min_rev=rev))),
        ]  # fmt: skip
        for ask in asks:
            with pytest.raises(BehindError) as caught:
                ask()
            assert caught.value.rev == 0
        standby.rev = rev
        assert [ask() for ask in asks] == [1] * len(asks)


def test_clocks_may_differ(kind: Kind, store: Store) -> None:
    """A deadline has the server answer in time; one whose clock is ahead gets none."""
    member = Member("standby", store)
    store.commits.append(("k", 1))
    member.rev = 1
    late = reply(ok=False, code="DEADLINE", message="late", retry=False, applied=False)

    def ahead(request: dict[Any, Any]) -> Any:
        return late(request) if "deadline" in request else member.answer(request)

    with Peer(afterwards=ahead) as peer, kind(peer.endpoint, 4.0) as kv:
        assert kv.get("k", min_rev=1) == 1
        assert ["deadline" in each for each in peer.requests if each["op"] == "GET"] == [
            True,
            False,
        ]


# --- Followers


def settled(watch: Any, count: int) -> list[tuple[str, str, Any]]:
    """The next changes, without their revisions."""
    changes = [watch.next(LIMIT) for _ in range(count)]
    return [(change.op, change.key, change.value) for change in changes]


def test_a_watch_goes_on_at_the_new_leader(kind: Kind, store: Store) -> None:
    """Its store has another history, in which no revision means what it meant before."""
    old, new = Member("primary", store), Member("standby", store)
    with running(new, feeds=True), ExitStack() as stack:
        stack.enter_context(running(old, feeds=True))
        with kind(both(old, new), retry=HASTY) as kv, kv.watch(since=0) as watch:
            kv.put("a", 1)
            assert settled(watch, 1) == [("PUT", "a", 1)]
            stack.close()
            new.role, new.term = "primary", 2
            kv.put("b", 2)
            assert settled(watch, 3) == [("RESET", "", None), ("PUT", "a", 1), ("PUT", "b", 2)]
            store.commits.append(("c", 3))
            new.rev += 1
            assert settled(watch, 1) == [("PUT", "c", 3)]


def test_a_mirror_leaves_a_server_that_no_longer_leads(kind: Kind, store: Store) -> None:
    """Also if nothing else has asked that server anything since, and its feed goes on."""
    old, new = Member("primary", store), Member("standby", store)
    store.commits.append(("a", 1))
    old.rev = new.rev = 1
    with (
        running(old, new, feeds=True),
        kind(both(old, new), retry=HASTY) as kv,
        kv.mirror() as copy,
    ):
        assert dict(copy) == {"a": 1}
        old.role, new.role, new.term = "standby", "primary", 2
        old.leader = [new.endpoint]
        store.commits.append(("b", 2))
        new.rev = 2

        def is_there() -> bool:
            old.beat()
            return dict(copy) == {"a": 1, "b": 2}

        eventually(is_there, "the new leader's entries")


def test_a_watch_waits_for_a_server_that_lags_behind(kind: Kind, store: Store) -> None:
    standby = Member("standby", store)
    store.commits += [("a", 1), ("b", 2), ("c", 3)]
    standby.rev = 1
    with running(standby, feeds=True), kind(standby.endpoint) as kv, kv.watch(since=2) as watch:
        eventually(lambda: watch.next(0.05) or len(standby.asked("CHANGES")) > 1, "two requests")
        assert watch.rev == 2
        standby.rev = 3
        assert settled(watch, 1) == [("PUT", "c", 3)]


def test_pages_of_a_copy_are_of_one_history_or_newer(kind: Kind, store: Store) -> None:
    """A scan that goes on at a server that lags behind would lack what has changed meanwhile."""
    member = Member("standby", store)
    store.commits += [("a", 1), ("b", 2)]
    member.rev = 2
    with (
        running(member, feeds=True),
        kind(member.endpoint, read="stale") as kv,
        kv.mirror() as copy,
    ):
        assert dict(copy) == {"a": 1, "b": 2}
        first, second = member.asked("SCAN")
        assert "min_rev" not in first
        assert second["min_rev"] == 2
