"""Three machines with a member each, the networks between them and etcd, and what they agree on."""

from __future__ import annotations

import resource
import select
from pathlib import Path
from typing import Any

from tests.client.proxy import Proxy
from tests.durability.crash.disks import PowerCutMount
from tests.etcd.nodes import EtcdCluster
from tests.failover.machines import CONFIG, WINDOW, Machine
from tests.forking import run_zkv
from tests.replication.following import State
from tests.support import LIMIT, Message, NoReplyError, Raw, ServerProcess, eventually
from tests.torture_cluster.clocks import MachineClock
from tests.torture_cluster.networks import Link, Loses, Network

LEASE = 2.0
"""Seconds."""
PREFIX = "torture"
HERE = "127.0.0.1"


class MemberMachine(Machine):
    """A machine with a member. Clients reach it by its `proxy`, and it reaches etcd by `ways`.

    Args:
        directory: of its data.
        name: of the member.
        etcd: endpoints of etcd.
        lease: in seconds.
        network: its own; None = it is on that of this process.
        clock: its own; None = it has that of this process.
        disk: its own, of which the power can be cut; None = it is on that of this process.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        etcd: list[str],
        lease: float = LEASE,
        network: Network | None = None,
        clock: MachineClock | None = None,
        disk: PowerCutMount | None = None,
    ) -> None:
        ends = [HERE] * 3
        if network is not None:
            ends = [network.inside(Link.CLIENTS), *map(network.outside, Link)]
        super().__init__(directory, host=ends[0], proxy_host=ends[1])
        self.name = name
        self.ways = [Proxy(each.replace("http://", "tcp://"), ends[2]) for each in etcd]
        self.network = network
        self.clock = clock
        self.disk = disk
        if disk is not None:
            self.data_dir = disk.path / "data"
        self._launches = 0
        trims = {"ZKV_CFG_STORE__LEASE": str(lease), "ZKV_CFG_STORE__LOG_BYTES": "0"}
        self._env = trims | ({} if clock is None else clock.env)
        self._is_open = False

    def open(self) -> None:
        """Open its networks."""
        if self.disk is not None:
            self.disk.__enter__()
        for proxy in (self.proxy, *self.ways):
            proxy.__enter__()
        self._is_open = True

    def close(self) -> None:
        """End everything."""
        self.kill()
        for proxy in (self.proxy, *self.ways) if self._is_open else ():
            proxy.__exit__()
        if self.disk is not None and self._is_open:
            self.disk.__exit__(None, None, None)
        if self.clock is not None:
            self.clock.close()

    def serve(self) -> None:
        """Start it, and wait until it answers."""
        self.launch()
        self.await_ready()

    def await_ready(self) -> None:
        """Wait until it answers, after `launch`. It may have to read all that there is before."""
        assert self.server is not None
        stdout = self.process.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], 10 * LIMIT)
        assert ready, f"member {self.name} is not ready"
        self.server.await_ready()

    def launch(self) -> None:
        """Start it."""
        self._launches += 1
        hosts = ",".join(way.endpoint.removeprefix("tcp://") for way in self.ways)
        # Other members reach it as clients do. What its network is open to is this machine alone.
        config = (
            f"{self._config}advertise = ['{self.proxy.endpoint}']\n[security]\ninsecure = true\n"
        )
        self.server = ServerProcess(
            self.directory, *self._flags, "--data-dir", str(self.data_dir),
            "--store", f"etcd://{hosts}/{PREFIX}",
            "--member", self.name, config=config, env=self._env,
            launcher=() if self.network is None else self.network.launcher,
        )  # fmt: skip
        self.server.launch()

    def hold_etcd(self, holds: bool) -> None:
        """Cut it off from etcd: hold everything up till later, or refuse all connections."""
        for way in self.ways:
            way.hold() if holds else way.part()

    def lose(self, link: Link, which: Loses) -> None:
        """Have its network lose packets until `restore`."""
        assert self.network is not None
        self.network.lose(link, which)

    def cut_power(self) -> None:
        """End it, and have its disk forget what was not synced; it is on again then."""
        assert self.disk is not None
        self.disk.cut()
        self.kill()
        self.disk.power_on()

    def fill_disk(self) -> None:
        """See `Machine.fill_disk`; here the newest segment cannot grow, if others are larger."""
        newest = max(self.data_dir.glob("wal/*.wal")).stat().st_size
        own = (self.directory / "stderr.txt").stat().st_size
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (max(own, newest) + 500, -1))

    def restore(self) -> None:
        """Have all its networks work again."""
        for proxy in (self.proxy, *self.ways):
            proxy.delay(0.0)
            proxy.join()
        if self.network is not None:
            self.network.restore()

    @property
    def runs(self) -> bool:
        """True if its process has not ended."""
        return self.server is not None and self.server.running

    def figures(self) -> Message:
        """INFO's ``replication``; empty if it does not answer."""
        if not self.runs:
            return {}
        with Raw(self.endpoint, timeout=1.0) as client:
            try:
                return dict(client.call(op="INFO").get("replication", {}))
            except NoReplyError:
                return {}

    @property
    def begun_anew(self) -> int:
        """How often it has begun anew from a snapshot of another member."""
        return self.log().count("beginning anew")

    @property
    def started(self) -> int:
        """How often it has started, also anew."""
        return self._launches + self.begun_anew

    @property
    def leads(self) -> bool:
        """True if it says so."""
        return self.figures().get("role") == "leader"


def found_store(directory: Path, etcd: EtcdCluster) -> None:
    """Begin the store."""
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "found.toml"
    config.write_text(CONFIG, encoding="utf-8")
    hosts = ",".join(each.removeprefix("http://") for each in etcd.endpoints)
    done = run_zkv("store", "found", f"etcd://{hosts}/{PREFIX}", "--config", str(config))
    assert done.returncode == 0, done.stderr


def leader_of(members: list[MemberMachine], limit: float = 3 * LIMIT) -> MemberMachine:
    """Wait for a leader; return it."""
    found: list[MemberMachine] = []

    def leads() -> bool:
        found[:] = [each for each in members if each.leads]
        return bool(found)

    eventually(leads, "a leader", limit)
    return found[0]


def await_same_place(members: list[MemberMachine], check: Any = None) -> None:
    """Wait until all members have the same log, up to the same number."""

    def same() -> bool:
        if check is not None:
            check()
        found = {(each.get("applied"), each.get("term")) for each in (m.figures() for m in members)}
        return len(found) == 1 and (None, None) not in found

    eventually(same, "the same log number at all members", 3 * LIMIT)


def await_caught_up(member: MemberMachine, others: list[MemberMachine]) -> None:
    """Wait until a member has what the others have now, while they may take further writes."""
    place = max(int(each.figures().get("applied", 0)) for each in others)
    eventually(
        lambda: int(member.figures().get("applied", -1)) >= place,
        f"{member.name} at log number {place}",
        3 * LIMIT,
    )


def states(members: list[MemberMachine]) -> list[State]:
    """Return what the members have on their disks, at the same log number.

    What a member has applied is written a moment later.
    """
    found: list[State] = []

    def same() -> bool:
        found[:] = [member.state() for member in members]
        return len({state.lsn for state in found}) == 1

    eventually(same, "the same log number on all disks", 3 * LIMIT)
    return found


__all__ = [
    "WINDOW",
    "MemberMachine",
    "await_caught_up",
    "await_same_place",
    "found_store",
    "leader_of",
    "states",
]
