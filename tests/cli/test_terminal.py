"""What people see at a terminal, and scripts in a pipe: colours, tables, progress, `top`."""

from __future__ import annotations

import json
import re
import shlex
import signal
import termios
from pathlib import Path
from typing import Any

import pexpect
import pytest

from tests.cli.running import COMMAND, NOWHERE, assert_fails, run
from tests.cli.terminal import CONTROL, Terminal
from tests.support import LIMIT, ROOT, Load, Raw, ServerInProcess, ServerProcess, environment
from zkv.readable import duration, percentile, size

COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9]m")


def shown(home: Path, *words: str, **env: str) -> str:
    """What stands on the terminal after a command, with control sequences."""
    with Terminal(home, *words, **env) as terminal:
        text, status = terminal.end()
    assert status == 0, text
    return text


@pytest.mark.parametrize(
    "words", [["scan"], ["changes", "0"], ["info"]], ids=lambda words: words[0]
)
def test_colours_are_for_terminals_that_want_them(
    server: ServerInProcess, client: Raw, tmp_path: Path, words: list[str]
) -> None:
    client.ok(op="PUT", key="k", value="v")
    command = ["-e", server.endpoint, *words]

    assert COLOUR.search(shown(tmp_path, *command))
    assert not COLOUR.search(shown(tmp_path, *command, NO_COLOR="1"))
    assert not COLOUR.search(shown(tmp_path, *command, TERM="dumb"))
    assert b"\x1b" not in run(*command).stdout


def test_complaints_have_colours_only_at_a_terminal(
    server: ServerInProcess, tmp_path: Path
) -> None:
    with Terminal(tmp_path, "-e", server.endpoint, "get", "nobody") as terminal:
        text, status = terminal.end()
    assert status == 1
    assert COLOUR.search(text)
    assert CONTROL.sub("", text) == "zkv-cli: NOT_FOUND: no such key: 'nobody'\r\n"


def test_info_is_readable_for_people_and_for_machines(
    server: ServerInProcess, client: Raw, tmp_path: Path
) -> None:
    client.ok(op="PUT", key="k", value="v")
    command = ["-e", server.endpoint, "info"]

    table = CONTROL.sub("", shown(tmp_path, *command))
    assert re.search(r"max_value_bytes +16\.0 MiB", table)
    assert re.search(r"PUT +p50 .*s, p99 .*s", table)
    assert b"\nlimits.max_value_bytes: 16777216\n" in run(*command).stdout
    assert json.loads(run(*command, "--json").stdout)["limits"]["max_value_bytes"] == 16777216


def test_progress_is_shown_at_a_terminal(server: ServerInProcess, tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_text("".join(f'{{"key": "{number}", "value": 1}}\n' for number in range(2500)))
    command = ["-e", server.endpoint, "import", str(file)]

    text = CONTROL.sub("", shown(tmp_path, *command))
    assert "100%" in text
    assert "2,500 lines" in text
    assert run(*command).stderr == b""


# top.


def ask(client: Raw) -> None:
    """Send requests of some kinds."""
    client.ok(op="PUT", key="k", value=1)
    client.ok(op="GET", key="k")
    client.call(op="GET", key="nobody")


def test_top_tells_rates_and_latencies_in_lines(server: ServerInProcess) -> None:
    command = ["-e", server.endpoint, "top", "--limit", "2", "--interval", "0.2"]
    with Load(server.endpoint, ask):
        heading, *lines = run(*command).stdout.decode().splitlines()
        objects = [json.loads(line) for line in run(*command, "--json").stdout.splitlines()]

    assert len(lines) == len(objects) == 2
    assert len(re.split("  +", heading)) == len(lines[0].split())
    for told in objects:
        assert told["requests/s"] >= told["reads/s"] > told["writes/s"] > 0
        assert told["failures/s"] > 0
        assert 0 < told["p50 ms"] <= told["p99 ms"]
        assert told["rss MiB"] > 1
        assert told["keys"] == 1


def test_top_at_a_terminal_stays_until_ctrl_c(server: ServerInProcess, tmp_path: Path) -> None:
    with (
        Load(server.endpoint, ask),
        Terminal(tmp_path, "-e", server.endpoint, "top", "--interval", "0.1") as terminal,
    ):
        terminal.expect("Ctrl-C ends")
        for text in ("PUT", "NOT_FOUND", "sessions"):
            terminal.expect(text)
        terminal.press("c")
        text, status = terminal.end()

    assert status == 130
    assert "\x1b[?1049l" in text  # What stood on the terminal before is there again.


@pytest.mark.parametrize("key", ["q", "Q", "xq"])
def test_q_ends_top(server: ServerInProcess, tmp_path: Path, key: str) -> None:
    words = ["-e", server.endpoint, "top", "--interval", "1h"]
    with Terminal(tmp_path, *words) as terminal:
        terminal.expect("q or Ctrl-C ends")
        terminal.type(key)
        text, status = terminal.end()

    assert status == 0
    assert "\x1b[?1049l" in text


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_top_leaves_the_terminal_as_it_was(
    server: ServerInProcess, tmp_path: Path, number: int, status: int
) -> None:
    with Terminal(tmp_path, "-e", server.endpoint, "top", "--interval", "1h") as terminal:
        terminal.expect("Ctrl-C ends")
        during = termios.tcgetattr(terminal.process.child_fd)
        terminal.process.kill(number)
        terminal.process.expect(pexpect.EOF)
        after = termios.tcgetattr(terminal.process.child_fd)
        terminal.process.close()

    assert not during[3] & (termios.ICANON | termios.ECHO)
    assert after[3] & termios.ICANON
    assert after[3] & termios.ECHO
    assert terminal.process.exitstatus == status


def test_q_ends_top_and_not_the_shell(server: ServerInProcess, tmp_path: Path) -> None:
    with Terminal(tmp_path, "-e", server.endpoint) as shell:
        shell.prompt()
        shell.type("top --interval 1h\r")
        shell.expect("q or Ctrl-C ends")
        shell.type("q")
        shell.prompt()
        shell.type("count\r")
        shell.line("0")


def test_top_takes_no_keys_where_standard_input_is_no_terminal(
    server: ServerInProcess, tmp_path: Path
) -> None:
    script = shlex.join([*COMMAND, "-e", server.endpoint, "top", "--limit", "2", "--interval=0.1"])
    process = pexpect.spawn(
        "sh", ["-c", f"echo q | {script}"], cwd=str(ROOT), env=environment() | {"TERM": "xterm"},
        encoding="utf-8", timeout=LIMIT,
    )  # fmt: skip
    process.expect(pexpect.EOF)
    process.close()

    assert process.exitstatus == 0
    assert "Ctrl-C ends" in str(process.before)
    assert "q or" not in str(process.before)


def test_top_waits_for_a_server_that_is_away(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/socket"
    words = ["-e", endpoint, "--timeout", "2", "top", "--interval", "0.1"]
    with (
        ServerProcess(tmp_path / "server", "--endpoint", endpoint) as server,
        Terminal(tmp_path, *words) as terminal,
    ):
        terminal.expect("Ctrl-C ends")
        server.kill()
        terminal.expect("trying again")
        server.start()
        terminal.expect("Ctrl-C ends")


@pytest.mark.parametrize(
    ("words", "why"), [(["--interval", "0"], "--interval"), (["--limit", "0"], "--limit")]
)
def test_top_is_used_wrongly(words: list[str], why: str) -> None:
    assert_fails(run("-e", NOWHERE, "top", *words), 2, why)


def test_top_without_a_server_is_no_answer_in_time() -> None:
    assert_fails(run("-e", NOWHERE, "--timeout", "0.2", "top", "--json"), 3, NOWHERE)


def test_latencies_count_every_request(client: Raw) -> None:
    for _ in range(5):
        client.ok(op="PUT", key="k", value=1)
    client.call(op="GET", key="nobody")

    stats: dict[str, Any] = client.ok(op="INFO")["stats"]

    assert {op: sum(counts) for op, counts in stats["latencies"].items()} == stats["requests"]
    assert stats["requests"] == {"PUT": 5, "GET": 1}
    assert 0 < percentile(stats["latencies"]["PUT"], 0.5) < 60
    assert stats["process"]["rss"] > 2**20
    assert 0 < stats["process"]["open_files"] < stats["process"]["max_open_files"]


# Numbers.


@pytest.mark.parametrize(
    ("counts", "share", "seconds"),
    [
        ([], 0.5, 0.0),
        ([0, 0], 0.5, 0.0),
        ([4], 0.5, 0.5e-6),
        ([0, 4], 0.5, 1.5e-6),
        ([0, 0, 0, 10], 1.0, 8e-6),
        ([0, 50, 0, 50], 0.5, 2e-6),
        ([0, 99, 0, 0, 1], 0.995, 12e-6),
    ],
)
def test_percentiles(counts: list[int], share: float, seconds: float) -> None:
    assert percentile(counts, share) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (2e-6, "2 µs"), (0.0123, "12.3 ms"), (1.0, "1 s"), (119, "119 s"),
        (600, "10 min"), (7200, "2 h 0 min"), (200_000, "2 d 7 h"),
    ],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (1024, "1.0 KiB"),
        (5 * 2**30, "5.0 GiB"),
        (2**52, "4,096.0 TiB"),
    ],
)
def test_sizes(number: int, text: str) -> None:
    assert size(number) == text
