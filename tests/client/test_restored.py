"""Followers of a store that is restored from a backup: none misses what has changed by that."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.forking import run_zkv
from tests.support import FREE_PORT, LIMIT, Raw, ServerInProcess, environment, eventually, read_line
from zkv.cli.output import FAILED
from zkv.client import Change, Client
from zkv.client.follower import RESET
from zkv.durability.backup import RESTORED_ABOVE


class Restorable:
    """A server that is found again where it was, with data that can be replaced.

    Args:
        directory: for its data, a backup of them, and its socket.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.data_dir = directory / "data"
        self.endpoint = f"ipc://{directory}/socket"
        self._replaced = 0
        self._start()

    def _start(self) -> None:
        self._server = ServerInProcess(
            self.data_dir,
            server={"endpoints": [self.endpoint], "feed": FREE_PORT},
            durability={"snapshot_interval": 0.2},
        )
        self._server.__enter__()

    def stop(self) -> None:
        """Stop the server, with everything saved."""
        assert self._server.stop()

    def replace(self, *flags: str) -> None:
        """Put what is restored from the backup, with these flags, in the place of the data."""
        self.stop()
        self._replaced += 1
        self.data_dir.rename(self._directory / f"old {self._replaced}")
        zkv("restore", *flags, self._directory / "backup", self.data_dir)
        self._start()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Restorable]:
    """A server with a backup of its first five revisions, which is at revision 10."""
    store = Restorable(tmp_path)
    try:
        with Raw(store.endpoint) as client:
            for number in range(1, 6):
                client.ok(op="PUT", key=f"kept {number}", value=number)
            zkv("backup", store.data_dir, tmp_path / "backup")
            client.ok(op="PUT", key="kept 1", value="changed and lost")
            client.ok(op="DELETE", key="kept 2")
            for number in range(8, 11):
                client.ok(op="PUT", key=f"lost {number}", value=number)
        yield store
    finally:
        store.stop()


def zkv(*arguments: str | Path) -> None:
    done = run_zkv(*map(str, arguments), cwd=Path("/"))
    assert done.returncode == 0, done.stderr


def contents(client: Raw) -> dict[str, tuple[Any, int]]:
    """Values and revisions by key."""
    return {key: (value, rev) for key, value, rev in client.ok(op="SCAN")["items"]}


def write_as_many(client: Raw) -> None:
    """Have the store take as many revisions as it has lost, and a few more."""
    for number in range(8):
        client.ok(op="PUT", key=f"new {number}", value=number)


def test_a_mirror_that_was_running(store: Restorable) -> None:
    with Client(store.endpoint) as kv, kv.mirror() as mirror:
        mirror.wait_for(10, LIMIT)
        store.replace()
        with Raw(store.endpoint) as client:
            write_as_many(client)
            rev = client.ok(op="INFO")["rev"]
            mirror.wait_for(rev, LIMIT)
            assert dict(mirror) == {key: value for key, (value, _) in contents(client).items()}
            assert mirror["kept 1"] == 1


@pytest.mark.parametrize("since", [5, 6, 10, 11])
def test_a_watch_that_goes_on(store: Restorable, since: int) -> None:
    """Also one that had seen nothing of what is lost, or that asks for what was never there."""
    store.replace()
    with Raw(store.endpoint) as client:
        write_as_many(client)
        now = contents(client)
    with Client(store.endpoint) as kv, kv.watch(since=since) as watch:
        told: list[Change | None] = [watch.next(LIMIT)]
        assert told[0] is not None
        assert told[0].op == RESET
        copy = {}
        for _ in now:
            change = watch.next(LIMIT)
            assert change is not None
            copy[change.key] = change.value, change.rev
        assert copy == now


def test_no_revision_means_two_things(store: Restorable) -> None:
    """Of all that a watch is told, before and after, a revision and a key have one value."""
    seen: dict[tuple[int, str], Any] = {}
    resets = 0
    with Client(store.endpoint) as kv, kv.watch(since=0) as watch:
        for flags in ([], ["--above", str(5 + RESTORED_ABOVE + 8)]):
            with Raw(store.endpoint) as client:
                write_as_many(client)
                rev = client.ok(op="INFO")["rev"]
            while watch.rev < rev:
                change = watch.next(LIMIT)
                assert change is not None
                resets += change.op == RESET
                if change.op != RESET:
                    assert seen.setdefault((change.rev, change.key), change.value) == change.value
            store.replace(*flags)
        while resets < 2:
            change = watch.next(LIMIT)
            assert change is not None
            resets += change.op == RESET


def test_changes_and_conditions_from_the_lost_future(store: Restorable) -> None:
    store.replace()
    with Raw(store.endpoint) as client:
        assert client.ok(op="INFO")["rev"] == 5 + RESTORED_ABOVE
        write_as_many(client)
        for since in (0, 5, 10, 2**32, 4 + RESTORED_ABOVE):
            reply = client.call(op="CHANGES", since=since)
            assert reply["code"] == "COMPACTED"
            assert reply["oldest"] == 6 + RESTORED_ABOVE
        reply = client.ok(op="CHANGES", since=5 + RESTORED_ABOVE)
        assert reply["changes"][0][0] == 6 + RESTORED_ABOVE
        assert client.call(op="PUT", key="kept 1", value=0, if_rev=6)["code"] == "CONFLICT"
        assert client.ok(op="PUT", key="kept 1", value=0, if_rev=1)["rev"] == 14 + RESTORED_ABOVE


def test_writes_of_a_session(store: Restorable, tmp_path: Path) -> None:
    """Answers in the backup are remembered; what is lost is carried out when it is repeated."""
    with Raw(store.endpoint) as client:
        kept: dict[str, Any] = {"op": "INCR", "key": "n", "session": "s", "seq": 1}
        lost = kept | {"seq": 2}
        assert client.ok(**kept)["value"] == 1
        zkv("backup", store.data_dir, tmp_path / "later")
        assert client.ok(**lost)["value"] == 2
    (tmp_path / "backup").rename(tmp_path / "earlier")
    (tmp_path / "later").rename(tmp_path / "backup")
    store.replace()
    with Raw(store.endpoint) as client:
        reply = client.ok(**kept)
        assert (reply["value"], reply["rev"], reply["replayed"]) == (1, 11, True)
        reply = client.ok(**lost)
        assert (reply["value"], reply["rev"]) == (2, 12 + RESTORED_ABOVE)
        assert "replayed" not in reply


@pytest.mark.parametrize("running", [False, True])
def test_watch_of_the_command_line(store: Restorable, running: bool) -> None:
    """It ends, and says why: what it has printed is not to be gone on with."""
    command = [sys.executable, "-m", "zkv.cli.client", "-e", store.endpoint]
    command += ["watch", "--since", "9" if running else "10"]
    if not running:
        store.replace()
    watch = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        if running:
            assert watch.stdout is not None
            assert b"lost 10" in read_line(watch.stdout)
            store.replace()
        _, said = watch.communicate(timeout=LIMIT)
    finally:
        watch.kill()
        watch.communicate()
    assert watch.returncode == FAILED
    assert b"read the store again" in said


def test_feed_tells_of_it(store: Restorable) -> None:
    """A mirror of a prefix that nobody writes to notices, too: by the heartbeat."""
    with Client(store.endpoint) as kv, kv.mirror("lost") as mirror:
        assert len(mirror) == 3
        store.replace()
        eventually(lambda: len(mirror) == 0, "what is lost is gone")
