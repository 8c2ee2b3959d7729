"""A real Redis, or Valkey, on this machine."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from benchmarks.servers import find
from tests.support import LIMIT, eventually

PROGRAM: Final = find("redis-server") or find("valkey-server")
MISSING: Final = "NOT RUN: neither Redis nor Valkey is installed here (make peers)"


@contextlib.contextmanager
def running(directory: Path, *flags: str) -> Iterator[tuple[str, Any]]:
    """A server on a Unix socket, and at no port without a flag: its URL, and a client."""
    assert PROGRAM is not None
    place = directory / "redis.sock"
    command = [PROGRAM, "--port", "0", "--unixsocket", str(place), "--save", "", *flags]
    with subprocess.Popen(command, cwd=directory, stdout=subprocess.DEVNULL) as process:
        try:
            client = import_module("redis").Redis(unix_socket_path=str(place))
            eventually(place.exists, "Redis listens")
            with client:
                yield f"unix://{place}", client
        finally:
            process.kill()
            process.wait(LIMIT)
