"""``zkv-cli export`` and ``import``: what goes out comes in again, whatever happens on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgpack
import pytest
from msgpack import ExtType, Timestamp

from tests.cli.running import COMMAND, Result, assert_fails, run, run_in_bash
from tests.conftest import Connect
from tests.forking import run_zkv
from tests.support import (
    LIMIT,
    ROOT,
    Raw,
    ServerInProcess,
    ServerProcess,
    environment,
    eventually,
    pack,
)

VALUES: dict[str, Any] = {
    "text": "grüße \U0001f600\n\t\x00 \u2028",
    "no UTF-8": "\udcff\udc80x",
    "bin": bytes(range(256)),
    "ints": [0, -1, 2**63, 2**64 - 1, -(2**63)],
    "floats": [0.1, -0.0, 1e300, 5e-324, float("inf"), float("-inf")],
    "nothing": None,
    "booleans": [True, False],
    "map": {"a": {"b": [{}]}, "$bin": "AA==", "c": b""},
    "looks like a form": {"$bin": "AA=="},
    "looks like another": [{"$ext": 1}, {"$": None}, {"$unknown": {}}],
    "odd keys": {1: "a", None: "b", b"\x00": "c", 2.5: "d", ExtType(1, b""): "e"},
    "ext": [ExtType(5, b"\xff"), ExtType(0, b"")],
    "times": [Timestamp(0, 1), Timestamp(-1, 999_999_999), Timestamp(2**40, 5)],
    "ü\n\t\"'\\": "an odd key",
    "deep": [[[[[[[[{"x": [[[]]]}]]]]]]]],
}
FORMATS = ["json", "msgpack"]


def entries(client: Raw) -> dict[str, bytes]:
    """All keys, each with its value as it was packed."""
    found: dict[str, bytes] = {}
    after = None
    while True:
        page = client.ok(op="SCAN", limit=1000, after=after)
        found |= {key: pack(value) for key, value, _ in page["items"]}
        after = page["next"]
        if after is None:
            return found


def empty(client: Raw) -> None:
    while keys := list(entries(client)):
        client.ok(op="MDELETE", keys=keys[:10_000])


def lines(*records: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"key": f"{number:06}", "value": number} for number in range(count)]


# There and back.


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("way", ["a file", "a pipe"])
def test_what_is_exported_is_imported_as_it_was(
    server: ServerInProcess, client: Raw, tmp_path: Path, form: str, way: str
) -> None:
    client.ok(op="MPUT", items=VALUES)
    before = entries(client)
    here = ["-e", server.endpoint]
    file = tmp_path / f"entries.{form}"
    if way == "a file":
        written = run(*here, "export", str(file))
        assert (written.returncode, written.stdout) == (0, b"")
        data = file.read_bytes()
    else:
        written = run(*here, "export", "--format", form)
        data = written.stdout
    assert f"{len(VALUES)} entries written" in written.stderr.decode()
    assert (data[:1] == b"{") is (form == "json")
    empty(client)

    if way == "a file":
        read = run(*here, "import", str(file))
    else:
        read = run(*here, "import", "-", "--format", form, input=data)

    assert read.returncode == 0, read.stderr
    assert f"OK, {len(VALUES)} stored, revision ".encode() in read.stdout
    assert entries(client) == before


@pytest.mark.parametrize("form", FORMATS)
def test_times_to_live_are_kept(server: ServerInProcess, client: Raw, form: str) -> None:
    here = ["-e", server.endpoint]
    for key, ttl in (("long", 100_000), ("longer", 200_000.5), ("soon over", 0.4)):
        client.ok(op="PUT", key=key, value=1, ttl=ttl)
    client.ok(op="PUT", key="for ever", value=1)
    data = run(*here, "export", "--format", form).stdout
    eventually(lambda: client.ok(op="COUNT")["count"] == 3, "one is gone")
    empty(client)

    read = run(*here, "import", "--format", form, "--json", input=data)

    told = json.loads(read.stdout)
    assert (told["stored"], told["expired"]) in {(3, 1), (3, 0)}  # gone before it was written out
    assert set(entries(client)) == {"long", "longer", "for ever"}
    assert 99_900 < client.ok(op="GET", key="long")["ttl"] <= 100_000.1
    assert 199_900 < client.ok(op="GET", key="longer")["ttl"] <= 200_000.6
    assert "ttl" not in client.ok(op="GET", key="for ever")


def test_what_has_expired_is_left_out(server: ServerInProcess, client: Raw) -> None:
    now = int(time.time() * 1000)
    data = lines(
        {"key": "past", "value": 1, "expires": now - 1},
        {"key": "future", "value": 1, "expires": now + 1_000_000},
        {"key": "counted", "value": 1, "ttl": 1000},
        {"key": "none", "value": 1, "ttl": None, "expires": None},
    )

    read = run("-e", server.endpoint, "import", input=data)

    assert read.stdout == b"OK, 3 stored, 1 left out that have expired, revision 1\n"
    assert 900 < client.ok(op="GET", key="future")["ttl"] <= 1000
    assert 900 < client.ok(op="GET", key="counted")["ttl"] <= 1000
    assert "ttl" not in client.ok(op="GET", key="none")


def test_many_entries_in_order(server: ServerInProcess, client: Raw) -> None:
    """Over many batches and pages; of two with one key the later counts."""
    here = ["-e", server.endpoint]
    records = numbered(5000)
    again: list[dict[str, Any]] = [
        {"key": "002500", "value": "again"},
        {"key": "000000", "value": "again", "ttl": 999},
    ]

    read = run(*here, "import", input=lines(*records, *again))

    assert read.stdout.startswith(b"OK, 5002 stored"), read.stderr
    assert client.ok(op="COUNT")["count"] == 5000
    assert client.ok(op="GET", key="002500")["value"] == "again"
    assert 0 < client.ok(op="GET", key="000000")["ttl"] <= 999
    exported = run(*here, "export").stdout.splitlines()
    assert [json.loads(line)["key"] for line in exported] == [each["key"] for each in records]
    part = run(*here, "export", "--prefix", "00249", "--after", "002493").stdout.splitlines()
    assert [json.loads(line)["key"] for line in part] == [f"00249{digit}" for digit in "456789"]


def test_large_values_are_asked_for_in_smaller_groups(tmp_path: Path, connect: Connect) -> None:
    limits = "[limits]\nmax_value_bytes = 4096\nmax_reply_bytes = 8192\n"
    with ServerProcess(tmp_path, config=limits) as server:
        client = connect(server.endpoint)
        for key in "abcdefg":
            client.ok(op="PUT", key=key, value=key * 4000)
        client.ok(op="MPUT", items={f"small {number}": 0 for number in range(20)})

        exported = run("-e", server.endpoint, "export").stdout.splitlines()

    values = {(each := json.loads(line))["key"]: each["value"] for line in exported}
    assert len(values) == 27
    assert values["g"] == "g" * 4000


def test_what_zkv_dump_prints_can_be_imported(
    server: ServerInProcess, client: Raw, tmp_path: Path
) -> None:
    client.ok(op="MPUT", items=VALUES)
    client.ok(op="PUT", key="expires", value=1, ttl=1000)
    before = entries(client)
    server.stop()
    dumped = run_zkv("dump", str(tmp_path / "data"), cwd=tmp_path).stdout
    with ServerProcess(tmp_path / "another") as another:
        read = run("-e", another.endpoint, "import", input=dumped.encode())

        assert read.returncode == 0, read.stderr
        raw = Raw(another.endpoint)
        with raw:
            assert entries(raw) == before
            assert 900 < raw.ok(op="GET", key="expires")["ttl"] <= 1000


def test_lines_that_other_programs_write(server: ServerInProcess, client: Raw) -> None:
    """A byte order mark, ends of lines as Windows has them, empty lines, no end of the last."""
    data = b'\xef\xbb\xbf{"value": 1, "key": "a"}\r\n\r\n  {"key":"b","value":[1.0,1e2]} \n\n'
    data += '{"key": "ü", "value": "\\u00fc"}'.encode()

    assert run("-e", server.endpoint, "import", input=data).returncode == 0

    assert client.ok(op="MGET", keys=["a", "b", "ü"])["values"] == [1, [1.0, 100.0], "ü"]


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_comes_from_nothing(server: ServerInProcess, form: str) -> None:
    here = ["-e", server.endpoint]

    assert run(*here, "export", "--format", form).stdout == b""
    assert run(*here, "import", "--format", form).stdout == b"OK, 0 stored\n"


# What cannot be imported.


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"{", "no JSON"),
        (b"nonsense", "no JSON"),
        (b"[1]", "no map"),
        (b'"text"', "no map"),
        (b"\xff", "UTF-8 at byte 1"),
        (b'{"value": 1}', "no key"),
        (b'{"key": 1, "value": 1}', "no key"),
        (b'{"key": "a"}', "no value"),
        (b'{"key": "a", "valeu": 1, "value": 1}', "'valeu'"),
        (b'{"key": "a", "value": NaN}', "NaN"),
        (b'{"key": "a", "value": 1e999}', "1e999"),
        (b'{"key": "a", "value": 18446744073709551616}', "64 bits"),
        (b'{"key": "a", "value": "\\ud800"}', "surrogates"),
        (b'{"key": "a", "value": {"$bin": "?"}}', "$bin"),
        (b'{"key": "a", "value": {"$bin": 1}}', "$bin"),
        (b'{"key": "a", "value": {"$ext": [300, ""]}}', "$ext"),
        (b'{"key": "a", "value": {"$time": "today"}}', "$time"),
        (b'{"key": "a", "value": {"$float": "1"}}', "$float"),
        (b'{"key": "a", "value": {"$map": [[1, 1, 1]]}}', "$map"),
        (b'{"key": "a", "value": {"$msgpack": "kQ=="}}', "$msgpack"),
        (b'{"key": "a", "value": {"$ref": 1}}', "$ref"),
        (b'{"key": "a", "value": 1, "ttl": 0}', "ttl"),
        (b'{"key": "a", "value": 1, "ttl": "1"}', "ttl"),
        (b'{"key": "a", "value": 1, "ttl": 1e11}', "ttl"),
        (b'{"key": "a", "value": 1, "expires": 1.5}', "expires"),
        (b'{"key": "a", "value": 1, "expires": 9999999999999, "ttl": 1}', "both"),
        (b'{"key": "", "value": 1}', "key"),
        (b'{"key": "\\u0000", "value": 1}', "key"),
        (b'{"key": "' + b"k" * 2000 + b'", "value": 1}', "max_key_bytes"),
        (b'{"key": "a", "value": ' + b"[" * 5000 + b"]" * 5000 + b"}", "nested"),
    ],
    ids=lambda part: repr(part)[:50],
)
def test_a_bad_line_is_named_and_what_stands_before_it_is_stored(
    shared_server: ServerInProcess, connect: Connect, bad: bytes, why: str
) -> None:
    client = connect(shared_server.endpoint)
    empty(client)
    before = lines({"key": "first", "value": 1}) + b"\n" + lines({"key": "third", "value": 3})
    data = before + bad + b"\n" + lines({"key": "last", "value": 5})

    failed = run("-e", shared_server.endpoint, "import", input=data)

    complaint = failed.stderr.decode()
    assert (failed.returncode, failed.stdout) == (2, b""), complaint
    assert "zkv-cli: imported lines 1-3\n" in complaint
    assert "zkv-cli: line 4: " in complaint
    assert why in complaint
    assert list(entries(client)) == ["first", "third"]


@pytest.mark.parametrize("at", [1, 777, 1000, 1001, 2500])
def test_one_record_that_is_refused_is_found_in_its_batch(
    server: ServerInProcess, client: Raw, at: int
) -> None:
    records = numbered(2500)
    records[at - 1]["key"] = "k" * 2000

    failed = run("-e", server.endpoint, "import", input=lines(*records))

    assert failed.returncode == 2
    assert f"line {at}: TOO_LARGE".encode() in failed.stderr
    assert list(entries(client)) == [each["key"] for each in records[: at - 1]]


def test_what_is_too_large_for_one_message_is_sent_in_more(tmp_path: Path) -> None:
    limits = "[limits]\nmax_value_bytes = 4096\nmax_message_bytes = 8192\n"
    records = [{"key": f"{number:03}", "value": "x" * 3000} for number in range(20)]
    records.append({"key": "last", "value": "x" * 9000})
    with ServerProcess(tmp_path, config=limits) as server:
        failed = run("-e", server.endpoint, "import", input=lines(*records))
        with Raw(server.endpoint) as client:
            assert client.ok(op="COUNT")["count"] == 20

    assert failed.returncode == 2
    assert b"line 21: it takes 9" in failed.stderr
    assert b"max_message_bytes is 8192" in failed.stderr


@pytest.mark.parametrize("missing", range(1, 14))
def test_a_stream_that_is_cut_off(server: ServerInProcess, client: Raw, missing: int) -> None:
    """Wherever that is: behind a field, too, where nothing but another one is missing."""
    records = b"".join([pack({"key": key, "value": 1}) for key in "abc"])

    failed = run("-e", server.endpoint, "import", "--format=msgpack", input=records[:-missing])

    assert failed.returncode == 2
    assert b"record 3: it is cut off" in failed.stderr
    assert list(entries(client)) == ["a", "b"]


@pytest.mark.parametrize("garbage", [b"\xc1", b"\x01", b"\xa1a", b"\x81\xa3key\xa1a", b"\x80"])
def test_garbage_in_a_stream(
    shared_server: ServerInProcess, connect: Connect, garbage: bytes
) -> None:
    client = connect(shared_server.endpoint)
    empty(client)
    data = pack({"key": "a", "value": 1}) + garbage

    failed = run("-e", shared_server.endpoint, "import", "--format", "msgpack", input=data)

    assert failed.returncode == 2
    assert b"record 2: " in failed.stderr
    assert list(entries(client)) == ["a"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["import", "/nowhere"], "/nowhere: No such file"),
        (["import", "/"], "/: Is a directory"),
        (["import", "x", "--format", "xml"], "--format"),
        (["export", "/nowhere/x"], "/nowhere/x.part: No such file"),
        (["export", "/tmp/there is none", "--resume"], "there is none.part: No such file"),
        (["export", "--resume"], "--after"),
        (["import", "--resume", "/nowhere/state"], "/nowhere/state"),
    ],
)
def test_files_that_cannot_be_used(
    shared_server: ServerInProcess, words: list[str], why: str
) -> None:
    data = lines({"key": "a", "value": 1})

    failed = run(*words, env={"ZKV_ENDPOINT": shared_server.endpoint}, input=data)

    assert failed.returncode == 2
    assert why in failed.stderr.decode()


# Interrupted, and gone on with.


def test_an_import_goes_on_where_it_was(
    server: ServerInProcess, client: Raw, tmp_path: Path
) -> None:
    file, state = tmp_path / "file", tmp_path / "state"
    records = numbered(3500)
    good = lines(*records)
    file.write_bytes(good.replace(b'"value": 2700}', b'"value": 2700,'))
    command = ["-e", server.endpoint, "import", str(file), "--resume", str(state)]

    assert b"line 2701" in run(*command).stderr
    client.ok(op="DELETE", key="000000")  # It would come back if all were read again.
    file.write_bytes(good)
    went_on = run(*command)

    assert went_on.stdout.startswith(b"OK, 800 stored"), went_on.stderr
    assert list(entries(client)) == [each["key"] for each in records[1:]]
    assert not state.exists()


@pytest.mark.parametrize("form", FORMATS)
def test_an_import_from_a_pipe_goes_on_after_a_kill(
    server: ServerInProcess, client: Raw, tmp_path: Path, form: str
) -> None:
    state = tmp_path / "state"
    records = numbered(5000)
    rows = [pack(each) if form == "msgpack" else lines(each) for each in records]
    command = ["-e", server.endpoint, "import", "--format", form, "--resume", str(state)]
    with subprocess.Popen(
        [*COMMAND, *command], cwd=ROOT, env=environment(), stdin=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"".join(rows[:2500]))
        process.stdin.flush()
        eventually(lambda: state.exists() and b"2000" in state.read_bytes(), "two batches")
        process.kill()
    client.ok(op="DELETE", key="000000")

    went_on = run(*command, input=b"".join(rows))

    assert went_on.stdout.startswith(b"OK, 3000 stored"), went_on.stderr
    assert list(entries(client)) == [each["key"] for each in records[1:]]


def test_the_state_of_another_import_is_refused(server: ServerInProcess, tmp_path: Path) -> None:
    state = tmp_path / "state"
    command = ["-e", server.endpoint, "import", "--resume", str(state)]
    state.write_text(json.dumps({"source": "another", "number": 1, "offset": 1}))
    assert_fails(run(*command), 2, "another")
    state.write_text("nonsense")
    assert_fails(run(*command), 2, "not the state of an import")


def interrupted(server: ServerInProcess, tmp_path: Path, *words: str) -> tuple[Path, Path]:
    """A file of 2,500 records of which 2,000 are stored, and the state that says so."""
    file, state = tmp_path / "file", tmp_path / "state"
    file.write_bytes(lines(*numbered(2500)) + b"nonsense\n")
    failed = run("-e", server.endpoint, "import", str(file), "--resume", str(state), *words)
    assert failed.returncode == 2
    assert json.loads(state.read_bytes())["number"] == 2500
    return file, state


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda data: data[:10_000], "it ends before byte"),
        (lambda data: b"", "it ends before byte"),
        (lambda data: data.replace(b"000007", b"00000x"), "are not those that were imported"),
        (lambda data: b"\n" + data, "are not those that were imported"),
    ],
    ids=["cut", "empty", "changed", "moved"],
)
def test_a_file_that_has_changed_is_not_gone_on_with(
    server: ServerInProcess, client: Raw, tmp_path: Path, change: Any, why: str
) -> None:
    file, state = interrupted(server, tmp_path)
    before = client.ok(op="INFO")["rev"]
    file.write_bytes(change(file.read_bytes()))

    refused = run("-e", server.endpoint, "import", str(file), "--resume", str(state))

    assert refused.returncode == 2
    assert f"{file} is not the file whose import" in refused.stderr.decode()
    assert why in refused.stderr.decode()
    assert state.exists()
    assert client.ok(op="INFO")["rev"] == before


def test_a_file_that_has_grown_is_gone_on_with(
    server: ServerInProcess, client: Raw, tmp_path: Path
) -> None:
    file, state = interrupted(server, tmp_path)
    good = file.read_bytes().removesuffix(b"nonsense\n")
    file.write_bytes(good + lines({"key": "more", "value": 1}, {"key": "and more", "value": 2}))

    went_on = run("-e", server.endpoint, "import", str(file), "--resume", str(state))

    assert went_on.stdout.startswith(b"OK, 2 stored"), went_on.stderr
    assert client.ok(op="COUNT")["count"] == 2502


def test_the_state_of_an_import_to_another_store_is_refused(
    server: ServerInProcess, tmp_path: Path
) -> None:
    file, state = interrupted(server, tmp_path)
    with ServerInProcess(tmp_path / "another") as another:
        elsewhere = run("-e", another.endpoint, "import", str(file), "--resume", str(state))
        assert_fails_of(elsewhere, "of server ", another.endpoint)
        kept = json.loads(state.read_bytes()) | {"server": another.endpoint}
        state.write_text(json.dumps(kept))
        gone_back = run("-e", another.endpoint, "import", str(file), "--resume", str(state))
        assert_fails_of(gone_back, "another store", "has 0")
    state.write_text(json.dumps(kept | {"server": server.endpoint}))
    packed = ["import", str(file), "--resume", str(state), "--format", "msgpack"]
    assert_fails_of(run("-e", server.endpoint, *packed), "of format 'json'")


def assert_fails_of(result: Result, *words: str) -> None:
    assert result.returncode == 2
    for word in words:
        assert word in result.stderr.decode()


@pytest.mark.parametrize(
    "fields",
    [
        {"offset": -1}, {"offset": "1"}, {"offset": 2**70}, {"number": None}, {"rev": 1.5},
        {"digest": 1}, {"digest": ""},
    ],
    ids=repr,
)  # fmt: skip
def test_a_state_that_somebody_has_written(
    server: ServerInProcess, tmp_path: Path, fields: dict[str, Any]
) -> None:
    file, state = interrupted(server, tmp_path)
    state.write_text(json.dumps(json.loads(state.read_bytes()) | fields))
    command = ["-e", server.endpoint, "import", str(file), "--resume", str(state)]
    assert_fails_of(run(*command), str(state), "import")


def test_a_state_is_kept_in_a_file_of_its_mode_behind_a_link(
    server: ServerInProcess, tmp_path: Path
) -> None:
    real, link = tmp_path / "real", tmp_path / "state"
    real.write_bytes(b"")
    real.chmod(0o600)
    link.symlink_to(real)

    interrupted(server, tmp_path)

    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o600
    link.write_bytes(b"\xef\xbb\xbf" + real.read_bytes())  # An editor has touched it.
    file = tmp_path / "file"
    file.write_bytes(file.read_bytes().removesuffix(b"nonsense\n"))
    done = run("-e", server.endpoint, "import", str(file), "--resume", str(link))
    assert done.stdout.startswith(b"OK, 0 stored"), done.stderr
    assert not real.exists()


def test_a_state_that_cannot_be_kept_is_told_before_anything_is_stored(
    server: ServerInProcess, client: Raw, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for state in ("/dev/null", str(tmp_path / "pipe"), str(tmp_path), "/nowhere/state"):
        command = ["-e", server.endpoint, "import", "--resume", state]
        assert_fails(run(*command, input=lines({"key": "a", "value": 1})), 2, state.split("/")[1])
    assert client.ok(op="COUNT")["count"] == 0


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--prefix", "b"], "prefix was 'a'"),
        ([], "prefix was 'a'"),
        (["--prefix", "a", "--after", "a5"], "after was None"),
        (["--prefix", "a", "-e", "another"], "server was"),
    ],
)
def test_another_export_is_not_gone_on_with(
    server: ServerInProcess, client: Raw, tmp_path: Path, form: str, words: list[str], why: str
) -> None:
    part = begun(server, client, tmp_path, form)
    before = part.read_bytes()
    with ServerInProcess(tmp_path / "another") as another:
        asked = [another.endpoint if word == "another" else word for word in words]
        command = ["export", str(tmp_path / f"file.{form}"), "--resume"]
        refused = run("-e", server.endpoint, *command, *asked)

    assert_fails_of(refused, f"{part} is from another export", why)
    assert part.read_bytes() == before


@pytest.mark.parametrize("form", FORMATS)
def test_a_part_that_has_changed_is_not_gone_on_with(
    server: ServerInProcess, client: Raw, tmp_path: Path, form: str
) -> None:
    part = begun(server, client, tmp_path, form)

    def one(key: str) -> bytes:
        record = {"key": key, "value": 1}
        return pack(record) if form == "msgpack" else lines(record)

    command = ["-e", server.endpoint, "export", str(tmp_path / f"file.{form}"), "--resume"]
    for keys in (["b1"], ["a3", "a2"], ["a1", "a1"], ["a1", "b", "a2"]):
        part.write_bytes(b"".join(map(one, keys)))
        assert_fails_of(
            run(*command, "--prefix", "a"), "is not an export that --resume can continue"
        )
    part.write_bytes(one("a1"))
    assert run(*command, "--prefix", "a").returncode == 0
    assert names(tmp_path) == ["data", f"file.{form}"]


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def begun(server: ServerInProcess, client: Raw, tmp_path: Path, form: str) -> Path:
    """The part of an export of the prefix ``a`` that was not finished: the disk was full."""
    client.ok(op="MPUT", items={f"a{number:03}": 1 for number in range(1000)})
    failed = run_in_bash(
        f"ulimit -f 8; zkv-cli export --prefix a {tmp_path}/file.{form}",
        ZKV_ENDPOINT=server.endpoint,
    )
    assert failed.returncode == 2
    assert b"File too large" in failed.stderr
    part = tmp_path / f"file.{form}.part"
    assert part.stat().st_size == 8192
    return part


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("torn", ["within", "between", "empty"])
def test_an_export_goes_on_where_it_was(
    server: ServerInProcess, client: Raw, tmp_path: Path, form: str, torn: str
) -> None:
    client.ok(op="MPUT", items=VALUES)
    here = ["-e", server.endpoint]
    file = tmp_path / f"file.{form}"
    part = tmp_path / f"file.{form}.part"
    run(*here, "export", str(file))
    whole = file.read_bytes()
    record = whole.splitlines(keepends=True)[0] if form == "json" else first_packed(whole)
    cut = {"within": len(record) + 5, "between": len(record), "empty": 0}[torn]
    file.unlink()
    part.write_bytes(whole[:cut])

    refused = run(*here, "export", str(file))
    went_on = run(*here, "export", str(file), "--resume")

    assert_fails(refused, 2, "--resume")
    assert went_on.returncode == 0, went_on.stderr
    assert file.read_bytes() == whole
    assert not part.exists()


def first_packed(data: bytes) -> bytes:
    reader = msgpack.Unpacker(strict_map_key=False, unicode_errors="surrogateescape")
    reader.feed(data)
    reader.skip()
    return data[: reader.tell()]


@pytest.mark.parametrize("kind", ["pipe", "link", "directory"])
def test_an_export_goes_on_with_a_regular_file_alone(
    server: ServerInProcess, tmp_path: Path, kind: str
) -> None:
    part = tmp_path / "file.part"
    if kind == "pipe":
        os.mkfifo(part)
    elif kind == "link":
        part.symlink_to(tmp_path / "elsewhere")
    else:
        part.mkdir()

    refused = run("-e", server.endpoint, "export", str(tmp_path / "file"), "--resume")

    assert_fails(refused, 2, f"{part}: this is no regular file")


def test_what_is_no_export_is_not_gone_on_with(server: ServerInProcess, tmp_path: Path) -> None:
    part = tmp_path / "file.part"
    part.write_text("a letter\nthat somebody wrote\n")

    refused = run("-e", server.endpoint, "export", str(tmp_path / "file"), "--resume")

    assert_fails(refused, 2, "is not an export")
    assert part.read_text() == "a letter\nthat somebody wrote\n"


def test_a_server_that_goes_away_is_no_answer_in_time(
    server_process: ServerProcess, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    words = ["-e", server_process.endpoint, "--timeout", "3", "import", "--resume", str(state)]
    with subprocess.Popen(
        [*COMMAND, *words], cwd=ROOT, env=environment(), stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(lines(*numbered(1000)))
        process.stdin.flush()
        eventually(state.exists, "the first batch is stored, and that is known")
        server_process.kill()
        _, complaint = process.communicate(lines(*numbered(10)), timeout=LIMIT)

    assert process.returncode == 3
    assert b"imported lines 1-1000" in complaint


def test_from_one_server_to_another_in_a_pipe(
    server: ServerInProcess, client: Raw, tmp_path: Path
) -> None:
    client.ok(op="MPUT", items=VALUES)
    with ServerProcess(tmp_path / "another") as another:
        moved = run_in_bash(
            f"zkv-cli export --format msgpack | zkv-cli import -e {another.endpoint} "
            "--format=msgpack",
            ZKV_ENDPOINT=server.endpoint,
        )
        assert moved.returncode == 0, moved.stderr
        with Raw(another.endpoint) as raw:
            assert entries(raw) == entries(client)


# What it costs.


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_million_lines_take_no_more_memory_than_a_thousand(
    server_process: ServerProcess, tmp_path: Path
) -> None:
    file = tmp_path / "lines"
    with open(file, "wb") as out:
        for number in range(1_000_000):
            out.write(lines({"key": f"{number:07}", "value": {"name": "x" * 20, "n": number}}))

    read, peak = measured(tmp_path, "-e", server_process.endpoint, "import", str(file))
    assert read == 0
    assert peak < 64 * 2**20
    with Raw(server_process.endpoint) as client:
        assert client.ok(op="COUNT")["count"] == 1_000_000
    written, peak = measured(
        tmp_path, "-e", server_process.endpoint, "export", str(tmp_path / "out")
    )
    assert written == 0
    assert peak < 64 * 2**20


PEAK: Final = """
import sys
from zkv.cli.client import main
status = main(sys.argv[2:])
with open("/proc/self/status") as facts, open(sys.argv[1], "w") as out:
    out.write(next(line.split()[1] for line in facts if line.startswith("VmHWM:")))
sys.exit(status)
"""
"""A child's ``ru_maxrss`` begins with what its parent had; this counts from the exec on."""


def measured(tmp_path: Path, *words: str) -> tuple[int, int]:
    """Exit status, and the most memory that it took, in bytes."""
    peak = tmp_path / "peak"
    process = subprocess.run(
        [sys.executable, "-c", PEAK, str(peak), *words], cwd=ROOT, env=environment(), check=False
    )
    return process.returncode, int(peak.read_text()) * 1024


def test_the_result_is_a_result(server: ServerInProcess) -> None:
    printed: Result = run(
        "-e", server.endpoint, "import", "--json", input=lines({"key": "a", "value": 1})
    )

    told = json.loads(printed.stdout)
    assert (told["ok"], told["stored"], told["expired"], told["rev"]) == (True, 1, 0, 1)
