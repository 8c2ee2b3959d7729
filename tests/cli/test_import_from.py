"""``zkv-cli import --from``: entries of Redis, of etcd and of dbm files, from real ones."""

from __future__ import annotations

import base64
import datetime
import json
import os
import pickle
import shelve
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dbm import dumb
from pathlib import Path
from typing import Any, Final

import msgpack
import pytest

from tests.cli import redis_server
from tests.cli.running import COMMAND, Cli, Result, run
from tests.etcd.nodes import EtcdCluster
from tests.support import (
    ROOT,
    Raw,
    ServerInProcess,
    environment,
    eventually,
    free_ports,
)
from zkv.etcd.client import EtcdClient

HIDDEN: Final = "no-secret-at-all"


class Redis:
    """A server that the tests share, empty for each; its URL has no password."""

    def __init__(self, url: str, client: Any) -> None:
        self.url = url
        self.client = client


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    if redis_server.PROGRAM is None:
        pytest.skip(redis_server.MISSING)
    with redis_server.running(tmp_path_factory.mktemp("redis")) as (url, client):
        yield Redis(url, client)


@pytest.fixture
def redis(shared_redis: Redis) -> Redis:
    shared_redis.client.flushall()
    return shared_redis


def told(result: Result) -> dict[str, Any]:
    """What ``--json`` printed, without what is different each time."""
    found: dict[str, Any] = json.loads(result.stdout)
    assert found.pop("seconds") >= 0
    return found


def left_out(result: Result) -> set[str]:
    """The lines that name what is left out, without their beginning."""
    begin = "zkv-cli: left out "
    lines = result.stderr.decode().splitlines()
    return {line.removeprefix(begin) for line in lines if line.startswith(begin)}


def values(client: Raw) -> dict[str, Any]:
    page = client.ok(op="SCAN", limit=1000)
    assert page["next"] is None
    return {key: value for key, value, _ in page["items"]}


def assert_verified(result: Result, count: int) -> None:
    found = told(result)
    assert found["verified"] is True, result.stderr
    assert found["read"] == found["found"]
    assert found["read"]["count"] == count


# Redis.


def test_strings_of_redis_come_over_with_their_times(cli: Cli, client: Raw, redis: Redis) -> None:
    redis.client.mset({"a": b"text", "b": bytes(range(256)), "ü": b""})
    redis.client.set("soon", b"1", px=90_000)

    printed = cli("import", "--from", redis.url)

    assert printed.stdout.startswith(
        b"OK, 4 stored, revision 1\nverified: what was read is there, count 4, "
    )
    assert values(client) == {"a": b"text", "b": bytes(range(256)), "ü": b"", "soon": b"1"}
    assert 80 < client.ok(op="GET", key="soon")["ttl"] <= 90
    assert "ttl" not in client.ok(op="GET", key="a")


def test_many_keys_of_redis_come_over(cli: Cli, client: Raw, redis: Redis) -> None:
    redis.client.mset({f"{number:05}": str(number) for number in range(2500)})
    redis.client.mset({f"large{number}": b"x" * 400_000 for number in range(4)})

    result = cli("import", "--from", redis.url, "--json")

    assert_verified(result, 2504)
    assert client.ok(op="COUNT")["count"] == 2504
    assert client.ok(op="GET", key="02499")["value"] == b"2499"


def test_what_zkv_cannot_hold_is_named_and_counted(cli: Cli, client: Raw, redis: Redis) -> None:
    redis.client.mset({b"\xff": b"1", b"": b"2", b"\0a": b"3", "k" * 1025: b"4", "good": b"5"})
    redis.client.set("large", b"x" * (16 * 2**20 + 1))
    redis.client.rpush("list", "a")
    redis.client.xadd("stream", {"a": "b"})

    result = cli("import", "--from", redis.url, "--json", status=1)

    assert left_out(result) == {
        r"b'\xff': its key is not UTF-8",
        "'': its key is empty",
        r"'\x00a': its key begins with U+0000, which is reserved",
        f"'{'k' * 199}...: its key has 1025 bytes, over limits.max_key_bytes, 1024",
        "'large': its value has 16777217 bytes, over 16777216",
        "'list': it is a list",
        "'stream': it is a stream",
    }
    found = told(result)
    assert (found["stored"], found["left_out"], found["verified"]) == (1, 7, True)
    assert values(client) == {"good": b"5"}


def test_structures_of_redis_become_values_if_asked_for(
    cli: Cli, client: Raw, redis: Redis
) -> None:
    redis.client.hset("hash", mapping={"b": "2", "a": "1"})
    redis.client.rpush("list", "x", "y", "x")
    redis.client.sadd("set", "c", "a", "b")
    redis.client.zadd("zset", {"two": 2, "one": 1.5})
    redis.client.expire("list", 100)
    redis.client.hset("odd", b"\xff", "1")
    redis.client.rpush("odd list", b"\xff")

    command = ["import", "--from", redis.url, "--structures", "--values", "text", "--json"]
    result = cli(*command, status=1)

    assert values(client) == {
        "hash": {"a": "1", "b": "2"},
        "list": ["x", "y", "x"],
        "set": ["a", "b", "c"],
        "zset": [["one", 1.5], ["two", 2.0]],
    }
    assert 90 < client.ok(op="GET", key="list")["ttl"] <= 100
    assert left_out(result) == {
        r"'odd': of its parts: the field b'\xff' is not UTF-8",
        "'odd list': of its parts: its value is not UTF-8",
    }
    assert told(cli(*command, status=1))["there"] == 4


@pytest.mark.parametrize(
    ("form", "data", "value"),
    [
        ("bin", b"5", b"5"),
        ("text", b"5", "5"),
        ("json", b'{"a": [5, 1.5]}', {"a": [5, 1.5]}),
        ("json", b'{"$bin": "AA=="}', {"$bin": "AA=="}),
        ("msgpack", msgpack.packb({"a": b"\0"}), {"a": b"\0"}),
    ],
)
def test_the_form_of_values_is_said(
    cli: Cli, client: Raw, redis: Redis, form: str, data: bytes, value: Any
) -> None:
    redis.client.set("good", data)
    redis.client.set("bad", b"\xc1 nonsense")

    result = cli("import", "--from", redis.url, "--values", form, status=int(form != "bin"))

    assert client.ok(op="GET", key="good")["value"] == value
    assert len(left_out(result)) == (form != "bin")


def test_a_prefix_is_no_pattern(cli: Cli, client: Raw, redis: Redis) -> None:
    redis.client.mset({"a*[x-z]?^\\1": b"", "a*2": b"", "ab": b"", "a*[x-z]?^\\": b""})

    cli("import", "--from", redis.url, "--prefix", "a*[x-z]?^\\")

    assert set(values(client)) == {"a*[x-z]?^\\1", "a*[x-z]?^\\"}


def test_a_second_run_writes_only_what_differs(cli: Cli, client: Raw, redis: Redis) -> None:
    redis.client.mset({f"{number:04}": b"1" for number in range(100)})
    redis.client.set("t", b"1", ex=100)
    cli("import", "--from", redis.url)
    before = client.ok(op="INFO")["rev"]
    assert told(cli("import", "--from", redis.url, "--json"))["there"] == 101
    assert client.ok(op="INFO")["rev"] == before

    client.ok(op="PUT", key="0001", value=b"another")
    client.ok(op="DELETE", key="0002")
    client.ok(op="TOUCH", key="t", ttl=500)
    result = cli("import", "--from", redis.url, "--json")

    assert (told(result)["stored"], told(result)["there"]) == (3, 98)
    assert values(client)["0001"] == b"1"
    assert client.ok(op="GET", key="t")["ttl"] <= 100


def test_a_password_is_read_from_a_file_and_never_shown(
    cli: Cli, client: Raw, redis: Redis, tmp_path: Path
) -> None:
    redis.client.acl_setuser("ann", enabled=True, passwords=[f"+{HIDDEN}"], commands=["+@all"],
                             keys=["*"])  # fmt: skip
    redis.client.set("a", b"1")
    file = tmp_path / "password"
    file.write_text("wrong\n")
    file.chmod(0o600)
    url = redis.url.replace("unix://", "unix://ann@") + f"?password_file={file}"
    wrong = cli("import", "--from", url, status=2)
    in_url = redis.url.replace("unix://", f"unix://ann:{HIDDEN}x@")
    also_wrong = cli("import", "--from", in_url, status=2)
    file.write_text(f"{HIDDEN}\n")

    cli("import", "--from", url)

    assert values(client) == {"a": b"1"}
    assert b"invalid username-password pair" in wrong.stderr
    assert b"invalid username-password pair" in also_wrong.stderr
    assert HIDDEN.encode() not in also_wrong.stderr + also_wrong.stdout


# etcd.


def grant(node: EtcdCluster, ttl: int) -> str:
    """A lease."""
    found: str = post(node, "lease/grant", {"TTL": ttl})["ID"]
    return found


def put(node: EtcdCluster, key: bytes, value: bytes, lease: str = "0") -> None:
    fields = {"key": base64.b64encode(key).decode(), "value": base64.b64encode(value).decode()}
    post(node, "kv/put", fields | {"lease": lease})


def post(node: EtcdCluster, path: str, body: dict[str, Any]) -> Any:
    """Call etcd as its gateway for JSON offers."""
    url = f"{node.endpoints[0]}/v3/{path}"
    request = urllib.request.Request(url, json.dumps(body).encode())
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def from_etcd(node: EtcdCluster) -> str:
    return f"etcd://{node.endpoints[0].partition('//')[2]}"


def test_a_prefix_of_etcd_comes_over_with_leases_as_times(
    cli: Cli, client: Raw, node: EtcdCluster
) -> None:
    lease = grant(node, 300)
    put(node, b"/app/a", b"1")
    put(node, b"/app/b", b"2", lease)
    put(node, b"/app/\xff", b"3")
    put(node, b"/apq", b"4")

    result = cli("import", "--from", from_etcd(node), "--prefix", "/app/", "--json", status=1)

    assert_verified(result, 2)
    assert left_out(result) == {r"b'/app/\xff': its key is not UTF-8"}
    assert values(client) == {"/app/a": b"1", "/app/b": b"2"}
    assert 200 < client.ok(op="GET", key="/app/b")["ttl"] <= 300
    assert "ttl" not in client.ok(op="GET", key="/app/a")
    again = cli("import", "--from", from_etcd(node), "--prefix", "/app/", "--json", status=1)
    assert (told(again)["there"], told(again)["stored"]) == (2, 0)


def test_many_keys_of_etcd_come_over(cli: Cli, client: Raw, node: EtcdCluster) -> None:
    for number in range(130):
        put(node, b"/many/%03d" % number, b"x" * (1 + 100_000 * (number % 2)))

    result = cli("import", "--from", from_etcd(node), "--prefix", "/many/", "--json")

    assert_verified(result, 130)
    assert list(values(client)) == [f"/many/{number:03}" for number in range(130)]


def test_the_time_to_live_of_a_lease(node: EtcdCluster) -> None:
    etcd = EtcdClient(node.endpoints)
    try:
        lease = int(grant(node, 300))
        put(node, b"/leased", b"", str(lease))
        assert etcd.read(b"/leased", timeout=10).items[0].lease == lease
        left = etcd.lease_time_to_live(lease, 10)
        assert left is not None
        assert 200 < left <= 300
        post(node, "lease/revoke", {"ID": str(lease)})
        assert etcd.lease_time_to_live(lease, 10) is None
    finally:
        etcd.close()


# Files.


def test_a_file_of_dbm_comes_over_as_bytes(cli: Cli, client: Raw, tmp_path: Path) -> None:
    with dumb.open(str(tmp_path / "file"), "n") as file:
        for number in range(1500):
            file[b"%04d" % number] = b"\xff%d" % number
        file[b"\xff"] = b""

    result = cli("import", "--from", f"dbm:{tmp_path}/file", "--json", status=1)

    assert_verified(result, 1500)
    assert left_out(result) == {r"b'\xff': its key is not UTF-8"}
    assert client.ok(op="GET", key="1499")["value"] == b"\xff1499"
    prefix = cli("import", "--from", f"dbm:{tmp_path}/file", "--prefix", "14", "--json")
    assert told(prefix)["there"] == 100


def test_what_the_store_refuses_is_left_out_alone(cli: Cli, client: Raw, tmp_path: Path) -> None:
    with dumb.open(str(tmp_path / "file"), "n") as file:
        for number in range(9):
            file[b"%d" % number] = b"\x91" * (600 if number in {2, 7} else 5) + b"\0"

    command = ["import", "--from", f"dbm:{tmp_path}/file", "--values", "msgpack", "--json"]
    result = cli(*command, status=1)

    assert_verified(result, 7)
    assert {line[:4] for line in left_out(result)} == {"'2':", "'7':"}
    assert sorted(values(client)) == list("0134568")


def test_a_shelf_is_unpickled_only_if_asked_for(cli: Cli, client: Raw, tmp_path: Path) -> None:
    made = tmp_path / "made"
    with shelve.open(str(tmp_path / "shelf")) as shelf:
        shelf["a"] = {"x": [1, (2.5, None)]}
        shelf["day"] = datetime.date(2026, 1, 31)
        shelf["runs"] = Runs(made)

    refused = cli("import", "--from", f"shelve:{tmp_path}/shelf", status=2)
    cli("import", "--from", f"dbm:{tmp_path}/shelf")

    assert b"--values pickle" in refused.stderr
    assert not made.exists()
    assert pickle.loads(client.ok(op="GET", key="a")["value"]) == {"x": [1, (2.5, None)]}

    result = cli("import", "--from", f"shelve:{tmp_path}/shelf", "--values", "pickle", status=1)

    assert made.exists()
    assert client.ok(op="GET", key="a")["value"] == {"x": [1, [2.5, None]]}
    assert left_out(result) == {
        "'day': its value is none of msgpack: cannot store a date: msgpack has no type for it"
    }


class Runs:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._path),)


class Reads:
    """Is the text of a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.read_text, (self._path,)


def test_an_import_that_was_killed_goes_on(
    server: ServerInProcess, client: Raw, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with shelve.open(str(tmp_path / "shelf")) as shelf:
        for number in range(1500):
            shelf[f"{number:04}"] = Reads(pipe) if number == 1200 else number
    command = ["-e", server.endpoint, "import", "--values", "pickle", "--json"]
    command += ["--from", f"shelve:{tmp_path}/shelf"]
    with subprocess.Popen([*COMMAND, *command], cwd=ROOT, env=environment()) as process:
        eventually(lambda: client.ok(op="COUNT")["count"] == 1000, "a batch is stored")
        process.kill()
    pipe.unlink()
    pipe.write_text("whole")

    went_on = run(*command)

    assert (told(went_on)["stored"], told(went_on)["there"]) == (500, 1000)
    assert_verified(went_on, 1500)
    assert client.ok(op="GET", key="1200")["value"] == "whole"


def test_what_is_not_there_afterwards_is_told(tmp_path: Path) -> None:
    """A cache evicts it at once."""
    with dumb.open(str(tmp_path / "file"), "n") as file:
        for number in range(10):
            file[b"c/%d" % number] = b"x" * 1000
    cache: Any = [{"prefix": "c/", "max_bytes": 5_000}]
    command = ["import", "--from", f"dbm:{tmp_path}/file"]
    with ServerInProcess(tmp_path / "data", cache=cache) as server, Raw(server.endpoint) as client:
        result = run("-e", server.endpoint, *command)
        count = client.ok(op="COUNT")["count"]

    assert result.returncode == 2
    assert 0 < count < 10
    assert b"NOT VERIFIED: what was read has count 10, hash " in result.stdout
    assert f"; what is there has count {count}, hash ".encode() in result.stdout
    assert result.stderr.count(b"is not there") == 10 - count


def test_a_source_that_fails_is_told(cli: Cli, client: Raw, tmp_path: Path) -> None:
    with dumb.open(str(tmp_path / "file"), "n") as file:
        for number in range(1500):
            file[b"%04d" % number] = b""
    index = tmp_path / "file.dir"
    index.write_bytes(index.read_bytes() + b"nonsense\n")

    failed = cli("import", "--from", f"dbm:{tmp_path}/file", status=2)

    assert f"{tmp_path}/file: it is damaged: ".encode() in failed.stderr
    assert client.ok(op="COUNT")["count"] == 0


# What is asked for.


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--from", "http://a"], "begins with one of redis:, rediss:, unix:, etcd:, dbm:, shelve:"),
        (["--from", "redis"], "begins with one of"),
        (["--from", "dbm:a", "file"], "not both"),
        (["--from", "dbm:a", "--format", "json"], "--values"),
        (["--from", "dbm:a", "--resume", "state"], "run again"),
        (["--from", "dbm:a", "--structures"], "--structures goes with --from redis:"),
        (["--from", "dbm:/nowhere/a"], "/nowhere/a: "),
        (["--from", "redis://a", "--values", "pickle"], "what redis sends is not unpickled"),
        (["--from", "etcd://a:1", "--values", "pickle"], "what etcd sends is not unpickled"),
        (["--from", "redis://127.0.0.1:1/x"], "a database is a number, not 'x'"),
        (["--from", "redis://u:p@127.0.0.1:{port}"], "redis://127.0.0.1:{port}: "),
        (["--from", "etcd://u:p@127.0.0.1:1"], "password_file"),
        (["--from", "etcd://127.0.0.1:1/a"], "--prefix"),
        (["--from", "etcd://127.0.0.1"], "HOST:PORT"),
        (["--from", "etcd://127.0.0.1:1?nonsense=1"], "'nonsense' is no option for etcd"),
        (["--from", "etcd://127.0.0.1:{port}"], "etcd://127.0.0.1:{port}: "),
        (["--prefix", "a"], "--prefix goes with --from"),
        (["--values", "bin"], "--values goes with --from"),
        (["--structures"], "--structures goes with --from"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_what_cannot_be_is_refused(cli: Cli, client: Raw, words: list[str], why: str) -> None:
    port = str(free_ports(1)[0])
    result = cli("import", *(word.format(port=port) for word in words), status=2)
    assert why.format(port=port) in result.stderr.decode()
    assert client.ok(op="COUNT")["count"] == 0


@pytest.mark.parametrize(
    ("package", "url"), [("redis", "redis://127.0.0.1:1"), ("hpack", "etcd://127.0.0.1:1")]
)
def test_a_package_that_is_missing_is_named(
    server: ServerInProcess, package: str, url: str
) -> None:
    words = ["zkv-cli", "-e", server.endpoint, "import", "--from", url]
    program = (
        f"import sys; sys.modules[{package!r}] = None; "
        f"from zkv.cli.client import main; sys.exit(main({words[1:]!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment(), capture_output=True,
        check=False,
    )  # fmt: skip
    extra = {"redis": "redis", "hpack": "etcd"}[package]
    assert done.returncode == 2
    assert f"pip install 'zkv[{extra}]'" in done.stderr.decode()
