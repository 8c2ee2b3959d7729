"""The shell of ``zkv-cli``: in a terminal, and with its lines from a pipe."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.running import NOWHERE, run
from tests.cli.terminal import Terminal
from tests.support import Raw, ServerInProcess
from zkv.cli.lexer import split


@pytest.fixture
def shell(server: ServerInProcess, tmp_path: Path) -> Iterator[Terminal]:
    """A shell at `server`, which shows its prompt."""
    with Terminal(tmp_path, "-e", server.endpoint) as terminal:
        assert f"{server.endpoint}>" in terminal.prompt()
        yield terminal


# In a terminal.


def test_commands_are_answered_and_timed(shell: Terminal, server: ServerInProcess) -> None:
    shell.type("put greeting 'hello, world'\r")
    shell.expect("OK, revision 1, on disk")
    shell.expect(r"\([0-9.]+ .?s\)")
    shell.prompt()
    shell.type("GET greeting\r")
    shell.line("hello, world")
    shell.prompt()
    shell.type("zkv-cli get nobody\r")
    shell.expect("NOT_FOUND: no such key: 'nobody'")
    shell.prompt()
    shell.type("exit\r")
    assert shell.end()[1] == 0


def test_ctrl_d_ends_it(shell: Terminal) -> None:
    shell.press("d")
    assert shell.end()[1] == 0


def test_ctrl_c_stops_the_command_and_not_the_shell(
    shell: Terminal, server: ServerInProcess, client: Raw
) -> None:
    shell.type("watch\r")
    shell.expect("watching from revision 0 on")
    client.ok(op="PUT", key="k", value=1)
    shell.expect("PUT")
    shell.press("c")
    shell.expect("interrupted")
    shell.prompt()
    shell.type("half a line")
    shell.press("c")
    shell.prompt()
    shell.type("count\r")
    shell.line("1")


def test_it_says_at_its_start_that_nobody_is_there(tmp_path: Path) -> None:
    with Terminal(tmp_path, "-e", NOWHERE, "--timeout", "600") as terminal:
        terminal.expect(f"no connection to {NOWHERE}: connection refused")
        terminal.prompt()
        terminal.type("ping\r")
        terminal.expect("connection refused")
        terminal.prompt()
        terminal.press("d")
        assert terminal.end()[1] == 0


def test_a_server_that_is_away_does_not_end_the_shell(shell: Terminal) -> None:
    shell.type(f"ping --timeout 0.2 -e {NOWHERE}\r")
    shell.expect("no (reply|connection)")
    shell.prompt()
    shell.type("ping\r")
    shell.expect("protocol 1")


def test_commands_options_and_keys_are_completed(shell: Terminal, client: Raw) -> None:
    client.ok(op="MPUT", items={"user/only": "found", "two words": "quoted", "x\n": "odd"})
    for steps, answer in (
        ([("ge", "t"), (" user/", "only")], "found"),
        ([("get tw", "'two words'")], "quoted"),
        ([("get x", r"\$'x\\x0a'")], "odd"),
        ([("mget 'two words' --js", "on")], '"quoted"'),
        ([("put user/", "only"), (" new --pr", "ev")], 'before: "found"'),
        ([("help wa", "tch")], "usage: zkv-cli watch"),
    ):
        for typed, drawn in steps:
            shell.type(f"{typed}\t")
            shell.expect(drawn)
        shell.type("\r")
        shell.expect(answer)
        shell.prompt()


def test_json_goes_over_many_lines(shell: Terminal, client: Raw) -> None:
    shell.type('put k --json {"a": [1,\r')
    shell.expect(r"\.\.\. ")
    shell.type('"}", 2], "b": "x y"}\r')
    shell.expect("OK, revision 1, on disk")
    assert client.ok(op="GET", key="k")["value"] == {"a": [1, "}", 2], "b": "x y"}


def test_what_was_typed_is_remembered(server: ServerInProcess, tmp_path: Path) -> None:
    for typed, answer in (("incr n\r", "1"), ("\x1b[A\r", "2")):
        with Terminal(tmp_path, "-e", server.endpoint) as shell:
            shell.prompt()
            shell.type(typed)
            shell.line(answer)
            shell.prompt()
            shell.press("d")
            shell.end()
    history = tmp_path / "zkv" / "history"
    assert "incr n" in history.read_text()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_help_is_there(shell: Terminal) -> None:
    shell.type("help\r")
    listed = shell.expect("Ctrl-D ends the shell")
    assert "watch" in listed
    shell.prompt()
    shell.type("help put\r")
    shell.expect("usage: zkv-cli put KEY VALUE")
    shell.prompt()
    shell.type("nonsense\r")
    shell.expect("no such command: 'nonsense'")
    shell.prompt()


def test_options_alone_hold_from_then_on(shell: Terminal, client: Raw) -> None:
    client.ok(op="PUT", key="k", value="text")
    shell.type("--json\r")
    shell.prompt()
    shell.type("get k\r")
    shell.line('"text"')
    shell.prompt()
    shell.type(f"-e {NOWHERE}\r")
    assert f"{NOWHERE}>" in shell.prompt()


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}], ids=["colours", "none"])
def test_colours_unless_they_are_not_wanted(
    server: ServerInProcess, tmp_path: Path, variables: dict[str, str]
) -> None:
    colour = r"\x1b\[[0-9;]*3[0-9]m"
    with Terminal(tmp_path, "-e", server.endpoint, **variables) as shell:
        shell.process.expect(r"\x1b\[\?2004h.*\x1b\[\?25h")
        assert bool(re.search(colour, str(shell.process.after))) is not bool(variables)
        shell.type("get nobody\r")
        shell.process.expect("zkv-cli:.*nobody'")
        shell.prompt()
        shell.type("quit\r")
        printed, _ = shell.end()
        assert bool(re.search(colour, printed)) is not bool(variables)


# From a pipe.


def test_lines_from_a_pipe_are_carried_out(server: ServerInProcess, client: Raw) -> None:
    script = b"""
        # A comment.
        put a 'two words'
        put --json b {"x": [1,
            2]}
        get nobody
        get a
        get b
        exit
        get a
    """

    done = run("-e", server.endpoint, input=script)

    lines = done.stdout.decode().splitlines()
    assert lines[0].startswith("OK, revision 1")
    assert lines[2:] == ["two words", '{"x": [1, 2]}']
    assert done.stderr == b"zkv-cli: NOT_FOUND: no such key: 'nobody'\n"
    assert done.returncode == 1


def test_the_first_failure_is_the_status(server: ServerInProcess) -> None:
    assert run("-e", server.endpoint, input=b"").returncode == 0
    assert run("-e", server.endpoint, input=b"ping\nbogus\nget x\nping\n").returncode == 2
    unfinished = run("-e", server.endpoint, input=b"put --json a {\n")
    assert unfinished.returncode == 2
    assert b"not closed" in unfinished.stderr


# Words.


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", []),
        ("  \t\n", []),
        ("# get k", []),
        ("get k", ["get", "k"]),
        ("put k 'a b'", ["put", "k", "a b"]),
        ("put k a'b'\"c\"d", ["put", "k", "abcd"]),
        ("put k ''", ["put", "k", ""]),
        ('put k "a \\" \\\\ \\n"', ["put", "k", 'a " \\ \\n']),
        ("put k a\\ b", ["put", "k", "a b"]),
        ("put k \\\n v", ["put", "k", "", "v"]),
        (r"get $'a\x0a\'\\\xc3\xbc'", ["get", "a\n'\\ü"]),
        ("get $HOME", ["get", "$HOME"]),
        ("get a#b", ["get", "a#b"]),
        ('put k {"a": "}\\"{", "b": [ 1 ]}', ["put", "k", '{"a": "}\\"{", "b": [ 1 ]}']),
        ('mput a [1, 2] b {"x": {}} c', ["mput", "a", "[1, 2]", "b", '{"x": {}}', "c"]),
        ("get a{b", ["get", "a{b"]),
        ("put k '[1'", ["put", "k", "[1"]),
        ("put k [[]]x y", ["put", "k", "[[]]x", "y"]),
    ],
)
def test_words_of_a_line(line: str, words: list[str]) -> None:
    found = split(line)

    assert found.is_whole
    assert [word.text for word in found.words] == words


@pytest.mark.parametrize(
    "line", ["put k '", 'put k "a', "put k {", 'put k ["]', "put k $'a", "put k \\", "put k a'b"]
)
def test_lines_that_go_on(line: str) -> None:
    assert not split(line).is_whole


@pytest.mark.parametrize("key", ["a b", "it's", "x\n\t'\\", "\x1b[31m ü \u2028", "{", '"', "$x"])
def test_a_key_that_is_offered_reads_as_it_is(key: str) -> None:
    from zkv.cli.text import word

    (found,) = split(word(key)).words
    assert found.text == key
