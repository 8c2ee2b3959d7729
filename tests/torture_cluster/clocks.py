"""The clocks of a machine, for a process that runs under a shim: set at any moment, or too slow.

The shim stands between the process and the C library, so Python and libzmq read the same
clock. Only the uptime with the time asleep (CLOCK_BOOTTIME) and the system's time are changed, by
which zkv measures its lease and, at a cold start, the time of the store. Waiting is not: whoever
sleeps by the one clock and reads the other wakes early, and looks again.

libfaketime does the like, and is not used: once a clock was set, its ``clock_nanosleep`` fails, and
with it Python's ``time.sleep`` (seen with 0.9.10).
"""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Final

_NS: Final = 1_000_000_000


def why_not() -> str | None:
    """Return why there are no such clocks here; None if there are."""
    return None if shutil.which("cc") else "a C compiler is not installed here"


class MachineClock:
    """The clock of one machine, which goes on over restarts of its processes.

    Args:
        directory: for the shim, and the file by which it is told.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        library, source, path = (directory / f"clock.{each}" for each in ("so", "c", "set"))
        source.write_text(_SHIM, encoding="utf-8")
        command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
        subprocess.run(command, check=True)
        path.write_bytes(bytes(_LAYOUT.size))
        with open(path, "r+b") as file:
            self._shared = mmap.mmap(file.fileno(), _LAYOUT.size)
        self.env = {"LD_PRELOAD": str(library), "ZKV_SHIM_CLOCK": str(path)}
        """The variables of a process that has this clock."""

    def set_ahead(self, seconds: float) -> None:
        """Have the system's time be so far ahead from now on, or behind if it is less than 0."""
        struct.pack_into("q", self._shared, 0, round(seconds * _NS))

    def slow_down(self, share: float) -> None:
        """Have the uptime run slower by this share, as long as a process lives that starts now."""
        struct.pack_into("d", self._shared, 8, share)

    def close(self) -> None:
        """Let go of the file."""
        self._shared.close()


_LAYOUT: Final = struct.Struct("qd")
_SHIM: Final = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const struct told { volatile int64_t ahead; volatile double slower; } *told;
static int (*real)(clockid_t, struct timespec *);
static int64_t began;
static double slower;

static int64_t in_ns(const struct timespec *at)
{
    return at->tv_sec * INT64_C(1000000000) + at->tv_nsec;
}

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("ZKV_SHIM_CLOCK");
    struct timespec now;
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    real = (int (*)(clockid_t, struct timespec *)) dlsym(RTLD_NEXT, "clock_gettime");
    if (fd < 0)
        return;
    void *found = mmap(NULL, sizeof *told, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (found == MAP_FAILED)
        abort();
    real(CLOCK_BOOTTIME, &now);
    began = in_ns(&now);
    slower = ((const struct told *) found)->slower;
    told = found;
}

int clock_gettime(clockid_t clock, struct timespec *at)
{
    if (!real)
        begin();
    int failed = real(clock, at);
    if (failed || !told)
        return failed;
    int64_t now = in_ns(at);
    if (clock == CLOCK_BOOTTIME)
        now -= (int64_t) ((now - began) * slower);
    else if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)
        now += told->ahead;
    at->tv_sec = now / 1000000000;
    at->tv_nsec = now % 1000000000;
    return 0;
}

time_t time(time_t *at)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at)
        *at = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *at, void *zone)
{
    struct timespec now;
    (void) zone;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}
"""
