"""The users of a running server, by what libzmq tells of each message: its User-Id.

A User-Id is a key of CURVE, ``uid:N`` of a system user, or `ANONYMOUS`. It is not the name: the
user is looked up for each message, so a key that is removed from the file counts no more, though
its connection is still open.

Invariant: `by_id` is replaced as a whole, and never changed, so any thread reads it without a lock.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from zkv.users.file import UserEntry, read_users
from zkv.users.meter import Meter
from zkv.users.quota import Quota
from zkv.users.rights import NOBODY, PROGRAM, User

NO_ID: Final = ""
"""In `Users.by_id`: the messages without User-Id, which come by inproc."""


class Reloaded(NamedTuple):
    """The difference that a reload has made.

    Args:
        before: the entries before.
        after: those of today.
    """

    before: dict[str, UserEntry]
    after: dict[str, UserEntry]

    @property
    def changes(self) -> list[str]:
        """A text for each user that is another one now."""
        added, removed = (
            self.after.keys() - self.before.keys(),
            self.before.keys() - self.after.keys(),
        )
        changed = {
            name
            for name in self.before.keys() & self.after.keys()
            if self.before[name] != self.after[name]
        }
        texts = {"added": added, "removed": removed, "changed": changed}
        return sorted(f"{name} {what}" for what, names in texts.items() for name in names)

    @property
    def changes_what_is_followed(self) -> bool:
        """True if somebody who could connect before may follow other keys now."""
        return any(
            name not in self.after or _followed(entry) != _followed(self.after[name])
            for name, entry in self.before.items()
        )


def _followed(entry: UserEntry) -> tuple[object, ...]:
    return entry.keys, entry.uids, entry.read, entry.write


class Users:
    """The users, and what they may do.

    Args:
        path: the users file.

    Attributes:
        by_id: the users by User-Id.
        limited: a limit of some user concerns requests, or replies that wait.
        nobody: the user of those who are not in it.

    Raises:
        ConfigError: the file is bad.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.nobody = NOBODY
        self._meters: dict[str, Meter] = {}
        self._take(read_users(path))

    def __len__(self) -> int:
        return len(self._entries)

    def reload(self) -> Reloaded:
        """Read the file again.

        Raises:
            ConfigError: the file is bad; then nothing has changed.
        """
        entries = read_users(self.path)
        before = self._entries
        self._take(entries)
        return Reloaded(before, entries)

    def _take(self, entries: dict[str, UserEntry]) -> None:
        """Use these users. The meter of one whose rate stays counts on."""
        meters: dict[str, Meter] = {}
        for name, entry in entries.items():
            if rate := entry.max_requests:
                known = self._meters.get(name)
                meters[name] = known if known and known.rate == rate else Meter(rate)
        self._entries, self._meters = entries, meters
        self.limited = any(
            each.max_requests or each.max_in_flight_bytes for each in entries.values()
        )
        self.by_id = _by_id(entries, meters)

    @property
    def quotas(self) -> list[Quota]:
        """The quotas of all users."""
        return [user.quota for user in self.by_id.values() if user.quota is not None]

    def of(self, user_id: str) -> User:
        """Return the user of a message."""
        return self.by_id.get(user_id, self.nobody)

    def knows(self, user_id: str) -> bool:
        """Return True if some user has this User-Id."""
        return user_id in self.by_id


def _by_id(entries: dict[str, UserEntry], meters: dict[str, Meter]) -> dict[str, User]:
    by_id = {NO_ID: PROGRAM}
    for name, entry in entries.items():
        user = entry.user(name, meters.get(name))
        by_id |= dict.fromkeys(entry.credentials(name), user)
    return by_id
