"""What needs no socket: sessions, retries, and how a pipeline is packed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import ServerInProcess
from zkv import (
    AuthenticationError,
    BusyError,
    Client,
    ClientError,
    ConflictError,
    NoReplyError,
    RetryPolicy,
    StaleSeqError,
    UnavailableError,
)
from zkv.client.follower import RESET, ChangeBatch
from zkv.client.mirror_view import MirrorView
from zkv.client.operations import Change
from zkv.client.retry import KEY_TRIES, Attempts, Trouble
from zkv.client.session import WINDOW, WriteSession, WriteSessions

# --- What a mirror shows


class Shown(MirrorView):
    """What a mirror shows, without what follows the changes."""

    def __init__(self) -> None:
        super().__init__()
        self.settling = False
        self._follower = cast("Any", self)

    def take(self, *changes: Change, rev: int, settling: bool = False) -> dict[str, Any]:
        """Have it take changes; what it shows then."""
        self.settling = settling
        self._apply(ChangeBatch([*changes], rev))
        return self.copy()


def test_a_mirror_shows_no_store_half_read() -> None:
    mirror, reset = Shown(), Change(1, RESET, "", None)
    before = mirror.take(reset, Change(1, "PUT", "a", 1), rev=1)
    assert before == {"a": 1}
    assert mirror.take(reset, Change(3, "PUT", "b", 2), rev=0, settling=True) == before
    assert mirror.take(Change(4, "PUT", "c", 3), rev=3, settling=True) == before
    assert mirror.rev == 1
    assert mirror.take(Change(5, "DELETE", "b", None), rev=5) == {"c": 3}
    assert mirror.rev == 5


# --- Sessions


def test_numbers_of_a_session_count_up() -> None:
    sessions = WriteSessions(iter(["a", "b"]).__next__)
    taken = [sessions.take() for _ in range(3)]

    assert [(session.name, seq) for session, seq in taken] == [("a", 1), ("a", 2), ("a", 3)]


def test_a_write_that_lags_does_not_stop_others() -> None:
    sessions = WriteSessions()
    laggard = sessions.take()
    for _ in range(10 * WINDOW):
        sessions.give_back(*sessions.take())
    assert len(sessions) == 2
    sessions.give_back(*laggard)
    for _ in range(10 * WINDOW):
        sessions.give_back(*sessions.take())

    assert len(sessions) == 2


@settings(max_examples=20)
@given(seed=st.integers(), most=st.integers(1, 300))
def test_what_is_in_flight_stays_inside_its_window(seed: int, most: int) -> None:
    chance, names = random.Random(seed), itertools.count()
    sessions = WriteSessions(lambda: str(next(names)))
    in_flight: list[tuple[WriteSession, int]] = []
    newest: dict[str, int] = {}
    for _ in range(2_000):
        if len(in_flight) < most and chance.random() < 0.6:
            session, seq = sessions.take()
            assert seq == newest.get(session.name, 0) + 1
            newest[session.name] = seq
            in_flight.append((session, seq))
        elif in_flight:  # The oldest are in no hurry.
            at = min(int(chance.expovariate(0.1)), len(in_flight) - 1)
            sessions.give_back(*in_flight.pop(len(in_flight) - 1 - at))
        assert all(newest[session.name] - seq < WINDOW for session, seq in in_flight)
    assert len(sessions) <= most + 1


# --- Retries


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


REFUSAL = {"ok": False, "code": "BUSY", "message": "later", "retry": True, "applied": False}


def attempts_at(op: str, clock: Clock, *, repeatable: bool = True, timeout: float = 10) -> Attempts:
    return Attempts(RetryPolicy(now=clock, jitter=lambda: 1.0), op, repeatable, timeout)


def test_patience_grows_up_to_the_deadline() -> None:
    clock = Clock()
    attempts = attempts_at("PUT", clock)
    for expected in (1, 2, 4):
        assert attempts.patience() == expected
        clock.now += expected
        attempts.no_reply("tcp://here", connected=True)
    assert attempts.patience() == 3
    clock.now += 3
    with pytest.raises(NoReplyError) as caught:
        attempts.no_reply("tcp://here", connected=True)

    assert type(caught.value) is NoReplyError
    assert caught.value.applied is None


def test_without_any_connection_nothing_was_sent() -> None:
    clock = Clock()
    attempts = attempts_at("PUT", clock)
    attempts.no_reply("tcp://here", connected=False)
    clock.now += 11
    with pytest.raises(UnavailableError, match="no connection to tcp://here within 11 s") as caught:
        attempts.no_reply("tcp://here", connected=False)

    assert caught.value.applied is False


def test_one_connection_is_enough_for_doubt() -> None:
    clock = Clock()
    attempts = attempts_at("PUT", clock)
    attempts.no_reply("tcp://here", connected=True)
    clock.now += 11
    with pytest.raises(NoReplyError) as caught:
        attempts.no_reply("tcp://here", connected=False)

    assert caught.value.applied is None


def test_pauses_grow_to_their_limit_with_jitter() -> None:
    clock = Clock()
    policy = RetryPolicy(now=clock, jitter=iter([1.0, 0.0] * 10).__next__)
    attempts = Attempts(policy, "PUT", True, 60)

    assert [attempts.refused(REFUSAL) for _ in range(8)] == pytest.approx(
        [0.02, 0.02, 0.08, 0.08, 0.32, 0.32, 1.0, 0.5]
    )


def test_a_pause_beyond_the_deadline_is_not_begun() -> None:
    clock = Clock()
    attempts = attempts_at("PUT", clock, timeout=0.05)
    assert attempts.refused(REFUSAL) == pytest.approx(0.02)
    clock.now += 0.02
    with pytest.raises(BusyError):
        attempts.refused(REFUSAL)


def test_the_server_may_ask_for_a_longer_pause() -> None:
    clock = Clock()
    attempts = attempts_at("PUT", clock, timeout=1)
    assert attempts.refused(REFUSAL | {"retry_after": 400}) == 0.4
    clock.now += 0.4
    assert attempts.refused(REFUSAL | {"retry_after": 1}) == pytest.approx(0.04)
    for odd in ("400", -1, None):
        assert attempts.refused(REFUSAL | {"retry_after": odd}) < 0.5
    with pytest.raises(BusyError) as caught:
        attempts.refused(REFUSAL | {"retry_after": 700})
    assert caught.value.details == {"retry_after": 700}


# --- Without a connection

HERE = "tcp://here"
CLOSED, LOST, REFUSED = 1, 2, 3
"""Ways in which a connection fails."""
WRONG_KEY = Trouble("another key", is_lasting=True, is_refusal=True, tries=KEY_TRIES)
NOBODY = Trouble("nobody there")


def fail(
    attempts: Attempts, clock: Clock, failure: int, trouble: Trouble, times: int = 1
) -> list[float]:
    """Let attempts to connect fail; the pauses after them."""
    pauses = []
    for _ in range(times):
        told = trouble if attempts.asks_why(HERE, failure) else None
        pauses.append(attempts.no_connection(HERE, told, 1, True))
        clock.now += pauses[-1]
    return pauses


def test_a_wrong_key_is_certain_after_some_tries_within_a_second() -> None:
    clock = Clock()
    began = clock.now
    attempts = attempts_at("PUT", clock)
    pauses = fail(attempts, clock, CLOSED, WRONG_KEY, KEY_TRIES - 1)
    assert pauses == sorted(pauses)
    assert pauses[0] == 0
    assert clock.now - began < 0.9
    with pytest.raises(AuthenticationError, match="no connection to tcp://here: another key"):
        fail(attempts, clock, CLOSED, WRONG_KEY)


def test_only_tries_in_a_row_that_fail_alike_are_counted() -> None:
    """A server that ends closes connections, and then nobody is there."""
    clock = Clock()
    attempts = attempts_at("PUT", clock)
    for _ in range(3):
        fail(attempts, clock, CLOSED, WRONG_KEY, KEY_TRIES - 1)
        assert fail(attempts, clock, LOST, NOBODY) == [0.2]
    clock.now += 10
    with pytest.raises(UnavailableError, match="nobody there") as caught:
        fail(attempts, clock, LOST, NOBODY)
    assert type(caught.value) is UnavailableError


def test_a_try_without_a_result_changes_nothing() -> None:
    clock = Clock()
    attempts = attempts_at("PUT", clock)
    fail(attempts, clock, CLOSED, WRONG_KEY, KEY_TRIES - 2)
    fail(attempts, clock, 0, NOBODY)
    with pytest.raises(AuthenticationError):
        fail(attempts, clock, CLOSED, WRONG_KEY)


def test_a_refusal_is_certain_at_once() -> None:
    clock = Clock()
    attempts = attempts_at("PUT", clock)
    fail(attempts, clock, CLOSED, WRONG_KEY)
    with pytest.raises(AuthenticationError, match="unknown"):
        fail(attempts, clock, REFUSED, Trouble("unknown", is_lasting=True, is_refusal=True))


def test_a_refusal_after_a_lost_reply_leaves_the_doubt() -> None:
    clock = Clock()
    attempts = attempts_at("PUT", clock)
    attempts.no_reply(HERE, connected=True)
    with pytest.raises(NoReplyError, match="no reply from tcp://here: unknown") as caught:
        fail(attempts, clock, REFUSED, Trouble("unknown", is_lasting=True, is_refusal=True))
    assert type(caught.value) is NoReplyError
    assert caught.value.applied is None


def test_a_write_is_not_repeated_for_longer_than_its_session_lasts() -> None:
    clock = Clock()
    attempts = attempts_at("PUT", clock, timeout=80_000)
    clock.now += 1_799
    attempts.no_reply("tcp://here", connected=True)
    clock.now += 1
    with pytest.raises(NoReplyError):
        attempts.no_reply("tcp://here", connected=True)


def test_what_is_sent_once_is_waited_for_all_the_time() -> None:
    clock = Clock()
    attempts = attempts_at("END", clock, repeatable=False)
    assert attempts.patience() == 10
    with pytest.raises(BusyError):
        attempts.refused(REFUSAL)


@pytest.mark.parametrize(
    ("code", "error", "applied"),
    [("STALE_SEQ", StaleSeqError, None), ("CONFLICT", ConflictError, False)],
)
def test_which_refusals_tell_of_earlier_attempts(
    code: str, error: type[ClientError], applied: bool | None
) -> None:
    clock = Clock()
    attempts = attempts_at("PUT", clock)
    attempts.no_reply("tcp://here", connected=True)
    with pytest.raises(error) as caught:
        attempts.refused({**REFUSAL, "code": code, "retry": False})

    assert caught.value.applied is applied


# --- Pipelines: whatever is packed, the results are those of one op after the other

KEYS = st.sampled_from(["a", "b", "c", "d"])
REVS = st.none() | st.integers(0, 3)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("get"), KEYS).map(lambda step: (*step, {})),
        st.tuples(st.just("put"), KEYS, st.integers(0, 9)).map(lambda step: (*step, {})),
        st.tuples(st.just("put"), KEYS, st.just("text"), st.just({"create": True})),
        st.tuples(st.just("delete"), KEYS).map(lambda step: (*step, {})),
        st.tuples(st.just("delete"), KEYS, st.just({"if_rev": 1})),
        st.tuples(st.just("incr"), KEYS).map(lambda step: (*step, {})),
        st.tuples(st.just("touch"), KEYS, st.just(None)).map(lambda step: (*step, {})),
        st.tuples(st.just("put"), st.just(""), st.just(0)).map(lambda step: (*step, {})),
    ),
    max_size=60,
)
MANY_KEYS = st.sampled_from([f"{number:02}" for number in range(30)])
OF_ONE_KIND: Any = st.lists(
    st.tuples(st.just("put"), MANY_KEYS, st.integers(0, 9)).map(lambda step: (*step, {})),
    min_size=20,
    max_size=30,
) | st.lists(
    st.tuples(st.just("get"), MANY_KEYS).map(lambda step: (*step, {})), min_size=20, max_size=30
)
RUNS = st.lists(STEPS | OF_ONE_KIND, max_size=4)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client whose server takes only small batches."""
    quick = {"fsync": "never", "snapshot_interval": 3600.0}
    with (
        ServerInProcess(
            tmp_path_factory.mktemp("pure"), durability=quick, limits={"max_batch": 25}
        ) as server,
        Client(server.endpoint) as client,
    ):
        client.put("first", 0)  # Revision 1, which no entry of a test then has by chance.
        yield client


numbers = itertools.count()


def outcome(name: str, result: Any) -> Any:
    """What may be compared: revisions differ, since messages share them."""
    if isinstance(result, ClientError):
        return type(result)
    return "rev" if name in {"put", "touch"} else result


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(runs=RUNS)
def test_a_pipeline_gives_what_single_ops_give(store: Client, runs: list[Any]) -> None:
    steps = list(itertools.chain(*runs))
    packed, single = (store.namespace(f"{next(numbers)}/") for _ in range(2))
    pipe = packed.pipeline()
    expected = []
    for name, *arguments, options in steps:
        getattr(pipe, name)(*arguments, **options)
        try:
            result = getattr(single, name)(*arguments, **options)
        except ClientError as error:
            result = error
        expected.append(outcome(name, result))
    results = pipe.execute(return_exceptions=True)

    assert [outcome(step[0], each) for step, each in zip(steps, results, strict=True)] == expected
    assert packed == single


@pytest.mark.parametrize(
    ("ops", "messages"),
    [
        (["get"] * 100, 1),
        (["put"] * 100, 1),
        (["incr"] * 100, 1),
        (["get", "put", "incr", "delete"] * 25, 1),
        (["put"] * 50 + ["get"] * 50, 2),
        (["get"] * 2_500, 3),
        (["incr"] * 59 + ["fail"] + ["incr"] * 60, 4),  # All, before, the one, the rest.
    ],
)
def test_a_pipeline_takes_few_messages(
    near: ServerInProcess, ops: list[str], messages: int
) -> None:
    with Client(near.endpoint) as kv:
        kv.put_many(dict.fromkeys([f"{number}" for number in range(100)], 0))
        before = len(near.records)
        pipe = kv.pipeline()
        for number, op in enumerate(ops):
            match op:
                case "put":
                    pipe.put(f"{number % 100}", number)
                case "fail":
                    pipe.touch("nowhere", 1)
                case _:
                    getattr(pipe, op)(f"{number % 100}")
        pipe.execute(return_exceptions=True)
        kv.ping()

        assert len(near.records) - before - 1 == messages
