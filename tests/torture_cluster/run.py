"""Rounds of fail-overs between three members whose processes, networks, disks and etcd fail.

Each round does one thing, in an order that the seed decides: see `Run.faults`. Meanwhile askers
count up keys by exactly-once writes, and read and write shared ones; a mirror follows the feed of
whoever leads; a prober measures for how long nobody takes writes.

After each round: what was asked is linearizable, with what a member answered that was stopped
meanwhile; each counter is what was answered; the mirror equals the store, and had to read it whole
only where the one that leads was started since; revisions never go back; a key with most of an hour
to live is there, and one that was seen to be gone stays gone; all members have the same state at
the same log number.

Members trim the log in etcd as soon as they may, so one that was away for some seconds begins anew
from a snapshot of another one.

What a fault needs that is not there is left out, and `Run.not_run` says so.
"""

from __future__ import annotations

import collections
import random
import shutil
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import zmq

from tests.broker.followers import Follower, Mirror, stored
from tests.durability.crash.disks import PowerCutMount, why_no_power_cuts
from tests.etcd.nodes import EtcdCluster, EtcdNode
from tests.failover.askers import PASSING, Asker
from tests.failover.invariants import BrokenError, await_progress, check_counter, is_decided
from tests.linearizability.checker import NEVER, Operation
from tests.support import LIMIT, Message, NoReplyError, Raw
from tests.torture_cluster import clocks, networks
from tests.torture_cluster.clocks import MachineClock
from tests.torture_cluster.lookers import Prober, StuckReader
from tests.torture_cluster.members import (
    LEASE,
    MemberMachine,
    await_caught_up,
    await_same_place,
    found_store,
    leader_of,
    states,
)
from tests.torture_cluster.networks import Link, Loses, Networks

ASKERS = 4
NAMES = ("a", "b", "c")
STUCK, OWN = 100, 101
"""Clients in the histories, beside the askers."""
MINORITY_SECONDS = 10.0
"""For how long etcd has no majority."""
STUCK_READS = 20
LASTING_SECONDS = 3_000
"""The time to live of a key that no fault may end early; less than a clock is ahead."""
BRIEF_SECONDS = 0.3
SET_SECONDS = (-86_400, -3_600, -60, 0, 60, 3_600, 86_400)
"""By how much a clock is set forward or back."""
SLOWER = 0.08
"""By this share a clock is too slow. The margin of a lease is more."""


class Run:
    """The whole of it.

    Args:
        directory: of everything.
        seed: decides all but the timing.
        minority: seconds for which etcd has no majority.
        lease: in seconds.
    """

    def __init__(
        self,
        directory: Path,
        seed: int,
        minority: float = MINORITY_SECONDS,
        lease: float = LEASE,
    ) -> None:
        self._pick = random.Random(seed)
        self._directory = directory
        self._minority = minority
        self._lease = lease
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.etcd = EtcdCluster(directory / "etcd", 3)
        self.not_run: list[str] = []
        self._networks = None if (why := networks.why_not()) else Networks(len(NAMES))
        has_clocks = (why_no_clocks := clocks.why_not()) is None
        has_disks = (why_no_disks := why_no_power_cuts()) is None
        self.members = [
            MemberMachine(
                directory / name, name, self.etcd.endpoints, lease,
                None if self._networks is None else self._networks[number],
                MachineClock(directory / name / "clock") if has_clocks else None,
                PowerCutMount(directory / name / "disk", 64) if has_disks else None,
            )
            for number, name in enumerate(NAMES)
        ]  # fmt: skip
        self._seed = seed
        self._askers: list[Asker] = []
        self._prober: Prober
        self._era = 0
        self._mirror: Mirror | None = None
        self._mirrored: MemberMachine | None = None
        self._heard: list[Operation] = []  # What stuck readers were answered, and own writes.
        self._newest = 0
        self._gone: set[str] = set()
        self._lasting: list[float] = []  # When each lasting key was put.
        self.resets = 0
        self.gaps: dict[str, list[float]] = collections.defaultdict(list)
        self.operations = self.undecided = self.heard = self.failovers = self.asked = 0
        self.faults: list[Callable[[], None]] = [
            self.kill_leader, self.kill_follower, self.stop_leader_beyond_its_lease,
            self.stop_leader_beyond_its_lease, self.stop_leader_for_a_moment,
            self.kill_etcd_leader, self.stop_etcd_leader, self.etcd_without_majority,
            self.cut_leader_from_etcd, self.hold_leader_from_etcd, self.cut_clients_from_leader,
            self.end_leader, self.terminate_leader, self.fill_leader, self.fill_follower,
            self.delay_etcd, self.flip_byte, self.kill_all, self.kill_leader_after_a_refusal,
        ]  # fmt: skip
        self._add([self.lose_packets_of_etcd, self.lose_packets_of_clients], why)
        self._add([self.set_clocks, self.cut_slow_leader_from_etcd], why_no_clocks)
        self._add([self.cut_power_of_leader, self.cut_power_of_all], why_no_disks)

    def _add(self, faults: Sequence[Callable[[], None]], why_not: str | None) -> None:
        if why_not is None:
            self.faults += faults
        else:
            self.not_run += [f"{fault.__name__}: {why_not}" for fault in faults]

    def begin(self) -> None:
        """Start everything."""
        if self._networks is not None:
            self._networks.open()
        self.etcd.__enter__()
        found_store(self._directory, self.etcd)
        for member in self.members:
            member.open()
            member.serve()
        leader_of(self.members)
        endpoints = [member.proxy.endpoint for member in self.members]
        self._askers = [Asker(each, self._seed, endpoints, self._context) for each in range(ASKERS)]
        self._prober = Prober(endpoints, self._context)
        self._prober.start()
        for asker in self._askers:
            asker.start()
            asker.go_on()
        self._progress()

    def end(self) -> None:
        """End everything."""
        for asker in self._askers:
            asker.end()
        if self._askers:
            self._prober.end()
        if self._mirror is not None:
            self._mirror.follower.close()
        for member in self.members:
            member.close()
        self.etcd.kill()
        if self._networks is not None:
            self._networks.close()
        self._context.term()

    def round(self, fault: Callable[[], None] | None = None) -> str:
        """Do one thing, and see that all is well; its name. Raises BrokenError."""
        fault = fault or self._pick.choice(self.faults)
        self._progress()
        self._put_what_expires()
        led = self.leader
        before = {member.name: member.started for member in self.members}
        began = time.monotonic()
        fault()
        self._progress()
        self.gaps[fault.__name__].append(self._prober.longest_gap(began))
        self.failovers += self.leader is not led
        self._compare(before)
        return fault.__name__

    # --- What is done

    @property
    def leader(self) -> MemberMachine:
        """The one that leads; waits for it."""
        return self._await_leader(self.members)

    def _a_follower(self) -> MemberMachine:
        return self._pick.choice(self._others(self.leader))

    def kill_leader(self) -> None:
        leader = self.leader
        leader.kill()
        self._await_other(leader)
        leader.serve()

    def kill_follower(self) -> None:
        follower = self._a_follower()
        follower.kill()
        self._progress()
        follower.serve()

    def stop_leader_beyond_its_lease(self) -> None:
        """It is asked before, while it is stopped, and when another one has written."""
        leader = self._write(self.members, 1)
        reader = self._new_reader(leader)
        reader.ask(self._read_keys, STUCK_READS)
        leader.stop()
        self._write(self._others(leader), 2)
        self._progress()
        reader.ask(self._read_keys, STUCK_READS)
        reader.go_on_asking(self._own_key)
        leader.go_on()
        self._progress()
        self._hear(reader)

    def stop_leader_for_a_moment(self) -> None:
        leader = self.leader
        reader = self._new_reader(leader)
        leader.stop()
        reader.ask(self._read_keys, STUCK_READS)
        time.sleep(self._pick.uniform(0.2, 0.9) * self._lease)
        leader.go_on()
        self._hear(reader)

    def _new_reader(self, leader: MemberMachine) -> StuckReader:
        return StuckReader(leader.endpoint, STUCK, self._context)

    def _hear(self, reader: StuckReader) -> None:
        answers = reader.answers()
        self.asked += reader.asked
        self.heard += len(answers)
        self._heard += answers

    def _write(self, members: list[MemberMachine], value: int) -> MemberMachine:
        """Write a key that nobody else writes, so that no read of it waits; whoever leads then."""
        request = {"op": "PUT", "key": self._own_key, "value": value}
        while True:
            leader = self._await_leader(members)
            called = time.monotonic_ns()
            reply = self._call(leader, **request)
            if reply.get("ok"):
                returned = time.monotonic_ns()
                self._heard.append(Operation(OWN, called, returned, request, reply))
                return leader
            if reply.get("applied") is not False:
                self._heard.append(Operation(OWN, called, NEVER, request, None))

    def _call(self, member: MemberMachine, **request: Any) -> Message:
        """Ask a member; the reply is empty if none comes."""
        with Raw(member.endpoint, context=self._context) as client:
            try:
                return client.call(**request)
            except NoReplyError:
                return {}

    def _call_leader(self, **request: Any) -> Message:
        """Ask whoever leads, until it answers. What it is asked may be done twice."""
        while True:
            reply = self._call(self.leader, **request)
            if reply and (reply["ok"] or reply["code"] not in PASSING):
                return reply

    def kill_etcd_leader(self) -> None:
        node = self.etcd.leader()
        node.kill()
        self._progress()
        node.start()
        self.etcd.await_ready()

    def stop_etcd_leader(self) -> None:
        node = self.etcd.leader()
        node.stop()
        self._progress()
        node.resume()
        self.etcd.await_ready()

    def etcd_without_majority(self) -> None:
        nodes = self._pick.sample(self.etcd.nodes, 2)
        ends = self._pick.choice([EtcdNode.kill, EtcdNode.stop])
        for node in nodes:
            ends(node)
        time.sleep(self._minority)
        for node in nodes:
            node.start() if ends is EtcdNode.kill else node.resume()
        self.etcd.await_ready()

    def cut_leader_from_etcd(self) -> None:
        self._part_from_etcd(lambda leader: leader.hold_etcd(False))

    def hold_leader_from_etcd(self) -> None:
        """What it sends to etcd arrives later, when another one leads."""
        self._part_from_etcd(lambda leader: leader.hold_etcd(True))

    def lose_packets_of_etcd(self) -> None:
        """Between the leader and etcd, in one direction or both."""
        which = self._pick.choice(list(Loses))
        self._part_from_etcd(lambda leader: leader.lose(Link.ETCD, which))

    def cut_slow_leader_from_etcd(self) -> None:
        """Its clock is slow, so by that it leads longer than it does by those of others."""
        slow = self._have_slow_leader()
        self._part_from_etcd(lambda leader: leader.hold_etcd(False))
        slow.kill()
        slow.serve()

    def _part_from_etcd(self, part: Callable[[MemberMachine], None]) -> None:
        """Part the leader from etcd, and read there all the time until another one has written."""
        leader = self._write(self.members, 1)
        reader = self._new_reader(leader)
        reader.go_on_asking(self._own_key)
        part(leader)
        self._write(self._others(leader), 2)
        self._progress()
        self._hear(reader)
        leader.restore()

    def _have_slow_leader(self) -> MemberMachine:
        """Start a member whose clock is slow, and have it lead; it is alone for a moment."""
        slow = self._a_follower()
        others = self._others(slow)
        assert slow.clock is not None
        slow.kill()
        slow.clock.slow_down(SLOWER)
        slow.serve()
        slow.clock.slow_down(0.0)  # From its next start on.
        await_caught_up(slow, others)
        for each in sorted(others, key=lambda other: other.leads):
            each.process.send_signal(signal.SIGTERM)
            each.process.wait()
        self._await_leader([slow])
        for each in others:
            each.serve()
        return slow

    def cut_clients_from_leader(self) -> None:
        """It leads on: clients see no other leader, and go on once it is there again."""
        leader = self.leader
        leader.proxy.part()
        time.sleep(self._pick.random() * self._lease)
        leader.restore()

    def lose_packets_of_clients(self) -> None:
        """Between clients and the leader, in one direction or both. It leads on."""
        leader = self.leader
        leader.lose(Link.CLIENTS, self._pick.choice(list(Loses)))
        if leader.figures():
            raise BrokenError("packets are to be lost, and are not")
        time.sleep(self._pick.random() * 2 * self._lease)
        leader.restore()

    def end_leader(self) -> None:
        leader = self.leader
        with Raw(leader.endpoint, context=self._context) as client:
            client.call(op="END")
        self._ended_well(leader)

    def terminate_leader(self) -> None:
        leader = self.leader
        leader.process.send_signal(signal.SIGTERM)
        self._ended_well(leader)

    def _ended_well(self, leader: MemberMachine) -> None:
        assert leader.server is not None
        status = leader.server.wait()
        if status:
            raise BrokenError(f"a planned end with status {status}: {leader.log()[-500:]}")
        leader.serve()

    def fill_leader(self) -> None:
        leader = self.leader
        leader.fill_disk()
        self._await_other(leader)
        leader.free_disk()

    def fill_follower(self) -> None:
        follower = self._a_follower()
        follower.fill_disk()
        self._progress()
        follower.free_disk()

    def delay_etcd(self) -> None:
        seconds = self._pick.choice([0.05, 0.2, 0.4])
        for member in self.members:
            for way in member.ways:
                way.delay(seconds)
        time.sleep(2 * self._lease)
        for member in self.members:
            member.restore()

    def cut_power_of_leader(self) -> None:
        leader = self.leader
        leader.cut_power()
        self._await_other(leader)
        leader.serve()

    def cut_power_of_all(self) -> None:
        for member in self.members:
            member.cut_power()
        self._serve_all()

    def set_clocks(self) -> None:
        """All members have another time of day, and one of them takes over."""
        for member in self.members:
            assert member.clock is not None
            member.clock.set_ahead(self._pick.choice(SET_SECONDS))
        self._progress()
        self.kill_leader()

    def kill_leader_after_a_refusal(self) -> None:
        """The next leader has to remember a refusal, which has no revision: the newest commit."""
        key = f"refusing/{self._era}"
        write = {"op": "PUT", "key": key, "value": 2, "if_rev": 0, "session": key, "seq": 1}
        for asker in self._askers:
            asker.pause()
        self._prober.pause()
        self._call_leader(op="PUT", key=key, value=1)
        refused = self._call_leader(**write)
        leader = self.leader
        leader.kill()
        self._prober.go_on()
        for asker in self._askers:
            asker.go_on()
        self._await_other(leader)
        self._call_leader(op="DELETE", key=key)
        again = self._call_leader(**write)
        if (refused.get("code"), again.get("code")) != ("CONFLICT", "CONFLICT"):
            raise BrokenError(f"a write was refused, and not when repeated: {refused}, {again}")
        leader.serve()

    def flip_byte(self) -> None:
        """Damage a file of a follower: it says so, or what it lacks comes again."""
        follower = self._a_follower()
        follower.kill()
        paths = [p for p in follower.data_dir.glob("*/*") if p.stat().st_size > 200]
        path = self._pick.choice(paths)
        content = bytearray(path.read_bytes())
        content[self._pick.randrange(len(content))] ^= 1 << self._pick.randrange(8)
        path.write_bytes(content)
        try:
            follower.serve()
        except AssertionError:  # It does not start: the operator makes another one.
            self.gaps["(refused damage)"].append(0.0)
            follower.kill()
            shutil.rmtree(follower.data_dir)
            follower.serve()

    def kill_all(self) -> None:
        for member in self.members:
            member.kill()
        self._serve_all()

    def _serve_all(self) -> None:
        """Start all members; one may need another one to be ready."""
        for member in self.members:
            member.launch()
        for member in self.members:
            member.await_ready()

    # --- What has to hold

    @property
    def _shared_keys(self) -> list[str]:
        return [f"r/{self._era}", f"n/{self._era}"]

    @property
    def _own_key(self) -> str:
        return f"own/{self._era}"

    @property
    def _read_keys(self) -> list[str]:
        return [*self._shared_keys, self._own_key]

    def _others(self, member: MemberMachine) -> list[MemberMachine]:
        return [each for each in self.members if each is not member]

    def _await_other(self, leader: MemberMachine) -> None:
        self._await_leader(self._others(leader))

    def _await_leader(self, members: list[MemberMachine]) -> MemberMachine:
        return leader_of(members, 3 * LIMIT + 5 * self._lease)

    def _progress(self) -> None:
        """Wait until some more is answered."""
        await_progress(self._askers)

    def _put_what_expires(self) -> None:
        self._lasting.append(time.monotonic())
        put = {"op": "PUT", "value": self._era}
        self._call_leader(key=f"lasting/{self._era}", ttl=LASTING_SECONDS, **put)
        self._call_leader(key=f"brief/{self._era}", ttl=BRIEF_SECONDS, **put)

    def _check_what_expires(self, client: Raw) -> None:
        for era, put_at in enumerate(self._lasting):
            is_there = client.call(op="GET", key=f"lasting/{era}")["ok"]
            if not is_there and time.monotonic() - put_at < LASTING_SECONDS / 2:
                raise BrokenError(f"lasting/{era} is gone, too early")
            key = f"brief/{era}"
            if client.call(op="GET", key=key)["ok"]:
                if key in self._gone:
                    raise BrokenError(f"{key} was gone, and is there again")
            else:
                self._gone.add(key)

    def _compare(self, started: dict[str, int]) -> None:
        for asker in self._askers:
            asker.pause()
        self._check_history()
        await_same_place(self.members, self._see_that_all_run)
        leader = self.leader
        with Raw(leader.endpoint, context=self._context) as client:
            self._look_on(leader, client, leader.started == started[leader.name])
            self._check_what_expires(client)
            for asker in self._askers:
                check_counter(asker, client)
            self._era += 1
            for asker in self._askers:
                asker.begin_era(self._era, asker.counted[-1][0])
        self._compare_states()
        for asker in self._askers:
            asker.go_on()

    def _compare_states(self) -> None:
        """See that all members have the same on their disks. Askers are paused, the prober not."""
        self._prober.pause()
        await_same_place(self.members, self._see_that_all_run)
        found = states(self.members)
        self._prober.go_on()
        if len(set(found)) != 1:
            raise BrokenError(f"states differ: {found}")

    def _see_that_all_run(self) -> None:
        for member in self.members:
            if not member.runs:
                raise BrokenError(f"member {member.name} has ended: {member.log()[-500:]}")

    def _look_on(self, leader: MemberMachine, client: Raw, has_history: bool) -> None:
        """See that a copy that follows the feed is the store, over all fail-overs."""
        rev = client.ok(op="INFO")["rev"]
        if rev < self._newest:
            raise BrokenError(f"the revision went back from {self._newest} to {rev}")
        self._newest = rev
        self._prober.pause()
        rev = client.ok(op="PUT", key="probe", value="now")["rev"]
        if self._mirror is None:
            self._mirror = Mirror(client, Follower(self._context, leader.feed).joined())
        else:
            loaded = self._mirror.loaded
            self._mirror.follower.close()
            self._mirror.turn_to(client, Follower(self._context, leader.feed).joined())
            self.resets += self._mirror.loaded - loaded
            if self._mirror.loaded > loaded and has_history:
                raise BrokenError("the copy had to read the whole store")
        self._mirror.follow(rev)
        there = stored(client)
        self._prober.go_on()
        if self._mirror.values != there:
            raise BrokenError("the copy that follows the feed differs from the store")

    def _check_history(self) -> None:
        history, self._heard = self._heard, []
        for asker in self._askers:
            history += asker.told()
        self.operations += len(history)
        path = self._directory / f"history-{self._era}.jsonl"
        self.undecided += not is_decided(history, path)

    def table(self) -> str:
        """For each fault: how often, and the seconds without writes."""
        lines = [
            f"{'fault':32} {'times':>5} {'median':>7} {'longest':>7}  (seconds without writes)"
        ]
        for name, gaps in sorted(self.gaps.items()):
            lines.append(f"{name:32} {len(gaps):5} {statistics.median(gaps):7.2f} {max(gaps):7.2f}")
        return "\n".join(lines)
