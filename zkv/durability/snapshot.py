"""Snapshot files: the whole store at one revision, in a form that any msgpack library can read.

A file is ``<revision, 20 digits>.snapshot`` and a stream of msgpack arrays, its frames::

    [kind: uint32, crc: uint32, payload: bin32]

    kind 1  header   {"format": "zkv-snapshot", "version": int, "rev": int, "created": int,
                      "logged": bool}
    kind 5  position {"lsn": int, "store"?: str, "terms"?: [[number, first lsn, tag], ...]}
    kind 2  entries  [[key, value, rev, expires?], ...]               any number of these
    kind 4  sessions [[name, used, [[seq, digest, reply, rev], ...]], ...]         likewise
    kind 3  footer   {"rev": int, "entries": int, "frames": int, "crc": int}

A payload is itself packed msgpack. The integers of a frame are packed in the given width, so the
head of a frame always has 16 bytes. ``crc`` is the CRC-32 of kind, payload length (both 4 bytes,
big-endian) and payload. The footer counts the entries and the frames before it, and its ``crc`` is
the CRC-32 of the ``crc`` fields (4 bytes each, big-endian) of all frames before it. ``created``,
``expires`` and ``used`` are Unix times in milliseconds. An entry without ``expires`` does not
expire. Sessions are the remembered replies to exactly-once requests, see `zkv.keyspace.sessions`.
The footer ends the file.

The header is the same in every version, so that each tells a newer file from a damaged one.
``lsn`` is the number of the newest commit that the snapshot covers: it has the entries, and what
sessions remember, of all commits up to that number, and of none after it. ``store`` and ``terms``
are the lineage of the store (`zkv.keyspace.lineage`), if it has one. A file of version 1 has
no frame of kind 5: the snapshot's log number is its revision.

``logged`` says if the log was on disk up to the snapshot's revision when the snapshot was written.
Normally it was, and so the snapshot proves that any part of the log that is missing now was lost
later. It was not if the log had failed before.

A reader accepts a file only if every count and checksum matches, if header, footer and name have
the same revision, and if the file ends with the footer. So it notices a flipped bit, a missing byte
or a misplaced frame, and never accepts an unfinished file.

A file is written under a temporary name (``.tmp``), synced and renamed; then the directory is
synced. A crash leaves either the complete file or a ``.tmp``, which recovery ignores and the next
start removes.
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from os import SEEK_END
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple, TypeVar

import msgspec
from msgspec import Raw, Struct, field

from zkv import compiled
from zkv.durability import formats
from zkv.durability.files import Files, LargeFile
from zkv.errors import DamageError
from zkv.keyspace.change import Expiry
from zkv.keyspace.entry import StoredEntry
from zkv.keyspace.lineage import NO_LINEAGE, Lineage, Term
from zkv.keyspace.sessions import SessionState
from zkv.keyspace.table import Table, is_compiled, new_table
from zkv.nesting import parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from zkv.keyspace.change import Commit

FORMAT: Final = "zkv-snapshot"
SUFFIX: Final = ".snapshot"
FRAME_BYTES: Final = 4 * 1024 * 1024
"""A frame of entries ends once its values together are larger than this."""
UNFINISHED: Final = ".tmp"
KEPT_SNAPSHOTS: Final = 2
"""The newest snapshot is loaded; the one before it serves to repair a directory if the newest is
damaged."""

_HEAD: Final = struct.Struct(">BBIBIBI")
"""A frame up to its payload: array of 3, uint32 kind, uint32 crc, bin32 length."""
_ARRAY3, _UINT32, _BIN32 = 0x93, 0xCE, 0xC6
_HEADER, _ENTRIES, _FOOTER, _SESSIONS, _POSITION = 1, 2, 3, 4, 5


class Header(Struct, frozen=True, forbid_unknown_fields=True):
    """The file's first value."""

    format: str
    version: int
    rev: int
    created: int
    logged: bool = True


class Position(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The second value of a file, since version 2."""

    lsn: int
    store: str = ""
    terms: tuple[Term, ...] = ()


class Footer(Struct, frozen=True, forbid_unknown_fields=True):
    """The file's last value."""

    rev: int
    entries: int
    frames: int
    crc: int


_T = TypeVar("_T")


class _PackedEntry(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    key: str
    value: Raw
    rev: int
    expires: Expiry | None = None


_encode = msgspec.msgpack.encode
_decode_quickly = msgspec.msgpack.Decoder(list[_PackedEntry]).decode
_decode_entry = msgspec.msgpack.Decoder(_PackedEntry).decode
_decode_sessions = msgspec.msgpack.Decoder(list[SessionState]).decode
_decode_header = msgspec.msgpack.Decoder(Header).decode
_decode_position = msgspec.msgpack.Decoder(Position).decode
_decode_footer = msgspec.msgpack.Decoder(Footer).decode


def _decode_entries(payload: bytes) -> list[_PackedEntry]:
    try:
        return _decode_quickly(payload)
    except RecursionError:  # A nested value that another Python, with another limit, has accepted.
        return list(map(_deep_entry, parts(payload)))


def _deep_entry(packed: bytes) -> _PackedEntry:
    key, value, *others = parts(packed)
    entry = _decode_entry(b"".join([packed[:1], key, b"\xc0", *others]))
    return msgspec.structs.replace(entry, value=Raw(value))


class Loaded(Struct):
    """The contents of a snapshot. The defaults are those of an empty store at revision 0.

    Args:
        rev: the revision of the snapshot.
        entries: by key.
        sessions: the remembered replies to exactly-once requests.
        created: Unix time in ms.
        logged: True if the log was on disk up to ``lsn`` when the snapshot was written.
        lsn: the log number of the snapshot.
        version: the version of the file; 0 = there is none.
        lineage: which store it is, and its terms.
    """

    rev: int = 0
    entries: Table = field(default_factory=new_table)
    sessions: list[SessionState] = field(default_factory=list)
    created: int = 0
    logged: bool = True
    lsn: int = 0
    version: int = 0
    lineage: Lineage = NO_LINEAGE

    @property
    def numbered(self) -> bool:
        """True if the log number says exactly what the snapshot covers."""
        return self.version > formats.FIRST

    def covers(self, commit: Commit) -> bool:
        """True if the snapshot has what a commit did.

        It then has the remembered reply, too, which must not be added again: the session may have
        forgotten it since.
        """
        if self.numbered or commit.changes or commit.rev != self.rev:
            return commit.lsn <= self.lsn
        return commit.time < self.created


def file_name(rev: int) -> str:
    """The name of the snapshot at ``rev``; names sort like revisions."""
    return f"{rev:020d}{SUFFIX}"


def revision_of(name: str) -> int | None:
    """The revision in a snapshot's file name; None for any other name."""
    stem = name.removesuffix(SUFFIX)
    is_one = stem != name and len(stem) == 20 and stem.isascii() and stem.isdigit()
    return int(stem) if is_one else None


class Writer:
    """Writes one snapshot file frame by frame, and gives it its name only when it is complete.

    Use it as a context manager: leaving it without `finish` removes the file. Every method may
    raise OSError.

    Args:
        files: the file operations.
        directory: where snapshots are.
        rev: the revision of the snapshot.
        lsn: its log number.
        created: Unix time in milliseconds.
        logged: True if the log will be on disk up to ``lsn`` before `finish` is called.
        lineage: which store it is, and its terms.
    """

    def __init__(
        self,
        files: Files,
        directory: Path,
        rev: int,
        lsn: int,
        created: int,
        logged: bool = True,
        lineage: Lineage = NO_LINEAGE,
    ) -> None:
        self._files = files
        self._directory = directory
        self._rev = rev
        self._path = directory / file_name(rev)
        self._beside = self._path.with_name(self._path.name + UNFINISHED)
        self._entries = 0
        self._frames = 0
        self._crc = 0
        self.size = 0
        self._file = files.create(self._beside)
        self._content = LargeFile(files, self._file)
        try:
            header = Header(FORMAT, formats.CURRENT, rev, created, logged)
            self._frame(_HEADER, _encode(header))
            self._frame(_POSITION, _encode(Position(lsn, *lineage)))
        except BaseException:
            self._discard()
            raise

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._file.closed:
            self._discard()

    def _discard(self) -> None:
        self._file.close()
        with contextlib.suppress(OSError):
            self._files.remove(self._beside)

    def add(self, chunk: list[tuple[str, StoredEntry]]) -> None:
        """Write some entries, in one frame unless they are larger than `FRAME_BYTES`."""
        packed: list[tuple[object, ...]] = []
        size = 0
        for key, entry in chunk:
            packed.append(_pack_entry(key, entry))
            size += len(entry.value)
            if size > FRAME_BYTES:
                self._add_packed(packed)
                packed, size = [], 0
        self._add_packed(packed)

    def _add_packed(self, packed: list[tuple[object, ...]]) -> None:
        if packed:
            self._frame(_ENTRIES, _encode(packed))
            self._entries += len(packed)

    def add_sessions(self, sessions: list[SessionState]) -> None:
        """Write some sessions as one frame."""
        if sessions:
            self._frame(_SESSIONS, _encode(sessions))

    def finish(self) -> Path:
        """Write the footer, make the file durable and give it its name; returns its path."""
        footer = Footer(self._rev, self._entries, self._frames, self._crc)
        self._frame(_FOOTER, _encode(footer))
        self._files.sync(self._file)
        self._files.rename(self._beside, self._path)
        self._file.close()
        self._files.sync_directory(self._directory)
        return self._path

    def _frame(self, kind: int, payload: bytes) -> None:
        crc = _checksum(kind, payload)
        head = _HEAD.pack(_ARRAY3, _UINT32, kind, _UINT32, crc, _BIN32, len(payload))
        self._content.write(head + payload)
        self._crc = _chain(self._crc, crc)
        self._frames += 1
        self.size += len(head) + len(payload)


def read(
    files: Files, path: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> Loaded:
    """Read a whole snapshot file and check all of it.

    Args:
        files: the file operations.
        path: the file.
        progress: called now and then with the bytes that have been read, and the file's size.

    Raises:
        DamageError: the file is damaged; the message gives file, offset and reason.
        FormatError: a newer zkv has written it.
        OSError: the file cannot be read.
    """
    loaded = Loaded()
    count = 0
    for reader, payload in _entry_frames(files, path, progress, loaded):
        count += reader.load(payload, loaded.entries)
    if len(loaded.entries) != count:
        raise DamageError(f"{path}: damaged: {count - len(loaded.entries)} keys occur twice")
    return loaded


def read_head(files: Files, path: Path) -> Loaded:
    """A snapshot without its contents. Raises DamageError, FormatError, OSError."""
    with files.open_read(path) as file:
        return head_of(file, path)


def head_of(file: BinaryIO, path: Path) -> Loaded:
    """The same of an open file, from its beginning. Raises DamageError, FormatError, OSError."""
    head = Loaded()
    _Reader(file, path).read_head(head)
    return head


class Verified(NamedTuple):
    """A snapshot file that is on disk, and of which every frame was read back."""

    rev: int
    lsn: int
    crc: int
    """The checksum over all frames."""


def verify(files: Files, path: Path) -> Verified:
    """Check all frames of a snapshot file, without keeping what is in them, and sync it.

    Raises DamageError, FormatError, OSError.
    """
    head = Loaded()
    with files.open_read(path) as file:
        files.sync(file)
        reader = _Reader(file, path)
        reader.read_head(head)
        if head.rev != revision_of(path.name):
            raise reader.damage(f"the header has revision {head.rev}, the file name another")
        for _ in reader.frames():
            pass
        return Verified(head.rev, head.lsn, reader.check_frames(head.rev).crc)


def chunks(
    files: Files,
    path: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    beside: Loaded | None = None,
) -> Iterator[list[tuple[str, StoredEntry]]]:
    """Iterate over the entries of a snapshot file by frames, so that it need not fit into memory.

    Each frame is checked before it is yielded, and the file as a whole after the last one: only
    then is it certain that nothing is missing. Arguments and errors are those of `read`; ``beside``
    is filled with everything but the entries.
    """
    for reader, payload in _entry_frames(files, path, progress, beside or Loaded()):
        yield reader.unpack(payload)


def _entry_frames(
    files: Files, path: Path, progress: Callable[[int, int], None], beside: Loaded
) -> Iterator[tuple[_Reader, bytes]]:
    """The payload of each frame of entries, to be passed to the reader; otherwise as `chunks`."""
    with files.open_read(path) as file:
        reader = _Reader(file, path)
        reader.read_head(beside)
        if beside.rev != revision_of(path.name):
            raise reader.damage(f"the header has revision {beside.rev}, the file name another")
        for kind, payload in reader.frames():
            if kind == _SESSIONS:
                beside.sessions += reader.decode(_decode_sessions, payload)
                continue
            yield reader, payload
            progress(reader.offset, reader.size)
        reader.check_end(beside.rev)


def _pack_entry(key: str, entry: StoredEntry) -> tuple[object, ...]:
    value = Raw(entry.value)
    if entry.expires is None:
        return (key, value, entry.rev)
    return (key, value, entry.rev, entry.expires)


def size_of_entry(key: str, entry: StoredEntry) -> int:
    """The bytes that an entry takes in a snapshot."""
    return len(_encode(_pack_entry(key, entry)))


def size_of_session(session: SessionState) -> int:
    """The bytes that a session takes in a snapshot."""
    return len(_encode(session))


class _Reader:
    """Reads and checks the frames of a snapshot file."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self.size = file.seek(0, SEEK_END)
        file.seek(0)
        self.offset = 0  # The beginning of the newest frame read.
        self.entries = 0
        """The number of entries in the frames so far."""
        self._next = 0
        self._frames = 0
        self._crc = 0
        self._footer = b""

    def damage(self, reason: str) -> DamageError:
        return DamageError(f"{self._path}: damaged at offset {self.offset}: {reason}")

    def read_head(self, to: Loaded) -> None:
        """Read what comes before the entries. Raises DamageError, FormatError."""
        kind, payload = self._frame()
        if kind != _HEADER:
            raise self.damage("this is not a zkv snapshot")
        header = self.decode(_decode_header, payload)
        if header.format != FORMAT or header.version < formats.FIRST:
            raise self.damage(f"format {header.format!r} version {header.version}")
        formats.require_known(self._path, header.version)
        to.version, to.rev, to.lsn = header.version, header.rev, header.rev
        to.created, to.logged = header.created, header.logged
        if to.numbered:
            kind, payload = self._frame()
            if kind != _POSITION:
                raise self.damage("the log number is missing")
            position = self.decode(_decode_position, payload)
            to.lsn, to.lineage = position.lsn, Lineage(position.store, position.terms)

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Kind and payload of every frame before the footer, which `check_end` checks."""
        while True:
            crc, frames = self._crc, self._frames
            kind, payload = self._frame()
            if kind == _FOOTER:
                self._crc, self._frames, self._footer = crc, frames, payload
                return
            if kind not in {_ENTRIES, _SESSIONS}:
                raise self.damage(f"unknown frame kind {kind}")
            yield kind, payload

    def unpack(self, payload: bytes) -> list[tuple[str, StoredEntry]]:
        """The entries in a frame."""
        packed = self.decode(_decode_entries, payload)
        self.entries += len(packed)
        return [
            (each.key, StoredEntry(bytes(each.value), each.rev, each.expires)) for each in packed
        ]

    def load(self, payload: bytes, table: Table) -> int:
        """Put the entries in a frame into a table, and return their number."""
        if is_compiled(table):
            count = compiled.store.load_entries(table, payload)  # type: ignore[arg-type]
            if count is not None:  # None: not packed as usual.
                self.entries += count
                return count
        entries = self.unpack(payload)
        table.update(entries)
        return len(entries)

    def check_end(self, rev: int) -> None:
        """Check the end of a file of which all frames were read. Raises DamageError."""
        if self.check_frames(rev).entries != self.entries:
            raise self.damage("the footer does not match the frames before it")

    def check_frames(self, rev: int) -> Footer:
        """Return the footer, which is right but for the number of entries. Raises DamageError."""
        footer = self.decode(_decode_footer, self._footer)
        if footer != Footer(rev, footer.entries, self._frames, self._crc):
            raise self.damage("the footer does not match the frames before it")
        if self._file.read(1):
            raise self.damage("there is more data after the footer")
        return footer

    def decode(self, decoder: Callable[[bytes], _T], payload: bytes) -> _T:
        try:
            return decoder(payload)
        except ValueError as error:
            raise self.damage(f"invalid contents: {error}") from None

    def _frame(self) -> tuple[int, bytes]:
        self.offset = self._next
        head = self._file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            raise self.damage("the file ends too early")
        array3, mark1, kind, mark2, crc, mark3, length = _HEAD.unpack(head)
        if (array3, mark1, mark2, mark3) != (_ARRAY3, _UINT32, _UINT32, _BIN32):
            raise self.damage("no frame begins here")
        if length > self.size - self.offset - _HEAD.size:
            raise self.damage("the file ends too early")
        payload = self._file.read(length)
        if _checksum(kind, payload) != crc:
            raise self.damage("the checksum does not match")
        self._next += len(head) + length
        self._crc = _chain(self._crc, crc)
        self._frames += 1
        return kind, payload


def _checksum(kind: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(struct.pack(">II", kind, len(payload))))


def _chain(crc: int, frame_crc: int) -> int:
    return zlib.crc32(struct.pack(">I", frame_crc), crc)
