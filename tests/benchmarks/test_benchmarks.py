"""The comparison with other servers, with tiny counts. No test asserts a speed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks import clients, report, run
from benchmarks.activity import Activity, Meter
from benchmarks.load import Load
from benchmarks.record import Cell, Present, Record, load
from benchmarks.rows import ROWS, SECTIONS, Row
from benchmarks.servers import (
    BATCHES,
    CONTENDERS,
    DURABILITY,
    AbsentError,
    Contender,
    Server,
    compile_c,
    named,
    running,
)
from benchmarks.starts import MEMORY_ROW, STATES, Starts
from tests.support import LIMIT
from zkv.bench import result
from zkv.bench.connections import BenchError
from zkv.bench.generator import LoadTarget

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None, reason="the load is in C, and there is no compiler"
)


def empty_record(passes: int = 1) -> Record:
    calm = {"seconds": 1.0, "load_before": 0.0, "load_after": 0.5, "others": 0.01, "steal": 0.0}
    return Record(
        when=result.now(), machine=result.machine(), versions=result.versions(), seconds=0.1,
        rounds=2, passes=[Activity(**calm) for _ in range(passes)],
    )  # fmt: skip


@contextlib.contextmanager
def started(contender: Contender, directory: Path) -> Iterator[Server]:
    """A running server; the test is skipped if it is not installed."""
    try:
        with running(contender, str(directory)) as server:
            yield server
    except AbsentError as error:
        pytest.skip(str(error))


# --- load.c ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The load program; it is watched at each access to memory, if the compiler can do that."""
    directory = tmp_path_factory.mktemp("load")
    strict = "-Wall", "-Wextra", "-Werror"
    watch = "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"
    try:
        return compile_c("load", directory, *strict, *watch)
    except BenchError:  # No library for that: or the plain program does not compile, either.
        return compile_c("load", directory, *strict)


def ask(
    program: str, server: Server, op: str, *, connections: int = 3, size: int = 16, seed: int = 1
) -> Any:
    """What the load has counted."""
    words = [
        program, server.contender.protocol, server.port, server.pid, connections, 4, 0.03, op, 100,
        size, seed,
    ]  # fmt: skip
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=LIMIT, check=False,
        env=os.environ | {"ASAN_OPTIONS": "detect_leaks=0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda contender: contender.name)
def test_each_server_is_asked_what_it_understands(
    program: str, contender: Contender, tmp_path: Path
) -> None:
    """Nothing fails; what has not been written is missing, and afterwards nothing is."""
    with started(contender, tmp_path) as server:
        if contender.protocol in {"redis", "memcached", "nats"}:
            assert ask(program, server, "get")["missing"] > 0
        for size in (16, min(70_000, contender.largest)):
            ask(program, server, "fill", size=size)
            ops = {"get", "put", "mix", "incr", "mget:7", "mput:7", "repeat:7"}
            for op in sorted(op for op in ops if op.partition(":")[0] not in contender.lacks):
                found = ask(program, server, op, size=size)
                assert (found["failed"], found["missing"]) == (0, 0), (op, found)
                assert found["rate"] > 0
                assert 0 < found["p50"] <= found["p99"]


def test_the_largest_value_fits_into_each_server(program: str, tmp_path: Path) -> None:
    for number, contender in enumerate(each for each in CONTENDERS if each.group == "never"):
        directory = tmp_path / str(number)
        directory.mkdir()
        with contextlib.suppress(AbsentError), running(contender, str(directory)) as server:
            for op in ("fill", "get", "put"):
                found = ask(program, server, op, connections=1, size=contender.largest)
                assert contender.is_floor or (found["failed"], found["missing"]) == (0, 0), found


def test_a_fill_writes_each_key_once_in_any_order(program: str, tmp_path: Path) -> None:
    with started(named("zkv never"), tmp_path) as server:
        ask(program, server, "fill:1", connections=5, seed=7)
        assert ask(program, server, "mget:100")["missing"] == 0
        with result.connect(LoadTarget(endpoint=f"tcp://127.0.0.1:{server.port}")) as client:
            assert client.count() == client.info()["rev"] == 100


def test_a_repeated_key_is_sent_twice(program: str, tmp_path: Path) -> None:
    """A map of two items with one key changes one entry."""
    with started(named("zkv never"), tmp_path) as server:
        ask(program, server, "repeat:2", connections=1)
        with result.connect(LoadTarget(endpoint=f"tcp://127.0.0.1:{server.port}")) as client:
            revisions = [change.rev for change in client.changes(0)]
    assert revisions
    assert len(set(revisions)) == len(revisions)


def test_what_is_not_there_is_counted(program: str, tmp_path: Path) -> None:
    """Else a server that refuses everything would be the fastest."""
    with started(named("zkv never"), tmp_path) as server:
        assert ask(program, server, "get")["failed"] > 0
        assert ask(program, server, "mget:5")["missing"] > 0


@pytest.mark.parametrize("words", ["mget:101", "mget:0", "nothing", "mput:"])
def test_the_load_refuses_ops_that_it_cannot_send(program: str, words: str) -> None:
    server = Server(named("zkv never"), 1, 1)
    with pytest.raises(AssertionError, match="load: "):
        ask(program, server, words)


# --- Rows and contenders ---------------------------------------------------------------------


def test_rows_have_names_of_their_own_and_a_table() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert {row.section for row in ROWS} < set(SECTIONS)
    assert len({each.name for each in CONTENDERS}) == len(CONTENDERS)
    assert {each.durability for each in CONTENDERS} == set(DURABILITY)
    assert {name for state in STATES for name in state.steps} < {each.name for each in CONTENDERS}


def test_zkv_is_measured_in_every_row_and_others_only_beside_it() -> None:
    for row in ROWS:
        names = [each.name for each in CONTENDERS if each.takes_part(row)]
        assert names[0] == f"zkv {row.group}"
        assert len(names) > 1
        assert ("bare ROUTER" in names) == (row.floor == "bare")
        assert (f"ROUTER with a log {row.group}" in names) == (row.floor == "log")
        lacking = {each.name for each in CONTENDERS if each.lacks & BATCHES}
        assert not (":" in row.op or row.beside) or not lacking & set(names)


# --- A comparison ----------------------------------------------------------------------------


def test_a_comparison_is_recorded_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, document = tmp_path / "results.json", tmp_path / "BENCH.md"
    only = "zkv never,zkv always,bare ROUTER"
    tiny = ["--rounds", "2", "--seconds", "0.02", "--only", only, "--rows", "16 in flight"]
    assert run.main([*tiny, "--json", str(path)]) == 0
    shown = capsys.readouterr().out
    record = load(path)
    assert [present.name for present in record.present] == [
        "zkv never", "bare ROUTER", "zkv always",
    ]  # fmt: skip
    assert len(record.passes) == run.PASSES
    for cell in record.cells:
        assert {len(figures) for figures in cell.figures.values()} == {2 * run.PASSES}, cell
    assert not record.notes

    document.write_text(
        "Before.\n<!-- generated: overview -->\n<!-- end -->\n<!-- generated: machine -->\nold\n"
        "<!-- end -->\n<!-- generated: tables -->\n<!-- end -->\nBehind.\n"
    )
    assert report.main([str(path), str(document)]) == 0
    text = document.read_text()
    assert text.startswith("Before.\n")
    assert text.endswith("Behind.\n")
    assert "old" not in text
    for cell in record.cells:
        assert cell.row in text
        assert cell.row in shown
    assert "zkv always (on disk)" in text
    assert "- pass 2: " in text


def test_the_short_form_has_one_pass_of_the_main_rows(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    tiny = ["--short", "--rounds", "1", "--seconds", "0.02", "--only", "zkv never,zkv always"]
    assert run.main([*tiny, "--json", str(path)]) == 0
    record = load(path)
    assert len(record.passes) == 1
    assert {cell.row for cell in record.cells} == {row.name for row in ROWS if row.main}


def test_large_writes_are_made_beside(tmp_path: Path) -> None:
    with started(named("zkv never"), tmp_path) as server:
        row = Row("beside", "beside", 2, 1, "get", 10_000, beside=2)
        found = Load(tmp_path, 0.2).measure(server, row, 1)
    assert found["beside"] > 0
    assert found["rate"] > 0


def test_starts_and_memory_are_measured(tmp_path: Path) -> None:
    record = empty_record()
    Starts(record, Load(tmp_path, 0.1), keys=1_000, commits=900).measure(rounds=2)
    files = []
    for state in STATES:
        cell = record.cell(state.name, "zkv never")
        assert (cell is not None) == state.starts
        if cell is not None:
            assert len(cell.figures["seconds"]) == 2
            assert min(cell.figures["seconds"]) > 0
            files.append(min(cell.figures["megabytes"]))
    log, snapshot, commits = files
    assert 0 < log < snapshot < commits - log
    assert record.cell(MEMORY_ROW, "zkv never") is not None


def test_python_clients_are_measured(tmp_path: Path) -> None:
    record = empty_record()
    clients.measure(record, Load(tmp_path, 0.1), rounds=2, seconds=0.02)
    rows = {cell.row for cell in record.cells}
    assert {"1 thread, GET", "1 thread, pipeline of 100 GETs", "50 tasks, MGET of 100"} < rows
    for cell in record.cells:
        assert {len(figures) for figures in cell.figures.values()} == {2}
        assert min(cell.figures["rate"]) > 0


# --- Faults ----------------------------------------------------------------------------------


def test_a_server_that_does_not_start_is_left_out_with_a_note() -> None:
    broken = msgspec.structs.replace(named("etcd"), name="broken", command=lambda *_: ["false"])
    row = Row("a row", "always", 1, 1, "put", group="always")
    plan = run.Plan([named("zkv always"), broken], [row], rounds=1, seconds=0.02)
    record = run.compete(plan, None)
    assert [cell.server for cell in record.cells] == ["zkv always"]
    assert record.notes == ["broken does not start: no message"]


def test_a_server_that_fails_in_a_row_has_no_figures_there() -> None:
    """It is asked in a protocol for which the value is too large."""
    narrow = msgspec.structs.replace(named("zkv never"), name="narrow", protocol="etcd")
    row = Row("a row", "one", 1, 1, "put", keys=10, value_bytes=20_000)
    plan = run.Plan([named("zkv never"), narrow], [row], rounds=2, seconds=0.02)
    record = run.compete(plan, None)
    assert [cell.server for cell in record.cells] == ["zkv never"]
    assert record.dropped == [("a row", "narrow")]
    (note,) = record.notes
    assert note.startswith("narrow, storing the keys: load: a value does not fit")


def test_values_that_are_missing_are_a_failure(tmp_path: Path) -> None:
    """Keys of another size have been forgotten on the way."""
    with started(named("zkv never"), tmp_path) as server:
        tool = Load(tmp_path, 0.02)
        tool.measure(server, Row("a row", "one", 1, 1, "get", keys=10), 1)
        with result.connect(LoadTarget(endpoint=f"tcp://127.0.0.1:{server.port}")) as client:
            client.delete_many([f"k{number:07d}" for number in range(10)])
        with pytest.raises(BenchError, match=r"zkv never, a row: .* failed"):
            tool.measure(server, Row("a row", "one", 1, 1, "get", keys=10), 1)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--only", "nobody"], "--only: unknown: nobody"),
        (["--rows", "round"], "no name contains 'round'"),
        (["--short", "--rows", "4,000"], "no name contains '4,000'"),
        (["--rounds", "0"], "above 0"),
        (["--json", "/nowhere/results.json"], "there is no such directory"),
    ],
)
def test_wrong_words_are_refused(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(SystemExit):
        assert run.main(words) == 2
    assert complaint in capsys.readouterr().err


# --- The report ------------------------------------------------------------------------------


def made_record() -> Record:
    """Two rounds, in which the machine was at first half as fast."""
    record = empty_record(passes=2)
    row = next(row for row in ROWS if row.main)
    for name, factor in (("memcached", 4.0), ("zkv never", 1.0)):
        record.meet(Present(name, "1.0", named(name).durability))
        for speed in (1_000.0, 2_000.0):
            figures = {"rate": speed * factor, "p50": 9.0, "p99": 11.0, "busy": 0.95}
            record.add("one", row.name, name, figures | {"server_cpu": 5.0 / factor})
    return record


def test_ratios_are_taken_within_rounds() -> None:
    _, (ours, theirs) = report.table(made_record(), "one", SECTIONS["one"])
    assert ours[1:3] == ["zkv never (with the system)", "1,500* (1,000 - 2,000)"]
    assert ours[-2:] == ["", ""]
    assert theirs[1:3] == ["memcached (in memory)", "6,000* (4,000 - 8,000)"]
    assert theirs[-2:] == ["0.25 (0.25 - 0.25)", "4.00 (4.00 - 4.00)"]


def test_a_server_that_missed_a_pass_has_figures_and_no_ratio() -> None:
    """Its rounds are not those of zkv."""
    record = made_record()
    row = record.cells[0].row
    record.add("one", row, "Redis", {"rate": 5_000.0})
    _, lines = report.table(record, "one", SECTIONS["one"])
    (line,) = [line for line in lines if line[1] == "Redis"]
    assert line[2] == "5,000 (5,000 - 5,000)"
    assert line[-2:] == ["", ""]


def test_the_overview_has_a_column_for_each_other_server() -> None:
    head, (line,) = report.overview(made_record())
    assert head[-1] == "zkv / memcached"
    assert line[-1] == "0.25 (0.25 - 0.25)"
    assert len(head) == len(line)


def test_the_report_says_who_is_missing_and_how_busy_the_machine_was() -> None:
    record = made_record()
    record.miss("etcd")
    record.drop("some row", "Redis", "Redis, some row: 3 failed, 0 missing")
    record.passes[1].steal = 0.2
    text = report.machine(record)
    assert "not installed, so not run: etcd" in text
    assert "left out: Redis, some row: 3 failed, 0 missing" in text
    assert "pass 1: 0.0 min, load average 0 before and 0.5 after; other programs used 1%" in text
    assert text.count("too busy for reliable figures") == 1
    assert "in memory: an answered write is lost with the process" in text


def test_others_and_ours_are_told_apart() -> None:
    """What a child of ours computes is not the use of others."""
    meter = Meter()
    subprocess.run(["sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"], check=True)
    found = meter.read()
    assert 0 <= found.others <= 1
    assert 0 <= found.steal <= 1
    assert found.seconds >= 0


def test_cells_of_a_row_are_forgotten_together() -> None:
    record = made_record()
    (row,) = {cell.row for cell in record.cells}
    record.drop(row, "memcached", "it died")
    assert [cell.server for cell in record.cells] == ["zkv never"]
    assert isinstance(record.cell(row, "zkv never"), Cell)
    assert record.cell(row, "memcached") is None


@pytest.mark.parametrize("content", ["{", "{}", '{"when": 1}'])
def test_another_file_is_no_record(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    assert report.main([str(path), str(tmp_path / "BENCH.md")]) == 2
    assert "is not a record of a comparison" in capsys.readouterr().err


def test_a_document_without_a_place_for_tables_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, document = tmp_path / "results.json", tmp_path / "BENCH.md"
    result.save(made_record(), path)
    document.write_text("No place here.")
    assert report.main([str(path), str(document)]) == 2
    assert "generated: tables" in capsys.readouterr().err
    assert document.read_text() == "No place here."
