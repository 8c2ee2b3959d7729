"""The endpoints of a client, the one in use, and which servers the client may go to.

Several endpoints may belong to one server, or to several servers with copies of one store, of which
one leads. The client uses one of them until it fails, or says that it does not lead.

- A server names the leader's endpoints. The client follows them only to where it would go anyway:
  to an endpoint of its own list, or to a server that proves by its key that it is the right one.
- Copies may differ. So a client that has a choice first asks each server, by INFO over the new
  connection, for its store and its *term*, which counts the histories of a store. It never goes to
  another store, or back to a lower term than it has seen: what it has read or written would be
  missing there. This is the rule of viewstamps (Liskov and Cowling, "Viewstamped Replication
  Revisited", 2012), for clients.
- A client with one endpoint has no choice, and asks nothing.

All state changes by single assignments, so that threads and signal handlers need no lock.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from zkv.client.connection import Address, addresses
from zkv.client.curve import CurveKeys
from zkv.client.retry import Trouble
from zkv.client.standing import StoreTerm
from zkv.endpoint import check_to_connect, from_environment, listed


class _Environment(tuple[str, ...]):
    """The type of `ENVIRONMENT`, for signatures."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "ZKV_ENDPOINT"


ENVIRONMENT: Final = _Environment()
"""The default of ``endpoint``: use the environment. None may be passed by mistake."""


class Endpoints:
    """The endpoints of one client. One address is in use until it fails.

    Args:
        endpoints: one or more endpoints of servers with the same store, since a write may be
            repeated at any of them; or one text in which commas separate them; `ENVIRONMENT` =
            those of the variable ``ZKV_ENDPOINT``.
        keys: of the client.

    Attributes:
        current: the address to try now.
        keys: of the client.
        met: True once there has been a connection to any of them.
        era: another object after each loss of a connection: another server may listen now.
        history: the newest that the client has used; None = none is known.

    Raises:
        TypeError: an endpoint is not a str.
        ValueError: the list is empty, an endpoint is malformed, or the keys do not suffice.
        ConfigError: the key file cannot be used.
    """

    def __init__(self, endpoints: object, keys: CurveKeys) -> None:
        if endpoints is ENVIRONMENT:
            endpoints = from_environment()
        if isinstance(endpoints, str):
            endpoints = listed(endpoints) if "," in endpoints else [endpoints]
        if isinstance(endpoints, bytes) or not isinstance(endpoints, Iterable):
            endpoints = [endpoints]
        self._given = [check_to_connect(each) for each in endpoints]
        if not self._given:
            raise ValueError("no endpoint given")
        self.keys = keys
        self._all = self._own = [each for place in self._given for each in addresses(place, keys)]
        self.current = self._all[0]
        self.met = False
        self.era = object()
        self.history: StoreTerm | None = None

    @property
    def number(self) -> int:
        """The number of different endpoints to choose from."""
        return len({address.endpoint for address in self._all})

    def failed(self, address: Address, stays: bool = False) -> None:
        """Use the next address, if ``address``, which has failed, is still the current one.

        Args:
            address: that was tried.
            stays: True = only another address of the same endpoint will do.
        """
        if address == self.current:
            places = self._all
            if stays:
                places = [each for each in places if each.endpoint == address.endpoint]
            self.current = _after(address, places)

    def lost(self) -> None:
        """Record the loss of a connection."""
        self.era = object()

    def refer(self, address: Address, leader: object) -> bool:
        """Go on from a server that does not lead. Returns False if there is nowhere to go.

        Args:
            address: of that server; if it is no longer the current one, the client has gone on.
            leader: the endpoints of the leader, as that server names them; None = unknown.
        """
        if address != self.current:
            return True
        named = self._allowed(leader, address.endpoint)
        if named and named[0] not in self._given:
            self._all = [*self._own, *addresses(named[0], self.keys)]
        others = [each for each in self._all if each.endpoint != address.endpoint]
        if not others:
            return False
        likely = [each for each in others if each.endpoint in named[:1]]
        following = _after(address, self._all)
        while following not in others:
            following = _after(following, self._all)
        self.current = likely[0] if likely else following
        return True

    def _allowed(self, leader: object, refused: str) -> list[str]:
        """Return those endpoints of a leader to which the client may go; its own ones first."""
        allowed = []
        for endpoint in leader if isinstance(leader, list) else []:
            try:
                checked = check_to_connect(endpoint)
            except (TypeError, ValueError):
                continue
            is_proven = bool(self.keys.servers and self.keys.of(checked))
            if checked != refused and (checked in self._given or is_proven):
                allowed.append(checked)
        return sorted(allowed, key=lambda endpoint: endpoint not in self._given)

    def judge(self, history: StoreTerm | None) -> Trouble | None:
        """Return why the client may not use a server with this history.

        None = it may, and has then seen this history.
        """
        seen = self.history
        if seen is not None and (history is None or history.store != seen.store):
            has = f"the store {history.store}" if history else "a store without identity"
            return Trouble(f"it has {has}; this client uses the store {seen.store}", True)
        if seen is not None and history is not None and history.term < seen.term:
            return Trouble(
                f"it has term {history.term} of the store {seen.store}; this client has seen term "
                f"{seen.term}"
            )
        self.history = history
        return None


def _after(address: Address, places: list[Address]) -> Address:
    """Return the address after another one, or the first."""
    at = places.index(address) + 1 if address in places else 0
    return places[at % len(places)]
