"""What others do to a data directory while a server runs on it, and names that are none for it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

import zkv
from tests.forking import run_zkv
from tests.requests.contract_stores import DurableStore, FakeClock
from tests.support import FREE_PORT, Message, Raw, ServerInProcess, ServerProcess, eventually
from zkv.durability.files import Files
from zkv.durability.segment import SUFFIX
from zkv.durability.storage import Storage

CONFIG = """
[durability]
snapshot_interval = 0.3
segment_bytes = 1024
fsync = "{fsync}"
[log]
requests = false
"""


@pytest.fixture(params=["always", "never"])
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    config = CONFIG.format(fsync=request.param).replace("1024", "10_000_000")
    with ServerProcess(tmp_path / "server", config=config) as server:
        with Raw(server.endpoint) as client:
            fill(client)
        yield server


def fill(client: Raw) -> None:
    """Have 31 keys in two snapshots, and a log behind them."""
    for number in range(30):
        client.ok(op="PUT", key=f"k{number}", value="x" * 100)
    client.ok(op="SNAPSHOT")
    client.ok(op="PUT", key="k", value=0)
    client.ok(op="SNAPSHOT")
    client.ok(op="PUT", key="k", value=1)


def refused(client: Raw) -> Message:
    """The first write that is not carried out, among writes that are."""
    replies: list[Message] = []

    def is_refused() -> bool:
        replies.append(client.call(op="PUT", key="tried", value=len(replies)))
        return replies[-1].get("applied") is False  # One that was under way then has nil.

    eventually(is_refused, "a write is refused")
    return replies[-1]


def said(server: ServerProcess) -> list[str]:
    """The lines that say that writes are refused."""
    return [line for line in server.log().splitlines() if "writes are refused" in line]


# --- The directory itself ---------------------------------------------------------------------


def remove(data: Path) -> None:
    shutil.rmtree(data)


def move(data: Path) -> None:
    data.rename(data.with_name("moved"))


def move_what_it_is_in(data: Path) -> None:
    data.parent.rename(data.parent.with_name("elsewhere"))


def replace_by_an_empty_one(data: Path) -> None:
    move(data)
    data.mkdir()


def replace_by_a_copy(data: Path) -> None:
    shutil.copytree(data, data.with_name("copy"))
    move(data)
    data.with_name("copy").rename(data)


def replace_by_a_file(data: Path) -> None:
    move(data)
    data.write_text("a file")


def replace_by_a_link_to_nowhere(data: Path) -> None:
    move(data)
    data.symlink_to("nowhere")


TAKEN = [
    remove, move, move_what_it_is_in, replace_by_an_empty_one, replace_by_a_copy,
    replace_by_a_file, replace_by_a_link_to_nowhere,
]  # fmt: skip


@pytest.mark.parametrize("fsync", ["always", "never"])
@pytest.mark.parametrize("take", TAKEN)
def test_directory_that_is_taken_away(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    take: Callable[[Path], None],
    fsync: str,
) -> None:
    taking, look = threading.Lock(), Storage.disorder

    def look_once_it_is_taken(storage: Storage) -> str | None:
        with taking:
            return look(storage)

    monkeypatch.setattr(Storage, "disorder", look_once_it_is_taken)
    data = tmp_path / "server" / "data"
    data.parent.mkdir()
    durability = {"snapshot_interval": 0.05, "fsync": fsync}
    with (
        ServerInProcess(data, durability=durability) as server,
        Raw(server.endpoint) as client,
    ):
        fill(client)
        before = client.ok(op="GET", key="k")
        with taking:
            take(data)
            there = tree(data)
        reply = refused(client)
        assert (reply["code"], reply["retry"]) == ("READ_ONLY", True)
        assert str(data) in reply["message"]
        assert client.ok(op="GET", key="k") == before, "reads go on"
        info = client.ok(op="INFO")
        assert info["durability"]["refusal"] == reply["message"]
        told = run_zkv("doctor", "-e", server.endpoint, cwd=Path("/"))
        assert told.returncode == 1
        assert reply["message"] in told.stdout
        snapshot = client.call(op="SNAPSHOT")
        assert (snapshot["code"], str(data) in snapshot["message"]) == ("READ_ONLY", True)
        assert not client.call(op="PUT", key="k", value=2)["ok"], "it stays so"
        assert server.stop() is False
    assert tree(data) == there, "nothing was written into what has its place"
    errors = [each for each in caplog.records if each.levelname == "ERROR"]
    assert len([each for each in errors if str(data) in each.getMessage()]) == 1
    assert any(
        each.levelname == "CRITICAL" and "not everything is saved" in each.getMessage()
        for each in caplog.records
    )


def tree(directory: Path) -> dict[str, bytes | None]:
    """Everything below a directory, with the contents of its files."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
    }


def test_directory_that_comes_back(server: ServerProcess) -> None:
    data = server.data_dir
    with Raw(server.endpoint) as client:
        move(data)
        told = refused(client)
        assert "moved away" in told["message"]
        data.with_name("moved").rename(data)
        assert_goes_on(server, client)
    assert len(said(server)) == 1


def assert_goes_on(server: ServerProcess, client: Raw) -> None:
    """Writes are taken again, without a restart, and all that was answered outlives a kill."""
    taken: list[Message] = []

    def is_taken() -> Any:
        taken.append(client.call(op="PUT", key="k", value="again", durable=True))
        return taken[-1]["ok"]

    eventually(is_taken, "writes are taken again")
    assert client.ok(op="INFO")["durability"]["refusal"] is None
    before = dict(client.ok(op="GET", key="tried"), k=client.ok(op="GET", key="k"))
    assert client.ok(op="COUNT")["count"] == 32
    server.kill()
    server.start()
    with Raw(server.endpoint) as again:
        assert again.ok(op="COUNT")["count"] == 32
        assert dict(again.ok(op="GET", key="tried"), k=again.ok(op="GET", key="k")) == before
        assert again.ok(op="PUT", key="k", value="once more")["rev"] > taken[-1]["rev"]
        assert again.ok(op="END")["ok"]
    assert server.wait() == 0
    assert "a server does not start" not in run_zkv("check", "data", cwd=server.directory).stdout


def test_directory_that_is_mounted_over(server: ServerProcess) -> None:
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "none", server.data_dir], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("nothing may be mounted here")
    try:
        with Raw(server.endpoint) as client:
            assert "was replaced by something else" in refused(client)["message"]
            assert list(server.data_dir.iterdir()) == []
    finally:
        subprocess.run(["umount", server.data_dir], check=True)
    with Raw(server.endpoint) as client:
        assert_goes_on(server, client)


# --- What is in it ----------------------------------------------------------------------------


def segments(data: Path) -> list[Path]:
    return sorted(path for path in (data / "wal").iterdir() if path.suffix == SUFFIX)


def snapshots(data: Path) -> list[Path]:
    return sorted((data / "snapshot").glob("*.snapshot"))


def remove_newest_segment(data: Path) -> None:
    segments(data)[-1].unlink()


def remove_every_segment(data: Path) -> None:
    for path in segments(data):
        path.unlink()


def empty_newest_segment(data: Path) -> None:
    os.truncate(segments(data)[-1], 0)


def add_to_newest_segment(data: Path) -> None:
    with segments(data)[-1].open("ab") as file:
        file.write(bytes(100_000))


def replace_newest_segment(data: Path) -> None:
    path = segments(data)[-1]
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").rename(path)


def remove_older_segment(data: Path) -> None:
    segments(data)[0].unlink()


def cut_older_segment(data: Path) -> None:
    os.truncate(segments(data)[0], 30)


def remove_newest_snapshot(data: Path) -> None:
    snapshots(data)[-1].unlink()


def remove_older_snapshot(data: Path) -> None:
    snapshots(data)[0].unlink()


def cut_snapshot(data: Path) -> None:
    os.truncate(snapshots(data)[-1], 30)


def remove_snapshots(data: Path) -> None:
    shutil.rmtree(data / "snapshot")


def remove_log(data: Path) -> None:
    shutil.rmtree(data / "wal")


def move_log(data: Path) -> None:
    (data / "wal").rename(data / "wal.old")
    (data / "wal").mkdir()


def remove_lock(data: Path) -> None:
    (data / "LOCK").unlink()


def replace_lock(data: Path) -> None:
    (data / "LOCK").unlink()
    (data / "LOCK").touch()


def empty(data: Path) -> None:
    for path in list(data.iterdir()):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


CHANGED = [
    remove_newest_segment, remove_every_segment, empty_newest_segment, add_to_newest_segment,
    replace_newest_segment, remove_older_segment, cut_older_segment, remove_newest_snapshot,
    remove_older_snapshot, cut_snapshot, remove_snapshots, remove_log, move_log, remove_lock,
    replace_lock, empty,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGED)
def test_what_is_removed_is_written_anew(
    caplog: pytest.LogCaptureFixture, change: Callable[[Path], None]
) -> None:
    """Writes are refused for a while, and then go on; nothing that was answered is lost."""
    with contextlib.closing(DurableStore(FakeClock(), segment_bytes=1024)) as store:
        for key in ("one", "two"):
            for number in range(15):
                store.put(f"{key} {number}", "x" * 100)
            assert isinstance(store.snapshot(), int)
        for number in range(15):
            store.put(f"one {number}", "x" * 100)
        store.put("k", 0)
        change(store.data_dir)
        store.look()
        told = store.refused("READ_ONLY", "PUT", key="k", value=1)
        assert str(store.data_dir) in told["message"]
        assert store.engine.wal.refusal == told["message"]

        assert isinstance(store.snapshot(), int)
        assert store.engine.wal.refusal is None
        rev = store.put("k", "again", durable=True)
        before = store.items()
        assert len(before) == 31
        for _ in range(2):
            store.look()
            store.crash()
            assert store.items() == before
        assert store.put("k", "once more") == rev + 1
        refusals = [each for each in caplog.records if "writes are refused" in each.getMessage()]
        assert len(refusals) == 1


@pytest.mark.parametrize("change", [remove_newest_segment, cut_snapshot, replace_lock, empty])
def test_a_server_writes_anew_what_is_removed(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """As its thread looks around by itself, and a kill then takes nothing back."""
    config = CONFIG.format(fsync="always").replace("0.3", "1.0")
    with ServerProcess(tmp_path / "server", config=config) as server:
        with Raw(server.endpoint) as client:
            for key in ("one", "two"):
                for number in range(15):
                    client.ok(op="PUT", key=f"{key} {number}", value="x" * 100)
                client.ok(op="SNAPSHOT")
            for number in range(15):
                client.ok(op="PUT", key=f"one {number}", value="x" * 100)
            client.ok(op="PUT", key="k", value=0)
            change(server.data_dir)
            told = refused(client)
            assert told["code"] == "READ_ONLY"
            assert str(server.data_dir) in told["message"]
            assert_goes_on(server, client)
        # Where a segment was full just then, the log has said first that it has no next one.
        assert 1 <= len(said(server)) <= 2


def test_removed_lock_lets_nobody_in(server: ServerProcess) -> None:
    """Neither before the server has noticed, nor after."""
    with Raw(server.endpoint) as client:
        remove_lock(server.data_dir)
        for _ in range(3):
            for command in (
                ["serve", "--data-dir", str(server.data_dir), "--endpoint", FREE_PORT],
                ["repair", "--yes", str(server.data_dir)],
            ):
                done = run_zkv(*command, cwd=server.directory)
                assert done.returncode != 0
                assert "another server" in done.stderr
            client.call(op="SNAPSHOT")
        assert (
            "is using this data directory" in run_zkv("check", "data", cwd=server.directory).stdout
        )
        assert str(server.process.pid) in (server.data_dir / "LOCK").read_text()


def test_segment_that_would_be_begun_elsewhere(tmp_path: Path) -> None:
    """A segment that is full between two looks is not followed by one in another directory."""
    config = CONFIG.format(fsync="always").replace("0.3", "3600.0")
    with ServerProcess(tmp_path / "server", config=config) as server:
        with Raw(server.endpoint) as client:
            client.ok(op="PUT", key="k", value=0)
            replace_by_a_copy(server.data_dir)
            before = tree(server.data_dir)
            replies = [client.call(op="PUT", key="k", value="x" * 300) for _ in range(10)]
            assert not replies[-1]["ok"]
            assert refused(client)["code"] == "READ_ONLY"
        server.kill()
        assert tree(server.data_dir) == before


# --- Memory that ends -------------------------------------------------------------------------


class NoMemory(Files):
    """Has no memory for what is written below ``where``."""

    where = ""

    def write(self, file: BinaryIO, data: bytes) -> None:
        if self.where and self.where in Path(file.name).parts:
            raise MemoryError
        super().write(file, data)


@pytest.mark.parametrize(("where", "op"), [("wal", "PUT"), ("snapshot", "SNAPSHOT")])
def test_memory_that_ends_is_no_full_disk(tmp_path: Path, where: str, op: str) -> None:
    files = NoMemory()
    durability = {"snapshot_interval": 3600.0}
    with ServerInProcess(tmp_path / "data", files, durability=durability) as server:
        with Raw(server.endpoint) as client:
            client.ok(op="PUT", key="k", value=1)
            files.where = where
            request = {"op": op} | ({"key": "k", "value": 2} if op == "PUT" else {})
            reply = client.call(**request)
            assert reply["code"] == ("FULL" if op == "PUT" else "READ_ONLY")
            assert reply["message"].endswith("out of memory")
            files.where = ""
            eventually(lambda: client.call(**request)["ok"], "it works again")
        assert server.stop()


# --- Names that are no data directory's -------------------------------------------------------

LONG = "n" * 300


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("file", "Not a directory"),
        ("file/below", "Not a directory"),
        ("file/deep/below", "Not a directory"),
        ("dangling", "a link to nowhere, which does not exist"),
        ("loop", "Too many levels of symbolic links"),
        ("link-to-file", "Not a directory"),
        (LONG, "File name too long"),
        ("/proc/nothing/data", "No such file or directory"),
        ("~/data", "not expanded"),
        ("b\udcff", "not UTF-8"),
    ],
)
def test_name_that_is_none_for_a_data_directory(tmp_path: Path, name: str, why: str) -> None:
    """Each message is one line, says why, and names the directory once."""
    place = tmp_path / "place"
    place.mkdir()
    (place / "file").write_text("a file")
    for link, target in (("dangling", "nowhere"), ("loop", "loop"), ("link-to-file", "file")):
        (place / link).symlink_to(target)
    before = sorted(place.iterdir())
    line = refusal(place, "serve", "--endpoint", FREE_PORT, "--data-dir", name)
    assert why in line
    assert line.count(name if name.isprintable() else "\\udcff") == 1
    assert sorted(place.iterdir()) == before
    if why in {"not expanded", "not UTF-8"}:
        return  # To the others it is a name like any other.
    for verb, more in (
        ("check", []), ("repair", []), ("dump", []), ("backup", ["to"]), ("restore", ["to"])
    ):  # fmt: skip
        line = refusal(place, verb, name, *more)
        assert line.count(name) == 1
        assert sorted(place.iterdir()) == before


@pytest.mark.parametrize("verb", ["check", "repair", "dump", "backup", "restore"])
def test_name_that_is_empty(tmp_path: Path, verb: str) -> None:
    """It does not stand for the working directory."""
    done = run_zkv(verb, "", *(["to"] if verb in {"backup", "restore"} else []), cwd=tmp_path)
    assert done.returncode == 2
    assert "must not be empty" in done.stderr


@pytest.mark.parametrize("target", ["file", "file/below", "dangling", "loop", LONG])
@pytest.mark.parametrize("verb", ["backup", "restore"])
def test_target_that_is_none_for_a_data_directory(tmp_path: Path, verb: str, target: str) -> None:
    with ServerProcess(tmp_path / "server") as server:
        assert server.stop() == 0
    place = tmp_path / "place"
    place.mkdir()
    (place / "file").write_text("a file")
    (place / "dangling").symlink_to("nowhere")
    (place / "loop").symlink_to("loop")
    line = refusal(place, verb, str(server.data_dir), target)
    assert line.count(target) == 1
    assert (place / "file").read_text() == "a file"


def refusal(directory: Path, *arguments: str) -> str:
    """The one line with which a command refuses."""
    done = run_zkv(*arguments, cwd=directory)
    assert done.returncode != 0
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("zkv: ")
    return line


@pytest.mark.parametrize("name", ["data/", "./data", "data/../data", "link"])
def test_other_names_of_a_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "data")
    (tmp_path / "data").mkdir()
    with ServerProcess(tmp_path, "--data-dir", name) as server, Raw(server.endpoint) as client:
        client.ok(op="PUT", key="k", value=1)
        assert client.ok(op="END")["rev"] == 1
        assert server.wait() == 0
    assert snapshots(tmp_path / "data")


def test_embedding_process_that_goes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative name is that of the directory which the process was in at the start."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with zkv.Server(FREE_PORT, data_dir="data") as server, zkv.Client(server.endpoint) as kv:
        monkeypatch.chdir(tmp_path / "elsewhere")
        kv.put("k", 1)
        kv.call("SNAPSHOT")
    assert snapshots(tmp_path / "data")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_segment_that_is_closed_while_it_is_looked_is_not_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By another thread, between what is read of the directory and what is compared with it."""
    with contextlib.closing(DurableStore(FakeClock())) as store:
        storage = store.engine.storage
        closed_files = storage._closed_files

        def and_close_another() -> dict[Path, int]:
            found = closed_files()
            storage.expect(storage.wal_directory / "another", 1)
            return found

        monkeypatch.setattr(storage, "_closed_files", and_close_another)
        assert storage.disorder() is None
