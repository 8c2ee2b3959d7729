"""``zkv-cli`` as a child process: runs it, and tells how it failed."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import IO

from tests.forking import ZKV_CLI, run_forked
from tests.support import LIMIT, ROOT, environment

COMMAND = [sys.executable, "-m", "zkv.cli.client"]


def refused_port() -> int:
    """A port that is bound, for as long as this process lives, and never listened at.

    Whoever connects is refused, and nobody else gets it.
    """
    nobody = socket.socket()
    nobody.bind(("127.0.0.1", 0))
    port: int = nobody.getsockname()[1]
    nobody.detach()
    return port


NOWHERE = f"tcp://127.0.0.1:{refused_port()}"
"""An endpoint where nobody listens."""

Result = subprocess.CompletedProcess[bytes]
Cli = Callable[..., Result]


def run(
    *words: str | bytes,
    input: bytes = b"",
    stdout: int | IO[bytes] = subprocess.PIPE,
    env: dict[str, str] | None = None,
) -> Result:
    """Run zkv-cli with ``words``; ``env`` is what it has beside what the tests have."""
    return run_forked(ZKV_CLI, words, input, stdout, env)


def run_in_bash(script: str, **env: str) -> Result:
    """Run a script in which zkv-cli is a command, perhaps many times."""
    define = f'zkv-cli() {{ {shlex.join(COMMAND)} "$@"; }}\n'
    return subprocess.run(
        ["bash", "-c", define + script], cwd=ROOT, env=environment() | env, capture_output=True,
        timeout=3 * LIMIT, check=False,
    )  # fmt: skip


def assert_fails(result: Result, status: int, *words: str) -> None:
    """Exit status ``status``, nothing printed, one line of complaint that holds ``words``."""
    complaint = result.stderr.decode()
    assert result.returncode == status, complaint
    assert result.stdout == b""
    assert re.fullmatch(r"zkv-cli: .+\n", complaint), complaint
    for word in words:
        assert word in complaint
