"""The ops of ``zkv-cli`` beyond plain reading and writing: what they send, and what they print."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from msgpack import ExtType

from tests.cli.running import Cli, Result, assert_fails, run, run_in_bash
from tests.conftest import Connect
from tests.peer import Answer, Peer, reply
from tests.support import LIMIT, ROOT, Raw, ServerInProcess, ServerProcess, environment
from zkv.cli.ops import OPS
from zkv.protocol.requests import REQUEST_TYPES

WRITES = ["put", "touch", "delete", "incr", "mput", "mdelete", "txn"]
EVERY_WRITE = ["--durable", "--deadline", "--session", "--seq"]
NO_OPS = '{"ops": []}'

WRITTEN = reply(ok=True, rev=7, durable=True, value=1, deleted=1, results=[])
LISTED = {
    "scan": reply(ok=True, rev=7, items=[], next=None),
    "count": reply(ok=True, count=0),
    "changes": reply(ok=True, rev=7, changes=[], next=7),
}

ODD_KEYS = sorted(
    [
        '"quoted"',
        "$HOME `id` \\ !",
        "--reverse",
        "a b",
        "a\tb",
        "a\nb",
        "it's",
        "it's \x1b[31m red \x85 \u2028",
        "ü",
        "\U0001f600",
    ],
    key=str.encode,
)


def sent(*words: str, answer: Answer, input: bytes = b"") -> dict[str, Any]:
    """The fields of the request that zkv-cli makes of ``words``, but for ``id``."""
    with Peer(answer) as peer:
        result = run("-e", peer.endpoint, *words, input=input)
    assert result.returncode == 0, result.stderr
    (request,) = peer.requests
    del request["id"]
    return request


# What is sent.


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        (["put", "k", "v"], {"value": "v"}),
        (["put", "k", "v", "--if-rev", "0"], {"value": "v", "if_rev": 0}),
        (["put", "--if-rev=7", "k", "v", "--prev"], {"value": "v", "if_rev": 7, "prev": True}),
        (["put", "k", "v", "--ttl", "0.5"], {"value": "v", "ttl": 0.5}),
        (["put", "k", "0", "--json"], {"value": 0}),
        (["put", "k", "false", "--json"], {"value": False}),
        (["put", "k", "null", "--json"], {"value": None}),
        (["delete", "k"], {}),
        (["delete", "k", "--if-rev", "7", "--prev"], {"if_rev": 7, "prev": True}),
        (["touch", "k", "1.5"], {"ttl": 1.5}),
        (["touch", "k", "none"], {"ttl": None}),
        (["touch", "k", "None"], {"ttl": None}),
        (["touch", "k", "-"], {"ttl": None}),
        (["incr", "k"], {}),
        (["incr", "k", "5"], {"by": 5}),
        (["incr", "k", "0"], {"by": 0}),
        (["incr", "k", "-5"], {"by": -5}),
        (["put", "k", "v", "--durable"], {"value": "v", "durable": True}),
        (["incr", "k", "--session", "s", "--seq", "1"], {"session": "s", "seq": 1}),
    ],
    ids=" ".join,
)
def test_a_write_sends_what_was_given_and_nothing_else(
    words: list[str], fields: dict[str, Any]
) -> None:
    request = sent(*words, answer=WRITTEN)

    assert request == {"op": words[0].upper(), "key": "k"} | fields
    assert {type(value) for value in request.values()} <= {str, int, float, bool, type(None)}
    assert type(request.get("value")) is type(fields.get("value"))


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        (["scan", "--limit", "7"], {"limit": 7}),
        (["scan", "", "--limit", "7"], {"prefix": "", "limit": 7}),
        (["scan", "p", "--limit", "5"], {"prefix": "p", "limit": 5}),
        (
            ["scan", "--start", "a", "--end", "b", "--limit=7"],
            {"start": "a", "end": "b", "limit": 7},
        ),
        (
            ["scan", "--after=-x", "--reverse", "--limit=7"],
            {"after": "-x", "reverse": True, "limit": 7},
        ),
        (["scan", "--keys-only", "--limit=7"], {"values": False, "limit": 7}),
        (["count"], {}),
        (["count", "p"], {"prefix": "p"}),
        (["changes", "0"], {"since": 0}),
        (["changes", "7", "--prefix", "p", "--limit=3"], {"since": 7, "prefix": "p", "limit": 3}),
    ],
    ids=" ".join,
)
def test_a_read_sends_what_was_given_and_nothing_else(
    words: list[str], fields: dict[str, Any]
) -> None:
    request = sent(*words, answer=LISTED[words[0]])

    assert request == {"op": words[0].upper()} | fields


def test_mput_sends_its_ttl() -> None:
    request = sent("mput", "a", "1", "b", "[2]", "--json", "--ttl", "9", answer=WRITTEN)

    assert request == {"op": "MPUT", "items": {"a": 1, "b": [2]}, "ttl": 9.0}


@pytest.mark.parametrize("source", ["a file", "-"])
def test_txn_sends_what_the_file_holds(tmp_path: Path, source: str) -> None:
    fields = {"if": [["a", 0]], "ops": [{"op": "PUT", "key": "ü", "value": {"x": [1.5, None]}}]}
    text = json.dumps(fields)
    file = tmp_path / "a file"
    file.write_text(text)
    name, piped = ("-", text.encode()) if source == "-" else (str(file), b"")

    request = sent("txn", name, "--session", "s", "--seq", "3", answer=WRITTEN, input=piped)

    assert request == {"op": "TXN", "session": "s", "seq": 3} | fields


@pytest.mark.parametrize("name", WRITES)
def test_every_write_takes_what_makes_a_script_sure(name: str) -> None:
    words = {
        "put": ["k", "v"], "touch": ["k", "1"], "delete": ["k"], "incr": ["k"],
        "mput": ["k", "v"], "mdelete": ["k"], "txn": ["-"],
    }[name]  # fmt: skip
    options = ["--durable", "--deadline", "--session", "s", "--seq", "9", "--timeout", "20"]

    before = time.time_ns() // 1_000_000
    request = sent(name, *words, *options, answer=WRITTEN, input=NO_OPS.encode())
    after = time.time_ns() // 1_000_000

    assert (request["session"], request["seq"], request["durable"]) == ("s", 9, True)
    assert before + 20_000 <= request["deadline"] <= after + 20_000


# What a server makes of it.


def test_if_rev_guards_a_write(cli: Cli) -> None:
    cli("put", "k", "first", "--if-rev", "0")
    assert_fails(cli("put", "k", "v", "--if-rev", "0", status=1), 1, "CONFLICT", "revision 1")
    assert_fails(cli("delete", "k", "--if-rev", "7", status=1), 1, "CONFLICT")
    cli("put", "k", "second", "--if-rev", "1")
    assert cli("get", "k").stdout == b"second\n"

    cli("delete", "k", "--if-rev", "2")

    cli("get", "k", status=1)


def test_a_time_to_live_is_given_and_taken_away(cli: Cli, client: Raw) -> None:
    cli("put", "a", "1", "--ttl", "100")
    cli("mput", "b", "1", "c", "2", "--ttl=1000")
    cli("touch", "b", "none")
    assert b"revision 4" in cli("touch", "c", "5000").stdout

    a, b, c = (client.ok(op="GET", key=key) for key in "abc")
    assert 0 < a["ttl"] <= 100
    assert "ttl" not in b
    assert 1000 < c["ttl"] <= 5000


def test_incr_prints_the_sum_alone(cli: Cli) -> None:
    assert cli("incr", "n").stdout == b"1\n"
    assert cli("incr", "n", "9223372036854775806").stdout == b"9223372036854775807\n"
    assert_fails(cli("incr", "n", status=2), 2, "WRONG_TYPE")
    assert json.loads(cli("incr", "n", "-7", "--json").stdout)["value"] == 2**63 - 8


def test_count_prints_the_number_alone(cli: Cli) -> None:
    cli("mput", "a", "", "ab", "", "b", "")

    assert cli("count").stdout == b"3\n"
    assert cli("count", "a").stdout == b"2\n"
    assert cli("count", "x").stdout == b"0\n"
    assert json.loads(cli("--json", "count", "a").stdout)["count"] == 2


def test_a_repeat_is_told_from_the_first(cli: Cli) -> None:
    once = ["--session", "s", "--seq", "1"]
    assert cli("put", "k", "v", *once).stdout == b"OK, revision 1, on disk\n"
    assert cli("put", "k", "v", *once).stdout == b"OK, revision 1, on disk, answered before\n"
    assert json.loads(cli("put", "k", "v", *once, "-o", "json").stdout)["replayed"] is True
    assert_fails(cli("put", "k", "w", *once, status=2), 2, "BAD_REQUEST", "seq 1")
    assert_fails(cli("put", "k", "w", "--seq", "2", status=2), 2, "BAD_REQUEST", "session")

    assert cli("incr", "n", "--session", "s", "--seq", "2").stdout == b"1\n"
    assert cli("incr", "n", "--session", "s", "--seq", "2", "--durable").stdout == b"1\n"


def test_durable_waits_for_the_disk(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "--fsync", "never") as server:
        here = ["-e", server.endpoint]
        assert b", not yet on disk" in run(*here, "put", "k", "v").stdout

        assert b", on disk" in run(*here, "put", "k", "v", "--durable").stdout


# Lists.


def test_scan_prints_a_line_for_each_key(cli: Cli, client: Raw) -> None:
    values = {"a": "x\ty\n", "b": 1, "c": [b"\x00"], "d": ExtType(5, b""), "e": None, "f": "1"}
    client.ok(op="MPUT", items=values)
    cli("put", "z", "other")

    printed = cli("scan", "--end", "z")
    assert printed.stdout.decode().splitlines() == [
        'a\t"x\\ty\\n"',
        "b\t1",
        'c\t[{"$bin": "AA=="}]',
        'd\t{"$ext": [5, ""]}',
        "e\tnull",
        'f\t"1"',
    ]
    assert printed.stderr == b""
    assert cli("scan", "--keys-only", "--reverse").stdout == b"z\nf\ne\nd\nc\nb\na\n"
    assert cli("scan", "--start", "b", "--end", "d").stdout == b'b\t1\nc\t[{"$bin": "AA=="}]\n'
    assert cli("scan", "--after", "f").stdout == b'z\t"other"\n'
    assert cli("scan", "z").stdout == b'z\t"other"\n'


def test_scan_of_nothing_prints_nothing(cli: Cli) -> None:
    printed = cli("scan", "x")

    assert (printed.stdout, printed.stderr) == (b"", b"")


def test_scan_as_json_is_an_object_for_each_key(cli: Cli) -> None:
    cli("mput", "a", "1", "b", "2")

    printed = cli("--json", "scan", "--limit", "1")

    assert json.loads(printed.stdout) == {"key": "a", "value": "1", "rev": 1}
    assert b"--after=a" in printed.stderr
    keys = cli("--json", "scan", "--keys-only").stdout.splitlines()
    assert [json.loads(line) for line in keys] == [{"key": "a", "rev": 1}, {"key": "b", "rev": 1}]
    assert cli("--json", "scan", "x").stdout == b""


def test_scan_goes_on_from_page_to_page(cli: Cli, client: Raw) -> None:
    keys = [f"{number:05}" for number in range(2500)]
    client.ok(op="MPUT", items=dict.fromkeys(keys, 0))

    assert cli("scan", "--keys-only").stdout.decode().split() == keys
    assert cli("scan", "--keys-only", "--reverse").stdout.decode().split() == keys[::-1]
    printed = cli("scan", "--keys-only", "--limit", "1500", "--after", "00499")
    assert printed.stdout.decode().split() == keys[500:2000]
    assert b"--after=01999" in printed.stderr
    assert cli("scan", "--limit", "2500").stderr == b""


@pytest.mark.parametrize("more", [[], ["--limit", "2"]])
def test_scan_promises_nothing_behind_its_last_key(more: list[str]) -> None:
    """The server passes over expired keys, so a last page may be empty."""
    pages = [[["a", 1, 1]], [], []]
    answers = [
        reply(ok=True, rev=1, items=items, next=following)
        for items, following in zip(pages, ["a", "b", None], strict=True)
    ]
    with Peer(*answers) as peer:
        printed = run("-e", peer.endpoint, "scan", *more)

    assert (printed.returncode, printed.stdout, printed.stderr) == (0, b"a\t1\n", b"")
    assert [request.get("after") for request in peer.requests] == [None, "a", "b"]


def test_scan_asks_for_less_where_values_are_large(tmp_path: Path, connect: Connect) -> None:
    limits = "[limits]\nmax_value_bytes = 4096\nmax_reply_bytes = 8192\n"
    with ServerProcess(tmp_path, config=limits) as server:
        client = connect(server.endpoint)
        for key in "abcdefg":
            client.ok(op="PUT", key=key, value=key * 4000)

        printed = run("-e", server.endpoint, "scan")

    assert printed.returncode == 0, printed.stderr
    assert [line[:1] for line in printed.stdout.decode().splitlines()] == [*"abcdefg"]


@pytest.mark.parametrize("backwards", ["", "--reverse"])
def test_scan_says_how_to_go_on_whatever_the_keys(
    server: ServerInProcess, client: Raw, tmp_path: Path, backwards: str
) -> None:
    client.ok(op="MPUT", items={key: index for index, key in enumerate(ODD_KEYS)})
    go_on = f"""
        hint=
        while :; do
            eval "zkv-cli scan --limit 1 {backwards} $hint" 2>hint
            grep -q . hint || break
            [ "$(wc -l <hint)" = 1 ] || exit 1
            hint=$(sed 's/.*to continue, add //' hint)
        done
    """

    result = run_in_bash(f'cd "{tmp_path}"\n{go_on}', ZKV_ENDPOINT=server.endpoint, LC_ALL="C")

    assert result.returncode == 0, result.stderr
    lines = result.stdout.decode().split("\n")[:-1]
    order = range(len(ODD_KEYS))
    assert [int(line.rpartition("\t")[2]) for line in lines] == list(
        reversed(order) if backwards else order
    )


@pytest.mark.parametrize("key", ODD_KEYS)
def test_a_key_in_a_line_is_text_or_json(key: str) -> None:
    listed = reply(ok=True, items=[[key, 1, 1]], next=None, rev=1)
    with Peer(listed) as peer:
        printed = run("-e", peer.endpoint, "scan").stdout.decode()

    shown, value = printed.removesuffix("\n").split("\t")
    assert value == "1"
    assert "\n" not in shown
    assert (json.loads(shown) if shown.startswith('"') else shown) == key


def test_changes_prints_a_line_for_each_change(cli: Cli) -> None:
    cli("put", "a", "x")
    cli("touch", "a", "none")
    cli("mput", "b", "1", "c", "[2]", "--json")
    cli("delete", "a")
    cli("put", "n", "null", "--json")

    printed = cli("changes", "0")
    assert printed.stdout.decode().splitlines() == [
        '1\tPUT\ta\t"x"',
        '2\tTOUCH\ta\t"x"',
        "3\tPUT\tb\t1",
        "3\tPUT\tc\t[2]",
        "4\tDELETE\ta",
        "5\tPUT\tn\tnull",
    ]
    assert cli("changes", "3", "--limit", "1").stdout == b"4\tDELETE\ta\n"
    assert cli("changes", "0", "--prefix", "c").stdout == b"3\tPUT\tc\t[2]\n"
    assert cli("changes", "5").stdout == b""
    assert json.loads(cli("--json", "changes", "3", "--limit", "1").stdout)["next"] == 4


def test_changes_says_where_to_go_on(cli: Cli) -> None:
    for value in "123":
        cli("put", "k", value)

    assert b"up to revision 2 of 3" in cli("changes", "0", "--limit", "2").stderr
    assert b"SINCE 2" in cli("changes", "0", "--limit", "2").stderr
    assert b"SINCE 3" in cli("changes", "2").stderr
    assert b"SINCE 3" in cli("--json", "changes", "2").stderr


def test_changes_that_are_gone_are_a_failure(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, config="[limits]\nhistory = 1\n") as server:
        here = ["-e", server.endpoint]
        for value in "123":
            run(*here, "put", "k", value)

        assert_fails(run(*here, "changes", "0"), 2, "COMPACTED", "3")


def test_txn_prints_what_each_op_gave(cli: Cli) -> None:
    transaction = {
        "if": [["n", 0]],
        "ops": [{"op": "INCR", "key": "n", "by": 5}, {"op": "GET", "key": "n"}],
    }

    first, *rest = cli("txn", "-", input=json.dumps(transaction).encode()).stdout.splitlines()

    assert first == b"OK, revision 1, on disk"
    assert [json.loads(line)["value"] for line in rest] == [5, 5]
    printed = cli("txn", "-", "--json", input=b'{"ops": [{"op": "GET", "key": "x"}]}').stdout
    (result,) = json.loads(printed)["results"]
    assert (result["value"], result["rev"]) == (None, 0)


def test_a_failed_txn_tells_where(cli: Cli) -> None:
    def attempt(status: int, **transaction: Any) -> Result:
        return cli("txn", "-", input=json.dumps(transaction).encode(), status=status)

    put = {"op": "PUT", "key": "a", "value": 1}
    failed = attempt(1, ops=[put, {"op": "DELETE", "key": "x"}])
    assert_fails(failed, 1, "NOT_FOUND", "index 1")
    failed = attempt(1, **{"if": [["a", 0], ["b", 0], ["a", 3]], "ops": [put]})
    assert_fails(failed, 1, "CONFLICT", "index 2")
    failed = attempt(2, ops=[put, put, {"op": "PING"}])
    assert_fails(failed, 2, "BAD_REQUEST")

    assert cli("count").stdout == b"0\n"


# What fails.


@pytest.mark.parametrize(
    ("words", "stdin", "complaint"),
    [
        (["put", "k", "v", "--if-rev", "x"], "", "--if-rev"),
        (["put", "k", "v", "--if-rev", "-1"], "", "if_rev"),
        (["put", "k", "v", "--if-rev", "18446744073709551616"], "", "64 bits"),
        (["put", "k", "v", "--ttl"], "", "--ttl"),
        (["put", "k", "v", "--ttl", "0"], "", "ttl"),
        (["put", "k", "v", "--ttl", "nan"], "", "ttl"),
        (["put", "k", "v", "--deadline", "--timeout", "nan"], "", "timeout"),
        (["get", "k", "--durable"], "", "--durable"),
        (["touch", "k"], "", "missing TIME"),
        (["touch", "k", "soon"], "", "'soon'"),
        (["incr", "k", "x"], "", "BY"),
        (["incr", "k", "1", "2"], "", "2"),
        (["incr", "k", "1.5"], "", "BY"),
        (["scan", "a", "b"], "", "b"),
        (["scan", "--limit", "0"], "", "limit"),
        (["scan", "--limit", "many"], "", "--limit"),
        (["count", "a", "b"], "", "b"),
        (["changes"], "", "SINCE"),
        (["changes", "x"], "", "SINCE"),
        (["txn"], "", "FILE"),
        (["txn", "/nowhere/at all"], "", "/nowhere/at all: No such file"),
        (["txn", "/"], "", "/: Is a directory"),
        (["txn", "-"], "{", "standard input is not JSON"),
        (["txn", "-"], "[]", "ops"),
        (["txn", "-"], "{}", "ops"),
        (["txn", "-"], '{"ops": [], "op": "PING"}', "ops"),
        (["txn", "-"], '{"ops": [], "id": 1}', "ops"),
        (["txn", "-"], '{"ops": [{"op": "PUT", "key": "k", "value": 18446744073709551616}]}', "64"),
        (["txn", "-"], '{"ops": 1}', "BAD_REQUEST"),
    ],
    ids=lambda part: repr(part)[:60],
)
def test_what_fails_says_why_in_one_line(
    shared_server: ServerProcess, words: list[str], stdin: str, complaint: str
) -> None:
    result = run(*words, input=stdin.encode(), env={"ZKV_ENDPOINT": shared_server.endpoint})

    assert_fails(result, 2, complaint)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["scan"], reply(ok=True, rev=1)),
        (["scan"], reply(ok=True, items=[["k", 1, 1]], rev=1)),
        (["scan"], reply(ok=True, items=[["k", 1]], next=None, rev=1)),
        (["scan"], reply(ok=True, items=[[5, 1, 1]], next=None, rev=1)),
        (["scan"], reply(ok=True, items=[], next=5, rev=1)),
        (["count"], reply(ok=True)),
        (["changes", "0"], reply(ok=True, changes=[[1, "PUT", "k"]], next=1, rev=1)),
        (["changes", "0"], reply(ok=True, changes=[])),
        (["incr", "k"], reply(ok=True, rev=1)),
        (["touch", "k", "1"], reply(ok=True, rev=1)),
        (["txn", "-"], reply(ok=True, rev=1, durable=True)),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_a_bad_reply_is_a_failure(words: list[str], answer: Answer) -> None:
    with Peer(answer) as peer:
        result = run("-e", peer.endpoint, *words, input=NO_OPS.encode())

    assert_fails(result, 2, "bad reply")


def test_a_lost_reply_to_a_new_write_may_have_been_carried_out(connect: Connect) -> None:
    with Peer() as peer:
        for words, uncertain in ((["incr", "k"], True), (["scan"], False)):
            result = run("-e", peer.endpoint, "--timeout", "2", *words)

            assert_fails(result, 3, "no reply")
            assert (b"may have been applied" in result.stderr) is uncertain


# Help and completion.


def test_there_is_a_command_for_every_op() -> None:
    """But for those of servers among themselves, which `zkv` sends."""
    assert {name.upper() for name in OPS} == set(REQUEST_TYPES) - {"REPLICATE", "PROMOTE"}


def options_of(name: str) -> list[str]:
    """The options that are the command's own."""
    arguments = OPS[name].arguments
    return [word for each in arguments if each.is_option for word in each.names]


def test_the_help_of_a_command_tells_all_its_options() -> None:
    assert {name for name in OPS if set(EVERY_WRITE) <= set(options_of(name))} == set(WRITES)
    for name in (*WRITES, "scan", "count", "changes"):
        helped = run(name, "--help").stdout.decode()

        assert helped.startswith(f"usage: zkv-cli {name}")
        for option in options_of(name):
            assert f"\n  {option}" in helped


def complete(*words: str, cwd: Path = ROOT) -> list[str]:
    """What bash offers for the last of ``words``."""
    code = """
        eval "$(cat)"
        COMP_WORDS=(zkv-cli "$@") COMP_CWORD=$#
        _zkv_cli
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    script = run("completion", "bash").stdout
    done = subprocess.run(
        ["bash", "-c", code, "bash", *words], input=script, capture_output=True, cwd=cwd,
        timeout=LIMIT, check=True, env=environment(),
    )  # fmt: skip
    assert done.stderr == b""
    return done.stdout.decode().split()


@pytest.mark.parametrize("name", [*WRITES, "scan", "count", "changes"])
def test_bash_completes_all_options_of_a_command(name: str) -> None:
    for spelled in (name, name.upper()):
        assert set(options_of(name)) <= set(complete(spelled, "--"))
    assert name in complete(name[:2])


@pytest.mark.parametrize("words", [["put", "--ttl", ""], ["scan", "--limit", "--"]])
def test_bash_leaves_the_value_of_an_option_to_the_person(words: list[str]) -> None:
    assert complete(*words) == []


def test_bash_completes_the_name_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "pay.json").touch()

    assert complete("txn", "pa", cwd=tmp_path) == ["pay.json"]
    assert complete("get", "pa", cwd=tmp_path) == []
