"""Records what a watch says."""

from __future__ import annotations

import threading

from tests.support import LIMIT
from zkv.etcd import Etcd, EtcdError, EtcdWatch, ItemEvent


class Recorder:
    """The callbacks of a watch."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, list[ItemEvent]]] = []
        self.threads: set[str] = set()
        self.reason: EtcdError | None = None
        self.ends = 0
        self._changed = threading.Condition()

    def watch(
        self, etcd: Etcd, begin: bytes, end: bytes | None = None, from_revision: int = 0
    ) -> EtcdWatch:
        """Begin."""
        return etcd.watch(begin, end, from_revision, self.on_events, self.on_end)

    def on_events(self, revision: int, events: list[ItemEvent]) -> None:
        with self._changed:
            self.calls.append((revision, events))
            self.threads.add(threading.current_thread().name)
            self._changed.notify_all()

    def on_end(self, reason: EtcdError) -> None:
        with self._changed:
            self.reason = reason
            self.ends += 1
            self._changed.notify_all()

    @property
    def events(self) -> list[ItemEvent]:
        """All of them, in their order."""
        return [event for _, events in self.calls for event in events]

    def until(self, count: int) -> list[ItemEvent]:
        """Wait for so many events, and return them all."""
        with self._changed:
            done = self._changed.wait_for(lambda: len(self.events) >= count, LIMIT)
            assert done, f"{len(self.events)} of {count} events came; the end: {self.reason!r}"
            return self.events

    def ended(self, limit: float = LIMIT) -> EtcdError:
        """Wait for the end, and return its reason."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.reason is not None, limit), "no end"
            assert self.reason is not None
            return self.reason
