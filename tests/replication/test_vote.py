"""A promotion without the primary: the other machines with the store have to agree."""

from __future__ import annotations

import itertools
import json
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Connect
from tests.replication.following import (
    Follower,
    applied,
    await_log,
    catch_up,
    promote,
    replication,
)
from tests.support import (
    LIMIT,
    Message,
    Raw,
    ServerInProcess,
    ServerProcess,
    eventually,
    free_ports,
)
from zkv.config import build
from zkv.errors import ConfigError
from zkv.keyspace.lineage import Lineage, Term
from zkv.replication.stream import PromiseAnswer
from zkv.replication.vote import Machines, NotElectedError, OutbidError, judge

pytestmark = pytest.mark.timeout(180)  # Who is gone is waited for, again and again.

TAG = "0123456789abcdef"


# --- The rule


@pytest.mark.parametrize(("count", "sync"), [(m, n) for m in range(2, 9) for n in range(1, m)])
def test_so_many_cannot_miss_an_acknowledged_write(count: int, sync: int) -> None:
    """Whichever machines have it, and whichever answer; and two votes have one in common."""
    machines = Machines([f"tcp://{each}:1" for each in range(count - 1)], sync, [])
    needed = machines.needed
    have_it = itertools.combinations(range(count), sync + 1)
    answers = list(map(set, itertools.combinations(range(count), needed)))
    assert all(each & set(have) for have in have_it for each in answers)
    standbys = list(map(set, itertools.combinations(range(count - 1), needed)))
    assert all(one & two for one in standbys for two in standbys)
    assert needed <= machines.standbys
    assert needed == machines.standbys - sync + 1 or needed == machines.standbys // 2 + 1


def answer(term: int, lsn: int, **more: Any) -> PromiseAnswer:
    fields: dict[str, Any] = {
        "server": f"{term}-{lsn}", "store": "s", "term": term, "tag": f"{term}" * 16, "lsn": lsn,
        "granted": True, "leads": False, "promised": 9, "sync": 1, "machines": ["a", "b", "c"],
    }  # fmt: skip
    return PromiseAnswer(**fields | more)


def judged(own: PromiseAnswer, **others: PromiseAnswer) -> str:
    """Why it may not lead; empty: it may."""
    try:
        judge(Machines(["a", "b"], 1, ["c", "b", "a"]), own, others, {})
    except NotElectedError as error:
        return str(error)
    return ""


def test_the_longest_log_is_that_of_the_highest_term() -> None:
    assert not judged(answer(2, 50), a=answer(1, 99))
    assert "a has a longer log" in judged(answer(1, 99), a=answer(2, 50))
    assert "b has a longer log" in judged(answer(2, 50), a=answer(2, 51), b=answer(2, 52))
    assert not judged(answer(2, 50), a=answer(2, 50, server="another"))


def test_a_term_of_which_there_is_only_the_beginning_adds_nothing() -> None:
    """Its promotion failed at the last step, and the former primary may have gone on."""
    first, second, third = (Term(number, lsn, "t") for number, lsn in ((1, 5), (2, 41), (3, 42)))
    lineage = Lineage("s", (first, second, third))
    assert lineage.written(42) == lineage.written(40) == (first, 40)
    assert lineage.written(43) == (third, 43)
    assert lineage.written(5) == (None, 4)


def test_who_is_asked_and_does_not_agree() -> None:
    own, one, two = answer(2, 50), answer(2, 40), answer(2, 30)
    assert not judged(own, a=one)
    assert "a leads, in term 2" in judged(own, a=answer(2, 60, leads=True, promised=2), b=two)
    # A primary of a lower term than that of the others was cut off: it acknowledges nothing.
    assert not judged(own, a=answer(1, 99, leads=True, promised=1, granted=False), b=two)
    assert "1 of 2 standbys have answered" in judged(own)
    assert "other settings" in judged(own, a=answer(2, 40, sync=2))
    assert "other settings" in judged(own, a=answer(2, 40, machines=["a", "b"]))
    assert "are the same" in judged(own, a=answer(2, 40, server=own.server))
    assert "are the same" in judged(own, a=one, b=one)
    assert "promoted by force" in judged(own, a=answer(2, 40, tag="f" * 16))
    with pytest.raises(OutbidError) as outbid:
        judge(
            Machines(["a", "b"], 1, ["a", "b", "c"]), own,
            {"a": answer(2, 40, granted=False, promised=12)}, {},
        )  # fmt: skip
    assert outbid.value.promised == 12


@pytest.mark.parametrize(
    ("machines", "fault"),
    [
        (["tcp://127.0.0.1:5555", "tcp://b:1"], None),
        (["tcp://here:1", "tcp://b:1"], None),
        (["tcp://a:1", "tcp://b:1"], "has to name this server once"),
        (["tcp://127.0.0.1:5555", "tcp://here:1"], "has to name this server once"),
        (["tcp://127.0.0.1:5555"], "more than the standbys"),
        (["tcp://here:1", "tcp://b:1", "tcp://b:1"], "is there twice"),
        (["tcp://here:1", "tcp://*:1"], "tcp://*:1"),
    ],
)
def test_machines_are_named_once(machines: list[str], fault: str | None) -> None:
    replication = {"sync": 1, "machines": machines, "advertise": ["tcp://here:1"]}
    if fault is None:
        assert build({"replication": replication}).replication.machines == machines
        return
    with pytest.raises(ConfigError, match=re.escape(fault)):
        build({"replication": replication})


# --- Servers


class Group:
    """A primary and its standbys, of which each knows all. Use as a context manager.

    Args:
        directory: of their data.
        standbys: how many.
        sync: how many have to confirm a write.
    """

    def __init__(self, directory: Path, standbys: int, sync: int) -> None:
        self.directory = directory
        self.endpoints = [f"tcp://127.0.0.1:{port}" for port in free_ports(standbys + 1)]
        self._config = (
            f'[server]\nfeed = ""\n[log]\nrequests = false\n[replication]\nsync = {sync}\n'
            f"machines = {json.dumps(self.endpoints)}\n"
        )
        flags = ("--endpoint", self.endpoints[0])
        self.primary = ServerProcess(directory / "0", *flags, config=self._config)
        self.standbys = [self.follower(each + 1) for each in range(standbys)]

    def follower(self, number: int, primary: str = "") -> Follower:
        """Another process with the data of a standby; it follows any, or this primary alone."""
        own = self.endpoints[number]
        leader = primary or ",".join(each for each in self.endpoints if each != own)
        flags = ("--endpoint", own)
        return Follower(self.directory / str(number), leader, *flags, config=self._config)

    def __enter__(self) -> Group:
        # A primary whose commits nobody confirms takes its time to write a first snapshot.
        with ServerInProcess(self.primary.data_dir) as server, Raw(server.endpoint) as client:
            client.ok(op="REPLICATE", member="nobody", sync=False)
            client.ok(op="SNAPSHOT")
        self.primary.start()
        for each in self.standbys:
            each.launch()
        for each in self.standbys:
            each.await_ready()
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self.primary, *self.standbys):
            each.kill()


@pytest.fixture
def group(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Group]:
    with Group(tmp_path, *request.param) as group:
        yield group


def of(standbys: int, sync: int) -> pytest.MarkDecorator:
    """The group of a test."""
    return pytest.mark.parametrize("group", [(standbys, sync)], indirect=True)


def put(client: Raw, key: str = "k") -> bool:
    return bool(client.call(op="PUT", key=key, value=1)["ok"])


def confirm_some(group: Group, count: int = 20) -> None:
    """Write as soon as enough standbys are there, and until all have it."""
    with Raw(group.primary.endpoint) as one:
        eventually(lambda: put(one), "enough standbys")
        for number in range(count):
            one.ok(op="PUT", key=f"k{number}", value=1)
        for each in group.standbys:
            with Raw(each.endpoint) as two:
                catch_up(two, one)


def wish(standby: Raw, member: str, attempt: int, term: int, tag: str | None = TAG) -> Message:
    store = replication(standby)["store"]
    promise = {"attempt": attempt, "term": term, "tag": tag}
    return standby.call(op="REPLICATE", member=member, store=store, promise=promise)


@of(3, 1)
def test_the_one_with_the_longest_log_takes_over(group: Group, connect: Connect) -> None:
    confirm_some(group)
    first, second, third = group.standbys
    third.signal(signal.SIGSTOP)
    confirm_some_at(group, [first, second])
    group.primary.kill()
    third.signal(signal.SIGCONT)
    refused = promote(third.endpoint)
    assert refused.returncode == 1
    assert "has a longer log" in refused.stderr
    assert first.endpoint in refused.stderr or second.endpoint in refused.stderr
    done = promote(first.endpoint)
    assert done.returncode == 0, done
    client = connect(first.endpoint)
    eventually(lambda: put(client, "new"), "the others follow it, and confirm", 2 * LIMIT)
    assert client.ok(op="GET", key="late9")["value"] == 1
    for each in (second, third):
        other = connect(each.endpoint)
        catch_up(other, client)
        assert replication(other)["promised"] == 0


def confirm_some_at(group: Group, standbys: list[Follower]) -> None:
    with Raw(group.primary.endpoint) as one:
        for number in range(10):
            one.ok(op="PUT", key=f"late{number}", value=1)
        for each in standbys:
            with Raw(each.endpoint) as two:
                catch_up(two, one)


@of(3, 2)
def test_too_few_answers(group: Group, connect: Connect) -> None:
    confirm_some(group)
    first, second, third = group.standbys
    for each in (group.primary, second, third):
        each.kill()
    refused = promote(first.endpoint)
    assert refused.returncode == 1
    assert "1 of 3 standbys have answered, this one included; 3 - 2 + 1 are needed" in (
        refused.stderr
    )
    assert second.endpoint in refused.stderr
    assert replication(connect(first.endpoint))["role"] == "standby"
    second.start()
    done = promote(first.endpoint)
    assert done.returncode == 0, done
    third.start()
    client = connect(first.endpoint)
    eventually(lambda: put(client, "new"), "the others follow it, and confirm", 2 * LIMIT)


@of(1, 1)
def test_the_only_standby_needs_no_other(group: Group, connect: Connect) -> None:
    confirm_some(group)
    (standby,) = group.standbys
    group.primary.kill()
    done = promote(standby.endpoint)
    assert done.returncode == 0, done
    assert replication(connect(standby.endpoint))["role"] == "primary"


@of(2, 1)
def test_a_planned_one_asks_the_others_too(group: Group, connect: Connect) -> None:
    """Its primary counts, once it has stopped; then it goes on as a standby, with its promise."""
    confirm_some(group)
    first, second = group.standbys
    second.kill()
    assert promote(first.endpoint).returncode == 0
    record = json.loads((group.primary.data_dir / "replication.json").read_text())
    assert [each["term"] for each in record["promises"]] == [2]
    group.primary.kill()
    with group.follower(0):
        client = connect(first.endpoint)
        eventually(lambda: put(client, "new"), "the former primary confirms")


@of(1, 1)
def test_a_promise_outlasts_the_process(group: Group, connect: Connect) -> None:
    """Nothing is acknowledged to a primary of a lower term, before it is withdrawn."""
    confirm_some(group)
    (standby,) = group.standbys
    client, other = connect(group.primary.endpoint), connect(standby.endpoint)
    assert wish(client, "c", 1, 5)["granted"] is False  # It leads.
    assert wish(client, "c", 1, 5)["leads"] is True
    granted = wish(other, "c", 7, 5)
    assert (granted["granted"], granted["term"], granted["promised"]) == (True, 1, 5)
    assert granted["lsn"] == applied(client)
    assert replication(other)["promised"] == 5
    assert client.call(op="PUT", key="k", value=2)["code"] == "READ_ONLY"
    standby.kill()
    standby.start()
    again = connect(standby.endpoint)
    eventually(lambda: "confirming nothing" in standby.log(), "it has asked")
    reply = client.call(op="PUT", key="k", value=3)
    assert (reply["code"], replication(again)["promised"]) == ("READ_ONLY", 5)
    # Of others, or of another attempt, it withdraws nothing.
    assert wish(again, "d", 7, 5, None)["promised"] == 5
    assert wish(again, "c", 6, 5, None)["promised"] == 5
    assert wish(again, "c", 7, 5, None)["promised"] == 1
    eventually(lambda: put(client), "it is confirmed again")
    assert wish(again, "c", 7, 5)["granted"] is False  # It arrives late.


@of(1, 1)
def test_a_term_is_promised_once(group: Group, connect: Connect) -> None:
    confirm_some(group)
    standby = connect(group.standbys[0].endpoint)
    assert wish(standby, "c", 1, 1)["granted"] is False  # It has begun.
    assert wish(standby, "c", 1, 2)["granted"] is True
    assert wish(standby, "c", 1, 2)["granted"] is True  # A repeat.
    assert wish(standby, "d", 1, 2)["granted"] is False
    assert wish(standby, "c", 2, 2)["granted"] is False
    assert wish(standby, "c", 1, 2, "f" * 16)["granted"] is False
    eventually(lambda: wish(standby, "d", 1, 3)["granted"], "its owner had its time")
    assert wish(standby, "d", 1, 3)["promised"] == 3
    assert wish(standby, "c", 1, 2)["granted"] is False  # It is the newest one no more.
    lower = wish(standby, "d", 1, 3, None)
    assert lower["promised"] == 2  # Another server may lead by it.
    assert replication(standby)["promised"] == 2


@of(2, 1)
def test_who_has_promised_never_confirms_to_the_old_primary(group: Group, connect: Connect) -> None:
    confirm_some(group)
    first, second = group.standbys
    second.kill()
    old = group.primary.endpoint
    with group.follower(2, old) as faithful:
        eventually(lambda: applied(connect(faithful.endpoint)) > 0, "it follows the old one alone")
        client = connect(old)
        catch_up(connect(faithful.endpoint), client)
        first.kill()
        gone = f"tcp://127.0.0.1:{free_ports(1)[0]}"
        with group.follower(1, gone) as taking:
            group.primary.signal(signal.SIGSTOP)
            done = promote(taking.endpoint)
            assert done.returncode == 0, done
            group.primary.signal(signal.SIGCONT)
            assert client.call(op="PUT", key="k", value=2)["code"] == "READ_ONLY"
            faithful.kill()
            faithful.start()
            await_log(faithful, "confirming nothing")
            assert client.call(op="PUT", key="k", value=3)["code"] == "READ_ONLY"
            assert replication(client)["role"] == "primary"


@of(3, 2)
def test_three_at_the_same_time(group: Group, connect: Connect) -> None:
    confirm_some(group)
    group.primary.kill()
    done: dict[str, int] = {}

    def run(endpoint: str) -> None:
        done[endpoint] = promote(endpoint).returncode

    threads = [threading.Thread(target=run, args=(each.endpoint,)) for each in group.standbys]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    leads = [endpoint for endpoint in done if replication(connect(endpoint))["role"] == "primary"]
    assert len(leads) == 1, done
    assert [endpoint for endpoint, status in done.items() if not status] == leads
    client = connect(leads[0])
    eventually(lambda: put(client, "new"), "the others follow it, and confirm", 2 * LIMIT)


@of(2, 1)
def test_after_one_that_failed_the_primary_goes_on(group: Group, connect: Connect) -> None:
    confirm_some(group)
    first, second = group.standbys
    second.kill()
    group.primary.signal(signal.SIGSTOP)
    refused = promote(first.endpoint)
    assert refused.returncode == 1
    assert "1 of 2 standbys" in refused.stderr
    assert replication(connect(first.endpoint))["promised"] == 0
    group.primary.signal(signal.SIGCONT)
    client = connect(group.primary.endpoint)
    eventually(lambda: put(client), "it is confirmed again")
    assert promote(first.endpoint).returncode == 0  # Planned, with its primary.


@of(2, 1)
def test_one_that_was_killed_in_the_middle(group: Group, connect: Connect) -> None:
    """Its next start takes back what it has been promised."""
    confirm_some(group)
    first, second = group.standbys
    member = json.loads((first.data_dir / "replication.json").read_text())["member"]
    one, two = connect(first.endpoint), connect(second.endpoint)
    for each in (one, two):
        assert wish(each, member, 1, 2)["granted"] is True
    client = connect(group.primary.endpoint)
    assert client.call(op="PUT", key="k", value=2)["code"] == "READ_ONLY"
    first.kill()
    first.start()
    eventually(lambda: replication(two)["promised"] == 0, "it is withdrawn")
    eventually(lambda: put(client), "it is confirmed again")


@of(2, 1)
def test_one_that_was_killed_in_the_middle_and_is_gone(group: Group, connect: Connect) -> None:
    """Another one takes over, planned or not, above what was promised."""
    confirm_some(group)
    first, second = group.standbys
    one, two = connect(first.endpoint), connect(second.endpoint)
    assert wish(one, "gone", 1, 2)["granted"] is True
    assert wish(two, "gone", 1, 7)["granted"] is True
    done = promote(first.endpoint)
    assert done.returncode == 0, done
    assert replication(one)["term"] == 8
    eventually(lambda: put(one), "the other one confirms")
    group.primary.kill()
    assert replication(two)["promised"] == 0


@of(2, 1)
def test_by_force_above_all_that_was_promised(group: Group, connect: Connect) -> None:
    confirm_some(group)
    first, second = group.standbys
    one, two = connect(first.endpoint), connect(second.endpoint)
    assert wish(two, "gone", 1, 7)["granted"] is True
    group.primary.kill()
    done = promote(first.endpoint, "--force")
    assert done.returncode == 0, done
    assert replication(one)["term"] == 8
    eventually(lambda: put(one), "the other one confirms")
