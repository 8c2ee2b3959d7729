"""The role of a member: it leads only while it holds the lease."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from zkv.errors import NotLeader
from zkv.replication.role import Role, RoleName

if TYPE_CHECKING:
    from zkv.cluster.lease import Lease

LEADER: Final = "leader"
FOLLOWER: Final = "follower"


class MemberRole(Role):
    """See `Role`. Whether it leads is asked after each read, and reads the clock.

    Args:
        lease: the member's lease.
    """

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        super().__init__(leads=False)

    @property
    def leads(self) -> bool:
        """True while it leads."""
        return self._leads and self._lease.held

    @leads.setter
    def leads(self, leads: bool) -> None:
        self._leads = leads

    def begin_to_lead(self) -> None:
        """See `Role`. What tells the lag stays."""
        self.leader = None
        self.leads = True

    def yield_to(self, leader: list[str]) -> None:
        """See `Role`, likewise."""
        self.leader = leader or None
        self.leads = False

    def error(self, does: str) -> NotLeader:
        """See `Role`."""
        del does  # A client that is told who leads needs no reason.
        where = (
            f": {', '.join(self.leader)} does" if self.leader else ", and knows of none that does"
        )
        return NotLeader(f"this member does not lead{where}", leader=self.leader)

    @property
    def name(self) -> RoleName:
        """The value of INFO's ``replication.role``."""
        return LEADER if self.leads else FOLLOWER
