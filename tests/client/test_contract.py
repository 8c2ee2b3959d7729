"""What both clients promise, shown with one suite: each test runs with either."""

from __future__ import annotations

import contextlib
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from typing import Any

import msgpack
import pytest
import zmq

from tests.client.blocking import AnyClient, Kind
from tests.peer import Peer, body, reply, swallow
from tests.support import LIMIT, Raw, ServerInProcess, ServerProcess, eventually, pack
from zkv import (
    BadReplyError,
    Change,
    ClientError,
    ClosedError,
    Codec,
    CompactedError,
    ConflictError,
    Entry,
    NoReplyError,
    NotFoundError,
    ReadOnlyError,
    RefusedError,
    RetryPolicy,
    StaleSeqError,
    TooLargeError,
    UnavailableError,
    ValueType,
    WrongTypeError,
    ZkvError,
)
from zkv.client import operations
from zkv.client.errors import REFUSALS
from zkv.keyspace import store

SOON = 0.3
"""A timeout in seconds for what is never answered."""

HASTY = RetryPolicy(patience=0.05, pause=0.01)
"""Does not wait long before it asks again."""


HELLO = reply(ok=True)

NOW = datetime(2024, 2, 29, 12, 30, tzinfo=UTC)


def be_impatient(kv: AnyClient) -> None:
    """Wait no longer than SOON, now that the connection stands."""
    target: Any = getattr(kv, "_target", kv)
    target.timeout = SOON


def be_patient(kv: AnyClient) -> None:
    target: Any = getattr(kv, "_target", kv)
    target.timeout = LIMIT


# --- One key


def test_a_value_comes_back(kv: AnyClient) -> None:
    assert kv.put("k", [1, {"a": None}]) == 1
    assert kv.get("k") == [1, {"a": None}]


def test_bytes_come_back_as_bytes_and_text_as_text(kv: AnyClient) -> None:
    kv.put("b", b"\xff")
    kv.put("t", "grüße")

    assert (kv.get("b"), kv.get("t")) == (b"\xff", "grüße")


def test_an_absent_key_gives_the_default(kv: AnyClient) -> None:
    assert kv.get("k") is None
    assert kv.get("k", 7) == 7
    assert "k" not in kv


def test_none_may_be_stored(kv: AnyClient) -> None:
    kv.put("k", None)

    assert kv.get("k", 7) is None
    assert "k" in kv
    assert "k2" not in kv


def test_an_entry_tells_revision_and_time_to_live(kv: AnyClient) -> None:
    kv.put("other", 0)
    kv.put("k", "v", ttl=100)

    entry = kv.get_entry("k")

    assert entry[:3] == ("k", "v", 2)
    assert 90 < entry.ttl <= 100
    assert kv.get_entry("other") == Entry("other", 0, 1, None)


def test_an_entry_that_is_absent_is_an_error_and_a_key_error(kv: AnyClient) -> None:
    with pytest.raises(NotFoundError, match=r"NOT_FOUND: .*'k'") as caught:
        kv.get_entry("k")

    assert isinstance(caught.value, KeyError)
    assert caught.value.applied is False


def test_a_condition_holds_or_tells_the_actual_revision(kv: AnyClient) -> None:
    assert kv.put("k", 1, create=True) == 1
    with pytest.raises(ConflictError) as caught:
        kv.put("k", 2, create=True)
    assert (caught.value.key, caught.value.rev, caught.value.applied) == ("k", 1, False)
    assert kv.put("k", 2, if_rev=1) == 2
    with pytest.raises(ConflictError):
        kv.put("k", 3, if_rev=1)
    with pytest.raises(ConflictError):
        kv.delete("k", if_rev=1)

    assert kv.get("k") == 2
    assert kv.delete("k", if_rev=2) is True


def test_conditions_that_contradict_each_other_are_refused(kv: AnyClient) -> None:
    with pytest.raises(ValueError, match="create"):
        kv.put("k", 1, create=True, if_rev=3)


def test_delete_tells_whether_there_was_something(kv: AnyClient) -> None:
    kv.put("k", 1)

    assert kv.delete("k") is True
    assert kv.delete("k") is False


def test_pop_gives_the_value_and_removes_it(kv: AnyClient) -> None:
    kv.put("k", "v")

    assert kv.pop("k") == "v"
    assert kv.pop("k", 7) == 7
    with pytest.raises(NotFoundError):
        kv.pop("k")


def test_pop_of_a_value_that_the_server_would_not_remember(kv: AnyClient) -> None:
    large = b"x" * 1_500_000
    kv.put("k", large)

    assert kv.pop("k") == large
    assert kv.pop("k", None) is None


def test_setdefault_writes_only_what_is_absent(kv: AnyClient) -> None:
    assert kv.setdefault("k", 1) == 1
    assert kv.setdefault("k", 2) == 1
    assert kv.get("k") == 1


def test_incr_counts(kv: AnyClient) -> None:
    assert [kv.incr("n"), kv.incr("n", 5), kv.incr("n", -10)] == [1, 6, -4]
    kv.put("t", "text")
    with pytest.raises(WrongTypeError):
        kv.incr("t")


def test_touch_gives_another_time_to_live(kv: AnyClient) -> None:
    kv.put("k", "v", ttl=1000)
    kv.touch("k", 50)
    assert kv.get_entry("k").ttl <= 50
    kv.touch("k", None)
    assert kv.get_entry("k").ttl is None
    with pytest.raises(NotFoundError):
        kv.touch("other", 1)


# --- Many keys


def test_many_values_are_written_read_and_removed_at_once(kv: AnyClient) -> None:
    rev = kv.put_many({"a": 1, "b": None, "c": [3]})

    assert kv.get_many(["c", "a", "b", "x"]) == {"c": [3], "a": 1, "b": None}
    assert kv.get_entries(["a", "x"]) == {"a": Entry("a", 1, rev)}
    assert kv.delete_many(["a", "x", "c"]) == 2
    assert kv.count() == 1


def test_many_values_expire_together(kv: AnyClient) -> None:
    kv.put_many({"a": 1, "b": 2}, ttl=100)

    assert [kv.get_entry(key).ttl <= 100 for key in "ab"] == [True, True]


def test_a_scan_is_in_order_and_page_by_page(kv: AnyClient) -> None:
    kv.put_many({f"k{number:04}": number for number in range(2500)})
    kv.put("other", 0)

    assert [entry.value for entry in kv.scan("k")] == list(range(2500))
    assert [entry.value for entry in kv.scan("k", reverse=True)] == list(range(2499, -1, -1))
    assert [entry.value for entry in kv.scan("k", limit=1500)] == list(range(1500))
    assert [entry.value for entry in kv.scan(start="k0010", end="k0012")] == [10, 11]
    assert [entry.value for entry in kv.scan(after="k2498", limit=1)] == [2499]
    assert [*kv.scan("k000", values=False, limit=1)] == [Entry("k0000", None, 1)]
    assert [*kv.scan(limit=0)] == []
    with pytest.raises(ValueError, match="limit"):
        next(kv.scan(limit=-1))


@pytest.mark.parametrize("following", ["k", 5])
def test_a_scan_with_another_page_behind_nothing_ends(kind: Kind, following: object) -> None:
    with (
        Peer(afterwards=reply(ok=True, rev=1, items=[], next=following)) as peer,
        kind(peer.endpoint) as kv,
        pytest.raises(BadReplyError, match="SCAN"),
    ):
        list(kv.scan())


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_whose_next_page_does_not_advance_ends(kind: Kind, reverse: bool) -> None:
    there, back = ("k", "l") if reverse else ("k", "j")
    first, second = (reply(ok=True, rev=1, items=[], next=key) for key in (there, back))
    with Peer(HELLO, first, second) as peer, kind(peer.endpoint) as kv:
        kv.ping()
        with pytest.raises(BadReplyError, match="further on"):
            list(kv.scan(reverse=reverse))


@pytest.mark.parametrize("limit", [None, 4])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_goes_on_behind_pages_of_expired_keys(
    near: ServerInProcess,
    kv: AnyClient,
    monkeypatch: pytest.MonkeyPatch,
    limit: int | None,
    reverse: bool,
) -> None:
    """Many keys have expired at once, and wait for their removal: some pages are empty."""
    monkeypatch.setattr(store, "PASSED_OVER", 3)
    monkeypatch.setattr(store.Keyspace, "expire", lambda *_: LIMIT)
    monkeypatch.setattr(operations, "PAGE", 2)
    keys = [f"{number:02}" for number in range(60)]
    there = ["01", "17", "18", "40"]
    kv.put_many(dict.fromkeys(keys, 0), ttl=0.001)
    kv.put_many(dict.fromkeys(there, 1))
    eventually(lambda: "59" not in kv, "the keys expire")
    info = Raw(near.endpoint)
    page = info.ok(op="SCAN", after="18", limit=2)
    info.close()
    assert page["items"] == []
    assert page["next"] is not None

    found = [entry.key for entry in kv.scan(reverse=reverse, limit=limit)]
    assert found == sorted(there, reverse=reverse)


def test_a_scan_of_large_values_asks_for_smaller_pages(kind: Kind, tmp_path: Any) -> None:
    limits = {"max_value_bytes": 40_000, "max_reply_bytes": 100_000}
    with ServerInProcess(tmp_path, limits=limits) as server, kind(server.endpoint) as kv:
        for number in range(10):
            kv.put(f"{number}", b"x" * 30_000)

        assert [entry.key for entry in kv.scan()] == list("0123456789")
        assert [entry.key for entry in kv.scan(limit=7)] == list("0123456")


def test_a_request_larger_than_the_server_takes_is_refused_before_it_is_sent(
    kv: AnyClient,
) -> None:
    with pytest.raises(TooLargeError) as caught:
        kv.put_many({f"{number}": b"x" * 2**24 for number in range(5)})

    assert caught.value.applied is False
    assert kv.count() == 0


def test_count_counts_a_prefix(kv: AnyClient) -> None:
    kv.put_many(dict.fromkeys(["a", "ab", "b"]))

    assert (kv.count(), kv.count("a"), kv.count("x")) == (3, 2, 0)


def test_changes_tell_what_has_happened_since(kv: AnyClient) -> None:
    kv.put("a", 1)
    kv.put("b", 2)
    kv.delete("a")
    kv.incr("b")

    assert [*kv.changes(1)] == [
        Change(2, "PUT", "b", 2),
        Change(3, "DELETE", "a", None),
        Change(4, "PUT", "b", 3),
    ]
    assert [change.rev for change in kv.changes(0, "a")] == [1, 3]
    assert [*kv.changes(4)] == []


def test_changes_come_page_by_page(kv: AnyClient) -> None:
    with kv.pipeline() as pipe:
        for number in range(2500):
            pipe.put(f"k{number % 10}", number)
    for number in range(5):
        kv.put("last", number)

    assert [change.value for change in kv.changes(0)] == [*range(2500), *range(5)]
    assert [change.value for change in kv.changes(0, "last")] == [*range(5)]


def test_changes_that_are_not_kept_are_an_error(kind: Kind, tmp_path: Any) -> None:
    with ServerInProcess(tmp_path, limits={"history": 2}) as server, kind(server.endpoint) as kv:
        for number in range(5):
            kv.put("k", number)
        with pytest.raises(CompactedError) as caught:
            list(kv.changes(0))

        assert [change.rev for change in kv.changes(caught.value.oldest - 1)] == [4, 5]


def test_clear_removes_everything(kv: AnyClient) -> None:
    kv.put_many({f"{number}": number for number in range(2345)})
    kv.clear()

    assert kv.count() == 0


# --- Transactions and pipelines


def test_a_transaction_happens_as_a_whole(kv: AnyClient) -> None:
    kv.put("a", 10)
    with kv.txn() as txn:
        txn.check("a", 1)
        txn.check("b", 0)
        txn.incr("a", -3)
        txn.put("b", "new", ttl=100)
        txn.get("a")
        txn.get("x", "none")
        txn.touch("a", 50)
        txn.delete("b")

    assert txn.results == [7, 2, 7, "none", 2, True]
    assert txn.rev == 2


def test_a_transaction_with_a_failure_does_not_happen(kv: AnyClient) -> None:
    kv.put("a", 1)
    txn = kv.txn()
    txn.incr("a")
    txn.delete("x")
    with pytest.raises(NotFoundError) as caught:
        txn.commit()
    assert caught.value.details["index"] == 1
    txn = kv.txn()
    txn.check("a", 7)
    txn.incr("a")
    with pytest.raises(ConflictError):
        txn.commit()

    assert kv.get("a") == 1


@pytest.mark.parametrize("kind_of_batch", ["txn", "pipeline"])
def test_a_block_that_raises_sends_nothing(kv: AnyClient, kind_of_batch: str) -> None:
    with contextlib.suppress(ZeroDivisionError), getattr(kv, kind_of_batch)() as batch:
        batch.put("a", 1)
        raise ZeroDivisionError

    assert kv.count() == 0


def test_a_pipeline_gives_each_op_its_result(kv: AnyClient) -> None:
    kv.put("n", 5)
    with kv.pipeline() as pipe:
        pipe.get("n")
        pipe.put("a", b"1")
        pipe.get("a")
        pipe.incr("n", 2)
        pipe.delete("x")
        pipe.delete("a")
        pipe.get("a", "none")
        pipe.touch("n", 100)
        assert len(pipe) == 8

    assert pipe.results[0] == 5
    assert pipe.results[2:7] == [b"1", 7, False, True, "none"]
    assert kv.get_entry("n").rev == pipe.results[7]


ANY_VALUES = [
    None, True, -(2**63), 2**64 - 1, math.inf, "grüße", "no UTF-8: \udcff", b"\xff\x00",
    [1, [2, {}]], {"a": 1, 2: "b", b"d": [None]}, msgpack.ExtType(5, b"\x00\xff"),
    msgpack.Timestamp(-1, 5),
]  # fmt: skip


@pytest.mark.parametrize("kind_of_batch", ["pipeline", "txn"])
@pytest.mark.parametrize("value", ANY_VALUES, ids=repr)
def test_any_value_goes_through_a_batch(kv: AnyClient, kind_of_batch: str, value: Any) -> None:
    with getattr(kv, kind_of_batch)() as batch:
        batch.put("k", value)
        batch.put("with-ttl", value, ttl=100)
        batch.get("k")
        batch.get("x", value)

    assert batch.results[2:] == [value, value]
    assert type(batch.results[2]) is type(value)
    assert kv.get("with-ttl") == kv.get("k") == value


@pytest.mark.parametrize("kind_of_batch", ["pipeline", "txn"])
@pytest.mark.parametrize("value", [{1}, NOW, [NOW], 1j], ids=repr)
def test_a_batch_stores_no_type_that_cannot_come_back(
    kv: AnyClient, kind_of_batch: str, value: Any
) -> None:
    batch = getattr(kv, kind_of_batch)()
    batch.incr("n")
    batch.put("k", value)
    with pytest.raises(TypeError, match="msgpack has no type for it"), batch:
        pass

    assert kv.count() == 0


def test_ops_of_a_pipeline_fail_alone(kv: AnyClient) -> None:
    kv.put("text", "t")
    pipe = kv.pipeline()
    for number in range(40):
        pipe.incr("n")
        if number % 7 == 0:
            pipe.incr("text")
            pipe.touch("x", 1)
            pipe.put("n", 0, create=True)
    results = pipe.execute(return_exceptions=True)

    assert [each for each in results if not isinstance(each, ClientError)] == list(range(1, 41))
    assert [type(each) for each in results[1:4]] == [WrongTypeError, NotFoundError, ConflictError]
    assert sum(isinstance(each, ClientError) for each in results) == 18


def test_the_first_error_of_a_pipeline_is_raised_after_all_have_run(kv: AnyClient) -> None:
    kv.put("text", "t")
    pipe = kv.pipeline()
    pipe.touch("x", 1)
    pipe.incr("text")
    pipe.put("last", 1)
    with pytest.raises(NotFoundError):
        pipe.execute()

    assert kv.get("last") == 1
    assert pipe.results[2] == kv.get_entry("last").rev
    assert pipe.execute() == []


def test_a_pipeline_may_be_larger_than_a_message(kind: Kind, tmp_path: Any) -> None:
    limits = {"max_value_bytes": 40_000, "max_reply_bytes": 100_000, "max_batch": 10}
    with (
        ServerInProcess(tmp_path, limits=limits) as server,
        kind(server.endpoint) as kv,
        kv.pipeline() as pipe,
    ):
        for number in range(80):
            pipe.put(f"{number}", b"x" * 30_000)
        pipe.incr("n")
        for number in range(80):
            pipe.get(f"{number}")

    assert [len(value) for value in pipe.results[81:]] == [30_000] * 80


def test_one_bad_op_in_a_pipeline_is_found(kv: AnyClient) -> None:
    pipe = kv.pipeline()
    for number in range(50):
        pipe.put(f"{number}", number)
    pipe.put("", "a key must not be empty")
    pipe.put("after", 1)
    results = pipe.execute(return_exceptions=True)

    assert kv.count() == 51
    assert [index for index, each in enumerate(results) if isinstance(each, RefusedError)] == [50]


# --- Namespaces


def test_a_namespace_has_keys_of_its_own(kv: AnyClient) -> None:
    users = kv.namespace("user/")
    old = users.namespace("old/")
    kv.put("a", 0)
    users.put("a", 1)
    old.put_many({"a": 2, "b": 3})

    assert [entry.key for entry in kv.scan()] == ["a", "user/a", "user/old/a", "user/old/b"]
    assert [entry.key for entry in users.scan()] == ["a", "old/a", "old/b"]
    assert users.get_many(["a", "b", "old/b"]) == {"a": 1, "old/b": 3}
    assert old.get_entry("b").key == "b"
    assert [entry.key for entry in old.scan(after="a")] == ["b"]
    assert {change.key for change in old.changes(0)} == {"a", "b"}
    assert (kv.count(), users.count(), old.count("b")) == (4, 3, 1)
    assert "b" in old
    assert "b" not in users
    with old.pipeline() as pipe:
        pipe.get("a")
        pipe.delete("b")
    assert pipe.results == [2, True]
    with users.txn() as txn:
        txn.check("a", kv.get_entry("user/a").rev)
        txn.incr("a")
    assert old.delete_many(["a", "b"]) == 1
    users.clear()
    assert [entry.key for entry in kv.scan()] == ["a"]


# --- The server


def test_ping_and_info_tell_of_the_server(kv: AnyClient) -> None:
    kv.put("k", 1)

    assert kv.ping()["protocol"] == 1
    assert (kv.info()["rev"], kv.info()["keys"]) == (1, 1)
    assert not {"ok", "id"} & {*kv.ping(), *kv.info()}


def test_a_snapshot_tells_its_revision(kv: AnyClient) -> None:
    kv.put("k", 1)

    assert kv.snapshot() == 1
    assert kv.snapshot(timeout=LIMIT) == 1


def test_end_ends_the_server(kv: AnyClient, near: ServerInProcess) -> None:
    kv.put("k", 1)

    assert kv.end() == 1
    assert near.wait() is True


def test_call_gives_the_reply_as_it_comes(kv: AnyClient) -> None:
    assert kv.call("PUT", key="k", value=1, prev=True)["prev_rev"] == 0
    with pytest.raises(NotFoundError):
        kv.call("GET", key="x")
    assert kv.call("GET", key="k")["value"] == 1


def test_durable_writes_are_on_disk(kind: Kind, tmp_path: Any) -> None:
    with ServerInProcess(tmp_path, durability={"fsync": "never"}) as server:
        with kind(server.endpoint) as kv:
            kv.put("k", 1)
            assert kv.info()["durable_rev"] == 0
        with kind(server.endpoint, durable=True) as kv:
            kv.put("k", 1)
            assert kv.info()["durable_rev"] == 2


# --- Values of further types


@dataclass
class Point:
    x: int
    y: int


CODEC = Codec(
    ValueType(
        1,
        datetime,
        lambda time: time.isoformat().encode(),
        lambda data: datetime.fromisoformat(data.decode()),
    ),
    ValueType(
        2,
        Point,
        lambda point: bytes(msgpack.packb(astuple(point))),
        lambda data: Point(*msgpack.unpackb(data)),
    ),
)


def test_a_codec_adds_types_wherever_they_occur(kind: Kind, near: ServerInProcess) -> None:
    with kind(near.endpoint, codec=CODEC) as kv:
        value = [NOW, {"at": Point(1, 2), "ext": msgpack.ExtType(9, b"")}]
        kv.put("k", value)
        kv.put_many({"a": NOW})
        with kv.txn() as txn:
            txn.put("b", Point(3, 4))
            txn.get("b")

        assert kv.get("k") == value
        assert kv.get_many("ab") == {"a": NOW, "b": Point(3, 4)}
        assert txn.results[1] == Point(3, 4)
        assert [change.value for change in kv.changes(1)] == [NOW, Point(3, 4)]
        assert type(kv.call("GET", key="a")["value"]) is msgpack.ExtType


def test_a_type_that_cannot_come_back_is_not_stored(kv: AnyClient) -> None:
    with pytest.raises(TypeError, match="datetime"):
        kv.put("k", NOW)
    with pytest.raises(OverflowError):
        kv.put("k", 2**64)
    with pytest.raises(TypeError):
        kv.put(1, "a key is text")

    assert kv.count() == 0


@pytest.mark.parametrize("codes", [(1, 1), (-1,), (128,)])
def test_a_codec_needs_codes_in_range_and_apart(codes: tuple[int, ...]) -> None:
    types = [datetime, Point]
    with pytest.raises(ValueError, match="code"):
        Codec(*[ValueType(code, types[at], bytes, bytes) for at, code in enumerate(codes)])


# --- Errors


@pytest.mark.parametrize(("code", "error"), REFUSALS.items())
def test_every_code_has_an_error_of_its_own(
    kind: Kind, code: str, error: type[RefusedError]
) -> None:
    refusal = reply(
        ok=False, code=code, message="words", retry=False, applied=False, key="k", rev=3
    )
    with Peer(refusal) as peer, kind(peer.endpoint) as kv, pytest.raises(RefusedError) as caught:
        kv.put("k", 1)

    assert type(caught.value) is error
    assert (caught.value.code, caught.value.message) == (code, "words")
    assert (caught.value.retry, caught.value.applied) == (False, False)
    assert caught.value.details == {"key": "k", "rev": 3}


def test_a_code_of_the_future_is_a_refusal(kind: Kind) -> None:
    refusal = reply(ok=False, code="MOON", message="full", retry=False, applied=None)
    with Peer(refusal) as peer, kind(peer.endpoint) as kv, pytest.raises(RefusedError) as caught:
        kv.put("k", 1)

    assert str(caught.value) == "MOON: full"


def test_a_reply_that_lacks_something_is_bad(kind: Kind) -> None:
    with Peer(reply(ok=True)) as peer, kind(peer.endpoint) as kv, pytest.raises(BadReplyError):
        kv.put("k", 1)


@pytest.mark.parametrize("packed", [b"", b"\xc1", pack([1]), pack({"ok": 1, "id": 1})])
def test_a_reply_that_is_none_is_bad(kind: Kind, packed: bytes) -> None:
    with (
        Peer(body(packed), reply(ok=True, rev=2)) as peer,
        kind(peer.endpoint) as kv,
    ):
        with pytest.raises(BadReplyError) as caught:
            kv.put("k", 1)
        assert caught.value.applied is None
        assert kv.put("k", 1) == 2


def test_nobody_there_is_told_in_time_and_for_certain(kind: Kind, free_endpoint: str) -> None:
    with kind(free_endpoint, SOON) as kv, pytest.raises(UnavailableError) as caught:
        kv.put("k", 1)

    assert caught.value.applied is False
    assert isinstance(caught.value, (TimeoutError, NoReplyError))
    assert free_endpoint in str(caught.value)


@pytest.mark.parametrize(("op", "applied"), [("put", None), ("get", False)])
def test_no_reply_in_time_tells_whether_a_write_may_have_run(
    kind: Kind, op: str, applied: bool | None
) -> None:
    with Peer(HELLO, swallow) as peer, kind(peer.endpoint) as kv:
        kv.call("PING")
        be_impatient(kv)
        with pytest.raises(NoReplyError) as caught:
            kv.put("k", 1) if op == "put" else kv.get("k")

    assert type(caught.value) is NoReplyError
    assert caught.value.applied is applied
    assert peer.endpoint in str(caught.value)


def test_after_a_lost_reply_the_same_request_is_sent_again(kind: Kind) -> None:
    with (
        Peer(swallow, swallow, afterwards=reply(ok=True, value=3, rev=9)) as peer,
        kind(peer.endpoint, retry=HASTY) as kv,
    ):
        assert kv.incr("n") == 3

    first, *repeats = peer.requests
    assert len(repeats) >= 2
    assert all(repeat == first for repeat in repeats)
    assert (len(first["session"]), first["seq"]) == (32, 1)


def test_writes_of_a_session_are_numbered(kind: Kind) -> None:
    answer = reply(ok=True, rev=1)
    with Peer(answer, answer, answer) as peer, kind(peer.endpoint) as kv:
        kv.put("a", 1)
        kv.put_many({"a": 1})
        kv.put("a", 2)

    assert [request["seq"] for request in peer.requests] == [1, 2, 3]
    assert len({request["session"] for request in peer.requests}) == 1
    assert len({request["id"] for request in peer.requests}) == 3


def test_a_read_carries_no_session(kind: Kind) -> None:
    with Peer(reply(ok=True, value=1)) as peer, kind(peer.endpoint) as kv:
        kv.get("a")

    assert peer.requests[0].keys() == {"op", "id", "key"}


@pytest.mark.parametrize("code", ["BUSY", "READ_ONLY", "SHUTTING_DOWN"])
def test_a_refusal_that_invites_it_is_tried_again(kind: Kind, code: str) -> None:
    refusal = reply(ok=False, code=code, message="later", retry=True, applied=False)
    with (
        Peer(refusal, refusal, reply(ok=True, rev=7)) as peer,
        kind(peer.endpoint, retry=RetryPolicy(patience=LIMIT)) as kv,
    ):
        assert kv.put("k", 1) == 7

    assert [request["seq"] for request in peer.requests] == [1, 1, 1]


def test_a_refusal_that_lasts_is_told_at_the_end(kind: Kind) -> None:
    refusal = reply(ok=False, code="READ_ONLY", message="full", retry=True, applied=False)
    slow = RetryPolicy(pause=2 * LIMIT, longest_pause=2 * LIMIT)
    with (
        Peer(refusal) as peer,
        kind(peer.endpoint, retry=slow) as kv,
        pytest.raises(ReadOnlyError) as caught,
    ):
        kv.put("k", 1)

    assert caught.value.applied is False


def test_a_refusal_after_a_lost_reply_does_not_vouch_for_the_first_attempt(kind: Kind) -> None:
    refusal = reply(ok=False, code="STALE_SEQ", message="old", retry=False, applied=False)
    with (
        Peer(swallow, afterwards=refusal) as peer,
        kind(peer.endpoint, retry=HASTY) as kv,
        pytest.raises(StaleSeqError) as caught,
    ):
        kv.put("k", 1)

    assert caught.value.applied is None


def test_a_conflict_after_a_lost_reply_is_certain(kind: Kind) -> None:
    refusal = reply(
        ok=False, code="CONFLICT", message="no", retry=False, applied=False, key="k", rev=3
    )
    with (
        Peer(swallow, afterwards=refusal) as peer,
        kind(peer.endpoint, retry=HASTY) as kv,
        pytest.raises(ConflictError) as caught,
    ):
        kv.put("k", 1, if_rev=2)

    assert caught.value.applied is False


@pytest.mark.parametrize("op", ["call", "end", "snapshot"])
def test_what_must_not_be_repeated_is_sent_once(kind: Kind, op: str) -> None:
    with Peer(HELLO, swallow, HELLO) as peer, kind(peer.endpoint, retry=HASTY) as kv:
        kv.call("PING")
        be_impatient(kv)
        with pytest.raises(NoReplyError):
            kv.call("PUT", key="k", value=1) if op == "call" else getattr(kv, op)()
        be_patient(kv)
        kv.call("PING")

    assert [request["op"] for request in peer.requests][2] == "PING"


def test_another_endpoint_is_tried_when_one_is_silent(
    kind: Kind, near: ServerInProcess, free_endpoint: str
) -> None:
    with kind([free_endpoint, near.endpoint], retry=HASTY) as kv:
        kv.put("k", 1)

        assert kv.endpoint == near.endpoint
        assert kv.get("k") == 1


def test_a_request_waits_for_a_server_that_starts(
    kind: Kind, free_endpoint: str, tmp_path: Any
) -> None:
    process = ServerProcess(tmp_path, "--endpoint", free_endpoint)
    with kind(free_endpoint) as kv, ThreadPoolExecutor() as pool:
        waiting = pool.submit(kv.put, "k", 1)
        with process:
            assert waiting.result(LIMIT) == 1


def test_a_client_survives_a_restart_of_the_server(
    kind: Kind, free_endpoint: str, tmp_path: Any
) -> None:
    process = ServerProcess(tmp_path, "--endpoint", free_endpoint)
    with process as server, kind(server.endpoint) as kv:
        kv.put("k", "v")
        server.stop()
        server.start()

        assert kv.get("k") == "v"
        assert kv.put("k", "w") == 2


def test_a_closed_client_refuses_requests(kind: Kind, near: ServerInProcess) -> None:
    with kind(near.endpoint) as kv:
        kv.put("k", 1)
    with pytest.raises(ClosedError) as caught:
        kv.put("k", 1)

    assert caught.value.applied is False


@pytest.mark.parametrize("endpoint", ["", "nonsense", "tcp://127.0.0.1", "http://127.0.0.1:1", []])
def test_a_malformed_endpoint_is_refused_at_once(kind: Kind, endpoint: Any) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        kind(endpoint)


def test_every_endpoint_is_looked_at(kind: Kind) -> None:
    with pytest.raises(ValueError, match="nonsense"):
        kind(["tcp://127.0.0.1:1", "nonsense"])


def test_a_process_without_room_for_a_socket_is_told(kind: Kind) -> None:
    with zmq.Context() as context:
        context.set(zmq.MAX_SOCKETS, 1)
        with pytest.raises(OSError, match="no socket for"):
            kind("tcp://127.0.0.1:1", context=context)


@pytest.mark.parametrize("timeout", [0, -1, math.inf, math.nan, 86_401])
def test_a_timeout_out_of_range_is_refused(kind: Kind, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        kind("tcp://127.0.0.1:1", timeout)


@pytest.mark.parametrize(
    "error",
    [
        *[cls(code, "words", True, None, {"rev": 7}) for code, cls in REFUSALS.items()],
        NoReplyError("none", None),
        UnavailableError("nobody", False),
        BadReplyError("bad", False),
        ClosedError("closed", None),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_are_of_one_kind_and_travel_between_processes(error: ClientError) -> None:
    copy = pickle.loads(pickle.dumps(error))

    assert isinstance(copy, ZkvError)
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
