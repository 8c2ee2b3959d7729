"""The process that an object belongs to, and its state in a child after a fork.

A forked child has copies of all objects, but not the threads that work for them. It must not use
their sockets, sessions and locks, since the parent continues to use these. So an object either
starts again in the child, or it belongs to its process and raises a `ClosedError` in any other:

- An object that belongs to a process stores the `generation` in which it was made, and calls
  `check_process` with it. That costs no system call.
- An object that must change in the child, because it starts again or is read without such a check,
  is passed to `tell_of_forks`; its method ``_after_fork`` is then called in the child.

Only this module detects forks.
"""

from __future__ import annotations

import weakref
from typing import Any, Protocol, TypeVar

from zkv import system
from zkv.client.errors import ClosedError

T = TypeVar("T")

FOREIGN = "the object belongs to the process from which this one was forked: create another here"


class _Forked(Protocol):
    def _after_fork(self) -> None:
        """Change to the state for the child."""


forks = 0
"""The number of forks between the first process and this one. An import by name would keep the
number of the parent."""
_told: weakref.WeakValueDictionary[int, _Forked] = weakref.WeakValueDictionary()
_inherited: list[object] = []


def generation() -> int:
    """Return the number of forks between the first process and this one."""
    return forks


def is_foreign(made_in: int) -> bool:
    """True if an object of this generation belongs to an ancestor of this process."""
    return made_in != forks


def check_process(made_in: int) -> None:
    """Raise ClosedError if `is_foreign`."""
    if made_in != forks:
        raise ClosedError(FOREIGN, applied=False)


def tell_of_forks(thing: _Forked) -> None:
    """Call the object's ``_after_fork`` in every forked child, as long as the object exists."""
    _told[id(thing)] = thing


def leave_alone(thing: object) -> None:
    """Keep an object of the parent forever, so that this process neither uses nor closes it."""
    _inherited.append(thing)


class ReadAhead:
    """The entries that an iterator has read but not yielded. A forked child does not get them."""

    def __init__(self) -> None:
        self._made_in = forks
        self._page: list[Any] = []
        tell_of_forks(self)

    def page(self, page: list[T]) -> list[T]:
        """Record the page that the iterator yields now."""
        self._page = page
        return page

    def check(self) -> None:
        """Raise ClosedError in a forked child."""
        check_process(self._made_in)

    def _after_fork(self) -> None:
        self._page.clear()  # So the loop over the page ends, and then calls `check`.


def _after_fork() -> None:
    global forks  # noqa: PLW0603  there is one process
    forks += 1
    for thing in list(_told.values()):
        thing._after_fork()


system.after_fork(_after_fork)
