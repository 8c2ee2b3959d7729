"""A run of `tests.failover`: the machines, promotions, and what has to hold after each round.

What is done in a round is in the subclasses: `tests.failover.two`, `tests.failover.three`.
"""

from __future__ import annotations

import collections
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import zmq

from tests.broker.followers import Follower, Mirror, stored
from tests.failover.askers import Asker
from tests.failover.invariants import BrokenError, await_progress, check_counter, is_decided
from tests.failover.machines import Machine, outcome, promote
from tests.linearizability.checker import Operation
from tests.replication.following import RAISED_BY, State, replication
from tests.support import LIMIT, Message, NoReplyError, Raw, eventually

ASKERS = 4


class Run:
    """The whole of it.

    Args:
        directory: of the machines.
        seed: decides all but the timing.
        sync: writes are answered once a standby has them on disk.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("a", "b")
    """Of the machines: the first primary, the standby that is promoted, a further one."""

    def __init__(self, directory: Path, seed: int, sync: bool = False) -> None:
        self._pick = random.Random(seed)
        self._sync = sync
        self._directory = directory
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.machines = [Machine(directory / name, int(sync)) for name in self.NAMES]
        self.primary, *self.standbys = self.machines
        endpoints = [machine.endpoint for machine in self.machines]
        self._askers = [Asker(each, seed, endpoints, self._context) for each in range(ASKERS)]
        self._era = 0
        self._mirror: Mirror | None = None
        self._mirrored: Machine | None = None  # The one whose feed it follows.
        self._to_keep: dict[Machine, set[str]] = {}  # What a machine has to give up.
        self.done: collections.Counter[str] = collections.Counter()
        self.operations = 0
        self.lost = 0
        self.kept = self.gone = 0
        self.undecided = 0
        self.faults: list[Callable[[], None]] = []

    @property
    def standby(self) -> Machine:
        """The standby that most is about."""
        return self.standbys[0]

    @property
    def writes_alone(self) -> bool:
        """True if writes are answered while one standby is away."""
        return not self._sync

    def places(self, machine: Machine) -> list[Machine]:
        """Whom a standby follows, in this order."""
        return [self.standby if machine is self.primary else self.primary]

    def begin(self) -> None:
        """Start everything."""
        for machine in self.machines:
            machine.proxy.__enter__()
        self.primary.serve()
        for standby in self.standbys:
            standby.follow(*self.places(standby))
        for asker in self._askers:
            asker.start()
            asker.go_on()
        self._progress()

    def check_rest(self) -> None:
        """See that all is well with what was asked since the last promotion by force."""
        for asker in self._askers:
            asker.pause()
        self._check_history()

    def end(self) -> None:
        """End everything."""
        for asker in self._askers:
            asker.end()
        if self._mirror is not None:
            self._mirror.follower.close()
        for machine in self.machines:
            machine.kill()
            machine.proxy.__exit__()
        self._context.term()

    def round(self) -> str:
        """Do one thing, and see that all is well; its name. Raises BrokenError."""
        fault = self._pick.choice(self.faults)
        self._progress()
        fault()
        self.done[fault.__name__] += 1
        self._progress()
        self._compare()
        return fault.__name__

    # --- Promotions

    def _force(self, leader: Machine) -> None:
        for asker in self._askers:
            asker.pause()
        others = [each for each in self.machines if each is not leader]
        held = {each: each.commits() for each in others}
        may_lose = not self._sync or leader is not self._best()
        led, said = outcome(promote(leader, "--force"))
        if not led:
            raise BrokenError(f"a promotion by force failed: {said}")
        began = int(said.rpartition("from revision ")[2].split()[0]) - RAISED_BY
        self.primary.kill()
        self._note_given_up(leader, held)
        self._end_era(leader, began, may_lose)
        self._change_places(leader)
        for asker in self._askers:
            asker.go_on()

    def _end_era(self, leader: Machine, began: int, may_lose: bool) -> None:
        """See that no more is lost than may be; what is asked from now on is another history."""
        self._check_history()
        self._era += 1
        with Raw(leader.endpoint, context=self._context) as client:
            for asker in self._askers:
                reply = client.call(op="GET", key=asker.counter)
                value = reply["value"] if reply["ok"] else 0
                self._check_suffix(asker, value, began, may_lose)
                asker.begin_era(self._era, value)

    def _check_suffix(self, asker: Asker, value: int, began: int, may_lose: bool) -> None:
        there = [each for each, rev in asker.counted if rev <= began]
        gone = [each for each, rev in asker.counted if rev > began]
        self.lost += len(gone)
        if gone and not may_lose:
            raise BrokenError(f"{asker.counter}: {len(gone)} counts are lost, from {gone[0]} on")
        if there and there[-1] > value:
            raise BrokenError(f"{asker.counter}: {there[-1]} was before {began}, but is {value}")
        if gone and gone[0] <= value:
            raise BrokenError(f"{asker.counter}: {gone[0]} was after {began}, but is {value}")

    def _note_given_up(self, leader: Machine, held: dict[Machine, dict[int, str]]) -> None:
        """Note what the others had from the log number on where the leader's term begins."""
        begins = leader.state().terms[-1].first_lsn
        for machine, commits in held.items():
            own = {line for lsn, line in commits.items() if lsn >= begins}
            self._to_keep.setdefault(machine, set()).update(own)

    def _change_places(self, leader: Machine) -> None:
        """A standby leads; the old primary takes its place. All follow somebody who knows it."""
        self.primary.kill()
        old, self.primary = self.primary, leader
        self.standbys[self.standbys.index(leader)] = old
        for standby in self.standbys:
            if standby is old or leader not in standby.follows:
                standby.kill()
                standby.follow(*self.places(standby))

    def _settle(self, led: bool, said: str) -> None:
        """Bring about a primary and a standby after a promotion during which something failed.

        Nothing may be lost, so nothing is forced; the promotion may be repeated.
        """
        for machine in (self.primary, self.standby):
            if machine.process.poll() is not None:
                self._start(machine)
        roles = self._roles()
        self.done[f"led: {led}, {'/'.join(roles)}"] += 1
        if roles == ["standby", "standby"]:  # It may have been superseded: repeat it.
            eventually(lambda: outcome(promote(self.standby))[0], f"a repetition; first: {said}")
            roles = self._roles()
        if roles == ["primary", "primary"]:
            raise BrokenError(f"both lead: {said}")
        if roles == ["standby", "primary"]:
            self._change_places(self.standby)

    def _start(self, machine: Machine) -> None:
        """Start a server that was killed, as its files say. Raises BrokenError if it refuses."""
        try:
            if machine.is_standby:
                machine.follow(*self.places(machine))
            else:
                machine.serve()
        except AssertionError:
            machine.kill()
            raise BrokenError(f"{machine.directory}: {machine.log()[-500:]}") from None

    def _roles(self) -> list[str]:
        return [str(self._figures(each).get("role")) for each in (self.primary, self.standby)]

    def _best(self) -> Machine:
        """The standby that may take over by force, if nothing is to be lost."""

        def place(standby: Machine) -> tuple[int, int]:
            figures = self._figures(standby)
            return figures["term"], figures["applied"]

        return max((each for each in self.standbys if not each.is_stopped), key=place)

    def _figures(self, machine: Machine) -> Message:
        """INFO's ``replication``, also if a server begins anew at the moment."""
        end = time.monotonic() + 3 * LIMIT
        while time.monotonic() < end:
            figures = self._figures_now(machine)
            if figures:
                return figures
        raise BrokenError(f"{machine.directory}: no answer: {machine.log()[-500:]}")

    def _figures_now(self, machine: Machine) -> Message:
        with Raw(machine.endpoint, context=self._context, timeout=2.0) as client:
            try:
                return dict(client.call(op="INFO").get("replication", {}))
            except NoReplyError:
                return {}

    # --- What has to hold

    def _progress(self) -> None:
        """Wait until some more is answered."""
        await_progress(self._askers)

    def _without_standby(self) -> None:
        """Go on for a while, as far as that is possible without one of the standbys."""
        if self.writes_alone:
            self._progress()
        else:
            self._pause(1.0)

    def _pause(self, most: float) -> None:
        time.sleep(self._pick.random() * most)

    def _compare(self) -> None:
        for asker in self._askers:
            asker.pause()
        with Raw(self.primary.endpoint, context=self._context) as one:
            for standby in self.standbys:
                self._compare_with(standby, one)
            self._look_on(one)
            for asker in self._askers:
                check_counter(asker, one)
        self._check_kept()
        for asker in self._askers:
            asker.go_on()

    def _compare_with(self, standby: Machine, one: Raw) -> None:
        states: list[State] = []

        def settled() -> bool:
            """What was sent before a pause may still be done after it."""
            if standby.process.poll() is not None:
                raise BrokenError(f"{standby.directory} has ended: {standby.log()[-500:]}")
            lsn, term = (replication(one)[each] for each in ("applied", "term"))
            here = self._figures_now(standby)
            if here.get("applied") != lsn or here.get("term") != term:
                return False
            states[:] = self.primary.state(), standby.state()
            return states[0].lsn == states[1].lsn

        eventually(settled, f"the same log number at {standby.directory}", 3 * LIMIT)
        if states[0] != states[1]:
            raise BrokenError(f"states differ: {states}")

    def _look_on(self, client: Raw) -> None:
        """See that a copy that follows the feed is the store, also over promotions."""
        there = stored(client)
        rev = client.ok(op="INFO")["rev"]  # Afterwards: with --sync the last write is safe now.
        if self._mirror is None or self._mirrored is not self.primary:
            follower = Follower(self._context, self.primary.feed).joined()
            if self._mirror is None:
                self._mirror = Mirror(client, follower)
            else:
                self._mirror.follower.close()
                self._mirror.turn_to(client, follower)
            self._mirrored = self.primary
        else:
            self._mirror.turn_to(client, self._mirror.follower)
        self._mirror.follow(rev)
        if self._mirror.values != there:
            raise BrokenError("the copy that follows the feed differs from the store")

    def _check_kept(self) -> None:
        """See that what a machine gave up is in a file of its data directory.

        Its log may have become shorter since that was noted, by snapshots; it says so.
        """
        for machine, lines in self._to_keep.items():
            missing = {json.loads(line)["lsn"] for line in lines - machine.given_up()}
            if not missing <= machine.said_to_be_gone():
                raise BrokenError(f"{machine.directory}: these are in no file: {sorted(missing)}")
            self.kept += len(lines) - len(missing)
            self.gone += len(missing)
        self._to_keep.clear()

    def _check_history(self) -> None:
        history: list[Operation] = []
        for asker in self._askers:
            history += asker.told()
        self.operations += len(history)
        path = self._directory / f"history-{self._era}.jsonl"
        self.undecided += not is_decided(history, path)
