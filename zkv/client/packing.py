"""Collects the ops of pipelines and transactions, and packs them into few messages.

A transaction is one TXN. A pipeline is packed into as few messages as possible: reads into MGET,
writes without options into MPUT, mixed ops into TXN. Its ops run in the order in which they were
added, one message after the other, so each op sees the effects of those before it.

If an op of a TXN fails, none of its ops is applied. So the pipeline sends the ops before the failed
one again, then the failed op alone, so that only this op fails, and then the rest, in smaller
messages as long as ops fail. `Packing` decides all this, without I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, cast

from msgspec import UNSET

from zkv import checks
from zkv.client.codec import Packed
from zkv.client.connection import refuse_to_pickle
from zkv.client.errors import BadValueError, ClientError, RefusedError
from zkv.client.operations import RAISE, Operation, Reply, addend, condition
from zkv.client.process import check_process, generation
from zkv.client.slicing import Sliced
from zkv.client.steps import (
    DeleteStep,
    GetStep,
    IncrStep,
    PutIfStep,
    PutStep,
    Step,
    TouchStep,
    fields_of,
    name_of,
    pack_steps,
)
from zkv.client.values import unpack

if TYPE_CHECKING:
    from zkv.checks import Seconds

MOST: Final = 1_000
"""The maximum number of ops in one message."""
WORTH_IT: Final = 16
"""From this many ops of one kind in a row, a separate message is worth its round trip."""

OF_THE_OP: Final = frozenset(
    {"NOT_FOUND", "CONFLICT", "WRONG_TYPE", "TOO_LARGE", "BAD_REQUEST", "DENIED"}
)
"""Refusals that concern one op, or the size of the message; others concern the server."""

Defaults = dict[int, Any]
"""The defaults of GETs other than None, by the place of the GET."""


class WrittenOps:
    """Collects ops, to run them later. It has methods of the same names as `Namespace`.

    Args:
        prefix: added to all keys.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._steps: list[Step] = []
        self._defaults: Defaults = {}
        self.results: list[Any] = []
        """The results of the ops, in their order, once they have run."""
        self._made_in = generation()

    __reduce__ = refuse_to_pickle

    def __len__(self) -> int:
        return len(self._steps)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} ops that have not been sent>"

    def get(self, key: str, default: Any = None) -> None:
        """Read a value. Its result is the value, or ``default`` if the key is absent."""
        if type(key) is not str:
            key = checks.key("", key)
        get = GetStep(self._prefix + key)
        if default is not None:
            self._defaults[len(self._steps)] = default
        self._steps.append(get)

    def put(
        self,
        key: str,
        value: Any,
        *,
        ttl: Seconds | None = None,
        if_rev: int | None = None,
        create: bool = False,
    ) -> None:
        """Write a value. Its result is the revision."""
        if type(key) is not str:
            key = checks.key("", key)
        stored = self._prefix + key
        if ttl is if_rev is None and create is False:
            self._steps.append(PutStep(stored, value))
            return
        expected = condition(if_rev, create)
        lives = checks.ttl(ttl)
        self._steps.append(
            PutIfStep(
                stored,
                value,
                UNSET if lives is None else lives,
                UNSET if expected is None else expected,
            )
        )

    def delete(self, key: str, *, if_rev: int | None = None) -> None:
        """Remove an entry. Its result is True if the key existed.

        In a pipeline it is False for an absent key; a transaction fails.
        """
        expected = condition(if_rev, False)
        self._steps.append(
            DeleteStep(checks.key(self._prefix, key), UNSET if expected is None else expected)
        )

    def touch(self, key: str, ttl: Seconds | None) -> None:
        """Set a new time to live for an entry. Its result is the revision of this change."""
        self._steps.append(TouchStep(checks.key(self._prefix, key), checks.ttl(ttl)))

    def incr(self, key: str, by: int = 1) -> None:
        """Add to a 64-bit int. Its result is the sum."""
        self._steps.append(IncrStep(checks.key(self._prefix, key), addend(by)))

    def _take(self) -> tuple[list[Step], Defaults]:
        """Return the collected ops, and discard them here. Raises ClosedError in a forked child.

        The parent runs them. If the child ran its copy, too, they would run twice.
        """
        check_process(self._made_in)
        written = self._steps, self._defaults
        self._discard()
        return written

    def _discard(self) -> None:
        """Discard the collected ops."""
        self._steps, self._defaults = [], {}


class Packing:
    """The messages of a pipeline: run `next_message` until it returns None; report each outcome.

    Args:
        steps: the ops in their order.
        defaults: of the GETs among them.
    """

    def __init__(self, steps: Sequence[Step], defaults: Defaults) -> None:
        self._steps = steps
        self._defaults = defaults
        self._at = 0
        self._size = MOST
        self._planned: list[int] = []  # Sizes of the next messages, the first one last.
        self._sent = 0
        self.results: list[Any] = []
        self.first_error: ClientError | None = None

    def next_message(self) -> Operation[list[Any]] | None:
        """Return the next request; None = all ops have a result."""
        if self._at == len(self._steps):
            return None
        most = self._planned.pop() if self._planned else self._size
        chunk = self._steps[self._at : self._at + most]
        at = self._at
        defaults = {place - at: default for place, default in self._defaults.items()}
        message, self._sent = _pack(chunk, defaults)
        return message

    def succeeded(self, results: list[Any]) -> None:
        """Record the results of a message. A value that cannot be decoded is an error of its op."""
        if self.first_error is None and BadValueError in map(type, results):
            self.first_error = next(each for each in results if type(each) is BadValueError)
        self._settle(results)
        self._size = min(2 * self._size, MOST)

    def refused(self, error: RefusedError) -> None:
        """Record that the message was refused, and plan how to send its ops again."""
        if error.code not in OF_THE_OP:
            self.failed(error)
            return
        index = error.details.get("index")
        if self._sent == 1 or index == 0:
            absent = self._defaults.get(self._at, self._steps[self._at].absent)
            if error.code == "NOT_FOUND" and absent is not RAISE:
                self._settle([absent])
            else:
                self._settle_failed(error, 1)
            return
        self._size = max(1, self._sent // 2)
        self._planned = [] if type(index) is not int or index >= self._sent else [1, index]

    def unreadable(self, error: BadValueError) -> None:
        """Record that the message's only op has read a value that cannot be decoded."""
        self._settle_failed(error, 1)

    def failed(self, error: ClientError) -> None:
        """Record an error of the message, also for all later ops, which are not sent."""
        self._settle_failed(error, self._sent)
        self._settle_failed(unsent(error), len(self._steps) - self._at)

    def _settle_failed(self, error: ClientError, size: int) -> None:
        if self.first_error is None:
            self.first_error = error
        self._settle([error] * size)

    def _settle(self, results: list[Any]) -> None:
        self.results += results
        self._at += len(results)


def unsent(error: ClientError) -> ClientError:
    """Return a copy of ``error`` for ops that were not sent."""
    if isinstance(error, RefusedError):
        return error.but(False)
    return type(error)(error.message, False)


def _pack(chunk: Sequence[Step], defaults: Defaults) -> tuple[Operation[list[Any]], int]:
    """Pack one message of the first steps of ``chunk``; also returns their number."""
    if len(chunk) == 1:
        return _alone(chunk[0]), 1
    kind, alike = next(groupby(chunk, type))
    if kind is GetStep:
        keys = [step.key for step in alike]
        if len(keys) == len(chunk) or len(keys) >= WORTH_IT:
            return _mget(keys, defaults), len(keys)
    elif kind is PutStep:
        items = _items(cast("list[PutStep]", list(alike)))
        if len(items) == len(chunk) or len(items) >= WORTH_IT:
            return _mput(items), len(items)
    return _txn(chunk, defaults), len(chunk)


def _items(puts: Sequence[PutStep]) -> dict[str, Any]:
    """Return the entries of PUTs, up to the first that writes a key again."""
    items = {step.key: step.value for step in puts}
    if len(items) < len(puts):
        items = {}
        for step in puts:
            if step.key in items:
                break
            items[step.key] = step.value
    return items


def _alone(step: Step) -> Operation[list[Any]]:
    return Operation(name_of(step), fields_of(step), lambda reply: [reply[step.told]])


def _mget(keys: list[str], defaults: Defaults) -> Operation[list[Any]]:
    def read(reply: Reply) -> list[Any]:
        values: list[Any] = reply["values"]
        revs: list[int] = reply["revs"]
        if not len(values) == len(revs) == len(keys):
            raise ValueError(f"{len(values)} values and {len(revs)} revs of {len(keys)} keys")
        for place, default in defaults.items():
            if 0 <= place < len(keys) and not revs[place]:
                values[place] = default
        return values

    return Operation("MGET", {"keys": keys}, read)


def _mput(items: dict[str, Any]) -> Operation[list[Any]]:
    return Operation("MPUT", {"items": items}, lambda reply: [reply["rev"]] * len(items))


def _txn(steps: Sequence[Step], defaults: Defaults) -> Operation[list[Any]]:
    def read(reply: Reply) -> list[Any]:
        told = reply["results"]
        results = [result[step.told] for step, result in zip(steps, told, strict=True)]
        if type(reply) is Sliced:
            results = list(map(_unpacked_sum, steps, results))
        for place, default in defaults.items():
            if 0 <= place < len(steps) and not told[place]["rev"]:
                results[place] = default
        return results

    return Operation("TXN", {"ops": steps}, read, pack=pack_steps)


def _unpacked_sum(step: Step, result: Any) -> Any:
    """Unpack the result of an INCR, which was cut out like a value; return others unchanged."""
    return unpack(result) if type(step) is IncrStep and type(result) is Packed else result


class TransactionOps(WrittenOps):
    """Ops that are all applied or none, on conditions."""

    def __init__(self, prefix: str) -> None:
        super().__init__(prefix)
        self._conditions: list[tuple[str, int]] = []
        self.rev = 0
        """The revision of the committed transaction; if it only read, that of the store."""

    def check(self, key: str, rev: int) -> None:
        """Add a condition: the key has this revision; 0 = it is absent."""
        self._conditions.append((checks.key(self._prefix, key), checks.revision("rev", rev)))

    def _discard(self) -> None:
        super()._discard()
        self._conditions = []

    def _message(self) -> Operation[list[Any]]:
        conditions = self._conditions
        message = _txn(*self._take())
        if conditions:
            message.fields["if"] = conditions
        read_results = message.read

        def read(reply: Reply) -> list[Any]:
            self.rev = reply["rev"]
            return read_results(reply)

        message.read = read
        return message
