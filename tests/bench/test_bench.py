"""zkv-bench: every way to run it, with tiny counts. No test asserts a speed.

What is measured is not looked at, but how: that nothing is left out, that a stall counts for all
that it holds up, that a wrong answer is found, that a run outlives its server.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import multiprocessing
import os
import pty
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from tests.docs.test_docs import free_ports
from tests.support import LIMIT, ROOT, Message, Raw, ServerProcess, environment, pack, unpack
from zkv.bench import generator, result, sweep
from zkv.bench.generator import LoadJob, LoadTarget, make_source
from zkv.bench.histogram import Histogram, bucket, upper_end
from zkv.bench.keys import DISTRIBUTIONS, Keys
from zkv.bench.main import main
from zkv.bench.result import Result
from zkv.bench.workload import YCSB, Workload

CHECKED = ("--operations", "60", "--clients", "4", "--ceiling", "0")
QUICK = (*CHECKED, "--keys", "40")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "zkv.bench.main", *arguments]


class Done(NamedTuple):
    """What a run has printed."""

    stdout: str
    stderr: str


def bench(*arguments: object, status: int = 0) -> Done:
    """Run the command line, in this process: most of a short run is the start of Python."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            ended = main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            ended = exit_.code if isinstance(exit_.code, int) else 0
    assert ended == status, out.getvalue() + err.getvalue()
    return Done(out.getvalue(), err.getvalue())


def bench_alone(*arguments: object, **env: str) -> Done:
    """Run it as a process, with further environment variables."""
    done = subprocess.run(
        command(*map(str, arguments)), env=environment() | env, capture_output=True, text=True,
        timeout=LIMIT, check=True,
    )  # fmt: skip
    return Done(done.stdout, done.stderr)


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server that all tests here share."""
    with ServerProcess(tmp_path_factory.mktemp("bench"), "--fsync", "never") as server:
        yield server.endpoint


def measured(tmp_path: Path, *arguments: object, status: int = 0) -> Any:
    """The record of a run."""
    path = tmp_path / "result.json"
    bench(*arguments, "--json", path, status=status)
    return json.loads(path.read_text())


def check_record(record: Any, operations: int) -> None:
    """Everything was done, nothing failed, and the figures agree with each other."""
    *kinds, overall = record["latencies"]
    assert (record["operations"], record["failed"], record["lost"]) == (operations, 0, 0)
    assert overall["count"] == sum(kind["count"] for kind in kinds) == operations
    for latency in record["latencies"]:
        values = list(latency["percentiles"].values())
        assert values == sorted(values)
        assert 0 < latency["mean"] <= values[-1]
    assert record["curve"] == sorted(record["curve"])
    assert record["timeline"]
    assert record["generator"]["cpu_per_op"] > 0


# --- every way to run it ---------------------------------------------------------------------

MODES: dict[str, list[str]] = {
    "lock-step": [],
    "in flight": ["--pipeline", "5"],
    "processes": ["--processes", "3", "--pipeline", "2"],
    "batches": ["--batch", "10"],
    "batches in flight": ["--batch", "10", "--pipeline", "3"],
    "open loop": ["--rate", "2000", "--processes", "2"],
    "reads": ["--reads", "1", "--distribution", "zipfian"],
    "writes": ["--reads", "0", "--distribution", "sequential", "--value-bytes", "2000"],
    "latest": ["--distribution", "latest"],
    **{f"ycsb {name}": ["--ycsb", name, "--pipeline", "2"] for name in YCSB},
    "verify": ["--verify", "--pipeline", "3", "--processes", "2"],
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_does_all_that_it_was_asked_for(
    mode: str, endpoint: str, tmp_path: Path
) -> None:
    tiny = CHECKED if mode == "verify" else QUICK
    record = measured(tmp_path, "-e", endpoint, *tiny, *MODES[mode])
    check_record(record, 60)
    kinds = {latency["kind"] for latency in record["latencies"][:-1]}
    if mode.startswith("ycsb"):
        assert kinds <= {kind for kind, _ in YCSB[mode[-1]].shares}
    assert record["server"]["policy"] == "never"
    assert record["verified"] == (mode == "verify")
    if mode == "verify":  # It leaves nothing behind, under a new name each time.
        with Raw(endpoint) as client:
            prefix = f"bench:verify:{record['job']['verify']}:"
            assert client.ok(op="COUNT", prefix=prefix)["count"] == 0


WITHIN = pytest.param(
    "inproc",
    marks=pytest.mark.skipif(
        find_spec("zkv.embed") is None, reason="servers have their contexts for themselves"
    ),
)


@pytest.mark.parametrize("transport", ["tcp", "ipc", WITHIN])
def test_starts_a_server_of_its_own(transport: str, tmp_path: Path) -> None:
    record = measured(tmp_path, "--start", transport, "--fsync", "interval", *QUICK)
    check_record(record, 60)
    if transport == "inproc":
        check_record(measured(tmp_path, "--start", transport, "--verify", *CHECKED), 60)
        return
    assert record["server"]["policy"] == "interval"
    assert record["server"]["endpoint"].startswith(f"{transport}://")
    assert record["server_cpu_per_op"] is not None


def test_ycsb_loads_its_records_first_and_runs_them_later(endpoint: str, tmp_path: Path) -> None:
    ycsb = ("-e", endpoint, *QUICK, "--ycsb", "f", "--fields", "3", "--field-bytes", "7")
    loaded = bench(*ycsb, "--phase", "load").stdout
    assert loaded.startswith("loaded 40 keys in ")
    with Raw(endpoint) as client:
        (record,) = client.ok(op="MGET", keys=["bench:000000000039"])["values"]
        assert {name: len(value) for name, value in record.items()} == {
            "field0": 7, "field1": 7, "field2": 7,
        }  # fmt: skip
    check_record(measured(tmp_path, *ycsb, "--phase", "run"), 60)


def test_the_same_seed_makes_the_same_requests() -> None:
    def requests(seed: int, process: int = 0) -> list[bytes]:
        job = LoadJob(target=LoadTarget(endpoint="-"), workload=Workload(seed=seed), processes=2)
        source = make_source(job, process)
        return [source.next(0)[1] for _ in range(50)]

    assert requests(7) == requests(7)
    assert requests(7) != requests(8)
    assert requests(7) != requests(7, process=1)


def test_tells_the_generators_own_ceiling(endpoint: str, tmp_path: Path) -> None:
    arguments = ("-e", endpoint, *QUICK, "--ceiling", "0.1")
    assert measured(tmp_path, *arguments)["generator"]["ceiling"] > 0
    no_compiler = bench_alone(*arguments, PATH=str(tmp_path)).stdout
    assert "against a server in Python that answers a constant" in no_compiler


def test_says_when_the_generator_is_what_is_measured(tmp_path: Path) -> None:
    with Fake() as floor:  # Nothing can be quicker than what the ceiling is measured with.
        record = measured(tmp_path, "-e", floor.endpoint, *QUICK, "--phase", "run")
    record["generator"]["ceiling"] = record["rate"]
    path = tmp_path / "result.json"
    path.write_text(json.dumps(record))
    loaded = result.load(path)
    result.judge_generator(loaded)
    assert "100% of this load's rate against a server" in loaded.generator.limits[-1]


# --- what comes out --------------------------------------------------------------------------


def test_table_csv_and_plots(endpoint: str, tmp_path: Path) -> None:
    names = {suffix: tmp_path / f"result.{suffix}" for suffix in ("json", "csv", "png", "svg")}
    run = ("-e", endpoint, *QUICK, "--csv", names["csv"])
    table = bench(*run, "--name", "first", "--plot", names["png"], "--json", names["json"]).stdout
    bench(*run, "--name", "second", "--plot", names["svg"])
    assert re.search(r"^  latency +count +mean +p50 .* p99.99 +max$", table, re.M)
    assert re.search(r"^  all +60 ", table, re.M)
    assert "closed loop, 4 connections, 1 in flight on each" in table
    assert "policy never" in table
    with open(names["csv"], newline="") as file:
        rows = list(csv.DictReader(file))
    assert Counter((row["name"], row["kind"]) for row in rows) == {
        (name, kind): 1 for name in ("first", "second") for kind in ("GET", "PUT", "all")
    }
    assert names["png"].read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in names["svg"].read_bytes()

    other = tmp_path / "other.json"
    bench("-e", endpoint, *QUICK, "--name", "other", "--pipeline", "2", "--json", other)
    compared = bench("compare", names["json"], other, "--plot", tmp_path / "both.svg").stdout
    assert re.search(r"^ +A: first +B: other +B / A$", compared, re.M)
    assert "1 in flight on each / closed loop, 4 connections, 2 in flight on each" in compared
    assert "server policy" not in compared
    assert (tmp_path / "both.svg").exists()


def test_sweep_finds_where_a_server_is_saturated(tmp_path: Path) -> None:
    with Fake(lambda _: threading.Event().wait(0.01)) as slow:  # 100 requests per second at most.
        done = bench(
            "sweep", "-e", slow.endpoint, "--phase", "run", "--rates", "1000,10",
            "--duration", "0.5", "--clients", "2", "--ceiling", "0",
            "--json", tmp_path / "sweep.json", "--plot", tmp_path / "sweep.svg",
        )  # fmt: skip
    low, high = json.loads((tmp_path / "sweep.json").read_text())["results"]
    assert (low["job"]["rate"], high["job"]["rate"]) == (10, 1000)
    assert high["unsent"] > 0
    assert re.search(r"^  1,000 .* no ", done.stdout, re.M), done.stdout
    assert (tmp_path / "sweep.svg").exists()


class Swept:
    """A sweep of a server that serves ``most`` operations per second, by the results it would give.

    Args:
        template: of the results.
        most: the rates that are served.
        closed_loop: what a closed loop reached.
        busy: tries, counted from 0, at which the machine did something else.
    """

    def __init__(
        self, template: Result, most: float, closed_loop: float, busy: set[int] | None = None
    ) -> None:
        self._template = template
        self._most = most
        self._closed_loop = closed_loop
        self._busy = busy or set()
        self.tries: list[float] = []

    def run(self, rates: list[float] | None = None) -> tuple[list[float], float | None]:
        """The rates of the results, and the saturation point."""
        results = sweep.sweep(self._template.job, rates, self._measure)
        return [result.job.rate for result in results], sweep.saturation(results)

    def _measure(self, job: LoadJob, _name: str) -> Result:
        if not job.rate:
            return msgspec.structs.replace(self._template, rate=self._closed_loop)
        served = job.rate <= self._most and len(self.tries) not in self._busy
        self.tries.append(job.rate)
        return msgspec.structs.replace(
            self._template, job=job, operations=100, failed=0, lost=0, unsent=0 if served else 50
        )


@pytest.fixture(scope="module")
def template(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Result:
    path = tmp_path_factory.mktemp("template") / "result.json"
    bench("-e", endpoint, "--operations", "1", "--clients", "1", "--ceiling", "0", "--json", path)
    return result.load(path)


def test_sweep_goes_on_until_a_rate_is_not_served(template: Result) -> None:
    """A closed loop that met a busy moment says little."""
    rates, saturation = Swept(template, most=5_000, closed_loop=1_000).run()
    assert rates == sorted(set(rates))
    assert rates[-2] == saturation
    assert saturation <= 5_000 < rates[-1]

    rates, saturation = Swept(template, most=10**9, closed_loop=1_000).run()
    assert len(rates) == sweep.MOST  # Of a server without a limit, it is enough at some time.
    assert rates[-1] == saturation


def test_sweep_is_not_deceived_by_a_busy_moment(template: Result) -> None:
    swept = Swept(template, most=300, closed_loop=0, busy={0, 2, 3})
    assert swept.run([400, 100, 200, 300, 500]) == ([100, 200, 300, 400, 500], 300)
    assert swept.tries == [100, 100, 200, 200, 200, 300, 400, 400, 400, 500]

    swept = Swept(template, most=300, closed_loop=0, busy={0, 1, 2})
    assert swept.run([100, 200]) == ([100, 200], None)


def test_plots_say_how_to_install_matplotlib(tmp_path: Path) -> None:
    hidden = "import sys; sys.modules['matplotlib'] = None; from zkv.bench.main import main; "
    done = subprocess.run(
        [sys.executable, "-c", f"{hidden}sys.exit(main(['--plot', 'x.png']))"],
        env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{shlex.quote(sys.executable)} -m pip install matplotlib" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--clients", "0"], "0 is not 1 or more"),
        (["--clients", "2", "--processes", "3"], "2 clients are too few for 3 processes"),
        (["--operations", "2", "--processes", "3"], "2 operations are too few for 3 processes"),
        (["--reads", "1.5"], "1.5 is not from 0 to 1"),
        (["--ycsb", "a", "--batch", "2"], "--batch cannot be used with --ycsb"),
        (["--fields", "2"], "--fields needs --ycsb"),
        (["--verify", "--reads", "1"], "--reads cannot be used with --verify"),
        (["--fsync", "never"], "--start"),
        (["--json", "/nowhere/at/all.json"], "/nowhere/at/all.json: there is no such directory"),
        (["--plot", "x.pdf"], "the name of a picture must end in .png or .svg"),
        (["--start", "inproc", "--processes", "2"], "--processes 1"),
        (["-e", "tcp://nowhere"], "tcp://nowhere"),
        (["compare", "nothing.json", "nothing.json"], "nothing.json: No such file"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments: list[str], complaint: str) -> None:
    done = bench(*arguments, status=2)
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result, "ASK_LIMIT", 0.1)
    (port,) = free_ports(1)
    done = bench("-e", f"tcp://127.0.0.1:{port}", *QUICK, "--phase", "run", status=2)
    assert done.stderr.startswith(f"zkv-bench: no zkv server at tcp://127.0.0.1:{port}")


def test_a_reader_who_has_enough_is_no_error_to_tell(endpoint: str) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            command("-e", endpoint, *QUICK), env=environment(), stdout=write,
            stderr=subprocess.PIPE, text=True, timeout=LIMIT, check=False,
        )  # fmt: skip
    finally:
        os.close(write)
    assert done.stderr == ""


def test_progress_on_a_terminal(endpoint: str) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command("-e", endpoint, "--duration", "60", "--clients", "2", "--ceiling", "0"),
        env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    try:
        seen = b""
        while not re.search(rb"[\d,]+ ops/s  p50 .*p99 .*errors 0  \d+ s left", seen):
            seen += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)  # An interrupt ends the run, not the report.
        while True:
            try:
                if not os.read(ours, 4096):
                    break
            except OSError:  # Linux: the other side has closed.
                break
        printed, _ = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert process.returncode == 0
    assert b"  latency " in printed


# --- a server that does as it is told --------------------------------------------------------


class Fake:
    """A server in a thread: answers with ``answer(request, reply)``, which may also dawdle.

    The replies are those of the server at ``behind``, if there is one. Use as a context manager.
    """

    def __init__(
        self,
        dawdle: Callable[[Message], object] = lambda _: None,
        distort: Callable[[Message, Message], None] = lambda _request, _reply: None,
        behind: str = "",
    ) -> None:
        self._dawdle = dawdle
        self._distort = distort
        self._behind = behind
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self._control = self._context.socket(zmq.PAIR)
        self._control.bind("inproc://stop")
        self._stop = self._context.socket(zmq.PAIR)
        self._stop.connect("inproc://stop")
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Fake:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.send(b"")
        self._thread.join()
        for each in (self._socket, self._control, self._stop):
            each.close()
        self._context.term()

    def _serve(self) -> None:
        poller = zmq.Poller()
        for each in (self._socket, self._control):
            poller.register(each, zmq.POLLIN)
        behind = Raw(self._behind) if self._behind else None
        while self._control not in dict(poller.poll()):
            *envelope, body = self._socket.recv_multipart()
            request = unpack(body)
            self._dawdle(request)
            if behind is not None:
                reply = unpack(behind.exchange(body))
                self._distort(request, reply)
            else:
                reply = {"ok": True, "rev": 1, "version": "0", "keys": 0, "durability": {}}
                reply |= {"durability": {"fsync": "never"}, "stats": {}}
                if "id" in request:
                    reply["id"] = request["id"]
            self._socket.send_multipart([*envelope, pack(reply)])
        if behind is not None:
            behind.close()


def test_open_loop_counts_a_stall_for_all_that_it_holds_up(tmp_path: Path) -> None:
    stalled: list[bool] = []

    def dawdle(request: Message) -> None:
        if request["op"] == "GET" and not stalled:
            stalled.append(True)
            time.sleep(0.5)  # The stall itself.

    with Fake(dawdle) as fake:
        record = measured(
            tmp_path, "-e", fake.endpoint, "--phase", "run", "--reads", "1", "--clients", "1",
            "--ceiling", "0", "--operations", "100", "--rate", "100",
        )  # fmt: skip
    check_record(record, 100)
    # 20 of the 100 were due in its first 200 ms: none of them can have taken less than 300.
    assert record["latencies"][-1]["percentiles"]["p90"] >= 300_000


def test_a_refusal_is_counted_with_its_code(endpoint: str, tmp_path: Path) -> None:
    record = measured(
        tmp_path, "-e", endpoint, "--operations", "3", "--reads", "0", "--clients", "1",
        "--value-bytes", 17 * 1024 * 1024, "--ceiling", "0", "--timeout", "60",
    )  # fmt: skip
    assert record["errors"] == {"TOO_LARGE": 3}
    assert (record["failed"], record["operations"]) == (3, 0)


LIES: dict[str, Callable[[Message, Message], None]] = {
    "a stale read": lambda request, reply: (
        reply.update(rev=reply["rev"] - 1) if request["op"] == "GET" and reply["ok"] else None
    ),
    "another value": lambda request, reply: (
        reply.update(value=b"other") if request["op"] == "GET" and reply["ok"] else None
    ),
    "a lost key": lambda request, reply: (
        reply.update(values=[None] * 4, revs=[0] * 4) if len(request.get("keys", [])) == 4 else None
    ),
    "a counter that counts twice": lambda request, reply: (
        reply.update(value=reply["value"] + 1) if request["op"] == "INCR" else None
    ),
    "a revision that comes again": lambda request, reply: (
        reply.update(rev=1) if request["op"] == "INCR" else None
    ),
    "a refusal": lambda request, reply: (
        reply.update(ok=False, code="WRONG_TYPE", retry=False) if request["op"] == "PUT" else None
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_verify_finds_wrong_answers(lie: str, endpoint: str, tmp_path: Path) -> None:
    with Fake(distort=LIES[lie], behind=endpoint) as liar:
        record = measured(
            tmp_path, "-e", liar.endpoint, "--verify", *CHECKED, "--operations", "300", status=1
        )
    assert record["wrong_count"] > 0
    assert record["wrong"]


def test_verify_finds_an_increment_that_was_lost(endpoint: str, tmp_path: Path) -> None:
    """The clients cannot see it in their replies: only the sum of all of them tells."""

    def distort(request: Message, reply: Message) -> None:
        if request["op"] == "MGET" and "shared" in request["keys"][0]:
            reply["values"] = [(reply["values"][0] or 0) - 1]

    with Fake(distort=distort, behind=endpoint) as liar:
        record = measured(
            tmp_path, "-e", liar.endpoint, "--verify", *CHECKED, "--operations", "300", status=1
        )
    assert re.match(r"counter bench:verify:.*: it is \d+, but \d+ was added", record["wrong"][0])


# --- a server that dies ----------------------------------------------------------------------


@pytest.mark.parametrize("verify", [True, False], ids=["verify", "plain"])
def test_a_run_outlives_its_server_and_tells_the_gap(verify: bool, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    path = tmp_path / "result.json"
    flags = ("--endpoint", f"tcp://127.0.0.1:{port}", "--fsync", "never")
    with ServerProcess(tmp_path / "server", *flags) as server:
        arguments = [
            "-e", server.endpoint, "--duration", "60", "--timeout", "0.2", "--clients", "4",
            "--ceiling", "0", "--json", str(path),
            *(["--verify"] if verify else ["--reads", "0", "--phase", "run"]),
        ]  # fmt: skip
        process = subprocess.Popen(command(*arguments), env=environment(), stdout=subprocess.PIPE)
        try:
            wait_for_writes(server, 200)
            server.kill()
            time.sleep(0.5)  # The gap itself.
            server.start()
            wait_for_writes(server, 200)
            process.send_signal(signal.SIGINT)
            printed, _ = process.communicate(timeout=2 * LIMIT)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 0, printed.decode()
    record = json.loads(path.read_text())
    assert record["gap"] >= 0.5
    assert "longest gap without any reply" in printed.decode()
    if verify:
        assert record["resent"] > 0
        assert record["lost"] == 0
        assert "all answers were right" in printed.decode()
    else:
        assert record["lost"] > 0


def wait_for_writes(server: ServerProcess, count: int) -> None:
    """Until so many more have been done."""
    with Raw(server.endpoint) as client:
        first = client.ok(op="INFO")["rev"]
        while client.ok(op="INFO")["rev"] < first + count:
            pass


# --- figures ---------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2**45), min_size=1, max_size=200))
def test_percentiles_are_right_to_three_digits(values: list[int]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    values.sort()
    shares = (0.0, 0.5, 0.9, 0.99, 0.9999, 1.0)
    for share, found in zip(shares, histogram.percentiles(shares), strict=True):
        exact = next(v for at, v in enumerate(values, 1) if at >= share * len(values))
        assert exact <= found <= exact * 1.001


@given(st.integers(0, 2**60))
def test_buckets_lie_side_by_side(value: int) -> None:
    number = bucket(value)
    assert value <= upper_end(number)
    assert number == 0 or upper_end(number - 1) < value


def test_zipfian_ranks_have_their_shares() -> None:
    keys = Keys("latest", 1000, random.Random(1), 0, 1)  # Unscattered: rank 0 is the newest.
    drawn = Counter(keys.draw() for _ in range(100_000))
    zeta = sum(rank**-0.99 for rank in range(1, 1001))
    for rank in (1, 2, 10, 100):
        expected = 100_000 * rank**-0.99 / zeta
        assert drawn[1000 - rank] == pytest.approx(expected, rel=0.15), rank


def test_latest_draws_what_was_inserted_and_nothing_that_was_not() -> None:
    keys = Keys("latest", 10, random.Random(1), 1, 3)
    first, second = keys.insert(), keys.insert()
    assert (first, second) == (11, 14)  # Every third behind the loaded ones is this process's.
    keys.confirm(second)
    assert {keys.draw() for _ in range(300)} <= set(range(10))
    keys.confirm(first)
    assert Counter(keys.draw() for _ in range(1000)).most_common(1)[0][0] == second


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("count", [1, 2, 3, 1000])
def test_keys_stay_within_their_bounds(distribution: str, count: int) -> None:
    keys = Keys(distribution, count, random.Random(5), 0, 1)
    drawn = {keys.draw() for _ in range(3000)}
    assert drawn <= set(range(count))
    assert len(drawn) >= count // 3


def test_the_help_names_every_workload_and_command() -> None:
    text = bench("--help").stdout
    for word in ("sweep", "compare", *(f"  {name}  " for name in YCSB)):
        assert word in text
    assert (ROOT / "zkv/bench/floor.c").exists()


def test_a_process_of_the_load_ends_when_whoever_started_it_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while nobody answers yet: a Ctrl-C may come before the process is known to be killed."""
    monkeypatch.setattr(generator, "CONNECT_LIMIT", 1e9)
    ours, theirs = multiprocessing.Pipe()
    job = LoadJob(target=LoadTarget(endpoint=f"ipc://{tmp_path / 'nobody'}"), clients=1)
    process = threading.Thread(target=generator._work, args=(job, 0, theirs), daemon=True)
    process.start()

    ours.close()

    process.join(LIMIT)
    assert not process.is_alive()
