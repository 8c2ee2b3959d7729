"""Other systems, as far as one without their parts is like them: see `zkv.system`."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.support import LIMIT, ServerInProcess, ServerProcess, environment
from zkv import system
from zkv.durability.files import Files
from zkv.writing import Target

ELSEWHERE: Final = """
import os, select, signal, sys

GONE = {"fcntl", "resource", "termios", "tty", "pwd", "grp"}
for name in GONE:
    sys.modules.pop(name, None)

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in GONE:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Finder)
for module, names in {
    os: ("fdatasync", "register_at_fork", "fork", "listxattr"),
    select: ("epoll", "EPOLLIN", "EPOLLOUT", "EPOLLET"),
    signal: ("SIGHUP", "SIGUSR1", "pthread_sigmask"),
}.items():
    for name in names:
        delattr(module, name)

def hide(event, arguments):
    if event in {"open", "os.listdir"} and str(arguments[0]).startswith("/proc"):
        raise FileNotFoundError(2, "No such file or directory", arguments[0])

sys.addaudithook(hide)
"""
"""Takes away what other systems lack: all of them something, and Windows nearly all of it."""

CLIENT: Final = """
import asyncio
import zkv

with zkv.Client(sys.argv[1]) as kv:
    kv["key"] = [1, 2]
    assert dict(kv) == {"key": [1, 2]}
    with kv.lock("job", ttl=10), kv.watch("key") as changes:
        kv["key"] = 3
        assert next(iter(changes)).value == 3

async def main():
    async with zkv.AsyncClient(sys.argv[1]) as kv:
        assert await kv.get("key") == 3

asyncio.run(main())
"""

COMMAND: Final = """
from importlib import import_module

sys.argv = sys.argv[2:]
sys.exit(import_module({"zkv": "zkv.cli.main", "zkv-cli": "zkv.cli.client"}[sys.argv[0]]).main())
"""


def run_elsewhere(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ELSEWHERE + script, *arguments], env=environment(),
        capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip


def test_clients_work_without_what_other_systems_lack(server: ServerProcess) -> None:
    done = run_elsewhere(CLIENT, server.endpoint)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.timeout(4 * LIMIT)  # It starts Python ten times.
def test_tools_work_without_what_other_systems_lack(server: ServerProcess, tmp_path: Path) -> None:
    def run(*words: str, fine: tuple[int, ...] = (0,)) -> str:
        done = run_elsewhere(COMMAND, server.endpoint, *words)
        assert done.returncode in fine, done.stderr
        return done.stdout + done.stderr

    ask, users = ("zkv-cli", "-e", server.endpoint), str(tmp_path / "users.toml")
    run(*ask, "put", "key", "value")
    assert run(*ask, "get", "key") == "value\n"
    found = run("zkv", "doctor", "-e", server.endpoint, fine=(0, 1))  # It judges this machine, too.
    assert "ok    files" in found
    assert "Traceback" not in found
    run("zkv", "keygen", str(tmp_path / "key"))
    run("zkv", "user", "add", "ann", "--uid", "1", "--users", users)
    assert "ann" in run("zkv", "user", "list", "--users", users)
    assert run("zkv", "size", "--keys", "1000")
    server.stop()
    data = str(server.data_dir)
    assert run("zkv", "check", data)
    assert "value" in run("zkv", "dump", data)


@pytest.mark.parametrize("words", [("serve",), ("follow", "tcp://127.0.0.1:1")])
def test_a_server_says_that_it_needs_linux(words: tuple[str, ...], tmp_path: Path) -> None:
    done = run_elsewhere(COMMAND, "", "zkv", *words, "--data-dir", str(tmp_path / "data"))

    assert done.returncode == 2
    assert done.stderr == (
        "zkv: the server runs on Linux; this system has no fcntl, resource, epoll, fork\n"
    )
    assert not (tmp_path / "data").exists()


# --- The disk --------------------------------------------------------------------------------

FULL: Final = 51  # F_FULLFSYNC of macOS.


class Drive:
    """Takes F_FULLFSYNC in the place of the system, and fails if it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.error = 0
        monkeypatch.setattr(system.fcntl, "F_FULLFSYNC", FULL, raising=False)
        monkeypatch.setattr(system.fcntl, "fcntl", self._fcntl)
        monkeypatch.setattr(system, "_sync", lambda _: self.calls.append("fsync"))

    def _fcntl(self, _descriptor: int, what: int) -> int:
        assert what == FULL
        self.calls.append("full")
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        return 0


@pytest.fixture
def drive(monkeypatch: pytest.MonkeyPatch) -> Drive:
    return Drive(monkeypatch)


def sync(path: Path) -> None:
    with Files().create(path) as file:
        Files().sync(file)


def replace(path: Path) -> None:
    with Target(path).open() as file:
        file.write(b"new")


@pytest.mark.parametrize("write", [sync, replace])
def test_macos_empties_the_cache_of_the_drive(
    drive: Drive, tmp_path: Path, write: Callable[[Path], None]
) -> None:
    write(tmp_path / "file")

    assert drive.calls == ["full"]


def test_so_it_does_where_a_file_cannot_be_replaced(drive: Drive, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "another name").hardlink_to(tmp_path / "file")

    replace(tmp_path / "file")

    assert drive.calls == ["full", "full"]  # What is copied, and the copy.


@pytest.mark.parametrize("error", [errno.ENOTSUP, errno.EINVAL, errno.ENOTTY])
def test_a_file_system_that_cannot_is_left_with_fsync(
    drive: Drive, tmp_path: Path, error: int
) -> None:
    drive.error = error

    sync(tmp_path / "file")

    assert drive.calls == ["full", "fsync"]


def test_a_drive_that_fails_is_not_asked_again(drive: Drive, tmp_path: Path) -> None:
    drive.error = errno.EIO

    with pytest.raises(OSError, match="Input/output error"):
        sync(tmp_path / "file")

    assert drive.calls == ["full"]


def test_without_fdatasync_it_is_fsync() -> None:
    done = run_elsewhere("from zkv import system\nprint(system._sync is os.fsync)")

    assert (done.stdout, done.stderr) == ("True\n", "")


# --- Network file systems --------------------------------------------------------------------

MOUNTED: Final = """\
rootfs / rootfs rw 0 0
/dev/sda1 / ext4 rw 0 0
server:/srv {place} {kind} rw,vers=4.2 0 0
"""


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
def test_a_start_on_a_network_file_system_is_warned_of(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mounted, share = tmp_path / "mounts", tmp_path / "my share"
    place = str(share).replace(" ", r"\040")  # As the system writes a space.
    mounted.write_text(MOUNTED.format(place=place, kind=kind))
    monkeypatch.setattr("zkv.durability.mounts.MOUNTS", mounted)
    share.mkdir()

    with ServerInProcess(share / "data"):
        pass
    with ServerInProcess(tmp_path / "local"):
        pass

    (warning,) = [each.getMessage() for each in caplog.records if "network" in each.getMessage()]
    assert warning.startswith(f"{share / 'data'} is on a network file system ({kind}): ")
    assert "set durability.data_dir to a directory on a local disk" in warning
