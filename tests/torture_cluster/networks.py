"""Machines with networks of their own, of which packets can be lost: network namespaces.

Each machine has two links, one to clients and one to etcd, so that one can fail without the other.
Packets are lost in one direction or in both, and nobody is told: connections stay, and what was
sent arrives later, if both sides still want it. (`tests.client.proxy` does what tells: it cuts
connections, and holds up what passes by.)

To lose packets, the sender gets a wrong hardware address of the receiver, who then leaves them.
That needs nothing of the kernel beside namespaces and `ip`.
"""

from __future__ import annotations

import enum
import functools
import json
import os
import random
import shutil
import subprocess
from typing import Any, Final

_NOBODY: Final = "02:00:00:00:00:01"
_BLOCKS: Final = "10.213.{}"
"""Of addresses, one for each run at the same time; each link takes four addresses of it."""
_JANITOR: Final = 'read -r _; for each; do ip netns del "$each"; done 2>/dev/null'


class Link(enum.Enum):
    """A link of a machine, by the end of its name."""

    CLIENTS = "c"
    ETCD = "e"


class Loses(enum.Enum):
    """Which packets a link loses, as seen from the machine."""

    SENT = (True, False)
    RECEIVED = (False, True)
    ALL = (True, True)


class Network:
    """The network of a machine: a namespace for its processes, and links into it.

    Use `make` to have several.

    Args:
        name: of the namespace; a part of the names of links.
        block: the first three parts of addresses.
        number: of the machine.
    """

    def __init__(self, name: str, block: str, number: int) -> None:
        self.name = name
        self.launcher = ("nsenter", f"--net=/run/netns/{name}")
        """Runs a command there. ``ip netns exec`` would also keep copies of all mounts."""
        self._ends = {}
        for at, link in enumerate(Link):
            first = 8 * number + 4 * at
            self._ends[link] = f"{block}.{first + 1}", f"{block}.{first + 2}"

    def outside(self, link: Link) -> str:
        """The address at which processes of this test are found there."""
        return self._ends[link][0]

    def inside(self, link: Link) -> str:
        """The address at which processes of the machine are found."""
        return self._ends[link][1]

    def open(self) -> None:
        """Make the namespace and its links."""
        _ip("netns", "add", self.name)
        self._inside("link", "set", "lo", "up")
        for link in Link:
            there, here = f"{self.name}{link.value}", link.value
            _ip("link", "add", there, "type", "veth", "peer", "name", here, "netns", self.name)
            _ip("addr", "add", f"{self.outside(link)}/30", "dev", there)
            _ip("link", "set", there, "up")
            self._inside("addr", "add", f"{self.inside(link)}/30", "dev", here)
            self._inside("link", "set", here, "up")
        # By way of clients they reach what listens outside, as the proxies of other machines.
        self._inside("route", "add", "default", "via", self.outside(Link.CLIENTS))

    def close(self) -> None:
        """Remove it; harmless if it is not there. Its processes have to have ended."""
        links = [("link", "del", f"{self.name}{link.value}") for link in Link]
        for words in (*links, ("netns", "del", self.name)):  # Else links go a while later.
            subprocess.run(["ip", *words], check=False, capture_output=True)

    def lose(self, link: Link, which: Loses) -> None:
        """Have a link lose packets from now on."""
        sent, received = which.value
        wrong = ("lladdr", _NOBODY, "nud", "permanent")
        if sent:
            self._inside("neigh", "replace", self.outside(link), *wrong, "dev", link.value)
        if received:
            _ip("neigh", "replace", self.inside(link), *wrong, "dev", f"{self.name}{link.value}")

    def restore(self) -> None:
        """Have all links work again."""
        for link in Link:
            there = f"{self.name}{link.value}"
            for where, device, address in (
                (("-n", self.name), link.value, self.outside(link)),
                ((), there, self.inside(link)),
            ):
                known = json.loads(_ip(*where, "-j", "neigh", "show", "dev", device) or "[]")
                if any(_is_wrong(each, address) for each in known):
                    _ip(*where, "neigh", "del", address, "dev", device)

    def _inside(self, *words: str) -> None:
        _ip("-n", self.name, *words)


class Networks(list[Network]):
    """The networks of several machines. They go with this process, however it ends.

    Args:
        count: of the machines.
    """

    def __init__(self, count: int) -> None:
        names = [f"zkv{os.getpid():x}{number}" for number in range(count)]
        block = _free_block()
        super().__init__(Network(name, block, number) for number, name in enumerate(names))
        self._janitor = subprocess.Popen(
            ["sh", "-c", _JANITOR, "sh", *names], stdin=subprocess.PIPE, start_new_session=True
        )

    def open(self) -> None:
        """Make all."""
        for network in self:
            network.open()

    def close(self) -> None:
        """Remove all."""
        for network in self:
            network.close()
        assert self._janitor.stdin is not None
        self._janitor.stdin.close()
        self._janitor.wait()


@functools.cache
def why_not() -> str | None:
    """Return why no such networks can be made here; None if they can: it was tried."""
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    missing = [program for program in ("ip", "nsenter") if shutil.which(program) is None]
    if missing:
        return f"{missing[0]} is not installed here"
    networks = Networks(1)
    try:
        networks.open()
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        return f"no network namespaces: {said.strip()}"
    finally:
        networks.close()
    return None


def _is_wrong(neighbour: dict[str, Any], address: str) -> bool:
    return neighbour.get("dst") == address and neighbour.get("lladdr") == _NOBODY


def _free_block() -> str:
    """Return the beginning of addresses that nobody has here."""
    try:
        taken = _ip("-4", "addr", "show")
    except OSError:
        taken = ""
    blocks = [_BLOCKS.format(number) for number in range(1, 255)]
    return random.choice([each for each in blocks if f" {each}." not in taken])


def _ip(*words: str) -> str:
    """Run ``ip``; what it says. Raises OSError, CalledProcessError."""
    done = subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
    return done.stdout
