"""``zkv doctor --latency``: concludes from the slow log why requests were slow.

A slow request is due to the part that took most of its time. There is a finding for each part, the
most frequent first, with what its requests have in common and what helps, and one for each of the
minutes in which most requests were slow: that tells why the server was slow at a certain time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from operator import itemgetter
from typing import Any, Final

from zkv import figures
from zkv.cli.diagnosis import ACT, FINE, TELL, Diagnosis
from zkv.cli.text import PARTS
from zkv.client import Client
from zkv.readable import duration

ASKED: Final = 1_000
"""Slow requests that are looked at, at most."""
MINUTES: Final = 10
"""Minutes of which each gets a finding, at most."""
LARGE_KEYS: Final = 1_000
"""A request with so many keys takes long by itself."""
OFTEN: Final = 0.5
"""The share of the requests above which something that they have in common explains them."""

RARELY: Final = 0.1
"""The share of the requests below which something that they have in common is left out."""

Entry = Mapping[str, Any]
Entries = Sequence[Entry]
Info = Mapping[str, Any]


def examine(client: Client) -> Iterator[Diagnosis]:
    """All findings about a server's slow requests. Raises ClientError."""
    info = client.call("INFO")
    if "SLOW" not in info.get("features", ()):
        text = f"the server, zkv {info['version']}, has no slow log"
        yield Diagnosis(TELL, "latency", text, "it comes with version 0.2")
        return
    if hidden := figures.hidden(info):
        yield Diagnosis(ACT, "latency", hidden)
        return
    found = client.call("SLOW", limit=ASKED)
    entries, minutes = found["entries"], found["minutes"]
    if not entries:
        yield Diagnosis(FINE, "latency", "no request has been slow; metrics.slow sets what is")
        return
    slowest = max(entries, key=_total)
    full = "the newest that are kept; " if len(entries) == ASKED else ""
    yield Diagnosis(
        TELL, "latency",
        f"{_requests(entries)} slow, {full}from {_at(entries[-1])} to {_at(entries[0])}; the "
        f"slowest took {duration(_total(slowest))}: {_named(slowest)} at {_at(slowest)}",
    )  # fmt: skip
    for cause, _ in Counter(map(_cause, entries)).most_common():
        yield CONCLUSIONS[cause]([each for each in entries if _cause(each) == cause], info)
    yield from map(_minute, sorted(_worst(minutes), key=itemgetter("time")))


def _on_queue(entries: Entries, info: Info) -> Diagnosis:
    workers = info["stats"]["workers"]
    return Diagnosis(
        ACT, "queue", f"{_summed(entries, 'queue')} a worker thread; there are {workers}",
        "send less in one request, or raise server.workers: requests that take long, such as large "
        "SCANs, keep the workers from others",
    )  # fmt: skip


def _on_lock(entries: Entries, _info: Info) -> Diagnosis:
    return Diagnosis(
        ACT, "lock", f"{_summed(entries, 'lock')} the lock of the store",
        "send less in one request: who changes thousands of keys at once holds the lock for long",
    )  # fmt: skip


def _on_execute(entries: Entries, _info: Info) -> Diagnosis:
    large = [entry for entry in entries if entry.get("keys", 1) >= LARGE_KEYS]
    if len(large) > OFTEN * len(entries):
        text = f"{_requests(large)} slow because of their size: {LARGE_KEYS:,} keys and more"
        return Diagnosis(
            TELL, "execute", text, "if others must not wait for them, send less in one"
        )
    ops = ", ".join(op for op, _ in Counter(entry["op"] for entry in entries).most_common(3))
    return Diagnosis(
        TELL, "execute",
        f"{_requests(entries)} slow while running, {ops} most often{_beside(entries)}",
        "if nothing went on beside them, the machine was busy with other programs: see its load",
    )  # fmt: skip


def _on_sync(entries: Entries, info: Info) -> Diagnosis:
    policy = info["durability"]["fsync"]
    text = f"{_summed(entries, 'sync')} the disk{_beside(entries)}; fsync = {policy}"
    if len(_with(entries, "snapshot")) > OFTEN * len(entries):
        advice = "writing a snapshot keeps the disk busy: raise durability.snapshot_interval, or "
        return Diagnosis(ACT, "sync", text, f"{advice}use a quicker disk")
    return Diagnosis(
        ACT, "sync", text,
        f"see what else uses the disk of {info['durability']['data_dir']} (iostat -x 1); a quicker "
        "one helps, or fsync = interval where the last second may be lost",
    )  # fmt: skip


CONCLUSIONS: Final[dict[str, Callable[[Entries, Info], Diagnosis]]] = {
    "queue": _on_queue,
    "lock": _on_lock,
    "execute": _on_execute,
    "sync": _on_sync,
}
"""By the part that took most of the time."""


def _worst(minutes: Entries) -> Entries:
    """The minutes with the slowest requests."""
    return sorted(minutes, key=lambda minute: _total(minute["slowest"]), reverse=True)[:MINUTES]


def _minute(minute: Entry) -> Diagnosis:
    """The finding for a minute, which has a timing as entries do."""
    slowest, count, cause = minute["slowest"], minute["count"], _cause(minute)
    share = minute["timing"][cause] / max(1, minute["timing"]["total"])
    return Diagnosis(
        TELL, datetime.fromtimestamp(minute["time"] / 1000).astimezone().strftime("%m-%d %H:%M"),
        f"{count:,} slow, {share:.0%} of their time for {cause}{_shown(minute['beside'], count)}; "
        f"the slowest took {duration(_total(slowest))}, most of it for {_cause(slowest)}: "
        f"{_named(slowest)} at {_at(slowest)}",
    )  # fmt: skip


def _cause(entry: Entry) -> str:
    """The part that took most of the time."""
    timing = entry["timing"]
    return max(PARTS, key=lambda part: int(timing[part]))


def _total(entry: Entry) -> float:
    """The time that a request took, in seconds."""
    return float(entry["timing"]["total"]) / 1e6


def _summed(entries: Entries, part: str) -> str:
    longest = max(entry["timing"][part] for entry in entries) / 1e6
    return f"{_requests(entries, 'waited')}, up to {duration(longest)}, for"


def _requests(entries: Entries, verb: str = "") -> str:
    one = len(entries) == 1
    verb = verb or ("was" if one else "were")
    return f"{len(entries):,} request{'' if one else 's'} {verb}"


def _with(entries: Entries, activity: str) -> Entries:
    return [entry for entry in entries if activity in entry["beside"]]


def _beside(entries: Entries) -> str:
    """Name what went on beside more than a few of the requests; empty if nothing did."""
    counts = Counter(activity for entry in entries for activity in entry["beside"])
    return _shown(dict(counts.most_common()), len(entries))


def _shown(beside: Mapping[str, int], count: int) -> str:
    """The same, given how many of ``count`` requests were beside what."""
    often = [f"{name} ({part:,})" for name, part in beside.items() if part >= RARELY * count]
    return f", beside {', '.join(often)}" if often else ""


def _named(entry: Entry) -> str:
    if "key" in entry:
        return f"{entry['op']} {entry['key']!r}"
    return f"{entry['op']} of {entry['keys']:,} keys" if "keys" in entry else str(entry["op"])


def _at(entry: Entry) -> str:
    return datetime.fromtimestamp(entry["time"] / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")
