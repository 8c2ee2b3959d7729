"""Files that the tools write: what is there is written into, whatever it is, or is left whole."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.cli.running import COMMAND, assert_fails, run, run_in_bash
from tests.support import FREE_PORT, LIMIT, ROOT, Raw, ServerInProcess, environment, eventually
from zkv.bench.main import main as bench_main
from zkv.cli import prompt
from zkv.cli.client import main as client_main

ENTRY: Final = b'{"key": "a", "value": 1, "rev": 1}\n'
Write = Callable[[str], bool]
"""Writes to what has this name, and tells whether it could."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerInProcess]:
    directory = tmp_path_factory.mktemp("data") / "data"
    with ServerInProcess(directory, server={"feed": FREE_PORT}) as server:
        with Raw(server.endpoint) as client:
            client.ok(op="PUT", key="a", value=1)
        yield server


@pytest.fixture(scope="module")
def record(shared: ServerInProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JSON of a run."""
    path = tmp_path_factory.mktemp("record") / "a.json"
    assert bench(shared, "--json", str(path))
    return path


def bench(server: ServerInProcess, *words: str) -> bool:
    quick = ["-e", server.endpoint, "--operations", "4", "--clients", "1", "--ceiling", "0"]
    return bench_alone(*quick, "--reads", "0", *words)


def bench_alone(*words: str) -> bool:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return bench_main(list(words)) == 0


def export_here(server: ServerInProcess, *words: str) -> int:
    """In this process, for what depends on who it is."""
    with contextlib.redirect_stderr(io.StringIO()):
        return client_main(["-e", server.endpoint, "export", "--prefix", "a", *words])


WRITERS: Final = ("export", "bench --json", "bench --csv", "bench compare --plot", "sweep --json")


@pytest.fixture(params=WRITERS)
def writer(request: pytest.FixtureRequest, shared: ServerInProcess, record: Path) -> Write:
    def export(name: str) -> bool:
        return run("-e", shared.endpoint, "export", "--prefix", "a", name).returncode == 0

    def compare(name: str) -> bool:
        return bench_alone("compare", str(record), str(record), "--plot", name)

    writers: dict[str, Write] = {
        "export": export,
        "bench --json": lambda name: bench(shared, "--json", name),
        "bench --csv": lambda name: bench(shared, "--csv", name),
        "bench compare --plot": compare,
        "sweep --json": lambda name: bench_alone(
            "sweep", "-e", shared.endpoint, "--rates", "2000", "--duration", "0.01", "--reads", "0",
            "--clients", "1", "--ceiling", "0", "--json", name,
        ),
    }  # fmt: skip
    return writers[request.param]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def make_device(path: Path, minor: int) -> None:
    """One of memory's: 3 is null, 7 is full. A test must not lose those of the machine."""
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
        open(path, "rb").close()  # Not where devices are switched off.
    except PermissionError:
        pytest.skip("devices are root's to make")


def test_a_new_file_has_the_mode_of_any_new_file(writer: Write, tmp_path: Path) -> None:
    file = tmp_path / "file.svg"
    before = os.umask(0o027)
    try:
        assert writer(str(file))
    finally:
        os.umask(before)
    if file.stat().st_uid == os.getuid():
        assert mode(file) in {0o640, 0o644}  # The command line runs in another process.
    assert file.stat().st_size > 0
    assert names(tmp_path) == ["file.svg"]


def test_a_file_keeps_mode_owner_and_attributes(writer: Write, tmp_path: Path) -> None:
    file = tmp_path / "file.svg"
    file.write_bytes(b"")
    file.chmod(0o600)
    owner = (1234, 5678) if os.getuid() == 0 else (os.getuid(), os.getgid())
    os.chown(file, *owner)
    with contextlib.suppress(OSError):
        os.setxattr(file, "user.note", b"mine")
        assert os.getxattr(file, "user.note") == b"mine"

    assert writer(str(file))

    found = file.stat()
    assert found.st_size > 0
    assert (mode(file), found.st_uid, found.st_gid) == (0o600, *owner)
    assert [name for name in os.listxattr(file) if name.startswith("user.")] in ([], ["user.note"])
    assert names(tmp_path) == ["file.svg"]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_is_followed(writer: Write, tmp_path: Path, is_there: bool) -> None:
    target, link, second = (tmp_path / name for name in ("target.svg", "link.svg", "second.svg"))
    if is_there:
        target.write_bytes(b"")
    link.symlink_to("target.svg")
    second.symlink_to(link)

    assert writer(str(second))

    assert target.stat().st_size > 0
    assert link.is_symlink()
    assert second.is_symlink()
    assert names(tmp_path) == ["link.svg", "second.svg", "target.svg"]


def test_all_names_of_a_file_go_on_to_be_the_same_file(writer: Write, tmp_path: Path) -> None:
    file, other = tmp_path / "file.svg", tmp_path / "other"
    file.write_bytes(b"")
    other.hardlink_to(file)

    assert writer(str(file))

    assert file.samefile(other)
    assert other.stat().st_size > 0
    assert names(tmp_path) == ["file.svg", "other"]


def test_a_pipe_is_written_into(writer: Write, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.svg"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        assert writer(str(pipe))
        data, _ = reader.communicate(timeout=LIMIT)
    assert data
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert names(tmp_path) == ["pipe.svg"]


def test_a_device_stays_one(writer: Write, tmp_path: Path) -> None:
    device = tmp_path / "null.svg"
    make_device(device, 3)

    assert writer(str(device))

    assert stat.S_ISCHR(device.stat().st_mode)
    assert names(tmp_path) == ["null.svg"]


def test_what_takes_nothing_is_an_error(writer: Write, tmp_path: Path) -> None:
    device = tmp_path / "full.svg"
    make_device(device, 7)

    assert not writer(str(device))

    assert stat.S_ISCHR(device.stat().st_mode)
    assert names(tmp_path) == ["full.svg"]


def test_a_directory_is_an_error(writer: Write, tmp_path: Path) -> None:
    (tmp_path / "dir.svg").mkdir()
    assert not writer(str(tmp_path / "dir.svg"))
    assert names(tmp_path) == ["dir.svg"]
    assert names(tmp_path / "dir.svg") == []


def test_no_name_is_an_error(
    shared: ServerInProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not stand for the directory that we are in, beside which a part would be left."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    assert export_here(shared, "") == 2

    assert names(tmp_path) == ["here"]


def test_links_in_a_circle_are_an_error(writer: Write, tmp_path: Path) -> None:
    link = tmp_path / "link.svg"
    link.symlink_to(link)
    assert not writer(str(link))
    assert link.is_symlink()


@contextlib.contextmanager
def ordinary_user() -> Iterator[Path]:
    """Be nobody, in a directory that is not ours to change."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        file = directory / "file"
        file.write_bytes(b"old")
        file.chmod(0o666)
        directory.chmod(0o555)
        before = os.geteuid()
        "".encode("idna")  # Python's own files may be in a place that is not nobody's to read.
        if before == 0:
            os.seteuid(65534)
        try:
            yield file
        finally:
            if before == 0:
                os.seteuid(0)
            directory.chmod(0o755)


def test_a_file_in_a_directory_that_may_not_be_changed(shared: ServerInProcess) -> None:
    with ordinary_user() as file:
        assert export_here(shared, str(file)) == 0
        assert file.read_bytes() == ENTRY
        assert names(file.parent) == ["file"]
        assert export_here(shared, str(file.parent / "new")) == 2
        assert export_here(shared, str(file), "-e", "tcp://127.0.0.1:1", "--timeout", "0.1") == 3
        assert file.read_bytes() == ENTRY


def test_a_file_that_may_not_be_written(shared: ServerInProcess) -> None:
    with ordinary_user() as file:
        if os.getuid() != 0:
            pytest.skip("the file has to be another's")
        os.seteuid(0)
        file.chmod(0o644)
        file.parent.chmod(0o777)
        os.seteuid(65534)
        assert export_here(shared, str(file)) == 2
        assert file.read_bytes() == b"old"


def test_descriptors_of_the_process(shared: ServerInProcess, tmp_path: Path) -> None:
    here = {"ZKV_ENDPOINT": shared.endpoint}
    assert run("export", "--prefix", "a", "/dev/stdout", env=here).stdout == ENTRY
    assert run("export", "--prefix", "a", "/dev/fd/1", env=here).stdout == ENTRY
    out = tmp_path / "out"
    appended = run_in_bash(
        f"echo before > {out}; zkv-cli export --prefix a /dev/stdout >> {out}; echo after >> {out}",
        **here,
    )
    assert appended.returncode == 0, appended.stderr
    assert out.read_bytes() == b"before\n" + ENTRY + b"after\n"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        words = ["export", "--prefix", "a", "/proc/self/fd/1"]
        subprocess.run(
            [*COMMAND, *words], cwd=ROOT, env=environment() | here, stdout=theirs.fileno(),
            stderr=subprocess.DEVNULL, timeout=LIMIT, check=True,
        )  # fmt: skip
        assert ours.recv(1000) == ENTRY
    assert_fails(run("export", "/dev/fd/99", env=here), 2, "/dev/fd/99: Bad file descriptor")


def test_an_export_that_fails_leaves_the_file_whole(
    server: ServerInProcess, client: Raw, tmp_path: Path
) -> None:
    """The server goes away in the middle: it is stopped as soon as the part is there."""
    client.ok(op="MPUT", items={f"{number:04}": "x" * 1000 for number in range(2000)})
    file, part = tmp_path / "file", tmp_path / "file.part"
    file.write_bytes(b"old")
    file.chmod(0o600)

    def stop() -> None:
        eventually(part.exists, "the part is there")
        server.stop()

    stopper = threading.Thread(target=stop)
    stopper.start()
    failed = run("-e", server.endpoint, "--timeout", "1", "export", str(file), "--after", "0")
    stopper.join()

    if failed.returncode == 0:  # It was quicker.
        return
    assert file.read_bytes() == b"old"
    assert mode(part) == 0o600


@pytest.mark.parametrize("kind", ["new", "readable", "link", "device", "pipe"])
def test_the_history_of_the_shell_is_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Where its name leads to what is no file, it is kept in memory, and that is left as it is."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    file = tmp_path / "zkv" / "history"
    file.parent.mkdir()
    if kind == "readable":
        file.write_bytes(b"")
        file.chmod(0o644)
    elif kind == "link":
        file.symlink_to(tmp_path / "elsewhere")
    elif kind == "device":
        make_device(file, 3)
    elif kind == "pipe":
        os.mkfifo(file)
    before = None if not file.exists() else mode(file)

    prompt._history().append_string("put secret 1")

    if kind in {"device", "pipe"}:
        assert mode(file) == before
    else:
        assert mode(file) == 0o600
        assert b"put secret 1" in file.read_bytes()
    assert file.is_symlink() is (kind == "link")
