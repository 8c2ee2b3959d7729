"""``zkv-cli`` as a child process: what it prints where, and its exit status."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgpack import ExtType, Timestamp

from tests.cli.running import COMMAND, NOWHERE, Cli, assert_fails, run, run_in_bash
from tests.conftest import Connect
from tests.peer import Answer, Peer, body, reply, swallow
from tests.support import LIMIT, ROOT, Raw, ServerInProcess, environment, read_line

SOON = "0.2"


def modules_after(*words: str) -> set[str]:
    """The modules that zkv-cli has imported once it is done."""
    code = """if True:
        import sys
        from zkv.cli.client import main
        try:
            main(sys.argv[1:])
        finally:
            print(*sys.modules)
    """
    command = [sys.executable, "-c", code, *words]
    return set(subprocess.check_output(command, cwd=ROOT, env=environment(), text=True).split())


# Commands.


@pytest.mark.parametrize("spell", [str.lower, str.upper, str.title])
def test_every_command_in_either_case(
    server: ServerInProcess, cli: Cli, spell: Callable[[str], str]
) -> None:
    assert b"revision 1" in cli(spell("put"), "k", "v").stdout
    assert cli(spell("get"), "k").stdout == b"v\n"
    assert b"revision 2" in cli(spell("delete"), "k").stdout
    assert b"revision 3" in cli(spell("mput"), "a", "1", "b", "2").stdout
    assert cli(spell("mget"), "a", "x", "b").stdout == b'"1"\nnull\n"2"\n'
    assert b"2 deleted, revision 4" in cli(spell("mdelete"), "a", "x", "b").stdout
    assert b"protocol 1" in cli(spell("ping")).stdout
    assert b"rev: 4\n" in cli(spell("info")).stdout
    assert b"revision 4" in cli(spell("snapshot")).stdout
    assert b"_zkv_cli" in cli(spell("completion"), "bash").stdout
    assert b"revision 4" in cli(spell("end")).stdout
    assert server.wait()


@pytest.mark.parametrize("words", [["END", "end"], ["end", "END"], ["END", "END"], ["END"]])
def test_the_old_spelling_of_end(server: ServerInProcess, cli: Cli, words: list[str]) -> None:
    cli(*words)

    assert server.wait()


def test_prev_tells_what_was_before(cli: Cli) -> None:
    cli("put", "k", "old")

    assert b'before: "old", revision 1' in cli("put", "k", "new", "--prev").stdout
    assert b'before: "new", revision 2' in cli("delete", "--prev", "k").stdout
    assert b"no such key before" in cli("put", "--prev", "k", "newer").stdout
    assert json.loads(cli("-o", "json", "put", "k", "1", "--prev").stdout)["prev"] == "newer"


def test_info_reads_line_by_line(server: ServerInProcess, cli: Cli) -> None:
    lines = cli("info").stdout.decode().splitlines()

    assert f"endpoints: {server.endpoint}" in lines
    assert "limits.max_key_bytes: 1024" in lines
    assert all(re.match(r"[a-zA-Z_.]+: .", line) for line in lines), lines


@pytest.mark.parametrize(
    "words",
    [
        ["put", "k", "1"],
        ["delete", "there"],
        ["mput", "a", "1", "b", "2"],
        ["mget", "there", "b"],
        ["mdelete", "there", "b"],
        ["ping"],
        ["info"],
        ["snapshot"],
        ["end"],
    ],
    ids=lambda words: words[0],
)
def test_json_output_is_the_reply_as_one_object(cli: Cli, words: list[str]) -> None:
    cli("put", "there", "x")

    lines = cli("-o", "json", *words).stdout.splitlines()

    assert len(lines) == 1
    assert json.loads(lines[0])["ok"] is True


def test_the_help_lists_each_command_with_an_example_that_works(
    server: ServerInProcess, tmp_path: Path
) -> None:
    """In their order: the last but one ends the server."""
    helped = run("--help").stdout.decode()
    examples = re.findall(r"^ +\$ (zkv-cli .*)$", helped, re.MULTILINE)

    here = f"cd {shlex.quote(str(tmp_path))}"
    result = run_in_bash("\n".join(["set -e", here, *examples]), ZKV_ENDPOINT=server.endpoint)

    assert result.returncode == 0, result.stderr
    assert server.wait()
    names = [example.split()[1] for example in examples]
    assert names == [
        "put", "get", "touch", "delete", "incr", "mput", "mget", "scan", "count", "mdelete",
        "txn", "changes", "rename", "history", "watch", "export", "import", "top", "ping",
        "info", "slow", "snapshot", "end", "completion",
    ]  # fmt: skip
    for name in names:
        assert f"\n  {name}" in helped


@pytest.mark.parametrize("name", ["put", "END", "completion"])
def test_a_command_has_a_help_of_its_own(name: str) -> None:
    helped = run(name, "--help").stdout.decode()

    assert helped.startswith(f"usage: zkv-cli {name.lower()}")
    assert f"example: zkv-cli {name.lower()}" in helped


# Where the options stand.


def test_options_stand_before_the_command_or_behind_it(server: ServerInProcess) -> None:
    here = ["-e", server.endpoint]
    run("put", "k", "--json", *here, "[1]", "--timeout=30")

    assert run("get", "k", *here).stdout == b"[1]\n"
    assert run(*here, "get", "k").stdout == b"[1]\n"
    assert run("get", *here, "k", "--json").stdout == b"[1]\n"
    assert run("mget", "k", *here, "x").stdout == b"[1]\nnull\n"
    assert run("-e", NOWHERE, "get", "k", "--endpoint", server.endpoint).stdout == b"[1]\n"
    assert run("--", "get", "k", *here).stdout == b"[1]\n"


def test_the_endpoint_comes_from_the_environment_unless_given(server: ServerInProcess) -> None:
    there = {"ZKV_ENDPOINT": server.endpoint}
    nowhere = {"ZKV_ENDPOINT": NOWHERE}

    assert run("ping", env=there).returncode == 0
    assert run("-e", server.endpoint, "ping", env=nowhere).returncode == 0
    assert run("--timeout", SOON, "ping", env=nowhere).returncode == 3


def test_a_word_that_begins_with_a_dash(cli: Cli) -> None:
    cli("put", "-1", "-2.5")
    assert cli("get", "-1").stdout == b"-2.5\n"

    cli("put", "--prev", "--", "--json", "-v")
    assert cli("get", "--", "--json").stdout == b"-v\n"


# Values, in and out.


@pytest.mark.parametrize(
    ("words", "stdin", "stored"),
    [
        (["hello"], b"", "hello"),
        ([""], b"", ""),
        (["42"], b"", "42"),
        (["grüße"], b"", "grüße"),
        ([b"\xff\xfe"], b"", b"\xff\xfe"),
        (["-"], b"line\n", "line\n"),
        (["-"], b"", ""),
        (["-"], b"\x00\xff\n", b"\x00\xff\n"),
        (["--json", '{"a": [1, -2.5, true, null]}'], b"", {"a": [1, -2.5, True, None]}),
        (["--json", '"text"'], b"", "text"),
        (["--json", "18446744073709551615"], b"", 2**64 - 1),
        (["--json", "-"], b' {"b": "\xc3\xbc"}\n', {"b": "ü"}),
        (["--json", '"\\udcff"'], b"", "\udcff"),
    ],
)
@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "en_US.ISO-8859-1"])
def test_put_stores_text_or_json(
    shared_server: ServerInProcess, connect: Connect, words: list[str], stdin: bytes, stored: Any,
    locale: str,
) -> None:  # fmt: skip
    result = run(
        "-e", shared_server.endpoint, "put", "k", *words, input=stdin, env={"LC_ALL": locale}
    )

    assert result.returncode == 0, result.stderr
    value = connect(shared_server.endpoint).ok(op="GET", key="k")["value"]
    assert value == stored
    assert type(value) is type(stored)


@pytest.mark.parametrize(
    ("value", "plain", "as_json"),
    [
        ("text", "text\n", '"text"\n'),
        ("two\nlines\n", "two\nlines\n\n", '"two\\nlines\\n"\n'),
        ("grüße \U0001f600", "grüße \U0001f600\n", '"grüße \U0001f600"\n'),
        ("no UTF-8: \udcff", b"no UTF-8: \xff\n", '"no UTF-8: \\udcff"\n'),
        (b"\x00\xff", b"\x00\xff", '{"$bin": "AP8="}\n'),
        (b"", b"", '{"$bin": ""}\n'),
        (None, "null\n", None),
        (True, "true\n", None),
        (-7, "-7\n", None),
        (2**64 - 1, "18446744073709551615\n", None),
        (0.1, "0.1\n", None),
        (float("nan"), '{"$float": "NaN"}\n', None),
        (float("inf"), '{"$float": "Infinity"}\n', None),
        ([float("-inf")], '[{"$float": "-Infinity"}]\n', None),
        ({"b": [b"\x01"], "a": {}}, '{"b": [{"$bin": "AQ=="}], "a": {}}\n', None),
        ({1: "a", "b": b""}, '{"$map": [[1, "a"], ["b", {"$bin": ""}]]}\n', None),
        (ExtType(5, b"\xff"), '{"$ext": [5, "/w=="]}\n', None),
        (Timestamp(0, 1), '{"$time": "1970-01-01T00:00:00.000000001Z"}\n', None),
        (Timestamp(-1, 999_999_999), '{"$time": "1969-12-31T23:59:59.999999999Z"}\n', None),
        (Timestamp(2**40, 5), '{"$time": "@1099511627776.000000005"}\n', None),
    ],
    ids=repr,
)
def test_get_prints_the_value_alone(
    shared_server: ServerInProcess,
    connect: Connect,
    value: Any,
    plain: str | bytes,
    as_json: str | None,
) -> None:
    connect(shared_server.endpoint).ok(op="PUT", key="k", value=value)

    printed = run("-e", shared_server.endpoint, "get", "k", env={"LC_ALL": "C"})
    assert printed.stdout == (plain.encode() if isinstance(plain, str) else plain)
    assert printed.stderr == b""

    printed = run("-e", shared_server.endpoint, "get", "k", "--json", env={"LC_ALL": "C"})
    expected = plain if as_json is None else as_json
    assert printed.stdout.decode() == expected
    json.loads(printed.stdout)


def test_a_deep_value_is_printed(server: ServerInProcess, cli: Cli) -> None:
    text = "[" * 450 + "]" * 450
    cli("put", "k", "--json", "-", input=text.encode())

    assert cli("get", "k").stdout.decode() == text + "\n"


def test_bytes_go_through_unchanged(cli: Cli) -> None:
    data = bytes(range(256)) * 4096
    cli("put", "k", "-", input=data)

    assert cli("get", "k").stdout == data


# Exit status.


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (["get", "nowhere"], 1, "NOT_FOUND"),
        (["delete", "nowhere"], 1, "NOT_FOUND"),
        (["--json", "get", "nowhere"], 1, "NOT_FOUND"),
        (["get", ""], 2, "BAD_REQUEST"),
        (["get", b"\xff"], 2, "BAD_REQUEST"),
        (["get", "x" * 2000], 2, "TOO_LARGE"),
        (["bogus"], 2, "'bogus'"),
        (["get"], 2, "KEY"),
        (["get", "a", "b"], 2, "b"),
        (["get", "a", "--prev"], 2, "--prev"),
        (["get", "--pr", "a"], 2, "--pr"),
        (["put", "k"], 2, "VALUE"),
        (["put", "k", "v", "w"], 2, "w"),
        (["put", "k", "--", "--"], 2, "--"),
        (["put", "--json", "k", "{"], 2, "JSON"),
        (["put", "--json", "k", b"\xff"], 2, "JSON"),
        (["put", "--json", "k", "NaN"], 2, "NaN"),
        (["put", "--json", "k", "1e999"], 2, "1e999"),
        (["put", "--json", "k", "18446744073709551616"], 2, "64 bits"),
        (["put", "--json", "k", '"\\ud800"'], 2, "surrogates"),
        (["put", "--json", "k", "[" * 100_000], 2, "deep"),
        (["mget"], 2, "KEY"),
        (["mdelete"], 2, "KEY"),
        (["mput"], 2, "KEY VALUE"),
        (["mput", "a", "1", "b"], 2, "'b'"),
        (["mput", "a", "1", "a", "2"], 2, "'a'"),
        (["mput", "a", "-", "b", "-"], 2, "standard input"),
        (["end", "now"], 2, "now"),
        (["completion", "tcsh"], 2, "tcsh"),
        (["ping", "x"], 2, "x"),
        (["--timeout", "0", "ping"], 2, "timeout"),
        (["--timeout", "nan", "ping"], 2, "timeout"),
        (["--timeout", "x", "ping"], 2, "--timeout"),
        (["ping", "--timeout"], 2, "--timeout"),
        (["--nonsense", "ping"], 2, "--nonsense"),
        (["ping", "-e", "nonsense"], 2, "nonsense"),
    ],
    ids=lambda part: repr(part)[:60],
)
def test_what_fails_says_why_in_one_line(
    shared_server: ServerInProcess, words: list[str | bytes], status: int, complaint: str
) -> None:
    result = run(*words, env={"ZKV_ENDPOINT": shared_server.endpoint})

    assert_fails(result, status, complaint)


@pytest.mark.parametrize(
    ("code", "status"), [("CONFLICT", 1), ("NOT_FOUND", 1), ("DENIED", 2), ("WRONG_TYPE", 2)]
)
def test_the_code_of_a_refusal_makes_the_status(code: str, status: int) -> None:
    refuse = reply(ok=False, code=code, message="two\nlines", retry=False, applied=False)
    with Peer(refuse) as peer:
        assert_fails(run("-e", peer.endpoint, "put", "k", "v"), status, code, "two lines")


def test_a_refusal_that_may_pass_says_so() -> None:
    refuse = reply(ok=False, code="BUSY", message="busy", retry=True, applied=False)
    with Peer(refuse) as peer:
        assert_fails(run("-e", peer.endpoint, "put", "k", "v"), 2, "may succeed later")


@pytest.mark.parametrize(("words", "uncertain"), [(["put", "k", "v"], True), (["get", "k"], False)])
def test_a_lost_reply_is_no_answer_in_time(words: list[str], uncertain: bool) -> None:
    with Peer(swallow) as peer:
        result = run("-e", peer.endpoint, "--timeout", "1", *words)

    assert_fails(result, 3, "no reply", peer.endpoint)
    assert (b"may have been applied" in result.stderr) is uncertain


@pytest.mark.parametrize(
    "words", [["ping"], ["end"], ["mput", "a", "b"]], ids=lambda words: words[0]
)
def test_nobody_there_is_no_answer_in_time(words: list[str]) -> None:
    assert_fails(run("-e", NOWHERE, "--timeout", SOON, *words), 3, NOWHERE)


@pytest.mark.parametrize(
    "words",
    [
        ["ping"], ["get", "k"], ["put", "k", "v"], ["scan"], ["watch"], ["top", "--json"],
        ["export"], ["import", "FILE"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
@pytest.mark.parametrize(
    ("endpoint", "why"),
    [
        pytest.param(NOWHERE, "connection refused", id="nobody listens"),
        ("tcp://no-such-host.invalid:5555", "unknown host 'no-such-host.invalid'"),
        ("ipc:///no/such/path", "/no/such/path does not exist"),
        ("ipc:///etc/hosts", "/etc/hosts is not a socket"),
    ],
)
def test_why_there_is_no_connection_is_said_at_once(
    tmp_path: Path, words: list[str], endpoint: str, why: str
) -> None:
    """The timeout is longer than a test may take."""
    file = tmp_path / "entries.jsonl"
    file.write_text('{"key": "k", "value": 1}\n')
    words = [str(file) if word == "FILE" else word for word in words]
    assert_fails(run("-e", endpoint, "--timeout", "600", *words), 3, endpoint, why)


def test_the_feed_is_told_from_the_server(server: ServerInProcess, cli: Cli) -> None:
    feed = json.loads(cli("info", "--json").stdout)["feed"]
    assert_fails(
        run("-e", feed, "--timeout", "600", "ping"), 3, feed, "a change feed listens there"
    )


def test_an_end_that_does_not_save_does_not_invite_a_repeat() -> None:
    refuse = reply(ok=False, code="READ_ONLY", message="full", retry=True, applied=False)
    with Peer(refuse) as peer:
        result = run("-e", peer.endpoint, "end")

    assert_fails(result, 2, "READ_ONLY", "the server ends nevertheless")
    assert b"later" not in result.stderr


@pytest.mark.parametrize(
    "answer",
    [body(b"\xc1"), reply(ok=True, id=99), reply(ok=True), reply(ok=True, values=1)],
    ids=["no msgpack", "another id", "too few fields", "another type"],
)
@pytest.mark.parametrize(
    "words", [["put", "k", "v"], ["get", "k"], ["mget", "k"], ["ping"], ["end"]]
)
def test_a_bad_reply_is_a_failure(answer: Answer, words: list[str]) -> None:
    with Peer(answer) as peer:
        assert_fails(run("-e", peer.endpoint, *words), 2, "bad reply")


# Pipes and signals.


@pytest.mark.parametrize("words", [["get", "k"], ["--help"], ["get", "--help"], ["--version"]])
def test_a_closed_pipe_ends_it_quietly(cli: Cli, words: list[str]) -> None:
    cli("put", "k", "v")
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        result = cli(*words, status=141, stdout=write_end)
    finally:
        os.close(write_end)

    assert result.stderr == b""


def test_a_reader_that_has_enough_ends_it_quietly(server: ServerInProcess, client: Raw) -> None:
    client.ok(op="PUT", key="k", value="x" * 4_000_000)
    script = 'zkv-cli get k | head -c1; echo " ${PIPESTATUS[0]}"'

    result = run_in_bash(script, ZKV_ENDPOINT=server.endpoint)

    assert (result.stdout, result.stderr) == (b"x 141\n", b"")


@pytest.mark.parametrize("size", [1, 1_000_000])
def test_a_full_disk_is_a_failure(cli: Cli, size: int) -> None:
    cli("put", "k", "-", input=b"x" * size)
    with open("/dev/full", "wb") as full:
        result = cli("get", "k", status=2, stdout=full)

    assert re.fullmatch(rb"zkv-cli: cannot print: .+\n", result.stderr), result.stderr


@pytest.mark.parametrize(
    ("command", "status", "complaint"),
    [
        ("get k >&-", 2, b"zkv-cli: cannot print: standard output is closed\n"),
        ("put k - <&-", 2, b"zkv-cli: standard input is closed\n"),
        ("get nowhere 2>&-", 1, b""),
    ],
)
def test_closed_streams(
    server: ServerInProcess, cli: Cli, command: str, status: int, complaint: bytes
) -> None:
    cli("put", "k", "v")

    result = run_in_bash(f"zkv-cli {command}", ZKV_ENDPOINT=server.endpoint)

    assert (result.returncode, result.stdout, result.stderr) == (status, b"", complaint)


def test_ctrl_c_ends_it_quietly() -> None:
    with (
        Peer(swallow) as peer,
        subprocess.Popen(
            [*COMMAND, "-e", peer.endpoint, "--timeout", "1000", "get", "k"],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process,
    ):
        assert peer.done.wait(LIMIT)
        process.send_signal(signal.SIGINT)
        printed = process.communicate(timeout=LIMIT)

    assert (process.returncode, printed) == (130, (b"", b""))


# What makes it start quickly.


def test_it_imports_nothing_of_the_server(server: ServerInProcess) -> None:
    modules = modules_after("-e", server.endpoint, "ping")

    assert "zkv.client" in modules
    assert not modules & {"msgspec", "sortedcontainers", "tomllib", "asyncio", "logging"}
    assert not modules & {"zkv.config", "zkv.server", "zkv.protocol", "zkv.log", "zkv.requests"}


def test_help_needs_no_zeromq() -> None:
    modules = modules_after("completion", "bash")

    assert "zkv.cli.client" in modules
    assert not modules & {"zmq", "zkv.client"}


# Shell completion.


@pytest.fixture
def bash(tmp_path: Path) -> Callable[[str], str]:
    """Types into an interactive bash that has loaded the script; gives the words it then runs."""
    script = tmp_path / "bashrc"
    script.write_text(
        run("completion", "bash").stdout.decode()
        + 'zkv-cli() { printf "RUN:%s:\\n" "$*"; }\n'
        + "bind 'set bell-style none'; bind 'set enable-bracketed-paste off'\n"
        + 'PS1="READY\\n"\n'
    )

    def type_into(words: str) -> str:
        ours, theirs = pty.openpty()
        with (
            open(ours, "r+b", buffering=0) as terminal,
            subprocess.Popen(
                ["bash", "--noprofile", "--rcfile", script, "-i"],
                stdin=theirs, stdout=theirs, stderr=theirs,
                env=environment() | {"TERM": "dumb", "HOME": str(tmp_path)},
                start_new_session=True,
            ) as process,
        ):  # fmt: skip
            os.close(theirs)
            try:
                while b"READY" not in read_line(terminal):
                    pass
                terminal.write(f"zkv-cli {words}\n".encode())
                while not (line := read_line(terminal)).startswith(b"RUN:"):
                    pass
            finally:
                process.kill()
        return line.decode().removeprefix("RUN:").rstrip(":\r\n")

    return type_into


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("pi\t", "ping"),
        ("INF\t", "INFO"),
        ("mg\ta b", "mget a b"),
        ("--js\tsn\t", "--json snapshot"),
        ("--ver\t", "--version"),
        ("-e tcp://127.0.0.1:5555 sn\t", "-e tcp://127.0.0.1:5555 snapshot"),
        ("-e ge\t", "-e ge"),
        ("put k v --pr\t", "put k v --prev"),
        ("DELETE --prev\tk", "DELETE --prev k"),
        ("-o js\tping", "-o json ping"),
        ("export --format m\tx", "export --format msgpack x"),
        ("ren\ta b", "rename a b"),
        ("get --pr\t", "get --pr"),
        ("get --time\t9 k", "get --timeout 9 k"),
        ("get pi\t", "get pi"),
        ("completion z\t", "completion zsh"),
        ("--key-file pyproj\tping", "--key-file pyproject.toml ping"),
        ("get --key-f\tx k", "get --key-file x k"),
    ],
)
def test_bash_completes(bash: Callable[[str], str], typed: str, completed: str) -> None:
    assert bash(typed) == completed


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_accepts_its_script(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    script = tmp_path / "script"
    script.write_bytes(run("completion", shell).stdout)

    subprocess.run([shell, "-n", script], check=True, timeout=LIMIT)
