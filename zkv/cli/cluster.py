"""The findings of ``zkv doctor`` about a store whose log is in etcd.

INFO of a member has what it saw of the others and of etcd a few seconds ago, so one that is asked
tells about all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from zkv import figures
from zkv.cli.diagnosis import ACT, FINE, TELL, Diagnosis
from zkv.readable import duration, percentile, size

Info = dict[str, Any]

BEHIND: Final = 15.0
"""Seconds after which a member that is behind, or silent, needs somebody to look."""
FULL: Final = 0.7
"""The share of etcd's quota from which on somebody should look."""
REFUSED: Final = 0.8
"""That from which on members refuse writes."""
SLOW: Final = 0.1
"""Seconds of an append that is slow: so long takes a disk that etcd should not be on."""
ALARMED: Final = (
    "etcd refuses writes until you run: etcdctl compact REV, etcdctl defrag --cluster, etcdctl "
    "alarm disarm; REV is the revision that `etcdctl endpoint status -w json` prints"
)
DISKS: Final = "etcd waits for its disk before it answers: give it one of its own, and a quick one"
FEW: Final = 2
"""Members that have to be there for one to be lost."""


def examine(info: Info, role: str) -> Iterator[Diagnosis]:
    """All findings. Raises KeyError if something is not in INFO.

    Args:
        info: of a member.
        role: what it is, in words.
    """
    yield _leader(info, role)
    yield from _nodes(info)
    if figures.ETCD_SILENT.need(info) <= BEHIND and not figures.ETCD_ALARMS.of(info):
        yield from _members(info["replication"])  # They tell how far they are by way of etcd.
    yield from _appends(info)
    yield from _space(info)


def _leader(info: Info, role: str) -> Diagnosis:
    replication = info["replication"]
    leads = replication["role"] == "leader"
    silent, lag = replication["leader_seconds"], figures.LAG.of(info)
    if leads:
        left = figures.LEASE_LEFT.need(info)
        return Diagnosis(FINE, "leader", f"{role}, for {duration(left)} without etcd")
    if not replication["leader"] or silent is None or silent > 2 * replication["lease"]:
        since = "" if silent is None else f" for {duration(silent)}"
        advice = "see the findings about etcd, and the logs of the members: all have to reach it"
        return Diagnosis(ACT, "leader", f"{role}; none is known to lead{since}", advice)
    text = f"{role}; follows {', '.join(replication['leader'])}"
    if lag is None or lag > BEHIND:
        how_far = "" if lag is None else f", and is {duration(lag)} behind"
        return Diagnosis(ACT, "member", text + how_far, "the log of this member says why")
    return Diagnosis(FINE, "member", f"{text}, and is {duration(lag)} behind")


def _members(replication: Info) -> Iterator[Diagnosis]:
    """Are enough members there to lose one?"""
    members = replication["members"]
    for each in members:
        seconds = each["seconds"]
        if seconds is None:
            text, advice = "is declared, and was never there", "start it"
        elif seconds > BEHIND:
            text = f"was there {duration(seconds)} ago, at log number {each['applied']:,}"
            advice = "start it, or if it will not come back: zkv member remove"
        else:
            continue
        yield Diagnosis(TELL, "members", f"{each['name']} {text}", advice)
    alive, declared = replication["alive"], replication["declared"]
    text = f"{alive:,} of {declared:,} are there"
    if declared < FEW:
        yield Diagnosis(
            ACT, "members", f"{text}: if it is lost, nobody takes over",
            "start a second one, on another machine",
        )  # fmt: skip
    elif alive < FEW or alive <= declared // 2:
        yield Diagnosis(
            ACT, "members", f"{text}: the log in etcd is trimmed only if most of them are, and two",
            "start the others, or remove those that will not come back: zkv member remove",
        )  # fmt: skip
    else:
        yield Diagnosis(FINE, "members", text)


def _nodes(info: Info) -> Iterator[Diagnosis]:
    """Do the nodes of etcd answer?"""
    etcd = info["replication"]["etcd"]
    for endpoint, why in etcd.get("silent", {}).items():
        yield Diagnosis(
            ACT, "etcd", f"{endpoint} does not answer: {why}",
            "start that node; without most of them nothing can be written",
        )  # fmt: skip
    nodes, answering = figures.ETCD_NODES.of(info), figures.ETCD_ANSWERING.of(info)
    silent = figures.ETCD_SILENT.need(info)
    if silent > BEHIND:
        advice = "most nodes of etcd have to run, and to reach each other and this member"
        yield Diagnosis(ACT, "etcd", f"no answer for {duration(silent)}", advice)
    elif nodes and nodes == answering:
        yield Diagnosis(FINE, "etcd", f"all of {nodes} nodes answer; version {etcd['version']}")
    if alarms := figures.ETCD_ALARMS.of(info):
        advice = ALARMED if "NOSPACE" in alarms else "etcd's own documents say what to do"
        yield Diagnosis(ACT, "etcd", f"alarm {alarms}", advice)


def _appends(info: Info) -> Iterator[Diagnosis]:
    """Are appends quick?"""
    counts = figures.ETCD_APPENDS.need(info)["counts"]
    if not sum(counts):
        return
    half, most = percentile(counts, 0.5), percentile(counts, 0.99)
    text = f"an append takes {duration(half)} (median), {duration(most)} (99 %)"
    if half > SLOW:
        yield Diagnosis(ACT, "appends", text, DISKS)
    elif most > SLOW:
        yield Diagnosis(TELL, "appends", text, DISKS)
    else:
        yield Diagnosis(FINE, "appends", text)


def _space(info: Info) -> Iterator[Diagnosis]:
    """Is there space in etcd?"""
    used, quota = figures.ETCD_USED.of(info), figures.ETCD_QUOTA.of(info)
    if used is None or not quota:
        return
    text = f"etcd uses {size(used)} of {size(quota)}"
    if used > FULL * quota:
        yield Diagnosis(
            ACT, "space", f"{text}; from {REFUSED:.0%} on, members refuse writes",
            "see that most members are there, so that the log is trimmed; raise etcd's "
            "--quota-backend-bytes and store.quota_bytes",
        )  # fmt: skip
    else:
        yield Diagnosis(FINE, "space", text)
