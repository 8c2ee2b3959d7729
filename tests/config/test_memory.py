"""The memory limit: where it comes from, and what has to fit into it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Connect
from tests.support import ServerProcess
from zkv.config import LimitSettings, fit_memory
from zkv.errors import ConfigError

MIB = 2**20


def cgroup(root: Path, membership: str, **limits: str) -> Path:
    """A system whose cgroups have these limits, by path with ``__`` for a slash."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(membership)
    for path, text in limits.items():
        file = root / "sys/fs/cgroup" / path.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        (file.with_name(file.name.replace("_max", ".max"))).write_text(text)
    return root


def from_cgroup(root: Path) -> tuple[int, list[str]]:
    limits, said = fit_memory(LimitSettings(max_memory=-1), root)
    return limits.max_memory, said


def test_the_smallest_limit_of_the_cgroups_around_counts(tmp_path: Path) -> None:
    root = cgroup(
        tmp_path, "0::/a/b\n", memory_max="max\n", a__memory_max=f"{1024 * MIB}\n",
        a__b__memory_max=f"{2048 * MIB}\n",
    )  # fmt: skip
    most, said = from_cgroup(root)
    assert most == int(0.7 * (1024 - 192) * MIB)
    assert said[0] == f"limits.max_memory is {most}, from the cgroup's limit"


def test_in_a_container_only_the_top_is_there(tmp_path: Path) -> None:
    root = cgroup(tmp_path, "0::/../../host/path\n", memory_max=f"{1024 * MIB}\n")
    assert from_cgroup(root)[0] == int(0.7 * (1024 - 192) * MIB)


def test_cgroups_of_version_1(tmp_path: Path) -> None:
    root = cgroup(tmp_path, "5:cpu:/x\n4:memory:/x\n")
    file = root / "sys/fs/cgroup/memory/x/memory.limit_in_bytes"
    file.parent.mkdir(parents=True)
    file.write_text(f"{512 * MIB}\n")
    (root / "sys/fs/cgroup/memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert from_cgroup(root)[0] == int(0.7 * (512 - 192) * MIB)


@pytest.mark.parametrize("membership", ["0::/\n", ""])
def test_without_a_limit_of_the_cgroup_there_is_none(tmp_path: Path, membership: str) -> None:
    most, said = from_cgroup(cgroup(tmp_path, membership, memory_max="max\n"))
    assert most == 0
    assert "there is no limit" in said[0]


def test_a_cgroup_that_is_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"limits\.max_memory: it is -1, and the cgroup allows"):
        from_cgroup(cgroup(tmp_path, "0::/\n", memory_max=f"{192 * MIB}\n"))


def test_history_and_sessions_are_scaled_to_half_of_the_limit() -> None:
    limits, said = fit_memory(LimitSettings(max_memory=64 * MIB))
    assert limits.session_bytes + limits.history_bytes == pytest.approx(32 * MIB, abs=2)
    assert limits.session_bytes == pytest.approx(4 * limits.history_bytes, abs=4)
    assert len(said) == 2
    assert said[0].startswith(f"limits.session_bytes is {limits.session_bytes} instead of 26843")


@pytest.mark.parametrize("most", [0, 640 * MIB])
def test_a_limit_that_is_large_enough_changes_nothing(most: int) -> None:
    limits = LimitSettings(max_memory=most)
    assert fit_memory(limits) == (limits, [])


def test_a_server_says_what_it_has_scaled_and_serves_beyond_its_limit(
    tmp_path: Path, connect: Connect
) -> None:
    """A limit below what is there: entries can be read and removed, and it can be saved."""
    with ServerProcess(tmp_path) as server:
        client = connect(server.endpoint)
        client.ok(op="MPUT", items={f"k{number}": bytes(10_000) for number in range(200)})
        server.stop()
    with ServerProcess(tmp_path, config="[limits]\nmax_memory = 1048576\n") as server:
        assert "limits.history_bytes is 104857 instead of 67108864" in server.log()
        client = connect(server.endpoint)
        assert client.ok(op="INFO")["limits"]["history_bytes"] == 104_857
        assert client.call(op="PUT", key="new", value=bytes(9_000))["code"] == "FULL"
        assert client.call(op="PUT", key="new", value=bytes(9_000), ttl=9)["code"] == "FULL"
        client.ok(op="GET", key="k1")
        client.ok(op="SNAPSHOT")
        client.ok(op="MDELETE", keys=[f"k{number}" for number in range(120)])
        client.ok(op="PUT", key="new", value=bytes(9_000))
        memory = client.ok(op="INFO")["stats"]["memory"]
        assert memory["used"] <= memory["limit"] == MIB
        assert server.stop() == 0
        log = server.log()
    assert log.count("bytes are used of limits.max_memory (1048576)") == 1
    assert log.count("limits.max_memory (1048576) is reached") == 1
    assert log.count("there is room again in limits.max_memory") == 1
