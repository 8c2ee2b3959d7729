"""A server inside a program: `zkv.Server`, and the fixtures of `zkv.testing`."""

from __future__ import annotations

import logging
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import zmq

import zkv
from tests.forking import run_zkv
from tests.support import LIMIT, ROOT, Raw, environment, eventually, pack, unpack
from zkv import config
from zkv.broker import sockets
from zkv.errors import (
    ConfigError,
    EndpointError,
    LockedError,
    ServerFailedError,
    StartupError,
)

FREE_PORT = "tcp://127.0.0.1:*"


def connect(server: zkv.Server) -> Raw:
    """A client in the same process, and so in the same ZeroMQ context."""
    return Raw(server.endpoint, context=zmq.Context.instance())


@pytest.fixture(params=["inproc", "ipc", "tcp"])
def endpoint(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return {
        "inproc": "inproc://a-store",
        "ipc": f"ipc://{tmp_path}/zkv.ipc",
        "tcp": FREE_PORT,
    }[request.param]


@pytest.fixture(autouse=True)
def _nothing_left_over() -> Iterator[None]:
    """No thread, and no descriptor but those of ZeroMQ's shared context, outlives a server."""
    zmq.Context.instance().socket(zmq.REQ).close()  # Makes the context's own threads and files.
    run_zkv("--version", cwd=ROOT)  # Starts the process that forks it, whose pipes stay.
    threads = set(threading.enumerate())
    files = open_files()
    yield
    assert set(threading.enumerate()) <= threads
    eventually(lambda: open_files() <= files, "all sockets are closed")  # Closed by its threads.


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- Where it listens, what it keeps ---------------------------------------------------------


@pytest.mark.parametrize("lasting", [False, True], ids=["memory", "durable"])
def test_it_serves_and_publishes_at_every_kind_of_endpoint(
    endpoint: str, lasting: bool, tmp_path: Path
) -> None:
    data_dir = tmp_path / "data" if lasting else None
    with zkv.Server(endpoint, data_dir=data_dir) as server, connect(server) as client:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        with context.socket(zmq.SUB) as follower:
            follower.linger = 0
            follower.rcvtimeo = round(LIMIT * 1000)
            follower.subscribe(b"")
            assert server.feed is not None
            follower.connect(server.feed)
            assert follower.recv_multipart()[0] == b"\0", "a heartbeat: it has joined"
            assert client.ok(op="PUT", key="k", value=[1]) == {
                "ok": True, "rev": 1, "durable": lasting,
            }  # fmt: skip
            assert client.ok(op="GET", key="k")["value"] == [1]
            change = follower.recv_multipart()
            while change[0] == b"\0":
                change = follower.recv_multipart()
            assert unpack(change[1])["rev"] == 1
        assert client.ok(op="INFO")["endpoints"] == server.endpoints == [server.endpoint]


def test_without_arguments_it_is_found_in_this_process_alone() -> None:
    with zkv.Server() as one, zkv.Server() as other:
        assert one.endpoint.startswith("inproc://")
        assert one.endpoint != other.endpoint
        with connect(one) as client, connect(other) as stranger:
            client.ok(op="PUT", key="k", value=1)
            assert stranger.call(op="GET", key="k")["code"] == "NOT_FOUND"


def test_in_memory_alone_no_file_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with zkv.Server() as server, connect(server) as client:
        for number in range(100):
            client.ok(op="PUT", key=str(number), value=number)
        client.ok(op="END")
        assert server.wait(LIMIT)
    assert list(tmp_path.iterdir()) == []


def test_in_memory_alone_nothing_claims_to_be_on_disk() -> None:
    with zkv.Server(feed="") as server, connect(server) as client:
        assert client.ok(op="PUT", key="k", value=1)["durable"] is False
        for request in ({"op": "PUT", "key": "k", "value": 2, "durable": True}, {"op": "SNAPSHOT"}):
            refused = client.call(**request)
            assert (refused["code"], refused["retry"]) == ("BAD_REQUEST", False)
            assert "memory" in refused["message"]
        assert client.ok(op="GET", key="k", durable=True)["value"] == 1
        info = client.ok(op="INFO")
        assert (info["durability"], info["durable_rev"]) == ({"data_dir": None}, 0)
        assert info["feed"] is None
        assert server.feed is None


def test_in_memory_alone_it_remembers_and_expires_like_any_other() -> None:
    with zkv.Server() as server, connect(server) as client:
        once = {"op": "INCR", "key": "n", "session": "s", "seq": 1}
        assert client.ok(**once)["value"] == 1
        repeat = client.ok(**once)
        assert (repeat["value"], repeat["replayed"], repeat["durable"]) == (1, True, False)
        client.ok(op="PUT", key="short", value=1, ttl=0.001)
        eventually(lambda: client.ok(op="INFO")["rev"] == 3, "its removal has a revision")
        changes = client.ok(op="CHANGES", since=0)["changes"]
        assert [change[:3] for change in changes] == [
            [1, "PUT", "n"], [2, "PUT", "short"], [3, "EXPIRE", "short"],
        ]  # fmt: skip


@pytest.mark.parametrize("fsync", ["always", "interval", "never"])
def test_with_a_directory_everything_is_there_again(tmp_path: Path, fsync: Any) -> None:
    data_dir = tmp_path / "data"
    with zkv.Server(data_dir=data_dir, fsync=fsync) as server, connect(server) as client:
        assert client.ok(op="PUT", key="k", value=1)["durable"] is (fsync == "always")
        assert client.ok(op="PUT", key="k", value=2, durable=True)["durable"] is True
        assert client.ok(op="INFO")["durability"]["fsync"] == fsync
    assert "revision 2" in run_zkv("check", str(data_dir), cwd=tmp_path).stdout
    with zkv.Server(data_dir=os.fspath(data_dir)) as server, connect(server) as client:
        assert client.ok(op="GET", key="k") == {"ok": True, "value": 2, "rev": 2}


def test_clients_outside_of_the_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zkv.cli.client", "-e"]
    with zkv.Server("inproc://inside", FREE_PORT) as server, connect(server) as client:
        client.ok(op="PUT", key="k", value="inside")
        done = subprocess.run(
            [*command, server.endpoints[1], "get", "k"],
            env=environment(), cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout == "inside\n"


# --- Settings --------------------------------------------------------------------------------


def test_settings_have_the_names_of_the_file() -> None:
    with (
        zkv.Server(max_value_bytes=100, session_window=7, history=3, workers=3) as server,
        connect(server) as client,
    ):
        info = client.ok(op="INFO")
        limits = info["limits"]
        assert (limits["max_value_bytes"], limits["session_window"], limits["history"]) == (
            100, 7, 3,
        )  # fmt: skip
        assert info["stats"]["workers"] == 3
        assert client.call(op="PUT", key="k", value=bytes(200))["code"] == "TOO_LARGE"


def test_no_name_stands_in_two_tables() -> None:
    tables = (config.ServerSettings, config.DurabilitySettings, config.LimitSettings)
    names = [name for table in tables for name in table.__struct_fields__]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("arguments", "settings", "culprit"),
    [
        ((), {"max_vlaue_bytes": 1}, "max_vlaue_bytes"),
        ((), {"history": -1}, "history"),
        ((), {"fsync": "sometimes"}, "fsync"),
        ((), {"data_dir": ""}, "data_dir"),
        ((), {"data_dir": "/tmp/\udcff"}, "not UTF-8"),
        ((), {"level": "DEBUG"}, "level"),
        (("localhost:5555",), {}, "localhost:5555"),
        ((), {"feed": "nowhere"}, "nowhere"),
    ],
)
def test_a_bad_setting_is_told_at_once(
    arguments: tuple[str, ...], settings: dict[str, Any], culprit: str
) -> None:
    with pytest.raises(ConfigError, match=culprit):
        zkv.Server(*arguments, **settings)


# --- Start and stop --------------------------------------------------------------------------


def is_stopped(server: zkv.Server) -> bool:
    """Not `not server.running`: mypy would take that for so from then on."""
    return not server.running


def test_it_may_be_stopped_and_started_again_at_the_same_place(
    endpoint: str, tmp_path: Path
) -> None:
    server = zkv.Server(endpoint, data_dir=tmp_path / "data")
    assert server.wait()
    server.stop()
    places = []
    for number in range(3):
        assert is_stopped(server)
        server.start()
        assert server.running
        places.append((server.endpoint, server.feed))
        with connect(server) as client:
            assert client.ok(op="INCR", key="n")["value"] == number + 1
        server.stop()
        server.stop()
    assert len(set(places)) == 1


def test_started_twice() -> None:
    with zkv.Server() as server:
        with pytest.raises(RuntimeError, match="running already"):
            server.start()
        with connect(server) as client:
            client.ok(op="PING")


def test_started_stopped_and_used_by_many_threads(tmp_path: Path) -> None:
    def live(number: int) -> list[int]:
        with (
            zkv.Server(data_dir=tmp_path / str(number % 8) if number < 8 else None) as server,
            connect(server) as client,
        ):
            return [client.ok(op="INCR", key="n")["value"] for _ in range(20)]

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(live, range(32))) == [list(range(1, 21))] * 32


def test_stopped_by_many_threads_at_once() -> None:
    with zkv.Server() as server, ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(server.stop) for _ in range(8)]:
            done.result(LIMIT)
        assert server.wait()


def test_started_in_one_thread_and_stopped_in_another() -> None:
    server = zkv.Server()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(server.start).result(LIMIT)
    with connect(server) as client:
        client.ok(op="PING")
    server.stop()


def test_a_client_ends_it() -> None:
    with zkv.Server() as server:
        assert not server.wait(0)
        with connect(server) as client:
            assert client.ok(op="END")["rev"] == 0
        assert server.wait(LIMIT)
        assert not server.running


def test_an_error_in_the_block_stays_what_it_is(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with (  # noqa: PT012  all of it is what is tested
        pytest.raises(ZeroDivisionError),
        zkv.Server(data_dir=data_dir) as server,
        connect(server) as client,
    ):
        client.ok(op="PUT", key="k", value=1)
        raise ZeroDivisionError
    with zkv.Server(data_dir=data_dir) as server, connect(server) as client:
        assert client.ok(op="GET", key="k")["value"] == 1


def test_what_cannot_be_saved_is_told(tmp_path: Path) -> None:
    server = zkv.Server(data_dir=tmp_path / "data")
    with pytest.raises(ServerFailedError), server, connect(server) as client:  # noqa: PT012
        client.ok(op="PUT", key="k", value=1)
        (tmp_path / "data").rename(tmp_path / "elsewhere")
    with pytest.raises(ServerFailedError):
        server.wait()
    assert not server.running


def test_what_cannot_be_saved_does_not_hide_an_error(tmp_path: Path) -> None:
    server = zkv.Server(data_dir=tmp_path / "data")
    with (  # noqa: PT012
        pytest.raises(ZeroDivisionError) as raised,
        server,
        connect(server) as client,
    ):
        client.ok(op="PUT", key="k", value=1)
        (tmp_path / "data").rename(tmp_path / "elsewhere")
        raise ZeroDivisionError
    assert "did not save" in raised.value.__notes__[0]


def test_requests_on_their_way_are_answered_before_it_stops() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    with zkv.Server() as server, Raw(server.endpoint, zmq.DEALER, context=context) as client:
        for number in range(500):  # Each has arrived as soon as it is sent: inproc.
            client.send(pack({"op": "INCR", "key": "n", "id": number}))
        server.stop()
        replies = [unpack(client.receive()) for _ in range(500)]
    assert [reply["id"] for reply in replies] == list(range(500))
    done = [reply for reply in replies if reply["ok"]]
    assert [reply["value"] for reply in done] == list(range(1, len(done) + 1))
    assert {reply["code"] for reply in replies[len(done) :]} <= {"SHUTTING_DOWN"}


@pytest.mark.parametrize("what", ["endpoint", "feed", "directory"])
def test_what_is_taken_is_refused_and_nothing_is_left(tmp_path: Path, what: str) -> None:
    with zkv.Server(FREE_PORT, data_dir=tmp_path / "data") as server:
        assert server.feed is not None
        others: dict[str, tuple[zkv.Server, type[StartupError]]] = {
            "endpoint": (
                zkv.Server(server.endpoint, data_dir=tmp_path / "new", feed=""),
                EndpointError,
            ),
            "feed": (zkv.Server(data_dir=tmp_path / "new", feed=server.feed), EndpointError),
            "directory": (zkv.Server(data_dir=tmp_path / "data"), LockedError),
        }
        other, error = others[what]
        for _ in range(2):
            with pytest.raises(error):
                other.start()
            assert not other.running
        assert not (tmp_path / "new").exists()


def test_an_inproc_name_is_taken_once_and_free_again_at_once() -> None:
    for number in range(30):
        with zkv.Server("inproc://once", feed="inproc://once-feed") as server:
            with pytest.raises(EndpointError, match="in use"):
                zkv.Server("inproc://once", feed="").start()
            with connect(server) as client:
                client.ok(op="PUT", key="k", value=number)


def test_an_inproc_name_is_free_as_soon_as_its_socket_is_closed() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    for _ in range(300):
        socket = context.socket(zmq.ROUTER)
        sockets.bind(socket, "inproc://once", "server.feed")
        sockets.close(socket, ["inproc://once"])


# --- A good guest ----------------------------------------------------------------------------


def test_signals_logging_and_limits_stay_as_they_were() -> None:
    def state() -> tuple[object, ...]:
        root = logging.getLogger()
        handlers = [signal.getsignal(number) for number in signal.valid_signals()]
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        return handlers, list(root.handlers), root.level, limit

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most - 1, most))  # There is something to raise.

    before = state()
    with zkv.Server():
        assert state() == before
    assert state() == before


def run_program(text: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", text], env=environment(), cwd=directory,
        capture_output=True, text=True, timeout=LIMIT, check=True,
    )  # fmt: skip


def test_one_that_is_forgotten_saves_and_ends_with_the_program(tmp_path: Path) -> None:
    program = """
import zkv
from zkv.client import Client
server = zkv.Server(data_dir="data", fsync="never")
server.start()
with Client(server.endpoint) as client:
    client.call("PUT", key="k", value=1)
"""
    run_program(program, tmp_path)
    assert list((tmp_path / "data" / "snapshot").glob("*1.snapshot"))


def test_a_forked_child_leaves_it_alone(tmp_path: Path) -> None:
    program = """
import os, warnings, zkv
from zkv.client import Client
warnings.simplefilter("ignore")  # Of Python, that forks with threads are no good idea.
with zkv.Server("tcp://127.0.0.1:*") as server:
    child = os.fork()
    if child == 0:
        assert not server.running
        server.stop()
    else:
        assert os.waitpid(child, 0)[1] == 0
        assert server.running
        with Client(server.endpoint) as client:
            client.call("PING")
"""
    run_program(program, tmp_path)


FORKS = {
    "fork": """
def start():
    ends = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ends[1])
        os.read(ends[0], 1)  # Until the parent has ended.
        os._exit(0)
    os.close(ends[0])
""",
    "multiprocessing": """
import multiprocessing, time
def start():
    method = multiprocessing.get_context("fork")
    method.Process(target=time.sleep, args=(1_000,), daemon=True).start()
""",
    "a program": """
import subprocess
def start():
    subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
""",
}


@pytest.mark.parametrize("how", FORKS)
@pytest.mark.parametrize("place", ["tcp://127.0.0.1:*", "tcp://[::1]:*", "tcp://*:*", "ipc"])
def test_a_child_that_lives_on_holds_nothing(tmp_path: Path, how: str, place: str) -> None:
    """Neither ports nor the directory; and a client learns that the server has ended."""
    program = f"""
import os, sys, warnings, zkv
warnings.simplefilter("ignore")  # Of Python, that forks with threads are no good idea.
{FORKS[how]}
place = {place!r} if {place!r} != "ipc" else "ipc://" + os.path.abspath("zkv.ipc")
server = zkv.Server(place, data_dir="data", insecure=True)
server.start()
endpoint = server.endpoint.replace("0.0.0.0", "127.0.0.1")
with zkv.Client(endpoint) as kv:
    for number in range(3):
        kv["k"] = number
        start()
        server.stop()
        server.start()
        assert kv["k"] == number
    server.stop()
    other = zkv.Server(server.endpoint, data_dir="data", feed=server.feed, insecure=True)
    with other:
        assert kv["k"] == 2
"""
    run_program(program, tmp_path)


def test_a_child_that_lives_on_when_the_server_is_killed(tmp_path: Path) -> None:
    """Nobody was there to unlock the directory, or to close a port."""
    program = """
import os, signal, sys, zkv
server = zkv.Server("tcp://127.0.0.1:*", data_dir="data")
server.start()
if os.fork() == 0:
    sys.stdin.read()
    os._exit(0)
print(server.endpoint, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program], cwd=tmp_path, env=environment(),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        endpoint = process.stdout.readline().strip()
        process.wait(LIMIT)
        with zkv.Server(endpoint, data_dir=tmp_path / "data") as server:
            assert server.endpoint == endpoint


def test_a_child_keeps_what_is_not_the_servers(tmp_path: Path) -> None:
    """Another listener, a client's connection to the server, and a file of the program."""
    program = """
import os, socket, warnings, zkv
warnings.simplefilter("ignore")  # Of Python, that forks with threads are no good idea.
with zkv.Server("tcp://127.0.0.1:*") as server, socket.create_server(("127.0.0.1", 0)) as other:
    port = int(server.endpoint.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as client, open("file", "w") as file:
        child = os.fork()
        if child == 0:
            assert client.getpeername()[1] == port
            assert other.getsockname()[1] != port
            os.fstat(file.fileno())
            with zkv.Server("tcp://127.0.0.1:*") as mine, zkv.Client(mine.endpoint) as kv:
                kv["k"] = 1
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    with zkv.Client(server.endpoint) as kv:
        kv["k"] = 1
"""
    run_program(program, tmp_path)


def test_importing_zkv_or_a_client_does_not_import_the_server(tmp_path: Path) -> None:
    program = """
import sys, zkv, zkv.client
loaded = {"zkv.server", "zkv.embed", "zkv.engine", "msgspec"} & set(sys.modules)
assert not loaded, loaded
assert zkv.Server.__name__ == "Server"
try:
    zkv.Servre
except AttributeError as error:
    assert "Servre" in str(error)
else:
    raise AssertionError
"""
    run_program(program, tmp_path)
