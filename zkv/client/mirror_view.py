"""The readable part of a mirror: a copy of part of the store that behaves like a dict.

A thread or an asyncio task follows the changes and applies them here. Reading one key reads a dict,
without a lock: each step that changes the dict is atomic in Python. Reads of several keys happen
between two batches of changes: the reader checks before and after, and reads again if a batch was
applied meanwhile. Nothing holds a lock, since a signal handler that has interrupted its holder
would wait for it forever.

After a `RESET` the entries are collected in new dicts. These replace the old ones only once they
show one revision, so readers never see a store that is half read.

In a forked child nothing follows the changes, so all reads raise an error: see `_OfParent`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from operator import itemgetter
from typing import Any, NoReturn, TypeVar

from zkv import checks
from zkv.client.connection import refuse_to_pickle
from zkv.client.errors import (
    BadValueError,
    ClientError,
    ClosedError,
    NoReplyError,
    NotFoundError,
)
from zkv.client.follower import RESET, ChangeBatch, Follower
from zkv.client.operations import Change, Entry
from zkv.client.process import FOREIGN, check_process, generation, is_foreign, tell_of_forks

T = TypeVar("T")

_log = logging.getLogger("zkv.client")

PRESENT = frozenset({"PUT", "TOUCH"})
"""Changes after which the key exists, with their value."""


class _Entries:
    """The entries of a mirror."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.revs: dict[str, int] = {}

    def apply(self, change: Change) -> None:
        if change.op in PRESENT:
            self.values[change.key] = change.value
            self.revs[change.key] = change.rev
        else:
            self.values.pop(change.key, None)
            self.revs.pop(change.key, None)

    def differences(self, newer: _Entries, rev: int) -> Iterator[Change]:
        """The changes that lead from these entries to ``newer``, the state at ``rev``."""
        for key in self.revs:
            if key not in newer.revs:
                yield Change(rev, "DELETE", key, None)
        for key, at in newer.revs.items():
            if self.revs.get(key) != at:
                yield Change(at, "PUT", key, newer.values[key])


class _Applying:
    """A batch of changes that is being applied.

    Args:
        changes: those of the batch.
    """

    def __init__(self, changes: list[Change]) -> None:
        self.changes = changes
        self.thread = threading.get_ident()


class _OfParent(dict[str, Any]):
    """Replaces a mirror's dict in a forked child: reading it raises a `ClosedError`.

    So the check costs reads in the parent nothing.
    """

    def _raise(self, *_: object) -> NoReturn:
        raise ClosedError(FOREIGN, applied=False)

    __getitem__ = __contains__ = __len__ = get = copy = _raise


class MirrorView(Mapping[str, Any]):
    """The base of `Mirror` and `AsyncMirror`: a read-only dict with its keys in order."""

    _follower: Follower

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}  # The same as `_shown.values`: one lookup less.
        self._shown = _Entries()
        self._collecting: _Entries | None = None
        self._rev = -1
        self._callbacks: dict[object, Callable[[Change], object]] = {}
        self._error: ClientError | None = None
        self._applying: _Applying | None = None
        self._applied = 0  # The number of batches applied.
        self._made_in = generation()
        tell_of_forks(self)

    def _after_fork(self) -> None:
        self._shown = _Entries()
        self._values = self._shown.values = _OfParent()
        self._applying = None
        self._rev = -1

    __reduce__ = refuse_to_pickle

    def __repr__(self) -> str:
        if is_foreign(self._made_in):
            return f"<{type(self).__name__} of another process>"
        return f"<{type(self).__name__} of {len(self)} entries at revision {self._rev}>"

    # --- Reading

    def __getitem__(self, key: str) -> Any:
        try:
            value = self._values[key]
        except KeyError:
            raise _absent(key) from None
        if type(value) is BadValueError:
            raise _again(value)
        return value

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, or ``default`` if the key is absent.

        Raises:
            BadValueError: the value cannot be decoded; ``[]`` and `get_entry` raise it, too. Reads
                of all values return the error in place of the value.
        """
        value = self._values.get(key, default)
        if type(value) is BadValueError:
            raise _again(value)
        return value

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[str]:
        return iter(self.copy())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        return self.copy() == dict(other)

    __hash__ = None  # type: ignore[assignment]  # its contents change

    def keys(self) -> KeysView[str]:
        """The keys in order, at one revision."""
        return self.copy().keys()

    def values(self) -> ValuesView[Any]:
        """The values in the order of their keys, at one revision."""
        return self.copy().values()

    def items(self) -> ItemsView[str, Any]:
        """Keys and values in the order of the keys, at one revision."""
        return self.copy().items()

    def copy(self) -> dict[str, Any]:
        """Return all entries at one revision, in the order of their keys."""
        values = self._between_batches(lambda shown: shown.values.copy())
        return dict(sorted(values.items(), key=itemgetter(0)))

    def get_entry(self, key: str) -> Entry:
        """Return a key's value with its revision, for a conditional write; ``ttl`` is None.

        Raises:
            NotFoundError: the key is absent.
            BadValueError: the value cannot be decoded.
        """
        try:
            entry = self._between_batches(
                lambda shown: Entry(key, shown.values[key], shown.revs[key])
            )
        except KeyError:
            raise _absent(key) from None
        if type(entry.value) is BadValueError:
            raise _again(entry.value)
        return entry

    def _between_batches(self, read: Callable[[_Entries], T]) -> T:
        """Return what ``read`` returns while no batch is being applied."""
        while True:
            before, applying = self._applied, self._applying
            if applying is not None and applying.thread == threading.get_ident():
                # This call has interrupted it. Applying twice is safe: a key's last change wins.
                self._apply_shown(applying.changes)
                return read(self._shown)
            try:
                result = read(self._shown)
            except KeyError:
                if self._is_between(before):
                    raise
            else:
                if self._is_between(before):
                    return result
            time.sleep(0)  # Let the thread that applies a batch run.

    def _is_between(self, applied: int) -> bool:
        """True if no batch is being applied, and their number is still ``applied``."""
        return self._applying is None and self._applied == applied

    # --- How new it is

    @property
    def rev(self) -> int:
        """The revision that the mirror shows.

        With a prefix, it may be older than the store's if no key under the prefix changed since.
        """
        check_process(self._made_in)
        return self._rev

    @property
    def staleness(self) -> float:
        """Seconds since the mirror was last known to be complete.

        Normally below about 2: each second a heartbeat or a request proves that it is complete. It
        grows while the server is unreachable, or while the mirror cannot keep up with the changes.
        """
        check_process(self._made_in)
        return time.monotonic() - self._follower.confirmed

    def subscribe(self, callback: Callable[[Change], object]) -> Callable[[], None]:
        """Call ``callback`` with each change, once the mirror shows it.

        The thread or task that follows the changes calls it, one call at a time and in order; the
        mirror does not advance meanwhile. If it raises an error, even `SystemExit`, that is logged
        and the mirror continues. After a `RESET` it gets the differences between the old and the
        new entries, as ``PUT`` and ``DELETE``.

        Returns:
            A function that ends the subscription.
        """
        check_process(self._made_in)
        checks.function("callback", callback)
        ticket = object()
        self._callbacks[ticket] = callback

        def unsubscribe() -> None:
            self._callbacks.pop(ticket, None)

        return unsubscribe

    # --- Following

    def _apply(self, batch: ChangeBatch) -> list[Change]:
        """Apply a batch. Returns the changes of the readable entries."""
        applying = _Applying([] if self._collecting is not None else batch.changes)
        self._applying = applying
        try:
            return self._apply_all(batch)
        finally:
            self._applied += 1
            self._applying = None

    def _apply_all(self, batch: ChangeBatch) -> list[Change]:
        shown: list[Change] = []
        for change in batch.changes:
            if change.op == RESET:
                self._collecting = _Entries()
            elif self._collecting is not None:
                self._collecting.apply(change)
            else:
                self._shown.apply(change)
                shown.append(change)
        if self._collecting is not None:
            if self._follower.settling:
                return []
            shown = self._show(self._collecting, batch.rev)
        self._rev = batch.rev
        return shown

    def _apply_shown(self, changes: list[Change]) -> None:
        """Apply changes to the readable entries, but none after a `RESET`."""
        for change in changes:
            if change.op == RESET:
                return
            self._shown.apply(change)

    def _show(self, collected: _Entries, rev: int) -> list[Change]:
        """Replace the readable entries by the collected ones. Returns the differences."""
        before, self._shown = self._shown, collected
        self._values = collected.values
        self._collecting = None
        return list(before.differences(collected, rev)) if self._callbacks else []

    def _tell(self, changes: list[Change]) -> None:
        for change in changes:
            for callback in list(self._callbacks.values()):
                try:
                    callback(change)
                except BaseException:  # Also SystemExit: this thread or task is not the callback's.
                    _log.exception("a callback of a mirror failed for %r", change.key)

    def _is_at(self, rev: int) -> bool:
        """True if the mirror shows this revision. Raises ClientError if it never will."""
        if self._rev >= rev:
            return True
        if self._error is not None:
            raise self._error
        return False

    def _too_late(self, rev: int, timeout: float | None) -> NoReplyError:
        return NoReplyError(f"the mirror did not reach revision {rev} within {timeout} s", False)

    def _end(self, failure: BaseException) -> None:
        """Record why the mirror stops following, for those that wait for a revision."""
        if isinstance(failure, ClientError):
            self._error = failure
        else:
            kind = ClientError if isinstance(failure, Exception) else ClosedError
            self._error = kind(f"the mirror was ended by {failure!r}", applied=False)
            self._error.__cause__ = failure
        log_end(self._error)


def _again(error: BadValueError) -> BadValueError:
    """A copy of an error to raise: raising the same one again would collect tracebacks."""
    return error.of(error.key)


def _absent(key: object) -> NotFoundError:
    return NotFoundError("NOT_FOUND", f"no such key: {key!r}", False, False, {})


def log_end(error: ClientError) -> None:
    """Log why a mirror stops following changes, unless it was closed."""
    if not isinstance(error, ClosedError):
        _log.error("a mirror has stopped following changes: %s", error)
