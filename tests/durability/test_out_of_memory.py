"""A server whose memory has a limit, and is filled until it ends."""

from __future__ import annotations

import contextlib
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from tests.requests.contract_stores import DurableStore, FakeClock
from tests.support import Message, Raw, ServerProcess, eventually
from zkv.keyspace import memory

MEGABYTE = 1 << 20
FILLED = [(40, 100_000), (80, 1_000_000), (24, 50_000), (250, 5_000_000)]
"""MiB beside what the server has at first, and bytes of a value."""


def limit_memory(server: ServerProcess, more: int | None) -> None:
    """Let a server have so much more address space than now; None: all that there is."""
    limit = resource.RLIM_INFINITY
    if more is not None:
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        found = re.search(r"VmSize:\s+(\d+) kB", status)
        assert found is not None
        limit = int(found[1]) * 1024 + more
    resource.prlimit(server.process.pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def value(number: int, size: int) -> bytes:
    """One of many values that differ."""
    return number.to_bytes(4, "big") + bytes(size)


def fill(client: Raw, size: int) -> tuple[int, Message]:
    """Put entries until one is refused; their number, and the refusal."""
    for number in range(100_000):
        reply = client.call(op="PUT", key=f"k{number:06}", value=value(number, size))
        if not reply["ok"]:
            return number, reply
    raise AssertionError("its memory has no end")


def must_have(client: Raw, count: int, size: int) -> None:
    """The store has these entries, and no others."""
    assert client.ok(op="COUNT", prefix="k")["count"] == count
    for number in range(count):
        got = client.ok(op="GET", key=f"k{number:06}")["value"]
        assert got == value(number, size)


@contextlib.contextmanager
def filled(tmp_path: Path, more: int, size: int) -> Iterator[tuple[ServerProcess, Raw, int]]:
    """A server without memory for another value, and how many it has."""
    config = "[limits]\nhistory_bytes = 1_000_000\n[log]\nrequests = false\n"
    config += "[durability]\nsnapshot_interval = 3600.0\n"  # None but those that a test asks for.
    with ServerProcess(tmp_path, config=config) as server, Raw(server.endpoint) as client:
        client.ok(op="PUT", key="first", value=1)
        limit_memory(server, more * MEGABYTE)
        count, refusal = fill(client, size)
        assert count > 2
        assert (refusal["code"], refusal["message"]) == ("FULL", "out of memory")
        assert (refusal["retry"], refusal["applied"]) == (True, False)
        yield server, client, count
        assert "out of memory" in server.log()
        for text in ("Traceback", "cannot be written", "bug"):
            assert text not in server.log()


@pytest.mark.parametrize(("more", "size"), FILLED)
def test_reads_and_end_go_on_and_nothing_is_lost(tmp_path: Path, more: int, size: int) -> None:
    with filled(tmp_path, more, size) as (server, client, count):
        must_have(client, count, size)
        assert client.ok(op="INFO")["stats"]["failures"]["FULL"] >= 1
        if size < 2 * MEGABYTE:  # Else a snapshot needs more memory than is kept back.
            client.ok(op="SNAPSHOT")
            client.ok(op="END")
            assert server.wait() == 0
        else:
            server.kill()
        server.start()
        with Raw(server.endpoint) as later:
            must_have(later, count, size)
            assert later.ok(op="GET", key="first")["value"] == 1


def test_writes_are_taken_again_once_there_is_memory(tmp_path: Path) -> None:
    with filled(tmp_path, 40, 100_000) as (server, client, count):
        limit_memory(server, None)
        eventually(lambda: client.call(op="PUT", key="later", value=1)["ok"], "it is taken")
        client.ok(op="PUT", key="k000000", value=value(0, 100_000))
        must_have(client, count, 100_000)
        assert "there is memory again" in server.log()


def test_entries_can_be_removed_meanwhile(tmp_path: Path) -> None:
    """Large ones leave memory for others."""
    with filled(tmp_path, 80, 1_000_000) as (_, client, count):
        for number in range(count):
            client.ok(op="DELETE", key=f"k{number:06}")
        eventually(lambda: client.call(op="PUT", key="later", value=1)["ok"], "it is taken")


def test_a_large_reply_is_refused(tmp_path: Path) -> None:
    """And the next request is answered."""
    with filled(tmp_path, 80, 1_000_000) as (_, client, _count):
        reply = client.call(op="SCAN", prefix="k", limit=40)
        assert (reply["code"], reply["message"]) == ("FULL", "out of memory")
        client.ok(op="SCAN", prefix="k", limit=1)


def test_a_snapshot_reads_less_at_once_if_memory_is_short() -> None:
    with contextlib.closing(DurableStore(FakeClock())) as store:
        for number in range(100):
            store.put(f"k{number}", bytes(100_000))
        with mock.patch.object(memory, "is_short", lambda more=0: more > 3 * 2_000_000):
            view = store.engine.keyspace.view()
            chunks = list(view.chunks())
            view.close()
        assert sum(map(len, chunks)) == 100
        assert max(map(len, chunks)) < 20


def test_a_rollback_that_fails_ends_the_process() -> None:
    """Otherwise the store would go on with what the log does not have."""
    ended = RuntimeError("the process has ended")
    with contextlib.closing(DurableStore(FakeClock())) as store:
        store.put("k", 1)
        store.disk.full = True
        with (
            mock.patch("zkv.durability.wal.end_process", side_effect=ended) as end,
            mock.patch.object(store.engine.log, "_roll_back", side_effect=MemoryError),
            contextlib.suppress(RuntimeError),
        ):
            store.call("PUT", key="k", value=2)
        assert end.call_args.args == ("rollback",)
        store.disk.full = False
