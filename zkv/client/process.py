"""Which process an object belongs to, and what a fork makes of it in the child.

A child by fork has a copy of all objects, but none of the threads that work for them, and it must
not use their sockets, sessions and locks, since the parent goes on with these. So an object either
begins anew in the child, or it belongs to its process and raises a `ClosedError` in any other:

- An object that belongs to a process keeps the `generation` in which it was made, and calls
  `check_process` with it. That costs no system call.
- An object that has to change in the child, since it is read without such a check or begins anew,
  is given to `tell_of_forks`; its method ``_after_fork`` is called there.

This is the only place where forks are noticed.
"""

from __future__ import annotations

import os
import weakref
from typing import Any, Protocol, TypeVar

from zkv.client.errors import ClosedError

T = TypeVar("T")

FOREIGN = "it belongs to the process that this one was forked from: make another one here"


class _Forked(Protocol):
    def _after_fork(self) -> None:
        """Become what it is to be in the child."""


_generation = 0
_told: weakref.WeakValueDictionary[int, _Forked] = weakref.WeakValueDictionary()
_inherited: list[object] = []


def generation() -> int:
    """How many forks lie between the first process and this one."""
    return _generation


def is_foreign(made_in: int) -> bool:
    """Whether an object of this generation belongs to a process that this one descends from."""
    return made_in != _generation


def check_process(made_in: int) -> None:
    """Raise ClosedError where `is_foreign`."""
    if made_in != _generation:
        raise ClosedError(FOREIGN, applied=False)


def tell_of_forks(thing: _Forked) -> None:
    """Have its ``_after_fork`` called in every child by fork, as long as it lives."""
    _told[id(thing)] = thing


def leave_alone(thing: object) -> None:
    """Keep what the parent has made: it is neither to be used here, nor to be closed."""
    _inherited.append(thing)


class ReadAhead:
    """What an iterator has read and not given yet. A child by fork does not get the rest of it."""

    def __init__(self) -> None:
        self._made_in = _generation
        self._page: list[Any] = []
        tell_of_forks(self)

    def page(self, page: list[T]) -> list[T]:
        """The next page: what the iterator gives now."""
        self._page = page
        return page

    def check(self) -> None:
        """Raise ClosedError in a child by fork."""
        check_process(self._made_in)

    def _after_fork(self) -> None:
        self._page.clear()  # So who goes through it comes to its end, and then to `check`.


def _after_fork() -> None:
    global _generation  # noqa: PLW0603  there is one process
    _generation += 1
    for thing in list(_told.values()):
        thing._after_fork()


os.register_at_fork(after_in_child=_after_fork)
