#!/usr/bin/env python3
"""Show a replicated store at work, on this machine: three nodes of etcd, and three members.

All processes use free ports, and directories that are removed at the end. The commands that are
shown are those that run. `docs/cluster.md` explains them.

Exit status: 0 if all went well, 1 if anything failed, or etcd is not installed.
"""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import zkv
from tools.machines import BIN, Cluster, NotThereError, wait_for

if TYPE_CHECKING:
    from tools.machines import Member

FEWER_SECONDS: Final = ("--wait", "leader")
"""Members are ready once one leads, so that the first command finds it."""


def say(text: str) -> None:
    """Print a line of explanation."""
    print(f"\n# {text}", flush=True)


def show(cluster: Cluster, *words: str) -> None:
    """Run a command, and show it and what it prints. Raises CalledProcessError."""
    print(f"$ {shlex.join(words)}", flush=True)
    subprocess.run([BIN / words[0], *words[1:]], cwd=cluster.directory, check=True)


def run(directory: Path) -> None:
    """Go through all of it. Raises NotThereError, CalledProcessError, ZkvError."""
    say("three nodes of etcd, a store in them, and three members of the store")
    with Cluster(directory, *FEWER_SECONDS) as cluster:
        print(f"$ zkv store found {cluster.url}")
        for member in cluster.members:
            print(f"$ {shlex.join(member.command)}")
        leader, follower = cluster.leader(), cluster.follower()
        say("a write: a client knows all endpoints, and finds the leader")
        show(cluster, "zkv-cli", "-e", cluster.endpoints, "put", "greeting", "hello")
        say(f"a read at {follower.name}, which follows: it may be a moment old")
        wait_for(f"{follower.name} has the write", lambda: has_greeting(follower))
        show(cluster, "zkv-cli", "-e", follower.endpoint, "get", "--stale", "greeting")
        say(f"{leader.name} leads, and is killed: the next write waits for another leader")
        began = time.monotonic()
        leader.end(signal.SIGKILL)
        show(
            cluster,
            "zkv-cli",
            "-e",
            cluster.endpoints,
            "--timeout",
            "30",
            "put",
            "greeting",
            "again",
        )
        took = time.monotonic() - began
        new = cluster.leader()
        print(f"no write for {took:.1f} seconds; {new.name} leads now")
        say(f"{leader.name} is started again, and follows")
        leader.start()
        leader.await_ready()
        wait_for(f"{leader.name} has the write", lambda: has_greeting(leader, "again"))
        show(cluster, "zkv-cli", "-e", leader.endpoint, "get", "--stale", "greeting")
        say("who is a member: name, role, endpoints, log number, seconds since it told that")
        show(cluster, "zkv", "member", "list", cluster.url)


def has_greeting(member: Member, greeting: str = "hello") -> bool:
    """Return True if a member has the write."""
    with zkv.Client(member.endpoint, read="stale") as client:
        return bool(client.get("greeting", None) == greeting)


def main() -> int:
    """Run the demonstration; returns the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # So that all processes are ended.
    directory = Path(tempfile.mkdtemp(prefix="zkv-cluster-"))
    try:
        run(directory)
    except (NotThereError, subprocess.CalledProcessError, zkv.ZkvError) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        for log in sorted(directory.glob("?.log")):
            print(f"--- {log.name}\n{log.read_text()}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(directory)
    print("\nall well")
    return 0


if __name__ == "__main__":
    sys.exit(main())
