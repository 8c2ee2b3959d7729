"""The clients in other languages keep the protocol, lose nothing, and understand each other.

One table: each test runs once for every directory in clients/. A language whose toolchain is not
here is skipped, and named; `make clients-deps` installs them all.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self

import pytest
import zmq

from tests.clients.languages import LACKS, NO_VARIABLES, Driver, Language, languages, watching
from tests.clients.protocol import SEQUENCES, check_protocol
from tests.conformance.notation import (
    Node,
    decode,
    depth,
    difference,
    encode,
    mapping,
    parse,
    render,
    text,
)  # fmt: skip
from tests.conformance.vectors import needs_of
from tests.support import (
    FREE_PORT,
    LIMIT,
    Raw,
    ServerProcess,
    free_ports,
    pack,
    read_line,
    unpack,
)
from zkv.keys import make_key_file

LANGUAGES: Final = languages()
SOON: Final = 0.3
"""A timeout in seconds for a reply that is lost."""
RESTART: Final = 18.0
"""Seconds that a client keeps asking while the server starts anew: three attempts together."""


@pytest.fixture
def present() -> list[Language]:
    """All languages that can be run here."""
    found = [language for language in LANGUAGES if language.is_present]
    for language in found:
        language.build()
    return found


# --- Without a toolchain -----------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES, ids=repr)
def test_its_files_are_as_the_page_says(language: Language) -> None:
    readme = (language.directory / "README.md").read_text(encoding="utf-8")

    assert language.unknown == []
    assert language.lacks <= LACKS
    assert language.packages
    assert "\n## Install" in readme
    assert "\n## In a shell\n" in readme
    assert "\n## In a program\n" in readme or language.name == "bash"


@pytest.mark.parametrize("language", LANGUAGES, ids=repr)
def test_its_commands_take_paths_with_spaces(language: Language) -> None:
    settings = (language.directory / "client.toml").read_text(encoding="utf-8")

    assert re.findall(r"(?<!\")\$\{?(?:OUT|PYTHON)\b", settings) == []


def test_python_is_always_there() -> None:
    """It needs what the tests need themselves."""
    (python,) = (language for language in LANGUAGES if language.name == "Python")

    assert python.is_present


def test_there_is_a_directory_for_each_language_that_the_table_names() -> None:
    page = (LANGUAGES[0].directory.parent / "README.md").read_text(encoding="utf-8")

    for language in LANGUAGES:
        assert f"| [{language}]({language.directory.name}/README.md) |" in page


# --- The protocol ------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_it_keeps_the_protocol(language: Language, tmp_path: Path) -> None:
    with (
        ServerProcess(tmp_path, "--fsync", "never") as server,
        Raw(server.endpoint) as raw,
        Driver(language, server.endpoint) as driver,
    ):
        check_protocol(driver, raw)


def test_its_command_line(language: Language, tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "--fsync", "never") as server, Raw(server.endpoint) as raw:

        def status(*arguments: str, stdin: bytes = b"") -> int:
            return language.run(server.endpoint, *arguments, stdin=stdin).returncode

        assert status("put", "grüße/€/😀", "ß and 😀") == 0
        got = language.run(server.endpoint, "get", "grüße/€/😀")
        assert (got.returncode, got.stdout) == (0, "ß and 😀\n".encode())
        assert raw.ok(op="GET", key="grüße/€/😀")["value"] == "ß and 😀"

        assert status("put", "binary", "-", stdin=b"\xff\x00\n\xfe") == 0
        got = language.run(server.endpoint, "get", "binary")
        assert (got.returncode, got.stdout) == (0, b"\xff\x00\n\xfe\n")

        raw.ok(op="PUT", key="n", value=40)
        assert language.run(server.endpoint, "incr", "n").stdout == b"41\n"
        assert language.run(server.endpoint, "incr", "n", "-43").stdout == b"-2\n"
        assert status("delete", "n") == 0
        missing = language.run(server.endpoint, "get", "n")
        assert (missing.returncode, missing.stdout) == (1, b"")
        assert b"NOT_FOUND" in missing.stderr

        assert status("put", "", "x") == 2
        assert status("frob") == 2
        assert status("end") == 0
        assert server.wait() == 0
        nobody = language.run(server.endpoint, "get", "n", timeout=0.05)
        assert nobody.returncode == 3
        assert b"NO_REPLY" in nobody.stderr


# --- What gets lost ----------------------------------------------------------------------------


class Between:
    """Stands between clients and a server, and loses the first replies. Use as a context manager.

    Args:
        endpoint: of the server.
        lost: how many replies to lose.
    """

    def __init__(self, endpoint: str, lost: int) -> None:
        self.bodies: list[bytes] = []
        """Of the requests that came."""
        self._lost = lost
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.bind(FREE_PORT)
        self.endpoint = str(self._router.get_string(zmq.LAST_ENDPOINT))
        self._raw = Raw(endpoint)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._raw.close()
        self._router.close(linger=0)
        self._context.term()

    def _run(self) -> None:
        while not self._stop.is_set():
            if not self._router.poll(20):
                continue
            peer, empty, body = self._router.recv_multipart()
            self.bodies.append(body)
            reply = self._raw.exchange(body)
            if len(self.bodies) > self._lost:
                self._router.send_multipart([peer, empty, reply])


def test_a_lost_reply_is_asked_for_again(language: Language, tmp_path: Path) -> None:
    with (
        ServerProcess(tmp_path, "--fsync", "never") as server,
        Between(server.endpoint, lost=1) as between,
        Driver(language, between.endpoint, SOON) as driver,
    ):
        incr = pack({"op": "INCR", "key": "n"})
        first = unpack(driver.exchange(incr))
        second = unpack(driver.exchange(incr))

    # A slow machine may lose one more.
    assert (first["ok"], first["value"], first["replayed"]) == (True, 1, True)
    assert (second["ok"], second["value"]) == (True, 2)
    assert between.bodies[0] == between.bodies[1]
    fields = unpack(between.bodies[0])
    assert len(fields["session"]) >= 16
    assert fields["seq"] == 1


def test_when_all_replies_are_lost_nobody_knows(language: Language, tmp_path: Path) -> None:
    with (
        ServerProcess(tmp_path, "--fsync", "never") as server,
        Between(server.endpoint, lost=3) as between,
        Driver(language, between.endpoint, SOON) as driver,
    ):
        reply = unpack(driver.exchange(pack({"op": "PUT", "key": "a", "value": 1})))
        again = unpack(driver.exchange(pack({"op": "GET", "key": "a"})))

    assert (reply["ok"], reply["code"], reply["retry"]) == (False, "NO_REPLY", True)
    assert reply.get("applied") is None
    assert len(set(between.bodies[:3])) == 1
    assert again["value"] == 1


@pytest.mark.timeout(600)
@pytest.mark.parametrize("curve", [False, True], ids=["plain", "CURVE"])
def test_together_they_count_exactly_through_a_crash(
    present: list[Language], curve: bool, tmp_path: Path
) -> None:
    """Clients in all languages increment one counter; the server is killed and started anew."""
    count = 40
    config, env = "", {}
    if curve:
        present = [language for language in present if language.curve]
        key = make_key_file(tmp_path / "server.key")
        config = f"[security]\nsecret_key_file = {json.dumps(str(tmp_path / 'server.key'))}\n"
        env = {"ZKV_SERVER_PUBLIC_KEY": key}
    endpoint = f"tcp://127.0.0.1:{free_ports(1)[0]}"  # the same after the restart
    with ServerProcess(tmp_path, "--endpoint", endpoint, config=config) as server:
        with _driven(present, endpoint, timeout=RESTART / 3, env=env) as drivers:
            incr = pack({"op": "INCR", "key": "n"})
            for driver in drivers:
                for _ in range(count):
                    driver.send(incr)
            first = [unpack(driver.receive()) for driver in drivers for _ in range(count // 4)]
            server.kill()
            server.start()
            rest = [unpack(driver.receive()) for driver in drivers for _ in range(count * 3 // 4)]

        assert [reply for reply in first + rest if not reply["ok"]] == []
        total = count * len(present)
        assert sorted(reply["value"] for reply in first + rest) == list(range(1, total + 1))


# --- Each understands the others ---------------------------------------------------------------

KEY: Final = "matrix/{}/é€😀\\u0000/{}"
MATRIX: Final = [
    "nil", "true", "1", "-1", "4294967296", "9223372036854775807", "-9223372036854775808",
    "18446744073709551615", "1.5", "0.1", "2.0", '""', '"é€😀 \\u0000"', "h''", "h'00ff0a80'",
    "h'c3a9'", '[1, ["two", 3.5], true]', '{"a": {"b": [1, 2]}, "ü": "x"}', "[nil]", "{}", "[]",
    "ext(5, h'00ff')", "ext(-1, h'65000000')", "{1: 2, -5: 3}", "s'ff00'",
]  # fmt: skip
"""Values that every language is to write for every other."""


@pytest.mark.timeout(600)
def test_each_reads_what_each_wrote(present: list[Language], tmp_path: Path) -> None:
    faults: list[str] = []
    with (
        ServerProcess(tmp_path, "--fsync", "never") as server,
        Raw(server.endpoint) as raw,
        _driven(present, server.endpoint) as drivers,
    ):
        for driver in drivers:
            for number, value in _carried(driver.language):
                key = KEY.format(driver.language, number)
                stored = encode(parse(f'{{"op": "PUT", "key": "{key}", "value": {value}}}'))
                assert unpack(driver.exchange(stored))["ok"] is True
        for writer in drivers:
            for number, value in _carried(writer.language):
                key = KEY.format(writer.language, number)
                get = encode(parse(f'{{"op": "GET", "key": "{key}"}}'))
                expected = parse(value)
                readers: list[tuple[Any, Any]] = [("the server", raw.exchange)]
                for reader in drivers:
                    if value in dict(_carried(reader.language)).values():
                        readers.append((reader.language, reader.exchange))
                for name, exchange in readers:
                    found = decode(exchange(get)).get("value")
                    if found is None or difference(expected, found, 0, exact=False):
                        faults.append(f"{value} of {writer.language}, read by {name}: {found}")

    assert faults == []
    assert len(present) >= 1


def _carried(language: Language) -> list[tuple[int, str]]:
    """Those values that its library is capable of, with their numbers."""
    return [
        (number, value)
        for number, value in enumerate(MATRIX)
        if not needs_of(parse(value)) & language.lacks
    ]


@contextlib.contextmanager
def _driven(
    present: list[Language],
    endpoint: str,
    timeout: float = LIMIT,
    env: Mapping[str, str] = NO_VARIABLES,
) -> Iterator[list[Driver]]:
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(Driver(language, endpoint, timeout, env)) for language in present
        ]


# --- Values that few languages can hold -----------------------------------------------------------

ODD: Final = {
    f"odd/{number:02}/é": value
    for sequence in SEQUENCES if sequence.name == "odd"
    for number, case in enumerate(sequence.cases)
    if (value := case.request.get("value")) is not None
}  # fmt: skip
"""Key -> value. They are stored without the client, and read with it."""
REFUSED: Final = LACKS - {"float32", "whole_float"}
"""Words of ``lacks`` for what a client has to refuse; the other two change a number's type."""


def test_odd_values_come_back_or_fail_alone(language: Language, tmp_path: Path) -> None:
    """In every op that gives values: one that cannot be held takes no other with it."""
    keys = [text(key) for key in ODD]
    gets = [mapping({"op": text("GET"), "key": key}) for key in keys]
    requests = [
        *gets,
        mapping({"op": text("MGET"), "keys": Node("array", tuple(keys))}),
        mapping({"op": text("SCAN"), "prefix": text("odd/")}),
        mapping({"op": text("CHANGES"), "since": Node("int", 0)}),
        mapping({"op": text("TXN"), "ops": Node("array", tuple(gets))}),
    ]
    with (
        ServerProcess(tmp_path, "--fsync", "never") as server,
        Raw(server.endpoint) as raw,
        Driver(language, server.endpoint) as driver,
    ):
        for key, value in ODD.items():
            put = mapping({"op": text("PUT"), "key": text(key), "value": value})
            assert decode(raw.exchange(encode(put))).get("rev")
        replies = [decode(driver.exchange(encode(request))) for request in requests]

    found = [value for reply in replies for value in _values_in(reply)]
    assert len(found) == 5 * len(ODD)
    faults = [
        f"{key}: {render(ODD[key]):.80}: {fault}"
        for key, value in zip([*ODD] * 5, found, strict=True)
        if (fault := _fault(language, key, value))
    ]
    assert faults == []


def test_odd_values_are_printed_or_fail(language: Language, tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "--fsync", "never") as server, Raw(server.endpoint) as raw:
        for key, value in list(ODD.items())[::3]:
            put = mapping({"op": text("PUT"), "key": text(key), "value": value})
            raw.exchange(encode(put))
            got = language.run(server.endpoint, "get", key)
            if needs_of(value) & language.lacks & REFUSED:
                assert (got.returncode, got.stdout) == (2, b""), key
                assert b"BAD_VALUE" in got.stderr
                assert key.encode() in got.stderr
            else:
                assert (got.returncode, got.stderr) == (0, b""), key
                assert len(got.stdout) > 1 or value.value == b"", key


def _values_in(reply: Node) -> Iterator[Node]:
    """All values in a reply, in their order."""
    for name, value in ((key.value, value) for key, value in reply.value):
        parts = value.value
        if name == b"value":
            yield value
        elif name == b"values":
            yield from parts
        elif name in (b"items", b"changes"):
            yield from (item.value[1 if name == b"items" else 3] for item in parts)
        elif name == b"results":
            yield from (value for part in parts for value in _values_in(part))


def _fault(language: Language, key: str, found: Node) -> str:
    """What is wrong with a value that a client has read; "" if nothing is."""
    if not needs_of(ODD[key]) & language.lacks & REFUSED:
        expected = _whole(ODD[key]) if "whole_float" in language.lacks else ODD[key]
        return difference(expected, found, 0, exact=False)
    code, message = found.get("code"), found.get("message")
    if code == text("BAD_VALUE") and message is not None and key.encode() in message.value:
        return ""
    return f"BAD_VALUE that names the key expected, got {render(found):.200}"


def _whole(node: Node) -> Node:
    """A value as languages have it that do not tell 1.0 from 1."""
    match node.kind, node.value:
        case "float", value if math.isfinite(value) and value == int(value):
            return Node("int", int(value))
        case "array", parts if depth(node) < 100:
            return node._replace(value=tuple(map(_whole, parts)))
        case "map", parts if depth(node) < 100:
            return node._replace(value=tuple((_whole(key), _whole(item)) for key, item in parts))
        case _:
            return node


# --- Watching ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "language", [language for language in LANGUAGES if language.watch], ids=repr, indirect=True
)
def test_its_watcher_tells_of_changes(language: Language, tmp_path: Path) -> None:
    with (
        ServerProcess(tmp_path, "--fsync", "never") as server,
        Raw(server.endpoint) as raw,
        watching(language, server.endpoint, "users/") as output,
    ):
        raw.ok(op="PUT", key="users/ü", value=[1, "x"])
        raw.ok(op="PUT", key="others", value=1)
        raw.ok(op="TXN", ops=[{"op": "DELETE", "key": "users/ü"}])
        for key, value in ODD.items():
            put = mapping({"op": text("PUT"), "key": text(f"users/{key}"), "value": value})
            raw.exchange(encode(put))
        lines = [
            read_line(output).decode(errors="replace").rstrip("\n") for _ in range(2 + len(ODD))
        ]

    assert lines[0].replace(" ", "") == '1\tPUT\tusers/ü\t[1,"x"]'
    assert lines[1] == "3\tDELETE\tusers/ü"
    assert [line.split("\t")[2] for line in lines[2:]] == [f"users/{key}" for key in ODD]
    assert all(line.split("\t")[3] for line in lines[2:])
