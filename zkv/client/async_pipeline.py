"""Many ops in few messages: pipelines, where each op succeeds or fails alone, and transactions.

Both write down operations and send them at the end; `zkv.client.packing` tells how they are packed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Self

from zkv import checks
from zkv.client.errors import BadValueError, ClientError, RefusedError
from zkv.client.operations import Operation
from zkv.client.packing import Packing, TransactionOps, WrittenOps


class AsyncPipeline(WrittenOps):
    """Ops that are sent together, each of which succeeds or fails alone; see `Client.pipeline`."""

    def __init__(self, prefix: str, perform: Callable[[Operation[Any]], Awaitable[Any]]) -> None:
        super().__init__(prefix)
        self._perform = perform

    async def execute(self, *, return_exceptions: bool = False) -> list[Any]:
        """Run what has been written down, and begin anew.

        Args:
            return_exceptions: give the errors among the results, instead of raising the first one.

        Returns:
            What the ops returned, in their order; also in ``results``.

        Raises:
            ClientError: an op failed; all others have had their try.
            BadValueError: a value that was read cannot be decoded; all others have had their try.
            BadValueError, TypeError, ValueError: a value cannot be packed. Its message and those
                after it were not sent; earlier ones, of a thousand ops at most, were.
        """
        checks.flag("return_exceptions", return_exceptions)
        packing = Packing(*self._take())
        while (message := packing.next_message()) is not None:
            try:
                packing.succeeded(await self._perform(message))
            except RefusedError as error:
                packing.refused(error)
            except BadValueError as error:
                if error.packed is None:  # It was to be sent.
                    raise
                packing.unreadable(error)
            except ClientError as error:
                packing.failed(error)
        self.results = packing.results
        if packing.first_error is not None and not return_exceptions:
            raise packing.first_error
        return self.results

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if failed is None:
            await self.execute()
        else:
            self._discard()


class AsyncTransaction(TransactionOps):
    """Ops that happen as a whole or not at all; see `Client.txn`."""

    def __init__(self, prefix: str, perform: Callable[[Operation[Any]], Awaitable[Any]]) -> None:
        super().__init__(prefix)
        self._perform = perform

    async def commit(self) -> list[Any]:
        """Run what has been written down, and begin anew.

        Returns:
            What the ops returned, in their order; also in ``results``.

        Raises:
            ConflictError: a condition does not hold.
            RefusedError: an op failed. ``details["index"]`` tells which; nothing has happened.
        """
        self.results = await self._perform(self._message())
        return self.results

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if failed is None:
            await self.commit()
        else:
            self._discard()
