"""What people try who come from Redis, etcd or a Unix shell: it works, or they are told how."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgpack import ExtType, Timestamp

from tests.cli.running import COMMAND, NOWHERE, Cli, assert_fails, run
from tests.cli.terminal import CONTROL, Terminal
from tests.peer import Peer, reply
from tests.support import LIMIT, ROOT, Raw, ServerInProcess, ServerProcess, environment, read_line
from zkv import durations
from zkv.cli.arguments import COMMANDS, parse
from zkv.cli.lexer import split

WRITTEN = reply(ok=True, rev=7, durable=True)


def _id(part: object) -> str:
    return " ".join(part) if isinstance(part, list) else repr(part)


# The words of others.


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("gett k", "zkv-cli get KEY"),
        ("PUTT k v", "zkv-cli put KEY VALUE"),
        ("set k v", "zkv-cli put KEY VALUE"),
        ("SET k v", "zkv-cli put KEY VALUE"),
        ("setex k 5 v", "put KEY VALUE --ttl TIME"),
        ("setnx k v", "put KEY VALUE --if-rev 0"),
        ("del k", "zkv-cli delete KEY"),
        ("rm k", "zkv-cli delete KEY"),
        ("unlink k", "zkv-cli delete KEY"),
        ("flushall", "delete --prefix '' --yes"),
        ("flush_all", "delete --prefix '' --yes"),
        ("keys *", "scan PREFIX --keys-only"),
        ("ls", "zkv-cli scan PREFIX"),
        ("exists k", "zkv-cli get KEY"),
        ("type k", "zkv-cli get KEY --type"),
        ("ttl k", "zkv-cli get KEY --meta"),
        ("pttl k", "zkv-cli get KEY --meta"),
        ("expire k 5", "zkv-cli touch KEY TIME"),
        ("persist k", "zkv-cli touch KEY none"),
        ("mset a 1", "zkv-cli mput KEY VALUE KEY VALUE"),
        ("decr k", "zkv-cli incr KEY -1"),
        ("incrby k 5", "zkv-cli incr KEY N"),
        ("mv a b", "zkv-cli rename OLD NEW"),
        ("renamenx a b", "zkv-cli rename OLD NEW"),
        ("dbsize", "zkv-cli count"),
        ("subscribe c", "zkv-cli watch PREFIX"),
        ("monitor", "zkv-cli watch PREFIX"),
        ("multi", "zkv-cli txn FILE"),
        ("stats", "zkv-cli info"),
        ("bgsave", "zkv-cli snapshot"),
        ("shutdown", "zkv-cli end"),
        ("version", "zkv-cli --version"),
        ("hget h f", "a value may be a map"),
        ("lpush l v", "a value may be a map or a list"),
        ("auth secret", "keys, not passwords"),
        ("serve", "zkv serve --help"),
        ("doctor", "zkv doctor --help"),
        ("config get history", "zkv config --help"),
        ("backup a b", "zkv backup --help"),
        ("bench", "zkv-bench --help"),
        ("-h example.org get k", "zkv-cli -e tcp://example.org:5555 get k"),
        ("-h example.org -p 6379 get k", "zkv-cli -e tcp://example.org:6379 get k"),
        ("-p 6379 get k", "zkv-cli -e tcp://127.0.0.1:6379 get k"),
        ("--host=db --port=7 get k", "zkv-cli -e tcp://db:7 get k"),
        ("-h example.org", "zkv-cli -e tcp://example.org:5555"),
        ("-n 1 get k", "use a prefix instead"),
        ("-a secret get k", "keys, not passwords"),
        ("--endpoints localhost get k", "-e tcp://HOST:PORT"),
        ("get k -w json", "-o json"),
        ("get --prefix k", "zkv-cli scan PREFIX"),
        ("watch --prefix k", "zkv-cli watch PREFIX"),
        ("put k v --tll 5", "did you mean --ttl?"),
        ("put k v EX 60", "did you mean --ttl 60s?"),
        ("put k v PX 60", "did you mean --ttl 60ms?"),
        ("put k v NX", "did you mean --if-rev 0?"),
        ("put k hello world", "quote a VALUE that contains spaces"),
        ("put k v ''", "quote a VALUE that contains spaces"),
        ("put k v ' '", "quote a VALUE that contains spaces"),
        ("get a b", "zkv-cli mget a b"),
        ("delete a b", "zkv-cli mdelete a b"),
        ("scan 0 MATCH u", "zkv-cli scan PREFIX --limit N"),
        ("info memory", "zkv-cli info | grep WORD"),
        ("get", "zkv-cli get KEY"),
        ("put k -v", "if -v is the VALUE, put -- before it"),
        ("--limit 5 scan", "it goes after the command: zkv-cli scan --limit"),
        ("-v", "--version prints the version"),
        ("put k v --json=1", "argument --json: it takes no value"),
        ("put k v --ttl", "argument --ttl: its value is missing"),
        ("changes 0 5", "unexpected: 5"),
        ("end now", "end takes no argument: 'now'"),
        ("incr k 99999999999999999999", "has more than 64 bits"),
        ("watch --since 99999999999999999999", "has more than 64 bits"),
        ("scan --limit 1.5", "'1.5' is not a whole number"),
        ("put k", "missing VALUE: zkv-cli put KEY VALUE"),
    ],
)
def test_the_words_of_others_are_told_ours(typed: str, meant: str) -> None:
    assert_fails(run(*shlex.split(typed), env={"ZKV_ENDPOINT": NOWHERE}), 2, meant)


def test_nonsense_is_not_taken_for_something() -> None:
    assert_fails(run("nonsense"), 2, "no such command: 'nonsense'; see zkv-cli --help")


@pytest.mark.parametrize(
    "words", [["-h"], ["--help"], ["-h", "get"], ["get", "-h"], ["help"], ["help", "get"]]
)
def test_help_is_asked_for_in_many_ways(words: list[str]) -> None:
    printed = run(*words)

    assert printed.returncode == 0
    of_get = words in (["get", "-h"], ["help", "get"])
    assert printed.stdout.startswith(b"usage: zkv-cli get KEY" if of_get else b"usage: zkv-cli [")


def test_every_example_of_a_command_is_understood(server: ServerInProcess) -> None:
    """One that goes on for ever, or needs another system, is not carried out."""
    for name, command in COMMANDS.items():
        helped = run(name, "--help").stdout.decode()
        for line in (command.example, *command.more):
            assert f"zkv-cli {line}\n" in helped
        for line in command.more:
            words = shlex.split(line.partition("<")[0])
            assert parse(words)[0] is command
            if not {"--watch", "--from"} & set(words):
                printed = run(*words, env={"ZKV_ENDPOINT": server.endpoint})
                assert printed.returncode in {0, 1}, printed.stderr


@pytest.mark.parametrize("command", ["scan", "count", "delete"])
def test_a_star_is_no_wildcard_and_that_is_said(cli: Cli, command: str) -> None:
    cli("put", "user/1", "v")
    words = ["--prefix", "user/*"] if command == "delete" else ["user/*"]

    assert b"not a wildcard" in cli(command, *words).stderr
    assert cli("count").stdout == b"1\n"
    assert cli(command, *["nobody" if word == "user/*" else word for word in words]).stderr == b""


def test_a_file_behind_an_at_sign_is_text_and_that_is_said(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")

    printed = cli("put", "k", f"@{tmp_path}/file")
    assert b"stored the text @" in printed.stderr
    assert b"zkv-cli put KEY - <FILE" in printed.stderr
    assert cli("get", "k").stdout.decode() == f"@{tmp_path}/file\n"
    assert cli("put", "k", "@somebody").stderr == b""


def test_changes_that_are_still_to_come_are_told_as_such(cli: Cli) -> None:
    cli("put", "k", "v")

    assert b"the newest revision is 1: there is nothing after 9" in cli("changes", "9").stderr


# Text and numbers.


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("1", "text (str)"), ("x" * 300, "text (str)"), (b"1", "binary data (bin)"),
        (1.0, "a float"), (True, "a bool"), (None, "nil"), ([1], "an array"), ({}, "a map"),
        (ExtType(1, b"x"), "an ext"), (2**64 - 1, "an int"),
    ],
    ids=repr,
)  # fmt: skip
def test_what_cannot_be_added_to_is_told_by_its_type(
    cli: Cli, client: Raw, value: Any, name: str
) -> None:
    client.ok(op="PUT", key="k", value=value)

    printed = cli("incr", "k", status=2)

    assert_fails(printed, 2, "WRONG_TYPE", f"the value of 'k' is {name}; INCR needs an integer")
    assert (b"zkv-cli put KEY 1 --json" in printed.stderr) is isinstance(value, str)


def test_a_sum_that_does_not_fit_says_so(cli: Cli) -> None:
    cli("put", "k", str(2**63 - 1), "--json")

    assert_fails(cli("incr", "k", status=2), 2, f"{2**63}, which does not fit into 64 bits")


TYPES = [
    ("1", "str"), (1, "int"), (1.5, "float"), (b"1", "bin"), (True, "bool"), (None, "nil"),
    ([1], "array"), ({"a": 1}, "map"), (ExtType(1, b""), "ext"), (Timestamp(1, 0), "timestamp"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "name"), TYPES, ids=[name for _, name in TYPES])
def test_get_tells_types(cli: Cli, client: Raw, value: Any, name: str) -> None:
    client.ok(op="PUT", key="k", value=value)

    assert cli("get", "k", "--type").stdout.decode() == f"{name}\n"
    assert cli("get", "k", "--type", "-o", "json").stdout.decode() == f'"{name}"\n'
    assert f"\ntype: {name}\n" in cli("get", "k", "--meta").stdout.decode()
    assert cli("scan", "--meta").stdout.decode().split("\t")[2] == name


def test_get_tells_revision_and_time_to_live(cli: Cli) -> None:
    cli("put", "a", "1")
    cli("put", "b", '{"x": [1]}', "--json", "--ttl", "1h")

    assert cli("get", "a", "--meta").stdout == b'value: "1"\ntype: str\nrev: 1\nttl: none\n'
    facts = json.loads(cli("get", "b", "--meta", "-o", "json").stdout)
    assert 3500 < facts.pop("ttl") <= 3600
    assert facts == {"value": {"x": [1]}, "type": "map", "rev": 2}
    assert_fails(cli("get", "a", "--meta", "--type", status=2), 2, "--type", "--meta")


def test_scan_tells_what_get_tells(cli: Cli, client: Raw) -> None:
    client.ok(op="MPUT", items={f"many/{number:04}": number for number in range(1200)})
    cli("put", "a", "x\ty")
    cli("put", "b", "2", "--json", "--ttl", "1h")

    first, second, *_ = cli("scan", "--meta").stdout.decode().splitlines()
    assert first == 'a\t"x\\ty"\tstr\t2\tnone'
    assert re.fullmatch(r"b\t2\tint\t3\t3[0-9.]+", second)
    lines = cli("scan", "many/", "--meta", "--keys-only", "--reverse").stdout.decode().splitlines()
    assert lines == [f"many/{number:04}\t1\tnone" for number in reversed(range(1200))]
    printed = cli("scan", "--meta", "-o", "json", "--limit", "1")
    assert json.loads(printed.stdout) == {
        "key": "a", "value": "x\ty", "type": "str", "rev": 2, "ttl": None,
    }  # fmt: skip
    assert b"--after=a" in printed.stderr


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain text", "plain text"), ("two\nlines", "two\r\nlines"), ("1", '"1"'), (1, "1"),
        ("true", '"true"'), ("null", '"null"'), ("", '""'), (" 1", '" 1"'), ("[1]", '"[1]"'),
        ('"q"', r'"\"q\""'), ("\x1b[31mred", r'"\u001b[31mred"'), ("über", "über"),
        (b"\x1b[31m", '{"$bin": "G1szMW0="}'), ({"a": 1}, '{"a": 1}'), (None, "null"),
    ],
    ids=repr,
)  # fmt: skip
def test_on_a_terminal_nothing_is_taken_for_something_else(
    server: ServerInProcess, client: Raw, tmp_path: Path, value: Any, shown: str
) -> None:
    client.ok(op="PUT", key="k", value=value)

    with Terminal(tmp_path, "-e", server.endpoint, "get", "k") as terminal:
        text, status = terminal.end()

    assert (text, status) == (f"{shown}\r\n", 0)


# A flag for the value, and one for the answer.


@pytest.mark.parametrize(
    ("words", "value", "answer"),
    [
        (["put", "k", "1"], "1", "OK, revision 7, on disk\n"),
        (["put", "k", "1", "--json"], 1, "OK, revision 7, on disk\n"),
        (["--json", "put", "k", "1"], 1, "OK, revision 7, on disk\n"),
        (["put", "k", "1", "-o", "json"], "1", None),
        (["-o", "json", "put", "k", "1"], "1", None),
        (["put", "k", "1", "--output=json", "--json"], 1, None),
    ],
    ids=_id,
)
def test_values_and_answers_have_a_flag_each(
    words: list[str], value: Any, answer: str | None
) -> None:
    with Peer(WRITTEN) as peer:
        printed = run("-e", peer.endpoint, *words)

    (request,) = peer.requests
    assert request["value"] == value
    assert type(request["value"]) is type(value)
    if answer is None:
        assert json.loads(printed.stdout)["rev"] == 7
    else:
        assert printed.stdout.decode() == answer


def test_where_there_is_no_value_json_is_about_the_answer(cli: Cli) -> None:
    cli("put", "k", "v")

    for words in (["get", "k"], ["count"], ["scan"], ["info"], ["delete", "k"]):
        for flag in ("--json", "--output=json"):
            json.loads(cli(*words, flag).stdout)
            cli("put", "k", "v")
    assert cli("get", "k", "--json", "-o", "text").stdout == b"v\n"
    assert_fails(run("-o", "xml", "ping"), 2, "xml", "json")


# Times.


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5", 5.0), ("0.25", 0.25), ("1e3", 1000.0), ("-1", -1.0), ("500ms", 0.5), ("90s", 90.0),
        ("5m", 300.0), ("1h", 3600.0), ("1.5h", 5400.0), ("1d12h", 129_600.0), ("2w", 1_209_600.0),
        ("1h30m15s250ms", 5415.25),
    ],
)  # fmt: skip
def test_times_have_units(text: str, seconds: float) -> None:
    assert durations.seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", " ", "m", "5x", "5M", "1h1h", "1m1h", "-5m", "5 m", "nan", "inf", "1e999", "soon"]
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration: give seconds, or for example 500ms"):
        durations.seconds(text)


@pytest.mark.parametrize(
    ("words", "ttl"),
    [
        (["put", "k", "v", "--ttl", "1h"], 3600.0),
        (["put", "k", "v", "--ttl=1d12h"], 129_600.0),
        (["mput", "k", "v", "--ttl", "500ms"], 0.5),
        (["touch", "k", "5m"], 300.0),
        (["touch", "k", "90"], 90.0),
    ],
    ids=_id,
)
def test_every_time_to_live_takes_units(words: list[str], ttl: float) -> None:
    with Peer(WRITTEN) as peer:
        assert run("-e", peer.endpoint, *words).returncode == 0

    assert peer.requests[0]["ttl"] == ttl


@pytest.mark.parametrize(
    "words",
    [
        ["--timeout", "2x", "ping"], ["put", "k", "v", "--ttl", "2x"], ["touch", "k", "2x"],
        ["mput", "k", "v", "--ttl", "2x"], ["top", "--interval", "2x"],
    ],
    ids=_id,
)  # fmt: skip
def test_a_bad_time_is_told_with_an_example(words: list[str]) -> None:
    assert_fails(run("-e", NOWHERE, *words), 2, "'2x' is not a duration", "1h30m")


def test_the_timeout_takes_units() -> None:
    assert_fails(run("-e", NOWHERE, "--timeout", "200ms", "ping"), 3, NOWHERE)


@pytest.mark.parametrize(
    ("program", "words", "named"),
    [
        ("zkv.bench.main", ["--duration", "2x"], "--duration"),
        ("zkv.bench.main", ["--timeout", "2x"], "--timeout"),
        ("zkv.bench.main", ["--ceiling", "2x"], "--ceiling"),
        ("zkv.bench.main", ["sweep", "--duration", "2x"], "--duration"),
        ("zkv.cli.main", ["doctor", "--timeout", "2x"], "--timeout"),
    ],
)
def test_every_program_takes_the_same_times(program: str, words: list[str], named: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", program, *words], cwd=ROOT, env=environment(), capture_output=True,
        timeout=LIMIT, check=False, text=True,
    )  # fmt: skip

    assert done.returncode == 2
    assert f"{named}: '2x' is not a duration: give seconds, or for example" in done.stderr


# More than one key.


def test_delete_takes_a_prefix(cli: Cli, client: Raw) -> None:
    client.ok(op="MPUT", items={f"user/{number}": number for number in range(2500)})
    client.ok(op="MPUT", items={"user": 1, "users": 1, "v": 1})

    assert cli("delete", "--prefix", "user/").stdout == b"OK, 2500 deleted, revision 5, on disk\n"
    assert cli("scan", "--keys-only").stdout == b"user\nusers\nv\n"
    assert cli("delete", "--prefix", "user/").stdout == b"OK, 0 deleted\n"
    told = json.loads(cli("delete", "--prefix=u", "-o", "json", "--durable").stdout)
    assert told == {"ok": True, "deleted": 2, "rev": 6, "durable": True}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "either a KEY or --prefix"),
        (["k", "--prefix", "p"], "either a KEY or --prefix"),
        (["--prefix", ""], "--yes"),
        (["--prefix", "k", "--prev"], "--prev"),
        (["--prefix", "k", "--if-rev", "0"], "--if-rev"),
        (["--prefix", "k", "--session", "s", "--seq", "1"], "--session"),
        (["--prefix", "k", "--deadline"], "--deadline"),
    ],
    ids=_id,
)
def test_delete_is_used_wrongly_and_deletes_nothing(cli: Cli, words: list[str], why: str) -> None:
    cli("put", "k", "v")

    assert_fails(cli("delete", *words, status=2), 2, why)

    assert cli("get", "k").stdout == b"v\n"


def test_all_keys_are_deleted_only_where_that_is_meant(cli: Cli) -> None:
    cli("mput", "a", "1", "b", "2")

    assert cli("delete", "--prefix", "", "--yes").stdout.startswith(b"OK, 2 deleted")


def test_delete_that_fails_on_the_way_says_how_far_it_got() -> None:
    full = reply(ok=False, code="READ_ONLY", message="no space", retry=True, applied=False)
    page = reply(ok=True, items=[["a", None, 1]], next="a", rev=1)
    deleted = reply(ok=True, rev=2, durable=True, deleted=1)
    second = reply(ok=True, items=[["ab", None, 1]], next="ab", rev=1)
    with Peer(reply(ok=True, count=2), page, deleted, second, full) as peer:
        printed = run("-e", peer.endpoint, "delete", "--prefix", "a")

    assert printed.returncode == 2
    assert b"deleted 1 keys, then stopped" in printed.stderr
    assert b"READ_ONLY" in printed.stderr


@pytest.mark.parametrize(
    ("typed", "left", "status"), [("y\r", "0", 0), ("n\r", "2", 1), ("\r", "2", 1)]
)
def test_delete_asks_at_a_terminal(
    server: ServerInProcess, client: Raw, tmp_path: Path, typed: str, left: str, status: int
) -> None:
    client.ok(op="MPUT", items={"p/1": 1, "p/2": 2})
    with Terminal(tmp_path, "-e", server.endpoint, "delete", "--prefix", "p/") as terminal:
        terminal.expect(r"Delete 2 keys with the prefix p/\? \[y/N\] ")
        terminal.type(typed)
        text, ended = terminal.end()

    assert ended == status
    assert ("nothing was deleted" in CONTROL.sub("", text)) is bool(status)
    assert str(client.ok(op="COUNT")["count"]) == left


def test_delete_does_not_ask_who_has_said_yes(
    server: ServerInProcess, client: Raw, tmp_path: Path
) -> None:
    client.ok(op="PUT", key="p", value=1)
    words = ["-e", server.endpoint, "delete", "--prefix", "p", "--yes"]
    with Terminal(tmp_path, *words) as terminal:
        text, status = terminal.end()

    assert status == 0
    assert text == "OK, 1 deleted, revision 2, on disk\r\n"


# Another name.


@pytest.mark.parametrize(
    "value", ["text", b"\x00\xff", [1, {"a": None}], ExtType(5, b"x"), Timestamp(1, 5), 2**64 - 1]
)
def test_rename_moves_an_entry(cli: Cli, client: Raw, value: Any) -> None:
    client.ok(op="PUT", key="a", value=value)

    assert cli("rename", "a", "b").stdout == b"OK, revision 2, on disk\n"

    assert client.ok(op="GET", key="b")["value"] == value
    assert client.call(op="GET", key="a")["code"] == "NOT_FOUND"
    told = json.loads(cli("rename", "b", "c", "-o", "json").stdout)
    assert told == {"ok": True, "rev": 3, "durable": True}


def test_rename_takes_the_time_to_live_along(cli: Cli, client: Raw) -> None:
    client.ok(op="PUT", key="a", value=1, ttl=1000)
    client.ok(op="PUT", key="b", value=2)

    cli("rename", "a", "c")
    cli("rename", "b", "d")

    assert 900 < client.ok(op="GET", key="c")["ttl"] <= 1000
    assert "ttl" not in client.ok(op="GET", key="d")


def test_rename_replaces_only_where_that_is_meant(cli: Cli) -> None:
    cli("mput", "a", "1", "b", "2")

    printed = cli("rename", "a", "b", status=1)
    assert_fails(printed, 1, "CONFLICT: b exists, with revision 1; --force")
    assert cli("mget", "a", "b").stdout == b'"1"\n"2"\n'
    cli("rename", "a", "b", "--force")
    assert cli("mget", "a", "b").stdout == b'null\n"1"\n'
    assert_fails(cli("rename", "nobody", "c", status=1), 1, "NOT_FOUND", "nobody")
    assert_fails(cli("rename", "b", "b", status=2), 2, "the same key")


def test_rename_moves_what_somebody_has_changed_meanwhile() -> None:
    conflict = reply(
        ok=False, code="CONFLICT", message="'a' has revision 2, not 1", retry=False, applied=False,
        key="a", rev=2, field="if", index=0,
    )  # fmt: skip
    first, second = (reply(ok=True, value=rev, rev=rev) for rev in (1, 2))
    with Peer(first, conflict, second, WRITTEN) as peer:
        printed = run("-e", peer.endpoint, "rename", "a", "b", "--durable")

    assert printed.stdout == b"OK, revision 7, on disk\n"
    *_, moved = peer.requests
    del moved["id"]
    assert moved == {
        "op": "TXN", "durable": True, "if": [["a", 2], ["b", 0]],
        "ops": [{"op": "PUT", "key": "b", "value": 2}, {"op": "DELETE", "key": "a"}],
    }  # fmt: skip


# What has been, and what comes.


def test_history_is_of_one_key(cli: Cli) -> None:
    cli("put", "k", "1")
    cli("put", "kk", "other")
    cli("put", "k", "2", "--json")
    cli("touch", "k", "none")
    cli("delete", "k")

    assert cli("history", "k").stdout.decode().splitlines() == [
        '1\tPUT\tk\t"1"', "3\tPUT\tk\t2", "4\tTOUCH\tk\t2", "5\tDELETE\tk",
    ]  # fmt: skip
    lines = cli("history", "k", "-o", "json").stdout.splitlines()
    assert json.loads(lines[0]) == {"rev": 1, "op": "PUT", "key": "k", "value": "1"}
    assert json.loads(lines[-1]) == {"rev": 5, "op": "DELETE", "key": "k"}
    assert_fails(cli("history", "nobody", status=1), 1, "the server keeps no change of nobody")


def test_history_goes_over_many_pages(cli: Cli, client: Raw) -> None:
    for number in range(2500):
        client.ok(op="PUT", key="k", value=number)

    values = [line.split(b"\t")[3] for line in cli("history", "k").stdout.splitlines()]

    assert values == [str(number).encode() for number in range(2500)]


@pytest.mark.parametrize("kept", [1, 2])
def test_history_says_where_it_begins(tmp_path: Path, kept: int) -> None:
    with ServerProcess(tmp_path, config=f"[limits]\nhistory = {kept}\n") as server:
        here = ["-e", server.endpoint]
        for value in "1234":
            run(*here, "put", "k", value)

        printed = run(*here, "history", "k")

    assert len(printed.stdout.splitlines()) == kept
    assert printed.returncode == 0
    assert f"no longer keeps changes before revision {5 - kept}" in printed.stderr.decode()


class Watching:
    """A ``zkv-cli get --watch`` that runs."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self.process, self.values, self.notes = process, process.stdout, process.stderr

    def line(self) -> str:
        return read_line(self.values).decode().rstrip("\n")

    def note(self) -> str:
        return read_line(self.notes).decode()


@pytest.fixture
def watch(server: ServerInProcess) -> Iterator[Callable[..., Watching]]:
    processes = []

    def start(*words: str) -> Watching:
        process = subprocess.Popen(
            [*COMMAND, "-e", server.endpoint, "get", "--watch", *words], cwd=ROOT,
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
        )  # fmt: skip
        processes.append(process)
        return Watching(process)

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_get_goes_on_with_what_comes(watch: Callable[..., Watching], client: Raw) -> None:
    client.ok(op="PUT", key="k", value="first")
    watching = watch("k")
    assert watching.line() == "first"
    client.ok(op="PUT", key="kk", value="of another key")
    for number in range(300):
        client.ok(op="INCR", key="n")
        client.ok(op="PUT", key="k", value=number)
    assert [watching.line() for _ in range(300)] == [str(number) for number in range(300)]
    client.ok(op="TOUCH", key="k", ttl=None)
    client.ok(op="DELETE", key="k")
    assert "k is gone: DELETE, revision" in watching.note()
    client.ok(op="PUT", key="k", value="again")
    assert watching.line() == "again"


def test_get_waits_for_what_is_not_there_yet(watch: Callable[..., Watching], client: Raw) -> None:
    watching = watch("k", "-o", "json")
    assert "k does not exist yet" in watching.note()
    client.ok(op="PUT", key="k", value="1")
    assert watching.line() == '"1"'


def test_ctrl_c_ends_a_get_that_watches(watch: Callable[..., Watching], client: Raw) -> None:
    client.ok(op="PUT", key="k", value="v")
    watching = watch("k")
    assert watching.line() == "v"
    watching.process.send_signal(signal.SIGINT)
    assert watching.process.wait(LIMIT) == 130
    assert watching.notes.read() == b""


@pytest.mark.parametrize("key", ["", b"\xff", "x" * 2000])
def test_a_key_that_cannot_be_is_refused_however_it_is_asked_for(
    server: ServerInProcess, key: str | bytes
) -> None:
    for words in (["get", "--watch", key], ["get", "--meta", key], ["rename", key, "k"]):
        printed = run("-e", server.endpoint, *words)
        assert_fails(printed, 2)


# JSON in the shell.


@pytest.mark.parametrize(
    ("line", "stored"),
    [
        ('put k {"a": [1, 2]}', {"a": [1, 2]}),
        ("put k [1, null]", [1, None]),
        ("mput k [1] other x", [1]),
        ("put k '{\"a\": 1}'", '{"a": 1}'),
        ("put k 1", "1"),
        ("put k 1 --json", 1),
        ("put k [1]x", "[1]x"),
        ("--json\nput k 1", 1),
    ],
)
def test_json_in_the_shell_is_stored_as_json(
    server: ServerInProcess, client: Raw, line: str, stored: Any
) -> None:
    done = run("-e", server.endpoint, input=f"{line}\n".encode())

    assert done.returncode == 0, done.stderr
    value = client.ok(op="GET", key="k")["value"]
    assert value == stored
    assert type(value) is type(stored)


def test_what_only_looks_like_json_is_told_to_be_quoted(server: ServerInProcess) -> None:
    done = run("-e", server.endpoint, input=b"put k [red]\n")

    assert_fails(done, 2, "VALUE is not JSON", "put it in quotes")


def test_a_key_may_look_like_json(server: ServerInProcess) -> None:
    done = run("-e", server.endpoint, input=b"put {a} v\nget {a}\nscan {\n}\n")

    assert done.stdout.splitlines()[1] == b"v"
    assert [word.text for word in split("get {a}").words] == ["get", "{a}"]


@pytest.mark.parametrize("line", ["ttl k", "sett k v", "-h localhost"])
def test_the_shell_knows_the_words_of_others(server: ServerInProcess, line: str) -> None:
    done = run("-e", server.endpoint, input=f"{line}\n".encode())

    assert_fails(done, 2, "did you mean: zkv-cli")
