"""``zkv doctor``: what it finds at servers that are well, and at others."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cli.running import NOWHERE
from tests.forking import run_zkv
from tests.peer import Peer, body
from tests.support import (
    FREE_PORT,
    LIMIT,
    ROOT,
    Message,
    ServerInProcess,
    environment,
    zkv_command,
)
from zkv import compiled
from zkv.cli import doctor, protection
from zkv.cli.main import main
from zkv.client import Client
from zkv.keys import make_key_file, read_key_file

Change = Callable[[Message], object]
Examine = Callable[..., tuple[int, dict[str, dict[str, str]]]]


@pytest.fixture
def well(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Examine:
    """`zkv doctor`, in this process, on a machine that gives no reason to complain.

    Its disk has room and stays, and there is no lack of files, for the server in this process
    neither; and zkv is compiled. Gives the exit status, and what is found of each subject.
    """
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2**16, 2**16))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**40))
    monkeypatch.setattr(doctor, "file_system", lambda _: "ext4")
    monkeypatch.setattr(compiled, "what_is_slow", lambda _: "")

    def examine(*words: str) -> tuple[int, dict[str, dict[str, str]]]:
        status = main(["doctor", "--json", *words])
        printed = capfdbinary.readouterr()
        assert printed.err == b""
        return status, {
            finding["subject"]: finding for finding in map(json.loads, printed.out.splitlines())
        }

    return examine


def test_a_server_that_is_well(well: Examine, server: ServerInProcess, tmp_path: Path) -> None:
    status, found = well("-e", server.endpoint)

    assert found.pop("latency")["level"] in {"ok", "note"}  # This machine may be busy.
    assert {subject: each["level"] for subject, each in found.items()} == dict.fromkeys(
        ["endpoint", "clock", "version", "durability", "failures", "snapshots", "clients",
         "memory", "sessions", "feed", "exposure", "files", "disk", "build"], "ok",
    )  # fmt: skip
    assert status == 0
    assert str(tmp_path / "data") in found["disk"]["text"]


def test_lines_for_people(server: ServerInProcess) -> None:
    done = run_zkv("doctor", "-e", server.endpoint, cwd=ROOT)

    lines = done.stdout.splitlines()
    assert all(line[:6] in {"ok    ", "note  ", "todo  ", " " * 6} for line in lines), done.stdout
    subjects = [line.split()[1] for line in lines if line[0] != " "]
    assert len(subjects) == len(set(subjects)), "a check was made twice"
    assert done.returncode == int(any(line.startswith("todo") for line in lines))
    assert "ok    durability  fsync = always: answered writes are on disk" in lines


def test_the_endpoint_comes_from_the_environment(server: ServerInProcess) -> None:
    done = subprocess.run(
        zkv_command("doctor"), env=environment() | {"ZKV_ENDPOINT": server.endpoint},
        cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert f"{server.endpoint} answers" in done.stdout


def test_another_policy_and_no_feed_are_told(well: Examine, tmp_path: Path) -> None:
    with ServerInProcess(tmp_path, durability={"fsync": "interval"}) as server:
        status, found = well("-e", server.endpoint)

    assert status == 0
    assert found["durability"]["level"] == "note"
    assert "1 s" in found["durability"]["text"]
    assert found["feed"]["level"] == "note"


def test_nobody_there(well: Examine, tmp_path: Path) -> None:
    for endpoint, advice in (
        (NOWHERE, "zkv serve"),
        (f"ipc://{tmp_path}/nothing", "zkv serve"),
    ):
        status, found = well("-e", endpoint, "--timeout", "0.2")

        assert status == 3
        assert endpoint in found["endpoint"]["text"]
        assert advice in found["endpoint"]["advice"]


def test_a_refused_snapshot_is_no_refused_write(
    server: ServerInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(info: Message) -> None:
        info["stats"]["failures"] = {"READ_ONLY": 1}
        info["stats"]["failures_by_op"] = {"SNAPSHOT": {"READ_ONLY": 1}}

    found = findings(server.endpoint, monkeypatch, INFO=change)

    assert "writes" not in found
    assert found["snapshots"].level == "todo"


def test_it_asks_for_little(well: Examine, server: ServerInProcess) -> None:
    well("-e", server.endpoint)
    with Client(server.endpoint) as client:
        requests = client.info()["stats"]["requests"]

    assert requests["PING"] <= 10
    assert sum(requests.values()) <= 12


def test_somebody_else_is_there(well: Examine) -> None:
    with Peer(body(b"HTTP/1.1 400 Bad Request")) as peer:
        status, found = well("-e", peer.endpoint, "--timeout", "5")

    assert status == 1
    assert "not that of a zkv server" in found["answers"]["advice"]


@pytest.mark.parametrize("words", [["-e", "nonsense"], ["--timeout", "0"], ["--bogus"], ["x"]])
def test_wrong_usage(words: list[str]) -> None:
    done = subprocess.run(
        zkv_command("doctor", *words), cwd=ROOT, env=environment(), capture_output=True,
        timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == b""
    assert done.stderr


# What a server tells, changed to what one that is not well would tell.


def put(path: str, value: Any) -> Change:
    """Changes a field of INFO."""

    def change(info: Message) -> None:
        *way, name = path.split(".")
        for step in way:
            info = info[step]
        info[name] = value

    return change


@pytest.mark.usefixtures("well")
@pytest.mark.parametrize(
    ("change", "subject", "text", "advice"),
    [
        (put("protocol", 2), "version", "protocol 2", "same release"),
        (put("stats.failures", {"READ_ONLY": 7}), "writes", "7 were refused", "disk"),
        (put("stats.failures_by_op", {"SNAPSHOT": {"READ_ONLY": 2}}), "snapshots", "2", "disk"),
        (
            put("stats.snapshot", {"age": None, "failed_at": 1, "failure": "why"}),
            "snapshots",
            "why",
            "log",
        ),
        (put("durability.refusal", "full"), "writes", "refused now: full", "export"),
        (put("stats.failures", {"INTERNAL": 1}), "bugs", "1 unexpected", "log"),
        (put("stats.workers_replaced", 2), "bugs", "2 unexpected", "log"),
        (put("stats.sessions.sessions", 90_000), "sessions", "90,000 of 100,000", "max_sessions"),
        (put("stats.sessions.bytes", 200 * 2**20), "sessions", "of 256.0 MiB", "session_bytes"),
        (put("stats.memory", {"used": 1_000_000, "limit": 2**20}), "memory", "of 1.0 MiB", "FULL"),
        pytest.param(put("feed", NOWHERE), "feed", "refused", "server.feed", id="no feed"),
        (put("stats.process.open_files", 10**7), "files", "10,000,000", "ulimit -n"),
        (put("stats.process.max_open_files", 1024), "files", "1,024", "ulimit -n"),
        (put("durability.snapshot_bytes", 2**60), "disk", "free", "free space"),
        (
            put("endpoints", ["tcp://0.0.0.0:5555"]),
            "exposure",
            "tcp://0.0.0.0:5555: anyone can",
            "security.secret_key_file",
        ),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_what_should_be_done_is_said(
    server: ServerInProcess,
    monkeypatch: pytest.MonkeyPatch,
    change: Change,
    subject: str,
    text: str,
    advice: str,
) -> None:
    found = findings(server.endpoint, monkeypatch, INFO=change)

    assert found[subject].level == "todo"
    assert text in found[subject].text
    assert advice in found[subject].advice


@pytest.mark.parametrize(
    ("change", "subject", "text"),
    [
        (put("version", "0.0.9"), "version", "work together"),
        (put("durability.fsync", "never"), "durability", "fsync = never"),
        (put("durability.data_dir", "/nowhere"), "disk", "not checked"),
        (put("stats.process", {}), "files", "not in the server's INFO"),
        (put("stats.feed.dropped", 5), "feed", "5 messages"),
        (put("stats.replies_dropped", 6), "clients", "6 replies"),
        (put("stats.handshakes_failed", {"auth": 3, "other": 4}), "clients", "7 more"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_what_is_worth_knowing_is_said(
    server: ServerInProcess,
    monkeypatch: pytest.MonkeyPatch,
    change: Change,
    subject: str,
    text: str,
) -> None:
    found = findings(server.endpoint, monkeypatch, INFO=change)

    assert found[subject].level == "note"
    assert text in found[subject].text


@pytest.mark.parametrize(("apart", "text"), [(90_000, "ahead of"), (-90_000, "behind")])
def test_clocks_that_differ(
    server: ServerInProcess, monkeypatch: pytest.MonkeyPatch, apart: int, text: str
) -> None:
    def shift(reply: Message) -> None:
        reply["time"] += apart

    found = findings(server.endpoint, monkeypatch, PING=shift)

    assert found["clock"].level == "todo"
    assert "90 s" in found["clock"].text
    assert text in found["clock"].text
    assert "NTP" in found["clock"].advice


# Who can reach the server.


@pytest.mark.parametrize(
    ("has_keys", "has_users", "level", "text"),
    [
        (True, True, "ok", "with the key of a user"),
        (True, False, "note", "whoever knows the server's public key can read, write and stop it"),
        (False, True, "note", "without a key: they are the user anonymous"),
        (False, False, "todo", "anyone can read, write and stop it"),
    ],
)
def test_what_a_server_asks_of_other_machines(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    has_keys: bool,
    has_users: bool,
    level: str,
    text: str,
) -> None:
    security = {}
    if has_keys:
        make_key_file(tmp_path / "server.key")
        security["secret_key_file"] = str(tmp_path / "server.key")
    if has_users:
        security["users"] = str(tmp_path / "users.toml")
        (tmp_path / "users.toml").write_text(f"[users.ann]\nuids = [{os.getuid()}]\nadmin = true\n")
    place = f"ipc://{tmp_path}/socket"
    server = {"endpoints": [place, FREE_PORT]}
    with ServerInProcess(tmp_path / "data", server=server, security=security) as running:
        port = running.server.endpoints[1].rpartition(":")[2]
        change = put("endpoints", [place, f"tcp://0.0.0.0:{port}"])  # As if it were bound there.
        found = findings(place, monkeypatch, INFO=change)["exposure"]

    assert found.level == level
    assert f"other machines can reach tcp://0.0.0.0:{port}" in found.text
    assert text in found.text


@pytest.mark.parametrize("listens", [True, False])
def test_what_a_server_asks_may_be_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, listens: bool
) -> None:
    monkeypatch.setattr(protection, "PATIENCE", 0.5)
    place = f"ipc://{tmp_path}/socket"
    with (
        ServerInProcess(tmp_path / "other", server={"endpoints": [place]}),
        socket.create_server(("127.0.0.1", 0)) as silent,
    ):
        endpoint = f"tcp://0.0.0.0:{silent.getsockname()[1]}"
        if not listens:
            silent.close()
        found = findings(place, monkeypatch, INFO=put("endpoints", [endpoint]))["exposure"]

    assert found.level == "note"
    assert "could not be seen" in found.text


# What it checks without a server.


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Good settings, with keys and users."""
    for name in ("old", "new"):
        make_key_file(tmp_path / f"{name}.key")
    (tmp_path / "users.toml").write_text("[users.ann]\nuids = [1]\n")
    (tmp_path / "users.toml").chmod(0o644)
    path = tmp_path / "config.toml"
    path.write_text(
        f"[security]\nsecret_key_file = ['{tmp_path}/new.key', '{tmp_path}/old.key']\n"
        f"users = '{tmp_path}/users.toml'\n"
    )
    return path


def here(config: Path) -> tuple[int, list[dict[str, str]]]:
    """What is found without a server: exit status and findings."""
    done = run_zkv(
        "doctor", "--config", str(config), "-e", NOWHERE, "--json", "--timeout", "0.2", cwd=ROOT
    )
    assert done.stderr == ""
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found.pop()["subject"] == "endpoint"
    return done.returncode, found


def test_keys_and_users_that_are_well(config: Path, tmp_path: Path) -> None:
    status, found = here(config)

    assert status == 3  # There is no server.
    assert [(each["subject"], each["level"]) for each in found] == [
        ("key", "ok"), ("key", "ok"), ("users", "ok"),
    ]  # fmt: skip
    public = read_key_file(tmp_path / "new.key").public
    assert found[0]["text"] == (
        f"{tmp_path}/new.key is for its owner alone; its public key is {public}"
    )
    assert f"1 in {tmp_path}/users.toml" in found[2]["text"]


def loosen_key(directory: Path) -> None:
    (directory / "new.key").chmod(0o640)


def lose_key(directory: Path) -> None:
    (directory / "old.key").unlink()


def age_keys(directory: Path) -> None:
    for name in ("old", "new"):
        long_ago = time.time() - 40 * 86_400
        os.utime(directory / f"{name}.key", (long_ago, long_ago))


def open_users(directory: Path) -> None:
    (directory / "users.toml").chmod(0o664)


def open_directory(directory: Path) -> None:
    directory.chmod(0o777)


def spoil_users(directory: Path) -> None:
    (directory / "users.toml").write_text("[users.ann]\nuid = 1\n")


@pytest.mark.parametrize(
    ("change", "subject", "text", "advice"),
    [
        (loosen_key, "key", "new.key: others may read it (mode 0640)", "make a new key"),
        (lose_key, "key", "old.key: No such file", "neither a server nor a client"),
        (age_keys, "old key", "two keys for 40 days", "security.secret_key_file"),
        (open_users, "users", "users.toml: others may write it", "chmod go-w"),
        (open_directory, "users", ": others may write it", "chmod go-w"),
        (spoil_users, "users", "users.ann: unknown field 'uid'", "SIGHUP"),
    ],
)
def test_keys_and_users_that_are_not(
    config: Path,
    tmp_path: Path,
    change: Callable[[Path], None],
    subject: str,
    text: str,
    advice: str,
) -> None:
    change(tmp_path)

    _, found = here(config)

    (finding,) = [each for each in found if each["level"] == "todo"]
    assert finding["subject"] == subject
    assert text in finding["text"]
    assert advice in finding["advice"]


def test_a_change_of_the_key_that_has_just_begun_is_no_fault(config: Path, tmp_path: Path) -> None:
    age_keys(tmp_path)
    os.utime(tmp_path / "new.key")
    assert [each["level"] for each in here(config)[1]] == ["ok", "ok", "ok"]


def test_insecure_is_told(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[security]\ninsecure = true\n")
    (finding,) = here(path)[1]
    assert finding["level"] == "note"
    assert "insecure = true" in finding["text"]


def test_the_key_of_a_client_is_checked(
    well: Examine, server: ServerInProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    public = make_key_file(tmp_path / "ann.key")
    monkeypatch.setenv("ZKV_KEY_FILE", str(tmp_path / "ann.key"))
    status, found = well("-e", server.endpoint)
    assert status == 1
    assert public in found["key"]["text"]
    assert "ZKV_SERVER_PUBLIC_KEY" in found["keys"]["text"], "it needs the server's key, too"

    (tmp_path / "ann.key").chmod(0o644)
    status, found = well("-e", server.endpoint)
    assert status == 1
    assert found["key"]["level"] == "todo"
    assert "chmod 600" in found["key"]["text"]


def test_bad_settings(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[security]\nuser = 'x'\n")
    done = run_zkv("doctor", "--config", str(path), "-e", NOWHERE, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith(f"zkv: {path}:2: security: unknown setting 'user'")


def findings(endpoint: str, monkeypatch: pytest.MonkeyPatch, **changes: Change) -> dict[str, Any]:
    """All findings about a server whose answers to some ops are changed on the way."""

    class Changed(Client):
        def call(self, op: str, /, **fields: Any) -> dict[str, Any]:
            reply = super().call(op, **fields)
            if op in changes:
                changes[op](reply)
            return reply

    monkeypatch.setattr(doctor, "FEED_PATIENCE", 0.5)
    with Changed(endpoint) as client:
        return {finding.subject: finding for finding in doctor.examine(client)}
