"""The rights of a user: prefixes of keys to read and to write, and rights to administer.

The C part has the prefixes, too (zkv/compiled/rights.c), so that the lane can check them;
`Prefixes` is that class, or `PythonPrefixes`, which specifies it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

from zkv import compiled
from zkv.figures import MONITOR
from zkv.users.quota import Quota, outermost

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zkv.users.meter import Meter

OPERATE: Final = "operate"
REPLICATE: Final = "replicate"
ADMIN_RIGHTS: Final = (MONITOR, OPERATE, REPLICATE)
"""The rights to administer: statistics and SLOW; SNAPSHOT and END; REPLICATE."""

SCOPE_END: Final = "\0"
"""Ends the name of the user in the name under which a session is kept."""


class PythonPrefixes:
    """The prefixes of keys of a user.

    Args:
        read: of keys that may be read.
        write: of keys that may be read and written; none begins with another.
        scope: comes before the name of a session.
        max_bytes: the quota for the entries under those to write; 0 = none.
    """

    _read: tuple[str, ...]
    _write: tuple[str, ...]
    scope: str
    max_bytes: int

    def __new__(
        cls, read: tuple[str, ...], write: tuple[str, ...], scope: str, max_bytes: int
    ) -> Self:
        """Make an object that never changes."""
        self = super().__new__(cls)
        self._read, self._write = read + write, write
        self.scope, self.max_bytes = scope, max_bytes
        return self

    def may_read(self, text: str, /) -> bool:
        """Return True if it may read a key; or each key with a prefix, which is the same."""
        return text.startswith(self._read)

    def may_write(self, key: str, /) -> bool:
        """Return True if it may write a key."""
        return key.startswith(self._write)


if TYPE_CHECKING or not compiled.COMPILED:  # noqa: SIM108  types must see one class
    Prefixes = PythonPrefixes
else:
    Prefixes = compiled.store.Prefixes


class User(Prefixes):
    """A user, as of the last reading of the users file.

    Args:
        name: the name; empty = the program in which the server runs.
        read: prefixes of keys that may be read.
        write: prefixes of keys that may be read and written.
        admin: the rights to administer.
        max_bytes: bytes that the entries with these prefixes to write may take; 0 = no quota.
        meter: counts the requests; None = they are not limited.
        max_in_flight_bytes: bytes of replies that may wait for all connections; 0 = any.

    Attributes:
        scope: comes before the names of this user's sessions, which other users cannot have.
        quota: the quota; None = there is none.
    """

    name: str
    admin: frozenset[str]
    quota: Quota | None
    meter: Meter | None
    max_in_flight_bytes: int

    def __new__(
        cls,
        name: str,
        read: Iterable[str] = (),
        write: Iterable[str] = (),
        admin: Iterable[str] = (),
        max_bytes: int = 0,
        meter: Meter | None = None,
        max_in_flight_bytes: int = 0,
    ) -> Self:
        """Make a user. The prefixes cannot change: a reload makes new users."""
        outer = outermost(write)
        self = super().__new__(cls, tuple(read), outer, f"{name}{SCOPE_END}", max_bytes)
        self.name = name
        self.admin = frozenset(admin)
        self.quota = Quota(outer, max_bytes) if max_bytes > 0 else None
        self.meter = meter
        self.max_in_flight_bytes = max_in_flight_bytes
        return self

    def session(self, name: str) -> str:
        """Return the name under which a session of this user is kept."""
        return f"{self.scope}{name}"

    def __repr__(self) -> str:
        return f"<User {self.name!r}>"


NOBODY: Final = User("")
"""Whoever is connected by a key that no user has any more. Everything is denied."""
PROGRAM: Final = User("", write=[""], admin=ADMIN_RIGHTS)
"""The program in which the server runs, at an inproc endpoint."""
