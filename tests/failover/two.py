"""A primary and a standby: what is done to them."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from tests.failover.invariants import BrokenError
from tests.failover.machines import Machine, outcome, promote
from tests.failover.run import Run
from tests.support import Raw, eventually


class Two(Run):
    """See `Run`."""

    def __init__(self, directory: Path, seed: int, sync: bool = False) -> None:
        super().__init__(directory, seed, sync)
        self.faults = [
            self.kill_standby, self.kill_primary, self.stop_standby, self.stop_primary,
            self.cut, self.mute, self.fill_standby, self.fill_primary, self.flip_in_standby,
            self.planned, self.planned, self.planned, self.forced, self.forced,
            self.planned_standby_killed, self.planned_primary_killed, self.planned_muted,
            self.planned_delayed,
            self.planned_primary_stopped, self.planned_standby_full, self.forced_after_stop,
        ]  # fmt: skip
        if self.writes_alone:
            self.faults += [self.compact, self.flip_in_snapshot]

    def heir(self) -> Machine:
        """The standby that is promoted by force."""
        return self.standby

    # --- Faults

    def kill_standby(self) -> None:
        self.standby.kill()
        self._without_standby()
        self._start(self.standby)

    def kill_primary(self) -> None:
        self.primary.kill()
        self._start(self.primary)

    def stop_standby(self) -> None:
        self.standby.stop()
        self._without_standby()
        self.standby.go_on()

    def stop_primary(self) -> None:
        self.primary.stop()
        time.sleep(self._pick.random())
        self.primary.go_on()

    def cut(self) -> None:
        for _ in range(3):
            self.primary.proxy.cut()
            self._progress()

    def mute(self) -> None:
        self.primary.proxy.mute()
        self._progress()

    def fill_standby(self) -> None:
        self.standby.fill_disk()
        self._without_standby()
        self.standby.free_disk()

    def fill_primary(self) -> None:
        self.primary.fill_disk()
        time.sleep(0.3)
        self.primary.free_disk()

    def compact(self) -> None:
        self.standby.stop()
        self._compact()
        self.standby.go_on()

    def flip_in_standby(self) -> None:
        self._flip_in(self.standby)

    def flip_in_snapshot(self) -> None:
        """Damage the snapshot that a standby is going to fetch."""
        self.standby.kill()
        self._compact()
        newest = max(self.primary.data_dir.glob("snapshot/*.snapshot"))
        self._flip(newest)
        shutil.rmtree(self.standby.data_dir)
        assert self.standby.server is not None
        self.standby.server.launch()
        time.sleep(1.0)
        self._progress()
        self._write_snapshots(self.primary)
        self.standby.server.await_ready()

    def planned(self) -> None:
        self._plan(self.standby)

    def planned_standby_killed(self) -> None:
        promotion = promote(self.standby)
        time.sleep(self._pick.random() * 1.5)
        self.standby.kill()
        promotion.kill()  # It would wait on for a reply.
        led, said = outcome(promotion)
        self._settle(led, said)

    def planned_primary_killed(self) -> None:
        promotion = promote(self.standby)
        time.sleep(self._pick.random() * 1.5)
        self.primary.kill()
        led, said = outcome(promotion)
        self._settle(led, said)

    def planned_primary_stopped(self) -> None:
        promotion = promote(self.standby)
        time.sleep(self._pick.random() * 1.5)
        self.primary.stop()
        time.sleep(self._pick.random() * 12)
        self.primary.go_on()
        led, said = outcome(promotion)
        self._settle(led, said)

    def planned_muted(self) -> None:
        promotion = promote(self.standby)
        time.sleep(self._pick.random() * 1.5)
        self.primary.proxy.mute()
        led, said = outcome(promotion)
        self._settle(led, said)

    def planned_delayed(self) -> None:
        self.primary.proxy.delay(self._pick.choice([0.5, 2.0, 6.0]))
        led, said = outcome(promote(self.standby))
        self.primary.proxy.delay(0)
        self._settle(led, said)

    def planned_standby_full(self) -> None:
        self.standby.fill_disk()
        led, said = outcome(promote(self.standby))
        self.standby.free_disk()
        self._settle(led, said)

    def forced(self) -> None:
        if self._pick.random() < 0.7:  # It lacks something.
            self.standby.stop()
            self._without_standby()
        self.primary.kill()
        self.standby.go_on()
        self._force(self.heir())

    def forced_after_stop(self) -> None:
        """By force, while the old primary is stopped; it never goes on."""
        self.primary.stop()
        self._force(self.heir())

    # --- Means

    def _plan(self, standby: Machine) -> None:
        led, said = outcome(promote(standby))
        if not led:
            raise BrokenError(f"a planned promotion failed: {said}")
        self._change_places(standby)

    def _compact(self) -> None:
        self.primary.kill()  # It keeps the log after a snapshot that was fetched just now.
        self._start(self.primary)
        self._write_snapshots(self.primary)

    def _write_snapshots(self, machine: Machine) -> None:
        """Have it write so many snapshots beside so much log that it removes older log."""
        with (
            Raw(self.primary.endpoint, context=self._context) as client,
            Raw(machine.endpoint, context=self._context) as writer,
        ):
            for _ in range(3):
                for number in range(5):
                    self._put(client, f"filler/{number}")
                eventually(lambda: writer.call(op="SNAPSHOT")["ok"], "a snapshot")

    def _put(self, client: Raw, key: str) -> None:
        """Write something large, once the primary takes writes: see ``replication.sync``."""
        eventually(lambda: client.call(op="PUT", key=key, value="x" * 20_000)["ok"], "a write")

    def _flip_in(self, standby: Machine) -> None:
        """Damage a file of a standby: it says so, or what it lacks comes again."""
        standby.kill()
        paths = [path for path in standby.data_dir.glob("*/*") if path.stat().st_size > 200]
        self._flip(self._pick.choice(paths))
        try:
            self._start(standby)
        except BrokenError:  # It does not start: the operator makes another one.
            self.done["refused damage"] += 1
            shutil.rmtree(standby.data_dir)
            standby.follow(*self.places(standby))

    def _flip(self, path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[self._pick.randrange(len(content))] ^= 1 << self._pick.randrange(8)
        path.write_bytes(content)
