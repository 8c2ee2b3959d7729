"""Many ops in few messages: pipelines, where each op succeeds or fails alone, and transactions.

Both write down operations and send them at the end. A transaction is one TXN. A pipeline is packed
into as few messages as it can be: reads into MGET, plain writes into MPUT, anything mixed into TXN.
Its ops run in the order in which they were written down, one message after the other, so each sees
what those before it did.

An op that fails takes a whole TXN with it, and nothing of that has happened. So the pipeline sends
what stands before that op again, then the op alone, whose failure is then its own, then the rest,
in smaller messages while failures go on. `Packing` decides all this, with no I/O.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, Self

from zkv.client.errors import ClientError, RefusedError
from zkv.client.operations import (
    RAISE,
    Operation,
    Reply,
    delete_fields,
    put_fields,
    read_nothing,
    read_rev,
    read_value,
)

MOST: Final = 1_000
"""Ops in one message."""
WORTH_IT: Final = 16
"""Ops of one kind in a row for which a message of their own, cheaper per op, is worth its way."""

OF_THE_OP: Final = frozenset(
    {"NOT_FOUND", "CONFLICT", "WRONG_TYPE", "TOO_LARGE", "BAD_REQUEST", "DENIED"}
)
"""Refusals that are about one op, or about the size of the message; others are about the server."""


Fields = dict[str, Any]

Step = tuple[str, Fields, Callable[[Reply], Any], Any]
"""One op: its name, its fields with ``op`` among them, how its reply is read, and what stands for
an absent key, if that is no error. A tuple, since making an object for each op takes as long as
all the rest that is done for it."""


class Batch:
    """Ops that are written down, to be run later. Their methods are those of `Namespace`.

    Args:
        prefix: stands before all keys.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._steps: list[Step] = []
        self.results: list[Any] = []
        """What the ops returned, in their order, once they have run."""

    def __len__(self) -> int:
        return len(self._steps)

    def get(self, key: str, default: Any = None) -> None:
        """Read a value; the default where there is none."""
        fields = {"op": "GET", "key": self._prefix + key}
        self._steps.append(("GET", fields, read_value, default))

    def put(
        self,
        key: str,
        value: Any,
        *,
        ttl: float | None = None,
        if_rev: int | None = None,
        create: bool = False,
    ) -> None:
        """Write a value; gives its revision."""
        fields = put_fields(self._prefix + key, value, ttl, if_rev, create)
        fields["op"] = "PUT"
        self._steps.append(("PUT", fields, read_rev, RAISE))

    def delete(self, key: str, *, if_rev: int | None = None) -> None:
        """Remove an entry; gives whether there was one. In a transaction there has to be one."""
        fields = delete_fields(self._prefix + key, if_rev)
        fields["op"] = "DELETE"
        self._steps.append(("DELETE", fields, read_nothing, False))

    def touch(self, key: str, ttl: float | None) -> None:
        """Give an entry another time to live; gives the revision of that."""
        fields = {"op": "TOUCH", "key": self._prefix + key, "ttl": ttl}
        self._steps.append(("TOUCH", fields, read_rev, RAISE))

    def incr(self, key: str, by: int = 1) -> None:
        """Add to a number; gives the sum."""
        fields = {"op": "INCR", "key": self._prefix + key, "by": by}
        self._steps.append(("INCR", fields, read_value, RAISE))

    def _take(self) -> list[Step]:
        steps, self._steps = self._steps, []
        return steps


class Packing:
    """The messages of a pipeline: ask for `next_message` until it gives None, and answer each.

    Args:
        steps: the ops in their order.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = steps
        self._at = 0
        self._size = MOST
        self._planned: list[int] = []  # Sizes of the next messages, the first one last.
        self._sent = 0
        self.results: list[Any] = []

    def next_message(self) -> Operation[list[Any]] | None:
        """The next request; None where all ops have a result."""
        if self._at == len(self._steps):
            return None
        most = self._planned.pop() if self._planned else self._size
        chunk = self._steps[self._at : self._at + most]
        message, self._sent = _pack(chunk)
        return message

    def succeeded(self, results: list[Any]) -> None:
        """The message's ops have run."""
        self._settle(results)
        self._size = min(2 * self._size, MOST)

    def refused(self, error: RefusedError) -> None:
        """The message was refused."""
        if error.code not in OF_THE_OP:
            self.failed(error)
            return
        index = error.details.get("index")
        if self._sent == 1 or index == 0:
            absent = self._steps[self._at][3]
            tolerated = error.code == "NOT_FOUND" and absent is not RAISE
            self._settle([absent if tolerated else error])
            return
        self._size = max(1, self._sent // 2)
        self._planned = [] if type(index) is not int or index >= self._sent else [1, index]

    def failed(self, error: ClientError) -> None:
        """Nothing more can be sent: the message had this error, and the rest has it, too."""
        self._settle([error] * self._sent)
        self._settle([unsent(error)] * (len(self._steps) - self._at))

    def _settle(self, results: list[Any]) -> None:
        self.results += results
        self._at += len(results)


def unsent(error: ClientError) -> ClientError:
    """An error like ``error``, for what has not even been sent."""
    if isinstance(error, RefusedError):
        return error.but(False)
    return type(error)(error.message, False)


def raise_first_error(results: Iterable[Any]) -> None:
    """Raise the first error among results."""
    for result in results:
        if isinstance(result, ClientError):
            raise result


def _pack(chunk: Sequence[Step]) -> tuple[Operation[list[Any]], int]:
    """One message for the first steps of ``chunk``, and how many these are."""
    if len(chunk) == 1:
        return _alone(chunk[0]), 1
    keys = _keys_to_get(chunk)
    if len(keys) == len(chunk) or len(keys) >= WORTH_IT:
        return _mget(keys, chunk), len(keys)
    items = _items_to_put(chunk)
    if len(items) == len(chunk) or len(items) >= WORTH_IT:
        return _mput(items), len(items)
    return _txn(chunk), len(chunk)


def _keys_to_get(chunk: Sequence[Step]) -> list[str]:
    """The keys of the GETs that ``chunk`` begins with."""
    keys = []
    for op, fields, _, _ in chunk:
        if op != "GET":
            break
        keys.append(fields["key"])
    return keys


def _items_to_put(chunk: Sequence[Step]) -> Fields:
    """What ``chunk`` puts in the beginning, as long as that is without conditions or ttl."""
    items: Fields = {}
    for op, fields, _, _ in chunk:
        if op != "PUT" or len(fields) != 3 or (key := fields["key"]) in items:
            break
        items[key] = fields["value"]
    return items


def _alone(step: Step) -> Operation[list[Any]]:
    op, fields, read, _ = step
    return Operation(op, {name: fields[name] for name in fields if name != "op"}, _in_list(read))


def _in_list(read: Callable[[Reply], Any]) -> Callable[[Reply], list[Any]]:
    return lambda reply: [read(reply)]


def _mget(keys: list[str], steps: Sequence[Step]) -> Operation[list[Any]]:
    def read(reply: Reply) -> list[Any]:
        values: list[Any] = reply["values"]
        for at, rev in enumerate(reply["revs"]):
            if not rev:
                values[at] = steps[at][3]
        if len(values) != len(keys):
            raise ValueError(f"{len(values)} values of {len(keys)} keys")
        return values

    return Operation("MGET", {"keys": keys}, read)


def _mput(items: Fields) -> Operation[list[Any]]:
    return Operation("MPUT", {"items": items}, lambda reply: [reply["rev"]] * len(items))


def _txn(steps: Sequence[Step]) -> Operation[list[Any]]:
    def read(reply: Reply) -> list[Any]:
        return [
            absent if op == "GET" and not result["rev"] else read(result)
            for (op, _, read, absent), result in zip(steps, reply["results"], strict=True)
        ]

    return Operation("TXN", {"ops": [fields for _, fields, _, _ in steps]}, read)


class Pipeline(Batch):
    """Ops that are sent together, each of which succeeds or fails alone; see `Client.pipeline`."""

    def __init__(self, prefix: str, perform: Callable[[Operation[Any]], Any]) -> None:
        super().__init__(prefix)
        self._perform = perform

    def execute(self, *, return_exceptions: bool = False) -> list[Any]:
        """Run what has been written down, and begin anew.

        Args:
            return_exceptions: give the errors among the results, instead of raising the first one.

        Returns:
            What the ops returned, in their order; also in ``results``.

        Raises:
            ClientError: an op failed; all others have had their try.
            TypeError, ValueError, OverflowError: a value cannot be packed. Its message and those
                behind it were not sent; earlier ones, of a thousand ops at most, were.
        """
        packing = Packing(self._take())
        while (message := packing.next_message()) is not None:
            try:
                packing.succeeded(self._perform(message))
            except RefusedError as error:
                packing.refused(error)
            except ClientError as error:
                packing.failed(error)
        self.results = packing.results
        if not return_exceptions:
            raise_first_error(self.results)
        return self.results

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if failed is None:
            self.execute()


class AsyncPipeline(Batch):
    """Ops that are sent together; see `Client.pipeline`."""

    def __init__(self, prefix: str, perform: Callable[[Operation[Any]], Awaitable[Any]]) -> None:
        super().__init__(prefix)
        self._perform = perform

    async def execute(self, *, return_exceptions: bool = False) -> list[Any]:
        """Run what has been written down, and begin anew; see `Pipeline.execute`."""
        packing = Packing(self._take())
        while (message := packing.next_message()) is not None:
            try:
                packing.succeeded(await self._perform(message))
            except RefusedError as error:
                packing.refused(error)
            except ClientError as error:
                packing.failed(error)
        self.results = packing.results
        if not return_exceptions:
            raise_first_error(self.results)
        return self.results

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if failed is None:
            await self.execute()


class TransactionBatch(Batch):
    """Ops that happen as a whole or not at all, on conditions."""

    def __init__(self, prefix: str) -> None:
        super().__init__(prefix)
        self._conditions: list[tuple[str, int]] = []
        self.rev = 0
        """The revision of the transaction, once it is committed; of the store, if it only read."""

    def check(self, key: str, rev: int) -> None:
        """Go on only if the key is at this revision; 0 = if it is absent."""
        self._conditions.append((self._prefix + key, rev))

    def _message(self) -> Operation[list[Any]]:
        message = _txn(self._take())
        if self._conditions:
            message.fields["if"] = self._conditions
            self._conditions = []
        read_results = message.read

        def read(reply: Reply) -> list[Any]:
            self.rev = reply["rev"]
            return read_results(reply)

        message.read = read
        return message


class Transaction(TransactionBatch):
    """Ops that happen as a whole or not at all; see `Client.txn`."""

    def __init__(self, prefix: str, perform: Callable[[Operation[Any]], Any]) -> None:
        super().__init__(prefix)
        self._perform = perform

    def commit(self) -> list[Any]:
        """Run what has been written down, and begin anew.

        Returns:
            What the ops returned, in their order; also in ``results``.

        Raises:
            ConflictError: a condition does not hold.
            RefusedError: an op failed. ``details["index"]`` tells which; nothing has happened.
        """
        self.results = self._perform(self._message())
        return self.results

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if failed is None:
            self.commit()


class AsyncTransaction(TransactionBatch):
    """Ops that happen as a whole or not at all; see `Client.txn`."""

    def __init__(self, prefix: str, perform: Callable[[Operation[Any]], Awaitable[Any]]) -> None:
        super().__init__(prefix)
        self._perform = perform

    async def commit(self) -> list[Any]:
        """Run what has been written down, and begin anew; see `Transaction.commit`."""
        self.results = await self._perform(self._message())
        return self.results

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if failed is None:
            await self.commit()
