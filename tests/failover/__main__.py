"""Fails over again and again between two machines whose processes, network and disks fail.

Each round does one thing, in an order that the seed decides: kills, stops, cut and silent
connections, full disks, flipped bytes, a log that is gone, promotions as planned or by force, and
faults in the middle of promotions. Meanwhile askers count up keys by exactly-once writes, and read
and write shared ones; a mirror and a follower of the feed look on.

After each round: the standby has the state of the primary at the same log number (entries with
revisions and deadlines, and sessions); each counter is what was answered; the mirror is the store.
What is missing after a promotion by force is a suffix: what was answered up to the revision where
the new primary begins is there, and what came later is not. With ``--sync`` nothing is missing.
What was asked between two promotions by force is linearizable.

Exit status: 0 if all that holds in all rounds.
"""

from __future__ import annotations

import argparse
import collections
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import zmq

from tests.broker.followers import Follower, Mirror, stored
from tests.failover.askers import Asker
from tests.failover.machines import Machine, outcome, promote
from tests.linearizability.checker import Operation, UndecidedError, check, save
from tests.replication.following import RAISED_BY, State, replication
from tests.support import LIMIT, Message, NoReplyError, Raw, eventually

ASKERS = 4
SOME_ANSWERS = 60
"""Answers between two faults."""


class BrokenError(Exception):
    """An invariant does not hold."""


class Run:
    """The whole of it.

    Args:
        directory: of the machines.
        seed: decides all but the timing.
        sync: writes are answered once the standby has them on disk.
    """

    def __init__(self, directory: Path, seed: int, sync: bool = False) -> None:
        self._pick = random.Random(seed)
        self._sync = sync
        self._directory = directory
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.primary, self.standby = (Machine(directory / name, int(sync)) for name in ("a", "b"))
        endpoints = [self.primary.endpoint, self.standby.endpoint]
        self._askers = [Asker(each, seed, endpoints, self._context) for each in range(ASKERS)]
        self._era = 0
        self._mirror: Mirror | None = None
        self._mirrored: Machine | None = None  # The one whose feed it follows.
        self.done: collections.Counter[str] = collections.Counter()
        self.operations = 0
        self.lost = 0
        self.undecided = 0
        self.faults: list[Callable[[], None]] = [
            self.kill_standby, self.kill_primary, self.stop_standby, self.stop_primary,
            self.cut, self.mute, self.fill_standby, self.fill_primary, self.flip_in_standby,
            self.planned, self.planned, self.planned, self.forced, self.forced,
            self.planned_standby_killed, self.planned_primary_killed, self.planned_muted,
            self.planned_delayed,
            self.planned_primary_stopped, self.planned_standby_full, self.forced_after_stop,
        ]  # fmt: skip
        if not sync:  # These need writes while there is no standby.
            self.faults += [self.compact, self.flip_in_snapshot]

    def begin(self) -> None:
        """Start everything."""
        for machine in (self.primary, self.standby):
            machine.proxy.__enter__()
        self.primary.serve()
        self.standby.follow(self.primary)
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
        for machine in (self.primary, self.standby):
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

    # --- What is done

    def kill_standby(self) -> None:
        self.standby.kill()
        self._without_standby()
        self._start(self.standby)

    def kill_primary(self) -> None:
        self.primary.kill()
        self._start(self.primary)

    def stop_standby(self) -> None:
        self.standby.signal(signal.SIGSTOP)
        self._without_standby()
        self.standby.signal(signal.SIGCONT)

    def stop_primary(self) -> None:
        self.primary.signal(signal.SIGSTOP)
        time.sleep(self._pick.random())
        self.primary.signal(signal.SIGCONT)

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
        self.standby.signal(signal.SIGSTOP)
        self._compact()
        self.standby.signal(signal.SIGCONT)

    def flip_in_standby(self) -> None:
        """Damage a file of the standby: it says so, or what it lacks comes again."""
        self.standby.kill()
        paths = [p for p in self.standby.data_dir.glob("*/*") if p.stat().st_size > 200]
        path = self._pick.choice(paths)
        self._flip(path)
        try:
            self._start(self.standby)
        except BrokenError:  # It does not start: the operator makes another one.
            self.done["refused damage"] += 1
            shutil.rmtree(self.standby.data_dir)
            self.standby.follow(self.primary)

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
        self._fill()
        self.standby.server.await_ready()

    def planned(self) -> None:
        led, said = outcome(promote(self.standby))
        if not led:
            raise BrokenError(f"a planned promotion failed: {said}")
        self._change_places()

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
        self.primary.signal(signal.SIGSTOP)
        time.sleep(self._pick.random() * 12)
        self.primary.signal(signal.SIGCONT)
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
            self.standby.signal(signal.SIGSTOP)
            self._without_standby()
        self.primary.kill()
        self.standby.signal(signal.SIGCONT)
        self._force()

    def forced_after_stop(self) -> None:
        """By force, while the old primary is stopped; it never goes on."""
        self.primary.signal(signal.SIGSTOP)
        self._force()

    # --- Promotions

    def _force(self) -> None:
        for asker in self._askers:
            asker.pause()
        led, said = outcome(promote(self.standby, "--force"))
        if not led:
            raise BrokenError(f"a promotion by force failed: {said}")
        began = int(said.rpartition("from revision ")[2].split()[0]) - RAISED_BY
        self.primary.kill()
        with Raw(self.standby.endpoint, context=self._context) as client:
            for asker in self._askers:
                reply = client.call(op="GET", key=asker.counter)
                value = reply["value"] if reply["ok"] else 0
                self._check_suffix(asker, value, began)
        self._check_history()
        self._era += 1
        with Raw(self.standby.endpoint, context=self._context) as client:
            for asker in self._askers:
                reply = client.call(op="GET", key=asker.counter)
                asker.begin_era(self._era, reply["value"] if reply["ok"] else 0)
        self._change_places()
        for asker in self._askers:
            asker.go_on()

    def _check_suffix(self, asker: Asker, value: int, began: int) -> None:
        there = [each for each, rev in asker.counted if rev <= began]
        gone = [each for each, rev in asker.counted if rev > began]
        self.lost += len(gone)
        if gone and self._sync:
            raise BrokenError(f"{asker.counter}: {len(gone)} counts are lost, from {gone[0]} on")
        if there and there[-1] > value:
            raise BrokenError(f"{asker.counter}: {there[-1]} was before {began}, but is {value}")
        if gone and gone[0] <= value:
            raise BrokenError(f"{asker.counter}: {gone[0]} was after {began}, but is {value}")

    def _change_places(self) -> None:
        """The standby leads; the old primary becomes its standby."""
        self.primary.kill()
        self.primary, self.standby = self.standby, self.primary
        self.standby.follow(self.primary)

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
            self._change_places()

    def _start(self, machine: Machine) -> None:
        """Start a server that was killed, as its files say. Raises BrokenError if it refuses."""
        other = self.standby if machine is self.primary else self.primary
        try:
            if machine.is_standby:
                machine.follow(other)
            else:
                machine.serve()
        except AssertionError:
            machine.kill()
            raise BrokenError(f"{machine.directory}: {machine.log()[-500:]}") from None

    def _roles(self) -> list[str]:
        found = []
        for machine in (self.primary, self.standby):
            figures: Message = {}
            end = time.monotonic() + 3 * LIMIT
            while not figures and time.monotonic() < end:
                figures = self._figures(machine)
            found.append(str(figures.get("role")))
        return found

    def _figures(self, machine: Machine) -> Message:
        """INFO's ``replication``; empty while a server begins anew."""
        with Raw(machine.endpoint, context=self._context, timeout=2.0) as client:
            try:
                return dict(client.call(op="INFO").get("replication", {}))
            except NoReplyError:
                return {}

    # --- What has to hold

    def _progress(self) -> None:
        """Wait until some more is answered."""
        goal = sum(asker.answered for asker in self._askers) + SOME_ANSWERS

        def enough() -> bool:
            for asker in self._askers:
                if asker.error is not None:
                    raise BrokenError(f"{asker.name}: {asker.error}") from asker.error
            return sum(asker.answered for asker in self._askers) >= goal

        eventually(enough, "progress of the askers", 3 * LIMIT)

    def _without_standby(self) -> None:
        """Go on for a while, as far as that is possible without a standby."""
        if self._sync:
            time.sleep(self._pick.random())
        else:
            self._progress()

    def _compare(self) -> None:
        for asker in self._askers:
            asker.pause()
        with Raw(self.primary.endpoint, context=self._context) as one:
            states: list[State] = []

            def settled() -> bool:
                """What was sent before a pause may still be done after it."""
                if self.standby.process.poll() is not None:
                    raise BrokenError(f"the standby has ended: {self.standby.log()[-500:]}")
                lsn, term = (replication(one)[each] for each in ("applied", "term"))
                here = self._figures(self.standby)
                if here.get("applied") != lsn or here.get("term") != term:
                    return False
                states[:] = self.primary.state(), self.standby.state()
                return states[0].lsn == states[1].lsn

            eventually(settled, "the same log number at the standby", 3 * LIMIT)
            if states[0] != states[1]:
                raise BrokenError(f"states differ: {states}")
            self._look_on(one)
            for asker in self._askers:
                self._check_counter(asker, one)
        for asker in self._askers:
            asker.go_on()

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

    def _check_counter(self, asker: Asker, client: Raw) -> None:
        reply = client.call(op="GET", key=asker.counter)
        value, last = reply.get("value", 0), asker.counted[-1][0]
        if not last <= value <= last + 1:
            raise BrokenError(f"{asker.counter} is {value}, and {last} was answered")

    def _check_history(self) -> None:
        history: list[Operation] = []
        for asker in self._askers:
            history += asker.told()
        self.operations += len(history)
        try:
            violation = check(history)
        except UndecidedError:
            self.undecided += 1
            return
        if violation is not None:
            path = self._directory / f"history-{self._era}.jsonl"
            save(history, path)
            raise BrokenError(f"not linearizable, kept as {path}: {violation}")

    # --- Means

    def _compact(self) -> None:
        self.primary.kill()  # It keeps the log after a snapshot that was fetched just now.
        self._start(self.primary)
        self._fill()

    def _fill(self) -> None:
        """Have the primary write so many snapshots and so much log that it removes older ones."""
        with Raw(self.primary.endpoint, context=self._context) as client:
            for _ in range(3):
                for number in range(5):
                    client.ok(op="PUT", key=f"filler/{number}", value="x" * 20_000)
                client.ok(op="SNAPSHOT")

    def _flip(self, path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[self._pick.randrange(len(content))] ^= 1 << self._pick.randrange(8)
        path.write_bytes(content)


def main() -> int:
    """Run the rounds; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.failover", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--sync", action="store_true", help="with replication.sync = 1")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no round later")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="zkv-failover-"))
    print(f"seed {options.seed}, files in {directory}", flush=True)
    run = Run(directory, options.seed, options.sync)
    run.begin()
    began, number = time.monotonic(), 0
    try:
        while number < options.rounds and time.monotonic() - began < options.seconds:
            name = run.round()
            number += 1
            print(f"{number:4} {time.monotonic() - began:7.1f} s  {name}", flush=True)
        run.check_rest()
        status = 0
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        run.end()
    for name, count in sorted(run.done.items()):
        print(f"{count:5}  {name}")
    print(
        f"{number} rounds, {run.operations} requests checked, {run.undecided} histories undecided, "
        f"{run.lost} counts lost by force; seed {options.seed}"
    )
    if not status:
        shutil.rmtree(directory)
    return status


if __name__ == "__main__":
    sys.exit(main())
