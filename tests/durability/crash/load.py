"""A load of several client processes on a server that may go away at any moment."""

from __future__ import annotations

import contextlib
import json
import os
import random
import selectors
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Self

from tests.durability.crash import history
from tests.durability.crash.history import Op, State, Version
from tests.durability.crash.load_client import Profile
from tests.support import LIMIT, Raw, ServerProcess, environment

MIXED: Final = {"PUT": 40, "MPUT": 15, "DELETE": 10, "MDELETE": 8, "GET": 18, "MGET": 9}
POLICIES: Final = ("always", "interval", "never")


def choose_seed() -> int:
    """A seed for a test; printed, so that it is shown when the test fails.

    To repeat a run: ``ZKV_CRASH_SEED=123``, or pytest's own ``--randomly-seed``.
    """
    given = os.environ.get("ZKV_CRASH_SEED")
    seed = random.getrandbits(32) if given is None else int(given)
    print(f"to repeat: ZKV_CRASH_SEED={seed}")
    return seed


class Load:
    """Client processes, one load after another. Use as a context manager.

    Args:
        directory: where histories go, a directory for each load.
        seed: of all choices.
        clients: how many processes.
        weights: how often each op is chosen.
        window: most requests in flight, of each client.
        rate: most requests in a second, of all clients together.
        value_bytes: the longest value.
        durable: the share of writes that ask to be on disk.
    """

    def __init__(
        self,
        directory: Path,
        seed: int,
        *,
        clients: int = 4,
        weights: dict[str, int] | None = None,
        window: int = 3,
        rate: float = 4000.0,
        value_bytes: int = 200,
        durable: float = 0.1,
    ) -> None:
        self._directory = directory
        self._loads = 0
        shared = [f"shared-{number}" for number in range(12)]
        self._profiles = [
            Profile(
                name=f"c{number}",
                seed=seed * 1000 + number,
                shared=shared,
                own=[f"own-{number}-{key}" for key in range(4)],
                weights=MIXED if weights is None else weights,
                window=window,
                rate=rate / clients,
                value_bytes=value_bytes,
                durable=durable,
            )
            for number in range(clients)
        ]
        self.keys = shared + [key for profile in self._profiles for key in profile.own]
        self._changed = threading.Condition()  # Guards the counters below.
        self._counts: dict[str, int] = {}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._reader = threading.Thread(target=self._read, name="load-reader")

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._end)
            for profile in self._profiles:
                argument = json.dumps(profile._asdict())
                process = subprocess.Popen(
                    [sys.executable, "-m", "tests.durability.crash.load_client", argument],
                    env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                )  # fmt: skip
                self._processes.append(process)
            self._reader.start()
            on_failure.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def go(self, endpoint: str) -> None:
        """Begin a load on the server at ``endpoint``."""
        self._loads += 1
        path = self._directory / f"history-{self._loads:03d}"
        path.mkdir(parents=True)
        with self._changed:
            self._counts = {}
        for profile, process in zip(self._profiles, self._processes, strict=True):
            _tell(process, f"go {endpoint} {path / profile.name}.jsonl")

    def count(self, mark: str) -> int:
        """How many writes of this load have been answered with ok (".") or refused ("x")."""
        with self._changed:
            return self._counts.get(mark, 0)

    def wait(self, count: int, mark: str = ".") -> None:
        """Wait until ``count`` writes of this load have been answered so."""
        with self._changed:
            arrived = self._changed.wait_for(lambda: self._counts.get(mark, 0) >= count, LIMIT)
            counts = dict(self._counts)
        assert arrived, f"no {count} {mark!r} after {LIMIT:g} s, only {counts}"

    def finish(self) -> list[Op]:
        """End the load once everything is answered; its history."""
        return self._stop("finish")

    def abandon(self) -> list[Op]:
        """End the load on a server that is gone; its history."""
        return self._stop("abandon")

    def read_state(self, endpoint: str) -> State:
        """Everything that a server holds under the load's keys, while nobody writes.

        Fails where it holds anything else.
        """
        with Raw(endpoint) as client:
            reply = client.ok(op="MGET", keys=self.keys)
            info = client.ok(op="INFO")
        found = zip(self.keys, reply["revs"], reply["values"], strict=True)
        entries = {key: Version(rev, value) for key, rev, value in found if rev}
        assert info["keys"] == len(entries), f"{info['keys']} keys, of which {sorted(entries)}"
        return State(info["rev"], entries)

    def _stop(self, command: str) -> list[Op]:
        for process in self._processes:
            _tell(process, command)
        self.wait(len(self._processes), "!")
        return history.load(self._files(self._loads))

    def _files(self, load: int) -> list[Path]:
        path = self._directory / f"history-{load:03d}"
        return [path / f"{profile.name}.jsonl" for profile in self._profiles]

    def _read(self) -> None:
        """Count what the clients say, until all of them have ended."""
        with selectors.DefaultSelector() as selector:
            for process in self._processes:
                assert process.stdout is not None
                selector.register(process.stdout, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select():
                    marks = os.read(key.fd, 65536)
                    if not marks:
                        selector.unregister(key.fileobj)
                    with self._changed:
                        for mark in marks.decode():
                            self._counts[mark] = self._counts.get(mark, 0) + 1
                        self._changed.notify_all()

    def _end(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        for process in self._processes:
            try:
                process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._reader.is_alive():
            self._reader.join()
        for process in self._processes:
            assert process.stdout is not None
            process.stdout.close()


class Server(ServerProcess):
    """A server process whose data directory, launcher and fate a crash test chooses.

    It does not outlive the test run, however that ends, where the system can see to that.

    Args:
        directory: made if it is not there; holds the config file and the log.
        *flags: further flags of ``zkv serve``.
        data_dir: where the data is; in ``directory`` if None.
        launcher: a command that runs the server's as its own (`env`, `strace -D`).
        **durability: settings of that table.
    """

    def __init__(
        self,
        directory: Path,
        *flags: str,
        data_dir: Path | None = None,
        launcher: Iterable[str] = (),
        **durability: Any,
    ) -> None:
        lines = [f"{name} = {json.dumps(value)}" for name, value in durability.items()]
        config = "\n".join(["[log]", "requests = false", "[durability]", *lines])
        chosen = () if data_dir is None else ("--data-dir", str(data_dir))
        before = list(launcher)
        if before and shutil.which("setpriv"):  # One that is forked is mortal already.
            before[:0] = ["setpriv", "--pdeathsig", "KILL"]
        super().__init__(directory, *chosen, *flags, config=config, launcher=before)
        self.data_dir = data_dir or self.data_dir

    def start_and_fail(self) -> tuple[int, str]:
        """Start a server that is expected to end by itself; its exit status and what it said."""
        done = subprocess.run(
            self._command, cwd=self.directory, env=environment(), capture_output=True, text=True,
            timeout=LIMIT, check=False,
        )  # fmt: skip
        assert not done.stdout, done.stdout
        return done.returncode, done.stderr


def _tell(process: subprocess.Popen[bytes], command: str) -> None:
    assert process.stdin is not None
    process.stdin.write(command.encode() + b"\n")
    process.stdin.flush()
