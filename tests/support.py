"""What tests of the running server share: a real server process, and a small raw client.

Nothing here waits for a time to pass. What is waited for is a line, a reply or an exit; the limits
are there only to turn a hang into a failure, and so they are generous.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import gc
import itertools
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any, BinaryIO, ClassVar, Final, Self

import msgpack
import pytest
import zmq

from zkv.broker.frames import PythonFrames
from zkv.config import build
from zkv.durability.files import Files
from zkv.keys import KeyPair
from zkv.log import AnyRecord, RequestRecord, RunRecord
from zkv.server import Event, Following, ServerCore

ROOT = Path(__file__).resolve().parent.parent
FREE_PORT = "tcp://127.0.0.1:*"
LIMIT = 20.0
"""Seconds after which anything counts as hung."""
MAX_IN_FLIGHT: Final = 256
"""Requests that a client may leave unanswered, by default."""

stuck_threads: list[str] = []
"""Threads that did not end: the interpreter would wait for them for ever."""

Frames = list[bytes]
Message = dict[Any, Any]


def pack(value: Any) -> bytes:
    """``value`` as msgpack; surrogates stand for bytes that are no UTF-8."""
    packed: bytes = msgpack.packb(value, unicode_errors="surrogateescape")
    return packed


def unpack(body: bytes) -> Any:
    """The one msgpack value in ``body``, whatever its keys."""
    return msgpack.unpackb(
        body, strict_map_key=False, unicode_errors="surrogateescape", timestamp=0
    )


def raw_fields(body: bytes) -> dict[str, bytes]:
    """The fields of a packed map, each as the bytes that it was packed in."""
    reader = msgpack.Unpacker(strict_map_key=False, max_buffer_size=0)
    reader.feed(body)
    fields = {}
    for _ in range(reader.read_map_header()):
        name = reader.unpack()
        begin = reader.tell()
        reader.skip()
        fields[name] = body[begin : reader.tell()]
    assert reader.tell() == len(body)
    return fields


def eventually(condition: Callable[[], object], what: str, limit: float = LIMIT) -> None:
    """Poll for something outside of this process that tells nobody when it happens."""
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"still not so after {limit:g} s: {what}")
        time.sleep(0.01)


def environment() -> dict[str, str]:
    """What a child process needs to run the code under test, wherever it runs."""
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "",
        "PYTHON_COLORS": "0",  # From 3.14 on argparse paints its usage, in terminals or by force.
    }


def zkv_command(*arguments: str) -> list[str]:
    """The command line of ``zkv``, with the interpreter that runs the tests."""
    return [sys.executable, "-W", "always::ResourceWarning", "-m", "zkv.cli.main", *arguments]


class _Ports:
    """Ports that no other test process is given, and no connection takes by itself.

    They lie below those that the system gives out (``ip_local_port_range``), in blocks. A process
    has one block for as long as it lives: it holds the block's first port for UDP.
    """

    BLOCK: Final = 250
    BLOCKS: Final = range(10_000, 32_500, BLOCK)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: socket.socket | None = None
        self._pid = 0
        self._following: Iterator[int] = iter(())

    def take(self) -> int:
        """The next port of the block that nobody listens at."""
        with self._lock:
            if self._pid != os.getpid():  # A forked process has the other's block in memory.
                self._hold()
            for port in itertools.islice(self._following, self.BLOCK):
                with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
                    return port
        raise AssertionError("each port of the block is in use")

    def _hold(self) -> None:
        for first in random.Random(os.getpid()).sample(self.BLOCKS, len(self.BLOCKS)):
            held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            try:
                held.bind(("127.0.0.1", first))
            except OSError:
                held.close()
                continue
            self._held, self._pid = held, os.getpid()
            self._following = itertools.cycle(range(first, first + self.BLOCK))
            return
        raise AssertionError("other processes hold all blocks of ports")


_ports = _Ports()


def children_of(process: int) -> list[int]:
    """The numbers of a process's children, of dead ones nobody has waited for, too."""
    children = Path(f"/proc/{process}/task/{process}/children")
    return [int(each) for each in children.read_text(encoding="ascii").split()]


def halt(process: subprocess.Popen[bytes]) -> None:
    """Have a process stand still (SIGSTOP). Its threads do so one after the other."""
    process.send_signal(signal.SIGSTOP)

    def states() -> set[str]:
        tasks = Path(f"/proc/{process.pid}/task").iterdir()
        return {(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks}

    eventually(lambda: states() == {"T"}, "all of its threads stand still")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at, and nobody else takes while this process lives."""
    return [_ports.take() for _ in range(count)]


def start_program(
    command: list[str], directory: Path, variables: dict[str, str], stderr: int | IO[bytes]
) -> subprocess.Popen[bytes]:
    """Start a program in a directory, with these variables, and a pipe to read what it prints."""
    return subprocess.Popen(
        command, cwd=directory, env=variables,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr,
    )  # fmt: skip


class ServerProcess:
    """A real ``zkv serve`` with a data directory of its own. Use as a context manager.

    It may be started again on the same data with `start`, after `stop`, `kill` or END.

    Args:
        directory: made if it is not there; holds the data, the config file and the log.
        *flags: further flags of ``zkv serve``; an ``--endpoint`` replaces the free port.
        config: the text of a config file.
        stderr: where the log goes instead of a file, as `subprocess.Popen` takes it.
        env: variables beside those of the tests.
        launcher: runs a command, in front of which it stands.
    """

    start_program: ClassVar = staticmethod(start_program)
    """Starts the process. What runs the tests has a quicker way: `tests.forking.start_server`."""

    def __init__(
        self,
        directory: Path,
        *flags: str,
        config: str | None = None,
        stderr: int | None = None,
        env: dict[str, str] | None = None,
        launcher: Iterable[str] = (),
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.data_dir = directory / "data"
        self.endpoints: list[str] = []
        self.process: subprocess.Popen[bytes]
        self._log_path = directory / "stderr.txt"
        self._stderr = stderr
        self._env = environment() | (env or {})
        arguments = ["serve", "--data-dir", str(self.data_dir), *flags]
        if "--endpoint" not in flags:
            arguments += ["--endpoint", FREE_PORT]
        if config is not None:
            path = directory / "config.toml"
            path.write_text(config, encoding="utf-8")
            arguments += ["--config", str(path)]
        self._command = [*launcher, *zkv_command(*arguments)]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def endpoint(self) -> str:
        """The first endpoint, with its real port."""
        return self.endpoints[0]

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    def start(self) -> None:
        """Start the process and wait for its READY line."""
        self.launch()
        self.await_ready()

    def launch(self) -> None:
        """Start the process."""
        with open(self._log_path, "ab") as log:
            stderr = log if self._stderr is None else self._stderr
            self.process = self.start_program(self._command, self.directory, self._env, stderr)

    def await_ready(self) -> None:
        """Wait for its READY line."""
        try:
            line = read_line(self._stdout)
            words = line.decode().split()
            assert words[:1] == ["READY"], f"{line!r} instead of READY; log:\n{self.log()[-2000:]}"
        except BaseException:
            self.kill()
            raise
        self.endpoints = words[1:]

    def log(self) -> str:
        """What the server has written to standard error, in all its starts."""
        return self._log_path.read_text(encoding="utf-8")

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for the process to end by itself; its exit status."""
        try:
            return self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.kill()
            tail = self.log()[-2000:]
            raise AssertionError(f"the server does not end; its log ends so:\n{tail}") from None
        finally:
            self._close_pipes()

    def stop(self) -> int:
        """Have the server end in order (SIGTERM); its exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """End the process at once (SIGKILL). Harmless when it has ended."""
        if self.running:
            self.process.kill()
            self.process.wait()
        self._close_pipes()

    def _close_pipes(self) -> None:
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    @property
    def _stdout(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout


def read_line(stream: IO[bytes], limit: float = LIMIT) -> bytes:
    """One line from a pipe; what there is of it where the pipe ends. Fails after ``limit``."""
    deadline = time.monotonic() + limit
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"no whole line within {limit:g} s, only {line!r}"
        byte = os.read(stream.fileno(), 1)
        if not byte:
            break
        line += byte
    return line


def curve_options(server_key: str, own: KeyPair | None = None) -> dict[int, int | bytes]:
    """The options of a socket for a server with this public key; without keys, it gets new ones."""
    public, secret = zmq.curve_keypair() if own is None else map(str.encode, own)
    return {
        zmq.CURVE_SERVERKEY: server_key.encode(),
        zmq.CURVE_PUBLICKEY: public,
        zmq.CURVE_SECRETKEY: secret,
    }


class NoReplyError(Exception):
    """No reply came in time."""


class Raw:
    """A client that sends whatever it is told to. Not to be shared by threads.

    Args:
        endpoint: of the server.
        kind: ``zmq.REQ`` or ``zmq.DEALER``. A DEALER's delimiter is added and taken off here.
        context: to make the socket in; one of its own if None.
        timeout: seconds that a reply may take.
        options: socket options to set before connecting.
    """

    def __init__(
        self,
        endpoint: str,
        kind: int = zmq.REQ,
        *,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
        timeout: float = LIMIT,
        options: dict[int, int | bytes] | None = None,
    ) -> None:
        self._context = zmq.Context() if context is None else context
        self._owns_context = context is None
        self.socket: zmq.Socket[bytes] = self._context.socket(kind)
        self.socket.linger = 0
        self.kind = kind
        self.timeout = timeout
        for option, value in (options or {}).items():
            self.socket.setsockopt(option, value)
        self.socket.connect(endpoint)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the socket and whatever waits in it. May be called again."""
        self.socket.close()
        if self._owns_context:
            self._context.term()

    def call(self, **fields: Any) -> Message:
        """Send a request of these fields and return its reply."""
        self.send(pack(fields))
        reply = unpack(self.receive())
        assert isinstance(reply, dict), reply
        return reply

    def ok(self, **fields: Any) -> Message:
        """`call` that must succeed."""
        reply = self.call(**fields)
        assert reply["ok"] is True, reply
        return reply

    def exchange(self, body: bytes) -> bytes:
        """Send a request body and return the reply's."""
        self.send(body)
        return self.receive()

    def send(self, body: bytes) -> None:
        """Send a request body, without waiting."""
        self.send_frames([body] if self.kind == zmq.REQ else [b"", body])

    def receive(self) -> bytes:
        """The next reply's body. Raises NoReplyError."""
        frames = self.receive_frames()
        if self.kind == zmq.DEALER:
            assert frames.pop(0) == b"", "a reply without a delimiter"
        (body,) = frames
        return body

    def send_frames(self, frames: Frames) -> None:
        """Send frames just as they are, without waiting."""
        self.socket.send_multipart(frames, zmq.NOBLOCK)

    def receive_frames(self) -> Frames:
        """The frames of the next message just as they come. Raises NoReplyError."""
        deadline = time.monotonic() + self.timeout
        while self.socket.poll(max(0, round((deadline - time.monotonic()) * 1000))):
            try:
                return self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                continue  # A REQ socket has dropped a reply that it does not wait for.
        raise NoReplyError(f"none within {self.timeout:g} s")


class Load:
    """Requests again and again, in a thread. Use as a context manager.

    Args:
        endpoint: where to send them.
        ask: sends some of them.
        pause: seconds between two calls of ``ask``.
    """

    def __init__(self, endpoint: str, ask: Callable[[Raw], None], pause: float = 0.0) -> None:
        self._endpoint = endpoint
        self._ask = ask
        self._pause = pause
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        with Raw(self._endpoint) as client:
            while not self._over.wait(self._pause):
                self._ask(client)


class BadDisk(Files):
    """A disk that is full as long as somebody wishes."""

    full = False

    def write(self, file: BinaryIO, data: bytes) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write(file, data)


class HeldFiles(Files):
    """A disk that is quick, until it is told that a sync takes as long as it likes."""

    def __init__(self) -> None:
        self.hold = threading.Event()
        self.held = threading.Event()
        self.release = threading.Event()

    def sync(self, file: BinaryIO) -> None:
        super().sync(file)
        if self.hold.is_set():
            self.held.set()
            assert self.release.wait(LIMIT)


def serve_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `ServerInProcess` neither run requests nor move messages in C."""
    monkeypatch.setattr("zkv.server.open_lane", lambda *_: None)
    monkeypatch.setattr("zkv.server.open_worker_lane", lambda *_: None)
    monkeypatch.setattr("zkv.broker.front.FRAMES", PythonFrames)
    monkeypatch.setattr("zkv.broker.broker.FRAMES", PythonFrames)


class ServerInProcess:
    """A server in this process, supervised by a thread, on a free port. Use as a context manager.

    Args:
        directory: of its data.
        files: the door to the file system.
        following: its primary, if it is a standby.
        **tables: settings, a table each: ``server={"workers": 1}``.
    """

    def __init__(
        self,
        directory: Path,
        files: Files | None = None,
        following: Following | None = None,
        **tables: dict[str, Any],
    ) -> None:
        settings = {
            "server": {"endpoints": [FREE_PORT], "feed": ""} | tables.pop("server", {}),
            "durability": {"data_dir": str(directory)} | tables.pop("durability", {}),
        } | tables
        self.records: list[RequestRecord] = []
        self.server = ServerCore(build(settings), self._record, files=files, following=following)
        self._outcome: Future[bool] = Future()
        self._thread = threading.Thread(target=self._supervise, name="supervisor")

    def _record(self, records: list[AnyRecord]) -> None:
        for record in records:
            self.records += record.requests() if isinstance(record, RunRecord) else [record]

    def __enter__(self) -> Self:
        self.server.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._outcome.done():
            self.stop()

    @property
    def endpoint(self) -> str:
        """The first endpoint, with its real port."""
        return self.server.endpoints[0]

    def stop(self) -> bool:
        """Have the server stop in order; what `ServerCore.wait` returned."""
        self.server.post(Event.STOP)
        return self.wait()

    def wait(self) -> bool:
        """Wait for the server to stop by itself; what `ServerCore.wait` returned."""
        try:
            went_well = self._outcome.result(LIMIT)
        except TimeoutError:
            faulthandler.dump_traceback(all_threads=True)
            stuck_threads.append(self._thread.name)
            raise AssertionError("the server does not stop") from None
        self._thread.join()
        return went_well

    def _supervise(self) -> None:
        try:
            self._outcome.set_result(self.server.wait())
        except BaseException as error:
            self._outcome.set_exception(error)


def terminate(context: zmq.Context[zmq.Socket[bytes]], limit: float = LIMIT) -> None:
    """End a context; fail, instead of waiting for ever, where a socket of it was left open."""
    thread = threading.Thread(target=context.term, daemon=True)
    thread.start()
    thread.join(limit)
    assert not thread.is_alive(), "a socket was left open: its context cannot be terminated"


def traced_memory(package: str) -> int:
    """Bytes that `tracemalloc` has seen allocated below ``package``, and that are still there.

    All that it has seen is more: Python's own tables, such as that of interned strings, grow by
    megabytes at once, when they are full of what other tests have left.
    """
    ours = tracemalloc.Filter(True, str(ROOT / package / "*"))
    snapshot = tracemalloc.take_snapshot().filter_traces([ours])
    return sum(each.size for each in snapshot.statistics("filename"))


@contextlib.contextmanager
def new_garbage() -> Iterator[Callable[[], list[object]]]:
    """Within, the collector does not run; tells what it would find that has come into being since.

    What other tests have left may come to its end at any moment, and is not meant; nor is it looked
    at, which would take seconds for all that a long run has left.
    """
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    gc.freeze()
    gc.set_debug(gc.DEBUG_SAVEALL)

    def find() -> list[object]:
        gc.collect()
        return list(gc.garbage)

    try:
        yield find
    finally:
        gc.set_debug(0)
        gc.garbage.clear()  # What is frozen stays so, like all that was there when tests began.
        if was_enabled:
            gc.enable()
