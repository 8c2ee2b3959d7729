"""zkv-bench with keys: its processes get them by files, and not by their command lines."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import LIMIT, ROOT, environment, eventually
from tests.users.secured import Secured
from zkv.keys import make_key_file, read_key_file

ALL: dict[str, Any] = {"write": [""], "admin": True}
QUICK = ("--operations", "60", "--clients", "4", "--keys", "40", "--ceiling", "0")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """A server that has two keys, and the user ann."""
    directory = tmp_path_factory.mktemp("secured")
    files = [str(directory / name) for name in ("server.key", "next.key")]
    for file in files:
        make_key_file(file)
    with Secured(directory, {"ann": ALL}, security={"secret_key_file": files}) as server:
        yield server


def where(secured: Secured, name: str, server_key: str = "") -> list[str]:
    """The options for a user, or for somebody who is none."""
    secured.key(name)
    file = str(secured.directory / f"{name}.key")
    return ["-e", secured.endpoint, "--server-key", server_key or secured.server_key,
            "--key-file", file]  # fmt: skip


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "zkv.bench.main", *words]


def bench(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        command(*words), cwd=ROOT, env=environment() | (env or {}), capture_output=True, text=True,
        timeout=2 * LIMIT, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("more", [["--processes", "2"], ["--verify"], ["--pipeline", "5"]])
def test_a_run_uses_keys(secured: Secured, tmp_path: Path, more: list[str]) -> None:
    words = [*QUICK[:4], *QUICK[6:]] if "--verify" in more else QUICK
    path = tmp_path / "result.json"
    done = bench(*where(secured, "ann"), *words, *more, "--json", str(path))
    assert done.returncode == 0, done.stderr
    assert "encryption CURVE" in done.stdout
    record = json.loads(path.read_text())
    assert (record["operations"], record["failed"]) == (60, 0)
    assert "ann.key" not in path.read_text()


def test_a_run_finds_out_which_key_the_server_has(secured: Secured, tmp_path: Path) -> None:
    other = make_key_file(tmp_path / "other.key")
    following = read_key_file(secured.directory / "next.key").public
    _, endpoint, _, _, _, file = where(secured, "ann")
    for keys in (f"{other},{secured.server_key}", f"{following},{other}"):
        names = {
            "ZKV_ENDPOINT": endpoint, "ZKV_SERVER_PUBLIC_KEY": keys, "ZKV_KEY_FILE": file,
        }  # fmt: skip
        done = bench(*QUICK, env=names)
        assert done.returncode == 0, done.stderr


def test_servers_of_its_own_need_no_keys(secured: Secured) -> None:
    """Neither the one that it starts, nor the one that the ceiling is measured with."""
    names = {"ZKV_SERVER_PUBLIC_KEY": secured.server_key, "ZKV_KEY_FILE": "absent"}
    done = bench("--start", "tcp", *QUICK[:-1], "0.1", env=names)
    assert done.returncode == 0, done.stderr
    assert "ceiling of this load" in done.stdout
    assert "encryption" not in done.stdout


def test_wrong_keys_are_told_at_once(secured: Secured, tmp_path: Path) -> None:
    other = make_key_file(tmp_path / "other.key")
    for words, says in (
        (where(secured, "eve"), "does not know the key of this client"),
        (where(secured, "ann", other), "another key"),
        (where(secured, "ann")[:2], "wants CURVE"),
        ([*where(secured, "ann")[:-1], "absent"], "absent: No such file"),
        (["--server-key", "x"], "--server-key: not a key"),
        ([*where(secured, "ann"), "--start", "tcp"], "not for --start"),
    ):
        done = bench(*words, *QUICK)
        assert done.returncode == 2
        assert says in done.stderr
        assert "Traceback" not in done.stderr


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found += [child, *descendants(child)]
    return found


def test_no_process_shows_a_secret(secured: Secured) -> None:
    words = command(*where(secured, "ann"), *QUICK[2:], "--processes", "2", "--duration", "600")
    process = subprocess.Popen(
        words, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        eventually(lambda: counted(secured) > 1_000, "requests")
        pids = [process.pid, *descendants(process.pid)]
        assert len(pids) >= 4, "itself, the server that forks, and two that it has forked"
        secret = secured.key("ann").secret.encode()
        for pid in pids:
            for name in ("cmdline", "environ"):
                assert secret not in Path(f"/proc/{pid}/{name}").read_bytes()
    finally:
        process.terminate()
        process.wait(LIMIT)


def counted(secured: Secured) -> int:
    """The requests that the server has answered."""
    info = secured.server.server.info()
    assert isinstance(info, dict)
    return sum(info["stats"]["requests"].values())
