"""Runs ``zkv-cli`` many times without starting Python as often: most of a start is imports.

A process imports what every command needs, and forks for each command. The child has the arguments,
variables and files of a process of its own, and ends as one does. What a start depends on, such as
the locale, asks for another such process.
"""

from __future__ import annotations

import array
import atexit
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from typing import IO, Final

from tests.support import LIMIT, ROOT, environment

AT_THE_START: Final = ("LC_ALL", "PYTHONUTF8")
"""Variables that count only when Python starts."""
CHUNK: Final = 65536

MOTHER: Final = """
import gc, json, os, socket, sys

import zkv.cli.asking, zkv.cli.client, zkv.cli.completion, zkv.client

gc.collect()
gc.freeze()  # So that a child does not copy what it only looks at.

with socket.socket(fileno=int(sys.argv[1])) as channel:
    while True:
        message, files, _, _ = socket.recv_fds(channel, 1_000_000, 3)
        if not message:
            break
        child = os.fork()
        if child == 0:
            channel.close()
            for number, file in enumerate(files):
                os.dup2(file, number)
                os.close(file)
            words, variables = json.loads(message)
            os.environ.clear()
            os.environ.update(variables)
            sys.argv = ["zkv-cli", *words]
            sys.exit(zkv.cli.client.main())
        for file in files:
            os.close(file)
        _, status = os.waitpid(child, 0)
        channel.send(str(os.waitstatus_to_exitcode(status)).encode())
"""


class Mother:
    """The process that forks."""

    def __init__(self, variables: dict[str, str]) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", MOTHER, str(theirs.fileno())], env=variables, cwd=ROOT,
                stdin=subprocess.PIPE,  # As those of its children: a stream knows if it can seek.
                pass_fds=[theirs.fileno()],
            )  # fmt: skip
        self._channel.settimeout(LIMIT)
        atexit.register(self._end)

    def run(self, words: list[str], variables: dict[str, str], files: list[int]) -> int:
        """The exit status of a command whose standard streams are ``files``."""
        message = json.dumps([words, variables]).encode()
        rights = array.array("i", files)
        self._channel.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        return int(self._channel.recv(100))

    def _end(self) -> None:
        self._channel.close()
        self._process.communicate()


_mothers: dict[tuple[str | None, ...], Mother] = {}


def run_forked(
    words: tuple[str | bytes, ...],
    input: bytes,
    stdout: int | IO[bytes],
    env: dict[str, str] | None,
) -> subprocess.CompletedProcess[bytes]:
    """Run zkv-cli, as `subprocess.run` would. Standard input is a pipe."""
    variables = environment() | (env or {})
    at_the_start = tuple(variables.get(name) for name in AT_THE_START)
    if at_the_start not in _mothers:
        _mothers[at_the_start] = Mother(variables)
    arguments = [os.fsdecode(word) for word in words]
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        target = out.fileno()
        if stdout != subprocess.PIPE:
            target = stdout if isinstance(stdout, int) else stdout.fileno()
        writer = threading.Thread(target=_write, args=(writing, input))
        writer.start()
        try:
            status = _mothers[at_the_start].run(
                arguments, variables, [reading, target, err.fileno()]
            )
        finally:
            os.close(reading)
            writer.join()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(arguments, status, out.read(), err.read())


def _write(pipe: int, data: bytes) -> None:
    try:
        with open(pipe, "wb") as file:
            file.write(data)
    except BrokenPipeError:
        pass  # The command needed no more.
