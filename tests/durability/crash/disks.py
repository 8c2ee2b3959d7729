"""Disks that fail: an ext4 image that can lose its power, a small tmpfs, a shim that refuses syncs.

Mounting needs root, and the image a loop device: `needs_mounts`, `needs_power_cuts` and
`needs_compiler` skip a test where there is none, and say so.

Nothing stays behind. A mount is undone when its context ends. A second process, out of reach of
Ctrl-C, waits for the end of a pipe and undoes it, too, should the test run die before that; the
loop device goes with the mount. Nothing but a mount that was made here is ever cut off.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest

from tests.support import LIMIT, eventually

EXT4_IOC_SHUTDOWN: Final = 0x8004587D
"""_IOR('X', 125, __u32), see `ext4_shutdown` in the kernel's fs/ext4/ioctl.c."""
WITHOUT_FLUSHING_THE_LOG: Final = 2

_JANITOR: Final = 'read -r _; while umount --lazy "$0" 2>/dev/null; do :; done'


class Mount:
    """A file system mounted at a directory of a test. Use as a context manager.

    Args:
        path: where; made if it is not there.
        *arguments: of ``mount``, without the directory.
    """

    def __init__(self, path: Path, *arguments: str) -> None:
        self.path = path
        self._arguments = arguments
        self._mounted = False

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True, exist_ok=True)
        self._janitor = subprocess.Popen(
            ["sh", "-c", _JANITOR, str(self.path)], stdin=subprocess.PIPE, start_new_session=True
        )
        try:
            self.mount()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self._mounted:
                self.unmount()
        finally:
            assert self._janitor.stdin is not None
            self._janitor.stdin.close()
            self._janitor.wait(LIMIT)

    def mount(self) -> None:
        """Mount it; done on entering the context."""
        _run("mount", *self._arguments, str(self.path))
        self._mounted = True

    def unmount(self) -> None:
        """Unmount it. No process may have a file open there."""
        eventually(self._try_to_unmount, f"{self.path} is unmounted")
        self._mounted = False

    def _try_to_unmount(self) -> bool:
        try:
            _run("umount", str(self.path))
        except DiskError as error:
            if "busy" not in str(error):  # Whoever looks at new devices lets go in a moment.
                raise
            return False
        return True

    def remount(self, options: str) -> None:
        """Change its options."""
        _run("mount", "-o", f"remount,{options}", str(self.path))

    def free_bytes(self) -> int:
        """How many bytes may still be written."""
        free = os.statvfs(self.path)
        return free.f_bavail * free.f_frsize


class PowerCutMount(Mount):
    """An ext4 file system in a file, which forgets what was not synced when its power is cut.

    Args:
        directory: holds the image, and the mount in ``mnt``.
        megabytes: its size.
    """

    def __init__(self, directory: Path, megabytes: int = 32) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.image = directory / "disk.ext4"
        with open(self.image, "wb") as file:
            file.truncate(megabytes << 20)
        _run("mkfs.ext4", "-q", "-F", str(self.image))
        # ext4 syncs a file of its own accord when it is renamed over another: not here.
        options = "loop,noatime,noauto_da_alloc"
        super().__init__(directory / "mnt", "-t", "ext4", "-o", options, str(self.image))

    def cut(self) -> int:
        """Cut the power: from now on nothing reaches the disk, not even what was on its way.

        Returns the moment before (`time.monotonic_ns`).
        """
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._be_sure(descriptor)
            moment = time.monotonic_ns()
            fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, struct.pack("I", WITHOUT_FLUSHING_THE_LOG))
            return moment
        finally:
            os.close(descriptor)

    def power_on(self) -> None:
        """After a cut: have what the disk holds. No process may have a file open there."""
        self.unmount()
        # A process with mounts of its own, as other tests start them, may hold a copy: as long as
        # it does, mounting gives the one that was cut off.
        eventually(lambda: not self._has_loop_device(), "that nobody has the disk")
        self.mount()

    def _has_loop_device(self) -> bool:
        words = ["losetup", "--noheadings", "--associated", str(self.image)]
        return bool(subprocess.run(words, capture_output=True, check=True).stdout)

    def _be_sure(self, descriptor: int) -> None:
        """Fail unless ``descriptor`` is on our own image: a cut of any other disk is a disaster."""
        device = os.fstat(descriptor).st_dev
        major, minor = os.major(device), os.minor(device)
        backing = Path(f"/sys/dev/block/{major}:{minor}/loop/backing_file")
        assert backing.read_text(encoding="utf-8").strip() == str(self.image.resolve())


class SmallDisk(Mount):
    """A tmpfs of a few MiB, with room for data beside a file that fills it up.

    Args:
        path: where.
        megabytes: its size.
    """

    def __init__(self, path: Path, megabytes: int = 4) -> None:
        super().__init__(path, "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "tmpfs")
        self._ballast = path / "ballast"

    def fill(self, but: int = 0) -> None:
        """Leave no more than ``but`` bytes, in whole pages."""
        with open(self._ballast, "ab", buffering=0) as file, contextlib.suppress(OSError):
            while (size := min(self.free_bytes() - but, 1 << 20)) > 0:
                file.write(bytes(size))

    def make_room(self) -> None:
        """Give back what `fill` took."""
        self._ballast.unlink()


class SyncShim:
    """Has fdatasync fail, wait or kill, in a process that runs under it. Compiled on the spot.

    Args:
        directory: for the library and the file by which it is told.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._fault = directory / "fault"
        self._held = directory / "fault.held"
        self._rules: dict[str, str] = {}
        library = directory / "shim.so"
        source = directory / "shim.c"
        source.write_text(_SHIM, encoding="utf-8")
        _run("cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl")
        self.launcher = ["env", f"LD_PRELOAD={library}", f"ZKV_SHIM_FAULT={self._fault}"]
        """Runs a command under the shim."""

    def fail(self, only: str = "") -> None:
        """From now on fdatasync fails with EIO, without syncing.

        Args:
            only: the same for files alone that have this in their path.
        """
        self._rule("E", only)

    def hold(self, only: str = "", then_fail: bool = False) -> None:
        """From now on fdatasync waits, until it is told otherwise. Then it does its work, or fails.

        Returns at once; `holds` says whether one waits.
        """
        self._held.unlink(missing_ok=True)
        self._rule("F" if then_fail else "H", only)

    def holds(self) -> bool:
        """Whether an fdatasync has waited since `hold`."""
        return self._held.exists()

    def slow(self, milliseconds: int) -> None:
        """From now on fdatasync takes so long, and then does what it should."""
        self._rule("S", "", milliseconds)

    def kill(self) -> None:
        """The next fdatasync is the process's end: SIGKILL, before anything is synced."""
        self._rule("K", "")

    def heal(self, only: str | None = None) -> None:
        """From now on fdatasync does what it should, on all files or on those told apart."""
        self._rules = {word: rule for word, rule in self._rules.items() if only not in {None, word}}
        self._tell()

    def _rule(self, kind: str, only: str, milliseconds: int = 0) -> None:
        self._rules[only] = f"{kind} {milliseconds} {only or '/'}\n"
        self._tell()

    def _tell(self) -> None:
        beside = self._fault.with_suffix(".new")
        beside.write_text("".join(self._rules.values()), encoding="utf-8")
        beside.replace(self._fault)


_SHIM: Final = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What the rules say of a file; a rule is a kind, milliseconds and a part of the file's path. */
static char read_fault(const char *rules, int fd, int *milliseconds)
{
    char link[64], path[4096] = "", part[64], kind;
    FILE *file = rules ? fopen(rules, "re") : NULL;
    *milliseconds = 0;
    if (!file)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (readlink(link, path, sizeof path - 1) < 0)
        path[0] = 0;
    while (fscanf(file, " %c %d %63s", &kind, milliseconds, part) == 3) {
        if (strstr(path, part)) {
            fclose(file);
            return kind;
        }
    }
    fclose(file);
    *milliseconds = 0;
    return 0;
}

int fdatasync(int fd)
{
    const char *rules = getenv("ZKV_SHIM_FAULT");
    int milliseconds;
    char kind = read_fault(rules, fd, &milliseconds);
    int fails = kind == 'E' || kind == 'F';
    if (kind == 'K')
        kill(getpid(), SIGKILL);
    if (kind == 'H' || kind == 'F') {
        char held[4096];
        snprintf(held, sizeof held, "%s.held", rules);
        close(open(held, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
        while (kind == 'H' || kind == 'F') {
            usleep(1000);
            kind = read_fault(rules, fd, &milliseconds);
        }
    }
    usleep(milliseconds * 1000);
    if (fails) {
        errno = EIO;
        return -1;
    }
    return ((int (*)(int)) dlsym(RTLD_NEXT, "fdatasync"))(fd);
}
"""


class DiskError(Exception):
    """A command on a disk failed; the message is what it said."""


def needs_mounts() -> None:
    """Skip the test where no file system can be mounted."""
    reason = _why_no_mounts()
    if reason is not None:
        pytest.skip(f"needs root and mount: {reason}")


def needs_power_cuts() -> None:
    """Skip the test where no ext4 image can be mounted and cut off."""
    reason = why_no_power_cuts()
    if reason is not None:
        pytest.skip(f"needs root and a loop device: {reason}")


def needs_compiler() -> None:
    """Skip the test where nothing can be compiled and preloaded."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler: there is no cc")


@functools.cache
def _why_no_mounts() -> str | None:
    with tempfile.TemporaryDirectory() as directory:
        return _why_not(lambda: SmallDisk(Path(directory, "mnt"), megabytes=1))


@functools.cache
def why_no_power_cuts() -> str | None:
    """Return why no ext4 image can be mounted and cut off; None if one can: it was tried."""
    with tempfile.TemporaryDirectory() as directory:
        return _why_not(lambda: PowerCutMount(Path(directory), megabytes=8))


def _why_not(make: Callable[[], Mount]) -> str | None:
    """Why such a disk cannot be mounted here; None if it can, for it was."""
    if os.geteuid() != 0:
        return "not root"
    try:
        with make():
            return None
    except DiskError as error:
        return str(error).splitlines()[0]


def _run(*command: str) -> None:
    """Run a command. Raises DiskError."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    except FileNotFoundError:
        raise DiskError(f"there is no {command[0]}") from None
    if done.returncode:
        raise DiskError(done.stderr.strip() or f"{command[0]} exits with {done.returncode}")
