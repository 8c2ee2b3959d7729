"""The garbage collector: it has nothing to do with requests, and does not look at the store."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from pathlib import Path

import pytest
import zmq

from tests.conftest import Connect
from tests.support import FREE_PORT, Message, ServerInProcess, eventually, new_garbage, pack, unpack
from zkv import collector
from zkv.activity import Activity

PUT: Message = {"op": "PUT", "key": "k", "value": "text"}
REQUESTS: dict[str, list[Message]] = {
    "writes": [PUT, {"op": "DELETE", "key": "k"}, {"op": "MPUT", "items": {"a": 1}}],
    "reads": [PUT, {"op": "GET", "key": "k"}, {"op": "SCAN"}, {"op": "CHANGES", "since": 0}],
    "refusals": [
        {"op": "GET", "key": "nowhere"},
        {"op": "PUT", "key": "k"},
        {"op": "INCR", "key": "k"},
        {"op": "PUT", "key": "k", "value": 1, "if_rev": 9},
        {"op": "TXN", "ops": [PUT, {"op": "INCR", "key": "k"}]},
    ],
    "exactly once": [PUT | {"session": "s", "seq": 1}] * 2,
    "others": [{"op": "SNAPSHOT"}, {"op": "INFO"}],
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_requests_leave_nothing_for_the_collector(
    tmp_path: Path, connect: Connect, kind: str
) -> None:
    """So their memory is free at once, however seldom it runs."""
    with ServerInProcess(tmp_path / "data", server={"feed": FREE_PORT}) as node:
        pipeline = connect(node.endpoint, zmq.DEALER)
        with new_garbage() as found:
            for _ in range(50):
                for fields in REQUESTS[kind]:
                    pipeline.send(pack(fields))
            for _ in range(50 * len(REQUESTS[kind])):
                unpack(pipeline.receive())
            # The last replies are let go of when the worker comes to its next batch.
            eventually(lambda: pipeline.call(op="PING")["ok"], "that workers are done")

            assert not Counter(type(each).__name__ for each in found() if _is_ours(each))


def _is_ours(each: object) -> bool:
    return type(each).__module__.startswith("zkv")


@pytest.mark.usefixtures("road")
def test_a_server_that_has_ended_is_garbage_with_its_store(
    tmp_path: Path, connect: Connect
) -> None:
    """A program may start many, one after the other."""
    with ServerInProcess(tmp_path / "data", server={"feed": FREE_PORT}) as node:
        client = connect(node.endpoint)
        for requests in REQUESTS.values():
            for fields in requests:
                client.call(**fields)
        ended = weakref.ref(node.server)
    del node
    gc.collect()
    assert ended() is None


def test_what_stays_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "ROUND_SECONDS", 0.001)
    usual = gc.get_threshold()
    with collector.collecting(Activity("collector")):
        kept: list[list[object]] = [[] for _ in range(1_000)]
        eventually(lambda: _is_frozen(kept), "that it is frozen")
        assert gc.get_threshold() != usual

    assert gc.get_threshold() == usual
    assert gc.get_freeze_count() == 0
    assert not _is_frozen(kept)


def _is_frozen(kept: object) -> bool:
    return not any(kept is each for each in gc.get_objects())


def test_memory_that_lies_between_pieces_in_use_is_returned() -> None:
    """As after a burst of large requests, of which some are kept."""
    trimmer = collector.Trimmer()
    before = collector.resident_bytes()
    assert before is not None
    pieces = [bytearray(b"x" * 100_000) for _ in range(1_500)]
    trimmer.look()
    del pieces[::2], pieces[: len(pieces) - 20]
    kept = collector.resident_bytes()
    assert kept is not None
    trimmer.look()

    after = collector.resident_bytes()
    assert after is not None
    assert after - before < 32 * 2**20
    assert pieces
