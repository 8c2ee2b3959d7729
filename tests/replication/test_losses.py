"""What may be lost beside a standby, or two: the table in docs/second-machine.md.

What other modules show of it is named there, too. Nothing is asserted of writes that got no answer.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.client.proxy import Proxy
from tests.conftest import Connect
from tests.replication.following import (
    QUIET,
    Follower,
    applied,
    catch_up,
    fixed_ports,
    promote,
    state_of,
)
from tests.support import LIMIT, Raw, ServerInProcess, ServerProcess, eventually, halt
from zkv.durability import quorum

SYNC: Final = f"{QUIET}[replication]\nsync = 1\n"


class Writes:
    """Writes to a server, one key each, and what was answered.

    Args:
        client: of the server.
    """

    def __init__(self, client: Raw) -> None:
        self._client = client
        self.answered: list[str] = []

    def more(self, count: int = 20) -> None:
        """Write so many more, each until it is answered with success.

        On a busy machine a standby may count as lost for a moment.
        """
        for _ in range(count):
            eventually(self._one, "a write is confirmed")
            self.answered.append(self._next())

    def _next(self) -> str:
        return f"k{len(self.answered)}"

    def _one(self) -> bool:
        return bool(self._client.call(op="PUT", key=self._next(), value=1)["ok"])

    def missing(self, client: Raw) -> list[str]:
        """Return those that a server that leads does not have."""
        revs = client.ok(op="MGET", keys=self.answered)["revs"]
        return [key for key, rev in zip(self.answered, revs, strict=True) if not rev]


@pytest.fixture
def primary(tmp_path: Path, sync: int) -> Iterator[ServerProcess]:
    config = SYNC if sync else QUIET
    with ServerProcess(tmp_path / "primary", *fixed_ports(), config=config) as process:
        yield process


@contextlib.contextmanager
def standbys(directory: Path, primary: str, count: int) -> Iterator[list[Follower]]:
    """Standbys of a server, once all have the first write."""
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(Raw(primary))
        made = [
            stack.enter_context(Follower(directory / f"standby{number}", primary, config=QUIET))
            for number in range(count)
        ]
        eventually(lambda: client.call(op="PUT", key="first", value=0)["ok"], "a standby confirms")
        for each in made:
            with Raw(each.endpoint) as other:
                catch_up(other, client)
        yield made


@pytest.mark.parametrize("sync", [1])
def test_a_planned_promotion(primary: ServerProcess, tmp_path: Path, connect: Connect) -> None:
    """In the middle of writes: each that was answered is there."""
    answered: list[int] = []

    def count() -> None:
        with Raw(primary.endpoint) as client:
            while (reply := client.call(op="INCR", key="n"))["ok"]:
                answered.append(reply["value"])

    with standbys(tmp_path, primary.endpoint, 1) as (standby,):
        writer = threading.Thread(target=count)
        writer.start()
        eventually(lambda: len(answered) > 50, "some are answered")
        assert promote(standby.endpoint).returncode == 0
        writer.join(LIMIT)
        assert not writer.is_alive()
        assert answered == list(range(1, len(answered) + 1))
        found = connect(standby.endpoint).ok(op="GET", key="n")["value"]
        assert found - answered[-1] in {0, 1}  # The last one may have got another answer.


@pytest.mark.parametrize("sync", [0, 1], ids=["asynchronous", "sync"])
def test_the_primary_is_lost_and_one_of_two_standbys_is_behind(
    primary: ServerProcess, sync: int, tmp_path: Path, connect: Connect
) -> None:
    """The one with the highest `applied` takes over, and the other one follows it."""
    client = connect(primary.endpoint)
    writes = Writes(client)
    with standbys(tmp_path, primary.endpoint, 2) as both:
        one, two = both
        for ahead, behind in ((one, two), (two, one)):  # Each confirms alone for a while.
            halt(behind.process)
            writes.more()
            catch_up(connect(ahead.endpoint), client)
            behind.signal(signal.SIGCONT)
            catch_up(connect(behind.endpoint), client)
        halt(one.process)
        writes.more()
        catch_up(connect(two.endpoint), client)
        halt(two.process)
        if sync:
            assert not client.call(op="PUT", key="unconfirmed", value=1)["ok"]
        else:
            writes.more()
        primary.kill()
        for each in both:
            each.signal(signal.SIGCONT)
        clients = [connect(each.endpoint) for each in both]
        assert applied(clients[0]) < applied(clients[1])
        assert promote(two.endpoint, "--force").returncode == 0
        missing = writes.missing(clients[1])
        assert missing == writes.answered[len(writes.answered) - len(missing) :]
        assert bool(missing) == (not sync)
        one.stop()
        follows = Follower(one.directory, two.endpoint, data_dir=one.data_dir, config=QUIET)
        with follows:
            catch_up(connect(follows.endpoint), clients[1])
            assert state_of(follows.data_dir) == state_of(two.data_dir)
    assert "beginning anew" not in follows.log()  # It was behind, and not beside it.


@pytest.mark.parametrize("sync", [1])
def test_the_primary_and_one_of_two_standbys_are_lost(
    primary: ServerProcess, tmp_path: Path, connect: Connect
) -> None:
    """One of them may fail: writes go on, and are safe."""
    writes = Writes(connect(primary.endpoint))
    with standbys(tmp_path, primary.endpoint, 2) as (one, two):
        writes.more()
        one.kill()
        writes.more()
        primary.kill()
        assert promote(two.endpoint, "--force").returncode == 0
        assert not writes.missing(connect(two.endpoint))


@pytest.mark.parametrize(("sync", "how"), [(0, "network"), (1, "network"), (1, "machine")])
def test_the_standby_or_the_network_is_gone(
    sync: int, how: str, tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes go on, or are refused until there is a standby again; it then has them all."""
    monkeypatch.setattr(quorum, "LOST_SECONDS", 1e6)  # However busy the machine is.
    monkeypatch.setattr(quorum, "CONFIRM_SECONDS", LIMIT)
    with (
        ServerInProcess(tmp_path / "primary", replication={"sync": sync}) as primary,
        Proxy(primary.endpoint) as link,
        standbys(tmp_path, link.endpoint, 1) as (standby,),
    ):
        client = connect(primary.endpoint)
        writes = Writes(client)
        writes.more()
        if how == "machine":
            standby.kill()
        else:
            link.part()
        if sync:
            refused = {"op": "PUT", "key": "refused", "value": 1}
            with monkeypatch.context() as soon:
                soon.setattr(quorum, "LOST_SECONDS", 0.1)
                soon.setattr(quorum, "CONFIRM_SECONDS", 0.1)
                eventually(lambda: client.call(**refused)["applied"] is False, "they are refused")
                assert client.call(**refused)["code"] == "READ_ONLY"
        else:
            writes.more()
            assert client.ok(op="GET", key=writes.answered[-1])["value"] == 1
        if how == "machine":
            standby.start()
        else:
            link.join()
        eventually(lambda: client.call(op="PUT", key="again", value=1)["ok"], "it is there again")
        writes.more()
        catch_up(connect(standby.endpoint), client)
        assert promote(standby.endpoint, "--force").returncode == 0
        assert not writes.missing(connect(standby.endpoint))
