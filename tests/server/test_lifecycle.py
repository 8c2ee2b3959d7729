"""A real server process from its first line to its exit status: start, stop, crash, refuse, log."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import zmq

from tests.conftest import Connect
from tests.forking import run_zkv
from tests.support import (
    FREE_PORT,
    LIMIT,
    ROOT,
    Message,
    NoReplyError,
    Raw,
    ServerInProcess,
    ServerProcess,
    environment,
    eventually,
    new_garbage,
    pack,
    terminate,
    unpack,
)
from zkv.log import LoggingFilter

# --- READY, and endpoints --------------------------------------------------------------------


def test_ready_names_real_ports(server: ServerProcess, client: Raw) -> None:
    assert re.fullmatch(r"tcp://127\.0\.0\.1:[1-9]\d*", server.endpoint)
    assert client.ok(op="INFO")["endpoints"] == server.endpoints


def test_several_endpoints(tmp_path: Path, connect: Connect) -> None:
    path = tmp_path / "zkv.ipc"
    flags = ["--endpoint", FREE_PORT, "--endpoint", f"ipc://{path}", "--endpoint", FREE_PORT]
    with ServerProcess(tmp_path / "server", *flags) as server:
        assert len(set(server.endpoints)) == 3
        assert server.endpoints[1] == f"ipc://{path}"
        for number, endpoint in enumerate(server.endpoints):
            connect(endpoint).ok(op="PUT", key=str(number), value=endpoint)
        for endpoint in server.endpoints:
            values = connect(endpoint).ok(op="MGET", keys=["0", "1", "2"])["values"]
            assert values == server.endpoints
        assert server.stop() == 0


def test_ipc_path_left_over_by_a_killed_server(tmp_path: Path, connect: Connect) -> None:
    path = tmp_path / "zkv.ipc"
    with ServerProcess(tmp_path / "server", "--endpoint", f"ipc://{path}") as server:
        server.kill()
        assert path.exists()
        server.start()
        connect(server.endpoint).ok(op="PING")


def test_the_installed_command_runs() -> None:
    script = Path(sys.executable).with_name("zkv")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"zkv \d+\.\d+\.\d+\S*\n", done.stdout)


# --- The end ---------------------------------------------------------------------------------


def end(server: ServerProcess, client: Raw) -> int:
    """END, which tells the last revision."""
    rev = client.ok(op="INFO")["rev"]
    assert client.ok(op="END", id="bye")["rev"] == rev
    return server.wait()


def interrupt(server: ServerProcess, _client: Raw) -> int:
    """Control-C."""
    server.signal(signal.SIGINT)
    return server.wait()


STOPS: dict[str, Callable[[ServerProcess, Raw], int]] = {
    "END": end,
    "SIGTERM": lambda server, _: server.stop(),
    "SIGINT": interrupt,
}


@pytest.mark.parametrize("how", STOPS)
def test_stop_and_start_again_ten_times(server: ServerProcess, how: str) -> None:
    expected: dict[str, int] = {}
    for number in range(10):
        with Raw(server.endpoint) as client:
            for key, value in expected.items():
                assert client.ok(op="GET", key=key)["value"] == value
            for key in (f"key{number}", "again"):
                client.ok(op="PUT", key=key, value=number)
                expected[key] = number
            assert STOPS[how](server, client) == 0
        server.start()
    with Raw(server.endpoint) as client:
        values = client.ok(op="MGET", keys=list(expected))["values"]
        assert values == list(expected.values())
        assert client.ok(op="INFO")["rev"] == 20, "revisions go on where they were"


def test_end_with_clients_connected_in_every_way(tmp_path: Path, connect: Connect) -> None:
    """Idle clients, half open connections and clients that do not read do not hold up the end."""
    with ServerProcess(tmp_path / "server") as server:
        idle = [connect(server.endpoint) for _ in range(5)]
        for client in idle:
            client.ok(op="PUT", key="k", value=bytes(100_000))
        deaf = connect(server.endpoint, zmq.DEALER, options={zmq.RCVHWM: 1})
        for number in range(50):
            deaf.send(pack({"op": "GET", "key": "k", "id": number}))
        host, port = server.endpoint.removeprefix("tcp://").split(":")
        with socket.create_connection((host, int(port))) as half_open:
            half_open.sendall(b"\xff\0\0\0")
            assert idle[0].ok(op="END")["rev"] == 5
            assert server.wait() == 0


class Writer:
    """Writes under keys of its own, one after the other, until it is told that it is enough."""

    def __init__(self, server: ServerProcess, number: int, context: zmq.Context[Any]) -> None:
        self.number = number
        self.acknowledged: list[str] = []
        self.refused: Message | None = None
        self.started = threading.Event()
        self._server = server
        self._context = context
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        client = Raw(self._server.endpoint, context=self._context, timeout=0.1)
        try:
            while self._write_one(client):
                self.started.set()
        finally:
            client.close()

    def _write_one(self, client: Raw) -> bool:
        key = f"{self.number}-{len(self.acknowledged)}"
        client.send(pack({"op": "PUT", "key": key, "value": key}))
        reply = self._receive(client)
        if reply is not None and reply["ok"]:
            self.acknowledged.append(key)
            return True
        self.refused = reply
        return False

    def _receive(self, client: Raw) -> Message | None:
        """The reply; None where the server has gone without one."""
        while True:
            running = self._server.running
            try:
                return cast("Message", unpack(client.receive()))
            except NoReplyError:
                if not running:
                    return None


@pytest.mark.parametrize("how", STOPS)
def test_stop_under_load_keeps_every_acknowledged_write(
    server: ServerProcess, context: zmq.Context[Any], connect: Connect, how: str
) -> None:
    writers = [Writer(server, number, context) for number in range(6)]
    for writer in writers:
        assert writer.started.wait(LIMIT)
    if how == "END":
        client = connect(server.endpoint)
        final_rev = client.ok(op="END")["rev"]
        assert server.wait() == 0
    else:
        final_rev = None
        assert STOPS[how](server, connect(server.endpoint)) == 0
    for writer in writers:
        writer.thread.join()
        if writer.refused is not None:
            assert writer.refused["code"] == "SHUTTING_DOWN"
            assert writer.refused["retry"] is True
            assert writer.refused["applied"] is False
    server.start()
    with Raw(server.endpoint) as client:
        for writer in writers:
            keys = writer.acknowledged
            assert client.ok(op="MGET", keys=keys)["values"] == keys
            if writer.refused is not None:
                refused = f"{writer.number}-{len(keys)}"
                assert client.call(op="GET", key=refused)["code"] == "NOT_FOUND"
        rev = client.ok(op="INFO")["rev"]
    acknowledged = sum(len(writer.acknowledged) for writer in writers)
    assert acknowledged <= rev <= acknowledged + len(writers)
    if final_rev is not None:
        assert rev == final_rev


def test_requests_behind_end_on_one_connection(server: ServerProcess, connect: Connect) -> None:
    client = connect(server.endpoint, zmq.DEALER)
    client.send(pack({"op": "END", "id": -1}))
    for number in range(500):
        client.send(pack({"op": "PUT", "key": str(number), "value": number, "id": number}))
    replies: list[Message] = []
    while len(replies) < 501:
        try:
            replies.append(unpack(client.receive()))
        except NoReplyError:
            break
        if not server.running and not client.socket.poll(200):
            break  # What was still on its way when the server closed is lost, as it may be.
    assert server.wait() == 0
    by_id = {reply["id"]: reply for reply in replies}
    assert by_id.pop(-1)["ok"]
    for reply in by_id.values():
        assert reply["ok"] or (reply["code"], reply["applied"]) == ("SHUTTING_DOWN", False)
    server.start()
    with Raw(server.endpoint) as again:
        for number, reply in by_id.items():
            found = again.call(op="GET", key=str(number))["ok"]
            assert found == reply["ok"], (number, reply)


def test_second_end_is_refused_or_not_answered(server: ServerProcess, connect: Connect) -> None:
    clients = [connect(server.endpoint, timeout=3) for _ in range(4)]
    for client in clients:
        client.ok(op="PING")
    for client in clients:
        client.send(pack({"op": "END"}))
    answers = []
    for client in clients:
        try:
            answers.append(unpack(client.receive()))
        except NoReplyError:
            continue
    assert server.wait() == 0
    assert sum(answer["ok"] for answer in answers) == 1
    assert all(answer["ok"] or answer["code"] == "SHUTTING_DOWN" for answer in answers)


def test_a_flood_does_not_hold_up_the_end(tmp_path: Path, context: zmq.Context[Any]) -> None:
    """Somebody who sends and sends and never reads: the server ends all the same."""
    stop, flowing = threading.Event(), threading.Event()

    def flood(endpoint: str) -> None:
        client = Raw(endpoint, zmq.DEALER, context=context)
        body = pack({"op": "PING"})
        sent = 0
        while not stop.is_set():
            try:
                client.send(body)
            except zmq.Again:
                client.socket.poll(10, zmq.POLLOUT)
            sent += 1
            if sent == 2_000:
                flowing.set()
        client.close()

    with ServerProcess(tmp_path, config="[log]\nrequests = false\n") as server:
        threads = [threading.Thread(target=flood, args=[server.endpoint]) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            assert flowing.wait(LIMIT)
            assert server.stop() == 0
        finally:
            stop.set()
            for thread in threads:
                thread.join()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_forces_the_exit(
    tmp_path: Path, connect: Connect, second: signal.Signals
) -> None:
    """The orderly end waits for a client that takes its replies slowly; the second does not."""
    with ServerProcess(tmp_path / "server") as server:
        client = connect(server.endpoint)
        client.ok(op="PUT", key="k", value=bytes(8 << 20))
        deaf = connect(server.endpoint, zmq.DEALER, options={zmq.RCVHWM: 1, zmq.RCVBUF: 4096})
        for _ in range(2):
            deaf.send(pack({"op": "GET", "key": "k"}))
        eventually(lambda: server.log().count("GET key='k' ok") == 2, "all GETs are logged")
        server.signal(signal.SIGTERM)
        eventually(lambda: "everything is saved" in server.log(), "the end has begun")
        assert server.running, "it waits for its client"
        server.signal(second)
        assert server.wait() == 128 + second


# --- Crashes ---------------------------------------------------------------------------------


def test_kill_after_snapshot_while_writing(
    server: ServerProcess, context: zmq.Context[Any], connect: Connect
) -> None:
    """What the SNAPSHOT vouched for is there after a kill -9, written behind it or not."""
    client = connect(server.endpoint)
    for first in range(0, 5_000, 500):
        client.ok(op="MPUT", items={f"k{n}": n for n in range(first, first + 500)})
    writers = [Writer(server, number, context) for number in range(2)]
    for writer in writers:
        assert writer.started.wait(LIMIT)
    before = [list(writer.acknowledged) for writer in writers]
    rev = client.ok(op="SNAPSHOT")["rev"]
    server.kill()
    for writer in writers:
        writer.thread.join()
    assert rev >= 10 + sum(map(len, before))
    server.start()
    with Raw(server.endpoint) as again:
        info = again.ok(op="INFO")
        assert info["rev"] >= rev
        assert info["keys"] >= 5_000 + sum(map(len, before))
        values = again.ok(op="MGET", keys=[f"k{n}" for n in range(5_000)])["values"]
        assert values == list(range(5_000))
        for keys in before:
            assert again.ok(op="MGET", keys=keys)["values"] == keys


def test_the_most_deeply_nested_value_is_read_again(server: ServerProcess, client: Raw) -> None:
    """From the log, and from a snapshot; what is nested deeper does nothing but get an answer."""

    def put(key: str, levels: int) -> dict[str, Any]:
        fields = {"op": "PUT", "key": key, "id": 7}
        head = b"\x84" + b"".join(pack(part) for item in fields.items() for part in item)
        reply = unpack(client.exchange(head + pack("value") + b"\x91" * levels + b"\xc0"))
        assert isinstance(reply, dict)
        assert reply["id"] == 7
        return reply

    deepest = b"\x91" * 500 + b"\xc0"
    assert put("in a snapshot", 500)["ok"]
    client.ok(op="SNAPSHOT")
    assert put("in the log", 500)["ok"]
    for levels in (501, 1_000, 10_000, 170_000, 1_000_000):
        refused = put("in the log", levels)
        assert refused["code"] == "BAD_REQUEST"
        assert "field `value` is nested deeper than 500 levels" in refused["message"]
    server.kill()
    server.start()
    with Raw(server.endpoint) as again:
        for key in ("in a snapshot", "in the log"):
            assert deepest in again.exchange(pack({"op": "GET", "key": key}))


# --- Refusals to start -----------------------------------------------------------------------


def tree(directory: Path) -> dict[str, bytes | None]:
    """Everything below a directory, with the contents of its files."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


def refuses(directory: Path, *flags: str, culprit: str) -> str:
    """``zkv serve`` must exit with 2, one line that names the culprit, and nothing touched."""
    before = tree(directory)
    done = run_zkv("serve", *flags, cwd=directory)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("zkv: ")
    assert culprit in done.stderr
    assert tree(directory) == before, "something was touched"
    return done.stderr


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """An empty directory to start a server in that is to refuse."""
    directory = tmp_path / "fresh"
    directory.mkdir()
    return directory


def test_second_server_on_the_same_data(server: ServerProcess, client: Raw, fresh: Path) -> None:
    client.ok(op="PUT", key="k", value=1)
    client.ok(op="SNAPSHOT")
    before = tree(server.data_dir)
    message = refuses(
        fresh, "--data-dir", str(server.data_dir), "--endpoint", FREE_PORT,
        culprit=str(server.data_dir),
    )  # fmt: skip
    assert tree(server.data_dir) == before
    assert str(server.process.pid) in message, "it says who holds the directory"
    assert client.ok(op="GET", key="k")["value"] == 1


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_busy_port(fresh: Path, busy_port: int) -> None:
    endpoint = f"tcp://127.0.0.1:{busy_port}"
    refuses(fresh, "--endpoint", endpoint, culprit=endpoint)


def test_a_busy_feed_is_told_from_a_busy_endpoint(fresh: Path, busy_port: int) -> None:
    """And each is told with the flags that start a second server."""
    taken = f"tcp://127.0.0.1:{busy_port}"
    message = refuses(fresh, "--endpoint", FREE_PORT, "--feed", taken, culprit=taken)
    assert "server.feed" in message
    assert "--feed" in message

    message = refuses(fresh, "--endpoint", taken, culprit=taken)
    assert "server.endpoints" in message
    assert "--endpoint" in message
    assert "--data-dir" in message


@pytest.mark.parametrize("setting", ["endpoint", "feed"])
@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("tcp://192.0.2.1:5", "does not have this address"),
        ("tcp://no-such-interface:*", "network interface"),
        ("ipc://{}/no/such/zkv", "no such directory"),
        ("ipc://{}/file/zkv", "no such directory"),
        ("ipc://{}/file", "not a socket"),
        ("ipc://{}/loop", "symbolic links"),
    ],
)
def test_what_cannot_be_bound_is_told_with_its_setting(
    fresh: Path, tmp_path: Path, setting: str, place: str, reason: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    place = place.format(tmp_path)
    flags = ["--feed", place] if setting == "feed" else ["--endpoint", place]
    free = ["--endpoint", FREE_PORT] if setting == "feed" else []
    message = refuses(fresh, *free, *flags, culprit=place)
    assert f"server.{setting}" in message
    assert reason in message


def test_a_path_whose_server_hangs_is_busy(fresh: Path, tmp_path: Path) -> None:
    path = tmp_path / "zkv"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:  # Until no more are queued.
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(str(path))
        assert "in use" in refuses(fresh, "--endpoint", f"ipc://{path}", culprit=str(path))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("tcp://127.0.0.1:1", "ports below 1024"),
        ("ipc://{}/closed/zkv", "must be writable"),
        ("ipc://{}/open/zkv", "in use, by a file that this user may not replace"),
    ],
)
def test_what_is_not_permitted_is_told(fresh: Path, place: str, reason: str) -> None:
    low = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    if reason == "ports below 1024" and low.exists() and int(low.read_text()) <= 1:
        pytest.skip("here no port is low")
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        (Path(directory) / "closed").mkdir()
        (Path(directory) / "open").mkdir()
        os.chmod(Path(directory) / "open", 0o1777)
        with socket.socket(socket.AF_UNIX) as left_over:
            left_over.bind(f"{directory}/open/zkv")
        os.chmod(f"{directory}/open/zkv", 0o777)
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, place.format(directory)], env=environment(),
            capture_output=True, text=True, timeout=LIMIT, check=False,
        )  # fmt: skip
    assert reason in done.stdout, done.stderr


AS_NOBODY = """
import os, sys, zkv
server = zkv.Server(sys.argv[1], feed="")
os.setuid(65534)
try:
    server.start()
except zkv.errors.EndpointError as error:
    print(error)
else:
    server.stop()
"""


def test_busy_port_after_a_good_one(fresh: Path, busy_port: int) -> None:
    endpoint = f"tcp://127.0.0.1:{busy_port}"
    refuses(fresh, "--endpoint", FREE_PORT, "--endpoint", endpoint, culprit=endpoint)


def test_busy_port_leaves_existing_data_alone(
    server: ServerProcess, client: Raw, fresh: Path, busy_port: int
) -> None:
    client.ok(op="PUT", key="k", value=1)
    assert server.stop() == 0
    shutil.copytree(server.data_dir, fresh / "data")
    endpoint = f"tcp://127.0.0.1:{busy_port}"
    before = tree(fresh / "data" / "snapshot")
    done = run_zkv("serve", "--endpoint", endpoint, "--data-dir", "data", cwd=fresh)
    assert done.returncode == 2
    assert endpoint in done.stderr.splitlines()[-1]
    assert tree(fresh / "data" / "snapshot") == before


def test_busy_ipc_path(tmp_path: Path, connect: Connect, fresh: Path) -> None:
    endpoint = f"ipc://{tmp_path}/zkv.ipc"
    with ServerProcess(tmp_path / "server", "--endpoint", endpoint) as server:
        client = connect(server.endpoint)
        client.ok(op="PUT", key="k", value=1)
        refuses(fresh, "--endpoint", endpoint, culprit=endpoint)
        assert client.ok(op="GET", key="k")["value"] == 1
        assert connect(server.endpoint).ok(op="GET", key="k")["value"] == 1


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_ipc_path_that_is_no_socket(fresh: Path, kind: str) -> None:
    """Somebody's file must not be taken for a socket that a server left over."""
    path = fresh / "notes"
    if kind == "file":
        path.write_text("important")
    else:
        path.mkdir()
    refuses(fresh, "--endpoint", f"ipc://{path}", culprit=str(path))


BAD_CONFIGS = {
    "unknown table": ("[serverx]\n", "serverx"),
    "unknown key": ("[server]\nworker = 2\n", "worker"),
    "key outside of its table": ("workers = 2\n", "workers"),
    "wrong type": ('[server]\nworkers = "2"\n', "server.workers"),
    "bool for int": ("[server]\nworkers = true\n", "server.workers"),
    "float for int": ("[limits]\nmax_batch = 1.5\n", "limits.max_batch"),
    "value for table": ("server = 3\n", "server"),
    "str for list": ('[server]\nendpoints = "tcp://127.0.0.1:*"\n', "server.endpoints"),
    "no endpoints": ("[server]\nendpoints = []\n", "server.endpoints"),
    "too small": ("[server]\nworkers = 0\n", "server.workers"),
    "too large": ("[server]\nworkers = 100000\n", "server.workers"),
    "negative": ("[limits]\nmax_value_bytes = -1\n", "limits.max_value_bytes"),
    "larger than an int64": (f"[limits]\nmax_message_bytes = {10**20}\n", "max_message_bytes"),
    "no time": ("[durability]\nsnapshot_interval = 0\n", "durability.snapshot_interval"),
    "nan": ("[durability]\nsnapshot_interval = nan\n", "durability.snapshot_interval"),
    "infinite": ("[durability]\nsnapshot_interval = inf\n", "durability.snapshot_interval"),
    "empty data_dir": ('[durability]\ndata_dir = ""\n', "durability.data_dir"),
    "NUL in data_dir": ('[durability]\ndata_dir = "a\\u0000b"\n', "data_dir"),
    "NUL in log.file": ('[log]\nfile = "a\\u0000b"\n', "log.file"),
    "no such level": ('[log]\nlevel = "LOUD"\n', "log.level"),
    "no such format": ('[log]\nformat = "xml"\n', "log.format"),
    "log file in no directory": ('[log]\nfile = "no/such/dir/log"\n', "no/such/dir/log"),
    "message below value": ("[limits]\nmax_message_bytes = 2000\n", "max_message_bytes"),
    "not TOML": ("[server\n", "config.toml"),
    "key twice": ("[server]\nworkers = 1\nworkers = 2\n", "config.toml"),
    "no scheme": ('[server]\nendpoints = ["127.0.0.1:5555"]\n', "127.0.0.1:5555"),
    "unknown scheme": ('[server]\nendpoints = ["udp://127.0.0.1:5"]\n', "udp://127.0.0.1:5"),
    "no port": ('[server]\nendpoints = ["tcp://127.0.0.1"]\n', "tcp://127.0.0.1"),
    "no host": ('[server]\nendpoints = ["tcp://:5555"]\n', "tcp://:5555"),
    "port too large": ('[server]\nendpoints = ["tcp://127.0.0.1:65536"]\n', "65536"),
    "port is a word": ('[server]\nendpoints = ["tcp://127.0.0.1:http"]\n', "http"),
    "no path": ('[server]\nendpoints = ["ipc://"]\n', "ipc://"),
    "NUL in path": ('[server]\nendpoints = ["ipc://a\\u0000b"]\n', "ipc://a"),
    "no such interface": ('[server]\nendpoints = ["tcp://192.0.2.1:5"]\n', "tcp://192.0.2.1:5"),
    "second endpoint bad": (f'[server]\nendpoints = ["{FREE_PORT}", "x"]\n', "x"),
    "the same endpoint twice": (
        '[server]\nendpoints = ["ipc://a", "ipc://a"]\n',
        "server.endpoints: 'ipc://a' is there twice",
    ),
    "the endpoint is the feed's": (
        '[server]\nendpoints = ["ipc://feed"]\nfeed = "ipc://feed"\n',
        "server.feed: 'ipc://feed' is one of server.endpoints, too",
    ),
    "ipc in no directory": ('[server]\nendpoints = ["ipc://no/such/dir/x"]\n', "no/such/dir/x"),
    "ipc path too long": (f'[server]\nendpoints = ["ipc://{"x" * 200}"]\n', "x" * 200),
}


@pytest.mark.parametrize(("text", "culprit"), BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_bad_config(fresh: Path, text: str, culprit: str) -> None:
    (fresh / "config.toml").write_text(text)
    flags = [] if "feed =" in text else ["--feed", FREE_PORT]  # The usual one may be taken.
    if "endpoints" not in text:
        flags += ["--endpoint", FREE_PORT]
    refuses(fresh, "--config", "config.toml", *flags, culprit=culprit)


def test_config_that_is_not_there(fresh: Path) -> None:
    refuses(fresh, "--config", "nowhere.toml", "--endpoint", FREE_PORT, culprit="nowhere.toml")


def test_config_that_is_a_directory(fresh: Path) -> None:
    refuses(fresh, "--config", ".", "--endpoint", FREE_PORT, culprit=".")


def test_config_that_is_no_text(fresh: Path) -> None:
    (fresh / "config.toml").write_bytes(b"\xff\xfe[server]")
    refuses(fresh, "--config", "config.toml", "--endpoint", FREE_PORT, culprit="config.toml")


@pytest.mark.parametrize(
    ("flags", "culprit"),
    [
        (["--workers", "0"], "server.workers"),
        (["--endpoint", "nonsense"], "nonsense"),
        (["--endpoint", "tcp://127.0.0.1:99999"], "99999"),
        (["--data-dir", ""], "data_dir"),
    ],
)
def test_bad_flags(fresh: Path, flags: list[str], culprit: str) -> None:
    if "--endpoint" not in flags:
        flags = [*flags, "--endpoint", FREE_PORT]
    refuses(fresh, *flags, culprit=culprit)


@pytest.mark.parametrize("below", ["", "/data", "/deep/data"])
def test_data_directory_that_cannot_be_made(fresh: Path, below: str) -> None:
    """Below a regular file nobody can make a directory, not even root."""
    (fresh / "file").write_text("important")
    place = f"{fresh}/file{below}"
    refuses(fresh, "--data-dir", place, "--endpoint", FREE_PORT, culprit=place)


def test_data_directory_with_a_file_in_the_way(fresh: Path) -> None:
    (fresh / "data").mkdir()
    (fresh / "data" / "snapshot").write_text("important")
    done = run_zkv("serve", "--data-dir", "data", "--endpoint", FREE_PORT, cwd=fresh)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "data" in done.stderr
    assert (fresh / "data" / "snapshot").read_text() == "important"


# --- The log ---------------------------------------------------------------------------------

SECRET = "s3cret-value"
TEXT_LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (?P<level>[A-Z]+) (?P<op>\S+)"
    r"(?: key=(?P<key>'.*'|\".*\"))?(?: keys=(?P<keys>\d+))?"
    r" (?P<result>ok|[A-Z_]+) in=(?P<bytes_in>\d+) out=(?P<bytes_out>\d+) us=(?P<us>\d+)"
)

LOGGED: list[tuple[dict[str, Any], str, str, str | int | None]] = [
    ({"op": "PING"}, "PING", "ok", None),
    ({"op": "PUT", "key": "k", "value": SECRET}, "PUT", "ok", "k"),
    ({"op": "GET", "key": "k"}, "GET", "ok", "k"),
    ({"op": "GET", "key": "absent"}, "GET", "NOT_FOUND", "absent"),
    ({"op": "MPUT", "items": {"a": SECRET, "b": SECRET}}, "MPUT", "ok", 2),
    ({"op": "MGET", "keys": ["a", "b", "c"]}, "MGET", "ok", 3),
    ({"op": "MDELETE", "keys": ["a", "b"]}, "MDELETE", "ok", 2),
    ({"op": "PUT", "key": "k", "value": SECRET, "prev": True}, "PUT", "ok", "k"),
    ({"op": "DELETE", "key": "k", "prev": True}, "DELETE", "ok", "k"),
    ({"op": "DELETE", "key": "k"}, "DELETE", "NOT_FOUND", "k"),
    ({"op": "INFO"}, "INFO", "ok", None),
    ({"op": "SNAPSHOT"}, "SNAPSHOT", "ok", None),
    ({"op": "PUT", "key": "k", "valve": SECRET}, "-", "BAD_REQUEST", None),
    ({"op": "NOPE", "value": SECRET}, "-", "UNKNOWN_OP", None),
    ({"op": "END"}, "END", "ok", None),
]


def log_some(directory: Path, log_settings: str) -> tuple[list[tuple[int, int]], str]:
    """Have a server log all of `LOGGED`; the sizes of bodies, and the log."""
    sizes = []
    config = f"[log]\n{log_settings}\n[server]\nworkers = 1\n"
    with ServerProcess(directory, config=config) as server:
        with Raw(server.endpoint) as client:
            for fields, _, result, _ in LOGGED:
                request = pack(fields)
                reply = client.exchange(request)
                assert unpack(reply).get("code", "ok") == result
                sizes.append((len(request), len(reply)))
        assert server.wait() == 0
        return sizes, server.log()


def test_every_request_is_logged_as_text(tmp_path: Path) -> None:
    sizes, log = log_some(tmp_path, "")
    assert SECRET not in log
    lines = [match for line in log.splitlines() if (match := TEXT_LINE.fullmatch(line))]
    assert len(lines) == len(LOGGED), log
    for match, size, (_, op, result, subject) in zip(lines, sizes, LOGGED, strict=True):
        assert (match["level"], match["op"], match["result"]) == ("INFO", op, result)
        assert (int(match["bytes_in"]), int(match["bytes_out"])) == size
        assert match["key"] == (repr(subject) if isinstance(subject, str) else None)
        assert match["keys"] == (str(subject) if isinstance(subject, int) else None)


def test_every_request_is_logged_as_json(tmp_path: Path) -> None:
    sizes, log = log_some(tmp_path, 'format = "json"')
    assert SECRET not in log
    lines = [json.loads(line) for line in log.splitlines()]
    assert all({"time", "level"} <= line.keys() for line in lines)
    lines = [line for line in lines if "op" in line]
    assert len(lines) == len(LOGGED), log
    for line, size, (_, op, result, subject) in zip(lines, sizes, LOGGED, strict=True):
        assert (line["op"], line["result"]) == (op, result)
        assert (line["bytes_in"], line["bytes_out"]) == size
        assert line["duration_us"] >= 0
        assert line.get("key") == (subject if isinstance(subject, str) else None)
        assert line.get("keys") == (subject if isinstance(subject, int) else None)


@pytest.mark.parametrize("settings", ["requests = false", 'level = "WARNING"'])
def test_requests_are_not_logged(tmp_path: Path, settings: str) -> None:
    _, log = log_some(tmp_path, settings)
    assert not [line for line in log.splitlines() if TEXT_LINE.fullmatch(line)]
    assert ("INFO" in log) == (settings == "requests = false"), "other records are as they were"


NASTY_KEYS = [
    "line\nbreak", "return\r", "\x1b[2J\x1b[31mred", "tab\t", "quote'\"", "null\0", "back\\slash",
    "\N{LINE SEPARATOR}", "\N{NEXT LINE}", "\N{RIGHT-TO-LEFT OVERRIDE}x", "\x7f", "\ufeff", "é",
    "2026-01-01T00:00:00.000Z INFO PUT key='k' ok in=1 out=1 us=1",
]  # fmt: skip


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_nasty_keys_stay_on_one_line(tmp_path: Path, log_format: str) -> None:
    with ServerProcess(tmp_path, config=f'[log]\nformat = "{log_format}"\n') as server:
        with Raw(server.endpoint) as client:
            for key in NASTY_KEYS:
                client.ok(op="PUT", key=key, value=0)
                client.call(op="NOPE" + key)
                client.call(op="PUT", key=0, **{key: 1})
        assert server.stop() == 0
        log = server.log()
    controls = {character for character in log if ord(character) < 32 or ord(character) == 127}
    assert controls == {"\n"}
    assert not set(log) & {"\N{LINE SEPARATOR}", "\N{NEXT LINE}", "\N{RIGHT-TO-LEFT OVERRIDE}"}
    puts = [line for line in log.split("\n") if "PUT" in line]
    assert len(puts) == len(NASTY_KEYS)
    for key, line in zip(NASTY_KEYS, puts, strict=True):
        assert (json.loads(line)["key"] == key) if log_format == "json" else (repr(key) in line)


def test_sighup_reopens_the_log_file(tmp_path: Path) -> None:
    path, rotated = tmp_path / "zkv.log", tmp_path / "zkv.log.1"
    with ServerProcess(tmp_path / "server", config=f'[log]\nfile = "{path}"\n') as server:
        with Raw(server.endpoint) as client:
            client.ok(op="PUT", key="before", value=0)
            eventually(lambda: "before" in path.read_text(), "the first line")
            path.rename(rotated)
            client.ok(op="PUT", key="between", value=0)
            eventually(lambda: "between" in rotated.read_text(), "the second line")
            server.signal(signal.SIGHUP)
            eventually(path.exists, "a new file")
            client.ok(op="PUT", key="behind", value=0)
        assert server.stop() == 0
        assert server.log() == "", "nothing on standard error when there is a file"
    assert "behind" in path.read_text()
    assert "before" not in path.read_text()
    assert "behind" not in rotated.read_text()
    assert "before" in rotated.read_text()
    assert "between" in rotated.read_text()


def test_sighup_without_a_log_file_changes_nothing(server: ServerProcess, client: Raw) -> None:
    server.signal(signal.SIGHUP)
    client.ok(op="PUT", key="k", value=0)
    assert server.stop() == 0
    assert "PUT key='k' ok" in server.log()


def test_sighup_when_the_file_cannot_be_opened(tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    path, moved = directory / "zkv.log", tmp_path / "moved"
    with ServerProcess(tmp_path / "server", config=f'[log]\nfile = "{path}"\n') as server:
        with Raw(server.endpoint) as client:
            client.ok(op="PUT", key="before", value=0)
            eventually(lambda: "before" in path.read_text(), "the first line")
            directory.rename(moved)
            server.signal(signal.SIGHUP)
            told = "the old file stays in use"
            eventually(lambda: told in (moved / "zkv.log").read_text(), "a complaint")
            client.ok(op="PUT", key="behind", value=0)
        assert server.stop() == 0
    assert "behind" in (moved / "zkv.log").read_text()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_sigusr1_tells_where_each_thread_is(tmp_path: Path, log_format: str) -> None:
    """Into the log, wherever that goes by now; the server goes on."""
    path, rotated = tmp_path / "zkv.log", tmp_path / "zkv.log.1"
    config = f'[log]\nfile = "{path}"\nformat = "{log_format}"\n'
    with ServerProcess(tmp_path / "server", config=config) as server:
        for log in (rotated, path):
            server.signal(signal.SIGUSR1)
            eventually(lambda: "stacks of all threads" in path.read_text(), "the names")
            if log is rotated:
                path.rename(rotated)
                server.signal(signal.SIGHUP)
                eventually(path.exists, "a new file")
            text = log.read_text()
            for file in ("front.py", "worker.py", "committer.py", "snapshotter.py", "feed.py"):
                assert f'{file}", line ' in text
            names = next(line for line in text.splitlines() if "stacks of all threads" in line)
            for name in ("MainThread", "zkv-front", "zkv-worker-1", "zkv-committer", "zkv-feed"):
                ((number, _),) = re.findall(rf"(0x[0-9a-f]+) is ({name})\b", names)
                assert re.search(rf"^(Current t|T)hread {number} ", text, re.MULTILINE)
        with Raw(server.endpoint) as client:
            client.ok(op="PUT", key="k", value=0)
        assert server.stop() == 0
        assert server.log() == ""


def test_sigusr1_and_sighup_while_the_server_starts(tmp_path: Path) -> None:
    """That takes as long as there is much to load."""
    script = (
        "import sys, signal, os; from zkv import engine; from zkv.cli.main import main\n"
        "opened = engine.Engine._open\n"
        "def slowly(*arguments):\n"
        "    for number in (signal.SIGUSR1, signal.SIGHUP): os.kill(os.getpid(), number)\n"
        "    opened(*arguments)\n"
        "engine.Engine._open = slowly\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "serve", "--data-dir", str(tmp_path / "data")]
    with subprocess.Popen(
        [*command, "--endpoint", FREE_PORT], env=environment(), cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline().startswith("READY")
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=LIMIT)
    assert process.returncode == 0
    assert "stacks of all threads" in log


def test_the_help_names_the_signals() -> None:
    helped = run_zkv("serve", "--help", cwd=ROOT).stdout
    assert all(name in helped for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"))


@pytest.mark.parametrize("number", [signal.SIGPIPE, signal.SIGXFSZ])
def test_signals_that_do_nothing(
    server: ServerProcess, client: Raw, number: signal.Signals
) -> None:
    server.signal(number)
    client.ok(op="PUT", key="k", value=0)
    assert server.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGUSR2])
def test_signals_that_end_it_at_once(
    server: ServerProcess, client: Raw, number: signal.Signals
) -> None:
    """And lose nothing that was answered."""
    client.ok(op="PUT", key="k", value=0)
    server.signal(number)
    assert server.wait() == -number
    server.start()
    with Raw(server.endpoint) as other:
        assert other.ok(op="GET", key="k")["rev"] == 1


def test_log_that_nobody_reads_does_not_stop_the_server(tmp_path: Path) -> None:
    """Standard error is a pipe that is full: requests go on, and so does the end."""
    long_key = "k" * 1_000
    with ServerProcess(tmp_path, stderr=subprocess.PIPE) as server:
        with Raw(server.endpoint) as client:
            for _ in range(500):  # 500 kB: many times what a pipe holds.
                client.ok(op="PUT", key=long_key, value=0)
            assert client.ok(op="END")["rev"] == 500
        assert server.wait() == 0
        server.start()
        with Raw(server.endpoint) as client:
            assert client.ok(op="GET", key=long_key)["rev"] == 500


def test_log_reader_that_has_gone(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, stderr=subprocess.PIPE) as server:
        assert server.process.stderr is not None
        server.process.stderr.close()
        with Raw(server.endpoint) as client:
            for _ in range(20):
                client.ok(op="PUT", key="k", value=0)
            assert client.ok(op="END")["rev"] == 20
        assert server.wait() == 0


def test_reader_of_standard_output_that_has_gone(tmp_path: Path) -> None:
    """READY is said once; whoever started the server may then close its end."""
    with ServerProcess(tmp_path) as server:
        assert server.process.stdout is not None
        server.process.stdout.close()
        with Raw(server.endpoint) as client:
            client.ok(op="PUT", key="k", value=0)
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("name", "level", "passes"),
    [
        ("zkv", logging.DEBUG, True),
        ("zkv.broker", logging.INFO, True),
        ("zkv.broker.deep", logging.DEBUG, True),
        ("zkvx", logging.INFO, False),
        ("other.zkv", logging.INFO, False),
        ("asyncio", logging.DEBUG, False),
        ("root", logging.INFO, False),
        ("root", logging.WARNING, True),
        ("concurrent.futures", logging.ERROR, True),
        ("zkvx", logging.CRITICAL, True),
    ],
)
def test_logging_filter(name: str, level: int, passes: bool) -> None:
    record = logging.LogRecord(name, level, "", 0, "message", None, None)
    assert bool(LoggingFilter().filter(record)) is passes


def test_exit_status_tells_when_not_everything_was_saved(tmp_path: Path) -> None:
    """The data directory is replaced by a file behind the server's back."""
    with ServerProcess(tmp_path / "server") as server:
        with Raw(server.endpoint) as client:
            client.ok(op="PUT", key="k", value=1)
            snapshots = server.data_dir / "snapshot"
            snapshots.rename(tmp_path / "taken-away")
            snapshots.write_text("in the way")
            assert client.call(op="SNAPSHOT")["code"] == "READ_ONLY"
            reply = client.call(op="END")
            assert (reply["ok"], reply["code"]) == (False, "READ_ONLY")
        assert server.wait() == 1
        assert "CRITICAL" in server.log()


def test_two_servers_in_a_row_use_the_same_port(tmp_path: Path) -> None:
    """A restart at once binds the same port, although old connections linger in the kernel."""
    with ServerProcess(tmp_path / "first") as first:
        endpoint = first.endpoint
        context: zmq.Context[Any] = zmq.Context()
        clients = [Raw(endpoint, context=context) for _ in range(3)]
        for client in clients:
            client.ok(op="PING")
        assert first.stop() == 0
        with ServerProcess(tmp_path / "second", "--endpoint", endpoint) as second:
            assert second.endpoint == endpoint
            for client in clients:  # They reconnect by themselves.
                client.ok(op="PING")
                client.close()
        terminate(context)


def test_nobody_to_say_ready_to(fresh: Path) -> None:
    """READY cannot be said: that is a failure to start, not a hang."""
    process = subprocess.Popen(
        [sys.executable, "-m", "zkv.cli.main", "serve", "--endpoint", FREE_PORT],
        cwd=fresh, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    try:
        assert process.wait(LIMIT) != 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


# --- Python's garbage collector --------------------------------------------------------------


def test_requests_leave_no_cycles(tmp_path: Path) -> None:
    """The server lets the collector look only at what is young: cycles could stay for ever."""
    requests: list[dict[str, Any]] = [
        {"op": "PUT", "key": "a", "value": [1]},
        {"op": "PUT", "key": "a", "value": 1, "durable": True},
        {"op": "PUT", "key": "a", "value": 1, "session": "s", "seq": 1},
        {"op": "PUT", "key": "a", "value": 1, "if_rev": 999},
        {"op": "MPUT", "items": {"a": 1, "b": 2}, "ttl": 1000},
        {"op": "TXN", "ops": [{"op": "INCR", "key": "n"}, {"op": "GET", "key": "a"}]},
        {"op": "GET", "key": "a"},
        {"op": "MGET", "keys": ["a", "z"]},
        {"op": "GET", "key": "z"},
        {"op": "DELETE", "key": "z"},
        {"op": "SCAN"},
        {"op": "CHANGES", "since": 0},
        {"op": "INFO"},
        {"op": "NONSENSE"},
        {"key": "a"},
    ]
    with ServerInProcess(tmp_path) as server, Raw(server.endpoint) as client:
        for fields in requests:
            client.call(**fields)  # What comes into being once, does.
            with new_garbage() as found:
                for _ in range(50):
                    client.call(**fields)
                assert len(found()) < 50, fields
