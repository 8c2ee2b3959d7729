"""Runs ``zkv`` and ``zkv-cli`` many times without starting Python as often.

Most of a start is imports. A process imports what every command of a program needs, and forks for
each command and each server. The child has the arguments, working directory, variables and files
of a process of its own, and ends as one does; it ends too when the tests do. What a start depends
on, such as the locale, asks for another such process.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, Final, NamedTuple

from tests.support import LIMIT, ROOT, environment, start_program, zkv_command

AT_THE_START: Final = ("GLIBC_", "LANG", "LC_", "LD_", "MALLOC_", "PYTHON", "TZ")
"""How variables begin that count only when Python starts."""

MOTHER: Final = """
import ctypes, gc, importlib, json, os, signal, socket, sys

number, name, *modules = sys.argv[1:]
main = [importlib.import_module(module) for module in modules][0].main
prctl = getattr(ctypes.CDLL(None), "prctl", lambda *_: 0)
PR_SET_PDEATHSIG = 1

gc.collect()
gc.freeze()  # So that a child does not copy what it only looks at.

with socket.socket(fileno=int(number)) as channel:
    while True:
        message, files, _, _ = socket.recv_fds(channel, 1_000_000, 4)
        if not message:
            break
        task = json.loads(message)
        if isinstance(task, int):
            _, status = os.waitpid(task, 0)
            channel.send(str(os.waitstatus_to_exitcode(status)).encode())
            continue
        child = os.fork()
        if child == 0:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            channel.close()
            *files, _ = files  # The last one is open for as long as the child lives.
            for number, file in enumerate(files):
                os.dup2(file, number)
                os.close(file)
            words, directory, variables = task
            os.chdir(directory)
            os.environ.clear()
            os.environ.update(variables)
            sys.argv = [name, *words]
            sys.exit(main())
        for file in files:
            os.close(file)
        channel.send(str(child).encode())
"""


class Program(NamedTuple):
    """A program that is forked.

    Args:
        name: as it calls itself.
        modules: to import before; the first one has the program's ``main``.
    """

    name: str
    modules: tuple[str, ...]


ZKV: Final = Program(
    "zkv",
    ("zkv.cli.main", "zkv.cli.serving", "zkv.cli.doctor", "zkv.client", "zkv.collector",
     "zkv.server"),
)  # fmt: skip
ZKV_CLI: Final = Program(
    "zkv-cli", ("zkv.cli.client", "zkv.cli.asking", "zkv.cli.completion", "zkv.client")
)
ZKV_BENCH: Final = Program("zkv-bench", ("zkv.bench.main",))


class Task(NamedTuple):
    """A command.

    Args:
        words: its arguments, without the name of the program.
        directory: its working directory.
        variables: its environment.
    """

    words: list[str]
    directory: Path
    variables: dict[str, str]


class Mother:
    """The process that forks."""

    def __init__(self, program: Program, variables: dict[str, str]) -> None:
        self._lock = threading.Lock()  # Guards the channel: one call at a time.
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

    def fork(self, task: Task, files: list[int]) -> int:
        """Start a command; the number of its process.

        Args:
            task: the command.
            files: its standard streams, and one to hold until it ends.
        """
        return self._call([task.words, str(task.directory), task.variables], files)

    def reap(self, process: int) -> int:
        """Wait for a process; its exit status."""
        return self._call(process, [])

    def _call(self, task: object, files: list[int]) -> int:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]
        with self._lock:
            self._channel.sendmsg([json.dumps(task).encode()], rights if files else [])
            return int(self._channel.recv(100))

    def _end(self) -> None:
        self._channel.close()
        self._process.communicate()


class Forked(subprocess.Popen[bytes]):
    """A process that was forked, to be used like one that `subprocess` has started.

    Args:
        mother: its parent.
        task: what it runs.
        stdin: a file.
        stdout, stderr: files or `subprocess.PIPE`.
    """

    def __init__(  # The base's would start a program: it is not called.
        self,
        mother: Mother,
        task: Task,
        stdin: int | IO[bytes],
        stdout: int | IO[bytes],
        stderr: int | IO[bytes],
    ) -> None:
        self.args = task.words
        self.returncode: int | None = None
        self.stdin = None
        self._mother = mother
        self._reaping = threading.Lock()  # Guards returncode: a process is waited for once.
        self._alive, held = os.pipe()
        with contextlib.ExitStack() as theirs:
            theirs.callback(os.close, held)
            self.stdout, out = _stream(stdout, theirs)
            self.stderr, err = _stream(stderr, theirs)
            self.pid = mother.fork(task, [_number(stdin), out, err, held])

    def __del__(self) -> None:
        if self.returncode is None:
            os.close(self._alive)

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""
        try:
            return self.wait(0.0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; its exit status. Raises TimeoutExpired."""
        with self._reaping:
            if self.returncode is None:
                ended = select.poll()
                ended.register(self._alive)
                if not ended.poll(None if timeout is None else timeout * 1000):
                    raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
                self.returncode = self._mother.reap(self.pid)
                os.close(self._alive)
            return self.returncode


def _number(file: int | IO[bytes]) -> int:
    return file if isinstance(file, int) else file.fileno()


def _stream(target: int | IO[bytes], theirs: contextlib.ExitStack) -> tuple[IO[bytes] | None, int]:
    """Our end of a stream, if it is a pipe, and the child's."""
    if target != subprocess.PIPE:
        return None, _number(target)
    reading, writing = os.pipe()
    theirs.callback(os.close, writing)
    return open(reading, "rb"), writing


_mothers: dict[object, Mother] = {}
_making: Final = threading.Lock()
"""Guards ``_mothers``."""


def mother_of(program: Program, variables: dict[str, str]) -> Mother:
    """The process that forks for commands of this program with these variables."""
    at_the_start = [item for item in variables.items() if item[0].startswith(AT_THE_START)]
    kind = (program, *sorted(at_the_start))
    with _making:
        if kind not in _mothers:
            _mothers[kind] = Mother(program, variables)
        return _mothers[kind]


def start_server(
    command: list[str], directory: Path, variables: dict[str, str], stderr: int | IO[bytes]
) -> subprocess.Popen[bytes]:
    """Start what a `tests.support.ServerProcess` is: forked, unless by another program."""
    usual = zkv_command()
    if command[: len(usual)] != usual:
        return start_program(command, directory, variables, stderr)
    task = Task(command[len(usual) :], directory, variables)
    with open(os.devnull, "rb") as nothing:
        return Forked(mother_of(ZKV, variables), task, nothing, subprocess.PIPE, stderr)


def run_forked(
    program: Program,
    words: tuple[str | bytes, ...],
    input: bytes = b"",
    stdout: int | IO[bytes] = subprocess.PIPE,
    env: dict[str, str] | None = None,
    cwd: Path = ROOT,
) -> subprocess.CompletedProcess[bytes]:
    """Run a program, as `subprocess.run` would. Standard input is a pipe."""
    task = Task([os.fsdecode(word) for word in words], cwd, environment() | (env or {}))
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        target = out if stdout == subprocess.PIPE else stdout
        writer = threading.Thread(target=_write, args=(writing, input))
        writer.start()
        try:
            child = Forked(mother_of(program, task.variables), task, reading, target, err)
        finally:
            os.close(reading)
        try:
            status = child.wait(2 * LIMIT)
        finally:
            child.kill()
            writer.join()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(task.words, status, out.read(), err.read())


def run_zkv(
    *arguments: str,
    cwd: Path = ROOT,
    input: str = "",
    env: dict[str, str] | None = None,
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
