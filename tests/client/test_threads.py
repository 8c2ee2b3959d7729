"""One client in many threads, in forked processes, and at the end of a process."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zmq

from tests.peer import Peer, reply
from tests.support import (
    LIMIT,
    ROOT,
    ServerInProcess,
    ServerProcess,
    environment,
    eventually,
    read_line,
)
from zkv import Client, ClosedError, NoReplyError
from zkv.client.connection import Connection
from zkv.client.pool import MOST_CONNECTIONS
from zkv.client.retry import Attempts

THREADS = 200


def descriptors() -> int:
    return len(os.listdir("/dev/fd"))


def run(code: str, endpoint: str, limit: float = LIMIT) -> subprocess.CompletedProcess[str]:
    """Run a program, with the endpoint as its argument, that has to end by itself."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, endpoint], env=environment(), cwd=ROOT,
        capture_output=True, text=True, timeout=limit, check=False,
    )  # fmt: skip


def test_two_hundred_threads_share_a_client(near: ServerInProcess) -> None:
    rounds, together = 10, threading.Barrier(THREADS)

    def work(number: int) -> list[int]:
        together.wait()
        counted = []
        for done in range(rounds):
            counted.append(kv.incr("all"))
            assert kv.incr(f"own/{number}") == done + 1
            assert kv.get(f"own/{number}") == done + 1
        return counted

    before = descriptors()
    with Client(near.endpoint, 3 * LIMIT) as kv, ThreadPoolExecutor(THREADS) as pool:
        counts = list(pool.map(work, range(THREADS)))
        # Of each connection: two sockets of ZeroMQ's, one of the system's, and that of the server.
        assert descriptors() <= before + 6 * MOST_CONNECTIONS

    assert sorted(itertools.chain(*counts)) == list(range(1, rounds * THREADS + 1))
    eventually(lambda: descriptors() <= before + 8, "closed connections")


def test_threads_take_turns(near: ServerInProcess) -> None:
    counts = [0] * THREADS

    def work(number: int) -> None:
        while min(counts) < 10:
            kv.get("k")
            counts[number] += 1

    with Client(near.endpoint, 3 * LIMIT) as kv, ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))

    assert max(counts) < 500


def test_one_thread_needs_one_connection(near: ServerInProcess) -> None:
    with Client(near.endpoint) as kv:
        kv["a"] = 1
        before = descriptors()
        for _ in range(100):
            kv["a"] = kv["a"]

        assert descriptors() <= before


def test_an_interrupted_look_at_a_connection_costs_no_place(
    near: ServerInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> bool:
        raise KeyboardInterrupt

    with Client(near.endpoint, LIMIT) as kv:
        for count in range(1, MOST_CONNECTIONS + 2):
            assert kv.incr("n") == count
            with monkeypatch.context() as patch:
                patch.setattr(Connection, "is_usable", interrupt)
                with pytest.raises(KeyboardInterrupt):
                    kv.incr("n")


def test_threads_that_wait_for_a_connection_give_up_in_time(router: zmq.Socket[bytes]) -> None:
    with (
        Client(str(router.get_string(zmq.LAST_ENDPOINT)), 0.5) as kv,
        ThreadPoolExecutor(2 * MOST_CONNECTIONS) as pool,
    ):
        errors = list(pool.map(lambda _: fails(kv), range(2 * MOST_CONNECTIONS)))

    assert len(errors) == 2 * MOST_CONNECTIONS


def fails(kv: Client) -> NoReplyError:
    with pytest.raises(NoReplyError) as caught:
        kv.incr("n")
    return caught.value


def test_a_request_whose_time_is_up_before_it_is_sent_does_not_wait(
    router: zmq.Socket[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For libzmq -1 ms means no limit."""
    patience, calls = Attempts.patience, itertools.count()
    monkeypatch.setattr(
        Attempts, "patience", lambda self: patience(self) if next(calls) else -0.0015
    )
    with Client(str(router.get_string(zmq.LAST_ENDPOINT)), 0.2) as kv:
        fails(kv)


def test_closing_lets_requests_under_way_end_well() -> None:
    asked, answer = threading.Event(), threading.Event()

    def hold(request: dict[str, object]) -> list[list[bytes]]:
        asked.set()
        assert answer.wait(LIMIT)
        return reply(ok=True, value=7)(request)

    with (
        Peer(hold) as peer,
        Client(peer.endpoint, LIMIT) as kv,
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(kv.incr, "n")
        assert asked.wait(LIMIT)
        kv.close()
        with pytest.raises(ClosedError):
            kv.incr("n")
        answer.set()

        assert waiting.result(LIMIT) == 7


@pytest.mark.parametrize("times", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_timeouts_leave_no_file_descriptors_behind(free_endpoint: str, times: int) -> None:
    with Client(free_endpoint, 0.001) as kv:
        fails(kv)  # The first one also starts ZeroMQ.
        before, most = descriptors(), 0
        for _ in range(times):
            fails(kv)
            most = max(most, descriptors())

        # ZeroMQ closes them in a thread of its own, a little later.
        eventually(lambda: descriptors() <= before, "as many descriptors as before")
        assert most < before + 100


FORK = """
import os, sys, warnings
from zkv import Client
warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks beside any thread.
kv = Client(sys.argv[1], 20)
kv["who"] = "parent"
child = os.fork()
for _ in range(50):
    kv.incr("n")
kv[f"done/{child == 0}"] = True
kv.close()
if child:
    _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_forked_process_goes_on_with_connections_of_its_own(server: ServerProcess) -> None:
    done = run(FORK, server.endpoint)

    assert (done.returncode, done.stderr) == (0, "")
    with Client(server.endpoint) as kv:
        assert dict(kv) == {"who": "parent", "n": 100, "done/True": True, "done/False": True}
        assert kv.info()["stats"]["sessions"]["sessions"] == 2


HANGING = """
import sys, zkv
kv = zkv.Client(sys.argv[1], 0.1)
try:
    kv["a"] = 1
except zkv.UnavailableError as error:
    print(error.applied)
"""

HANGING_ASYNC = """
import asyncio, sys, zkv
kv = zkv.AsyncClient(sys.argv[1], 0.1)
async def main():
    for _ in range(3):
        asyncio.ensure_future(kv.put("b", 1))
    try:
        await kv.put("a", 1)
    except zkv.UnavailableError as error:
        print(error.applied)
    finally:
        await kv.aclose()
asyncio.run(main())
"""

IN_A_THREAD = """
import sys, threading, zkv
kv = zkv.Client(sys.argv[1], 60)
threading.Thread(target=kv.get, args=["a"], daemon=True).start()
print(False)
"""


@pytest.mark.parametrize("code", [HANGING, HANGING_ASYNC, IN_A_THREAD])
def test_nothing_hangs_at_the_end_of_a_process(free_endpoint: str, code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code, free_endpoint], env=environment(), cwd=ROOT,
        capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


INTERRUPTED = """
import sys, zkv
kv = zkv.Client(sys.argv[1], 60)
try:
    print("READY", flush=True)
    kv.get("a")
except KeyboardInterrupt:
    print("interrupted", flush=True)
kv.timeout = 0.01
try:
    kv.get("a")
except zkv.NoReplyError:
    print("usable", flush=True)
"""


def test_ctrl_c_ends_the_wait_and_leaves_the_client_usable(free_endpoint: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, free_endpoint], env=environment(), cwd=ROOT,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert read_line(process.stdout) == b"READY\n"
        process.send_signal(signal.SIGINT)
        assert read_line(process.stdout) == b"interrupted\n"
        assert read_line(process.stdout) == b"usable\n"
        assert process.wait(LIMIT) == 0


def test_sessions_stay_few_whatever_the_threads(near: ServerInProcess) -> None:
    with Client(near.endpoint, 3 * LIMIT) as kv, ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda _: kv.incr("n"), range(2_000)))

        assert kv["n"] == 2_000
        assert kv.info()["stats"]["sessions"]["sessions"] <= MOST_CONNECTIONS


def test_unix_sockets_do_as_well(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/zkv.sock"
    with (
        ServerInProcess(tmp_path / "data", server={"endpoints": [endpoint]}),
        Client(endpoint) as kv,
    ):
        kv["a"] = 1

        assert dict(kv) == {"a": 1}
