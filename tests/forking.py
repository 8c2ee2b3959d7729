"""Runs ``zkv`` and ``zkv-cli`` many times without starting Python as often.

Most of a start is imports. A process imports what every command of a program needs, and forks for
each command. The child has the arguments, working directory, variables and files of a process of
its own, and ends as one does. What a start depends on, such as the locale, asks for another such
process.
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
from pathlib import Path
from typing import IO, Final, NamedTuple

from tests.support import LIMIT, ROOT, environment

AT_THE_START: Final = ("LC_ALL", "PYTHONUTF8")
"""Variables that count only when Python starts."""

MOTHER: Final = """
import gc, importlib, json, os, socket, sys

number, name, *modules = sys.argv[1:]
main = [importlib.import_module(module) for module in modules][0].main

gc.collect()
gc.freeze()  # So that a child does not copy what it only looks at.

with socket.socket(fileno=int(number)) as channel:
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
            words, directory, variables = json.loads(message)
            os.chdir(directory)
            os.environ.clear()
            os.environ.update(variables)
            sys.argv = [name, *words]
            sys.exit(main())
        for file in files:
            os.close(file)
        _, status = os.waitpid(child, 0)
        channel.send(str(os.waitstatus_to_exitcode(status)).encode())
"""


class Program(NamedTuple):
    """A program that is forked.

    Args:
        name: as it calls itself.
        modules: to import before; the first one has the program's ``main``.
    """

    name: str
    modules: tuple[str, ...]


ZKV: Final = Program("zkv", ("zkv.cli.main", "zkv.cli.serving", "zkv.cli.doctor", "zkv.client"))
ZKV_CLI: Final = Program(
    "zkv-cli", ("zkv.cli.client", "zkv.cli.asking", "zkv.cli.completion", "zkv.client")
)


class Mother:
    """The process that forks."""

    def __init__(self, program: Program, variables: dict[str, str]) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "always::ResourceWarning", "-c", MOTHER,
                 str(theirs.fileno()), program.name, *program.modules],
                env=variables, cwd=ROOT,
                stdin=subprocess.PIPE,  # As those of its children: a stream knows if it can seek.
                pass_fds=[theirs.fileno()],
            )  # fmt: skip
        self._channel.settimeout(LIMIT)
        atexit.register(self._end)

    def run(
        self, words: list[str], directory: Path, variables: dict[str, str], files: list[int]
    ) -> int:
        """The exit status of a command whose standard streams are ``files``."""
        message = json.dumps([words, str(directory), variables]).encode()
        rights = array.array("i", files)
        self._channel.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        return int(self._channel.recv(100))

    def _end(self) -> None:
        self._channel.close()
        self._process.communicate()


_mothers: dict[tuple[object, ...], Mother] = {}


def run_forked(
    program: Program,
    words: tuple[str | bytes, ...],
    input: bytes = b"",
    stdout: int | IO[bytes] = subprocess.PIPE,
    env: dict[str, str] | None = None,
    cwd: Path = ROOT,
) -> subprocess.CompletedProcess[bytes]:
    """Run a program, as `subprocess.run` would. Standard input is a pipe."""
    variables = environment() | (env or {})
    kind = (program, *[variables.get(name) for name in AT_THE_START])
    if kind not in _mothers:
        _mothers[kind] = Mother(program, variables)
    arguments = [os.fsdecode(word) for word in words]
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        target = out.fileno()
        if stdout != subprocess.PIPE:
            target = stdout if isinstance(stdout, int) else stdout.fileno()
        writer = threading.Thread(target=_write, args=(writing, input))
        writer.start()
        try:
            status = _mothers[kind].run(arguments, cwd, variables, [reading, target, err.fileno()])
        finally:
            os.close(reading)
            writer.join()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(arguments, status, out.read(), err.read())


def run_zkv(
    *arguments: str, cwd: Path, input: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a ``zkv`` that is expected to end by itself."""
    done = run_forked(ZKV, arguments, input.encode(), env=env, cwd=cwd)
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def _write(pipe: int, data: bytes) -> None:
    try:
        with open(pipe, "wb") as file:
            file.write(data)
    except BrokenPipeError:
        pass  # The command needed no more.
