"""``zkv-cli``, ``zkv doctor`` and ``zkv metrics`` with keys, and what they say of wrong ones."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
import zmq

from tests.cli.running import assert_fails, run
from tests.forking import run_zkv
from tests.support import (
    LIMIT,
    ROOT,
    ServerInProcess,
    environment,
    read_line,
    zkv_command,
)
from tests.users.secured import Secured
from zkv.keys import KeyPair, joined, make_key_file, read_key_file

ALL: dict[str, Any] = {"write": [""], "admin": True}


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """A server with CURVE, a feed, and the users ann, who may do all, and bob."""
    users = {"ann": ALL, "bob": {"write": ["bob/"]}}
    with Secured(tmp_path_factory.mktemp("secured"), users, feed=True) as server:
        yield server


def options(secured: Secured, name: str) -> list[str]:
    """The options of zkv-cli for a user, or for somebody who is none."""
    secured.key(name)
    file = str(secured.directory / f"{name}.key")
    return ["-e", secured.endpoint, "--server-key", secured.server_key, "--key-file", file]


def variables(secured: Secured, name: str) -> dict[str, str]:
    """The same by the environment."""
    _, endpoint, _, server_key, _, file = options(secured, name)
    return {
        "ZKV_ENDPOINT": endpoint, "ZKV_SERVER_PUBLIC_KEY": server_key, "ZKV_KEY_FILE": file,
    }  # fmt: skip


def test_commands_take_keys_on_either_side(secured: Secured) -> None:
    own = options(secured, "ann")
    assert run(*own, "put", "k", "v").stdout.startswith(b"OK")
    assert run("get", "k", *own).stdout == b"v\n"
    assert run("get", "k", env=variables(secured, "ann")).stdout == b"v\n"
    own[3] = f"{make_key_file(secured.directory / 'next.key')},{own[3]}"
    assert run("get", "k", *own).stdout == b"v\n"


@pytest.mark.parametrize(
    "words",
    [
        ["scan"], ["watch", "--since", "0", "--limit", "1"], ["top", "--limit", "1"],
        ["info"], ["export"], ["history", "k"], ["slow"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_every_kind_of_command_uses_them(secured: Secured, words: list[str]) -> None:
    run(*options(secured, "ann"), "put", "k", "v")
    done = run(*options(secured, "ann"), *words)

    assert done.returncode == 0, done.stderr


KEYS = ["%" * 40, "x" * 39, "", "x" * 40 + ","]


@pytest.mark.parametrize("key", KEYS)
def test_a_malformed_key_is_wrong_usage(key: str) -> None:
    assert_fails(run("--server-key", key, "get", "k"), 2, "--server-key", "not a key")
    assert_fails(run("get", "k", env={"ZKV_SERVER_PUBLIC_KEY": f"{key},"}), 2, "ZKV_SERVER_PUBLIC")


def test_promote_takes_keys_as_the_other_commands_do(tmp_path: Path) -> None:
    malformed = environment() | {"ZKV_SERVER_PUBLIC_KEY": "x" * 39}
    done = run_zkv("promote", cwd=tmp_path, env=malformed)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("zkv: ZKV_SERVER_PUBLIC_KEY: not a key")
    done = run_zkv("promote", "--key-file", "absent", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("zkv: key_file: a key file is of no use without the key")


def test_a_bad_key_file_is_wrong_usage(secured: Secured) -> None:
    own = [*options(secured, "ann")[:-1], "absent"]
    assert_fails(run(*own, "get", "k"), 2, "absent: No such file")
    names = variables(secured, "ann") | {"ZKV_KEY_FILE": "absent"}
    assert_fails(run("get", "k", env=names), 2, "ZKV_KEY_FILE", "absent: No such file")
    assert_fails(run("--key-file", "absent", "get", "k"), 2, "without the key of the server")


@pytest.mark.parametrize("words", [["get", "k"], ["watch"], ["scan"], ["top"], ["export"]])
def test_wrong_keys_are_told_at_once(secured: Secured, tmp_path: Path, words: list[str]) -> None:
    other = make_key_file(tmp_path / "other.key")
    wait = ["--timeout", "600"]
    eve = options(secured, "eve")
    public = secured.key("eve").public
    assert_fails(run(*eve, *wait, *words), 2, "does not know the key of this client", public)
    assert_fails(run(*eve, "--server-key", other, *wait, *words), 2, "the server has another key")
    assert_fails(run(*eve[:4], *wait, *words), 2, "known keys alone")
    assert_fails(run(*eve[:2], *wait, *words), 2, "wants CURVE")


def test_a_server_without_curve_is_told(tmp_path: Path) -> None:
    key = make_key_file(tmp_path / "server.key")
    with ServerInProcess(tmp_path / "data") as server:
        words = ["-e", server.endpoint, "--server-key", key, "--timeout", "600", "get", "k"]
        assert_fails(run(*words), 2, "does not use CURVE")


def test_what_is_denied_is_told(secured: Secured) -> None:
    own = options(secured, "bob")
    assert_fails(run(*own, "get", "k"), 2, "DENIED")
    ended = run(*own, "end")
    assert_fails(ended, 2, "DENIED")
    assert b"nevertheless" not in ended.stderr
    done = run(*own, "watch")
    assert done.returncode == 2
    assert b"DENIED" in done.stderr
    assert run(*own, "put", "bob/k", "v").returncode == 0


# --- The shell


def test_lines_of_the_shell_change_keys(secured: Secured) -> None:
    own, bob = options(secured, "ann"), options(secured, "bob")
    lines = "\n".join(["put k v", f"--key-file '{bob[-1]}'", "get k", "put bob/k 1"])
    done = run(*own, input=f"{lines}\n".encode())

    assert done.stdout.count(b"OK") == 2
    assert done.stderr.startswith(b"zkv-cli: DENIED")


def test_the_shell_says_at_its_start_that_the_keys_are_wrong(secured: Secured) -> None:
    command = [sys.executable, "-m", "zkv.cli.client", *options(secured, "eve")]
    terminal = pexpect.spawn(
        command[0], command[1:], env=environment() | {"TERM": "dumb"}, cwd=str(ROOT), timeout=LIMIT
    )
    try:
        terminal.expect("does not know the key of this client")
    finally:
        terminal.close(force=True)


# --- What others can see of a process


def test_no_secret_is_on_a_command_line(secured: Secured) -> None:
    words = [sys.executable, "-m", "zkv.cli.client", *options(secured, "ann"), "watch"]
    process = subprocess.Popen(
        words, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        assert process.stderr is not None
        assert b"watching" in read_line(process.stderr)
        shown = Path(f"/proc/{process.pid}/cmdline").read_text(encoding="utf-8")
        assert secured.server_key in shown
        assert secured.key("ann").secret not in shown
    finally:
        process.kill()
        process.communicate()


# --- Keys that begin with a dash


def dashed(path: Path) -> KeyPair:
    """A key whose public half begins with a dash, in a file: other tools make such keys."""
    public, secret = zmq.curve_keypair()
    while not public.startswith(b"-"):
        public, secret = zmq.curve_keypair()
    path.touch(0o600)
    path.write_bytes(secret)
    return read_key_file(path)


def test_a_key_may_begin_with_a_dash(tmp_path: Path) -> None:
    path = tmp_path / "server.key"
    key = dashed(path)
    with ServerInProcess(tmp_path / "data", security={"secret_key_file": str(path)}) as server:
        where = ["-e", server.endpoint, "--server-key", key.public]
        assert run(*where, "put", "k", "--", "--server-key").returncode == 0
        assert run("get", "k", *where).stdout == b"--server-key\n"
        assert "answers in" in run_zkv("doctor", *where, cwd=ROOT).stdout
        bench = [
            sys.executable, "-m", "zkv.bench.main", *where, "--operations", "10", "--ceiling", "0",
            "--keys", "10", "--clients", "2",
        ]  # fmt: skip
        done = subprocess.run(
            bench, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "encryption CURVE" in done.stdout
    users = str(tmp_path / "users.toml")
    added = run_zkv("user", "add", "ann", "--users", users, "--key", key.public, cwd=ROOT)
    assert added.returncode == 0, added.stderr
    assert key.public in (tmp_path / "users.toml").read_text(encoding="utf-8")


def test_only_the_option_is_joined_with_its_value() -> None:
    assert joined(["get", "--server-key", "-x", "k"]) == ["get", "--server-key=-x", "k"]
    for words in (["--server-key"], ["put", "k", "--", "--server-key", "-x"], []):
        assert joined(words) == words


# --- The doctor, and metrics


def examined(*words: str) -> tuple[int, dict[str, dict[str, str]]]:
    """The exit status of the doctor, and its findings."""
    done = run_zkv("doctor", "--json", *words, cwd=ROOT)
    assert done.stderr == ""
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return done.returncode, {each["subject"]: each for each in found}


def test_the_doctor_uses_keys(secured: Secured) -> None:
    _, found = examined(*options(secured, "ann"))

    assert found["feed"]["level"] == "ok"
    assert found["endpoint"]["level"] == "ok"


def test_the_doctor_says_that_keys_are_wrong(secured: Secured, tmp_path: Path) -> None:
    other = make_key_file(tmp_path / "other.key")
    eve = options(secured, "eve")
    for words, says in (
        (eve, "does not know the key"),
        ([*eve, "--server-key", other], "another key"),
        (eve[:2], "wants CURVE"),
    ):
        status, found = examined(*words, "--timeout", "600")
        assert status == 1
        assert found["keys"]["level"] == "todo"
        assert says in found["keys"]["text"]


def ask(url: str) -> tuple[int, str]:
    """The status and the body of a page."""
    try:
        with urllib.request.urlopen(url, timeout=LIMIT) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [("ann", 200, "zkv_revision"), ("eve", 503, "does not know the key of this client")],
)
def test_metrics_use_keys(secured: Secured, name: str, status: int, says: str) -> None:
    pytest.importorskip("prometheus_client")
    command = zkv_command("metrics", *options(secured, name), "--listen", "127.0.0.1:*")
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        ready = read_line(process.stdout).decode().split()
        assert ready[0] == "READY"
        answer = ask(f"{ready[1]}/metrics")
        assert answer[0] == status
        assert says in answer[1]
    finally:
        process.kill()
        process.communicate()
