"""The judge: what clients were told, and so what a store may hold.

A `Ledger` holds every state that the store may be in: one as long as every write was answered, more
where the outcome of a write is not known. Each reply must fit at least one of them, and so must
what is found after a crash. A new op needs its place in `_fits`, and in `applied` if it writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

Request = dict[str, Any]
Reply = dict[str, Any]
Batch = list[Request]

WRITES: Final = frozenset({"PUT", "MPUT", "DELETE", "MDELETE"})


class State(NamedTuple):
    """What a store holds: key -> (value, revision)."""

    rev: int
    entries: dict[str, tuple[Any, int]]


class _World(NamedTuple):
    """A state that the store may be in, and the one that it came from."""

    state: State
    before: _World | None = None

    def written(self, request: Request) -> _World:
        """What becomes of it by a write."""
        after = applied(request, self.state)
        return self if after is self.state else _World(after, self)

    def past(self, rev: int) -> Iterator[_World]:
        """Where it came from, back to ``rev``."""
        world = self.before
        while world is not None and world.state.rev >= rev:
            yield world
            world = world.before


class Ledger:
    """What clients have sent and been told, and so what a store may hold.

    Args:
        policy: with ``always``, whatever was told must survive a power cut; otherwise that is
            promised only of what was told to be durable, and the rest survives a kill.
        state: what the store holds at first, durably.
    """

    def __init__(self, policy: str, state: State | None = None) -> None:
        self.policy = policy
        self._worlds = [_World(state or State(0, {}))]
        self._ghosts: list[Request] = []  # Writes that may be on disk, wherever the store is.
        self._sent: list[Request] = []
        self.refusals = 0
        self.durable_rev = self._worlds[0].state.rev

    def send(self, requests: list[Request]) -> None:
        """These requests are on their way, and will be run in this order."""
        self._sent.extend(requests)

    def put_off(self, requests: list[Request]) -> None:
        """Of the requests sent last, these will be run behind the others."""
        for request in requests:
            self._sent.remove(request)
        self._sent.extend(requests)

    def hear(self, request: Request, reply: Reply) -> None:
        """A request that was on its way has been answered."""
        self._sent.remove(request)
        before = self._worlds
        if reply["ok"]:
            self._heard_ok(request, reply)
        elif reply["code"] == "READ_ONLY":
            self._heard_refusal(request, reply)
        elif reply["code"] != "SHUTTING_DOWN":
            assert reply["code"] == "NOT_FOUND", reply
            self._worlds = [w for w in before if request.get("key") not in w.state.entries]
        assert self._worlds, (
            f"{reply} is no answer to {request}; possible was: {[w.state for w in before]}"
        )

    def check_recovered(self, state: State, power_cut: bool) -> None:
        """Whether ``state`` may be found after a kill or a power cut at this point."""
        assert state.rev >= self.durable_rev, f"{state} is older than {self.durable_rev}"
        possible = [world.state for world in self._recoverable(power_cut)]
        assert state in possible, f"found: {state}; possible: {possible}"

    def adopt(self, state: State) -> None:
        """A new process was started on ``state``, and tells everybody about it."""
        found = [world for world in self._recoverable(power_cut=True) if world.state == state]
        self._worlds = found[:1] or [_World(state)]
        self._ghosts.clear()
        self._sent.clear()
        if self.policy == "always":
            self.durable_rev = state.rev

    def _recoverable(self, power_cut: bool) -> list[_World]:
        """What may be found after a crash."""
        possible = list(self._worlds)
        if power_cut and self.policy != "always":
            possible += [w for world in self._worlds for w in world.past(self.durable_rev)]
        for request in self._ghosts + [r for r in self._sent if r["op"] in WRITES]:
            _add(possible, [world.written(request) for world in possible])
        return possible

    def _heard_ok(self, request: Request, reply: Reply) -> None:
        before = self._worlds
        self._worlds = [w.written(request) for w in before if _fits(request, reply, w.state)]
        rev = reply.get("rev", 0)
        if request["op"] in WRITES:
            if all(world.state.rev < rev for world in before):
                self._ghosts.clear()  # The log has this revision, and what is before it.
            assert reply["durable"] or not (self.policy == "always" or request.get("durable"))
            if reply["durable"]:
                self.durable_rev = max(self.durable_rev, rev)
        elif request["op"] in {"SNAPSHOT", "END"}:
            self.durable_rev = max(self.durable_rev, rev)
        elif request["op"] == "INFO":
            self.durable_rev = max(self.durable_rev, reply["durable_rev"])
        if self.policy == "always":
            seen = max([rev, *reply.get("revs", [])])
            self.durable_rev = max(self.durable_rev, seen)

    def _heard_refusal(self, request: Request, reply: Reply) -> None:
        if request["op"] not in WRITES:
            return
        self.refusals += 1
        if reply["applied"] is False:
            return
        assert reply["applied"] is None, reply
        self._ghosts.append(request)
        _add(self._worlds, [world.written(request) for world in self._worlds])


def _add(worlds: list[_World], more: list[_World]) -> None:
    """Put those of ``more`` whose states are new among ``worlds``."""
    for world in more:
        if all(world.state != other.state for other in worlds):
            worlds.append(world)


def applied(request: Request, state: State) -> State:
    """``state`` after a write."""
    rev = state.rev + 1
    match request:
        case {"op": "PUT", "key": key, "value": value}:
            return State(rev, state.entries | {key: (value, rev)})
        case {"op": "MPUT", "items": items} if items:
            return State(rev, state.entries | {key: (value, rev) for key, value in items.items()})
        case {"op": "DELETE", "key": key}:
            gone = {key}
        case {"op": "MDELETE", "keys": keys}:
            gone = set(keys)
        case _:
            return state
    left = {key: entry for key, entry in state.entries.items() if key not in gone}
    return state if len(left) == len(state.entries) else State(rev, left)


def _fits(request: Request, reply: Reply, state: State) -> bool:
    """Whether ``reply`` is what comes of ``request`` when it is run on ``state``."""
    after = applied(request, state)
    absent = (None, 0)
    match request["op"]:
        case "MDELETE":
            deleted = len(state.entries) - len(after.entries)
            fits = (reply["deleted"], reply["rev"]) == (deleted, after.rev)
        case "PUT" | "MPUT" | "DELETE":
            fits = reply["rev"] == after.rev and after is not state
        case "GET":
            fits = state.entries.get(request["key"]) == (reply["value"], reply["rev"])
        case "MGET":
            read = list(zip(reply["values"], reply["revs"], strict=True))
            fits = read == [state.entries.get(key, absent) for key in request["keys"]]
        case "INFO":
            fits = (reply["rev"], reply["keys"]) == (state.rev, len(state.entries))
        case "SNAPSHOT":
            fits = reply["rev"] <= state.rev  # There may have been writes meanwhile.
        case _:
            fits = reply["rev"] == state.rev
    if request.get("prev"):
        before = state.entries.get(request["key"], absent)
        fits = fits and (reply["prev"], reply["prev_rev"]) == before
    return bool(fits)
