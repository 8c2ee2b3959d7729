"""Snapshot files: what is written is read, what is damaged is refused, and disks that fail."""

from __future__ import annotations

import errno
import os
import re
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.forking import run_zkv
from tests.support import FREE_PORT, Raw, ServerInProcess, ServerProcess, eventually, pack
from zkv.config import DurabilitySettings, LimitSettings
from zkv.durability.files import Files
from zkv.durability.snapshot import Loaded, Writer, file_name, read, revision_of
from zkv.engine import Engine
from zkv.errors import DamageError, FormatError, ReadOnly
from zkv.keyspace import StoredEntry
from zkv.keyspace.table import PythonTable

REV = 42
LSN = 49
CREATED = 1
ENTRIES = {
    "a": StoredEntry(b"\xc0", 1),
    "é": StoredEntry(b"\xca\x3f\x80\x00\x00", 41),
    "k\n": StoredEntry(b"\xa3a\xffb", 42),
    "\U00010000": StoredEntry(b"\x81\x91\x01\xd4\x05x", 7),
}


def write(directory: Path, chunks: list[dict[str, StoredEntry]], rev: int = REV) -> Path:
    """A snapshot file with a frame of entries for each chunk."""
    with Writer(Files(), directory, rev, LSN, created=CREATED) as writer:
        for chunk in chunks:
            writer.add(list(chunk.items()))
        path = writer.finish()
    assert path.stat().st_size == writer.size
    return path


def write_usual(directory: Path) -> Path:
    first = dict(list(ENTRIES.items())[:3])
    return write(directory, [first, {"\U00010000": ENTRIES["\U00010000"]}])


# --- The documented format, written a second time ---------------------------------------------

HEADER, ENTRY_FRAME, FOOTER, POSITION = 1, 2, 3, 5


class Frame(NamedTuple):
    kind: int
    payload: bytes

    @property
    def crc(self) -> int:
        return zlib.crc32(struct.pack(">II", self.kind, len(self.payload)) + self.payload)

    def packed(self) -> bytes:
        head = struct.pack(
            ">BBIBIBI", 0x93, 0xCE, self.kind, 0xCE, self.crc, 0xC6, len(self.payload)
        )
        return head + self.payload


def header(rev: int = REV, **other: Any) -> Frame:
    fields = {"format": "zkv-snapshot", "version": 2, "rev": rev, "created": 1, "logged": True}
    return Frame(HEADER, pack(fields | other))


def position(lsn: int = LSN) -> Frame:
    return Frame(POSITION, pack({"lsn": lsn}))


def entries(*triples: Any) -> Frame:
    return Frame(ENTRY_FRAME, pack(list(triples)))


def footer(before: list[Frame], rev: int = REV, **other: Any) -> Frame:
    packed = [frame.payload for frame in before if frame.kind == ENTRY_FRAME]
    count = sum(len(msgspec.msgpack.decode(each, type=list[msgspec.Raw])) for each in packed)
    fields = {"rev": rev, "entries": count, "frames": len(before), "crc": chained(before)}
    return Frame(FOOTER, pack(fields | other))


def chained(frames: list[Frame]) -> int:
    return zlib.crc32(b"".join(struct.pack(">I", frame.crc) for frame in frames))


def handmade(directory: Path, frames: list[Frame], rev: int = REV) -> Path:
    path = directory / file_name(rev)
    path.write_bytes(b"".join(frame.packed() for frame in frames))
    return path


def whole(*frames: Frame, rev: int = REV) -> list[Frame]:
    before = [header(rev), position(), *frames]
    return [*before, footer(before, rev)]


def frames_of(path: Path) -> list[Frame]:
    """A file's frames, read as any msgpack library reads them."""
    found = []
    reader = msgpack.Unpacker()
    reader.feed(path.read_bytes())
    for kind, crc, payload in reader:
        found.append(Frame(kind, payload))
        assert found[-1].crc == crc
    return found


# --- Round trips -----------------------------------------------------------------------------


def test_round_trip(tmp_path: Path) -> None:
    path = write_usual(tmp_path)
    assert read(Files(), path) == Loaded(REV, PythonTable(ENTRIES), [], CREATED, lsn=LSN, version=2)
    assert os.listdir(tmp_path) == [file_name(REV)], "nothing is left beside it"


def test_empty_store(tmp_path: Path) -> None:
    assert read(Files(), write(tmp_path, [])) == Loaded(
        REV, PythonTable(), [], CREATED, lsn=LSN, version=2
    )
    assert read(Files(), write(tmp_path, [{}, {}], rev=0)) == Loaded(
        0, PythonTable(), [], CREATED, lsn=LSN, version=2
    )


@given(
    entries_=st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1),
        st.builds(StoredEntry, st.binary().map(pack), st.integers(0, 2**63 - 1)),
    ),
    size=st.integers(1, 5),
    rev=st.integers(0, 2**63 - 1),
)
def test_any_entries(
    tmp_path_factory: pytest.TempPathFactory, entries_: dict[str, StoredEntry], size: int, rev: int
) -> None:
    directory = tmp_path_factory.mktemp("any")
    pairs = list(entries_.items())
    chunks = [dict(pairs[first : first + size]) for first in range(0, len(pairs), size)]
    assert read(Files(), write(directory, chunks, rev)) == Loaded(
        rev, PythonTable(entries_), [], CREATED, lsn=LSN, version=2
    )


def test_the_format_is_as_documented(tmp_path: Path) -> None:
    """Readable without zkv, and what is written without zkv is read."""
    frames = frames_of(write_usual(tmp_path))
    assert [frame.kind for frame in frames] == [HEADER, POSITION, ENTRY_FRAME, ENTRY_FRAME, FOOTER]
    assert frames[:2] == [header(), position()]
    assert frames[-1] == footer(frames[:-1])
    raw = msgspec.msgpack.Decoder(list[tuple[str, msgspec.Raw, int]])
    found = {
        key: StoredEntry(bytes(value), rev)
        for frame in frames[2:-1]
        for key, value, rev in raw.decode(frame.payload)
    }
    assert found == ENTRIES
    path = handmade(tmp_path, whole(entries(["a", 1, 2], ["b", None, 3]), entries(["c", "x", 4])))
    expected = {
        "a": StoredEntry(b"\x01", 2),
        "b": StoredEntry(b"\xc0", 3),
        "c": StoredEntry(b"\xa1x", 4),
    }
    assert read(Files(), path) == Loaded(
        REV, PythonTable(expected), [], CREATED, lsn=LSN, version=2
    )


@pytest.mark.parametrize(
    ("name", "rev"),
    [
        (file_name(0), 0),
        (file_name(7), 7),
        (file_name(2**63), 2**63),
        (file_name(7) + ".tmp", None),
        ("7.snapshot", None),
        ("\N{ARABIC-INDIC DIGIT ZERO}" * 20 + ".snapshot", None),
        ("-0000000000000000007.snapshot", None),
        ("LOCK", None),
        (".snapshot", None),
        ("", None),
    ],
)
def test_names(name: str, rev: int | None) -> None:
    assert revision_of(name) == rev


def test_names_sort_as_revisions_do() -> None:
    revisions = [0, 9, 10, 99, 100, 2**31, 2**63]
    assert sorted(map(file_name, reversed(revisions))) == [file_name(rev) for rev in revisions]


# --- Damage ----------------------------------------------------------------------------------


def damaged(path: Path, data: bytes | None = None) -> str:
    """Reading must end in a DamageError that names the file; the message."""
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DamageError) as caught:
        read(Files(), path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = write_usual(tmp_path)
    good = path.read_bytes()
    for place in range(len(good)):
        for bit in range(8):
            flipped = bytearray(good)
            flipped[place] ^= 1 << bit
            damaged(path, bytes(flipped))
    path.write_bytes(good)
    assert read(Files(), path) == Loaded(REV, PythonTable(ENTRIES), [], CREATED, lsn=LSN, version=2)


def test_every_byte_overwritten_is_noticed(tmp_path: Path) -> None:
    path = write_usual(tmp_path)
    good = path.read_bytes()
    for place, byte in enumerate(good):
        for other in {0x00, 0xFF, 0xC1, byte ^ 0x55} - {byte}:
            damaged(path, good[:place] + bytes([other]) + good[place + 1 :])


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = write_usual(tmp_path)
    good = path.read_bytes()
    for length in range(len(good)):
        damaged(path, good[:length])
        damaged(path, good[:length].ljust(len(good), b"\0"))


@pytest.mark.parametrize("garbage", [b"\0", b"\xc0", b"x" * 1_000, b"\x93\xce", None])
def test_trailing_garbage_is_noticed(tmp_path: Path, garbage: bytes | None) -> None:
    path = write_usual(tmp_path)
    good = path.read_bytes()
    damaged(path, good + (good if garbage is None else garbage))


def test_every_missing_and_doubled_byte_is_noticed(tmp_path: Path) -> None:
    path = write_usual(tmp_path)
    good = path.read_bytes()
    for place in range(len(good)):
        damaged(path, good[:place] + good[place + 1 :])
        damaged(path, good[: place + 1] + good[place:])


def test_frames_out_of_place_are_noticed(tmp_path: Path) -> None:
    """Each frame is a good one by itself; together they are not what was written."""
    first, second = entries(["a", 1, 1]), entries(["b", 2, 2])
    good = whole(first, second)
    start, end = good[0], good[-1]
    for frames in (
        [start, second, first, end],
        [start, first, end],
        [start, first, first, second, end],
        [start, first, first, end],
        [start, end],
        [start, start, first, second, end],
        [first, second, end],
        [start, first, second],
        [start],
        [end],
        [end, start, first, second],
        [start, first, second, end, end],
        [start, first, second, end, first],
        [start, first, end, second],
        [start, first, Frame(4, b"\xc0"), second, end],
        [start, Frame(0, first.payload), second, end],
        [start, entries(["a", 1, 3]), second, end],
        whole(first, second, rev=REV + 1),
        [header(REV + 1), first, second, end],
        [start, first, second, footer(good[:-1], rev=REV + 1)],
        [start, first, second, footer(good[:-1], entries=3)],
        [start, first, second, footer(good[:-1], frames=2)],
        [start, first, second, footer(good[:-1], crc=0)],
        [start, first, second, footer(good[:-1], more=1)],
        whole(first, first),
        [],
    ):
        damaged(handmade(tmp_path, frames))
    assert set(read(Files(), handmade(tmp_path, good)).entries) == {"a", "b"}


@pytest.mark.parametrize(
    "frame",
    [
        entries(["a", 1]),
        entries(["a", 1, 2, 3, 4]),
        entries([1, 1, 1]),
        entries(["a", 1, "1"]),
        entries(["a", 1, None]),
        entries({"a": 1}),
        entries(1),
        Frame(ENTRY_FRAME, b""),
        Frame(ENTRY_FRAME, b"\xc1"),
        Frame(ENTRY_FRAME, b"\x90\x00"),
        Frame(ENTRY_FRAME, b"\x91\x93\xa1\xff\x01\x01"),
        Frame(ENTRY_FRAME, b"\xdd\xff\xff\xff\xff"),
        Frame(ENTRY_FRAME, b"\x91" * 100_000 + b"\xc0"),
    ],
)
def test_good_checksums_around_nonsense(tmp_path: Path, frame: Frame) -> None:
    chain = [header(), frame]
    for count in (0, 1):
        fields = {"rev": REV, "entries": count, "frames": 2, "crc": chained(chain)}
        damaged(handmade(tmp_path, [*chain, Frame(FOOTER, pack(fields))]))


@pytest.mark.parametrize(
    "other",
    [
        {"version": 0},
        {"version": "1"},
        {"format": "zkv-log"},
        {"format": None},
        {"rev": -1},
        {"rev": "42"},
        {"more": 1},
    ],
)
def test_header_of_something_else(tmp_path: Path, other: dict[str, Any]) -> None:
    before = [header(**other), position(), entries(["a", 1, 1])]
    damaged(handmade(tmp_path, [*before, footer(before)]))


def test_newer_version_is_refused_by_its_name(tmp_path: Path) -> None:
    path = handmade(tmp_path, [header(version=3), Frame(9, b"whatever a later version writes")])
    with pytest.raises(FormatError, match=r"its format is version 3, .* reads versions up to 2"):
        read(Files(), path)


def test_first_version_has_no_log_number(tmp_path: Path) -> None:
    before = [header(version=1), entries(["a", 1, 1])]
    loaded = read(Files(), handmade(tmp_path, [*before, footer(before)]))
    assert (loaded.version, loaded.lsn, list(loaded.entries)) == (1, REV, ["a"])
    before = [header(), entries(["a", 1, 1])]
    assert "the log number is missing" in damaged(handmade(tmp_path, [*before, footer(before)]))


@pytest.mark.parametrize(
    "name", [file_name(REV - 1), file_name(REV + 1), "copy.snapshot", file_name(REV) + ".old"]
)
def test_file_under_a_wrong_name(tmp_path: Path, name: str) -> None:
    path = write_usual(tmp_path).rename(tmp_path / name)
    damaged(path)


@pytest.mark.parametrize("data", [b"", b"\0" * 5_000, b"\xff" * 5_000, b"x", b"\x93\xce" * 100])
def test_what_is_no_snapshot_at_all(tmp_path: Path, data: bytes) -> None:
    damaged(tmp_path / file_name(REV), data)


@given(data=st.binary(max_size=300))
def test_arbitrary_files(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    damaged(tmp_path_factory.mktemp("arbitrary") / file_name(REV), data)


# --- In a data directory ---------------------------------------------------------------------


def snapshot_names(data_dir: Path) -> list[str]:
    return sorted(os.listdir(data_dir / "snapshot"))


def put_and_snapshot(client: Raw, key: str) -> int:
    """The revision of a snapshot that holds ``key``."""
    client.ok(op="PUT", key=key, value=key)
    rev: int = client.ok(op="SNAPSHOT")["rev"]
    return rev


def test_newest_two_are_kept(server: ServerProcess, client: Raw) -> None:
    revisions = [put_and_snapshot(client, f"k{number}") for number in range(5)]
    assert revisions == [1, 2, 3, 4, 5]
    assert snapshot_names(server.data_dir) == [file_name(4), file_name(5)]
    newest = server.data_dir / "snapshot" / file_name(5)
    before = newest.stat()
    assert client.ok(op="SNAPSHOT")["rev"] == 5
    assert newest.stat() == before, "nothing changed, so nothing is written"
    assert snapshot_names(server.data_dir) == [file_name(4), file_name(5)]
    assert set(read(Files(), server.data_dir / "snapshot" / file_name(4)).entries) == {
        "k0", "k1", "k2", "k3",
    }  # fmt: skip


def test_leftovers_of_a_crash_are_removed(server: ServerProcess, client: Raw) -> None:
    put_and_snapshot(client, "k")
    server.kill()
    directory = server.data_dir / "snapshot"
    (directory / (file_name(2) + ".tmp")).write_bytes(b"half a snapshot")
    (directory / (file_name(1) + ".tmp")).write_bytes(b"")
    (directory / "README").write_text("an administrator's")
    server.start()
    assert snapshot_names(server.data_dir) == [file_name(1), "README"]
    with Raw(server.endpoint) as again:
        assert again.ok(op="GET", key="k")["value"] == "k"
        assert again.ok(op="INFO")["rev"] == 1


@pytest.fixture
def three_revisions(tmp_path: Path) -> Path:
    """A data directory with snapshots at revisions 2 and 3, of a server that was killed."""
    with ServerProcess(tmp_path / "server") as server:
        with Raw(server.endpoint) as client:
            for number in range(1, 4):
                put_and_snapshot(client, f"k{number}")
        server.kill()
        return server.data_dir


@pytest.mark.parametrize("where", ["first byte", "middle", "last byte", "cut", "empty"])
def test_damaged_newest_is_refused(three_revisions: Path, where: str) -> None:
    data_dir = three_revisions
    newest = data_dir / "snapshot" / file_name(3)
    good = newest.read_bytes()
    bad = bytearray(good)
    match where:
        case "cut":
            del bad[-1:]
        case "empty":
            del bad[:]
        case _:
            bad[{"first byte": 0, "middle": len(bad) // 2, "last byte": -1}[where]] ^= 0x10
    newest.write_bytes(bytes(bad))
    done = run_zkv(
        "serve", "--data-dir", str(data_dir), "--endpoint", FREE_PORT, cwd=data_dir.parent
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert str(newest) in line
    assert re.search("move|repair", line), "it says what to do"
    assert newest.read_bytes() == bytes(bad), "nothing is touched"
    newest.rename(data_dir.parent / "moved-away")
    with ServerProcess(data_dir.parent) as server:
        assert server.data_dir == data_dir
        with Raw(server.endpoint) as client:
            assert client.ok(op="INFO")["rev"] >= 2
            assert client.ok(op="MGET", keys=["k1", "k2"])["values"] == ["k1", "k2"]
            rev = put_and_snapshot(client, "k4")
        assert server.stop() == 0
        server.start()
        with Raw(server.endpoint) as client:
            assert client.ok(op="INFO")["rev"] == rev
            assert client.ok(op="GET", key="k4")["value"] == "k4"


def test_damaged_older_one_does_not_matter(three_revisions: Path) -> None:
    (three_revisions / "snapshot" / file_name(2)).write_bytes(b"bad")
    with ServerProcess(three_revisions.parent) as server, Raw(server.endpoint) as client:
        assert client.ok(op="MGET", keys=["k1", "k2", "k3"])["values"] == ["k1", "k2", "k3"]


def test_data_directory_may_be_copied(three_revisions: Path, tmp_path: Path) -> None:
    shutil.copytree(three_revisions, tmp_path / "copy" / "data")
    with ServerProcess(tmp_path / "copy") as server, Raw(server.endpoint) as client:
        assert client.ok(op="MGET", keys=["k1", "k2", "k3"])["values"] == ["k1", "k2", "k3"]


# --- Disks that fail --------------------------------------------------------------------------


class FailingFiles(Files):
    """Fails when told to, below ``snapshot/`` only; counts the calls there that change something.

    Args:
        at: the number of the first call that fails, from 1; 0 = none.
        for_ever: whether all calls behind it fail, too.
        code: the error.
    """

    def __init__(self, at: int = 0, for_ever: bool = False, code: int = errno.EIO) -> None:
        self.at = at
        self.for_ever = for_ever
        self.code = code
        self.only = ""
        self.calls: list[str] = []

    def _step(self, call: str, path: Path) -> None:
        if "snapshot" not in {path.name, path.parent.name}:
            return
        self.calls.append(call)
        due = len(self.calls) == self.at or (self.for_ever and 0 < self.at <= len(self.calls))
        if due or call == self.only:
            raise OSError(self.code, os.strerror(self.code))

    def create(self, path: Path) -> BinaryIO:
        self._step("create", path)
        return super().create(path)

    def write(self, file: BinaryIO, data: bytes) -> None:
        path = Path(file.name)
        try:
            self._step("write", path)
        except OSError:
            super().write(file, data[: len(data) // 2])  # A full disk takes the first half.
            raise
        super().write(file, data)

    def sync(self, file: BinaryIO) -> None:
        self._step("sync", Path(file.name))
        super().sync(file)

    def rename(self, old: Path, new: Path) -> None:
        self._step("rename", new)
        super().rename(old, new)

    def remove(self, path: Path) -> None:
        self._step("remove", path)
        super().remove(path)

    def sync_directory(self, path: Path) -> None:
        self._step("sync_directory", path)
        super().sync_directory(path)


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[tuple[ServerInProcess, FailingFiles]]:
    files = FailingFiles()
    durability = {"snapshot_interval": 3_600.0}
    with ServerInProcess(tmp_path / "data", files, durability=durability) as server:
        yield server, files


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("create", errno.ENOSPC),
        ("create", errno.EROFS),
        ("write", errno.ENOSPC),
        ("write", errno.EIO),
        ("sync", errno.EIO),
        ("rename", errno.EIO),
        ("rename", errno.ENOSPC),
        ("sync_directory", errno.EIO),
    ],
)
def test_snapshot_that_cannot_be_written(
    failing: tuple[ServerInProcess, FailingFiles], tmp_path: Path, call: str, code: int
) -> None:
    server, files = failing
    directory = tmp_path / "data" / "snapshot"
    with Raw(server.endpoint) as client:
        put_and_snapshot(client, "k1")
        before = {path.name: path.read_bytes() for path in directory.iterdir()}
        client.ok(op="PUT", key="k2", value=1)
        files.only, files.code = call, code
        for number in range(3):
            reply = client.call(op="SNAPSHOT", id=number)
            assert (reply["ok"], reply["code"], reply["id"]) == (False, "READ_ONLY", number)
            assert reply["retry"] is True
            assert os.strerror(code) in reply["message"]
            left = {path.name: path.read_bytes() for path in directory.iterdir()}
            assert before.items() <= left.items(), "the old one stays"
            assert not [name for name in left if name.endswith(".tmp")], "no half one stays"
            assert client.ok(op="GET", key="k2")["value"] == 1
            client.ok(op="PUT", key="k2", value=1)
        files.only = ""
        rev = put_and_snapshot(client, "k3")
        loaded = read(Files(), directory / file_name(rev))
        assert (loaded.rev, set(loaded.entries)) == (rev, {"k1", "k2", "k3"})
    assert server.stop()


def test_final_snapshot_that_cannot_be_written(
    failing: tuple[ServerInProcess, FailingFiles], tmp_path: Path
) -> None:
    """END says so, and the exit status will; the snapshot before stays."""
    server, files = failing
    with Raw(server.endpoint) as client:
        put_and_snapshot(client, "k1")
        client.ok(op="PUT", key="k2", value=1)
        files.only, files.code = "write", errno.ENOSPC
        reply = client.call(op="END", id=1)
        assert (reply["ok"], reply["code"], reply["id"]) == (False, "READ_ONLY", 1)
    assert server.wait() is False
    assert file_name(1) in snapshot_names(tmp_path / "data")
    with ServerInProcess(tmp_path / "data") as again, Raw(again.endpoint) as client:
        assert client.ok(op="GET", key="k1")["value"] == "k1"


def put(engine: Engine, key: str) -> None:
    """Write an entry."""
    with engine.keyspace.lock:
        transaction = engine.keyspace.begin()
        transaction.put(key, b"\x01")
        engine.keyspace.commit(transaction)


def run_with_a_fault(data_dir: Path, files: FailingFiles) -> bool:
    """Three snapshots, a call for the last of which may fail; whether one did."""
    settings = DurabilitySettings(data_dir=str(data_dir), snapshot_interval=3_600.0)
    faults = (files.at, files.for_ever)
    files.at = 0
    engine = Engine(settings, LimitSettings(), files)
    engine.start()
    try:
        for key in ("a", "b"):
            put(engine, key)
            engine.snapshot().result(10)
        put(engine, "c")
        files.calls.clear()
        files.at, files.for_ever = faults
        future = engine.snapshot()
        error = future.exception(10)
        failed = len(files.calls) >= faults[0]
        assert failed or error is None
        assert error is None or isinstance(error, ReadOnly), error
        names = snapshot_names(data_dir)
        assert file_name(2) in names
        if error is None:
            assert file_name(3) in names
            assert read(Files(), data_dir / "snapshot" / file_name(3)).rev == 3
        files.at = 0
        assert engine.snapshot().result(10) == 3
        put(engine, "d")
        assert engine.save() == 4
    finally:
        engine.close()
    names = snapshot_names(data_dir)
    assert names[-2:] == [file_name(3), file_name(4)]
    assert not [name for name in names if name.endswith(".tmp")]
    again = Engine(settings, LimitSettings())
    assert again.keyspace.rev == 4
    assert set(again.keyspace.entries) == set("abcd")
    again.close()
    return failed


@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_every_call_fails_in_turn(tmp_path: Path, code: int, for_ever: bool) -> None:
    """The n-th call of a snapshot fails, for n = 1, 2, ... until it goes through without."""
    at = 1
    while run_with_a_fault(tmp_path / str(at), FailingFiles(at, for_ever, code)):
        at += 1
    assert at > 6, "a snapshot takes more calls than that"


def test_periodic_snapshots_come_by_themselves_and_recover(tmp_path: Path) -> None:
    files = FailingFiles()
    durability = {"snapshot_interval": 0.01}
    with ServerInProcess(tmp_path / "data", files, durability=durability) as server:
        with Raw(server.endpoint) as client:

            def snapshot_rev() -> int:
                rev: int = client.ok(op="INFO")["durability"]["snapshot_rev"]
                return rev

            client.ok(op="PUT", key="k", value=1)
            eventually(lambda: snapshot_rev() == 1, "a snapshot without being asked for one")
            files.only = "sync"
            failures = files.calls.count("sync")
            client.ok(op="PUT", key="k", value=2)
            eventually(lambda: files.calls.count("sync") > failures, "a snapshot that fails")
            assert snapshot_rev() == 1
            files.only = ""
            eventually(lambda: snapshot_rev() == 2, "another try")
        assert server.stop()
