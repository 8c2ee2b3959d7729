"""A real etcd of one or more nodes, on this machine.

The variable ``ETCD`` names another program than the one that is installed, to try other versions.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Final, Self

import pytest

from tests.support import LIMIT, eventually, free_ports, halt
from zkv.etcd import EtcdSecurity
from zkv.etcd.client import EtcdClient

PROGRAM: Final = shutil.which(os.environ.get("ETCD", "etcd"))
HEARTBEAT: Final = 50
"""Milliseconds; an election takes ten to twenty times as long. Half of what is the default."""

needs_etcd = pytest.mark.skipif(
    PROGRAM is None, reason="NOT RUN: etcd is not installed here (make etcd-deps)"
)


class EtcdNode:
    """One node: a process, which may be started again on the same data."""

    def __init__(self, command: list[str], directory: Path, endpoint: str) -> None:
        directory.mkdir(parents=True)
        self.endpoint = endpoint
        self.directory = directory
        self.process: subprocess.Popen[bytes] | None = None
        self._command = command

    def start(self) -> None:
        """Start the process. It may not answer yet."""
        with open(self.directory / "log.txt", "ab") as log:
            self.process = subprocess.Popen(
                self._command, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def kill(self) -> None:
        """End it at once (SIGKILL). Harmless when it has ended."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(LIMIT)
            self.process = None

    def stop(self) -> None:
        """Have it stand still (SIGSTOP)."""
        halt(self._running)

    def resume(self) -> None:
        """Have it go on (SIGCONT)."""
        self._running.send_signal(signal.SIGCONT)

    def log(self) -> str:
        """What it has written."""
        return (self.directory / "log.txt").read_text(encoding="utf-8", errors="replace")

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        assert self.process is not None
        return self.process


class EtcdCluster:
    """A cluster. Use as a context manager; it then answers.

    Args:
        directory: for its data; each node has a directory ``node-N`` in it.
        count: of nodes.
        *flags: further flags of ``etcd``.
        fsync: True to have it wait for the disk.
        tls: flags for TLS towards clients; then endpoints begin with ``https://``.
        security: with which a client finds out if the cluster answers.
    """

    def __init__(
        self,
        directory: Path,
        count: int = 1,
        *flags: str,
        fsync: bool = False,
        tls: tuple[str, ...] = (),
        security: EtcdSecurity | None = None,
    ) -> None:
        assert PROGRAM is not None
        self._security = security
        scheme = "https" if tls else "http"
        ports = free_ports(2 * count)
        urls = [f"{scheme}://127.0.0.1:{port}" for port in ports[:count]]
        peers = [f"http://127.0.0.1:{port}" for port in ports[count:]]
        members = ",".join(f"node-{each}={peer}" for each, peer in enumerate(peers))
        common = [
            PROGRAM, "--initial-cluster", members, "--heartbeat-interval", str(HEARTBEAT),
            "--election-timeout", str(10 * HEARTBEAT), *flags, *tls,
        ]  # fmt: skip
        if not fsync:
            common.append("--unsafe-no-fsync")
        self.nodes = [
            EtcdNode(
                [
                    *common, "--name", f"node-{each}", "--data-dir", "data",
                    "--listen-client-urls", url, "--advertise-client-urls", url,
                    "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                ],
                directory / f"node-{each}",
                url,
            )
            for each, (url, peer) in enumerate(zip(urls, peers, strict=True))
        ]  # fmt: skip

    @property
    def endpoints(self) -> list[str]:
        """Of all nodes, in their order."""
        return [node.endpoint for node in self.nodes]

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start all nodes that do not run, and wait until each of them follows a leader."""
        for node in self.nodes:
            if node.process is None:
                node.start()
        self.await_ready()

    def await_ready(self) -> None:
        """Wait until each node follows a leader."""
        client = EtcdClient(self.endpoints, security=self._security)
        try:
            eventually(
                lambda: all(each.leader for each in client.status(1.0)), "all nodes follow a leader"
            )
            client.alarms(LIMIT)
        finally:
            client.close()

    def leader(self) -> EtcdNode:
        """The node that leads, as one that answers says."""
        client = EtcdClient(self.endpoints, security=self._security)
        try:
            found = client.status(1.0)
        finally:
            client.close()
        (at,) = [
            at for at, each in enumerate(found) if each.leader and each.leader == each.member_id
        ]
        return self.nodes[at]

    def kill(self) -> None:
        """End all nodes at once."""
        for node in self.nodes:
            node.kill()
