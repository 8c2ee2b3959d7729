"""A source that knows what each answer has to be.

Each slot has keys of its own, and remembers what it has written there: read your writes. Its INCRs
go to a counter of its own, whose every sum it knows, and to some that all share, whose final sums
are checked behind the run. Revisions have to grow from each of its writes to the next, and a read
has to show just the revision that the last write had.

Writes carry ``session`` and ``seq``, and are sent again until they are answered. So the outcome of
each is known, whatever happens to server and connections in between; a write that is lost, done
twice or done late is a wrong answer.
"""

from __future__ import annotations

import random
import uuid
from collections import Counter
from typing import Any, Final

import msgspec

from zkv.bench.workload import PREFIX, encode

OWN_KEYS: Final = 8
"""Keys of each slot: few, so that it often reads what it has just written."""
SHARED_COUNTERS: Final = 3
KEPT: Final = 20
"""So many complaints are kept in words; the rest are counted."""

OPS: Final = ("GET", "PUT", "DELETE", "INCR", "INCR shared", "MGET", "MPUT")
WEIGHTS: Final = (30, 25, 8, 15, 10, 6, 6)


class WrongAnswerError(Exception):
    """A reply says something that cannot be."""


class _Slot:
    """What one slot knows."""

    def __init__(self, name: str, session: str) -> None:
        self.session = session
        self.seq = 0
        self.rev = 0  # Of its newest write.
        self.keys = [f"{name}:{number}" for number in range(OWN_KEYS)]
        self.entries: dict[str, tuple[Any, int]] = {}  # Value and revision of what is there.
        self.counter = f"{name}:counter"
        self.sum = 0
        self.op = ""
        self.fields: dict[str, Any] = {}
        self.request = b""


class Verifier:
    """A `Source` that checks everything.

    Args:
        run: a name that no other run uses: parts its keys from theirs.
        seed: of what is drawn.
        slots: how many of this process.
        process: number of this process.
        open_ended: as for `Requests`.
        value_bytes: of what is written.
    """

    def __init__(
        self, run: str, seed: int, slots: int, process: int, open_ended: bool, value_bytes: int
    ) -> None:
        self.kinds = list(OPS)
        self.errors: Counter[str] = Counter()
        self.wrong: list[str] = []
        """The first complaints, in words."""
        self.wrong_count = 0
        self.shared: Counter[str] = Counter()
        """What this process has added to each shared counter."""
        self._random = random.Random(seed * 1_000_003 + process)  # noqa: S311  load, not secrets
        self._run = run
        self._value_bytes = value_bytes
        self._open_ended = open_ended
        self._slots = [
            _Slot(f"{keys_of(run)}{process}:{number}", uuid.uuid4().hex) for number in range(slots)
        ]

    def next(self, slot: int) -> tuple[int, bytes]:
        """Draw an op, and what it is about."""
        state, chance = self._slots[slot], self._random
        (kind,) = chance.choices(range(len(OPS)), WEIGHTS)
        state.op = OPS[kind]
        fields: dict[str, Any] = {"op": state.op.split()[0]}
        state.fields = fields
        key = chance.choice(state.keys)
        match state.op:
            case "GET":
                fields["key"] = key
            case "PUT":
                fields |= {"key": key, "value": self._value()}
            case "DELETE":
                fields["key"] = key
            case "INCR":
                fields |= {"key": state.counter, "by": chance.randint(1, 9)}
            case "INCR shared":
                number = chance.randrange(SHARED_COUNTERS)
                fields |= {"key": shared_counter(self._run, number), "by": chance.randint(1, 9)}
            case "MGET":
                fields["keys"] = chance.sample(state.keys, 4)
            case "MPUT":
                fields["items"] = {each: self._value() for each in chance.sample(state.keys, 4)}
        if not state.op.endswith("GET"):
            state.seq += 1
            fields |= {"session": state.session, "seq": state.seq}
        packed = encode(fields)
        if self._open_ended:
            packed = b"%c%b\xa2id" % (packed[0] + 1, packed[1:])
        state.request = packed
        return kind, packed

    def reply(self, slot: int, reply: bytes) -> bytes | bool:
        """Check the answer, and learn from it. What may succeed later is sent again."""
        state = self._slots[slot]
        try:
            fields = msgspec.msgpack.decode(reply)
            if fields["ok"] is False and fields["retry"] is True:
                self.errors[fields["code"]] += 1
                return state.request
            self._check(state, fields)
        except (WrongAnswerError, KeyError, TypeError, msgspec.DecodeError) as error:
            self.wrong_count += 1
            if len(self.wrong) < KEPT:
                said = f"{type(error).__name__}: {error}"
                self.wrong.append(f"{state.fields}: {said}; the reply was {reply[:200]!r}")
            return False
        return True

    def lost(self, slot: int) -> bytes:
        """The same again: a read for its answer, a write to learn what has become of it."""
        return self._slots[slot].request

    def _value(self) -> bytes:
        return self._random.randbytes(self._value_bytes)

    def _check(self, state: _Slot, reply: dict[str, Any]) -> None:
        fields = state.fields
        if reply["ok"] is not True:
            absent = fields.get("key") not in state.entries
            if reply["code"] == "NOT_FOUND" and state.op in {"GET", "DELETE"} and absent:
                return
            raise WrongAnswerError(f"refused with {reply['code']}")
        match state.op:
            case "GET":
                _same((reply["value"], reply["rev"]), state.entries.get(fields["key"]))
            case "MGET":
                seen = zip(fields["keys"], reply["values"], reply["revs"], strict=True)
                for key, value, rev in seen:
                    _same((value, rev), state.entries.get(key, (None, 0)))
            case _:
                self._check_write(state, reply)

    def _check_write(self, state: _Slot, reply: dict[str, Any]) -> None:
        fields, rev = state.fields, reply["rev"]
        if rev <= state.rev:
            raise WrongAnswerError(f"revision {rev} after {state.rev}")
        state.rev = rev
        match state.op:
            case "PUT":
                state.entries[fields["key"]] = (fields["value"], rev)
            case "DELETE":
                if state.entries.pop(fields["key"], None) is None:
                    raise WrongAnswerError("deleted what was not there")
            case "MPUT":
                for key, value in fields["items"].items():
                    state.entries[key] = (value, rev)
            case "INCR":
                state.sum += fields["by"]
                _same(reply["value"], state.sum)
            case "INCR shared":
                self.shared[fields["key"]] += fields["by"]


def keys_of(run: str) -> str:
    """What all keys of a run begin with."""
    return f"{PREFIX}verify:{run}:"


def shared_counter(run: str, number: int) -> str:
    """The key of a counter that all share."""
    return f"{keys_of(run)}shared:{number}"


def _same(actual: object, expected: object) -> None:
    if actual != expected:
        raise WrongAnswerError(f"{actual!r} instead of {expected!r}")
