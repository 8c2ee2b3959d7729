"""The server keeps the protocol, as the vectors tell it; and the vectors are sound."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.notation import (
    Node,
    NotationError,
    decode,
    difference,
    encode,
    mapping,
    parse,
    render,
    squeeze,
    stretch,
    text,
)  # fmt: skip
from tests.conformance.runner import NotFreshError, run
from tests.conformance.vectors import GENERATED, LAST, generated, load, walk
from tests.support import (
    LIMIT,
    ROOT,
    Raw,
    ServerProcess,
    curve_options,
    environment,
    raw_fields,
    unpack,
)  # fmt: skip
from zkv import errors
from zkv.keys import make_key_file
from zkv.protocol.requests import REQUEST_TYPES

SEQUENCES = load()
VERSIONS = sorted((Path(__file__).parent / "versions").glob("*.txt"))
CASES = [case for sequence in SEQUENCES for case in sequence.cases]


def test_the_server_keeps_the_protocol(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server, Raw(server.endpoint) as raw:
        outcomes = list(run(SEQUENCES, raw.exchange))

        assert [
            f"{outcome.case.name}: {outcome.fault}" for outcome in outcomes if outcome.fault
        ] == []
        assert server.wait() == 0  # The last sequence ends it.


def test_the_server_keeps_the_protocol_over_curve(tmp_path: Path) -> None:
    key = make_key_file(tmp_path / "server.key")
    config = f"[security]\nsecret_key_file = {json.dumps(str(tmp_path / 'server.key'))}\n"
    with (
        ServerProcess(tmp_path / "server", config=config) as server,
        Raw(server.endpoint, options=curve_options(key)) as raw,
    ):
        outcomes = list(run(SEQUENCES, raw.exchange))

        assert [
            f"{outcome.case.name}: {outcome.fault}" for outcome in outcomes if outcome.fault
        ] == []
        assert server.wait() == 0


def fingerprints(sequences: list[dict[str, Any]]) -> dict[str, str]:
    """Of each case the bytes of request and reply, as a hash, by sequence and name."""
    return {
        f"{sequence['name']}: {case['name']}": hashlib.sha256(
            f"{case['request_hex']} {case['reply_hex']}".encode()
        ).hexdigest()[:16]
        for sequence in sequences
        for case in sequence["cases"]
    }


@pytest.mark.parametrize("path", VERSIONS, ids=lambda path: path.stem)
def test_what_a_version_has_promised_is_still_promised(path: Path) -> None:
    """Each of its cases is here with the same bytes. INFO is not: it may have more fields."""
    lines = path.read_text(encoding="utf-8").splitlines()
    then = {name: fingerprint for fingerprint, _, name in (line.partition(" ") for line in lines)}
    now = fingerprints(json.loads(GENERATED.read_text(encoding="utf-8"))["sequences"])
    assert len(then) > 500
    assert {name: now.get(name) for name in then} == then


def test_odd_values_are_stored_byte_for_byte(server: ServerProcess) -> None:
    (odd,) = (sequence for sequence in SEQUENCES if sequence.name == "odd")
    with Raw(server.endpoint) as raw:
        for case in odd.cases:
            value = case.request.get("value")
            if value is not None:
                put = mapping({"op": text("PUT"), "key": text("k"), "value": value})
                raw.exchange(encode(put))
                reply = raw.exchange(encode(mapping({"op": text("GET"), "key": text("k")})))
                assert raw_fields(reply)["value"] == encode(value), case.name


def test_the_command_tells_what_is_wrong(tmp_path: Path) -> None:
    """A server with other limits is one that does not keep the protocol."""
    with ServerProcess(tmp_path, config="[limits]\nmax_key_bytes = 100\n") as server:
        command = [sys.executable, "-m", "tests.conformance", server.endpoint, "keys"]
        done = subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, text=True,
            timeout=LIMIT, check=False,
        )  # fmt: skip

        assert "keys: a key of 1024 bytes\n    the reply: expected" in done.stdout
        assert done.returncode == 1


def test_a_store_that_is_not_fresh_is_refused(server: ServerProcess) -> None:
    with Raw(server.endpoint) as raw:
        raw.ok(op="PUT", key="a", value=1)

        with pytest.raises(NotFreshError):
            list(run(SEQUENCES, raw.exchange))


def test_the_generated_file_is_up_to_date() -> None:
    """If not: ``python -m tests.conformance --update``."""
    assert GENERATED.read_text(encoding="utf-8") == generated()


def test_hex_and_text_say_the_same() -> None:
    for sequence in json.loads(GENERATED.read_text(encoding="utf-8"))["sequences"]:
        for case in sequence["cases"]:
            for side in ("request", "reply"):
                if "x'" in case[side] or "..." in case[side]:
                    continue  # No msgpack, or too long to be shown.
                assert stretch(case[f"{side}_hex"]) == encode(parse(case[side])), case["name"]


def test_what_is_sent_means_the_same_to_a_msgpack_library() -> None:
    for case in CASES:
        kinds = {part.kind for part in walk(case.request)}
        if kinds & {"raw", "rev"} or case.direct or len(encode(case.request)) > 10_000:
            continue
        if case.needs & {"array_keys", "map_in_key", "duplicate_keys"}:
            continue  # msgpack for Python cannot, without a hook.
        packed = encode(case.request)
        plain = {part.width for part in walk(case.request) if part.kind != "float"} == {""}
        if plain and "ext" not in kinds and "_32" not in render(case.request):
            assert pack_again(packed) == packed, case.name


def pack_again(packed: bytes) -> bytes:
    import msgpack

    again: bytes = msgpack.packb(unpack(packed), unicode_errors="surrogateescape")
    return again


def test_every_op_and_every_failure_that_a_client_can_provoke_is_covered() -> None:
    ops = {op.value.decode() for case in CASES if (op := _field(case.request, "op"))}
    codes = {code.value.decode() for case in CASES if (code := _field(case.reply, "code"))}
    need_a_state_of_the_server = {
        "BUSY", "FULL", "READ_ONLY", "SHUTTING_DOWN", "INTERNAL", "DENIED", "NOT_LEADER"
    }  # fmt: skip

    assert ops >= set(REQUEST_TYPES)
    assert codes == {
        value.code for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.RequestError)
        and value is not errors.RequestError
    } - need_a_state_of_the_server  # fmt: skip


def _field(node: Node, name: str) -> Node | None:
    found = node.get(name)
    return found if found is not None and found.kind == "str" and found.value.isascii() else None


def test_sequences_have_names_of_their_own() -> None:
    assert [sequence.name for sequence in SEQUENCES][-1] == LAST
    assert len({sequence.name for sequence in SEQUENCES}) == len(SEQUENCES)


# --- The notation itself ---------------------------------------------------------------------

SAME_BYTES = {
    "1": "01", "-33": "d0df", "1_u64": "cf0000000000000001", "-1_i16": "d1ffff", "300": "cd012c",
    "1.5": "cb3ff8000000000000", "1.5_32": "ca3fc00000", '"é"': "a2c3a9", '"a"_32': "db0000000161",
    "h'00ff'": "c40200ff", "s'ff'": "a1ff", "x'c1'": "c1", "[1, nil]": "9201c0", "[]_16": "dc0000",
    '{"a": true}': "81a161c3", "{}_32": "df00000000", "ext(5, h'00')": "d40500",
    "ext(-1, h'00')_8": "c701ff00", "nested(3)": "919190", '"k" * 3': "a36b6b6b",
    "[1] * 2": "920101", "_int": "c7037f696e74", "rev(2)": "d47e02", "nan": "cb7ff8000000000000",
}  # fmt: skip


@pytest.mark.parametrize("source", SAME_BYTES)
def test_text_to_bytes_and_back(source: str) -> None:
    node = parse(source)

    assert encode(node).hex() == SAME_BYTES[source]
    assert stretch(squeeze(encode(node))) == encode(node)
    if node.kind not in ("wildcard", "rev", "raw"):
        assert encode(decode(encode(node))) == encode(node)


@pytest.mark.parametrize("source", ["", "[1", "{1}", "frob", "1 2", "'a'", "h'0'", "]"])
def test_what_is_no_notation_is_refused(source: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  NotationError, or of the hex
        parse(source)


@pytest.mark.parametrize("packed", ["", "c1", "92", "a261", "0101", "ddffffffff", "d4"])
def test_what_is_no_msgpack_is_refused(packed: str) -> None:
    with pytest.raises(NotationError):
        decode(bytes.fromhex(packed))


DIFFERENT = [
    ("1", "2"), ("1", "1.0"), ("1.5", "1.5_32"), ("0.0", "-0.0"), ('"a"', "h'61'"),
    ("nil", "false"),
    ("[1]", "[1, 2]"), ("[[1]]", "[[2]]"), ('{"a": 1}', '{"b": 1}'), ('{"a": 1}', "{}"),
    ('{"value": {"a": 1, "b": 2}}', '{"value": {"b": 2, "a": 1}}'), ("1_u8", "1_u16"),
    ("1_u8", "1"), ("_int", '"a"'), ("_num", "nil"), ("_bool", "1"), ("rev(1)", "1"),
    ("ext(1, h'00')", "ext(2, h'00')"), ("{}", "[]"),
]  # fmt: skip


@pytest.mark.parametrize(("expected", "actual"), DIFFERENT)
def test_a_difference_is_seen(expected: str, actual: str) -> None:
    assert difference(parse(expected), decode(encode(parse(actual))), 10, exact=True)


EQUAL = [
    ("1", "1_u64"), ("nan", "nan"), ("_", "[1, 2]"), ("_num", "1.5"), ("_num", "1"),
    ("rev(1)", "11"),
    ('{"a": 1, "b": rev(2)}', '{"b": 12, "a": 1}'), ("nested(499)", "nested(499)"),
]  # fmt: skip


@pytest.mark.parametrize(("expected", "actual"), EQUAL)
def test_no_difference_is_seen_where_there_is_none(expected: str, actual: str) -> None:
    assert not difference(parse(expected), decode(encode(parse(actual))), 10, exact=True)
