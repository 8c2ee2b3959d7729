"""The comparison with other servers, with tiny counts. No test asserts a speed."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare, report
from benchmarks.servers import CONTENDERS, Server, compile_c
from tests.support import LIMIT

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None, reason="the load is in C, and there is no compiler"
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    return compile_c("load", tmp_path_factory.mktemp("load"), "-Wall", "-Wextra", "-Werror")


def run(program: str, server: Server, op: str, *, connections: int = 3, size: int = 16) -> Any:
    """What the load has counted."""
    words = [program, server.protocol, server.port, server.pid, connections, 4, 0.03, op, 100, size]
    done = subprocess.run(
        [str(word) for word in [*words, 1]], capture_output=True, text=True, timeout=LIMIT,
        check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda contender: contender.name)
def test_each_server_is_asked_what_it_understands(program: str, contender: Any) -> None:
    """Nothing fails; what has not been written is missing, and afterwards nothing is."""
    with contender.start() as server:
        if server is None:
            pytest.skip(f"{contender.name} is not installed here")
        if contender.name != "floor" and server.protocol in {"redis", "memcached", "nats"}:
            assert run(program, server, "get")["missing"] > 0
        for size in (16, 9_000 if server.protocol == "etcd" else 70_000):
            run(program, server, "fill", size=size)
            ops = ["get", "put", "mix", *["incr"] * contender.counts]
            ops += ["mget:7", "mput:7"] * contender.batches
            for op in ops:
                found = run(program, server, op, size=size)
                assert (found["failed"], found["missing"]) == (0, 0), (op, found)
                assert found["rate"] > 0
                assert 0 < found["p50"] <= found["p99"]


def test_what_is_not_there_is_counted(program: str) -> None:
    """Else a server that refuses everything would be the quickest."""
    (zkv,) = (each for each in CONTENDERS if each.name == "zkv never")
    with zkv.start() as server:
        assert server is not None
        assert run(program, server, "get")["failed"] > 0
        assert run(program, server, "mget:5")["missing"] > 0


def test_a_comparison_is_recorded_and_reported(tmp_path: Path) -> None:
    record, document = tmp_path / "peers.json", tmp_path / "BENCH.md"
    tiny = ["--rounds", "2", "--seconds", "0.02", "--only", "floor,zkv never,zkv always"]
    assert compare.main([*tiny, "--shape", "16 in flight", "--json", str(record)]) == 0
    found = json.loads(record.read_text())
    assert [present["name"] for present in found["present"]] == ["floor", "zkv never", "zkv always"]
    for cell in found["cells"]:
        assert len(cell["rate"]) == 2, cell
        assert (cell["failed"], cell["missing"]) == (0, 0), cell

    document.write_text(
        "Before.\n<!-- generated: machine -->\n<!-- end -->\n<!-- generated: peers -->\nold\n"
        "<!-- end -->\nBehind.\n"
    )
    assert report.main([str(record), str(document)]) == 0
    text = document.read_text()
    assert text.startswith("Before.\n")
    assert text.endswith("Behind.\n")
    assert "old" not in text
    assert text.count("| zkv never |") == len(found["shapes"])
    assert b"<svg" in (tmp_path / "peers.svg").read_bytes()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--only", "nobody"], "--only: unknown: nobody"),
        (["--shape", "round"], "no title contains 'round'"),
        (["--rounds", "0"], "above 0"),
    ],
)
def test_wrong_words_are_refused(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(SystemExit):
        assert compare.main(words) == 2
    assert complaint in capsys.readouterr().err


def test_a_document_without_a_place_for_tables_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record, document = tmp_path / "peers.json", tmp_path / "BENCH.md"
    tiny = ["--rounds", "1", "--seconds", "0.02", "--only", "floor", "--shape", "1 lock-step"]
    assert compare.main([*tiny, "--json", str(record)]) == 0
    document.write_text("No place here.")
    assert report.main([str(record), str(document)]) == 2
    assert "generated: peers" in capsys.readouterr().err
    assert document.read_text() == "No place here."
