"""``make cluster``, and ``--wait leader``, with a real etcd."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.etcd.nodes import EtcdCluster, needs_etcd
from tests.support import LIMIT, ROOT, Raw, ServerProcess, environment
from zkv.endpoint import split_store_url


@needs_etcd
def test_the_demonstration_shows_a_take_over() -> None:
    demonstration = subprocess.Popen(
        [sys.executable, "-m", "tools.cluster"], cwd=ROOT, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        printed, complaint = demonstration.communicate(timeout=8 * LIMIT)
    finally:
        with contextlib.suppress(ProcessLookupError):  # Its servers, if it does not end.
            os.killpg(demonstration.pid, signal.SIGKILL)
    assert demonstration.returncode == 0, complaint
    assert "leads now" in printed
    assert printed.endswith("all well\n")


def test_the_demonstration_says_that_etcd_is_missing(tmp_path: Path) -> None:
    env = environment() | {"PATH": "", "ETCD": "etcd"}
    done = subprocess.run(
        [sys.executable, "-m", "tools.cluster"], cwd=ROOT, env=env,
        capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "`make etcd-deps` installs it" in done.stderr


@needs_etcd
def test_a_member_is_ready_once_it_leads(tmp_path: Path) -> None:
    with EtcdCluster(tmp_path / "etcd") as etcd:
        hosts = ",".join(each.removeprefix("http://") for each in etcd.endpoints)
        url = f"etcd://{hosts}/test"
        assert split_store_url(url).prefix == "test"
        subprocess.run([sys.executable, "-m", "zkv.cli.main", "store", "found", url], cwd=ROOT,
                       env=environment(), check=True, timeout=LIMIT)  # fmt: skip
        flags = "--store", url, "--member", "a", "--wait", "leader"
        with ServerProcess(tmp_path / "a", *flags) as server, Raw(server.endpoint) as client:
            assert client.ok(op="PUT", key="k", value=1)["rev"] == 1
            assert server.stop() == 0
