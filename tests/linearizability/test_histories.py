"""Histories of many clients of a real server, which is killed now and then, are linearizable.

The clients share a few keys: registers (written blindly or by compare-and-swap), counters, and
pairs of keys that are written and read together. A request that is in flight when the server is
killed has an unknown outcome; or else it has a session, and is repeated until it is answered, and
then counts as one request that took that long.

A history that is not linearizable is kept in a file, whose path is printed; `checker.load` reads
it. Set ZKV_SEED to the seed that was printed for the same requests (not the same timing).
"""

from __future__ import annotations

import os
import random
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.linearizability.checker import Operation, UndecidedError, check, save
from tests.support import LIMIT, Message, Raw, ServerProcess, pack, unpack

Asked = dict[str, Any]

CONFIG = """
[durability]
snapshot_interval = 0.2
segment_bytes = 100_000

[limits]
session_window = 4

[log]
requests = false
"""
"""Snapshots and new segments often enough for each start to find all sorts of them."""

LOOK_MS = 20
"""How often who waits for a reply looks whether the server was killed."""

REGISTERS = ("r0", "r1")
COUNTERS = ("n0", "n1")
PAIRS = (("p0", "q0"), ("p1", "q1"))
KEYS = [*REGISTERS, *COUNTERS, *PAIRS[0], *PAIRS[1]]


class Life:
    """Where the server is, and how often it has been started; shared by all threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.number = 0
        self.ended: dict[int, int] = {}
        self._endpoint: str | None = None
        self._over = False
        self._answered = 0

    def begin(self, endpoint: str) -> None:
        with self._changed:
            self.number += 1
            self._endpoint = endpoint
            self._changed.notify_all()

    def end(self) -> None:
        """The server is dead. The next one has another port: what was sent to this one is lost."""
        with self._changed:
            self.ended[self.number] = time.monotonic_ns()
            self._endpoint = None

    def finish(self) -> None:
        """Have the clients stop."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    @property
    def over(self) -> bool:
        return self._over

    def where(self) -> tuple[int, str]:
        """The number of this start, and the endpoint; waits for it."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._endpoint, LIMIT), "the server is not back"
            assert self._endpoint is not None
            return self.number, self._endpoint

    def count(self) -> None:
        """One more request was answered."""
        with self._changed:
            self._answered += 1
            self._changed.notify_all()

    def wait_for_answers(self, number: int) -> None:
        """Wait until ``number`` more requests have been answered."""
        with self._changed:
            goal = self._answered + number
            assert self._changed.wait_for(lambda: self._answered >= goal, 3 * LIMIT), "stuck"


class LostError(Exception):
    """The server was killed before it answered."""


class Client(threading.Thread):
    """Sends one request after the other, and writes down what came of each."""

    def __init__(self, number: int, seed: int, life: Life, context: zmq.Context[Any]) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self.number = number
        self.history: list[Operation] = []
        self.error: BaseException | None = None
        self._random = random.Random(f"{seed} {number}")
        self._life = life
        self._zmq_context = context
        self._session = f"{seed}-{number}"
        self._seq = 0
        self._written = 0
        self._seen: dict[str, int] = {}
        self._raw: Raw | None = None
        self._raw_life = 0

    def run(self) -> None:
        try:
            while not self._life.over:
                self.do(self._choose())
        except BaseException as error:
            self.error = error
        finally:
            self.close()

    def close(self) -> None:
        if self._raw is not None:
            self._raw.close()
            self._raw = None

    def do(self, request: Asked) -> None:
        """Send a request, until it is answered if it has a session, and note what came of it."""
        called = time.monotonic_ns()
        reply = None
        while reply is None:
            try:
                reply = self._exchange(request)
            except LostError:
                if "session" not in request:
                    break
        ended = self._life.ended[self._raw_life] if reply is None else time.monotonic_ns()
        self.history.append(Operation(self.number, called, ended, request, reply))
        if reply is not None:
            assert reply["ok"] or reply["code"] in {"CONFLICT", "NOT_FOUND"}, (request, reply)
            self._note_revisions(request, reply)
            self._life.count()

    def _exchange(self, request: Asked) -> Message:
        life, endpoint = self._life.where()
        if self._raw is None or self._raw_life != life:
            self.close()
            self._raw = Raw(
                endpoint, self._random.choice([zmq.REQ, zmq.DEALER]), context=self._zmq_context
            )
            self._raw_life = life
        self._raw.send(pack(request))
        deadline = time.monotonic() + LIMIT
        while not self._raw.socket.poll(LOOK_MS):
            if self._life.number != life:
                raise LostError
            assert time.monotonic() < deadline, f"no reply to {request}"
        reply = unpack(self._raw.receive())
        assert isinstance(reply, dict)
        return reply

    def _note_revisions(self, request: Asked, reply: Message) -> None:
        if request["op"] == "MGET":
            self._seen |= dict(zip(request["keys"], reply["revs"], strict=True))
        elif "key" in request:
            gone = reply.get("code") == "NOT_FOUND" or request["op"] == "DELETE"
            self._seen[request["key"]] = 0 if gone else reply["rev"]
        elif reply["ok"]:
            for op, result in zip(request["ops"], reply["results"], strict=True):
                self._seen[op["key"]] = result["rev"]
        else:
            self._seen[reply["key"]] = reply["rev"]

    def _choose(self) -> Asked:
        pick = self._random
        request = pick.choice([self._on_register, self._on_counter, self._on_pair])()
        if request["op"] not in {"GET", "MGET"} and pick.random() < 0.5:
            self._seq += 1
            request |= {"session": self._session, "seq": self._seq}
        return request

    def _on_register(self) -> Asked:
        pick, key = self._random, self._random.choice(REGISTERS)
        seen = self._seen.get(key, 0)
        put = {"op": "PUT", "key": key, "value": self._new_value()}
        return pick.choice(
            [
                {"op": "GET", "key": key},
                {"op": "GET", "key": key},
                put,
                put | {"if_rev": seen},
                put | {"if_rev": seen},
                {"op": "DELETE", "key": key},
                {"op": "DELETE", "key": key, "if_rev": seen},
            ]
        )

    def _on_counter(self) -> Asked:
        pick, key = self._random, self._random.choice(COUNTERS)
        incr = {"op": "INCR", "key": key, "by": pick.choice([1, 1, 1, 10, -3])}
        return pick.choice([{"op": "GET", "key": key}, incr, incr])

    def _on_pair(self) -> Asked:
        pick, pair = self._random, self._random.choice(PAIRS)
        one, other = pair
        conditions = [[key, self._seen.get(key, 0)] for key in pair]
        value = self._new_value()
        puts = [{"op": "PUT", "key": key, "value": value} for key in pair]
        gets = [{"op": "GET", "key": key} for key in pair]
        move = [{"op": "INCR", "key": one, "by": 1}, {"op": "INCR", "key": other, "by": -1}]
        return pick.choice(
            [
                {"op": "MGET", "keys": list(pair)},
                {"op": "TXN", "ops": gets},
                {"op": "TXN", "ops": puts},
                {"op": "TXN", "ops": puts, "if": conditions},
                {"op": "TXN", "ops": move},
                {"op": "TXN", "ops": [gets[0], move[1]], "if": conditions[:1]},
                {"op": "TXN", "ops": [*move, *gets]},
            ]
        )

    def _new_value(self) -> int:
        """One that nobody has written before."""
        self._written += 1
        return self._written * 1_000_000 + self.number * 1_000


def record(
    server: ServerProcess, seed: int, clients: int, lives: int, each: int
) -> list[Operation]:
    """The history of some lives of a server, in each of which about ``each`` requests end."""
    life = Life()
    when = random.Random(seed)
    with zmq.Context() as context:
        threads = [Client(number, seed, life, context) for number in range(clients)]
        life.begin(server.endpoint)
        for thread in threads:
            thread.start()
        try:
            for _ in range(lives - 1):
                life.wait_for_answers(when.randrange(each // 2, each * 3 // 2))
                server.kill()
                life.end()
                server.start()
                life.begin(server.endpoint)
            life.wait_for_answers(each)
        finally:
            life.finish()
            for thread in threads:
                thread.join(2 * LIMIT)
        errors = [thread.error for thread in threads if thread.error is not None]
        assert not errors, errors[0]
        server.kill()
        server.start()
        life.begin(server.endpoint)
        last = Client(clients, seed, life, context)
        for key in KEYS:
            last.do({"op": "GET", "key": key})
        last.close()
    return [operation for thread in [*threads, last] for operation in thread.history]


def assert_linearizable(history: Sequence[Operation], seed: int) -> None:
    """Fail, with the history kept in a file, unless it is linearizable."""
    try:
        violation = check(history)
    except UndecidedError as error:
        raise AssertionError(f"seed {seed}, history kept as {keep(history, seed)}") from error
    if violation is not None:
        path = keep(history, seed)
        raise AssertionError(f"seed {seed}, history kept as {path}: {violation}")


def keep(history: Sequence[Operation], seed: int) -> Path:
    """Save a history where no later run will remove it."""
    path = Path(tempfile.gettempdir()) / f"zkv-history-{seed}-{os.getpid()}.jsonl"
    save(history, path)
    print(f"history kept as {path}")
    return path


def new_seed() -> int:
    """From ZKV_SEED, or another each time; printed."""
    seed = int(os.environ.get("ZKV_SEED") or random.SystemRandom().randrange(2**32))
    print(f"ZKV_SEED={seed}")
    return seed


def run(directory: Path, fsync: str, clients: int, lives: int, each: int) -> None:
    seed = new_seed()
    with ServerProcess(directory, "--fsync", fsync, config=CONFIG) as server:
        history = record(server, seed, clients, lives, each)
        complaints = [line for line in server.log().splitlines() if " ERROR " in line]
        assert not complaints, complaints[:5]
    assert_linearizable(history, seed)
    unknown = sum(operation.reply is None for operation in history)
    repeated = sum("replayed" in (operation.reply or {}) for operation in history)
    print(f"{len(history)} requests, {unknown} of unknown outcome, {repeated} replayed")
    assert len(history) > clients * lives
    assert unknown, "no request was in flight when the server was killed"


@pytest.mark.parametrize("fsync", ["always", "never"])
def test_what_clients_see_is_linearizable_although_the_server_is_killed(
    tmp_path: Path, fsync: str
) -> None:
    run(tmp_path / "server", fsync, clients=16, lives=4, each=700)


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("fsync", ["always", "interval", "never"])
def test_what_clients_see_is_linearizable_for_long(tmp_path: Path, fsync: str) -> None:
    for round_ in range(10):
        run(tmp_path / f"server {round_}", fsync, clients=24, lives=10, each=2_000)


def test_a_history_that_is_not_linearizable_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    planted = [
        Operation(0, 1, 2, {"op": "PUT", "key": "k", "value": 1}, {"ok": True, "rev": 1}),
        Operation(0, 3, 4, {"op": "GET", "key": "k"}, {"ok": False, "code": "NOT_FOUND"}),
    ]
    with pytest.raises(AssertionError, match="history kept as"):
        assert_linearizable(planted, 12345)
    path = Path(capsys.readouterr().out.split()[-1])
    assert path.is_file()
    path.unlink()
