"""What members tell of themselves, of each other and of etcd: INFO, top, metrics, member list."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.shown import URL, Members
from tests.conftest import Connect
from tests.support import LIMIT, ServerInProcess, eventually
from zkv import rates
from zkv.cli import main, top
from zkv.client import Client
from zkv.cluster import observer
from zkv.errors import DataDirError
from zkv.etcd.errors import EtcdClosedError
from zkv.figures import FIGURES, Figure
from zkv.metrics.families import exposition_of


@pytest.fixture
def members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Members:
    return Members(tmp_path, monkeypatch)


@pytest.fixture
def pair(members: Members) -> Iterator[tuple[ServerInProcess, ServerInProcess]]:
    """A leader, and a member that follows it."""
    with members.leader("a") as leader, members.member("b") as follower:
        yield leader, follower


def replication(server: ServerInProcess) -> dict[str, Any]:
    info = server.server.info()
    assert isinstance(info, dict)
    found = info["replication"]
    assert isinstance(found, dict)
    return found


def alive(server: ServerInProcess, count: int) -> None:
    eventually(lambda: replication(server)["alive"] == count, f"{count} are there")


def have(server: ServerInProcess, lsn: int) -> bool:
    """Whether a server has heard that all members have a log number."""
    members = replication(server)["members"]
    return bool(members) and all(each["applied"] == lsn for each in members)


def test_a_member_that_cannot_start_leaves_no_connection_to_etcd(
    members: Members, tmp_path: Path
) -> None:
    with members.leader("a"):
        pass
    for path in (tmp_path / "a").glob("*/*"):
        path.write_bytes(b"damaged")
    broken = members.member("a")
    with pytest.raises(DataDirError):
        broken.server.start()
    with pytest.raises(EtcdClosedError):
        members.clients["a"].status(1.0)


# --- INFO


def test_each_member_tells_of_all(
    pair: tuple[ServerInProcess, ServerInProcess], connect: Connect
) -> None:
    leader, follower = pair
    connect(leader.endpoint).ok(op="PUT", key="k", value=1)
    for server in pair:
        eventually(partial(have, server, 2), "both have everything")
        found = replication(server)
        assert found["leader"] == [leader.endpoint]
        assert [each["name"] for each in found["members"]] == ["a", "b"]
        assert [each["role"] for each in found["members"]] == ["leader", "follower"]
        assert found["members"][1]["endpoints"] == [follower.endpoint]
        assert found["declared"] == found["alive"] == 2
        assert found["standbys"] == []
    assert replication(leader)["role"] == "leader"
    assert replication(leader)["member"] == "a"
    assert replication(leader)["lease_seconds"] > 0
    assert sum(replication(leader)["etcd"]["append"]["counts"]) == 2
    assert replication(follower)["role"] == "follower"
    assert replication(follower)["lease_seconds"] == 0
    assert replication(follower)["etcd"]["append"]["counts"] == []


def test_a_member_that_is_gone_is_not_alive(
    members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    with members.member("a") as one:
        with members.member("b"):
            alive(one, 2)
        monkeypatch.setattr(observer, "AWAY_SECONDS", 0.5)
        alive(one, 1)
        assert replication(one)["declared"] == 2


def test_etcd_that_does_not_answer_is_told(members: Members) -> None:
    with members.member("a") as one:
        eventually(lambda: replication(one)["etcd"].get("answering") == 1, "it answers")
        members.clients["a"].partition()
        eventually(lambda: replication(one)["etcd"]["answering"] == 0, "it is silent")
        etcd = replication(one)["etcd"]
        assert list(etcd["silent"]) == ["fake"]
        before = etcd["answered_seconds"]
        eventually(
            lambda: replication(one)["etcd"]["answered_seconds"] > before, "the time goes on"
        )
        members.clients["a"].heal()


def test_a_leader_that_is_cut_off_from_etcd_still_tells_of_itself(
    members: Members, connect: Connect
) -> None:
    with members.leader("a") as one:
        client = connect(one.endpoint)
        client.ok(op="PUT", key="k", value=1)
        members.clients["a"].partition()
        eventually(lambda: not one.server.role.leads, "its lease is over")
        assert client.ok(op="PING")["ok"]
        info = client.ok(op="INFO")
        assert info["rev"] == 1
        assert info["replication"]["role"] == "follower"
        assert info["replication"]["lease_seconds"] == 0
        assert client.call(op="GET", key="k")["code"] == "NOT_LEADER"
        members.clients["a"].heal()


def test_the_space_and_the_alarm_of_etcd_are_told(members: Members) -> None:
    with members.member("a") as one:
        eventually(lambda: "db_bytes" in replication(one)["etcd"], "etcd is looked at")
        etcd = replication(one)["etcd"]
        assert etcd["quota_bytes"] == 10_000_000
        assert etcd["db_used_bytes"] > 0
        assert etcd["alarms"] is None
        members.etcd.full = True
        eventually(lambda: replication(one)["etcd"]["alarms"] == "NOSPACE", "the alarm is seen")


def test_a_member_that_was_removed_does_not_come_back_by_telling(members: Members) -> None:
    with members.member("a") as one, members.member("b"):
        alive(one, 2)
        assert one.server._joining is not None
        one.server._joining.log.remove_member("b")
        eventually(lambda: replication(one)["declared"] == 1, "b is forgotten")
        assert "b" not in str(replication(one)["members"])


def test_a_member_that_led_tells_how_far_it_is_behind(members: Members) -> None:
    with members.leader("a") as one, members.member("b") as other:
        members.clients["a"].partition()
        eventually(lambda: other.server.role.leads, "b takes over")
        members.clients["a"].heal()
        eventually(lambda: replication(one)["leader"] == [other.endpoint], "a follows b")
        eventually(lambda: replication(one)["lag_seconds"] == 0, "a has all that b has")


# --- Who shows it


def is_of_a_member(figure: Figure) -> bool:
    return figure.paths[0].startswith("replication.") and figure.name != "zkv_etcd_alarm"


def test_every_figure_of_members_is_in_info_top_and_metrics(members: Members) -> None:
    with members.leader("a") as one, Client(one.endpoint) as client:
        eventually(lambda: "db_bytes" in replication(one)["etcd"], "etcd is looked at")
        client.put("k", 1)
        before, now = top._sample(client), top._sample(client)
    shown = rates.groups(now, rates.between(before, now))
    text, _ = exposition_of(now.info, "")
    for figure in filter(is_of_a_member, FIGURES):
        assert figure.of(now.info) is not None, figure.name
        assert figure.place is not None
        heading, name = figure.place
        assert name in shown[heading]
        assert figure.name in text.decode()
    assert "zkv_etcd_alarm 0.0" in text.decode()


def test_the_members_are_listed(
    members: Members, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    with members.leader("a") as one:
        eventually(partial(have, one, 1), "it has told how far it is")
        main.main(["member", "add", "later", URL])
        assert main.main(["member", "list", URL]) == 0
        first, second = capsysbinary.readouterr().out.decode().splitlines()
        name, role, endpoints, applied, seconds = first.split("\t")
        assert (name, role, endpoints, applied) == ("a", "leader", one.endpoint, "1")
        assert seconds.isdigit()
        assert second == "later\tdeclared\t-\t0\t-"


# --- When somebody leads


def test_a_follower_knows_who_leads_once_the_lease_was_renewed(
    pair: tuple[ServerInProcess, ServerInProcess],
) -> None:
    leader, follower = pair
    called = threading.Event()
    follower.server.when_led(called.set)
    assert called.wait(LIMIT)
    assert follower.server.role.leader == [leader.endpoint]


def test_what_a_lost_leader_has_left_is_not_one_that_leads(members: Members) -> None:
    with members.member("a") as lost:
        eventually(lambda: lost.server.role.leads, "a leads")
        members.clients["a"].partition()
        with members.member("b") as other:
            leads: list[bool] = []
            called = threading.Event()

            def note() -> None:
                leads.append(other.server.role.leads)
                called.set()

            other.server.when_led(note)
            assert called.wait(LIMIT)
            assert leads == [True]
        members.clients["a"].heal()
