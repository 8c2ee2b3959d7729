"""Why there is no connection: each reason in its own words, at once where waiting is in vain."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

import zkv
from tests.client.blocking import Kind
from tests.forking import ZKV_CLI, run_forked
from tests.peer import Peer, reply
from tests.support import LIMIT, ROOT, ServerInProcess, ServerProcess, environment, eventually
from zkv import (
    BadReplyError,
    ClosedError,
    NoReplyError,
    RetryPolicy,
    UnavailableError,
    UnknownHostError,
)

UNKNOWN = "tcp://no-such-host.invalid:5555"
IMPATIENT = RetryPolicy(wait_for_start=False)


@contextlib.contextmanager
def listener(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """An endpoint where something else listens."""
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as open_ones:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = server.accept()
                    open_ones.callback(peer.close)
                    with contextlib.suppress(OSError):
                        talk(peer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(LIMIT)


def http(peer: socket.socket) -> None:
    peer.recv(100)
    peer.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
    peer.shutdown(socket.SHUT_RDWR)


def redis(peer: socket.socket) -> None:
    received = b""
    while b"\n" not in received:
        data = peer.recv(1000)
        if not data:
            return
        received += data
    peer.sendall(b"-ERR unknown command\r\n")


def ssh(peer: socket.socket) -> None:
    peer.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")


def tls(peer: socket.socket) -> None:
    peer.recv(100)
    peer.sendall(b"\x15\x03\x01\x00\x02\x02\x28")
    peer.shutdown(socket.SHUT_RDWR)


OTHERS = {
    "HTTP": (http, "HTTP/1.1 400 Bad Request"),
    "Redis": (redis, "-ERR unknown command"),
    "ssh": (ssh, "SSH-2.0-OpenSSH_9.2"),
    "TLS": (tls, "not a zkv server"),
}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command that is expected to end by itself."""
    return subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=2 * LIMIT,
        check=False,
    )  # fmt: skip


def reason_of(kind: Kind, endpoint: Any, error: type[UnavailableError], **keywords: Any) -> str:
    """Why a client says that there is no connection."""
    with kind(endpoint, **keywords) as kv, pytest.raises(error) as caught:
        kv.put("k", 1)
    assert type(caught.value) is error
    assert caught.value.applied is False
    assert caught.value.reason in str(caught.value)
    for each in [endpoint] if isinstance(endpoint, str) else endpoint:
        assert each in str(caught.value)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.reason) == (str(caught.value), caught.value.reason)
    return caught.value.reason


@pytest.mark.parametrize(("talk", "says"), OTHERS.values(), ids=OTHERS)
def test_something_else_that_listens_is_told_at_once(
    kind: Kind, talk: Callable[[socket.socket], None], says: str
) -> None:
    with listener(talk) as endpoint:
        assert says in reason_of(kind, endpoint, UnavailableError, timeout=10 * LIMIT)


@pytest.mark.parametrize("other", [zmq.XPUB, zmq.PUB, zmq.PULL, zmq.REQ])
def test_another_zeromq_socket_is_told_at_once(
    kind: Kind, other: int, context: zmq.Context[Any]
) -> None:
    with context.socket(other) as peer:
        peer.bind("tcp://127.0.0.1:*")
        endpoint = str(peer.get_string(zmq.LAST_ENDPOINT))
        reason = reason_of(kind, endpoint, UnavailableError, timeout=10 * LIMIT)

    assert zmq.SocketType(other).name in reason
    assert ("feed" in reason) is (other in {zmq.XPUB, zmq.PUB})


def test_the_feed_of_a_server_is_no_server(kind: Kind, tmp_path: Path) -> None:
    with zkv.Server("tcp://127.0.0.1:*") as server:
        assert server.feed is not None
        assert "a change feed" in reason_of(kind, server.feed, UnavailableError, timeout=10 * LIMIT)


def test_an_unknown_host_has_an_error_of_its_own(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    def getaddrinfo(*_: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    # Where there is no network, nobody knows that a name is unknown.
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    reason = reason_of(kind, UNKNOWN, UnknownHostError, timeout=10 * LIMIT)

    assert reason == "unknown host 'no-such-host.invalid'"


def test_a_name_service_that_is_away_is_waited_for(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    def getaddrinfo(*_: object) -> object:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert "Temporary failure" in reason_of(kind, UNKNOWN, UnknownHostError, timeout=0.5)
    assert "Temporary failure" in reason_of(
        kind, UNKNOWN, UnknownHostError, timeout=10 * LIMIT, retry=IMPATIENT
    )


def test_a_name_service_that_hangs_holds_nobody_up(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: released.wait(LIMIT))
    try:
        assert "does not answer" in reason_of(kind, UNKNOWN, UnknownHostError, timeout=0.5)
    finally:
        released.set()


def test_nobody_there_is_told_in_the_end(kind: Kind, free_endpoint: str) -> None:
    reason = reason_of(kind, free_endpoint, UnavailableError, timeout=0.5)

    assert reason == "connection refused: no server listens there"


def test_nobody_there_is_told_at_once_to_who_will_not_wait(
    kind: Kind, free_endpoint: str, tmp_path: Path
) -> None:
    for endpoint in (free_endpoint, f"ipc://{tmp_path}/none"):
        reason_of(kind, endpoint, UnavailableError, timeout=10 * LIMIT, retry=IMPATIENT)


def test_each_of_many_endpoints_has_its_reason(
    kind: Kind, free_endpoint: str, tmp_path: Path
) -> None:
    endpoints = [free_endpoint, UNKNOWN, f"ipc://{tmp_path}"]
    reason = reason_of(kind, endpoints, UnavailableError, timeout=10 * LIMIT, retry=IMPATIENT)

    assert f"{free_endpoint}: connection refused" in reason
    assert "unknown host" in reason
    assert "is not a socket" in reason


def test_many_endpoints_are_tried_before_any_is_given_up(kind: Kind, near: ServerInProcess) -> None:
    with (
        listener(http) as other,
        kind([UNKNOWN, other, near.endpoint], retry=IMPATIENT) as kv,
    ):
        assert kv.put("k", 1) == 1
        assert kv.endpoint == near.endpoint


def a_file(path: Path) -> None:
    path.touch()


def a_directory(path: Path) -> None:
    path.mkdir()


def left_over(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def of_datagrams(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(path))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "does not exist"),
        (a_file, "is not a socket"),
        (a_directory, "is not a socket"),
        (left_over, "connection refused"),
        (of_datagrams, ""),
        (lambda path: path.symlink_to("nowhere"), "does not exist"),
        (lambda path: path.symlink_to(path), "too many levels"),
    ],
    ids=["nothing", "file", "directory", "left over", "datagrams", "dangling", "loop"],
)
def test_a_path_without_a_server_is_told(
    kind: Kind, tmp_path: Path, make: Callable[[Path], None], says: str
) -> None:
    make(tmp_path / "zkv")
    endpoint = f"ipc://{tmp_path}/zkv"

    assert says in reason_of(kind, endpoint, UnavailableError, timeout=10 * LIMIT, retry=IMPATIENT)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("what", ["directory", "socket"])
def test_a_path_that_is_not_permitted_is_told(tmp_path: Path, what: str) -> None:
    place = Path("/tmp") / f"zkv-{os.getpid()}-{what}"
    place.mkdir()
    try:
        with zkv.Server(f"ipc://{place}/zkv", feed=""):
            os.chmod(place / "zkv" if what == "socket" else place, 0o700)
            done = run(sys.executable, "-c", PERMITTED, f"ipc://{place}/zkv")
    finally:
        shutil.rmtree(place)

    assert "permission denied" in done.stdout, done.stderr


PERMITTED = """
import os, sys, zkv, zkv.client.trouble
os.setuid(65534)
try:
    zkv.Client(sys.argv[1], 600).get("k")
except zkv.UnavailableError as error:
    print(error)
"""


@pytest.mark.parametrize("talk", [lambda peer: None, lambda peer: peer.close()])
def test_what_may_yet_become_a_server_is_waited_for(
    kind: Kind, talk: Callable[[socket.socket], None]
) -> None:
    with listener(talk) as endpoint:
        reason_of(kind, endpoint, UnavailableError, timeout=0.5)


def stop(server: ServerProcess) -> None:
    """Stop all of its threads until SIGCONT."""
    server.process.send_signal(signal.SIGSTOP)
    tasks = Path(f"/proc/{server.process.pid}/task")
    eventually(
        lambda: all(") T" in (task / "stat").read_text() for task in tasks.iterdir()), "stopped"
    )


def test_a_hanging_server_is_waited_for_and_told(kind: Kind, server: ServerProcess) -> None:
    """The system accepts connections in its name."""
    stop(server)
    try:
        assert "sends nothing" in reason_of(kind, server.endpoint, UnavailableError, timeout=0.5)
        with kind(server.endpoint) as kv:
            waker = threading.Timer(0.5, server.process.send_signal, [signal.SIGCONT])
            waker.start()
            kv.put("k", 1)
            waker.join()
    finally:
        server.process.send_signal(signal.SIGCONT)


def test_a_server_that_was_there_is_waited_for(
    kind: Kind, tmp_path: Path, free_endpoint: str
) -> None:
    """Also by those who would not wait for one that never was."""
    process = ServerProcess(tmp_path, "--endpoint", free_endpoint)
    with process as server, kind(free_endpoint, retry=IMPATIENT) as kv:
        for number in range(3):
            assert kv.incr("n") == number + 1
            server.kill()
            starter = threading.Timer(0.3, server.start)
            starter.start()
            assert kv.get("n") == number + 1
            starter.join()


def test_a_lost_connection_ends_the_wait(kind: Kind, server: ServerProcess) -> None:
    """Although a request that is sent once is waited for until the timeout."""
    with kind(server.endpoint, 10 * LIMIT) as kv:
        kv.put("k", 1)
        stop(server)
        killer = threading.Timer(0.3, server.kill)
        killer.start()
        with pytest.raises(NoReplyError) as caught:
            kv.call("PUT", key="k", value=2)
        killer.join()

    assert caught.value.applied is None


# --- Names, and the two kinds of addresses ---------------------------------------------------

HOSTS = """
127.0.0.1 localhost four both
::1 six both
"""

USE_NAME = """
import asyncio, sys, zkv
endpoint = sys.argv[1]
with zkv.Client(endpoint, 600, retry=zkv.RetryPolicy(wait_for_start=False)) as kv:
    kv["sync"] = 1
    with kv.watch("w", since=kv.info()["rev"]) as changes, kv.mirror("w") as mirror:
        mirror.wait_for(kv.put("w", 1))
        assert changes.next(60).key == "w"
async def main():
    async with zkv.AsyncClient(endpoint, 600) as kv:
        await kv.put("async", 1)
        async with kv.mirror("w") as mirror:
            await mirror.wait_for(await kv.put("w", 2), 60)
asyncio.run(main())
print("done")
"""


def in_a_world_with_names(tmp_path: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command for which a file of the test's own is /etc/hosts."""
    (tmp_path / "hosts").write_text(HOSTS)
    script = 'mount --bind "$0" /etc/hosts && exec "$@"'
    return run("unshare", "--mount", "sh", "-c", script, f"{tmp_path}/hosts", *command)


def may_unshare() -> bool:
    try:
        done = subprocess.run(
            ["unshare", "--mount", "mount", "--bind", "/etc/hosts", "/etc/hosts"],
            capture_output=True, check=False,
        )  # fmt: skip
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return done.returncode == 0
    except OSError:
        return False


NAMES = [
    ("four", "127.0.0.1"), ("six", "[::1]"), ("both", "127.0.0.1"), ("both", "[::1]"),
    ("both", "*"), ("six", "[::]"), ("both", "[::]"),
]  # fmt: skip


@pytest.mark.skipif(not may_unshare(), reason="no mount namespace, or no IPv6, to be had")
@pytest.mark.parametrize(("name", "host"), NAMES)
def test_a_name_leads_to_either_kind_of_address(tmp_path: Path, name: str, host: str) -> None:
    with zkv.Server(f"tcp://{host}:*", insecure=True) as server:
        endpoint = f"tcp://{name}:{server.endpoint.rpartition(':')[2]}"
        done = in_a_world_with_names(tmp_path, sys.executable, "-c", USE_NAME, endpoint)

    assert done.stdout == "done\n", done.stderr


@pytest.mark.skipif(not may_unshare(), reason="no mount namespace, or no IPv6, to be had")
@pytest.mark.parametrize("name", ["six", "both"])
@pytest.mark.parametrize(
    "words",
    [
        ["zkv.cli.client", "ping"],
        ["zkv.cli.client", "watch", "--since", "0", "--limit", "1"],
        ["zkv.cli.client", "top", "--limit", "1"],
        ["zkv.cli.main", "doctor"],
        ["zkv.bench.main", "--operations", "10", "--ceiling", "0", "--keys", "10"],
    ],
    ids=lambda words: words[1],
)
def test_tools_reach_a_server_by_its_name(tmp_path: Path, words: list[str], name: str) -> None:
    with zkv.Server("tcp://[::1]:*") as server, zkv.Client(server.endpoint) as kv:
        kv["k"] = 1
        endpoint = f"tcp://{name}:{server.endpoint.rpartition(':')[2]}"
        done = in_a_world_with_names(tmp_path, sys.executable, "-m", *words, "-e", endpoint)

    assert done.returncode in {0, 1} if "doctor" in words else done.returncode == 0, done.stderr
    if "doctor" in words:
        assert "a message from tcp://" in done.stdout


FEEDS_THAT_ARE_NONE = [5, "tcp://127.0.0.1:71092", "nonsense", b"tcp://127.0.0.1:1"]


@pytest.mark.parametrize("feed", FEEDS_THAT_ARE_NONE)
def test_a_feed_that_is_none_is_told(kind: Kind, feed: object) -> None:
    with (
        Peer(afterwards=reply(ok=True, rev=1, feed=feed)) as peer,
        kind(peer.endpoint) as kv,
    ):
        if kind.loop is None:
            with pytest.raises(BadReplyError, match="feed"):
                kv.watch()
        with pytest.raises((ValueError, TypeError), match="endpoint"):
            kv.watch(feed=feed)


@pytest.mark.parametrize("feed", FEEDS_THAT_ARE_NONE)
def test_a_feed_that_is_none_is_told_on_the_command_line(feed: object) -> None:
    with Peer(afterwards=reply(ok=True, rev=1, feed=feed)) as peer:
        done = run_forked(ZKV_CLI, ("-e", peer.endpoint, "watch"))

    assert done.returncode == 2
    assert b"endpoint" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.skipif(not may_unshare(), reason="no mount namespace, or no IPv6, to be had")
def test_nobody_at_a_name_is_told_as_at_an_address(tmp_path: Path, free_endpoint: str) -> None:
    endpoint = f"tcp://both:{free_endpoint.rpartition(':')[2]}"
    words = [sys.executable, "-m", "zkv.cli.client", "ping", "-e", endpoint]
    done = in_a_world_with_names(tmp_path, *words)

    assert done.returncode == 3
    assert "connection refused" in done.stderr


# --- Contexts that end, and copies -----------------------------------------------------------


def test_a_client_survives_the_end_of_the_shared_context(kind: Kind) -> None:
    with zkv.Server("tcp://127.0.0.1:*") as server, kind(server.endpoint) as kv:
        kv.put("k", 1)
        zmq.Context.instance().destroy()
        assert kv.get("k") == 1
        zmq.Context.instance().destroy()
        assert kv.incr("n") == 1
        zmq.Context.instance().destroy()
        assert kv.call("PUT", key="k", value=2)["ok"] is True


def test_a_watch_survives_the_end_of_the_shared_context() -> None:
    with (
        zkv.Server("tcp://127.0.0.1:*") as server,
        zkv.Client(server.endpoint) as kv,
        kv.watch() as changes,
    ):
        zmq.Context.instance().destroy()
        kv["k"] = 1
        change = changes.next(LIMIT)

        assert change is not None
        assert change.key == "k"


def test_the_end_of_a_context_of_its_own_is_told(kind: Kind) -> None:
    with zkv.Server("tcp://127.0.0.1:*") as server:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        with kind(server.endpoint, context=context) as kv:
            kv.put("k", 1)
            context.destroy()
            for name, *arguments in (("get", "k"), ("put", "k", 2), ("call", "PING")):
                with pytest.raises(ClosedError, match="context of the client has been terminated"):
                    getattr(kv, name)(*arguments)
            if kind.loop is None:
                for follow in (kv.watch, kv.mirror):
                    with pytest.raises(ClosedError, match="context"):
                        follow()


def test_what_has_connections_is_not_copied() -> None:
    with (
        zkv.Server() as server,
        zkv.Client(server.endpoint) as kv,
        kv.watch() as changes,
        kv.mirror() as mirror,
    ):
        later = zkv.AsyncClient(server.endpoint)
        for each in (
            server, kv, kv.namespace("a/"), kv.namespace("a/").namespace("b/"), kv.keys(),
            kv.pipeline(), kv.txn(), changes, mirror, kv.lock("l"), kv.queue("q"),
            kv.election("e"), kv.cache(), kv.rate_limiter("r", limit=1, period=1),
            later, later.namespace("a/"), later.pipeline(), later.txn(), later.watch(),
            later.mirror(),
        ):  # fmt: skip
            for copier in (pickle.dumps, copy.deepcopy):
                with pytest.raises(TypeError, match="cannot be pickled or copied, since it has"):
                    copier(each)


def test_a_restart_between_two_requests_costs_none(kind: Kind) -> None:
    """Not even one that is sent once, and comes before anybody had time to notice."""
    with zkv.Server("tcp://127.0.0.1:*") as server, kind(server.endpoint) as kv:
        for _ in range(10):
            assert kv.call("PUT", key="k", value=1)["ok"] is True
            server.stop()
            server.start()
            assert kv.call("PUT", key="k", value=1)["ok"] is True
            server.stop()
            server.start()
            assert kv.put("k", 2) > 0
