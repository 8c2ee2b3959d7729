"""Values of 500 levels go wherever values go; more is refused in the same words on every Python."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.cli.running import Result, run
from tests.forking import run_zkv
from tests.support import LIMIT, Raw, ServerInProcess, ServerProcess, pack
from zkv import Client
from zkv.client.codec import Packed
from zkv.entries.text import to_json
from zkv.entries.value_reader import read
from zkv.entries.value_writer import write

WORDS = "is nested deeper than 500 levels"


def arrays(levels: int) -> Any:
    return _nested(levels, list)


def maps(levels: int) -> Any:
    return _nested(levels, lambda *inner: {"a": inner[0][0]} if inner else {})


def numbered(levels: int) -> Any:
    """Maps whose keys are no text: in JSON each has the form of three levels."""
    return _nested(levels, lambda *inner: {1: inner[0][0]} if inner else {1: 2})


def _nested(levels: int, around: Any) -> Any:
    value = around()
    for _ in range(levels - 1):
        value = around([value])
    return value


SHAPES = [arrays, maps, numbered]


def stored(server: ServerInProcess | ServerProcess, key: str = "k") -> bytes:
    """A value as it is packed."""
    with Raw(server.endpoint) as raw:
        reply: bytes = raw.exchange(pack({"op": "GET", "key": key}))
    return reply.partition(b"\xa5value")[2].rpartition(b"\xa3rev")[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_printed_of_the_deepest_value_is_read_again(shape: Any) -> None:
    for levels in (1, 100, 170, 171, 172, 499, 500):
        packed = msgpack.packb(shape(levels))
        text = write(packed)
        assert read(text) == packed
        around = to_json({"results": [{"value": Packed(packed)}]})
        assert read(around) == b"\x81\xa7results\x91\x81\xa5value" + packed
        assert around.count("[") + around.count("{") < 600


def test_a_map_with_odd_keys_is_printed_however_deep_it_stands() -> None:
    packed = b"\x91" * 499 + b"\x81\x91\x01\x02"
    assert json.loads(write(packed))
    assert read(write(packed)) == packed
    packed = b"\x81\x01" * 490 + b"\x81\x91\x01\x02"
    assert json.loads(write(packed)) == {"$msgpack": base64.b64encode(packed).decode()}
    assert read(write(packed)) == packed


@pytest.mark.parametrize("shape", SHAPES)
def test_every_command_has_the_deepest_value(
    server_process: ServerProcess, tmp_path: Path, shape: Any
) -> None:
    server = server_process

    def cli(*words: str, input: bytes = b"") -> Result:
        result = run("-e", server.endpoint, *words, input=input)
        assert result.returncode == 0, result.stderr
        return result

    value = shape(500)
    packed = msgpack.packb(value)
    with Client(server.endpoint, LIMIT) as client, client.mirror() as mirror:
        with client.watch(since=0) as watch:
            client.put("k", value)
            change = next(watch)
            assert msgpack.packb(change.value) == packed
        mirror.wait_for(change.rev, LIMIT)
        assert msgpack.packb(mirror["k"]) == packed
        with client.txn() as txn:
            txn.put("j", value)
            txn.get("j")
        assert msgpack.packb(txn.results[1]) == packed

    shown = write(packed).encode()
    for words in (
        ["get", "k"], ["mget", "k"], ["scan"], ["changes", "0"],
        ["watch", "--since", "0", "--limit", "1"],
        ["txn", '{"ops": [{"op": "GET", "key": "k"}]}'],
    ):  # fmt: skip
        printed = cli(*words).stdout
        assert shown in printed or b'{"$msgpack": ' in printed, words
        assert read(cli("--json", *words).stdout.decode().splitlines()[0])
    for name in ("entries.json", "entries.msgpack"):
        cli("export", str(tmp_path / name))
        cli("delete", "k")
        cli("import", str(tmp_path / name))
        assert stored(server) == packed
    if shape is not numbered:
        cli("put", "--json", "typed", "-", input=json.dumps(value).encode())
        assert stored(server, "typed") == packed
    cli("end")
    assert server.wait() == 0
    dumped = run_zkv("dump", str(server.data_dir), cwd=tmp_path)
    assert dumped.returncode == 0
    (line,) = [line for line in dumped.stdout.splitlines() if '"key": "k"' in line]
    assert b"\xa5value" + packed in read(line)


@pytest.mark.parametrize("levels", [501, 600, 1_000, 1_400, 5_000, 30_000, 100_000])
def test_what_is_too_deep_is_said_alike(server: ServerInProcess, levels: int) -> None:
    text = b"[" * levels + b"]" * levels
    commands: list[tuple[list[str], bytes]] = [
        (["put", "--json", "k", "-"], text),
        (["txn", "-"], b'{"ops": [{"op": "PUT", "key": "k", "value": %b}]}' % text),
        (["import"], b'{"key": "k", "value": %b}\n' % text),
        (
            ["import", "--format", "msgpack"],
            b"\x82\xa3key\xa1k\xa5value" + b"\x91" * levels + b"\xc0",
        ),
    ]
    for words, data in commands:
        failed = run("-e", server.endpoint, *words, input=data)
        complaint = failed.stderr.decode()
        assert (failed.returncode, failed.stdout) == (2, b""), complaint
        assert WORDS in complaint
        assert "Traceback" not in complaint
    assert stored(server) == b""


def test_a_client_says_what_is_too_deep(server: ServerInProcess) -> None:
    with Client(server.endpoint, LIMIT) as client:
        for levels in (501, 511, 512, 1_000, 50_000):
            with pytest.raises(Exception, match=WORDS):
                client.put("k", arrays(levels))
            with pytest.raises(Exception, match=WORDS):
                client.put_many({"j": 1, "k": arrays(levels)})
            with pytest.raises(Exception, match=WORDS), client.pipeline() as pipeline:
                pipeline.put("k", arrays(levels))
            with pytest.raises(Exception, match=WORDS), client.txn() as txn:
                txn.put("k", arrays(levels))
        assert client.get("k", None) is None
