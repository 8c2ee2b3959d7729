"""What clients saw, and whether the store that came back after a crash agrees with it.

A history is the ops that clients sent between two starts of a server, each with what was answered,
in the manner of Jepsen: ``OK`` (done), ``FAIL`` (certainly not done) or ``UNKNOWN`` (no answer, or
one that says so). `violations` compares it with the store's exact state before and after, which is
read while nobody writes.

Strategy: zkv gives every write the next revision, so a history has one order only, and no search
for one is needed. Writes that were answered have their place. A revision that nobody was told of
belongs to a write whose outcome is unknown; a value that was read (each is written once in a test)
says which one, and where nothing does, every possibility is tried. Then the writes up to the
revision that the store came back with are replayed on the state before: what comes out must be the
state after, exactly. So half an MPUT, a hole, a value out of nowhere and a resurrected entry all
show as a difference, and which writes are missing behind that revision is a matter of what the
policy promises (`Promise`).
"""

from __future__ import annotations

import enum
import itertools
import json
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

Message = dict[str, Any]

WRITES: Final = frozenset({"PUT", "MPUT", "DELETE", "MDELETE"})
REMOVALS: Final = frozenset({"DELETE", "MDELETE"})
EXPECTED_FAILURES: Final = frozenset({"NOT_FOUND", "READ_ONLY", "SHUTTING_DOWN"})
MOST_TRIES: Final = 1_000_000
"""Steps of the search for the places of unanswered writes. So far, nothing right needed many."""


class Outcome(enum.Enum):
    """What is known of an op."""

    OK = enum.auto()
    FAIL = enum.auto()
    UNKNOWN = enum.auto()


class Version(NamedTuple):
    """An entry as a client sees it."""

    rev: int
    value: str


@dataclass(frozen=True)
class State:
    """A store at rest."""

    rev: int = 0
    entries: dict[str, Version] = field(default_factory=dict)


@dataclass(frozen=True)
class Op:
    """One request and what became of it.

    Args:
        name: of the client, and the number that it gave the request.
        op: as on the wire.
        keys: what it is about.
        value: what a PUT or MPUT writes under all of its keys.
        start: when it was sent, in nanoseconds of a clock that all processes share.
        end: when the reply was there; None if none came.
        reply: as on the wire; None if none came.
    """

    name: str
    op: str
    keys: tuple[str, ...]
    value: str | None
    start: int
    end: int | None = None
    reply: Message | None = None

    @property
    def outcome(self) -> Outcome:
        """What is known of it. That a key was not found is an answer, no failure."""
        if self.reply is None:
            return Outcome.UNKNOWN
        if self.reply["ok"] or self.not_found:
            return Outcome.OK
        return Outcome.FAIL if self.reply["applied"] is False else Outcome.UNKNOWN

    @property
    def not_found(self) -> bool:
        """Whether the answer was that the key is absent."""
        return self.reply is not None and self.reply.get("code") == "NOT_FOUND"

    @property
    def removes(self) -> bool:
        """Whether it takes its keys away."""
        return self.op in REMOVALS

    @property
    def commit_rev(self) -> int | None:
        """The revision that it took, where that was answered. To delete nothing takes none."""
        if self.op not in WRITES or self.reply is None or not self.reply["ok"]:
            return None
        rev: int = self.reply["rev"]
        return None if self.reply.get("deleted") == 0 else rev

    @property
    def seen(self) -> list[tuple[str, Version | None]]:
        """What its answer tells of keys, None for an absent one; writes tell of no key."""
        reply = self.reply
        if reply is None or (not reply["ok"] and not self.not_found):
            return []
        if self.not_found or (self.op == "MDELETE" and not reply["deleted"]):
            return [(key, None) for key in self.keys]
        if self.op == "GET":
            return [(self.keys[0], Version(reply["rev"], reply["value"]))]
        if self.op == "MGET":
            found = zip(self.keys, reply["revs"], reply["values"], strict=True)
            return [(key, Version(rev, value) if rev else None) for key, rev, value in found]
        return []

    def result(self, key: str, rev: int) -> Version | None:
        """What stands under ``key`` once this write has taken ``rev``."""
        assert key in self.keys
        return None if self.value is None else Version(rev, self.value)

    def __str__(self) -> str:
        keys = ",".join(self.keys)
        value = "" if self.value is None else f"={self.value[:12]}"
        return f"{self.name} {self.op} {keys}{value} -> {self.reply}"


@dataclass(frozen=True)
class Promise:
    """What a crash must leave.

    Args:
        survives: whether a write that was answered with ok must be there. Whatever the policy,
            that goes without asking where the answer said ``durable``.
        reads_survive: whether what a read showed must be there.
    """

    survives: Callable[[Op], bool]
    reads_survive: bool


NOTHING_IS_LOST: Final = Promise(survives=lambda op: True, reads_survive=True)


def load(paths: Iterable[Path]) -> list[Op]:
    """The ops that clients recorded: a line when one is sent, and a line when it is answered.

    A last line that is cut short was being written when the client was killed.
    """
    ops: dict[str, Op] = {}
    for path in paths:
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                _take_line(ops, json.loads(line))
    return list(ops.values())


def _take_line(ops: dict[str, Op], line: Message) -> None:
    name = line["name"]
    if "op" in line:
        ops[name] = Op(name, line["op"], tuple(line["keys"]), line["value"], line["start"])
    else:
        sent = ops[name]
        ops[name] = Op(name, sent.op, sent.keys, sent.value, sent.start, line["end"], line["reply"])


def violations(
    before: State, ops: Sequence[Op], after: State, promise: Promise = NOTHING_IS_LOST
) -> list[str]:
    """Everything in which ``ops`` and the states around them do not fit; empty if all is well."""
    return _Check(before, ops, after, promise).run()


def before_the_cut(ops: Iterable[Op], moment: int) -> list[Op]:
    """The ops as the world knows them when nothing leaves the machine from ``moment`` on."""
    return [
        op if op.end is None or op.end < moment else replace(op, end=None, reply=None) for op in ops
    ]


def lost(ops: Iterable[Op], after: State) -> list[Op]:
    """The writes that were answered with ok and are gone."""
    return [op for op in ops if (op.commit_rev or 0) > after.rev]


class _Check:
    """One comparison."""

    def __init__(self, before: State, ops: Sequence[Op], after: State, promise: Promise) -> None:
        self.before = before
        self.ops = ops
        self.after = after
        self.promise = promise
        self.problems: list[str] = []
        self.writers: dict[int, Op] = {}  # By revision: all that were told theirs, or found out.
        self.unknown = [op for op in ops if op.op in WRITES and op.outcome is Outcome.UNKNOWN]

    def run(self) -> list[str]:
        self._replies()
        self._take_revisions()
        self._order()
        self._promises()
        self._find_out()
        self._reads()
        if not self.problems:  # What follows relies on all that came before.
            self.problems += _Replay(self.before, self.after, self.writers, self.unknown).run()
        if not self.problems:
            self._read_together()
        return self.problems

    def _replies(self) -> None:
        for op in self.ops:
            reply = op.reply
            if reply is None or reply["ok"]:
                continue
            if reply["code"] not in EXPECTED_FAILURES:
                self.problems.append(f"unexpected reply: {op}")
            if reply["code"] != "NOT_FOUND" and op.op not in {*WRITES, "SNAPSHOT", "END"}:
                self.problems.append(f"a read was refused: {op}")

    def _take_revisions(self) -> None:
        if self.after.rev < self.before.rev:
            self.problems.append(
                f"the store went back from revision {self.before.rev} to {self.after.rev}"
            )
        for op in self.ops:
            rev = op.commit_rev
            if rev is None:
                continue
            if rev <= self.before.rev:
                self.problems.append(f"revision {rev} was taken before the start: {op}")
            elif rev in self.writers:
                self.problems.append(f"revision {rev} was given twice: {self.writers[rev]}; {op}")
            else:
                self.writers[rev] = op

    def _order(self) -> None:
        """A write that began after another had been answered has the higher revision."""
        answered = _told_by_end(self.ops)
        highest = (self.before.rev, "the state before")
        rest = iter(answered)
        upcoming = next(rest, None)
        for op in sorted(self.ops, key=lambda op: op.start):
            while upcoming is not None and upcoming[0] < op.start:
                highest = max(highest, (upcoming[1], str(upcoming[2])))
                upcoming = next(rest, None)
            rev = op.commit_rev
            if rev is not None and rev <= highest[0]:
                self.problems.append(f"the revision went back: {op}, after {highest[1]}")
            if op.op == "SNAPSHOT" and op.outcome is Outcome.OK and _rev(op) < highest[0]:
                self.problems.append(f"a snapshot without what came before: {op}: {highest[1]}")

    def _promises(self) -> None:
        for op in lost(self.ops, self.after):
            if _rev_is_durable(op) or self.promise.survives(op):
                self.problems.append(f"lost: {op}; the store is at {self.after.rev}")
        for op in self.ops:
            vouched = _vouched_rev(op)
            if vouched > self.after.rev:
                self.problems.append(f"said to be on disk, and lost: {op}; at {self.after.rev}")
            if self.promise.reads_survive:
                seen = max((version.rev for _, version in op.seen if version), default=0)
                if seen > self.after.rev:
                    self.problems.append(f"read, and lost: {op}; the store is at {self.after.rev}")

    def _find_out(self) -> None:
        """Which writes of unknown outcome show in what was read, and so have a revision."""
        by_value = {op.value: op for op in self.unknown if op.value is not None}
        sightings = [
            (key, version) for op in self.ops for key, version in op.seen if version is not None
        ]
        for key, version in itertools.chain(self.after.entries.items(), sightings):
            op = by_value.get(version.value)
            if op is None or version.rev in self.writers or version.rev <= self.before.rev:
                continue
            if key in op.keys:
                self.writers[version.rev] = op
                del by_value[version.value]
        found = set(map(id, self.writers.values()))
        self.unknown = [op for op in self.unknown if id(op) not in found]

    def _reads(self) -> None:
        """Every read showed something that was written, and nothing older than it had to."""
        known = _Known(self.before, self.ops, self.writers, self.unknown)
        for op in self.ops:
            for key, version in op.seen:
                if version is not None:
                    self._read_was_written(op, key, version)
                problem = known.why_stale(op, key, version)
                if problem is not None:
                    self.problems.append(problem)

    def _read_was_written(self, op: Op, key: str, version: Version) -> None:
        if version.rev <= self.before.rev:
            if self.before.entries.get(key) != version:
                self.problems.append(f"{op} shows {key} as it never was before")
            return
        writer = self.writers.get(version.rev)
        if writer is None or key not in writer.keys or writer.value != version.value:
            self.problems.append(f"{op} shows what nobody wrote; {version.rev} is {writer}")
        elif op.end is not None and writer.start > op.end:
            self.problems.append(f"{op} shows what was written later: {writer}")

    def _read_together(self) -> None:
        """Each MGET showed its keys at one revision."""
        known_until = min([op.start for op in self.unknown], default=float("inf"))
        timeline = _Timeline(self.before, self.writers)
        for op in self.ops:
            if op.op != "MGET" or op.end is None or op.end > known_until:
                continue  # A write that nobody knows the place of may be in it.
            if not timeline.holds(op.seen):
                self.problems.append(f"no revision at which this was the state: {op}")


def _told_by_end(ops: Iterable[Op]) -> list[tuple[int, int, Op]]:
    """Replies in the order in which they came: when, the newest revision told of, the op."""
    told = [
        (op.end, max([op.commit_rev or 0, *(version.rev for _, version in op.seen if version)]), op)
        for op in ops
        if op.end is not None
    ]
    return sorted(told, key=lambda item: item[:2])


def _rev(op: Op) -> int:
    assert op.reply is not None
    rev: int = op.reply["rev"]
    return rev


def _rev_is_durable(op: Op) -> bool:
    return op.reply is not None and bool(op.reply.get("durable"))


def _vouched_rev(op: Op) -> int:
    """The revision that the answer says is on disk; 0 if it says of none."""
    if op.outcome is not Outcome.OK or op.reply is None:
        return 0
    if op.op == "INFO":
        rev: int = op.reply["durable_rev"]
        return rev
    return _rev(op) if op.op in {"SNAPSHOT", "END"} else 0


class _Known:
    """For each key, what a read has to show at least, by the time at which it began."""

    def __init__(
        self, before: State, ops: Sequence[Op], writers: dict[int, Op], unknown: Sequence[Op]
    ) -> None:
        self._before = before
        self._removals: dict[str, list[tuple[int, Op]]] = defaultdict(list)
        self._unknown_removals = [op for op in unknown if op.removes]
        facts: dict[str, list[tuple[int, int, bool]]] = defaultdict(list)
        for rev, op in writers.items():
            for key in op.keys:
                if op.removes:
                    self._removals[key].append((rev, op))
                if op.end is not None and op.commit_rev is not None:
                    facts[key].append((op.end, rev, not op.removes))
        for op in ops:
            for key, version in op.seen:
                if version is not None and op.end is not None:
                    facts[key].append((op.end, version.rev, True))
        self._ends: dict[str, list[int]] = {}
        self._newest: dict[str, list[tuple[int, bool]]] = {}
        for key, found in facts.items():
            found.sort()
            self._ends[key] = [end for end, _, _ in found]
            newest = itertools.accumulate([(rev, is_there) for _, rev, is_there in found], max)
            self._newest[key] = list(newest)

    def why_stale(self, op: Op, key: str, version: Version | None) -> str | None:
        """What is wrong with ``op`` showing ``version``; None if nothing is."""
        rev, is_there = self._floor(key, op.start)
        if version is not None:
            if version.rev < rev or (version.rev == rev and not is_there):
                return f"a stale read: {op}, when {key} was known at revision {rev}"
            return None
        if not is_there or self._may_be_removed(op, key, rev):
            return None
        return f"a stale read: {op}, when {key} was there at {rev}, and nobody removed it"

    def _floor(self, key: str, start: int) -> tuple[int, bool]:
        entry = self._before.entries.get(key)
        floor = (0, False) if entry is None else (entry.rev, True)
        count = bisect_left(self._ends.get(key, []), start)
        return max(floor, self._newest[key][count - 1]) if count else floor

    def _may_be_removed(self, op: Op, key: str, rev: int) -> bool:
        assert op.end is not None
        known = any(
            removed > rev and removal.start < op.end for removed, removal in self._removals[key]
        )
        return known or any(
            key in removal.keys and removal.start < op.end for removal in self._unknown_removals
        )


class _Timeline:
    """Each key's versions by revision, up to the first revision that is not known."""

    def __init__(self, before: State, writers: dict[int, Op]) -> None:
        self._first = before.rev
        self._end = self._first
        while self._end + 1 in writers:
            self._end += 1
        self._revs: dict[str, list[int]] = defaultdict(list)
        self._versions: dict[str, list[Version | None]] = defaultdict(list)
        for key, version in before.entries.items():
            self._revs[key].append(self._first)
            self._versions[key].append(version)
        for taken in range(self._first + 1, self._end + 1):
            op = writers[taken]
            for key in op.keys:
                self._revs[key].append(taken)
                self._versions[key].append(op.result(key, taken))

    def holds(self, seen: list[tuple[str, Version | None]]) -> bool:
        """Whether ``seen`` was the state at some revision, or at one beyond what is known."""
        least = max([version.rev for _, version in seen if version is not None], default=0)
        least = max(least, self._first)
        if least > self._end:
            return True
        changes = {rev for key, _ in seen for rev in self._revs.get(key, ()) if rev > least}
        return any(self._at(rev, seen) for rev in [least, *sorted(changes)])

    def _at(self, rev: int, seen: list[tuple[str, Version | None]]) -> bool:
        return all(self._version(key, rev) == version for key, version in seen)

    def _version(self, key: str, rev: int) -> Version | None:
        position = bisect_right(self._revs.get(key, []), rev)
        return self._versions[key][position - 1] if position else None


class _Replay:
    """Replays the writes on the state before, and compares with the state after.

    Writers of revisions that nobody was told of are chosen from ``unknown``, last revision first:
    going backwards, a write either gives a key the version that it has in the end, or stands behind
    a later one. What each removal found there can only be judged once all are chosen.
    """

    def __init__(
        self, before: State, after: State, writers: dict[int, Op], unknown: Sequence[Op]
    ) -> None:
        self._before = before
        self._after = after
        self._chosen = {rev: op for rev, op in writers.items() if rev <= after.rev}
        self._writers = writers
        self._gaps = [
            rev for rev in range(before.rev + 1, after.rev + 1) if rev not in self._chosen
        ]
        self._unknown = unknown
        self._tries = 0
        self._first_problems: list[str] = []
        # Whoever takes a gap began before any write behind it was answered.
        behind = sorted(self._chosen.items(), reverse=True)
        self._latest_start: dict[int, float] = {}
        earliest_end, position = float("inf"), 0
        for gap in reversed(self._gaps):
            while position < len(behind) and behind[position][0] > gap:
                end = behind[position][1].end
                earliest_end = min(earliest_end, float("inf") if end is None else end)
                position += 1
            self._latest_start[gap] = earliest_end
        self._removed: dict[str, int] = {}  # Key -> revision of its last known removal.
        for rev, op in behind:
            if op.removes:
                for key in op.keys:
                    self._removed.setdefault(key, rev)

    def run(self) -> list[str]:
        if len(self._gaps) > len(self._unknown):
            return [
                f"revisions {self._gaps[:20]} belong to nobody: only {len(self._unknown)} writes "
                "were left without an answer"
            ]
        if self._search(len(self._gaps) - 1, set()):
            return []
        if self._gaps:
            self._first_problems.append(
                f"(whichever of {len(self._unknown)} unanswered writes took {self._gaps[:20]}; "
                f"{self._tries} ways tried)"
            )
        return self._first_problems

    def _search(self, gap: int, used: set[int]) -> bool:
        """Fill the gaps up to the one with index ``gap``; whether that came out right."""
        self._tries += 1
        if self._tries > MOST_TRIES:
            if self._tries == MOST_TRIES + 1:
                self._first_problems.append("gave up the search: it may have come out right")
            return False
        if gap < 0:
            problems = self._compare()
            self._first_problems = self._first_problems or problems
            return not problems
        rev = self._gaps[gap]
        for index, op in enumerate(self._unknown):
            if index not in used and self._fits(op, rev):
                self._chosen[rev] = op
                if self._search(gap - 1, used | {index}):
                    self._writers[rev] = op
                    return True
                del self._chosen[rev]
        if not self._first_problems:
            self._first_problems = [f"no unanswered write can have taken revision {rev}"]
        return False

    def _fits(self, op: Op, rev: int) -> bool:
        """Whether ``op`` may have taken ``rev``, judged by what comes behind it."""
        for key in op.keys:
            end = self._after.entries.get(key)
            if end is not None and end.rev <= rev:
                return False
            if end is None and not op.removes and not self._removed_behind(key, rev):
                return False
        return op.start < self._latest_start[rev]

    def _removed_behind(self, key: str, rev: int) -> bool:
        in_gaps = [self._chosen[gap] for gap in self._gaps if gap > rev]
        return self._removed.get(key, 0) > rev or any(
            op.removes and key in op.keys for op in in_gaps
        )

    def _compare(self) -> list[str]:
        entries = dict(self._before.entries)
        problems: list[str] = []
        for rev in range(self._before.rev + 1, self._after.rev + 1):
            op = self._chosen[rev]
            present = sum(key in entries for key in dict.fromkeys(op.keys))
            if op.removes and not _may_remove(op, present):
                problems.append(f"revision {rev}: {present} of the keys were there: {op}")
            for key in op.keys:
                version = op.result(key, rev)
                if version is None:
                    entries.pop(key, None)
                else:
                    entries[key] = version
        for key in sorted(entries.keys() | self._after.entries.keys()):
            expected, found = entries.get(key), self._after.entries.get(key)
            if expected != found:
                writer = self._chosen.get(expected.rev) if expected else None
                problems.append(f"{key} is {found}, not {expected}, which is of {writer}")
        return problems


def _may_remove(op: Op, present: int) -> bool:
    """Whether a removal may have taken a revision, with so many of its keys there."""
    if op.reply is not None and op.reply["ok"] and op.op == "MDELETE":
        return bool(op.reply["deleted"] == present)
    return present > 0
