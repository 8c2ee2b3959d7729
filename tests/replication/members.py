"""A member: asks a server for its log, as a standby does, and checks each reply."""

from __future__ import annotations

import time
import zlib
from pathlib import Path
from typing import Any, Self

import zmq

from tests.support import LIMIT, Message, Raw, pack, unpack
from zkv.durability.files import Files
from zkv.durability.segment import SegmentScan
from zkv.durability.snapshot import Loaded, file_name, read
from zkv.keyspace import History, Keyspace, MemoryLog, Sessions
from zkv.keyspace.change import Commit, number_in
from zkv.keyspace.change import unpack as commit_in
from zkv.keyspace.lineage import Lineage, Term
from zkv.keyspace.table import Table, new_table


class Member:
    """What has been pulled, from the first commit or from a snapshot on.

    Use as a context manager.

    Args:
        endpoint: of the server.
        name: of the member.
        **options: of `Raw`.
    """

    def __init__(self, endpoint: str, name: str = "one", **options: Any) -> None:
        self._raw = Raw(endpoint, zmq.DEALER, **options)
        self.name = name
        self.start = Loaded()
        """The snapshot that it began with."""
        self.payloads: list[bytes] = []
        """Of all commits after that."""
        self.lineage = Lineage()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()

    @property
    def after(self) -> int:
        """The newest log number that it has."""
        return self.start.lsn + len(self.payloads)

    def call(self, **fields: Any) -> Message:
        """Send a request of this member and return its reply."""
        self.send(**fields)
        return self.receive()

    def send(self, **fields: Any) -> None:
        """Send a request of this member."""
        self._raw.send(pack({"op": "REPLICATE", "member": self.name} | fields))

    def receive(self) -> Message:
        """Return the next reply."""
        reply = unpack(self._raw.receive())
        assert isinstance(reply, dict)
        return reply

    def position(self) -> Message:
        """Return the fields of where it is."""
        term = self.lineage.at(self.after)
        here = {"term": 0, "tag": ""} if term is None else {"term": term.number, "tag": term.tag}
        return {"after": self.after, "store": self.lineage.store, "durable": self.after} | here

    def ask(self, **fields: Any) -> None:
        """Send the request for what comes next."""
        self.send(**self.position() | fields)

    def pull(self, **fields: Any) -> int:
        """Ask for what comes next, and take it; return the number of commits."""
        self.ask(**fields)
        return self.take(self.receive())

    def take(self, reply: Message) -> int:
        """Check a reply with commits, and keep them; return their number."""
        assert reply["ok"], reply
        commits: list[bytes] = reply["commits"]
        assert zlib.crc32(b"".join(commits)) == reply["crc"]
        numbers = list(range(self.after + 1, self.after + 1 + len(commits)))
        assert [number_in(payload) for payload in commits] == numbers
        assert self.after + len(commits) <= reply["lsn"]
        self._learn(reply)
        self.payloads += commits
        return len(commits)

    def pull_until(self, lsn: int, **fields: Any) -> None:
        """Pull until it has this log number."""
        end = time.monotonic() + LIMIT
        while self.after < lsn:
            self.pull(**{"wait": 1_000} | fields)
            assert time.monotonic() < end, f"at {self.after} instead of {lsn}"

    def load(self, directory: Path, limit: int = 1_000) -> Message:
        """Begin with a snapshot, through a file in a directory; return the last reply."""
        data, number = b"", 0
        while True:
            offset = len(data)
            reply = self.call(snapshot=number, offset=offset, limit=limit)
            assert reply["ok"], reply
            assert (reply["offset"], zlib.crc32(reply["data"])) == (offset, reply["crc"])
            assert len(reply["data"]) == min(limit, reply["size"] - offset)
            data, number = data + reply["data"], reply["snapshot"]
            if len(data) == reply["size"]:
                break
        path = directory / file_name(number)
        path.write_bytes(data)
        self._learn(reply)
        self.start, self.payloads = read(Files(), path), []
        assert self.start.lsn == reply["lsn"]
        return reply

    def store(self) -> Keyspace:
        """Return the store that its snapshot and commits make."""
        keyspace = Keyspace(
            lambda: 0,
            Sessions(),
            History(0, 0),
            self._entries(),
            self.start.rev,
            _LogFrom(self.start.lsn),
            lineage=self.start.lineage,
        )
        with keyspace.lock:
            for session in self.start.sessions:
                keyspace.sessions.restore(session)
            keyspace.apply(self.commits())
        return keyspace

    def _entries(self) -> Table:
        entries = new_table()
        entries.update(self.start.entries.items())
        return entries

    def commits(self) -> list[Commit]:
        """Return the commits."""
        return [commit_in(payload) for payload in self.payloads]

    def _learn(self, reply: Message) -> None:
        lineage = Lineage(reply["store"], tuple(Term(*term) for term in reply["terms"]))
        assert lineage.terms
        assert self.lineage in {Lineage(), lineage}
        self.lineage = lineage


class _LogFrom(MemoryLog):
    """A log that begins after a number."""

    def __init__(self, lsn: int) -> None:
        super().__init__()
        self.last_lsn = lsn


def on_disk(data_dir: Path) -> list[bytes]:
    """Return the payloads of all commits in the log's files, in their order."""
    payloads = []
    for path in sorted((data_dir / "wal").glob("*.wal")):
        scan = SegmentScan(Files(), path)
        payloads += [commit.payload for commit in scan.commits()]
        assert scan.fault is None
    return payloads
