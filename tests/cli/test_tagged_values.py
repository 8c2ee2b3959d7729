"""The text form of values: it loses nothing that msgpack can hold, whichever command prints it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, Final

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cli.running import run
from tests.cli.test_any_input import Done
from tests.conformance import notation
from tests.conformance.notation import Node
from tests.conformance.vectors import load, walk
from tests.forking import run_zkv
from tests.support import Raw, ServerInProcess, ServerProcess, pack
from zkv.cli import client as cli
from zkv.entries.value_reader import read
from zkv.entries.value_writer import write
from zkv.reading import BadTextError

_header: Final = msgpack.Packer()


def array(*items: bytes) -> bytes:
    return _header.pack_array_header(len(items)) + b"".join(items)


def mapping(*pairs: tuple[bytes, bytes]) -> bytes:
    return _header.pack_map_header(len(pairs)) + b"".join(part for pair in pairs for part in pair)


def ext(code: int, data: bytes) -> bytes:
    return notation.encode(Node("ext", (code, data), ""))


def text(data: bytes) -> bytes:
    return notation.encode(Node("str", data, ""))


ONE, TRUE, NIL, A, B = b"\x01", b"\xc3", b"\xc0", b"\xa1a", b"\xa1b"
NAN: Final = pack(float("nan"))
ODD: Final[dict[str, bytes]] = {
    "array as key": mapping((array(ONE), A)),
    "map as key": mapping((mapping((ONE, A)), A), (mapping(), B)),
    "bin as key": mapping((pack(b"\xff"), A), (A, B)),
    "ext as key": mapping((ext(5, b"x"), A)),
    "scalars as keys": mapping((NIL, A), (TRUE, A), (ONE, A), (pack(1.0), B), (NAN, B), (NAN, A)),
    "key twice": mapping((A, ONE), (A, TRUE)),
    "key twice, no str": mapping((ONE, A), (ONE, B)),
    "1 and true": mapping((ONE, A), (TRUE, B)),
    "1 and 1.0": mapping((ONE, A), (pack(1.0), B)),
    "ext of each type": array(*(ext(code, bytes([code & 255])) for code in range(-128, 128))),
    "ext of each size": array(*(ext(7, bytes(n)) for n in (0, 1, 2, 3, 4, 8, 9, 16, 17, 300))),
    "spoilt times": array(*(ext(-1, bytes(size)) for size in (0, 1, 3, 5, 7, 9, 11, 13, 16))),
    "too many nanoseconds": ext(-1, (10**9).to_bytes(4) + bytes(8)),
    "too many in 8 bytes": ext(-1, b"\xff" * 8),
    "times": array(
        ext(-1, bytes(4)), ext(-1, b"\xff" * 4), ext(-1, b"\x00\x00\x00\x04" + bytes(4)),
        ext(-1, bytes(4) + b"\xff" * 8), ext(-1, bytes(4) + b"\x7f" + b"\xff" * 7),
        ext(-1, bytes(4) + b"\x80" + bytes(7)),
        ext(-1, bytes(4) + (-62_135_596_800).to_bytes(8, signed=True)),
        ext(-1, bytes(4) + (-30_000_000_000).to_bytes(8, signed=True)),
    ),
    "floats": array(*map(pack, (float("inf"), float("-inf"), -0.0, 0.0, 1e300, 5e-324, 0.1))),
    "nan": NAN,
    "ints": array(*map(pack, (2**64 - 1, -(2**63), 2**53 + 1, 0, -1, -33, 128))),
    "no UTF-8": array(text(b"\xff"), text(b"\xed\xb3\xbf"), pack("\ud7ff\ue000ü\U0001f600")),
    "no UTF-8 as key": mapping((text(b"$\xff"), text(b"\xc3"))),
    "empty": array(array(), mapping(), text(b""), pack(b"")),
    "looks like tags": array(*(
        mapping((text(name.encode()), value))
        for name in ("$bin", "$ext", "$time", "$float", "$map", "$msgpack", "$", "$x", "\u0024\xa7")
        for value in (text(b"AA=="), ONE, array(), mapping((text(b"$bin"), text(b"AA=="))))
    )),
    "tag beside others": mapping((text(b"$bin"), text(b"AA==")), (A, pack(b""))),
    "text that looks like a tag": text(b'{"$bin": "AA=="}'),
    "500 arrays": b"\x91" * 499 + b"\x90",
    "500 maps": b"\x81\xa1a" * 499 + b"\x80",
    "500 maps with ints as keys": b"\x81\x01" * 499 + b"\x80",
    "500 maps as keys": b"\x81" * 499 + b"\x80" + b"\x01" * 499,
    "500 arrays, a NaN": b"\x91" * 500 + NAN,
}  # fmt: skip
"""Values, each packed as short as possible."""

scalars = st.one_of(
    st.sampled_from([NIL, TRUE, b"\xc2", NAN, pack(float("inf")), pack(-0.0), A, text(b"$bin")]),
    st.integers(-(2**63), 2**64 - 1).map(pack),
    st.floats(allow_nan=False).map(pack),
    st.text(max_size=6).map(pack),
    st.binary(max_size=6).map(text),
    st.binary(max_size=6).map(pack),
    st.tuples(st.integers(-128, 127), st.binary(max_size=13))
    .filter(lambda each: each[0] != -1)
    .map(lambda each: ext(*each)),
    st.integers(-(2**63), 2**63 - 1).map(lambda second: pack(msgpack.Timestamp(second, 7))),
    st.binary(max_size=16)
    .filter(lambda data: len(data) not in {4, 8, 12})
    .map(lambda d: ext(-1, d)),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda items: array(*items))
        | st.lists(st.tuples(inner, inner), max_size=4).map(lambda pairs: mapping(*pairs))
        | st.tuples(inner, inner, inner).map(lambda each: mapping(each[:2], (each[0], each[2])))
    ),
    max_leaves=12,
)


def assert_kept(packed: bytes) -> None:
    """By both ways of writing: a NaN beside a value has it written by the slow one."""
    line = write(packed)
    assert "\n" not in line
    json.loads(line.encode())
    assert read(line) == packed
    assert write(array(packed, NAN)) in {f'[{line}, {{"$float": "NaN"}}]', whole(packed)}


def whole(packed: bytes) -> str:
    """What is written of a value, with a NaN beside it, that would be too deep."""
    return json.dumps({"$msgpack": base64.b64encode(array(packed, NAN)).decode()})


@settings(max_examples=400, deadline=None)
@given(values)
def test_a_value_is_the_same_after_its_text(packed: bytes) -> None:
    assert_kept(packed)


@pytest.mark.parametrize("name", ODD)
def test_an_odd_value_is_the_same_after_its_text(name: str) -> None:
    assert_kept(ODD[name])


@settings(max_examples=200, deadline=None)
@given(values, values)
def test_two_values_have_two_texts(one: bytes, other: bytes) -> None:
    assert (write(one) == write(other)) is (one == other)


def meaning(node: Node) -> Any:
    """A value without its widths."""
    match node.kind, node.value:
        case "array", items:
            return "array", [meaning(item) for item in items]
        case "map", pairs:
            return "map", [(meaning(key), meaning(value)) for key, value in pairs]
        case "float", number:
            return "float", repr(number)
        case "ext", (-1, data) if len(data) in {4, 8, 12}:
            try:
                return "timestamp", msgpack.Timestamp.from_bytes(data)
            except ValueError:
                return "ext", (-1, data)
        case kind, value:
            return kind, value


def vector_values() -> list[bytes]:
    """All values in the requests of the conformance vectors."""
    requests = [case.request for sequence in load() for case in sequence.cases]
    maps = [node for request in requests for node in walk(request) if node.kind == "map"]
    found = [value for each in maps for name, value in each.value if name.value == b"value"]
    return [
        notation.encode(value)
        for value in found
        if not {"raw", "rev"} & {part.kind for part in walk(value)}
    ]


VECTORS: Final = vector_values()


def test_widths_alone_are_lost() -> None:
    assert len(VECTORS) > 50
    wide = [
        "7_u16",
        "7_i64",
        "-1_i64",
        '"a"_32',
        "h'00'_32",
        "[]_16",
        "{}_32",
        '{"a"_8: 1}',
        "1.5_32",
        '{"a": 1, "a"_8: 2}',
        "ext(-1, h'000000000000000000000001')",
        "ext(5, h'00')_32",
    ]
    for packed in [*VECTORS, *(notation.encode(notation.parse(each)) for each in wide)]:
        again = read(write(packed))
        assert read(write(again)) == again
        if notation.depth(notation.decode(packed)) < 50:
            assert meaning(notation.decode(again)) == meaning(notation.decode(packed))
        else:
            assert again == packed


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        ('{"a": [1, {"$bin": 5}]}', 'at .a[1]: {"$bin": ...} takes base64'),
        ('{"$bin": "?"}', '{"$bin": ...} takes base64'),
        ('{"$ref": 1}', '{"$ref": ...} is not a tag'),
        ('{"\\u0024ref": 1}', '{"$ref": ...} is not a tag'),
        ('{"$map": [[{"$ext": [128, ""]}, 1]]}', 'at ."$map"[0][0]: {"$ext": ...} takes [TYPE'),
        ('{"$map": [[1, 2], [3]]}', '{"$map": ...} takes [[KEY, VALUE], ...]'),
        ('{"$map": {"a": 1}}', '{"$map": ...} takes [[KEY, VALUE], ...]'),
        ('[{"$time": "2026-02-30T00:00:00Z"}]', 'at [0]: {"$time": ...} takes "2026'),
        ('[{"$time": "@9223372036854775808.000000000"}]', 'at [0]: {"$time": ...} takes'),
        ('[{"$float": "1"}]', 'at [0]: {"$float": ...} takes "NaN"'),
        ('[{"$msgpack": "kQ=="}]', "at [0]: "),
        ('[{"$msgpack": "AQE="}]', "at [0]: "),
        ("[1, 18446744073709551616]", "at [1]: an int has more than 64 bits"),
        ('{"odd key": {"\\ud800": 1}}', 'at ."odd key"'),
        ("[NaN]", '{"$float": "NaN"}'),
    ],
)
def test_what_is_wrong_is_named_with_its_place(typed: str, why: str) -> None:
    with pytest.raises(BadTextError) as raised:
        read(typed)
    assert why in str(raised.value)


@pytest.mark.parametrize(
    ("typed", "packed"),
    [
        ('{"$time": "2026-01-31T12:00:00Z"}', pack(msgpack.Timestamp(1_769_860_800, 0))),
        ('{"$time": "2026-01-31T12:00:00.5Z"}', pack(msgpack.Timestamp(1_769_860_800, 5 * 10**8))),
        ('{"$time": "1-01-01T00:00:00.000000000Z"}', pack(msgpack.Timestamp(-62_135_596_800, 0))),
        ('{ "\\u0024bin" :"AP8="}', pack(b"\x00\xff")),
        ('{"$msgpack": "yj+AAAA"}', None),
        ('{"$msgpack": "yj+AAA=="}', None),
        ('{"$msgpack": "zAE="}', b"\xcc\x01"),
    ],
)  # fmt: skip
def test_forms_that_a_person_writes(typed: str, packed: bytes | None) -> None:
    if packed is None:
        with pytest.raises(BadTextError):
            read(typed)
    else:
        assert read(typed) == packed


# With servers.


def put(raw: Raw, key: str, packed: bytes) -> None:
    reply = raw.exchange(b"\x83\xa2op\xa3PUT\xa3key" + pack(key) + b"\xa5value" + packed)
    assert msgpack.unpackb(reply)["ok"], reply


def stored(raw: Raw, key: str) -> bytes:
    reply: bytes = raw.exchange(pack({"op": "GET", "key": key}))
    return reply.partition(b"\xa5value")[2].rpartition(b"\xa3rev")[0]


@pytest.mark.parametrize("way", ["json", "msgpack", "dump", "commands"])
def test_every_odd_value_gets_to_another_server(
    server: ServerInProcess, tmp_path: Path, way: str
) -> None:
    with Raw(server.endpoint) as raw:
        for key, packed in ODD.items():
            put(raw, key, packed)
    lines: list[bytes] = []
    if way == "dump":
        server.stop()
        data = run_zkv("dump", str(tmp_path / "data"), cwd=tmp_path).stdout.encode()
        words = ["import"]
    elif way == "commands":
        lines = [done(server, "get", "--json", key) for key in ODD]
        data, words = b"", []
    else:
        data = run("-e", server.endpoint, "export", "--format", way).stdout
        words = ["import", "--format", way]
    with ServerProcess(tmp_path / "another") as another, Raw(another.endpoint) as raw:
        if words:
            read_in = run("-e", another.endpoint, *words, input=data)
            assert read_in.returncode == 0, read_in.stderr
        else:
            for key, line in zip(ODD, lines, strict=True):
                done(another, "put", "--json", key, "-", data=line)
        for key, packed in ODD.items():
            assert stored(raw, key) == packed, key


def done(server: ServerInProcess | ServerProcess, *words: str, data: bytes = b"") -> bytes:
    """What a command prints that succeeds, in this process."""
    result = Done(cli.main, ["-e", server.endpoint, *words], data)
    assert result.status == 0, (words, result.said)
    return result.printed


def test_every_command_takes_odd_values_and_goes_on(server: ServerInProcess) -> None:
    with Raw(server.endpoint) as raw:
        for key, packed in ODD.items():
            put(raw, key, packed)
        count, texts = len(ODD), {key: write(packed) for key, packed in ODD.items()}
        read_ops = json.dumps({"ops": [{"op": "GET", "key": key} for key in ODD]})
        for words in (
            ["mget", *ODD], ["scan"], ["scan", "--json"], ["scan", "--meta"],
            ["scan", "--meta", "--json"], ["changes", "0"], ["changes", "0", "--json"],
            ["watch", "--since", "0", "--limit", str(count)],
            ["watch", "--since", "0", "--limit", str(count), "--json"],
            ["txn", read_ops], ["export"],
        ):  # fmt: skip
            printed = done(server, *words).decode()
            for key, line in texts.items():
                assert line in printed, (words, key)
        for key, line in texts.items():
            for words in (["get", key, "--json"], ["get", key, "--meta"], ["history", key]):
                assert line in done(server, *words).decode(), (words, key)
            done(server, "get", key)
            done(server, "get", key, "--type")
            done(server, "put", "--json", "copy", "-", data=line.encode())
            assert stored(raw, "copy") == ODD[key]
            done(server, "txn", f'{{"ops": [{{"op": "PUT", "key": "moved", "value": {line}}}]}}')
            done(server, "rename", "--force", "moved", "again")
            assert stored(raw, "again") == ODD[key]
            assert line in done(server, "delete", "--prev", key).decode()


def test_the_longest_text_of_a_value_is_imported(tmp_path: Path) -> None:
    """Nothing grows more in JSON than maps of false in maps of false."""
    limits = "[limits]\nmax_value_bytes = 100000\n"
    inner = b"\x81\xc2" * 160 + b"\xc2"
    packed = array(*[inner] * (99_000 // len(inner)))
    with ServerProcess(tmp_path, config=limits) as server, Raw(server.endpoint) as raw:
        put(raw, "k", packed)
        data = run("-e", server.endpoint, "export").stdout
        assert len(data) > 10 * len(packed)
        assert run("-e", server.endpoint, "import", input=data).returncode == 0
        assert stored(raw, "k") == packed
