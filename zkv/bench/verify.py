"""A source that checks every reply against its own model of the data.

Each slot has its own keys and remembers what it has written to them, so it checks that reads see
its writes. Its INCRs go to its own counter, where it checks each sum, and to counters that all
slots share, whose final sums are checked after the run. The revisions of its writes must increase,
and a read must show the revision of the last write.

Writes have ``session`` and ``seq``, and are sent again until they are answered. So the outcome of
each write is known even if the server or a connection fails in between. A write that is lost,
applied twice or applied late shows as a wrong answer.
"""

from __future__ import annotations

import random
import uuid
from collections import Counter
from typing import Any, Final

import msgspec

from zkv.bench.workload import PREFIX, encode

OWN_KEYS: Final = 8
"""The number of keys of each slot: few, so that it often reads what it has just written."""
SHARED_COUNTERS: Final = 3
KEPT: Final = 20
"""The number of wrong answers that are kept as text; the rest are only counted."""

OPS: Final = ("GET", "PUT", "DELETE", "INCR", "INCR shared", "MGET", "MPUT")
WEIGHTS: Final = (30, 25, 8, 15, 10, 6, 6)


class WrongAnswerError(Exception):
    """A reply is wrong."""


class _Slot:
    """The state of one slot."""

    def __init__(self, name: str, session: str) -> None:
        self.session = session
        self.seq = 0
        self.rev = 0  # The revision of its newest write.
        self.keys = [f"{name}:{number}" for number in range(OWN_KEYS)]
        self.entries: dict[str, tuple[Any, int]] = {}  # Value and revision of each present key.
        self.counter = f"{name}:counter"
        self.sum = 0
        self.op = ""
        self.fields: dict[str, Any] = {}
        self.request = b""


class Verifier:
    """A `Source` that checks everything.

    Args:
        run: a unique name, part of all its keys.
        seed: the seed of the random generator.
        slots: the number of slots of this process.
        process: the number of this process.
        open_ended: as for `Requests`.
        value_bytes: the size of the values that are written.
    """

    def __init__(
        self, run: str, seed: int, slots: int, process: int, open_ended: bool, value_bytes: int
    ) -> None:
        self.kinds = list(OPS)
        self.errors: Counter[str] = Counter()
        self.wrong: list[str] = []
        """Descriptions of the first wrong answers."""
        self.wrong_count = 0
        self.shared: Counter[str] = Counter()
        """The sum that this process has added to each shared counter."""
        self._random = random.Random(seed * 1_000_003 + process)  # noqa: S311  load, not secrets
        self._run = run
        self._value_bytes = value_bytes
        self._open_ended = open_ended
        self._slots = [
            _Slot(f"{keys_of(run)}{process}:{number}", uuid.uuid4().hex) for number in range(slots)
        ]

    def next(self, slot: int) -> tuple[int, bytes]:
        """Draw an op and its fields."""
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
        """Check the reply and update the model. A failure with ``retry`` is sent again."""
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
        """The same request again; for a write, the reply tells if it was applied."""
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
                    raise WrongAnswerError("deleted a key that did not exist")
            case "MPUT":
                for key, value in fields["items"].items():
                    state.entries[key] = (value, rev)
            case "INCR":
                state.sum += fields["by"]
                _same(reply["value"], state.sum)
            case "INCR shared":
                self.shared[fields["key"]] += fields["by"]


def keys_of(run: str) -> str:
    """The prefix of all keys of a run."""
    return f"{PREFIX}verify:{run}:"


def shared_counter(run: str, number: int) -> str:
    """The key of a counter that all slots share."""
    return f"{keys_of(run)}shared:{number}"


def _same(actual: object, expected: object) -> None:
    if actual != expected:
        raise WrongAnswerError(f"{actual!r} instead of {expected!r}")
