"""Three machines: a standby of the standby, or two standbys of one primary."""

from __future__ import annotations

from pathlib import Path

from tests.failover.invariants import BrokenError
from tests.failover.machines import Machine, outcome, promote
from tests.failover.two import Two


class Chain(Two):
    """The third one follows the standby, or the primary where it cannot; see `Run`.

    It is never told who leads: it finds its way over promotions, and begins anew where it has to.
    """

    NAMES = ("a", "b", "c")

    def __init__(self, directory: Path, seed: int, sync: bool = False) -> None:
        super().__init__(directory, seed, sync)
        self.faults += [
            self.kill_third, self.stop_third, self.fill_third, self.cut_third, self.flip_in_third,
            self.kill_two, self.planned_without_third, self.planned_third, self.planned_third,
            self.planned_third_alone,
            self.forced_third, self.forced_third, self.forced_ahead, self.forced_ahead,
            self.forced_behind, self.forced_behind,
        ]  # fmt: skip
        if self.writes_alone:
            self.faults += [self.compact_before_third, self.compact_before_third]

    @property
    def third(self) -> Machine:
        """The standby of the standby."""
        return self.standbys[1]

    def places(self, machine: Machine) -> list[Machine]:
        if machine is self.third:
            return [self.standby, self.primary]
        return super().places(machine)

    # --- Faults

    def kill_third(self) -> None:
        self.third.kill()
        self._progress()
        self._start(self.third)

    def stop_third(self) -> None:
        self.third.stop()
        self._progress()
        self.third.go_on()

    def fill_third(self) -> None:
        self.third.fill_disk()
        self._progress()
        self.third.free_disk()

    def cut_third(self) -> None:
        for place in (*self.third.follows, *self.third.follows):
            place.proxy.cut()
            self._progress()

    def flip_in_third(self) -> None:
        self._flip_in(self.third)

    def kill_two(self) -> None:
        self.third.kill()
        self.standby.kill()
        self._without_standby()
        self._start(self.third)
        self._start(self.standby)

    def compact_before_third(self) -> None:
        """Neither of the two has the log that it needs."""
        self.third.stop()
        self._compact()
        self.standby.kill()
        self._start(self.standby)
        self._write_snapshots(self.standby)
        self.third.go_on()

    def planned_without_third(self) -> None:
        self.third.stop()
        self.planned()
        self.third.go_on()

    def planned_third(self) -> None:
        """It knows the primary, even if it follows the standby."""
        self._plan(self.third)

    def planned_third_alone(self) -> None:
        """One that knows only the standby refuses, without any effect."""
        self.third.kill()
        self.third.follow(self.standby)
        led, said = outcome(promote(self.third))
        if led or self._roles() != ["primary", "standby"]:
            raise BrokenError(f"a standby of a standby has taken over: {said}")
        self.third.kill()
        self._start(self.third)

    def forced_third(self) -> None:
        """The standby, too, has to follow the third one, whatever it has more."""
        if self._pick.random() < 0.5:
            self.third.stop()
            self._progress()
        self.primary.kill()
        self.third.go_on()
        self._force(self.third)

    def forced_ahead(self) -> None:
        """The third one has more than the one that takes over."""
        self.third.kill()
        self.third.follow(self.primary, self.standby)
        self.standby.stop()
        self._progress()
        self.primary.kill()
        self.standby.go_on()
        self._force(self.standby)

    def forced_behind(self) -> None:
        """The third one goes on only when the standby leads."""
        self.third.stop()
        self._progress()
        self.primary.kill()
        self._force(self.standby)
        self.third.go_on()


class Pair(Two):
    """Two standbys, of which one has to confirm each write: one of the three may be lost.

    Each follows the primary, or the other one where it cannot; see `Run`. The one that has most
    takes over by force, so nothing is lost.
    """

    NAMES = ("a", "b", "c")

    def __init__(self, directory: Path, seed: int, sync: bool = True) -> None:
        super().__init__(directory, seed, sync)
        self.faults += [
            self.forced, self.forced, self.forced, self.forced_after_cut, self.forced_after_cut,
            self.kill_primary, self.kill_standbys, self.stop_standbys,
        ]  # fmt: skip

    @property
    def writes_alone(self) -> bool:
        return True

    def places(self, machine: Machine) -> list[Machine]:
        others = [standby for standby in self.standbys if standby is not machine]
        return others if machine is self.primary else [self.primary, *others]

    def heir(self) -> Machine:
        return self._best()

    def round(self) -> str:
        self._pick.shuffle(self.standbys)
        return super().round()

    # --- Faults

    def forced_after_cut(self) -> None:
        """Both have lost the primary for a moment before it is gone."""
        self.primary.proxy.cut()
        self._progress()
        self.primary.proxy.cut()
        self.primary.kill()
        self._force(self.heir())

    def kill_standbys(self) -> None:
        for standby in self.standbys:
            standby.kill()
        for standby in self.standbys:
            self._start(standby)

    def stop_standbys(self) -> None:
        """Nothing is written meanwhile."""
        for standby in self.standbys:
            standby.stop()
        self._pause(1.0)
        for standby in self.standbys:
            standby.go_on()
