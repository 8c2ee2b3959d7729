# Generated from async_pipeline.py by tools/unasync.py. Change that file, then: make generate
"""Many ops in few messages: pipelines, where each op succeeds or fails alone, and transactions.

Both collect operations and send them at the end; `zkv.client.packing` describes how they are
packed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from zkv import checks
from zkv.client.errors import BadValueError, ClientError, RefusedError
from zkv.client.operations import Operation
from zkv.client.packing import Packing, TransactionOps, WrittenOps


class Pipeline(WrittenOps):
    """Ops that are sent together; each succeeds or fails alone. See `Client.pipeline`."""

    def __init__(self, prefix: str, perform: Callable[[Operation[Any]], Any]) -> None:
        super().__init__(prefix)
        self._perform = perform

    def execute(self, *, return_exceptions: bool = False) -> list[Any]:
        """Run the collected ops; the pipeline is then empty and can be used again.

        Args:
            return_exceptions: True = return errors among the results instead of raising the first.

        Returns:
            The results of the ops, in their order; also in ``results``.

        Raises:
            ClientError: an op failed; all other ops were tried.
            BadValueError: a value that was read cannot be decoded; all other ops were tried.
            BadValueError, TypeError, ValueError: a value cannot be packed. Its message and those
                after it were not sent; earlier messages, of up to a thousand ops each, were.
        """
        checks.flag("return_exceptions", return_exceptions)
        packing = Packing(*self._take())
        while (message := packing.next_message()) is not None:
            try:
                packing.succeeded(self._perform(message))
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if failed is None:
            self.execute()
        else:
            self._discard()


class Transaction(TransactionOps):
    """Ops that are all applied or none. See `Client.txn`."""

    def __init__(self, prefix: str, perform: Callable[[Operation[Any]], Any]) -> None:
        super().__init__(prefix)
        self._perform = perform

    def commit(self) -> list[Any]:
        """Run the collected ops; the transaction is then empty and can be used again.

        Returns:
            The results of the ops, in their order; also in ``results``.

        Raises:
            ConflictError: a condition does not hold; nothing was applied.
            RefusedError: an op failed, the one at ``details["index"]``; nothing was applied.
        """
        self.results = self._perform(self._message())
        return self.results

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if failed is None:
            self.commit()
        else:
            self._discard()
