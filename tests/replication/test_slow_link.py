"""A link that carries so little that no answer of the usual size comes in the usual time.

Where the link is real, all times of the asker are a tenth of the usual ones, and so it is ten times
as fast as one on which those would matter.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.client.proxy import Proxy
from tests.conftest import Connect
from tests.replication.archiving import ArchiverThread, await_revision, newest
from tests.replication.following import catch_up, standby_in_process, state_of
from tests.support import Raw, ServerInProcess
from zkv.broker import upstream
from zkv.broker.upstream import Upstream
from zkv.durability.files import Files
from zkv.replication import stream
from zkv.replication.copying import copy_from
from zkv.replication.stream import Asker, StreamTimeoutError

RATE: Final = 500_000
"""Bytes a second."""
SMALL: Final = 20_000
LARGE: Final = 900_000
"""Bytes of one value: the link takes longer for it than the asker waits at first."""


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "REPLY_SECONDS", 0.5)
    monkeypatch.setattr(stream, "MOST_REPLY_SECONDS", 30.0)
    monkeypatch.setattr(upstream, "HEARTBEAT_MS", 200)


@pytest.fixture
def primary(tmp_path: Path, _quick: None) -> Iterator[ServerInProcess]:
    with ServerInProcess(tmp_path / "primary", durability={"fsync": "never"}) as server:
        yield server


@pytest.fixture
def link(primary: ServerInProcess) -> Iterator[Proxy]:
    with Proxy(primary.endpoint) as proxy:
        proxy.slow(RATE)
        yield proxy


def fill(client: Raw, prefix: str) -> None:
    """Write 1.3 MB, most of it in one value."""
    for number in range(20):
        client.ok(op="PUT", key=f"{prefix}{number}", value="x" * SMALL)
    client.ok(op="PUT", key=f"{prefix}large", value="x" * LARGE, durable=True)


def test_a_standby(primary: ServerInProcess, link: Proxy, tmp_path: Path, connect: Connect) -> None:
    """It gets the snapshot, and then the log, both with a value larger than comes in time."""
    one = connect(primary.endpoint)
    fill(one, "a")
    with standby_in_process(tmp_path / "standby", link.endpoint) as standby:
        fill(one, "b")
        catch_up(connect(standby.endpoint), one)
    assert state_of(tmp_path / "standby") == state_of(tmp_path / "primary")


def test_a_copy(primary: ServerInProcess, link: Proxy, tmp_path: Path, connect: Connect) -> None:
    one = connect(primary.endpoint)
    fill(one, "a")
    one.ok(op="SNAPSHOT")
    fill(one, "b")
    with contextlib.closing(Upstream([link.endpoint])) as source:
        copy_from(Files(), source, "copy", tmp_path / "copy")
    assert state_of(tmp_path / "copy").entries == state_of(tmp_path / "primary").entries


def test_an_archive(
    primary: ServerInProcess, link: Proxy, tmp_path: Path, connect: Connect
) -> None:
    one = connect(primary.endpoint)
    fill(one, "a")
    with ArchiverThread(link.endpoint, tmp_path / "archive"):
        fill(one, "b")
        rev = one.ok(op="INFO")["rev"]
        await_revision(tmp_path / "archive", rev)
    assert state_of(newest(tmp_path / "archive")).entries == state_of(tmp_path / "primary").entries


class Link:
    """A link to a server, with a clock of its own.

    Args:
        rate: bytes a second.
        least: bytes that an answer has at least, as one large commit.
        dead: nobody is there.
    """

    def __init__(self, rate: float, least: int = 0, dead: bool = False) -> None:
        self.rate = rate
        self.least = least
        self.dead = dead
        self.limits: list[int] = []
        """Of the requests for parts."""
        self.waits: list[float] = []
        """Seconds that each request was waited for."""
        self._now = 0.0

    def monotonic(self) -> float:
        return self._now

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        size = 0
        if request["op"] != "PING":
            size = max(self.least, request["limit"])
            self.limits.append(request["limit"])
        needed = math.inf if self.dead else size / self.rate
        self.waits.append(min(needed, seconds))
        self._now += self.waits[-1]
        if needed > seconds:
            raise StreamTimeoutError("nothing")
        return {"data": bytes(size)}


@pytest.fixture
def over(monkeypatch: pytest.MonkeyPatch) -> Callable[[Link], Asker]:
    """Returns an asker over a link."""

    def make(link: Link) -> Asker:
        monkeypatch.setattr(stream, "time", link)
        return Asker(link.ask)

    return make


def next_part(asker: Asker, **options: Any) -> int:
    reply = asker.part({"op": "REPLICATE"}, lambda reply: len(reply["data"]), **options)
    return len(reply["data"])


def test_a_part_is_as_large_as_the_link_carries(over: Callable[[Link], Asker]) -> None:
    link = Link(1e9)
    asker = over(link)
    for _ in range(10):
        next_part(asker)
    assert link.limits[-1] == stream.PART_BYTES
    link.rate = 64_000
    with pytest.raises(StreamTimeoutError):
        next_part(asker)
    for _ in range(10):
        next_part(asker)
    assert link.limits[-1] == pytest.approx(64_000, rel=0.01)
    assert max(link.waits[-10:]) < stream.REPLY_SECONDS  # It did not have to wait for longer.
    link.rate = 1e9
    for _ in range(10):
        next_part(asker)
    assert link.limits[-1] == stream.PART_BYTES
    link.rate = 1
    with pytest.raises(StreamTimeoutError):
        next_part(asker, insist=True)
    assert link.limits[-1] == stream.LEAST_BYTES


def test_a_large_commit_is_waited_for_longer_each_time(over: Callable[[Link], Asker]) -> None:
    link = Link(64_000, least=6_000_000)
    assert next_part(over(link), insist=True) == 6_000_000
    assert link.waits[::2] == [5, 10, 20, 40, 80, 6_000_000 / 64_000]
    assert set(link.waits[1::2]) == {0}  # The server was there each time.


def test_one_that_is_not_there_is_not_waited_for_longer(over: Callable[[Link], Asker]) -> None:
    """Else a standby would leave it late for the server that has taken its place."""
    link = Link(64_000, dead=True)
    asker = over(link)
    for _ in range(10):
        with pytest.raises(StreamTimeoutError):
            next_part(asker)
    assert set(link.waits) == {stream.REPLY_SECONDS}
    with pytest.raises(StreamTimeoutError):
        next_part(asker, insist=True)
    assert len(link.waits) == 11


def test_somebody_may_have_less_time(over: Callable[[Link], Asker]) -> None:
    """A standby that takes over: until it has all, nobody leads."""
    link = Link(64_000, least=6_000_000)
    asker = over(link)
    for _ in range(5):
        with pytest.raises(StreamTimeoutError):
            next_part(asker, most=3)
    assert link.waits == [3, 0, 3, 0, 3, 0, 3, 0, 3]


def test_there_is_an_end_to_it(over: Callable[[Link], Asker]) -> None:
    link = Link(1)
    with pytest.raises(StreamTimeoutError):
        next_part(over(link), insist=True)
    assert link.waits[-1] == stream.MOST_REPLY_SECONDS
