"""The fixtures of `zkv.testing`, in runs of pytest as a user's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import LIMIT, ROOT, environment

pytestmark = pytest.mark.timeout(6 * LIMIT)


def run_tests(directory: Path, text: str, *options: str) -> str:
    (directory / "conftest.py").write_text('pytest_plugins = ["zkv.testing"]\n')
    (directory / "test_mine.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        env=environment() | {"PYTHONPATH": str(ROOT)}, cwd=directory,
        capture_output=True, text=True, timeout=4 * LIMIT, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_each_test_has_its_own_server(tmp_path: Path) -> None:
    told = run_tests(
        tmp_path,
        """
import pytest

@pytest.mark.parametrize("round", range(3))
def test_each_has_its_own(zkv_server, zkv_client, round):
    assert zkv_client.call("INCR", key="n")["value"] == 1
    endpoint = zkv_server.endpoint
    zkv_server.stop()
    zkv_server.start()
    assert zkv_server.endpoint == endpoint
    assert zkv_client.call("INCR", key="n")["value"] == 2
""",
    )
    assert "3 passed" in told, told


def test_a_server_is_killed_on_request(tmp_path: Path) -> None:
    told = run_tests(
        tmp_path,
        """
import pytest, zkv

def test_killed(zkv_process):
    with zkv.Client(zkv_process.endpoint, timeout=10) as kv:
        kv["a"] = 1
        zkv_process.kill()
        kv.timeout = 0.3
        with pytest.raises(zkv.NoReplyError):
            kv["a"]
        kv.timeout = 10
        zkv_process.start()
        assert kv["a"] == 1
        zkv_process.stop()
        zkv_process.stop()
        zkv_process.start()
        assert kv.incr("a") == 2

def test_told_why(zkv_process):
    zkv_process.kill()
    zkv_process.endpoint = "tcp://192.0.2.1:5555"
    with pytest.raises(RuntimeError, match="192.0.2.1"):
        zkv_process.start()
""",
    )
    assert "2 passed" in told, told


def test_each_worker_has_a_server_that_its_tests_share(tmp_path: Path) -> None:
    text = """
import pathlib, pytest

@pytest.mark.parametrize("round", range(12))
def test_keys_of_its_own(zkv_namespace, zkv_shared_server, worker_id, round):
    assert len(zkv_namespace) == 0
    assert zkv_namespace.incr("n") == 1
    pathlib.Path(f"{worker_id}-{zkv_shared_server.endpoint.rpartition(':')[2]}").touch()
"""
    told = run_tests(tmp_path, text, "-n", "2", "-p", "xdist")
    assert "12 passed" in told, told
    seen = sorted(path.name.partition("-") for path in tmp_path.glob("*gw*"))
    assert len({worker for worker, _, _ in seen}) == len({port for _, _, port in seen}) == len(seen)
