"""The role of this server: whether it leads its store, and if not, who does.

One object for each server, shared by its threads. Reading an attribute takes no lock: each is set
in one step, and `leads` is set to False before anything that a former leader must not do, and to
True after everything that a leader needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal

from zkv import compiled
from zkv.errors import NotLeader

RoleName = Literal["primary", "standby", "leader", "follower"]

PRIMARY: Final = "primary"
STANDBY: Final = "standby"


if TYPE_CHECKING:
    _Base = object
else:  # The front looks at it in each turn: see zkv/compiled/states.c.
    _Base = compiled.store.RoleBase if compiled.COMPILED else object


class Role(_Base):
    """The role of this server: whether it leads its store.

    Args:
        leads: True for a primary: it takes writes, and its reads are never stale.
        leader: endpoints of the primary, if this is none; None = not known.
    """

    def __init__(self, leads: bool = True, leader: list[str] | None = None) -> None:
        self.leads = leads
        self.leader = leader
        self.lag: Callable[[], float | None] = lambda: 0.0 if self.leads else None
        """Returns by how many seconds it is behind its primary; None = not known."""
        self.age: Callable[[], float] = lambda: 0.0
        """Returns the seconds since a primary was heard of: see `zkv.replication.standby`."""

    @property
    def name(self) -> RoleName:
        """The value of INFO's ``replication.role``."""
        return PRIMARY if self.leads else STANDBY

    def begin_to_lead(self) -> None:
        """Note that this server leads now."""
        self.leader = None
        self.lag = self.age = lambda: 0.0
        self.leads = True

    def yield_to(self, leader: list[str]) -> None:
        """Note that another server leads, or is about to."""
        self.leader = leader
        self.lag = lambda: None
        self.leads = False

    def error(self, does: str) -> NotLeader:
        """Return the error for what only a leader does; see `require_lead`."""
        where = f": {', '.join(self.leader)} does" if self.leader else ""
        return NotLeader(f"this server is no primary, which {does}{where}", leader=self.leader)

    def require_lead(self, does: str) -> None:
        """Raise NotLeader if this server does not lead.

        Args:
            does: what a leader would do, such as "takes writes".
        """
        if not self.leads:
            raise self.error(does)
