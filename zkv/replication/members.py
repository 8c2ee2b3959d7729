"""The members: servers that pull this one's log, as far as their requests tell."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from zkv.protocol.requests import Replicate

MOST_MEMBERS: Final = 64
"""Members that are known at a time; the one that was not seen for longest is forgotten first."""
FORGOTTEN_SECONDS: Final = 3600.0
"""A member that has not asked for so long is not shown any more."""


class Member(NamedTuple):
    """A member, as of its last request.

    Args:
        name: its name.
        durable: the log number of the newest commit on its disk.
        rev: the newest revision there.
        counts: it may count for `[replication] sync`.
        seen: when it asked, by `time.monotonic`.
    """

    name: str
    durable: int
    rev: int
    counts: bool
    seen: float


class Members:
    """The table of the members. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._members: dict[str, Member] = {}  # The one that was seen last is the last one.

    def note(self, request: Replicate) -> None:
        """Note a request of a member."""
        name = request.member
        member = Member(name, request.durable, request.durable_rev, request.sync, time.monotonic())
        with self._lock:
            self._members.pop(name, None)
            self._members[name] = member
            if len(self._members) > MOST_MEMBERS:
                self._members.pop(next(iter(self._members)))

    def known(self) -> list[Member]:
        """Return the members that have asked within `FORGOTTEN_SECONDS`, by name."""
        oldest = time.monotonic() - FORGOTTEN_SECONDS
        with self._lock:
            return sorted(each for each in self._members.values() if each.seen > oldest)

    def report(self) -> list[dict[str, str | int | float]]:
        """Return INFO's ``replication.members``; ``seconds``: since the last request."""
        now = time.monotonic()
        return [
            {
                "name": each.name,
                "durable": each.durable,
                "rev": each.rev,
                "seconds": round(now - each.seen, 3),
            }
            for each in self.known()
        ]
