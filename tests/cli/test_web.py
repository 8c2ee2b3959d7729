"""`zkv web`: its start, its end and its options."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from tests.forking import run_zkv
from tests.metrics.scraping import ask
from tests.support import LIMIT, ServerInProcess, environment, read_line, zkv_command


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerInProcess]:
    with ServerInProcess(tmp_path / "data") as server:
        yield server


def test_it_prints_a_token_on_a_terminal_and_ends_at_a_signal(server: ServerInProcess) -> None:
    words = zkv_command("web", "-e", server.endpoint, "--listen", "127.0.0.1:*")
    with pexpect.spawn(
        words[0], words[1:], env=environment(), encoding="utf-8", timeout=LIMIT
    ) as console:
        console.expect(r"READY (http://127\.0\.0\.1:\d+)\r\n")
        url = console.match[1]
        console.expect(r"enter this token: ([\w-]{43})\r\n")
        token = console.match[1]
        assert ask(url, "/").status == 200
        assert ask(url, "/api/scan").status == 401
        done = subprocess.run(
            [sys.executable, "-c", ASK, f"{url}/api/scan", token],
            capture_output=True, text=True, timeout=LIMIT, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == '{"items": [], "next": null, "rev": 0}'
        console.kill(signal.SIGTERM)
        assert console.read() == ""
        console.wait()
        assert (console.exitstatus, console.signalstatus) == (0, None)


ASK = """
import sys, urllib.request
headers = {"Authorization": f"Bearer {sys.argv[2]}"}
print(urllib.request.urlopen(urllib.request.Request(sys.argv[1], headers=headers)).read().decode())
"""


@contextlib.contextmanager
def started(server: ServerInProcess, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """`zkv web` without a terminal, which ends with the block."""
    with subprocess.Popen(
        zkv_command("web", "-e", server.endpoint, *words),
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as console:  # fmt: skip
        try:
            yield console
        finally:
            console.kill()


def test_without_a_terminal_it_says_that_nobody_can_log_in(server: ServerInProcess) -> None:
    with started(server, "--listen", "127.0.0.1:*") as console:
        assert console.stdout is not None
        assert console.stderr is not None
        assert read_line(console.stdout).startswith(b"READY http://127.0.0.1:")
        assert b"nobody can log in" in read_line(console.stderr)
        console.send_signal(signal.SIGINT)
        out, err = console.communicate(timeout=LIMIT)
        assert (console.returncode, out, err) == (0, b"", b"")


def test_any_address_names_a_console_that_listens_on_all(server: ServerInProcess) -> None:
    with started(server, "--listen", "0.0.0.0:*", "--insecure") as console:
        assert console.stdout is not None
        port = int(read_line(console.stdout).rpartition(b":")[2])
        for host, status in (
            (f"127.0.0.1:{port}", 200), (f"192.0.2.1:{port}", 200), (f"[2001:db8::1]:{port}", 200),
            (f"evil.example:{port}", 403), ("192.0.2.1:1", 403),
        ):  # fmt: skip
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
            connection.request("GET", "/healthz", headers={"Host": host})
            assert (host, connection.getresponse().status) == (host, status)
            connection.close()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["-e", "nonsense"], "--endpoint: "),
        (["--listen", "8080"], "--listen: "),
        (["--listen", "0.0.0.0:*"], "--insecure"),
        (["--listen", "*:*"], "TLS"),
        (["--listen", "0.0.0.0:*", "--public-url", "http://ops.example.org"], "--insecure"),
        (["--public-url", "ops.example.org"], "--public-url: "),
        (["--public-url", "https://user@ops.example.org"], "--public-url: "),
        (["--public-url", "https://ops.example.org/?a=b"], "--public-url: "),
        (["--tokens", "absent.toml"], "absent.toml: "),
        (["--add-token", "ann.key"], "--tokens"),
        (["--key-file", "absent.key"], "absent.key"),
        (["--timeout", "0"], "timeout"),
        (["x"], "unrecognized"),
    ],
)
def test_wrong_usage(words: list[str], why: str, tmp_path: Path) -> None:
    given = ["--server-key", KEY] if "--key-file" in words else []
    done = run_zkv("web", *words, *given, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert why in done.stderr
    assert len(done.stderr.splitlines()) == 1 or "usage" in done.stderr


KEY = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"


def test_an_address_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_zkv("web", "--listen", f"127.0.0.1:{port}", cwd=tmp_path)
    assert done.returncode == 2
    assert "--listen: " in done.stderr
    assert "in use" in done.stderr


def test_a_token_is_added_to_the_file(tmp_path: Path) -> None:
    words = ("web", "--tokens", "tokens.toml", "--add-token")
    first = run_zkv(*words, "ann.key", cwd=tmp_path)
    second = run_zkv(*words, 'b"\\.key', cwd=tmp_path)
    assert first.returncode == second.returncode == 0
    text = (tmp_path / "tokens.toml").read_text()
    assert text.count("\n") == 3
    for token in (first.stdout.strip(), second.stdout.strip()):
        assert len(token) == 43
        assert token not in text
    assert os.stat(tmp_path / "tokens.toml").st_mode & 0o777 == 0o600
    (tmp_path / "tokens.toml").write_text("broken")
    assert run_zkv(*words, "ann.key", cwd=tmp_path).returncode == 2
    assert (tmp_path / "tokens.toml").read_text() == "broken"


def test_without_its_packages_it_names_them(tmp_path: Path) -> None:
    program = "import sys; sys.modules['uvicorn'] = None; from zkv.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}", "web"],
        env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert "pip install starlette uvicorn" in done.stderr
