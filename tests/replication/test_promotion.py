"""A standby takes over: planned, where nothing is lost, and by force, where a suffix may be."""

from __future__ import annotations

import json
import resource
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import zmq

import zkv
from tests.conftest import Connect
from tests.replication.following import (
    QUIET,
    RAISED_BY,
    Follower,
    await_log,
    await_new_history,
    catch_up,
    clock_ahead,
    fixed_ports,
    promote,
    replication,
    standby_in_process,
    state_of,
    write_some,
)
from tests.support import FREE_PORT, LIMIT, Message, NoReplyError, Raw, ServerProcess, eventually
from zkv.replication.standby import Standby
from zkv.replication.stream import PART_BYTES

Context = zmq.Context[zmq.Socket[bytes]]
HALF: Final = "x" * (PART_BYTES // 2)
"""A value so large that the answer to a stopped standby has two of them at most."""


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "primary", *fixed_ports(), config=QUIET) as process:
        yield process


@pytest.fixture
def standby(tmp_path: Path, primary: ServerProcess) -> Iterator[Follower]:
    flags = ("--feed", FREE_PORT)
    with Follower(tmp_path / "standby", primary.endpoint, *flags, config=QUIET) as process:
        yield process


class Counting(threading.Thread):
    """Counts up a key by exactly-once writes, at whichever server takes them.

    Args:
        name: of the key and of the session.
        endpoints: the servers. It goes on to the next if one does not lead, or does not answer.
    """

    def __init__(self, name: str, endpoints: list[str]) -> None:
        super().__init__(name=name)
        self._endpoints = endpoints
        self._over = threading.Event()
        self._changed = threading.Condition()
        self.counted = 0
        """The highest count that was answered."""
        self.wrong: list[Message] = []

    def __enter__(self) -> Counting:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()
        assert not self.wrong

    def more(self, number: int = 20) -> None:
        """Wait until so many more have been answered."""
        with self._changed:
            goal = self.counted + number
            assert self._changed.wait_for(lambda: self.counted >= goal, LIMIT), "stuck"

    def run(self) -> None:
        place, seq = 0, 1
        while not self._over.is_set():
            endpoint = self._endpoints[place % len(self._endpoints)]
            with Raw(endpoint, timeout=0.5) as client:
                try:
                    while not self._over.is_set() and self._count(client, seq):
                        seq += 1
                except NoReplyError:
                    pass
            place += 1

    def _count(self, client: Raw, seq: int) -> bool:
        reply = client.call(op="INCR", key=self.name, session=self.name, seq=seq)
        if reply["ok"]:
            if reply["value"] != seq:
                self.wrong.append(reply)
            with self._changed:
                self.counted = seq
                self._changed.notify_all()
            return True
        if reply["code"] not in {"NOT_LEADER", "READ_ONLY", "SHUTTING_DOWN", "BUSY"}:
            self.wrong.append(reply)
        return False


def test_a_planned_one_loses_nothing(
    primary: ServerProcess, standby: Follower, connect: Connect
) -> None:
    one, two = connect(primary.endpoint), connect(standby.endpoint)
    endpoints = [primary.endpoint, standby.endpoint]
    with Counting("m", endpoints) as m, Counting("n", endpoints) as n:
        m.more()
        n.more()
        before = one.ok(op="INFO")["rev"]
        done = promote(standby.endpoint)
        assert done.returncode == 0, done
        m.more()
        n.more()
    assert two.ok(op="GET", key="m")["value"] >= m.counted
    figures = replication(two)
    assert (figures["role"], figures["term"], figures["leader"]) == ("primary", 2, None)
    rev = two.ok(op="PUT", key="k", value=1)["rev"]
    assert before + RAISED_BY < rev
    assert one.call(op="GET", key="m")["leader"] == [standby.endpoint]
    old = dict(two.ok(op="GET", key="m"))
    assert one.ok(op="GET", key="m", stale=True)["value"] <= old["value"]
    for write in ({"op": "PUT", "key": "m", "value": 0}, {"op": "INCR", "key": "m"}):
        assert one.call(**write)["leader"] == [standby.endpoint]
    primary.kill()
    primary.start()
    again = connect(primary.endpoint)
    assert again.call(op="GET", key="m")["leader"] == [standby.endpoint]
    assert again.call(op="PUT", key="m", value=0)["leader"] == [standby.endpoint]


def test_no_stale_read_at_the_old_primary(
    primary: ServerProcess, standby: Follower, connect: Connect
) -> None:
    """Once the new one has answered a write, the old one never answers a read that comes later."""
    writes: list[int] = []
    over = threading.Event()
    broken: list[tuple[int, Message]] = []

    def write() -> None:
        with Raw(standby.endpoint) as client:
            while not over.is_set():
                if client.call(op="INCR", key="n")["ok"]:
                    writes.append(1)

    def read() -> None:
        with Raw(primary.endpoint) as client:
            while not over.is_set():
                known = len(writes)
                reply = client.call(op="GET", key="k")
                if known and reply["ok"]:
                    broken.append((known, reply))

    one = connect(primary.endpoint)
    one.ok(op="PUT", key="k", value=1)
    threads = [threading.Thread(target=write), *(threading.Thread(target=read) for _ in range(3))]
    for thread in threads:
        thread.start()
    try:
        assert promote(standby.endpoint).returncode == 0
        eventually(lambda: len(writes) > 50, "writes")
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not broken


def test_only_one_of_two_standbys_takes_over(
    primary: ServerProcess, standby: Follower, tmp_path: Path, connect: Connect
) -> None:
    one, two = connect(primary.endpoint), connect(standby.endpoint)
    write_some(one)
    with Follower(tmp_path / "third", primary.endpoint, config=QUIET) as third:
        three = connect(third.endpoint)
        catch_up(two, one)
        catch_up(three, one)
        for number in range(4):  # More than one answer has, so the term is not in the first one.
            one.ok(op="PUT", key=f"large{number}", value=HALF)
        assert promote(standby.endpoint).returncode == 0
        late = promote(third.endpoint)
        assert late.returncode == 1
        assert standby.endpoint in late.stderr
        assert one.call(op="GET", key="k1")["leader"] == [standby.endpoint]
        assert replication(three)["role"] == "standby"
        assert replication(two)["role"] == "primary"


def test_a_failed_attempt_that_arrives_late_changes_nothing(
    primary: ServerProcess, connect: Connect
) -> None:
    """Its requests went by connections of their own, and may overtake each other."""
    client = connect(primary.endpoint)
    client.ok(op="PUT", key="k", value=1)
    client.ok(op="REPLICATE", member="b")

    def wish(member: str, attempt: int, leads: str | None) -> Message:
        leader = None if leads is None else [f"tcp://{leads}:1"]
        supersede = {"attempt": attempt, "term": 2, "leader": leader}
        return client.call(op="REPLICATE", member=member, supersede=supersede)

    assert wish("b", 2, None)["ok"]  # Given up, and the attempt itself comes later.
    assert wish("b", 2, "b")["code"] == "BAD_REQUEST"
    assert client.ok(op="GET", key="k")["value"] == 1
    assert wish("b", 4, "b")["ok"]
    assert wish("b", 3, None)["code"] == "NOT_LEADER"
    assert wish("b", 3, "old")["code"] == "BAD_REQUEST"
    assert wish("c", 9, "c")["code"] == "NOT_LEADER"
    assert wish("c", 9, None)["code"] == "NOT_LEADER"
    assert client.call(op="GET", key="k")["leader"] == ["tcp://b:1"]
    primary.kill()
    primary.start()
    client = connect(primary.endpoint)
    assert wish("c", 9, "c")["code"] == "NOT_LEADER"
    assert wish("b", 3, "old")["code"] == "NOT_LEADER"
    assert wish("b", 5, "b")["ok"]  # The standby repeats it, as the answer was lost.
    assert wish("b", 5, None)["ok"]
    assert client.ok(op="GET", key="k")["value"] == 1


@pytest.mark.slow
def test_a_primary_that_was_stopped_in_the_middle_does_not_lead_again(
    primary: ServerProcess, standby: Follower, connect: Connect
) -> None:
    """All requests of a failed attempt and of the next one are there when it goes on."""
    one, two = connect(primary.endpoint), connect(standby.endpoint)
    write_some(one)
    catch_up(two, one)
    primary.signal(signal.SIGSTOP)
    failed = promote(standby.endpoint)
    assert failed.returncode == 1
    assert "repeat this" in failed.stderr
    primary.signal(signal.SIGCONT)
    assert promote(standby.endpoint).returncode == 0
    for _ in range(50):
        assert one.call(op="GET", key="k1")["code"] == "NOT_LEADER"
    two.ok(op="GET", key="k1")


@pytest.mark.parametrize("fault", ["full", "killed"])
def test_a_planned_one_that_fails_is_undone(
    fault: str, tmp_path: Path, primary: ServerProcess, connect: Connect
) -> None:
    one = connect(primary.endpoint)
    write_some(one)
    with (
        Follower(tmp_path / "standby", primary.endpoint, config=QUIET) as standby,
    ):
        two = connect(standby.endpoint)
        catch_up(two, one)
        if fault == "full":
            size = max(p.stat().st_size for p in standby.data_dir.rglob("*") if p.is_file())
            size = max(size, (standby.directory / "stderr.txt").stat().st_size + 20_000)
            resource.prlimit(standby.process.pid, resource.RLIMIT_FSIZE, (size, -1))
            write_some(one, 60, 1000)
            eventually(lambda: two.ok(op="INFO")["durability"]["refusal"], "a refusal")
            done = promote(standby.endpoint)
            assert done.returncode == 1
            assert "the primary leads on" in done.stderr
        else:
            standby.signal(signal.SIGSTOP)
            with (
                pytest.raises(NoReplyError),
                Raw(standby.endpoint, timeout=0.3) as impatient,
            ):
                impatient.call(op="PROMOTE")
            standby.kill()
        assert one.ok(op="PUT", key="k", value=2)["ok"]
        assert replication(one)["role"] == "primary"
        if fault == "full":
            resource.prlimit(standby.process.pid, resource.RLIMIT_FSIZE, (-1, -1))
        if fault != "killed":
            catch_up(two, one)
            assert promote(standby.endpoint).returncode == 0
            assert two.ok(op="GET", key="k")["value"] == 2


def test_a_forced_one_lacks_a_suffix_which_the_old_one_names(
    primary: ServerProcess, standby: Follower, connect: Connect
) -> None:
    one, two = connect(primary.endpoint), connect(standby.endpoint)
    write_some(one)
    lsn = catch_up(two, one)
    standby.signal(signal.SIGSTOP)
    lost = [one.ok(op="PUT", key=f"lost{number}", value=HALF)["rev"] for number in range(5)]
    primary.kill()
    standby.signal(signal.SIGCONT)
    assert promote(standby.endpoint, "--force").returncode == 0
    rev = two.ok(op="PUT", key="new", value=1)["rev"]
    assert rev > lost[-1] + RAISED_BY - 10
    kept = Follower(
        primary.directory, standby.endpoint, "--endpoint", primary.endpoint,
        data_dir=primary.data_dir, config=QUIET,
    )  # fmt: skip
    with kept:
        await_new_history(kept)
        client = connect(kept.endpoint)
        catch_up(client, two)
        assert state_of(kept.data_dir) == state_of(standby.data_dir)
        assert client.call(op="GET", key="lost4", stale=True)["code"] == "NOT_FOUND"
        (path,) = kept.data_dir.glob("diverged-after-*.jsonl")
        after = int(path.stem.rpartition("-")[2])
        assert after >= lsn
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert 3 <= len(lines) <= 5
        assert [line["rev"] for line in lines] == lost[-len(lines) :]
        assert [line["lsn"] for line in lines] == list(range(after + 1, after + 1 + len(lines)))
        # Back again, and there again: nothing is lost, and no file is overwritten.
        assert promote(kept.endpoint).returncode == 0
        assert client.ok(op="GET", key="new")["value"] == 1
        assert replication(client)["term"] == 3
    assert path.exists()


def test_the_primary_has_begun_a_term_since_it_was_asked_last(
    primary: ServerProcess,
    standby: Follower,
    tmp_path: Path,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = connect(primary.endpoint)
    write_some(one)
    with standby_in_process(tmp_path / "third", standby.endpoint) as third:
        three, pause = connect(third.endpoint), threading.Event()
        catch_up(three, one)
        monkeypatch.setattr(Standby, "_follow", lambda *_: pause.wait(0.01))
        one.ok(op="PUT", key="last", value=1)  # It answers what has been asked already.
        catch_up(three, one)
        for number in range(4):  # More than one answer has, so the term is not in the first one.
            one.ok(op="PUT", key=f"large{number}", value=HALF)
        assert promote(standby.endpoint).returncode == 0
        term = replication(connect(standby.endpoint))["term"]
        assert replication(three)["term"] == term - 1
        done = promote(third.endpoint)
        assert done.returncode == 0, done.stderr
        assert replication(three)["term"] == term + 1


def test_two_in_a_row_and_back(
    primary: ServerProcess, standby: Follower, tmp_path: Path, connect: Connect
) -> None:
    write_some(connect(primary.endpoint))
    with Follower(tmp_path / "third", standby.endpoint, config=QUIET) as third:
        three = connect(third.endpoint)
        endpoints = [primary.endpoint, standby.endpoint, third.endpoint]
        with Counting("n", endpoints) as counting:
            counting.more()
            refused = promote(third.endpoint)  # Its primary is none.
            assert refused.returncode == 1
            assert promote(standby.endpoint).returncode == 0
            counting.more()
            assert promote(third.endpoint).returncode == 0
            counting.more()
            primary.kill()
            back = Follower(
                primary.directory, third.endpoint, "--endpoint", primary.endpoint,
                data_dir=primary.data_dir, config=QUIET,
            )  # fmt: skip
            with back:
                one = connect(back.endpoint)
                catch_up(one, three)
                counting.more()
                assert promote(back.endpoint).returncode == 0
                counting.more()
                assert replication(one)["term"] == 4
                counted = counting.counted  # Read first: it goes on.
                assert one.ok(op="GET", key="n")["value"] >= counted
                assert not list(back.data_dir.glob("diverged*"))


def test_one_that_follows_a_standby_takes_over_from_the_primary_that_it_knows(
    primary: ServerProcess, standby: Follower, tmp_path: Path, connect: Connect
) -> None:
    one, two = connect(primary.endpoint), connect(standby.endpoint)
    write_some(one)
    catch_up(two, one)
    places = f"{standby.endpoint},{primary.endpoint}"
    with Follower(tmp_path / "third", places, config=QUIET) as third:
        three = connect(third.endpoint)
        catch_up(three, one)
        assert [each["name"] for each in replication(two)["members"]]
        standby.signal(signal.SIGSTOP)  # It lacks what comes now, and the third one does.
        rev = one.ok(op="PUT", key="k", value=HALF)["rev"]
        standby.signal(signal.SIGCONT)
        assert promote(third.endpoint).returncode == 0
        assert three.ok(op="GET", key="k")["rev"] == rev
        assert one.call(op="GET", key="k")["leader"] == [third.endpoint]
        assert two.call(op="GET", key="k")["code"] == "NOT_LEADER"


def test_the_old_primary_gets_a_name_of_its_own(
    primary: ServerProcess, standby: Follower, connect: Connect
) -> None:
    """Two servers with one name would be one to a third: neither may confirm for the other."""
    one, two = connect(primary.endpoint), connect(standby.endpoint)
    write_some(one)
    catch_up(two, one)
    (before,) = replication(one)["members"]
    assert promote(standby.endpoint).returncode == 0
    primary.stop()
    back = Follower(
        primary.directory, standby.endpoint, "--endpoint", primary.endpoint,
        data_dir=primary.data_dir, config=QUIET,
    )  # fmt: skip
    with back:
        catch_up(connect(back.endpoint), two)
        names = [each["name"] for each in replication(two)["members"]]
        assert len(names) == 1
        assert before["name"] not in names


def test_positions_of_three_machines_of_which_the_middle_one_leads(
    primary: ServerProcess, standby: Follower, tmp_path: Path, connect: Connect
) -> None:
    """The one that was ahead has other commits with the same log numbers."""
    one, two = connect(primary.endpoint), connect(standby.endpoint)
    write_some(one)
    with Follower(tmp_path / "third", primary.endpoint, config=QUIET) as third:
        three = connect(third.endpoint)
        catch_up(two, one)
        catch_up(three, one)
        standby.signal(signal.SIGSTOP)
        for number in range(5):
            one.ok(op="PUT", key=f"old{number}", value=HALF)
        catch_up(three, one)
        primary.kill()
        standby.signal(signal.SIGCONT)
        assert promote(standby.endpoint, "--force").returncode == 0
        for number in range(20):
            two.ok(op="PUT", key=f"new{number}", value=number)
        third.stop()
        moved = Follower(third.directory, standby.endpoint, data_dir=third.data_dir, config=QUIET)
        with moved:
            await_new_history(moved)
            assert "DIVERGED" in moved.log()
            client = connect(moved.endpoint)
            catch_up(client, two)
            assert state_of(moved.data_dir) == state_of(standby.data_dir)
            assert client.call(op="GET", key="old4", stale=True)["code"] == "NOT_FOUND"


def test_all_is_kept_that_one_gives_up_who_has_just_written_a_snapshot(
    primary: ServerProcess, tmp_path: Path, connect: Connect
) -> None:
    """Its log before the last snapshot but one would go when its server stops."""
    one, config = (
        connect(primary.endpoint),
        f"{QUIET}[durability]\nsegment_bytes = 4096\nsnapshot_interval = 600.0\n",
    )
    ports = fixed_ports()
    behind = Follower(tmp_path / "behind", primary.endpoint, *ports, config=config)
    places = f"{primary.endpoint},{ports[1]}"
    with behind, Follower(tmp_path / "ahead", places, config=config) as ahead:
        three = connect(ahead.endpoint)
        write_some(one)
        common = catch_up(connect(behind.endpoint), one)
        behind.kill()
        write_some(one, size=1000)
        catch_up(three, one)
        three.ok(op="SNAPSHOT")
        write_some(one, size=1000)
        newest = catch_up(three, one)
        primary.kill()
        behind.start()
        assert promote(behind.endpoint, "--force").returncode == 0
        await_new_history(ahead)
        (path,) = ahead.data_dir.glob("diverged-after-*.jsonl")
        kept = [json.loads(line)["lsn"] for line in path.read_text().splitlines()]
        assert kept == list(range(common + 1, newest + 1))


def test_one_that_took_over_and_is_started_as_it_used_to_be(
    primary: ServerProcess, standby: Follower, connect: Connect
) -> None:
    """As by a unit of systemd that nobody has changed: what it has written stays."""
    one, two = connect(primary.endpoint), connect(standby.endpoint)
    write_some(one)
    assert promote(standby.endpoint).returncode == 0
    two.ok(op="PUT", key="new", value=1)
    standby.stop()
    before = state_of(standby.data_dir)
    standby.launch()
    assert standby.wait() == 2
    assert "has led since" in standby.log()
    assert state_of(standby.data_dir) == before
    assert not list(standby.data_dir.glob("diverged*"))
    served = ServerProcess(standby.directory, *fixed_ports())
    with served:
        assert connect(served.endpoint).ok(op="GET", key="new")["value"] == 1


def test_one_that_has_led_comes_back_though_a_place_in_its_list_is_behind(
    primary: ServerProcess, standby: Follower, tmp_path: Path, connect: Connect
) -> None:
    """A third one that was cut off answers, and knows nothing of its term."""
    one, two = connect(primary.endpoint), connect(standby.endpoint)
    write_some(one)
    with Follower(tmp_path / "behind", primary.endpoint, config=QUIET) as behind:
        catch_up(connect(behind.endpoint), one)
        primary.kill()
        assert promote(standby.endpoint, "--force").returncode == 0
        two.ok(op="PUT", key="new", value=1)
        with Follower(
            primary.directory, standby.endpoint, data_dir=primary.data_dir, config=QUIET
        ) as leader:
            three = connect(leader.endpoint)
            catch_up(three, two)
            standby.kill()
            assert promote(leader.endpoint, "--force").returncode == 0
            places = f"{behind.endpoint},{leader.endpoint}"
            with Follower(standby.directory, places, config=QUIET) as again:
                catch_up(connect(again.endpoint), three)


def test_a_list_of_endpoints_leads_to_the_one_that_took_over(
    primary: ServerProcess, standby: Follower, tmp_path: Path, connect: Connect
) -> None:
    one, two = connect(primary.endpoint), connect(standby.endpoint)
    write_some(one)
    endpoints = f"{primary.endpoint},{standby.endpoint}"
    with Follower(tmp_path / "third", endpoints, config=QUIET) as third:
        three = connect(third.endpoint)
        catch_up(three, one)
        for number in range(4):  # More than one answer has, so the term is not in the first one.
            one.ok(op="PUT", key=f"large{number}", value=HALF)
        assert promote(standby.endpoint).returncode == 0
        two.ok(op="PUT", key="new", value=1)
        catch_up(three, two)
        standby.kill()  # What it has written is not given up for the old one, which is there.
        two.close()
        await_log(third, "cannot follow")
        assert three.ok(op="GET", key="new", stale=True)["value"] == 1
    assert "beginning anew" not in third.log()


def test_one_that_is_ahead_does_not_begin_anew_from_another_standby(
    primary: ServerProcess, standby: Follower, connect: Connect
) -> None:
    """It would give up what the other one does not have yet, and may have confirmed."""
    one, two = connect(primary.endpoint), connect(standby.endpoint)
    write_some(one)
    lsn = catch_up(two, one)
    store, terms = (one.ok(op="REPLICATE", member="c")[each] for each in ("store", "terms"))
    number, _, tag = terms[-1]
    ahead = {"member": "c", "store": store, "after": lsn + 5, "term": number, "tag": tag}
    assert two.call(op="REPLICATE", **ahead)["code"] == "BEHIND"
    diverged = one.call(op="REPLICATE", **ahead)
    assert (diverged["code"], diverged["common"], diverged["term"]) == ("DIVERGED", lsn, 1)


@pytest.mark.parametrize("hours", [1, -1])
def test_a_clock_that_is_an_hour_off(
    hours: int, primary: ServerProcess, tmp_path: Path, connect: Connect
) -> None:
    one = connect(primary.endpoint)
    env = clock_ahead(tmp_path / "clock", hours * 3600)
    with Follower(tmp_path / "standby", primary.endpoint, config=QUIET, env=env) as standby:
        two = connect(standby.endpoint)
        one.ok(op="PUT", key="lasting", value=1, ttl=600)
        one.ok(op="PUT", key="short", value=1, ttl=0.05)
        first = one.ok(op="INCR", key="n", session="s", seq=1)
        eventually(lambda: one.call(op="GET", key="short")["ok"] is False, "the expiry")
        catch_up(two, one)
        assert promote(standby.endpoint).returncode == 0
        assert two.call(op="GET", key="short")["code"] == "NOT_FOUND"
        assert 500 < two.ok(op="GET", key="lasting")["ttl"] <= 600
        assert two.ok(op="INCR", key="n", session="s", seq=1) == first | {"replayed": True}
        two.ok(op="PUT", key="brief", value=1, ttl=0.1)
        eventually(lambda: two.call(op="GET", key="brief")["ok"] is False, "the expiry")


def test_a_mirror_goes_on_over_it(
    primary: ServerProcess, standby: Follower, connect: Connect
) -> None:
    two = connect(standby.endpoint)
    with zkv.Client([primary.endpoint, standby.endpoint]) as client:
        client.put("k", 1)
        catch_up(two, connect(primary.endpoint))
        with client.mirror("") as mirror:
            assert mirror["k"] == 1
            assert promote(standby.endpoint).returncode == 0
            two.ok(op="PUT", key="new", value=2)
            eventually(lambda: mirror.get("new") == 2, "the mirror")
            assert mirror["k"] == 1
