"""One check of endpoints, for the server, the clients and all tools: what each of them is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest

import zkv
from tests.forking import ZKV, ZKV_BENCH, ZKV_CLI, Program, run_forked, run_zkv
from zkv.endpoint import (
    LONGEST_PATH,
    LONGEST_PREFIX,
    StoreUrl,
    check_option,
    check_to_bind,
    check_to_connect,
    split_store_url,
)
from zkv.errors import ConfigError

WRONG = {
    "nothing": ("", "expected tcp://"),
    "no transport": ("127.0.0.1:5555", "expected tcp://"),
    "a name alone": ("localhost", "expected tcp://"),
    "another transport": ("udp://127.0.0.1:5555", "expected tcp://"),
    "http": ("http://127.0.0.1:5555", "expected tcp://"),
    "one slash": ("tcp:/127.0.0.1:5555", "expected tcp://"),
    "nothing behind tcp": ("tcp://", "expected tcp://"),
    "nothing behind ipc": ("ipc://", "expected tcp://"),
    "nothing behind inproc": ("inproc://", "expected tcp://"),
    "upper case": ("TCP://127.0.0.1:5555", "lower case"),
    "space before it": (" tcp://127.0.0.1:5555", "lower case"),
    "space behind it": ("tcp://127.0.0.1:5555 ", "white space"),
    "space behind a path": ("ipc:///tmp/zkv ", "white space"),
    "end of a line": ("tcp://127.0.0.1:5555\n", "control character"),
    "end of a line in a path": ("ipc:///tmp/zkv\r\n", "control character"),
    "NUL": ("ipc://a\0b", "NUL"),
    "no UTF-8 in a host": ("tcp://\udcff:5555", "UTF-8"),
    "no UTF-8 in a port": ("tcp://127.0.0.1:5\udcff", "UTF-8"),
    "no UTF-8 in a path": ("ipc:///tmp/\udcff", "UTF-8"),
    "no UTF-8 in a name": ("inproc://\udcff", "UTF-8"),
    "no port": ("tcp://127.0.0.1", "port is missing"),
    "no port behind the colon": ("tcp://127.0.0.1:", "port is missing"),
    "no port behind brackets": ("tcp://[::1]", "port is missing"),
    "no host": ("tcp://:5555", "host is missing"),
    "no colon": ("tcp://5555", "port is missing"),
    "no brackets": ("tcp://::1:5555", "brackets"),
    "neither brackets nor port": ("tcp://fe80::1", "brackets"),
    "port over 16 bits": ("tcp://127.0.0.1:65536", "over 65535"),
    "port that a cut makes right": (f"tcp://127.0.0.1:{65536 + 5555}", "over 65535"),
    "port over all": ("tcp://127.0.0.1:" + "9" * 5000, "over 65535"),
    "port below 0": ("tcp://127.0.0.1:-1", "not a port number"),
    "port with a sign": ("tcp://127.0.0.1:+5555", "not a port number"),
    "port is a word": ("tcp://127.0.0.1:http", "not a port number"),
    "port in hex": ("tcp://127.0.0.1:0x15b3", "not a port number"),
    "port with a point": ("tcp://127.0.0.1:5555.0", "not a port number"),
    "port of other digits": ("tcp://127.0.0.1:\uff15\uff15", "not a port number"),
    "port with zeros": ("tcp://127.0.0.1:05555", "begins with 0"),
    "space before the port": ("tcp://127.0.0.1: 5555", "not a port number"),
    "a path behind it": ("tcp://127.0.0.1:5555/0", "must not contain /"),
    "a slash behind it": ("tcp://127.0.0.1:5555/", "must not contain"),
    "a query behind it": ("tcp://127.0.0.1:5555?timeout=1", "must not contain"),
    "a source address": ("tcp://127.0.0.1:0;127.0.0.1:5555", "must not contain"),
    "user": ("tcp://me@127.0.0.1:5555", "user"),
    "user and password": ("tcp://me:secret@127.0.0.1:5555", "user"),
    "a number too large": ("tcp://127.0.0.256:5555", "IPv4"),
    "too few numbers": ("tcp://127.1:5555", "IPv4"),
    "too many numbers": ("tcp://127.0.0.1.1:5555", "IPv4"),
    "octal": ("tcp://127.0.0.01:5555", "IPv4"),
    "hex": ("tcp://0x7f000001:5555", "IPv4"),
    "one number": ("tcp://2130706433:5555", "IPv4"),
    "name in brackets": ("tcp://[localhost]:5555", "IPv6"),
    "IPv4 in brackets": ("tcp://[127.0.0.1]:5555", "IPv6"),
    "empty brackets": ("tcp://[]:5555", "IPv6"),
    "half brackets": ("tcp://[::1:5555", "IPv6"),
    "other half of brackets": ("tcp://::1]:5555", "brackets"),
    "no IPv6 address": ("tcp://[::g]:5555", "IPv6"),
    "empty label": ("tcp://a..b:5555", "nor a host name"),
    "space in a name": ("tcp://local host:5555", "nor a host name"),
    "hyphen before a name": ("tcp://-a.b:5555", "nor a host name"),
    "underscore before a name": ("tcp://_a.b:5555", "nor a host name"),
    "label too long": (f"tcp://{'a' * 64}:5555", "nor a host name"),
    "name too long": (f"tcp://{'a.' * 130}b:5555", "nor a host name"),
    "name that is not ASCII": ("tcp://b\u00fccher:5555", "Punycode"),
    "path too long": ("ipc:///" + "x" * LONGEST_PATH, "108 bytes, over 107"),
    "path too long in UTF-8": ("ipc:///" + "\u00e9" * 54, "109 bytes, over 107"),
    "abstract without a name": ("ipc://@", "after the @ is missing"),
}
FOR_SERVERS = [
    "tcp://*:5555", "tcp://127.0.0.1:*", "tcp://127.0.0.1:0", "tcp://[::1]:*", "tcp://*:*",
    "ipc://*",
]  # fmt: skip
RIGHT = [
    "tcp://127.0.0.1:5555", "tcp://127.0.0.1:1", "tcp://127.0.0.1:65535", "tcp://localhost:5555",
    "tcp://a-b.c_d.example.:5555", "tcp://0.0.0.0:5555", "tcp://[::1]:5555", "tcp://[::]:5555",
    "tcp://[fe80::1%eth0]:5555", "tcp://[::ffff:127.0.0.1]:5555", "tcp://1a:5555",
    "ipc:///tmp/zkv", "ipc://relative/path", "ipc:///with space/zkv", "ipc://@abstract",
    "ipc:///" + "x" * (LONGEST_PATH - 1), "ipc:///tmp/\u00e9", "inproc://name",
]  # fmt: skip


@pytest.mark.parametrize(("endpoint", "why"), WRONG.values(), ids=WRONG)
def test_what_is_no_endpoint_is_told_alike_to_all(endpoint: str, why: str) -> None:
    for look in (check_to_bind, check_to_connect, zkv.Client, zkv.AsyncClient):
        with pytest.raises(ValueError, match=why) as caught:
            look(endpoint)
        assert "endpoint" in str(caught.value)
    with pytest.raises(ConfigError, match=why) as refused:
        zkv.Server(endpoint)
    assert "server.endpoints" in str(refused.value)
    if endpoint:
        with pytest.raises(ConfigError, match=f"server.feed: .*{why}"):
            zkv.Server(feed=endpoint)


@pytest.mark.parametrize("endpoint", RIGHT)
def test_what_is_an_endpoint_is_taken(endpoint: str) -> None:
    check_to_bind(endpoint)
    assert check_to_connect(endpoint) == endpoint
    zkv.Server(endpoint, feed="")
    with zkv.Client([endpoint, endpoint]):
        zkv.AsyncClient(endpoint)


@pytest.mark.parametrize("endpoint", FOR_SERVERS)
def test_what_stands_for_many_places_is_for_servers(endpoint: str) -> None:
    check_to_bind(endpoint)
    for look in (check_to_connect, zkv.Client, zkv.AsyncClient):
        with pytest.raises(ValueError, match="for servers"):
            look(endpoint)


@pytest.mark.parametrize(
    "endpoint", [b"tcp://127.0.0.1:5555", None, 5555, Path("/tmp"), [b"tcp://h:1"], [None], [[]]]
)
def test_what_is_no_text_is_no_endpoint(endpoint: Any) -> None:
    for kind in (zkv.Client, zkv.AsyncClient):
        with pytest.raises(TypeError, match="endpoint is a str"):
            kind(endpoint)
    if not isinstance(endpoint, list):
        with pytest.raises(ConfigError, match=r"server.endpoints\[0\]: expected text"):
            zkv.Server(endpoint)


@pytest.mark.parametrize("kind", [zkv.Client, zkv.AsyncClient])
def test_each_of_many_is_looked_at(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:65536"):
        kind(("tcp://127.0.0.1:1", "tcp://127.0.0.1:65536"))
    with pytest.raises(ValueError, match="no endpoint given"):
        kind([])


def test_a_tool_finds_no_inproc_endpoint() -> None:
    check_option("ipc:///tmp/zkv")
    with pytest.raises(ValueError, match=r"--endpoint: .*only the program"):
        check_option("inproc://zkv")


# --- The URL of a store ----------------------------------------------------------------------

WRONG_URLS: dict[str, tuple[str, str]] = {
    "nothing": ("", r"expected etcd://HOST:PORT,HOST:PORT/PREFIX"),
    "no scheme": ("h:2379/a", r"URL 'h:2379/a': expected etcd://"),
    "another scheme": ("http://h:2379/a", r"expected etcd://"),
    "upper case": ("ETCD://h:2379/a", r"expected etcd://"),
    "end of a line": ("etcd://h:2379/a\n", r"expected etcd://"),
    "nothing behind the scheme": ("etcd://", r"an endpoint is missing"),
    "no endpoint": ("etcd:///a", r"an endpoint is missing"),
    "an empty endpoint": ("etcd://h:2379,,i:2379/a", r"an endpoint is missing"),
    "a comma at the end": ("etcd://h:2379,/a", r"an endpoint is missing"),
    "no port": ("etcd://h:1,i/a", r"endpoint 'etcd://i': .*a port is missing"),
    "no host": ("etcd://:2379/a", r"endpoint 'etcd://:2379': .*a host is missing"),
    "space": ("etcd://h:1, i:1/a", r"endpoint 'etcd:// i:1': ' i' is neither"),
    "port over 16 bits": ("etcd://h:1,i:65536/a", r"endpoint 'etcd://i:65536': .*over 65535"),
    "port 0": ("etcd://h:0/a", r"the port 0 is for servers"),
    "host *": ("etcd://*:1/a", r"the host \* is for servers"),
    "no brackets": ("etcd://::1:2379/a", r"needs brackets: etcd://\[::1\]"),
    "brackets without a port": ("etcd://[::1]/a", r"a port is missing"),
    "no IPv6 address": ("etcd://[::g]:1/a", r"no IPv6 address"),
    "no IPv4 address": ("etcd://1.2.3:1/a", r"no IPv4 address"),
    "a query": ("etcd://h:1?a", r"must not contain \?; expected etcd://HOST:PORT"),
    "twice": ("etcd://h:1,i:1,h:1/a", r"URL .*: h:1 is there twice"),
    "no prefix": ("etcd://h:1", r"a prefix is missing: expected /PREFIX"),
    "an empty prefix": ("etcd://h:1/", r"a prefix is missing"),
    "slash before the prefix": ("etcd://h:1//a", r"the prefix '/a' must be of"),
    "slash behind the prefix": ("etcd://h:1/a/", r"the prefix 'a/' must be of"),
    "slashes in the prefix": ("etcd://h:1/a//b", r"the prefix 'a//b' must be of"),
    "space in the prefix": ("etcd://h:1/a b", r"the prefix 'a b' must be of"),
    "query behind the prefix": ("etcd://h:1/a?b=c", r"the prefix 'a\?b=c' must be of"),
    "prefix that is not ASCII": ("etcd://h:1/\u00e9", r"the prefix '\u00e9' must be of"),
    "prefix too long": (f"etcd://h:1/{'a' * (LONGEST_PREFIX + 1)}", r"256 characters, over 255"),
}


@pytest.mark.parametrize(("url", "why"), WRONG_URLS.values(), ids=WRONG_URLS)
def test_the_part_of_a_url_that_is_wrong_is_told(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        split_store_url(url)


def test_a_password_in_a_url_is_not_shown() -> None:
    for url in ("etcd://me:secret@h:1/a", "etcd://me:sec/ret@h:1/a", "http://me:secret@h/"):
        with pytest.raises(ValueError, match="user and password do not belong") as caught:
            split_store_url(url)
        assert "ret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("etcd://h:2379/a", (["h:2379"], "a")),
        ("etcd://h1:1,10.0.0.2:2,[fd00::3]:3/a/b.c/D_1-2", (
            ["h1:1", "10.0.0.2:2", "[fd00::3]:3"], "a/b.c/D_1-2"
        )),
        (f"etcd://h:1/{'a' * LONGEST_PREFIX}", (["h:1"], "a" * LONGEST_PREFIX)),
    ],
)  # fmt: skip
def test_a_url_has_endpoints_and_a_prefix(url: str, parts: tuple[list[str], str]) -> None:
    assert split_store_url(url) == StoreUrl(*parts)


# --- Tools -----------------------------------------------------------------------------------

TOOLS: Final[dict[str, tuple[Program, tuple[str, ...]]]] = {
    "get": (ZKV_CLI, ("get", "k")),
    "watch": (ZKV_CLI, ("watch",)),
    "top": (ZKV_CLI, ("top", "--limit", "1")),
    "export": (ZKV_CLI, ("export", "/dev/null")),
    "import": (ZKV_CLI, ("import", "/dev/null")),
    "shell": (ZKV_CLI, ()),
    "doctor": (ZKV, ("doctor",)),
    "bench": (ZKV_BENCH, ()),
    "sweep": (ZKV_BENCH, ("sweep",)),
}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(
    "endpoint",
    [b"nonsense", b"tcp://127.0.0.1:71091", b"tcp://\xff:5555", b"inproc://x", b"tcp://::1:5555"],
)
def test_a_tool_says_what_is_wrong_with_its_endpoint(tool: str, endpoint: bytes) -> None:
    program, words = TOOLS[tool]
    ways: list[tuple[tuple[str | bytes, ...], dict[str, str]]] = [
        ((*words, "-e", endpoint), {}),
        (words, {"ZKV_ENDPOINT": endpoint.decode("utf-8", "surrogateescape")}),
    ]
    for given, where in ways:
        done = run_forked(program, given, b"ping\n", env=where)
        lines = done.stderr.decode().splitlines()

        assert done.returncode == 2, lines
        assert len(lines) == 1, lines
        assert "endpoint '" in lines[0]
        assert ("ZKV_ENDPOINT" in lines[0]) is bool(where), lines


def test_serve_says_what_is_wrong_with_bytes(tmp_path: Path) -> None:
    for flag in ("--endpoint", "--feed"):
        done = run_zkv("serve", flag, "tcp://\udcff:5555", cwd=tmp_path)
        assert done.returncode == 2
        assert "UTF-8" in done.stderr
        assert "Traceback" not in done.stderr
