"""A file system that a process is killed at."""

from __future__ import annotations

from collections.abc import Callable
from io import IOBase
from typing import Any

from tests.durability.crash.faults import Killed
from zkv.durability.files import Files
from zkv.durability.lock import DirectoryLock


class FragileFiles(Files):
    """The real file system, until the process is killed at a call.

    Args:
        last: the number of that call; the first is 1.
        after: it is done, and the process killed then.
    """

    def __init__(self, last: int, after: bool) -> None:
        self.calls = 0
        self._last = last
        self._after = after

    def call(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """Do one call, unless it is too late."""
        self.calls += 1
        if self.calls > self._last or (self.calls == self._last and not self._after):
            raise Killed
        done = method(self, *arguments)
        if self.calls == self._last:
            if isinstance(done, DirectoryLock | IOBase):
                done.close()
            raise Killed
        return done


def _fragile(method: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *arguments: self.call(method, *arguments)


for _name in dir(Files):
    if not _name.startswith("_"):
        setattr(FragileFiles, _name, _fragile(getattr(Files, _name)))
