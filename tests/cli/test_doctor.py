"""``zkv doctor``: what it finds at servers that are well, and at others."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cli.running import NOWHERE
from tests.forking import run_zkv
from tests.peer import Peer, body
from tests.support import LIMIT, ROOT, Message, ServerInProcess, environment, zkv_command
from zkv import compiled
from zkv.cli import doctor
from zkv.cli.main import main
from zkv.client import Client

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
    monkeypatch.setattr(doctor, "_file_system", lambda _: "ext4")
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
         "sessions", "feed", "exposure", "files", "disk", "build"], "ok",
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
        pytest.param(put("feed", NOWHERE), "feed", "no message", "server.feed", id="silent feed"),
        (put("stats.process.open_files", 10**7), "files", "10,000,000", "ulimit -n"),
        (put("stats.process.max_open_files", 1024), "files", "1,024", "ulimit -n"),
        (put("durability.snapshot_bytes", 2**60), "disk", "free", "free space"),
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
        (put("endpoints", ["tcp://0.0.0.0:5555"]), "exposure", "tcp://0.0.0.0:5555"),
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
