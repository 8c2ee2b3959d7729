"""Whatever stands on a command line, in a file or behind a descriptor: no tool ends in a traceback.

Arguments and files are generated for every command of the three tools, which run in this process.
A few runs as processes show what only a process has: its standard streams.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import FREE_PORT, LIMIT, ROOT, Raw, ServerInProcess, environment
from zkv.bench import generator, measure
from zkv.bench import main as bench
from zkv.bench.connections import BenchError
from zkv.cli import client as cli
from zkv.cli import main as server_tool
from zkv.cli import serving
from zkv.cli.arguments import COMMANDS
from zkv.errors import StartupError

PYTHON_SAYS: Final = re.compile(
    r"Traceback|a bug|codec can't|sys\.set_int|Exceeds the limit|invalid literal|Expecting value"
    r"|object has no attribute|not subscriptable|embedded null|unhashable|recursion|NoneType"
    r"|too large to convert|out of range: |surrogates not allowed|<class|_positive|_share|_number"
)
"""Words of Python's that are none for a user."""
MANY: Final = settings(
    max_examples=30, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip

HUGE: Final = "an int that Python does not print"

digits = st.sampled_from(["9" * 19, "9" * 23, "9" * 400, "1" + "0" * 5000, "-" + "9" * 30])
words = st.one_of(
    digits,
    st.sampled_from([
        "", "-", "--", "nan", "inf", "-inf", "1e999", "-1", "0", "1", "1e-320", "0x10", "1_0", " 1",
        "none", "\udcff", "\udcff\udc80x", "\ufeff", "\ufeffa", "x" * 3000, "/", ".",
        "/dev/null", "--json", "--resume", "--nonsense", "-x", "{", "[", "[]", "null", '"\\ud800"',
        '{"ops": [{"op": "PUT"}]}', '{"if": 1}', "[" * 3000, "tcp://127.0.0.1:0", "\n", "\x1b[31m",
        "1" + "," * 40, "ü", "\U0001f600", "$x_{", "end", "bash", "5m", "1h30m",
    ]),
    st.integers().map(str),
    st.floats().map(str),
    st.text(st.characters(exclude_characters="\0"), max_size=20),
)  # fmt: skip
"""Arguments, as a system can pass them: without NUL."""
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from([2**63, 2**64, -(2**63) - 1, 10**330, HUGE]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)  # fmt: skip


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode().replace(f'"{HUGE}"'.encode(), b"1" + b"0" * 5000)


class Done:
    """What a tool has printed, and its exit status."""

    def __init__(
        self, main: Callable[[list[str]], int], arguments: list[str], data: bytes = b""
    ) -> None:
        printed, said = io.BytesIO(), io.BytesIO()
        out = io.TextIOWrapper(printed, encoding="utf-8", errors="surrogateescape")
        err = io.TextIOWrapper(said, encoding="utf-8", errors="backslashreplace")
        stdin = sys.stdin
        sys.stdin = io.TextIOWrapper(io.BytesIO(data))
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                self.status = status_of(main, arguments)
                out.flush()
                err.flush()
        finally:
            sys.stdin = stdin
        self.printed = printed.getvalue()
        self.said = said.getvalue().decode()
        self._arguments = arguments

    def is_well(self) -> None:
        assert self.status in {0, 1, 2, 3}, self.said
        own = self.said  # Without what it repeats.
        for argument in filter(None, self._arguments):
            own = own.replace(argument, "...")
        assert not PYTHON_SAYS.search(own), self.said
        if self.status >= 2:
            assert self.said.strip()


def status_of(main: Callable[[list[str]], int], arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as error:
        code = error.code or 0
    assert isinstance(code, int)
    return code


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerInProcess]:
    directory = tmp_path_factory.mktemp("data") / "data"
    with ServerInProcess(directory, server={"feed": FREE_PORT}) as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def somewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Words are names of files, too."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("here"))
    yield
    os.chdir(before)


# Arguments.

CLI_COMMANDS: Final = sorted(COMMANDS.keys() - {"end", "watch", "top"})
"""Without the one that ends the server; what it takes is nothing."""


@pytest.mark.parametrize("name", CLI_COMMANDS)
@MANY
@given(st.data())
def test_arguments_of_zkv_cli(server: ServerInProcess, name: str, data: st.DataObject) -> None:
    options = [n for each in COMMANDS[name].arguments if each.is_option for n in each.names]
    options = [n for n in options if n != "--watch"]  # Such a `get` goes on for ever.
    more = data.draw(st.lists(words | st.sampled_from([*options, "--json"]), max_size=5))
    Done(cli.main, ["-e", server.endpoint, "--timeout", "5", name, *more], b"input").is_well()


@pytest.mark.parametrize("option", ["--since", "--limit", "--prefix"])
@MANY
@given(word=words)
def test_arguments_of_watch(server: ServerInProcess, option: str, word: str) -> None:
    """Those that go on for ever unless they end."""
    with Raw(server.endpoint) as raw:
        raw.ok(op="PUT", key="k", value=1)
    more = ["--limit", "0"] if option != "--limit" else []
    given_ = ["-e", server.endpoint, "watch", option, word, *more]
    if option == "--limit" and word.strip().strip("-+_0123456789") == "":
        given_ += ["one", "too many"]
    Done(cli.main, given_).is_well()


@MANY
@given(st.sampled_from(["--interval", "--limit"]), words)
def test_arguments_of_top(server: ServerInProcess, option: str, word: str) -> None:
    more = ["--limit", "0"] if option != "--limit" else ["--interval", "0"]
    Done(cli.main, ["-e", server.endpoint, "top", option, word, *more]).is_well()


@MANY
@given(st.lists(words | st.sampled_from(["-e", "--timeout", "--version"]), max_size=4))
def test_arguments_before_the_command(server: ServerInProcess, more: list[str]) -> None:
    Done(cli.main, ["-e", server.endpoint, *more, "bogus"]).is_well()


SERVER_VERBS: Final = {
    "serve": ["--config", "--endpoint", "--feed", "--data-dir", "--fsync", "--workers"],
    "check": [], "repair": ["--yes"], "dump": ["--at-rev", "--log"], "backup": [], "restore": [],
    "doctor": ["--timeout", "--json", "--config"], "keygen": [], "user": [],
    "user add": ["--key", "--uid", "--read", "--write", "--admin", "--max-bytes", "--users"],
    "size": ["--keys", "--key", "--value", "--expiring", "--changes", "--config", "--json"],
    "user list": ["--users", "--config"], "user remove": ["--users", "--config"],
}  # fmt: skip


@pytest.mark.parametrize("name", SERVER_VERBS)
@MANY
@given(st.data())
def test_arguments_of_zkv(
    server: ServerInProcess, monkeypatch: pytest.MonkeyPatch, name: str, data: st.DataObject
) -> None:
    def never(*_: object) -> NoReturn:
        raise StartupError("the settings are good")

    monkeypatch.setattr(serving, "ServerCore", never)
    monkeypatch.setattr(serving, "raise_file_limit", lambda: None)
    more = data.draw(st.lists(words | st.sampled_from(SERVER_VERBS[name] or [""]), max_size=4))
    if name == "doctor":
        more = ["-e", "nonsense", *more]
    Done(server_tool.main, [*name.split(), *more], b"\xff").is_well()


BENCH_OPTIONS: Final = [
    "--rate", "--processes", "--clients", "--pipeline", "--batch", "--duration", "--operations",
    "--timeout", "--ycsb", "--phase", "--keys", "--value-bytes", "--reads", "--distribution",
    "--seed", "--fields", "--field-bytes", "--name", "--json", "--csv", "--plot", "--ceiling",
    "--verify", "--rates", "--start", "--fsync", "--rounds", "--seconds", "--only",
]  # fmt: skip


@pytest.fixture(scope="module")
def record(server: ServerInProcess, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The JSON of a run."""
    path = tmp_path_factory.mktemp("record") / "a.json"
    quick = ["--operations", "4", "--clients", "1", "--ceiling", "0", "--reads", "0.5"]
    done = Done(bench.main, ["-e", server.endpoint, *quick, "--keys", "10", "--json", str(path)])
    assert done.status == 0, done.said
    return path.read_bytes()


@pytest.mark.parametrize("name", ["run", "sweep", "compare"])
@MANY
@given(st.data())
def test_arguments_of_zkv_bench(
    server: ServerInProcess, monkeypatch: pytest.MonkeyPatch, name: str, data: st.DataObject
) -> None:
    def never(job: generator.LoadJob, *_: object) -> NoReturn:
        for process in range(min(2, job.processes)):
            job.share(job.clients, process)
        raise BenchError("understood")

    monkeypatch.setattr(generator, "run", never)
    monkeypatch.setattr(measure, "load_phase", lambda *_: 1.0)
    monkeypatch.setattr(measure, "ceiling", lambda *_: (0.0, ""))
    more = data.draw(st.lists(words | st.sampled_from(BENCH_OPTIONS), max_size=6))
    where = ["-e", server.endpoint] if name in {"run", "sweep"} else []
    if "--start" in more:
        more.remove("--start")
    Done(bench.main, [name, *where, *more] if name != "run" else [*where, *more]).is_well()


# Files.


def mangled(good: bytes) -> st.SearchStrategy[bytes]:
    """What was good, and is not quite."""
    return st.tuples(
        st.integers(0, len(good)), st.integers(0, 8), st.binary(max_size=8), st.booleans()
    ).map(lambda c: (b"\xef\xbb\xbf" if c[3] else b"") + good[: c[0]] + c[2] + good[c[0] + c[1] :])


texts = st.one_of(
    st.binary(max_size=60),
    junk.map(as_json),
    st.text(max_size=40).map(lambda text: text.encode("utf-8", "replace")),
    st.sampled_from([
        b"\xef\xbb\xbf", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe{\x00", b"1" * 5000, b"NaN",
        b"\xef\xbb\xbf\xef\xbb\xbf{}", b"\0", b'{"key": "\\ud800", "value": 1}', b'{"key": "a"',
    ]),
)  # fmt: skip


def field_of(known: list[str]) -> st.SearchStrategy[bytes]:
    """An object with some of the fields that are known, and anything in them."""
    return st.dictionaries(st.sampled_from(known), junk, max_size=5).map(as_json)


RECORD_FIELDS: Final = ["key", "value", "rev", "expires", "ttl", "$bin", "$ext", "$time", "$map"]
forms = st.dictionaries(
    st.sampled_from(["$bin", "$ext", "$time", "$float", "$map", "$x", "a"]), junk, max_size=1
)
records = st.fixed_dictionaries(
    {"key": st.just("a") | junk, "value": forms | junk},
    optional={"expires": junk, "ttl": junk, "rev": junk},
).map(as_json)


@MANY
@given(texts | field_of(RECORD_FIELDS) | records)
def test_lines_to_be_imported(server: ServerInProcess, data: bytes) -> None:
    Done(cli.main, ["-e", server.endpoint, "import"], data).is_well()


def packed(value: Any) -> bytes:
    try:
        return bytes(msgpack.packb(value))
    except (OverflowError, ValueError):
        return b"\xc1"


@MANY
@given(
    st.binary(max_size=40)
    | junk.map(packed)
    | st.fixed_dictionaries({"key": junk, "value": junk}, optional={"ttl": junk}).map(packed)
    | st.sampled_from([b"\x91" * 5000, b"\x82\xa3key\xa1a\xa5value" + b"\x91" * 2000 + b"\x01"])
)
def test_a_stream_to_be_imported(server: ServerInProcess, data: bytes) -> None:
    Done(cli.main, ["-e", server.endpoint, "import", "--format=msgpack"], data).is_well()


STATE: Final = ["source", "server", "format", "number", "offset", "digest", "rev", "prefix"]


@MANY
@given(texts | field_of(STATE), st.booleans())
def test_states(server: ServerInProcess, data: bytes, is_export: bool) -> None:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        fields = None
    if isinstance(fields, dict):  # Nearly good, so that more of it is looked at.
        near = {"source": "standard input", "server": server.endpoint, "format": "json"}
        data = as_json(fields | near | ({"prefix": "", "after": None} if is_export else {}))
    if is_export:
        Path("x.part").write_bytes(b"")
        Path("x.part.state").write_bytes(data)
        Done(cli.main, ["-e", server.endpoint, "export", "x", "--resume"]).is_well()
        return
    Path("state").write_bytes(data)
    Done(cli.main, ["-e", server.endpoint, "import", "--resume", "state"], b"\n" * 99).is_well()


@MANY
@given(texts | field_of(["if", "ops"]), st.booleans())
def test_transactions(server: ServerInProcess, data: bytes, is_input: bool) -> None:
    Path("txn").write_bytes(data)
    Done(cli.main, ["-e", server.endpoint, "txn", "-" if is_input else "txn"], data).is_well()


@MANY
@given(st.binary(max_size=80) | st.text(max_size=60).map(str.encode) | texts)
def test_lines_of_the_shell(server: ServerInProcess, data: bytes) -> None:
    script = b"".join(b"get " + line + b"\n" for line in data.splitlines())
    Done(cli.main, ["-e", server.endpoint], b"\xef\xbb\xbf" + script).is_well()


CONFIG: Final = b"""\
[server]
endpoints = ["tcp://127.0.0.1:*"]
workers = 2
[durability]
fsync = "never"
fsync_interval = 1.0
[limits]
max_batch = 100
"""


@MANY
@given(
    mangled(CONFIG)
    | texts
    | st.tuples(st.sampled_from(["server.workers", "limits.history", "log.level", "x"]), words).map(
        lambda pair: f"{pair[0]} = {pair[1]}".encode("utf-8", "replace")
    )
    | st.sampled_from([b"a = " + b"[" * 5000, b"a." * 3000 + b"a = 1", b"a = 1979-99-99"])
)
def test_configurations(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    def never(*_: object) -> NoReturn:
        raise StartupError("the settings are good")

    monkeypatch.setattr(serving, "ServerCore", never)
    monkeypatch.setattr(serving, "raise_file_limit", lambda: None)
    Path("config.toml").write_bytes(data)
    done = Done(server_tool.main, ["serve", "--config", "config.toml"])
    done.is_well()
    assert done.status == 2
    checked = Done(server_tool.main, ["config", "check", "config.toml"])
    checked.is_well()
    assert checked.status == (0 if "the settings are good" in done.said else 1), checked.said


USERS: Final = b"""\
[users.ann]  # the boss
uids = [1000, 1001]
read = [
    "a/", # here
]
admin = false

[users.bob]
write = ["{user}/"]
"""


@MANY
@given(
    mangled(USERS)
    | texts
    | st.tuples(st.sampled_from(["keys", "uids", "read", "admin", "max_bytes", "x"]), words).map(
        lambda pair: f"[users.ann]\n{pair[0]} = {pair[1]}".encode("utf-8", "replace")
    )
    | st.sampled_from([b"users.ann = " + b"[" * 5000, b"[users." + b"a." * 3000 + b"a]"])
)
def test_users(data: bytes) -> None:
    path = Path("users.toml")
    path.write_bytes(data)
    listed = Done(server_tool.main, ["user", "list", "--users", "users.toml"])
    listed.is_well()
    assert path.read_bytes() == data
    for words in (["add", "ann", "--uid", "7", "--read", "b/"], ["remove", "bob"]):
        done = Done(server_tool.main, ["user", *words, "--users", "users.toml"])
        done.is_well()
        if done.status == 0:  # Nothing is written that would be refused.
            assert Done(server_tool.main, ["user", "list", "--users", "users.toml"]).status == 0
        elif words[0] == "add":
            assert path.read_bytes() == data


@MANY
@given(st.data())
def test_records_of_the_bench(record: bytes, data: st.DataObject) -> None:
    """Also such as are nearly good: a field of them holds something else."""
    content = data.draw(st.sampled_from(["text", "mangled", "field"]))
    if content == "text":
        written = data.draw(texts)
    elif content == "mangled":
        written = data.draw(mangled(record))
    else:
        fields = json.loads(record)
        place = fields
        for _ in range(data.draw(st.integers(0, 3))):
            inner = [each for each in place.values() if isinstance(each, dict) and each]
            if not inner:
                break
            place = data.draw(st.sampled_from(inner))
        name = data.draw(st.sampled_from(sorted(place)))
        place[name] = data.draw(junk | st.sampled_from([[], {}, 0, "", "$_{", -1, 1e308]))
        written = as_json(fields)
    Path("a.json").write_bytes(written)
    Path("b.json").write_bytes(b"\xef\xbb\xbf" + record)
    plot = data.draw(st.sampled_from([[], ["--plot", "x.svg"]]))
    order = data.draw(st.permutations(["a.json", "b.json"]))
    Done(bench.main, ["compare", *order, *plot]).is_well()


@pytest.mark.parametrize("verb", ["check", "repair", "dump", "backup", "restore"])
@MANY
@given(data=st.binary(max_size=100))
def test_data_directories(verb: str, data: bytes) -> None:
    """A file in the place of a directory, and anything in the files of one."""
    Path("file").write_bytes(data)
    Path("dir/wal").mkdir(parents=True, exist_ok=True)
    Path("dir/snapshots").mkdir(exist_ok=True)
    Path("dir/wal/00000000000000000001.log").write_bytes(data)
    target = ["made"] if verb in {"backup", "restore"} else []
    for place in ("file", "dir"):
        Done(server_tool.main, [verb, place, *target], b"\xff\n").is_well()


# Standard streams.

STREAMS: Final = [
    ("zkv doctor -e {0} | true", {0}, ""),
    ("zkv doctor -e {0} >&-", {2}, "zkv: cannot print: standard output is closed\n"),
    ("zkv doctor -e {0} >/dev/full", {2}, "zkv: cannot print: No space left on device\n"),
    ("zkv doctor -e {0} 2>/dev/full >&-", {2}, ""),
    ("zkv doctor -e {0} 2>&- >&- <&-", {2}, ""),
    ("zkv --help >/dev/full", {0, 2}, None),
    ("zkv --help | true", {0}, ""),
    ("zkv --help >&- 2>&-", {0}, ""),
    ("zkv config >/dev/full", {2}, "zkv: cannot print: No space left on device\n"),
    ("zkv check nowhere 2>/dev/full", {1}, ""),
    ("zkv check nowhere >&-", {1}, "zkv: standard output is closed\n"),
    ("zkv nonsense 2>/dev/full", {2}, ""),
    ("zkv serve --config nowhere 2>/dev/full", {2}, ""),
    ("zkv-cli -e {0} get nokey 2>/dev/full", {1}, ""),
    ("zkv-cli -e {0} bogus 2>/dev/full", {2}, ""),
    ("zkv-cli -e {0} count >/dev/full", {2}, "zkv-cli: cannot print: No space left on device\n"),
    ("zkv-cli -e {0} watch --since 0 --limit 1 >/dev/full", {2}, None),
    ("f=$(mktemp) && zkv-cli -e {0} export $f >/dev/full; s=$?; rm $f; exit $s", {0}, None),
    ("zkv serve --config nowhere >/dev/full", {2}, "zkv: nowhere: No such file or directory\n"),
    ("zkv-cli -e {0} import <&-", {2}, "zkv-cli: standard input is closed\n"),
    ("zkv-cli -e {0} import 0>/dev/null", {2}, None),
    ("zkv-cli -e {0} 0>/dev/null", {2}, "zkv-cli: standard input: Bad file descriptor\n"),
    ("zkv-cli -e {0} put k - 0>/dev/null", {2}, "zkv-cli: standard input: Bad file descriptor\n"),
    ("zkv-cli --help | true", {0}, ""),
    ("zkv-bench --help >/dev/full", {0, 2}, None),
    ("zkv-bench --clients x 2>/dev/full", {2}, ""),
    ("zkv-bench -e {0} {1} >/dev/full", {2}, "zkv-bench: cannot print: No space left on device\n"),
    ("zkv-bench -e {0} {1} >&-", {2}, "zkv-bench: cannot print: standard output is closed\n"),
    ("zkv-bench -e {0} {1} 2>&- >&- <&-", {2}, ""),
    ("zkv-bench -e {0} {1} --name $'\\xff'", {2}, None),
    ("zkv-cli -e {0} watch --since 99999999999999999999999", {2}, None),
]  # fmt: skip


@pytest.mark.parametrize(("script", "statuses", "said"), STREAMS, ids=lambda part: str(part)[:60])
def test_standard_streams(
    server: ServerInProcess, script: str, statuses: set[int], said: str | None
) -> None:
    with Raw(server.endpoint) as raw:
        raw.ok(op="PUT", key="k", value=1)
    quick = "--operations 4 --clients 1 --ceiling 0 --reads 0"
    beside = environment() | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script.format(server.endpoint, quick)], env=beside, cwd=ROOT,
        stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    complaint = done.stderr.decode()
    assert done.returncode in statuses, complaint
    assert said is None or complaint == said
    assert not PYTHON_SAYS.search(complaint), complaint


INTERRUPTED_IMPORT: Final = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "zkv.streams":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""
INTERRUPTED_END: Final = """
import atexit, os, signal
atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))
"""


@pytest.mark.parametrize("moment", [INTERRUPTED_IMPORT, INTERRUPTED_END], ids=["import", "end"])
@pytest.mark.parametrize("program", ["zkv", "zkv-cli", "zkv-bench"])
def test_ctrl_c_outside_of_the_command(program: str, moment: str, tmp_path: Path) -> None:
    """Most of the time that a short command takes, it imports what it needs."""
    (tmp_path / "sitecustomize.py").write_text(moment)

    done = subprocess.run(
        [str(Path(sys.executable).with_name(program)), "--help"],
        env=environment() | {"PYTHONPATH": str(tmp_path)}, stdin=subprocess.DEVNULL,
        capture_output=True, timeout=LIMIT, check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip

    assert done.returncode == -signal.SIGINT
    assert done.stderr == b""
