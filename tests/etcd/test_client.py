"""The client beside an etcd that breaks: dead, stopped and full nodes, passwords, certificates."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.etcd.nodes import EtcdCluster, needs_etcd
from tests.etcd.watching import Recorder
from tests.support import LIMIT, ROOT, environment, eventually, free_ports
from zkv.errors import ConfigError
from zkv.etcd import (
    AccessError,
    CompactedRevisionError,
    EtcdClosedError,
    EtcdError,
    EtcdSecurity,
    NoSpaceError,
    PutOp,
    UnknownOutcomeError,
    WatchLostError,
)
from zkv.etcd.client import EtcdClient

pytestmark = needs_etcd
SHORT: Final = 0.5
"""Seconds of a call that is not answered."""
SOON: Final = 5.0
"""Seconds within which the client gives up what has no answer, on a busy machine."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[EtcdCluster]:
    """An etcd of the test's own."""
    with EtcdCluster(tmp_path / "etcd") as cluster:
        yield cluster


@pytest.fixture
def etcd(cluster: EtcdCluster) -> Iterator[EtcdClient]:
    client = EtcdClient(cluster.endpoints, silence=1.0)
    yield client
    client.close()


def put(etcd: EtcdClient, value: bytes = b"", *, timeout: float = LIMIT) -> int:
    return etcd.transact([], [PutOp(b"k", value)], timeout=timeout).revision


def raised(call: Callable[[], object]) -> EtcdError | None:
    try:
        call()
    except EtcdError as error:
        return error
    return None


class Asking:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.error: EtcdError | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.error = raised(self._call)

    def ended(self) -> EtcdError | None:
        """Wait for its end; what it raised."""
        self._thread.join(LIMIT)
        assert not self._thread.is_alive()
        return self.error


# Nodes that do not answer


def test_a_node_that_is_killed_during_a_call(cluster: EtcdCluster, etcd: EtcdClient) -> None:
    put(etcd)
    (node,) = cluster.nodes
    node.stop()
    asking = Asking(lambda: put(etcd, b"1"))
    eventually(lambda: asking.error is None, "it is sent")
    node.kill()
    error = asking.ended()
    assert isinstance(error, UnknownOutcomeError)
    assert error.endpoint in node.endpoint
    assert error.endpoint in str(error)
    cluster.start()
    assert put(etcd, b"2") >= 3


def test_a_stopped_node_costs_a_call_its_timeout(cluster: EtcdCluster, etcd: EtcdClient) -> None:
    put(etcd)
    (node,) = cluster.nodes
    node.stop()
    begin = time.monotonic()
    assert isinstance(raised(lambda: put(etcd, timeout=SHORT)), UnknownOutcomeError)
    assert isinstance(raised(lambda: etcd.read(b"k", timeout=SHORT)), UnknownOutcomeError)
    (status,) = etcd.status(SHORT)
    assert isinstance(status.error, UnknownOutcomeError)
    assert SHORT * 3 * 0.9 <= time.monotonic() - begin < SOON
    node.resume()
    put(etcd)


def test_a_dead_node_that_comes_back_is_found_soon(cluster: EtcdCluster, etcd: EtcdClient) -> None:
    put(etcd)
    (node,) = cluster.nodes
    node.kill()
    for _ in range(100):
        raised(lambda: put(etcd, timeout=SHORT))
    cluster.start()
    begin = time.monotonic()
    assert etcd.read(b"k", timeout=LIMIT).count == 1  # Is repeated, until it is answered.
    assert time.monotonic() - begin < SOON
    put(etcd)


@pytest.mark.slow
def test_a_node_that_was_dead_for_long_is_found_as_soon(
    cluster: EtcdCluster, etcd: EtcdClient
) -> None:
    put(etcd)
    cluster.kill()
    end = time.monotonic() + 20.0
    while time.monotonic() < end:
        raised(lambda: put(etcd, timeout=SHORT))
        time.sleep(0.05)
    cluster.start()
    begin = time.monotonic()
    assert etcd.read(b"k", timeout=LIMIT).count == 1
    assert time.monotonic() - begin < 3.0


def test_an_endpoint_that_takes_connections_and_says_nothing(cluster: EtcdCluster) -> None:
    with socket.create_server(("127.0.0.1", free_ports(1)[0])) as server:
        etcd = EtcdClient([f"http://127.0.0.1:{server.getsockname()[1]}", *cluster.endpoints])
        recorder = Recorder()
        recorder.watch(etcd, b"k")
        begin = time.monotonic()
        assert isinstance(raised(lambda: put(etcd)), UnknownOutcomeError)
        assert time.monotonic() - begin < SOON
        assert isinstance(recorder.ended(), WatchLostError)
        put(etcd)
        etcd.close()


def test_endpoints_of_which_the_first_ones_are_dead(cluster: EtcdCluster) -> None:
    dead = [f"127.0.0.1:{port}" for port in free_ports(2)]
    endpoints = [f"http://{each}" for each in dead] + cluster.endpoints
    etcd = EtcdClient(endpoints)
    begin = time.monotonic()
    assert etcd.read(b"k", timeout=LIMIT).count == 0
    assert time.monotonic() - begin < SOON
    put(etcd)
    (*lost, living) = etcd.status(LIMIT)
    assert [each.endpoint for each in lost] == dead
    assert all(isinstance(each.error, UnknownOutcomeError) for each in lost)
    assert living.error is None
    etcd.close()

    etcd = EtcdClient(endpoints)
    errors = [raised(lambda: put(etcd)) for _ in range(3)]
    assert [type(error) for error in errors] == [UnknownOutcomeError] * 2 + [type(None)]
    etcd.close()


def test_endpoints_of_which_the_first_one_stands_still(
    cluster: EtcdCluster, tmp_path: Path
) -> None:
    with EtcdCluster(tmp_path / "other") as other:
        etcd = EtcdClient([*other.endpoints, *cluster.endpoints])
        put(etcd)
        other.nodes[0].stop()
        assert etcd.read(b"k", timeout=2 * SHORT).count == 0  # Half of the time is for each.
        put(etcd, timeout=SHORT)
        etcd.close()


@pytest.mark.parametrize("state", ["stopped", "silent", "answering"])
def test_close_waits_for_nothing(cluster: EtcdCluster, etcd: EtcdClient, state: str) -> None:
    recorder = Recorder()
    recorder.watch(etcd, b"k", from_revision=put(etcd))
    recorder.until(1)
    if state != "answering":
        cluster.nodes[0].stop()
    asking = [Asking(lambda: put(etcd)) for _ in range(3)]
    asking += [Asking(lambda: etcd.read(b"k", timeout=LIMIT)), Asking(lambda: etcd.status(LIMIT))]
    if state == "silent":
        time.sleep(SHORT)  # The calls are sent; what they wait for is what stands still.
    begin = time.monotonic()
    etcd.close()
    errors = [each.ended() for each in asking]
    assert isinstance(recorder.ended(), EtcdClosedError)
    assert time.monotonic() - begin < SOON
    if state == "silent":
        assert [type(error) for error in errors[:4]] == [UnknownOutcomeError] * 4


PROGRAM: Final = """
import sys
from tests.etcd.watching import Recorder
from zkv.etcd import PutOp
from zkv.etcd.client import EtcdClient
import threading
etcd = EtcdClient(sys.argv[1:])
recorder = Recorder()
recorder.watch(etcd, b"k", from_revision=etcd.transact([], [PutOp(b"k", b"")], timeout=9).revision)
recorder.until(1)
def hang():
    print("hangs", flush=True)
    try:
        etcd.read(b"k", timeout=60)
    except BaseException as error:
        print(type(error).__name__)
threading.Thread(target=hang, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("is_stopped", [True, False])
def test_an_interpreter_ends_although_nobody_closed_the_client(
    cluster: EtcdCluster, is_stopped: bool
) -> None:
    command = [sys.executable, "-c", PROGRAM, *cluster.endpoints]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    while process.stdout.readline() != "ready\n":
        assert process.poll() is None
    if is_stopped:
        cluster.nodes[0].stop()
    begin = time.monotonic()
    _, errors = process.communicate("", LIMIT)
    assert (process.returncode, errors) == (0, "")
    assert time.monotonic() - begin < SOON


# Watches


@pytest.mark.parametrize("fault", ["kill", "stop"])
def test_a_watch_of_a_dead_node_ends(cluster: EtcdCluster, etcd: EtcdClient, fault: str) -> None:
    recorder = Recorder()
    watch = recorder.watch(etcd, b"k", from_revision=put(etcd))
    recorder.until(1)
    begin = time.monotonic()
    getattr(cluster.nodes[0], fault)()
    reason = recorder.ended()
    assert isinstance(reason, WatchLostError)
    assert reason.endpoint in cluster.endpoints[0]
    assert time.monotonic() - begin < SOON
    assert watch.join(LIMIT)
    assert recorder.ends == 1


@pytest.mark.parametrize("fault", ["dead", "stopped"])
def test_a_watch_of_a_node_that_never_answers_ends(
    cluster: EtcdCluster, etcd: EtcdClient, fault: str
) -> None:
    if fault == "stopped":
        cluster.nodes[0].stop()
    else:
        cluster.kill()
    recorder = Recorder()
    recorder.watch(etcd, b"k")
    assert isinstance(recorder.ended(SOON), WatchLostError)


def test_a_quiet_watch_of_a_living_node_goes_on(cluster: EtcdCluster, etcd: EtcdClient) -> None:
    recorder = Recorder()
    watch = recorder.watch(etcd, b"k", from_revision=put(etcd))
    recorder.until(1)
    assert not watch.join(3.0)  # Three times the silence that a dead node is allowed.
    put(etcd)
    recorder.until(2)
    watch.close()
    assert watch.join(LIMIT)


def test_a_callback_may_take_its_time(cluster: EtcdCluster, etcd: EtcdClient) -> None:
    recorder = Recorder()
    go_on = threading.Event()

    def on_events(revision: int, events: list[object]) -> None:
        assert go_on.wait(LIMIT)
        recorder.on_events(revision, events)  # type: ignore[arg-type]

    revision = put(etcd)
    watch = etcd.watch(b"k", None, revision, on_events, recorder.on_end)  # type: ignore[arg-type]
    assert not watch.join(3.0)
    go_on.set()
    put(etcd)
    recorder.until(2)
    assert recorder.ends == 0
    watch.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_callback_that_fails_ends_the_watch(cluster: EtcdCluster, etcd: EtcdClient) -> None:
    recorder = Recorder()

    def on_events(revision: int, events: list[object]) -> None:
        raise ZeroDivisionError

    watch = etcd.watch(b"k", None, put(etcd), on_events, recorder.on_end)  # type: ignore[arg-type]
    assert "callback" in str(recorder.ended())
    assert watch.join(LIMIT)


# Three nodes


@pytest.fixture
def three(tmp_path: Path) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path / "etcd", 3) as cluster:
        yield cluster


def test_calls_go_on_after_the_leader_is_killed(three: EtcdCluster) -> None:
    etcd = EtcdClient(three.endpoints)
    done = [put(etcd)]
    three.leader().kill()
    begin = time.monotonic()
    while len(done) < 2 and time.monotonic() < begin + LIMIT:
        if not raised(lambda: done.append(put(etcd, timeout=SHORT))):
            break
        time.sleep(0.05)
    assert len(done) == 2
    assert etcd.read(b"k", timeout=LIMIT).count == 1
    etcd.close()


def test_without_a_majority_calls_fail_at_once_and_watches_end(three: EtcdCluster) -> None:
    last = three.nodes[0]
    etcd = EtcdClient([last.endpoint])
    recorder = Recorder()
    recorder.watch(etcd, b"k", from_revision=put(etcd))
    recorder.until(1)
    for node in three.nodes[1:]:
        node.kill()
    reason = recorder.ended()
    assert isinstance(reason, WatchLostError)
    assert "no leader" in str(reason)
    begin = time.monotonic()
    for _ in range(3):
        assert isinstance(raised(lambda: put(etcd)), UnknownOutcomeError)
    assert time.monotonic() - begin < SOON
    assert etcd.read(b"k", serializable=True, timeout=SHORT).count == 1
    (status,) = etcd.status(SHORT)
    assert status.error is None
    assert status.leader == 0
    late = Recorder()
    late.watch(etcd, b"k")
    assert isinstance(late.ended(), WatchLostError)
    three.start()
    put(etcd)
    etcd.close()


def test_a_watch_that_lost_its_node_has_the_next_one_asked(three: EtcdCluster) -> None:
    etcd = EtcdClient(three.endpoints, silence=1.0)
    recorder = Recorder()
    recorder.watch(etcd, b"k", from_revision=put(etcd))
    recorder.until(1)
    three.nodes[0].stop()
    assert isinstance(recorder.ended(), WatchLostError)
    etcd.read(b"k", timeout=LIMIT)  # The others refuse watches until they have elected a leader.
    again = Recorder()
    again.watch(etcd, b"k", from_revision=1)
    again.until(1)
    etcd.close()


# Space, compaction


def test_a_database_that_is_full(tmp_path: Path) -> None:
    with EtcdCluster(tmp_path / "etcd", 1, "--quota-backend-bytes", "1000000") as cluster:
        etcd = EtcdClient(cluster.endpoints)
        errors = []

        def is_full() -> bool:
            """etcd knows the size of its file since it has written to it last: each 0.1 s."""
            errors.append(raised(lambda: put(etcd, bytes(100_000))))
            return errors[-1] is not None

        eventually(is_full, "etcd refuses to take more")
        assert isinstance(errors[-1], NoSpaceError)
        (alarm,) = etcd.alarms(LIMIT)
        (status,) = etcd.status(LIMIT)
        assert alarm == (status.member_id, "NOSPACE")
        assert "NOSPACE" in " ".join(status.errors)
        assert etcd.read(b"k", timeout=LIMIT).count == 1
        etcd.close()


def test_a_watch_that_compaction_overtakes(cluster: EtcdCluster, etcd: EtcdClient) -> None:
    first = put(etcd)
    recorder = Recorder()
    watch = recorder.watch(etcd, b"k", from_revision=first)
    recorder.until(1)
    etcd.compact(put(etcd), LIMIT)
    recorder.until(2)
    watch.close()
    late = Recorder()
    late.watch(etcd, b"k", from_revision=first)
    reason = late.ended()
    assert isinstance(reason, CompactedRevisionError)
    assert reason.revision == first + 1


# Users


def etcdctl(cluster: EtcdCluster, *words: str) -> None:
    command = ["etcdctl", "--command-timeout", "20s", "--endpoints", cluster.endpoints[0], *words]
    subprocess.run(
        command, check=True, env=environment() | {"ETCDCTL_API": "3"}, timeout=LIMIT,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip


def with_users(cluster: EtcdCluster) -> None:
    """Make a user who may do anything, and one who may see and change keys from k on."""
    etcdctl(cluster, "user", "add", "root:secret")
    etcdctl(cluster, "user", "grant-role", "root", "root")
    etcdctl(cluster, "user", "add", "zkv:pass word")
    etcdctl(cluster, "role", "add", "part")
    etcdctl(cluster, "role", "grant-permission", "part", "readwrite", "k", "l")
    etcdctl(cluster, "user", "grant-role", "zkv", "part")
    etcdctl(cluster, "auth", "enable")


def password_file(directory: Path, text: str, mode: int = 0o600) -> str:
    path = directory / f"password-{len(list(directory.iterdir()))}"
    path.write_text(text + "\n", encoding="utf-8")
    path.chmod(mode)
    return str(path)


def user(directory: Path, name: str = "zkv", password: str = "pass word") -> EtcdSecurity:
    return EtcdSecurity(user=name, password_file=password_file(directory, password))


def test_users_and_their_rights(cluster: EtcdCluster, tmp_path: Path) -> None:
    with_users(cluster)
    etcd = EtcdClient(cluster.endpoints, security=user(tmp_path))
    put(etcd)
    recorder = Recorder()
    recorder.watch(etcd, b"k", from_revision=1)
    recorder.until(1)
    calls: list[Callable[[], object]] = [
        lambda: etcd.transact([], [PutOp(b"x", b"")], timeout=LIMIT),
        lambda: etcd.read(b"x", timeout=LIMIT),
    ]
    for call in calls:
        error = raised(call)
        assert isinstance(error, AccessError)
        assert "permission denied" in str(error)
    refused = Recorder()
    refused.watch(etcd, b"x")
    assert isinstance(refused.ended(), AccessError)
    etcd.close()


def test_who_does_not_log_in_right_is_refused(cluster: EtcdCluster, tmp_path: Path) -> None:
    with_users(cluster)
    wrong = [None, user(tmp_path, password="pass"), user(tmp_path, "nobody")]
    for security in wrong:
        etcd = EtcdClient(cluster.endpoints, security=security)
        recorder = Recorder()
        recorder.watch(etcd, b"k")
        error = raised(partial(put, etcd))
        assert isinstance(error, AccessError)
        assert "pass word" not in str(error)
        assert isinstance(raised(partial(etcd.read, b"k", timeout=LIMIT)), AccessError)
        assert isinstance(recorder.ended(), AccessError)
        etcd.close()


def test_a_user_for_an_etcd_without_users(cluster: EtcdCluster, tmp_path: Path) -> None:
    etcd = EtcdClient(cluster.endpoints, security=user(tmp_path))
    put(etcd)
    with_users(cluster)
    put(etcd)
    etcd.close()


def test_a_client_that_is_closed_while_it_logs_in(cluster: EtcdCluster, tmp_path: Path) -> None:
    with_users(cluster)
    etcd = EtcdClient(cluster.endpoints, security=user(tmp_path))
    recorder = Recorder()
    cluster.nodes[0].stop()
    recorder.watch(etcd, b"k")
    asking = [Asking(lambda: put(etcd)) for _ in range(3)]
    begin = time.monotonic()
    etcd.close()
    assert isinstance(recorder.ended(), EtcdClosedError)
    for each in asking:
        assert isinstance(each.ended(), UnknownOutcomeError | EtcdClosedError)
    assert time.monotonic() - begin < SOON


@pytest.mark.parametrize("call", ["transact", "read", "watch", "compact"])
def test_a_token_that_is_gone_is_renewed(tmp_path: Path, call: str) -> None:
    flags = ("--auth-token", "simple", "--auth-token-ttl", "1")
    with EtcdCluster(tmp_path / "etcd", 1, *flags) as cluster:
        with_users(cluster)
        etcd = EtcdClient(cluster.endpoints, security=user(tmp_path))
        revision = put(etcd)
        security = user(tmp_path, "root", "secret")
        if call == "compact":
            etcd.close()
            etcd = EtcdClient(cluster.endpoints, security=security)
            revision = put(etcd)
        for _ in range(2):
            cluster.kill()
            cluster.start()
            if call == "transact":
                revision = put(etcd, timeout=LIMIT)
            elif call == "read":
                assert etcd.read(b"k", timeout=LIMIT).count == 1
            elif call == "compact":
                revision = put(etcd)
                etcd.compact(revision, LIMIT)
            else:
                recorder = Recorder()
                recorder.watch(etcd, b"k", from_revision=revision)
                recorder.until(1)
        etcd.close()


def test_a_token_that_expires_and_users_that_change(tmp_path: Path) -> None:
    flags = ("--auth-token", "simple", "--auth-token-ttl", "1")
    with EtcdCluster(tmp_path / "etcd", 1, *flags) as cluster:
        with_users(cluster)
        etcd = EtcdClient(cluster.endpoints, security=user(tmp_path))
        put(etcd)
        etcdctl(cluster, "--user", "root:secret", "user", "add", "another:one")
        put(etcd)  # Its token is from before.
        time.sleep(3.0)  # The token is forgotten by then.
        asking = [Asking(lambda: put(etcd)) for _ in range(5)]
        assert [each.ended() for each in asking] == [None] * 5
        etcd.close()


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities, ``ca`` and ``other``, and certificates for a server and a client."""
    directory = tmp_path_factory.mktemp("certificates")

    def openssl(*words: str) -> None:
        subprocess.run(
            ["openssl", *words], cwd=directory, check=True, capture_output=True, timeout=LIMIT
        )

    for name in ("ca", "other"):
        openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "2", "-subj", f"/CN={name}",
        )  # fmt: skip
    for name in ("server", "client"):
        openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}",
        )  # fmt: skip
        (directory / "san").write_text("subjectAltName=IP:127.0.0.1", encoding="utf-8")
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
            "-CAcreateserial", "-out", f"{name}.pem", "-days", "2", "-extfile", "san",
        )  # fmt: skip
    return directory


def test_tls(tmp_path: Path, certificates: Path) -> None:
    def path(name: str) -> str:
        return str(certificates / name)

    flags = (
        "--cert-file", path("server.pem"), "--key-file", path("server.key"),
        "--client-cert-auth", "--trusted-ca-file", path("ca.pem"),
    )  # fmt: skip
    right = EtcdSecurity(ca=path("ca.pem"), cert=path("client.pem"), key=path("client.key"))
    with EtcdCluster(tmp_path / "etcd", tls=flags, security=right) as cluster:
        bare = [each.removeprefix("https://") for each in cluster.endpoints]
        for endpoints in (cluster.endpoints, bare):
            etcd = EtcdClient(endpoints, security=right)
            put(etcd, bytes(1_000_000))
            (item,) = etcd.read(b"k", timeout=LIMIT).items
            assert item.value == bytes(1_000_000)
            watching = Recorder()
            watching.watch(etcd, b"k", from_revision=1)
            watching.until(1)
            etcd.close()
        with EtcdCluster(tmp_path / "plain") as plain:
            first = plain.endpoints[0].removeprefix("http://")  # It does not speak TLS.
            etcd = EtcdClient([first, *bare], security=right)
            error = raised(partial(put, etcd))
            assert isinstance(error, EtcdError)
            # It answers in plain text, or resets the connection with what it has not read.
            assert re.search(r"cannot connect: (\[SSL: |Connection reset)", str(error)), error
            put(etcd)
            etcd.close()
        wrong = EtcdSecurity(ca=path("other.pem"), cert=path("client.pem"), key=path("client.key"))
        etcd = EtcdClient(cluster.endpoints, security=wrong)
        recorder = Recorder()
        recorder.watch(etcd, b"k")
        error = raised(lambda: put(etcd))
        assert isinstance(error, AccessError)
        assert "CERTIFICATE_VERIFY_FAILED" in str(error)
        assert isinstance(recorder.ended(), AccessError)
        etcd.close()
        name = bare[0].replace("127.0.0.1", "localhost")
        for endpoints, security, kind, text in (
            ([name], right, AccessError, "not valid for 'localhost'"),
            (cluster.endpoints, EtcdSecurity(ca=path("ca.pem")), AccessError, "ALERT"),
            (bare, None, UnknownOutcomeError, "cannot connect"),  # It does not speak TLS.
        ):
            etcd = EtcdClient(endpoints, security=security)
            error = raised(partial(put, etcd, timeout=2.0))
            assert isinstance(error, kind)
            assert text in str(error)
            etcd.close()


def test_a_server_of_tls_that_speaks_no_http2(certificates: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with context.wrap_socket(server.accept()[0], server_side=True) as connection:
                connection.recv(1)

        serving = threading.Thread(target=serve)
        serving.start()
        security = EtcdSecurity(ca=str(certificates / "ca.pem"))
        etcd = EtcdClient([f"127.0.0.1:{server.getsockname()[1]}"], security=security)
        error = raised(partial(put, etcd))
        assert isinstance(error, UnknownOutcomeError)
        assert "does not speak HTTP/2" in str(error)
        etcd.close()
        serving.join(LIMIT)


def test_files_for_tls_that_cannot_be_used(tmp_path: Path, certificates: Path) -> None:
    def path(name: str) -> str:
        return str(certificates / name)

    empty, locked = tmp_path / "empty.pem", tmp_path / "locked.key"
    empty.touch()
    subprocess.run(
        ["openssl", "ec", "-in", path("client.key"), "-aes128", "-passout", "pass:x",
         "-out", locked], check=True, capture_output=True, timeout=LIMIT,
    )  # fmt: skip
    cases = [
        (EtcdSecurity(ca=str(empty)), "empty.pem: "),
        (EtcdSecurity(ca=str(tmp_path / "none.pem")), "none.pem: No such file"),
        (EtcdSecurity(cert=path("client.pem"), key=str(tmp_path / "none.key")), "none.key: No "),
        (EtcdSecurity(cert=path("client.pem"), key=path("server.key")), "client.pem, .*server.key"),
        (EtcdSecurity(cert=path("client.pem"), key=str(locked)), "must not have a passphrase"),
    ]
    for security, text in cases:
        with pytest.raises(ConfigError, match=text):
            EtcdClient(["127.0.0.1:1"], security=security)


def test_what_cannot_be_configured(tmp_path: Path) -> None:
    secret = password_file(tmp_path, "p", 0o640)
    cases: list[tuple[list[str], EtcdSecurity | None, str]] = [
        ([], None, "needs an endpoint"),
        (["host"], None, "'host'"),
        (["host:0"], None, "'host:0'"),
        (["ftp://host:1"], None, "'ftp://host:1'"),
        (["http://a:1", "https://b:1"], None, "alike"),
        (["http://a:1"], EtcdSecurity(ca=str(tmp_path / "none")), "http://"),
        (["a:1"], EtcdSecurity(ca=str(tmp_path / "none")), "No such file"),
        (["a:1"], EtcdSecurity(cert="c"), "together"),
        (["a:1"], EtcdSecurity(user="u"), "together"),
        (["a:1"], EtcdSecurity(user="u", password_file=secret), "chmod 600"),
    ]
    for endpoints, security, text in cases:
        with pytest.raises(ConfigError, match=text):
            EtcdClient(endpoints, security=security)
