"""The commands for a store in etcd: the doctor, when a server is ready, what is missing."""

from __future__ import annotations

import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support import LIMIT, ROOT, ServerProcess, environment, zkv_command
from zkv.cli import cluster, view
from zkv.cli.diagnosis import ACT, FINE, TELL

MIB: Final = 2**20
ALL_IS_WELL: Final[dict[str, Any]] = {
    "replication": {
        "role": "follower", "term": 3, "leader": ["tcp://a:1"], "applied": 9, "lag_seconds": 0.1,
        "member": "b", "lease": 5.0, "lease_seconds": 0.0, "leader_seconds": 0.5,
        "members": [
            {"name": name, "role": role, "endpoints": [], "applied": 9, "seconds": 1.0}
            for name, role in (("a", "leader"), ("b", "follower"), ("c", "follower"))
        ],
        "declared": 3, "alive": 3, "standbys": [],
        "etcd": {
            "nodes": 3, "answering": 3, "silent": {}, "alarms": None, "version": "3.4.23",
            "answered_seconds": 0.1, "db_bytes": MIB, "db_used_bytes": MIB,
            "quota_bytes": 100 * MIB,
            "append": {"counts": [0] * 12 + [5], "sum": 0.01},
            "append_commits": {"counts": [], "sum": 0},
        },
    }
}  # fmt: skip


def found(etcd: dict[str, Any] | None = None, **changes: Any) -> dict[tuple[str, str], str]:
    """The findings, with level and subject, of a member for which something is changed."""
    info = deepcopy(ALL_IS_WELL)
    info["replication"] |= changes
    info["replication"]["etcd"] |= etcd or {}
    return {(each.level, each.subject): each.text for each in cluster.examine(info, "a member")}


def silent(seconds: float | None) -> list[dict[str, Any]]:
    """The members, of which the last one has not told anything for a while."""
    *others, last = deepcopy(ALL_IS_WELL["replication"]["members"])
    return [*others, last | {"seconds": seconds}]


def test_nothing_is_to_do_if_all_is_well() -> None:
    assert {level for level, _ in found()} == {FINE}
    leader = found(role="leader", lease_seconds=4.5)
    assert leader[FINE, "leader"] == "a member, for 4.5 s without etcd"


@pytest.mark.parametrize(
    ("level", "subject", "words", "etcd", "changes"),
    [
        (ACT, "leader", "none is known to lead", {}, {"leader": None}),
        (ACT, "leader", "none is known to lead for 12 s", {}, {"leader_seconds": 12.0}),
        (ACT, "member", "and is 20 s behind", {}, {"lag_seconds": 20.0}),
        (ACT, "etcd", "h:1 does not answer: why", {"silent": {"h:1": "why"}, "answering": 2}, {}),
        (ACT, "etcd", "no answer for 60 s", {"answered_seconds": 60.0}, {}),
        (ACT, "etcd", "alarm NOSPACE", {"alarms": "NOSPACE"}, {}),
        (ACT, "appends", "takes 197 ms", {"append": {"counts": [0] * 18 + [9], "sum": 2}}, {}),
        (TELL, "appends", "(99 %)", {"append": {"counts": [0] * 8 + [90] + [0] * 10 + [9]}}, {}),
        (ACT, "space", "uses 71.0 MiB of 100.0 MiB", {"db_used_bytes": 71 * MIB}, {}),
        (ACT, "members", "1 of 1 are there", {}, {"declared": 1, "alive": 1}),
        (ACT, "members", "1 of 3 are there", {}, {"alive": 1}),
        (ACT, "members", "2 of 5 are there", {}, {"declared": 5, "alive": 2}),
        (TELL, "members", "c was there 20 s ago", {}, {"members": silent(20.0)}),
        (TELL, "members", "c is declared, and was never there", {}, {"members": silent(None)}),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found(
    level: str, subject: str, words: str, etcd: dict[str, Any], changes: dict[str, Any]
) -> None:
    assert words in found(etcd, **changes)[level, subject]


def test_a_member_that_has_not_looked_yet_is_examined() -> None:
    info = deepcopy(ALL_IS_WELL)
    etcd = info["replication"]["etcd"]
    info["replication"]["etcd"] = {
        name: etcd[name] for name in ("append", "append_commits", "answered_seconds")
    }
    assert {each.level for each in cluster.examine(info, "a member")} == {FINE}


def test_info_shows_the_members_and_etcd_in_groups() -> None:
    shown = view.info(ALL_IS_WELL)
    for words in (
        "members", "leader, at log number 9, 1 s ago", "lease           5 s", "etcd",
        "db_used_bytes     1.0 MiB", "counts  p50",
    ):  # fmt: skip
        assert words in shown
    assert "{" not in shown


def test_a_server_alone_leads_at_once(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "--wait", "leader") as server:
        assert server.stop() == 0


@pytest.mark.parametrize("command", [("serve",), ("store", "found"), ("member", "list")])
def test_the_extra_that_is_missing_is_named(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "hpack.py").write_text("raise ModuleNotFoundError('no hpack', name='hpack')\n")
    url = "etcd://127.0.0.1:1/p"
    words = ("--data-dir", "data", "--store", url) if command == ("serve",) else (url,)
    done = subprocess.run(
        zkv_command(*command, *words), cwd=tmp_path, capture_output=True, text=True, check=False,
        env=environment() | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 2
    assert "pip install 'zkv[etcd]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
