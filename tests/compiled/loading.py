"""Data directories in memory, good ones and odd ones, and what a start makes of them."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, BinaryIO, Final
from unittest import mock

from msgspec import Raw
from msgspec.msgpack import Ext, encode

from zkv.bounds import Range
from zkv.durability import formats, recovery, segment, snapshot
from zkv.durability.files import Files
from zkv.errors import DamageError
from zkv.keyspace import History, Keyspace, Sessions
from zkv.keyspace.change import DELETE, EXPIRE, PUT, TOUCH, Commit, KeyChange, Once

WAL: Final = Path("wal")
SNAPSHOTS: Final = Path("snapshot")
WINDOW: Final = 3
KEPT_CHANGES: Final = 20
KEPT_BYTES: Final = 3_000
DEEP: Final = 1_200
"""Levels of an array that msgspec does not decode in every Python."""

Tree = dict[Path, bytes]


class MemoryFiles(Files):
    """Reads files that are only in memory."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self.opened: list[Path] = []

    def names(self, directory: Path) -> list[str]:
        return sorted(path.name for path in self._tree if path.parent == directory)

    def open_read(self, path: Path) -> BinaryIO:
        self.opened.append(path)
        return io.BytesIO(self._tree[path])


# --- What a start makes of them -----------------------------------------------------------------


class _Said(logging.Handler):
    """Keeps the lines of the log."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def loaded(tree: Tree, in_c: bool) -> list[Any]:
    """Everything that a start finds in a directory, or its refusal, and what it has logged."""
    said = _Said()
    log = logging.getLogger("zkv.durability")
    log.addHandler(said)
    try:
        with mock.patch("zkv.compiled.COMPILED", in_c):
            return [*_state(tree), said.lines]
    except DamageError as error:
        return [str(error), said.lines]
    finally:
        log.removeHandler(said)


def _state(tree: Tree) -> list[Any]:
    sessions, history = Sessions(WINDOW), History(KEPT_CHANGES, KEPT_BYTES)
    found = recovery.recover(MemoryFiles(tree), SNAPSHOTS, WAL, sessions, history)
    keyspace = Keyspace(lambda: 0, sessions, history, found.entries, found.rev)
    entries = [
        (key, entry.value, entry.rev, entry.expires or None)
        for key, entry in sorted(found.entries.items())
    ]
    commits = history.since(history.oldest - 1, KEPT_CHANGES)
    states = [sessions.state(name, 2**62) for name in sessions.names()]
    numbers = (found.rev, found.lsn, found.snapshot_rev, found.replayed, found.time)
    index = keyspace.scan(Range("", None), 2**62, reverse=True).items
    statistics = keyspace.statistics()
    return [entries, numbers, found.torn, found.end, states, commits, index, statistics]


# --- Files --------------------------------------------------------------------------------------


def segment_file(
    first_rev: int,
    payloads: Sequence[tuple[bytes, int]],
    first_lsn: int | None = None,
    version: int = formats.CURRENT,
) -> tuple[Path, bytes]:
    """A segment of these commits, each with the number of those before it known to be on disk.

    Without another one, the first log number is the first revision.
    """
    salt = 0x5A17
    data = segment.SegmentHeader(version, first_rev, first_lsn or first_rev, salt).pack()
    ends = [len(data)]
    for payload, synced in payloads:
        data += segment.pack_frames([payload], ends[synced], salt)
        ends.append(len(data))
    return WAL / segment.file_name(first_rev), data


def snapshot_file(
    rev: int,
    created: int,
    frames: list[tuple[int, bytes]],
    entries: int,
    logged: bool = True,
    lsn: int | None = None,
    version: int = formats.CURRENT,
) -> tuple[Path, bytes]:
    """A snapshot of these frames, each of a kind and a payload, that has so many entries.

    Without another one, its log number is its revision.
    """
    header = {"format": "zkv-snapshot", "version": version, "rev": rev, "created": created}
    position = [] if version == formats.FIRST else [(5, encode({"lsn": lsn or rev}))]
    all_frames = [(1, encode(header | {"logged": logged})), *position, *frames]
    data, chain = b"", 0
    for kind, payload in all_frames:
        frame, crc = _frame(kind, payload)
        data += frame
        chain = zlib.crc32(struct.pack(">I", crc), chain)
    footer = {"rev": rev, "entries": entries, "frames": len(all_frames), "crc": chain}
    return SNAPSHOTS / snapshot.file_name(rev), data + _frame(3, encode(footer))[0]


def _frame(kind: int, payload: bytes) -> tuple[bytes, int]:
    crc = zlib.crc32(payload, zlib.crc32(struct.pack(">II", kind, len(payload))))
    return struct.pack(">BBIBIBI", 0x93, 0xCE, kind, 0xCE, crc, 0xC6, len(payload)) + payload, crc


# --- Commits ------------------------------------------------------------------------------------


def random_value(chance: Random) -> bytes:
    """A packed value."""
    values: list[Any] = [
        None, True, 7, -3, 2**40, 1.5, "text", "ü" * 40, b"bytes", b"x" * 300, [], [1, [2]], {},
        {"a": {"b": 1}}, Ext(5, b"1234"), ["x" * chance.randrange(70)] * 20,
    ]  # fmt: skip
    return encode(chance.choice(values))


def random_key(chance: Random) -> str:
    """One of a few keys; some need longer heads, or several bytes for a character."""
    number = chance.randrange(12)
    return f"key {number}" + ("", "", "é😀" * 5, "x" * 260)[number % 4]


def random_change(chance: Random, now: int) -> KeyChange:
    """A change as the server makes it."""
    op = chance.choice([PUT, PUT, PUT, TOUCH, DELETE, EXPIRE])
    if op in {DELETE, EXPIRE}:
        return KeyChange(op, random_key(chance))
    expires = chance.choice([None, None, now + chance.randrange(1, 2**40)])
    return KeyChange(op, random_key(chance), Raw(random_value(chance)), expires)


def random_once(chance: Random, seqs: dict[str, int]) -> Once:
    """The next request of a session."""
    name = chance.choice(["s", "another session", "é" * 20])
    seqs[name] = seqs.get(name, 0) + 1
    reply = encode({"ok": True, "more": "x" * chance.choice([1, 300])})
    return Once(name, seqs[name], chance.randbytes(8), reply)


def random_commit(
    chance: Random, rev: int, lsn: int, now: int, seqs: dict[str, int]
) -> tuple[bytes, int]:
    """A packed commit after ``rev`` and ``lsn``, and its revision.

    Some are packed as zkv never does.
    """
    if chance.random() < 0.1:
        refused = Commit(rev, now, lsn + 1, (), random_once(chance, seqs))
        return refused.pack(), rev
    many = 1 if chance.random() < 0.6 else chance.randrange(1, 30)
    changes = tuple(random_change(chance, now) for _ in range(many))
    once = random_once(chance, seqs) if chance.random() < 0.3 else None
    payload = Commit(rev + 1, now, lsn + 1, changes, once).pack()
    if chance.random() < 0.15:
        payload = odd_commit(chance, rev + 1, lsn + 1, now)
    return payload, rev + 1


def old(payload: bytes) -> bytes:
    """A payload as format 1 has it, without its log number."""
    return bytes([payload[0] - 1]) + payload[1:19] + payload[28:]


def commits(chance: Random, count: int) -> list[bytes]:
    """So many packed commits, from revision 1 on."""
    found: list[bytes] = []
    rev, seqs = 0, dict[str, int]()
    for now in range(count):
        payload, rev = random_commit(chance, rev, now, now, seqs)
        found.append(payload)
    return found


def odd_commit(chance: Random, rev: int, lsn: int, now: int) -> bytes:
    """A commit that is packed in another way than zkv packs it, and means something."""
    wide = [b"\xcf" + number.to_bytes(8) for number in (rev, now, lsn)]
    head = b"\x94" + b"".join(wide)
    put, key = encode(PUT), encode(random_key(chance))
    deep = b"\x91" * DEEP + b"\xc0"
    return chance.choice([
        head + b"\xdd\0\0\0\1" + b"\x94" + put + key + b"\1\xc0",
        head + b"\x91" + b"\x94" + put + b"\xda\0\1k" + b"\1\xc0",
        head + b"\x91" + b"\x94\xd9\3PUT" + key + b"\1\xc0",
        head + b"\x91" + b"\x92" + encode(DELETE) + key,
        head + b"\x91" + b"\x93" + put + key + b"\1",
        head + b"\x91" + b"\x94" + put + key + b"\1\xd3" + (now + 9).to_bytes(8),
        head + b"\x91" + b"\x94" + put + key + deep + b"\xc0",
        head + b"\x91" + b"\x94" + encode(DELETE) + key + b"\1" + encode(now),
        head[:10] + b"\xd3" + head[11:] + b"\x91\x94" + put + key + b"\1\xc0",
        head[:19] + b"\xd3" + head[20:] + b"\x91\x94" + put + key + b"\1\xc0",
        b"\x98" + head[1:] + b"\x91\x94" + put + key + b"\1\xc0" + b"\xc0\0\xc4\0\xc4\0",
    ])  # fmt: skip


def bad_commits(rev: int, lsn: int, now: int) -> list[bytes]:
    """Payloads that are no commit, or not the next one, in a frame that is good."""
    good = Commit(rev, now, lsn, (KeyChange(PUT, "key"), KeyChange(PUT, "k"))).pack()
    one = (KeyChange(PUT, "key"),)
    return [
        good + b"\0", good[:-1], b"\x95" + good[1:], b"\x93" + good[1:], b"\x97" + good[1:],
        b"\x98" + good[1:], b"\x92" + good[1:], good[:3], good[:12], good[:20],
        good.replace(b"\xa3PUT\xa3", b"\xa3PUB\xa3"), good.replace(b"\xa3key", b"\xa3k\xff\xfe"),
        good.replace(b"\xa3key\xc0", b"\xa3key\xc1"), good.replace(b"\xa1k", b"\xc4\1k"),
        Commit(rev + 1, now, lsn, one).pack(), Commit(rev - 1, now, lsn, one).pack(),
        Commit(rev, now, lsn + 1, one).pack(), Commit(rev, now, lsn - 1, one).pack(),
        Commit(rev + 5, now, lsn, ()).pack(), Commit(rev - 1, now, lsn + 1, ()).pack(),
        Commit(rev, now, lsn, (KeyChange(PUT, "key", expires=0),)).pack(),
    ]  # fmt: skip


# --- Directories --------------------------------------------------------------------------------


class Writing:
    """Writes a directory as a server does, in short steps.

    Args:
        chance: decides what happens.
        version: of the format at first; a later version may go on.
    """

    def __init__(self, chance: Random, version: int = formats.CURRENT) -> None:
        self._chance = chance
        self._version = version
        self._seqs: dict[str, int] = {}
        self._now = 1_000_000
        self._payloads: list[tuple[bytes, int]] = []
        self._first = 1
        self._first_lsn = 1
        self._synced = 0
        self._lsn = 0
        self.rev = 0
        self.tree: Tree = {}

    def run(self, steps: int) -> Tree:
        """The directory after so many steps."""
        chance = self._chance
        for _ in range(steps):
            self._now += chance.randrange(3)
            kind = chance.random()
            if kind < 0.04:
                self._rotate()
            elif kind < 0.06:
                self._save(self._version)
            elif kind < 0.08 and self._version != formats.CURRENT:
                self._upgrade()
            else:
                self._commit()
        if chance.random() < 0.15:
            self._append(chance.choice(bad_commits(self.rev + 1, self._lsn + 1, self._now)))
            for _ in range(chance.randrange(3)):
                self._commit()
        self._write()
        return self.tree

    def _commit(self) -> None:
        payload, self.rev = random_commit(self._chance, self.rev, self._lsn, self._now, self._seqs)
        self._lsn += 1
        self._append(payload)

    def _append(self, payload: bytes) -> None:
        if self._chance.random() < 0.5:
            self._synced = len(self._payloads)
        if self._version == formats.FIRST:
            self._lsn = self.rev
            payload = old(payload) if payload[:1] in {b"\x94", b"\x98"} else payload
        self._payloads.append((payload, self._synced))

    def _write(self) -> None:
        path, data = segment_file(self._first, self._payloads, self._first_lsn, self._version)
        self.tree[path] = data

    def _upgrade(self) -> None:
        """Go on in the current format, after a snapshot."""
        self._save(formats.CURRENT)
        self._version = formats.CURRENT
        self._begin()

    def _begin(self) -> None:
        self._first, self._first_lsn = self.rev + 1, self._lsn + 1
        self._payloads, self._synced = [], 0
        self._write()

    def _rotate(self) -> None:
        """Begin a segment. The one before may go on with commits that were rolled back."""
        if self.rev >= self._first:
            rev, lsn, seqs = self.rev, self._lsn, dict[str, int]()
            for _ in range(self._chance.choice([0, 0, 3])):
                payload, rev = random_commit(self._chance, rev, lsn, self._now, seqs)
                lsn = rev if self._version == formats.FIRST else lsn + 1
                self._append(payload)
            self._write()
            self._begin()

    def _save(self, version: int) -> None:
        """Write a snapshot, in frames of a few entries."""
        if self.rev == 0:
            return
        self._write()
        chance = self._chance
        found = loaded(self.tree, in_c=False)
        assert len(found) > 2, found
        entries, _, _, _, states, *_ = found
        frames = []
        while entries:
            some, entries = entries[:5], entries[5:]
            frames.append((2, _entries(chance, some)))
        count = sum(payload[0] - 0x90 for _, payload in frames)
        if states:
            frames.append((4, encode(states)))
        logged = chance.random() < 0.8
        path, data = snapshot_file(self.rev, self._now, frames, count, logged, self._lsn, version)
        self.tree[path] = data
        if not logged:  # The log has failed. It goes on in a new segment, unless the server ends.
            self._rotate()


def _entries(chance: Random, entries: list[tuple[str, bytes, int, int | None]]) -> bytes:
    """A frame of entries. Some are packed as zkv never does."""
    packed = bytes([0x90 + len(entries)])
    for key, value, rev, expires in entries:
        whole = expires is not None or chance.random() < 0.1
        revision = encode(rev) if chance.random() < 0.9 else b"\xd3" + rev.to_bytes(8)
        packed += (b"\x94" if whole else b"\x93") + encode(key) + value + revision
        packed += encode(expires) if whole else b""
    return packed


def damaged(chance: Random, tree: Tree) -> Tree:
    """The directory with one file damaged: a byte changed, cut off, cut out, or added."""
    path = chance.choice(sorted(tree))
    data = tree[path]
    at = chance.randrange(len(data))
    kind = chance.randrange(5)
    if kind < 2:
        data = data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
    elif kind == 2:
        data = data[:at]
    elif kind == 3:
        data = data[:at] + data[at + chance.randrange(1, 40) :]
    else:
        data += chance.randbytes(chance.randrange(1, 40))
    return tree | {path: data}
