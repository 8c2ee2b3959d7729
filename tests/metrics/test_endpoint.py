"""`[metrics] endpoint`: figures, health and readiness over HTTP."""

from __future__ import annotations

import contextlib
import math
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import pytest
from prometheus_client import Metric, parser
from prometheus_client.openmetrics import parser as strict_parser

from tests.cluster.figures import is_of_members
from tests.conftest import Connect
from tests.metrics.scraping import CLASSIC, OPENMETRICS, ask
from tests.support import (
    FREE_PORT,
    LIMIT,
    ROOT,
    BadDisk,
    Raw,
    ServerInProcess,
    ServerProcess,
    environment,
    eventually,
)
from zkv.config import build
from zkv.durability.files import Files
from zkv.durability.storage import Storage
from zkv.errors import ConfigError, EndpointError, RequestError
from zkv.figures import COUNTER, FACTS, FIGURES
from zkv.metrics.endpoint import MOST_CONNECTIONS
from zkv.metrics.families import exposition_of
from zkv.protocol.requests import REQUEST_TYPES

FREE: Final = "http://127.0.0.1:*"
NIL_WHILE_WELL: Final = {
    "zkv_read_only_since_timestamp_seconds", "zkv_snapshot_failed_timestamp_seconds",
}  # fmt: skip


@pytest.fixture
def disk() -> BadDisk:
    return BadDisk()


@pytest.fixture
def server(tmp_path: Path, disk: BadDisk) -> Iterator[ServerInProcess]:
    with watched(tmp_path / "data", disk) as server:
        yield server


def watched(directory: Path, files: Files | None = None, interval: float = 0.05) -> ServerInProcess:
    return ServerInProcess(
        directory, files, server={"feed": FREE_PORT}, metrics={"endpoint": FREE},
        durability={"snapshot_interval": interval},
    )  # fmt: skip


@pytest.fixture
def client(server: ServerInProcess, connect: Connect) -> Raw:
    return connect(server.endpoint)


def be_busy(client: Raw) -> None:
    client.ok(op="PUT", key="secret-key", value="secret-value", session="secret-session", seq=1)
    client.call(op="GET", key="secret-absent")
    client.ok(op="COUNT", prefix="secret-")
    client.ok(op="REPLICATE", member="somebody")
    client.exchange(b"secret")
    client.ok(op="SNAPSHOT")


def families(text: str, accept: str) -> dict[str, Metric]:
    parse: Any = strict_parser if accept == OPENMETRICS else parser
    return {each.name: each for each in parse.text_string_to_metric_families(text)}


# --- /metrics


@pytest.mark.parametrize("accept", [CLASSIC, OPENMETRICS])
def test_every_figure_is_a_metric(server: ServerInProcess, client: Raw, accept: str) -> None:
    be_busy(client)
    status, content_type, text = ask(server.server.metrics, "/metrics", accept)
    assert status == 200
    assert content_type.startswith(accept.partition(";")[0])
    found = families(text, accept)
    samples = {sample.name for family in found.values() for sample in family.samples}
    for figure in FIGURES:
        names = {figure.name, f"{figure.name}_count"}
        expected = figure.name not in NIL_WHILE_WELL and not is_of_members(figure)
        assert bool(names & samples) == expected, figure.name
        name = figure.name.removesuffix("_total") if figure.kind == COUNTER else figure.name
        if figure.kind == FACTS and accept == OPENMETRICS:
            name = name.removesuffix("_info")
        if names & samples:
            assert found[name].documentation == figure.help
    assert found.keys() <= {
        figure.name.removesuffix(end) for figure in FIGURES for end in ("", "_total", "_info")
    }


@pytest.mark.parametrize("accept", ["", "*/*", "text/plain", "text/html,*/*;q=0.1", CLASSIC])
def test_who_does_not_ask_for_openmetrics_gets_the_classic_format(
    server: ServerInProcess, accept: str
) -> None:
    answer = ask(server.server.metrics, "/metrics", accept)
    assert answer.content_type.startswith("text/plain; version=")
    assert families(answer.text, CLASSIC)


def test_promtool_finds_no_fault(server: ServerInProcess, client: Raw) -> None:
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("NOT RUN: promtool is not installed here (make monitor-deps)")
    be_busy(client)
    text = ask(server.server.metrics, "/metrics").text
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True,
        timeout=LIMIT, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


def test_requests_and_their_times(server: ServerInProcess, client: Raw) -> None:
    be_busy(client)
    found = families(ask(server.server.metrics, "/metrics", OPENMETRICS).text, OPENMETRICS)
    requests = {
        (sample.labels["op"], sample.labels["code"]): sample.value
        for sample in found["zkv_requests"].samples
    }
    assert requests == {
        ("PUT", "OK"): 1, ("GET", "NOT_FOUND"): 1, ("COUNT", "OK"): 1, ("REPLICATE", "OK"): 1,
        ("SNAPSHOT", "OK"): 1,
        ("-", "BAD_REQUEST"): 1,
    }  # fmt: skip
    times = found["zkv_request_seconds"].samples
    buckets = [
        (float(sample.labels["le"]), sample.value)
        for sample in times
        if sample.name.endswith("_bucket") and sample.labels["op"] == "PUT"
    ]
    bounds, found_up_to = zip(*buckets, strict=True)
    assert found_up_to[-1] == 1
    assert list(bounds) == [*(2**step / 1e6 for step in range(3, 24)), math.inf]
    (spent,) = [
        sample.value
        for sample in times
        if sample.name.endswith("_sum") and sample.labels["op"] == "PUT"
    ]
    assert not any(count for bound, count in buckets if bound < spent / 1.01)
    assert all(count for bound, count in buckets if bound > spent * 1.01)


def test_no_label_has_a_key_or_a_value(server: ServerInProcess, client: Raw) -> None:
    be_busy(client)
    assert "secret" not in ask(server.server.metrics, "/metrics").text


def test_series_are_bounded() -> None:
    """By ops and codes. docs/monitoring.md has the number."""
    ops = [*REQUEST_TYPES, "-"]
    codes = [cls.code for cls in leaves(RequestError)]
    counts = [1] * 64
    info: dict[str, Any] = {"durability": {"refusal": None}}
    for figure in FIGURES:
        for path in figure.paths:
            *way, name = path.split(".")
            place = info
            for step in way:
                place = place.setdefault(step, {})
            place.setdefault(name, {"counts": counts, "sum": 1, "count": 1} if (
                figure.kind in {"histogram", "summary"} and not figure.labels
            ) else dict.fromkeys(figure.members, 1) if figure.members else 1)  # fmt: skip
    info["replication"] |= {"role": "x", "store": "x"}
    info["version"] = info["stats"]["mailbox"] = info["stats"]["store"] = "x"
    info["stats"]["handshakes_failed"] = dict.fromkeys(("auth", "protocol", "other"), 1)
    info["stats"]["memory"] |= {"used": 1}
    info["stats"]["snapshot"]["failure"] = ""
    info["stats"] |= {
        "requests": dict.fromkeys(ops, 1), "succeeded": dict.fromkeys(ops, 1),
        "failures_by_op": {op: dict.fromkeys(codes, 1) for op in ops},
        "latencies": dict.fromkeys(ops, counts), "seconds": dict.fromkeys(ops, 1.0),
    }  # fmt: skip
    text = exposition_of(info, "")[0].decode()
    series = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(series) == len({line.rpartition(" ")[0] for line in series})
    told = re.search(r"at most ([\d,]+) series", (ROOT / "docs" / "monitoring.md").read_text())
    assert told is not None
    assert len(series) <= int(told[1].replace(",", "")) <= len(series) + 100


def leaves(cls: type[RequestError]) -> Iterator[type[RequestError]]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from leaves(subclass)


def test_nothing_is_revealed_that_may_be_rolled_back(
    server: ServerInProcess, client: Raw, disk: BadDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.ok(op="PUT", key="k", value=1)
    gate, waits = threading.Event(), threading.Event()

    def wait(file: BinaryIO) -> None:
        waits.set()
        gate.wait(LIMIT)

    monkeypatch.setattr(disk, "sync", wait)
    client.send(b"\x83\xa2op\xa3PUT\xa3key\xa1k\xa5value\x02")
    assert waits.wait(LIMIT)
    text = ask(server.server.metrics, "/metrics").text
    gate.set()
    client.receive()
    assert "zkv_revision 1.0" in text


# --- /healthz and /readyz


def status(server: ServerInProcess, path: str) -> int:
    return ask(server.server.metrics, path).status


def test_a_server_that_is_well(server: ServerInProcess) -> None:
    for path in ("/healthz", "/readyz", "/readyz?for=write"):
        assert status(server, path) == 200, path


@pytest.mark.parametrize(
    ("path", "method", "code"),
    [
        ("/", "GET", 404), ("/metrics/", "GET", 404), ("/readyz?for=read", "GET", 400),
        ("/readyz?for=write&x=1", "GET", 400), ("/readyz?for", "GET", 400),
        ("/metrics", "POST", 501), ("/healthz", "HEAD", 200), ("/nothing", "HEAD", 404),
    ],
)  # fmt: skip
def test_what_else_is_asked(server: ServerInProcess, path: str, method: str, code: int) -> None:
    assert ask(server.server.metrics, path, method=method).status == code


def test_a_full_disk_is_not_ready_for_writes_until_it_has_space(
    server: ServerInProcess, client: Raw, disk: BadDisk
) -> None:
    """Also if nobody writes meanwhile, because the server is not ready."""
    disk.full = True
    assert client.call(op="PUT", key="k", value=1)["code"] == "READ_ONLY"
    assert status(server, "/readyz?for=write") == 503
    assert (status(server, "/readyz"), status(server, "/healthz")) == (200, 200)
    assert "zkv_read_only 1.0" in ask(server.server.metrics, "/metrics").text
    disk.full = False
    eventually(lambda: status(server, "/readyz?for=write") == 200, "it is ready again")
    assert client.ok(op="PUT", key="k", value=2)["rev"] == 1
    assert not list((Path(server.server._settings.durability.data_dir or "") / "wal").glob("*.tmp"))


def test_a_server_that_stops_is_not_ready(
    server: ServerInProcess, client: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, save = threading.Event(), Storage.save

    def wait(*arguments: Any) -> Any:
        gate.wait(LIMIT)
        return save(*arguments)

    monkeypatch.setattr(Storage, "save", wait)
    client.ok(op="PUT", key="k", value=1)
    client.send(b"\x81\xa2op\xa3END")
    eventually(lambda: status(server, "/readyz?for=write") == 503, "it is not ready for writes")
    assert (status(server, "/readyz"), status(server, "/healthz")) == (503, 200)
    gate.set()
    client.receive()
    assert server.wait()
    with pytest.raises(ConnectionRefusedError):
        status(server, "/healthz")


def test_a_server_that_loads_its_data_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, load = threading.Event(), Storage.load

    def wait(*arguments: Any) -> Any:
        gate.wait(LIMIT)
        return load(*arguments)

    monkeypatch.setattr(Storage, "load", wait)
    server = watched(tmp_path / "data")
    starting = threading.Thread(target=server.__enter__)
    starting.start()
    eventually(lambda: server.server.metrics, "it listens")
    for path in ("/readyz", "/readyz?for=write", "/metrics"):
        assert ask(server.server.metrics, path)[::2] == (503, "the server is loading its data\n")
    assert status(server, "/healthz") == 200
    gate.set()
    starting.join()
    assert status(server, "/readyz?for=write") == 200
    assert server.stop()


# --- The endpoint


def test_who_is_silent_keeps_nobody_out(
    server: ServerInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it cost a thread for ever, even if nobody loses patience."""
    monkeypatch.setattr("zkv.metrics.endpoint._Handler.timeout", None)
    host, _, port = server.server.metrics.removeprefix("http://").rpartition(":")
    address = (host, int(port))
    with contextlib.ExitStack() as stack:
        oldest, *_ = [
            stack.enter_context(socket.create_connection(address, LIMIT))
            for _ in range(3 * MOST_CONNECTIONS)
        ]
        assert status(server, "/metrics") == 200
        assert oldest.recv(1) == b""
        assert server.stop()


def test_without_the_setting_there_is_nothing(tmp_path: Path) -> None:
    """Neither a thread nor the package that is needed."""
    code = (
        "import sys, threading, zkv\n"
        "with zkv.Server():\n"
        "    print([t.name for t in threading.enumerate() if 'metrics' in t.name])\n"
        "    print('prometheus_client' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), cwd=tmp_path, capture_output=True,
        text=True, timeout=LIMIT, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["[]", "False"]


def test_the_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zkv.metrics.families", None)
    with pytest.raises(EndpointError, match=r"^metrics\.endpoint needs .*pip install prometheus-"):
        watched(tmp_path / "data")


def test_an_endpoint_that_is_taken_is_named(server: ServerInProcess, tmp_path: Path) -> None:
    other = ServerInProcess(tmp_path / "other", metrics={"endpoint": server.server.metrics})
    with pytest.raises(EndpointError, match=r"^metrics\.endpoint: http://.*in use"):
        other.server.start()
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("endpoint", "why"),
    [
        ("127.0.0.1:9555", "expected http://HOST:PORT"), ("https://h:1", "expected http://"),
        ("tcp://127.0.0.1:9555", "expected http://"), ("http://", "expected http://"),
        ("http://127.0.0.1", "a port is missing"), ("http://:9555", "a host is missing"),
        ("http://127.0.0.1:9555/", "must not contain /; expected http://"),
        ("http://127.0.0.1:70000", "over 65535"), ("http://::1:9555", "brackets"),
        ("http://127.0.0.1:9555\n", "expected http://"), ("http://300.0.0.1:1", "no IPv4"),
    ],
)  # fmt: skip
def test_a_wrong_endpoint_is_named(endpoint: str, why: str) -> None:
    with pytest.raises(ConfigError, match=rf"metrics\.endpoint: .*{re.escape(why)}"):
        build({"metrics": {"endpoint": endpoint}})


def test_ipv6(tmp_path: Path) -> None:
    with ServerInProcess(tmp_path / "data", metrics={"endpoint": "http://[::1]:0"}) as server:
        assert server.server.metrics.startswith("http://[::1]:")
        assert status(server, "/healthz") == 200


def test_the_log_names_the_endpoint(tmp_path: Path) -> None:
    config = f'[metrics]\nendpoint = "{FREE}"\n'
    with ServerProcess(tmp_path / "server", config=config) as server:
        found = re.search(r"metrics at (http://127\.0\.0\.1:\d+)/metrics", server.log())
        assert found is not None, server.log()
        assert ask(found[1], "/readyz").text == "ready\n"
        assert server.stop() == 0
