"""Settings come from a file, the environment and flags; SIGHUP reads them again."""

from __future__ import annotations

import signal
import tomllib
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import pytest

import zkv
from tests.forking import run_zkv
from tests.support import ROOT, Raw, ServerProcess, eventually
from zkv import config
from zkv.config.schema import plain
from zkv.errors import ConfigError

FILE: Final = "[server]\nworkers = 3\n"
VARIABLE: Final = {"ZKV_CFG_SERVER__WORKERS": "4"}
FLAG: Final = ("--workers", "5")


def shown(
    directory: Path, *flags: str, env: dict[str, str] | None = None
) -> tuple[dict[str, Any], str]:
    """What ``zkv config`` prints: as TOML, and as text."""
    done = run_zkv("config", *flags, cwd=directory, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return tomllib.loads(done.stdout), done.stdout


def place(text: str, name: str) -> str:
    """Where a setting comes from, as ``zkv config`` tells."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name} = ")]
    return line.rpartition("  # ")[2]


# --- Where settings come from ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "env", "flags", "workers"),
    [
        (None, {}, (), 2),
        (FILE, {}, (), 3),
        (None, VARIABLE, (), 4),
        (FILE, VARIABLE, (), 4),
        (FILE, {}, FLAG, 5),
        (FILE, VARIABLE, FLAG, 5),
    ],
)
def test_flags_override_the_environment_and_that_the_file(
    tmp_path: Path, file: str | None, env: dict[str, str], flags: tuple[str, ...], workers: int
) -> None:
    with (
        ServerProcess(tmp_path, *flags, config=file, env=env) as server,
        Raw(server.endpoint) as client,
    ):
        assert client.ok(op="INFO")["stats"]["workers"] == workers


KEY: Final = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
OTHER_TEXT: Final[dict[str, tuple[str, Any]]] = {
    "server.endpoints": ("ipc://a , ipc://b", ["ipc://a", "ipc://b"]),
    "server.feed": ("ipc://feed", "ipc://feed"),
    "server.ipc_mode": ("0660", "0660"),
    "security.secret_key_file": ("a.key, b.key", ["a.key", "b.key"]),
    "limits.max_memory": ("1048576", 1_048_576),
    "replication.server_keys": (f"{KEY},{KEY}", [KEY, KEY]),
    "replication.machines": (
        "tcp://127.0.0.1:5555 , tcp://b:1",
        ["tcp://127.0.0.1:5555", "tcp://b:1"],
    ),
    "replication.advertise": ("tcp://a:1 , tcp://b:1", ["tcp://a:1", "tcp://b:1"]),
    "replication.advertise_feed": ("tcp://a:2", "tcp://a:2"),
    "store.url": ("etcd://a:1,b:1/zkv", "etcd://a:1,b:1/zkv"),
    "store.member": ("a.b_c-1", "a.b_c-1"),
    "metrics.endpoint": ("http://127.0.0.1:1", "http://127.0.0.1:1"),
}
"""Of settings for which not any text will do: the text of a variable, and the value."""
COMPANIONS: Final = {
    "store.etcd.cert": ("store.etcd.key", "store.etcd.ca"),
    "store.etcd.key": ("store.etcd.cert", "store.etcd.ca"),
    "store.etcd.user": ("store.etcd.password_file",),
    "store.etcd.password_file": ("store.etcd.user",),
}
"""Settings without which another one is refused."""


def other(setting: config.Setting) -> tuple[str, Any]:
    """The text of a variable, and the value that it stands for, which is not the default."""
    base, _ = plain(setting.kind)
    if get_origin(base) is Literal:
        value = next(each for each in get_args(base) if each != setting.default)
        return value, value
    if base is bool:
        return str(not setting.default).lower(), not setting.default
    if base is str:
        return f'a "{setting.name}"', f'a "{setting.name}"'
    return str(setting.default + 1), setting.default + 1


@pytest.mark.parametrize("name", config.SETTINGS)
def test_every_setting_can_come_from_the_environment(tmp_path: Path, name: str) -> None:
    setting = config.SETTINGS[name]
    text, value = OTHER_TEXT[name] if name in OTHER_TEXT else other(setting)
    assert setting.variable == f"ZKV_CFG_{name.replace('.', '__').upper()}"

    companions = COMPANIONS.get(name, ())
    env = {config.SETTINGS[each].variable: "x" for each in companions}

    tables, printed = shown(tmp_path, env=env | {setting.variable: text})

    assert attrgetter(name)(config.build(tables)) == value
    assert place(printed, setting.name) == setting.variable
    others = config.SETTINGS.keys() - {name, *companions}
    assert {place(printed, config.SETTINGS[each].name) for each in others} == {"default"}


@pytest.mark.parametrize(
    ("variable", "text", "why"),
    [
        ("SERVER__WORKER", "2", "unknown setting; did you mean ZKV_CFG_SERVER__WORKERS?"),
        ("server__workers", "2", "unknown setting; did you mean ZKV_CFG_SERVER__WORKERS?"),
        ("WORKERS", "2", "unknown setting; did you mean ZKV_CFG_SERVER__WORKERS?"),
        ("XYZ", "2", "unknown setting; the names are ZKV_CFG_SECTION__NAME, as in config.toml"),
        ("", "2", "unknown setting"),
        (
            "SERVER__WORKERS", "two",
            'server.workers: expected a whole number from 1 to 256, got "two"',
        ),
        ("SERVER__WORKERS", "0", "expected a whole number from 1 to 256, got 0"),
        ("SERVER__WORKERS", "", 'expected a whole number from 1 to 256, got ""'),
        ("SERVER__WORKERS", "1\nx = 2", "expected a whole number from 1 to 256, got"),
        ("SERVER__WORKERS", "9" * 5000, "expected a whole number from 1 to 256, got"),
        ("SERVER__WORKERS", "[" * 5000, "expected a whole number from 1 to 256, got"),
        ("LOG__REQUESTS", "yes", 'log.requests: expected true or false, got "yes"'),
        ("LOG__LEVEL", "info", 'expected one of "DEBUG", "INFO", "WARNING", "ERROR", got "info"'),
        ("DURABILITY__DATA_DIR", "", 'expected text that is not empty, such as "var", got ""'),
        ("SERVER__ENDPOINTS", "ipc://a,nonsense", "server.endpoints: endpoint 'nonsense'"),
        ("LIMITS__MAX_VALUE_BYTES", "999999999", "limits.max_message_bytes (67108864) is smaller"),
        ("STORE__ETCD__CA", "~/ca", "store.etcd.ca: '~/ca' begins with ~"),
        ("STORE__ETCD__CAA", "x", "unknown setting; did you mean ZKV_CFG_STORE__ETCD__CA?"),
        ("STORE_ETCD_CERT", "x", "unknown setting; did you mean ZKV_CFG_STORE__ETCD__CERT?"),
        ("STORE__ETCD", "x", "unknown setting; did you mean ZKV_CFG_STORE__"),
    ],
)  # fmt: skip
def test_a_bad_variable_is_named(tmp_path: Path, variable: str, text: str, why: str) -> None:
    for command in ("config", "serve"):
        done = run_zkv(command, cwd=tmp_path, env={f"ZKV_CFG_{variable}": text})
        assert done.returncode == 2
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith(f"zkv: ZKV_CFG_{variable}: ")
        assert why in done.stderr


def test_a_bad_setting_is_refused_even_if_another_source_replaces_it(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[server]\nworkers = 0\n")
    done = run_zkv("config", "--config", "c.toml", *FLAG, cwd=tmp_path, env=VARIABLE)
    assert done.returncode == 2
    assert done.stderr.startswith("zkv: c.toml:2: server.workers: expected a whole number")


def test_how_settings_relate_is_judged_once_all_are_known(tmp_path: Path) -> None:
    """A large value in the file is good if the environment makes room for it."""
    (tmp_path / "c.toml").write_text("[limits]\nmax_value_bytes = 100_000_000\n")
    room = {
        "ZKV_CFG_LIMITS__MAX_MESSAGE_BYTES": "200000000",
        "ZKV_CFG_LIMITS__MAX_REPLY_BYTES": "0xBEBC200",
    }
    tables, _ = shown(tmp_path, "--config", "c.toml", env=room)
    assert tables["limits"]["max_message_bytes"] == 200_000_000

    room["ZKV_CFG_LIMITS__MAX_MESSAGE_BYTES"] = "70_000_000"
    done = run_zkv("config", "--config", "c.toml", cwd=tmp_path, env=room)
    assert done.stderr.startswith("zkv: ZKV_CFG_LIMITS__MAX_MESSAGE_BYTES, c.toml:2: limits.max_me")


@pytest.mark.parametrize(
    ("file", "env", "feed", "origin"),
    [
        ("", {}, "tcp://127.0.0.1:*", "--endpoint"),
        ('[server]\nfeed = "ipc://feed"\n', {}, "tcp://127.0.0.1:*", "--endpoint"),
        ('[server]\nfeed = ""\n', {}, "", "c.toml:2"),
        ("", {"ZKV_CFG_SERVER__FEED": ""}, "", "ZKV_CFG_SERVER__FEED"),
    ],
)
def test_the_feed_of_a_server_whose_endpoint_is_a_flag(
    tmp_path: Path, file: str, env: dict[str, str], feed: str, origin: str
) -> None:
    (tmp_path / "c.toml").write_text(file)
    tables, text = shown(tmp_path, "--config", "c.toml", "--endpoint", "ipc://x", env=env)
    assert tables["server"]["feed"] == feed
    assert place(text, "feed") == origin


def test_a_server_inside_a_program_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZKV_CFG_LIMITS__MAX_BATCH", "5")
    monkeypatch.setenv("ZKV_CFG_NONSENSE", "")
    with zkv.Server() as server, zkv.Client(server.endpoint) as client:
        assert client.info()["limits"]["max_batch"] == 10_000


# --- zkv config ------------------------------------------------------------------------------


def test_what_it_prints_is_a_file_with_the_same_settings(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        '[durability]\ndata_dir = "\\"quoted\\" \\\\ \\u0001\\u007f\\n\\t é 😀"\n'
        'fsync_interval = 1e-7\nsnapshot_interval = 3\n[server]\nendpoints = ["ipc://é", "tcp://127.0.0.1:*"]\n'
    )
    tables, text = shown(tmp_path, "--config", "c.toml", *FLAG, env={"ZKV_CFG_LOG__FILE": "#[x]\\"})
    assert tables["durability"]["data_dir"] == '"quoted" \\ \x01\x7f\n\t é 😀'
    (tmp_path / "again.toml").write_text(text, encoding="utf-8")

    again, text = shown(tmp_path, "--config", "again.toml")

    assert again == tables
    assert place(text, "workers").startswith("again.toml:")


def test_it_tells_the_line_of_each_setting(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        "# A comment.\n"
        "limits.max_batch = 7\n"
        "durability = { fsync = 'never' }\n"
        "\n"
        "[ server ]\n"
        "endpoints = [ # ]\n"
        "  'ipc://a',\n"
        "  'ipc://workers = 3',\n"
        "]\n"
        '"workers" = 3 # workers = 4\n'
        "\n"
        "[log]\n"
        "file = '''\n"
        'format = "text"\n'
        "'''\n"
        "format = 'json'"
    )
    tables, text = shown(tmp_path, "--config", "c.toml")
    lines = {"max_batch": 2, "fsync": 3, "endpoints": 6, "workers": 10, "file": 13, "format": 16}
    for name, line in lines.items():
        assert place(text, name) == f"c.toml:{line}"
    assert tables["log"]["file"] == 'format = "text"\n'
    assert place(text, "level") == "default"


def test_a_name_that_is_no_comment(tmp_path: Path) -> None:
    (tmp_path / "a\nb\udcff.toml").write_text(FILE)
    tables, text = shown(tmp_path, "--config", "a\nb\udcff.toml")
    assert tables["server"]["workers"] == 3
    assert place(text, "workers") == "a\\x0ab\\xdcff.toml:2"


def test_check_of_a_good_file(tmp_path: Path) -> None:
    """By itself: the environment does not matter."""
    done = run_zkv(
        "config", "check", str(ROOT / "config.toml"), cwd=tmp_path, env={"ZKV_CFG_X": "1"}
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{ROOT / 'config.toml'}: good\n"


def test_check_tells_all_faults(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[server]\nworkers = 0\nxyz = 1\n[log]\nlevel = 5\n[logs]\n")
    done = run_zkv("config", "check", "c.toml", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    begins = [": ".join(line.split(": ")[:3]) for line in done.stderr.splitlines()]
    assert begins == [
        "zkv: c.toml:2: server.workers",
        "zkv: c.toml:3: server",
        "zkv: c.toml:5: log.level",
        "zkv: c.toml:6: unknown setting 'logs'; did you mean log?",
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[limits]\nmax_message_bytes = 2000\n", "c.toml:2: limits.max_message_bytes (2000) is"),
        ("[server\n", "c.toml: not TOML: "),
        (None, "c.toml: No such file or directory"),
    ],
)
def test_check_of_a_bad_file(tmp_path: Path, text: str | None, why: str) -> None:
    if text is not None:
        (tmp_path / "c.toml").write_text(text)
    done = run_zkv("config", "check", "c.toml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"zkv: {why}")


def test_check_takes_no_flags(tmp_path: Path) -> None:
    done = run_zkv("config", *FLAG, "--feed", "", "check", "c.toml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "zkv: config check takes a file only, not --feed, --workers\n"


# --- Tables in tables ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("[store.etcd]\nca = 'a.pem'\n", 2),
        ("[store]\nreads = 'confirm'\n\n[ store . 'etcd' ] # x\n\nca = 'a.pem'\n", 6),
        ("[store]\nreads = 'confirm'\netcd.ca = 'a.pem'\n", 3),
        ("[store]\netcd = { ca = 'a.pem' }\n", 2),
        ("\nstore = { etcd = { ca = 'a.pem' } }\n", 2),
        ("store.etcd.ca = 'a.pem'\n", 1),
        ("# x\nstore.etcd = { ca = 'a.pem' }\n", 2),
    ],
)
def test_a_table_in_a_table_may_be_written_in_any_way(tmp_path: Path, file: str, line: int) -> None:
    (tmp_path / "c.toml").write_text(file)
    tables, text = shown(tmp_path, "--config", "c.toml")
    assert tables["store"]["etcd"]["ca"] == "a.pem"
    assert place(text, "ca") == f"c.toml:{line}"
    (tmp_path / "again.toml").write_text(text)
    assert shown(tmp_path, "--config", "again.toml")[0] == tables


@pytest.mark.parametrize(
    ("file", "faults"),
    [
        (
            "[store.etcd]\nca = 5\ncrt = 'x'\n[store.etdc]\n[store.etcd.ca2]\n",
            [
                'c.toml:2: store.etcd.ca: expected text in quotes, got 5',
                "c.toml:3: store.etcd: unknown setting 'crt'; did you mean cert?",
                "c.toml:5: store.etcd: unknown setting 'ca2'; did you mean ca?",
                "c.toml:4: store: unknown setting 'etdc'; did you mean etcd?",
            ],
        ),
        (
            "[store]\netcd = 'etcd://h:1/a'\n",
            ["c.toml:2: store.etcd: expected a table, that is, a line [store.etcd] with its"],
        ),
        ("[[store.etcd]]\nca = 'x'\n", ["c.toml:1: store.etcd: expected a table, that is"]),
        ("[store.etcd.ca]\nx = 1\n", ["c.toml:1: store.etcd.ca: expected text in quotes, got {"]),
        (
            "store.etcd.ca.x = 1\nstore.etcd.cert = 1",
            ["c.toml:1: store.etcd.ca: expected text", "c.toml:2: store.etcd.cert: expected text"],
        ),
        (
            "[store]\nca = 'x'\n",
            ["c.toml:2: store: unknown setting 'ca': it belongs into the table [store.etcd]"],
        ),
        (
            "password_file = 'x'",
            ["c.toml:1: unknown setting 'password_file': it belongs into the table [store.etcd]"],
        ),
        ("[etcd]\n", ["c.toml:1: unknown setting 'etcd': it belongs into the table [store]"]),
        ("['store.etcd']\nca = 'x'\n", ["c.toml:1: unknown setting 'store.etcd'; did you mean"]),
        ("[store]\n'etcd.ca' = 'x'\n", ["c.toml:2: store: unknown setting 'etcd.ca'; "]),
        ("store" + ".etcd" * 5000 + " = 1\n", ["c.toml:1: store.etcd: unknown setting 'etcd'; "]),
        (
            "server.workers" + ".a" * 5000 + " = 1\n",
            ["c.toml:1: server.workers: expected a whole number from 1 to 256, got what is nested"],
        ),
    ],
)  # fmt: skip
def test_a_fault_in_a_table_in_a_table_is_named(
    tmp_path: Path, file: str, faults: list[str]
) -> None:
    (tmp_path / "c.toml").write_text(file)
    done = run_zkv("config", "check", "c.toml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert len(lines) == len(faults)
    for line, fault in zip(lines, faults, strict=True):
        assert line.startswith(f"zkv: {fault}")


def test_one_key_of_a_table_in_a_table_is_replaced() -> None:
    old = config.build({"store": {"lease": 7, "etcd": {"ca": "a", "cert": "b", "key": "c"}}})
    new = config.override(old, store={"etcd": {"ca": "d"}}, server={"workers": 3})
    assert new.store.lease == 7
    assert (new.store.etcd.ca, new.store.etcd.cert, new.server.workers) == ("d", "b", 3)
    assert config.changes(old, new) == ["server.workers", "store.etcd.ca"]
    assert config.with_live(old, new) == old


# --- A store in etcd -------------------------------------------------------------------------

STORE: Final = "store.url = 'etcd://h:1/zkv'\n"


def test_flags_name_the_store_and_the_member(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[store]\nurl = 'etcd://a:1/other'\nlease = 2\n")
    flags = ("--store", "etcd://a:1,[::1]:2/zkv", "--member", "one")
    tables, text = shown(tmp_path, "--config", "c.toml", *flags)
    assert tables["store"]["url"] == "etcd://a:1,[::1]:2/zkv"
    assert tables["store"]["member"] == "one"
    assert place(text, "url") == "--store"
    assert place(text, "member") == "--member"
    assert place(text, "lease") == "c.toml:3"

    done = run_zkv("serve", "--store", "etcd://a/zkv", cwd=tmp_path)

    assert done.returncode == 2
    assert done.stderr == (
        "zkv: --store: store.url: endpoint 'etcd://a': it needs a host and a port: a port is "
        "missing\n"
    )


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("store.member = 'a/b'", "1: store.member: \"a/b\" is no name: expected 1 to 64 letters"),
        ("store.member = 'ann\u00e9'", "1: store.member: "),
        (f"store.member = '{'m' * 65}'", "1: store.member: "),
        ("store.lease = 1.9", "1: store.lease: expected a number of seconds from 2 to 60, got 1.9"),
        ("store.lease = 61", "1: store.lease: expected"),
        ("store.reads = 'stale'", '1: store.reads: expected one of "lease", "confirm", got'),
        (f"{STORE}replication.sync = 1", "1, c.toml:2: replication.sync is for a store in a data"),
        (
            f"{STORE}server.endpoints = ['tcp://h:1', 'tcp://*:2']",
            "2, c.toml:1: server.endpoints: tcp://*:2 is no place to which clients can be sent "
            "once this server leads: set replication.advertise",
        ),
        (
            f"{STORE}server.feed = 'tcp://[::]:2'",
            "2, c.toml:1: server.feed: tcp://[::]:2 is no place to which clients can be sent "
            "once this server leads: set replication.advertise_feed",
        ),
        ("store.etcd = {ca = 'a', cert = 'c'}", "1: store.etcd.cert needs store.etcd.key: they"),
        ("store.etcd = {ca = 'a', key = 'c'}", "1: store.etcd.key needs store.etcd.cert: they"),
        ("store.etcd = {key = 'a', cert = 'c'}", "1: store.etcd.cert needs store.etcd.ca: without"),
        ("store.etcd.user = 'u'", "1: store.etcd.user needs store.etcd.password_file: etcd asks"),
        ("store.etcd.password_file = 'u'", "1: store.etcd.password_file needs store.etcd.user"),
        (
            "store.log_bytes = 524_289\nstore.quota_bytes = 1_048_576\n",
            "1, c.toml:2: store.log_bytes (524289) is above half of store.quota_bytes (524288): ",
        ),
    ],
)  # fmt: skip
def test_what_a_store_in_etcd_does_not_allow(tmp_path: Path, file: str, why: str) -> None:
    (tmp_path / "c.toml").write_text(file, encoding="utf-8")
    done = run_zkv("config", "check", "c.toml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"zkv: c.toml:{why}")


@pytest.mark.parametrize(
    "file",
    [
        STORE + "server = {endpoints = ['tcp://*:1'], feed = 'tcp://*:2'}\n"
        "replication = {advertise = ['tcp://h:1'], advertise_feed = 'tcp://h:2'}\n",
        STORE + "server = {endpoints = ['tcp://h:1', 'ipc://a'], feed = ''}\n",
        "server = {endpoints = ['tcp://*:1'], feed = 'tcp://*:2'}\n",
        "store.member = 'a'\nstore.etcd.ca = 'ca.pem'\n",
        "store.log_bytes = 524_288\nstore.quota_bytes = 1_048_576\n",
    ],
)
def test_what_a_store_in_etcd_allows(tmp_path: Path, file: str) -> None:
    """Also settings of a store that is named elsewhere."""
    (tmp_path / "c.toml").write_text(file)
    done = run_zkv("config", "check", "c.toml", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_store_in_etcd_needs_a_data_directory() -> None:
    with pytest.raises(ConfigError, match=r"store\.url needs durability\.data_dir"):
        config.build({"store": {"url": "etcd://h:1/a"}, "durability": {"data_dir": None}})


@pytest.mark.parametrize(
    ("file", "flags", "why"),
    [
        (
            "server.feed = ''\nserver.endpoints = ['tcp://0.0.0.0:*']\n", (),
            "c.toml:2: server.endpoints: tcp://0.0.0.0:* is no place to which clients",
        ),
        ("", ("--feed", "tcp://*:*"), "--feed: server.feed: tcp://*:* is no place to which"),
        (STORE, (), "c.toml:1: store.url: a standby copies a server; a member of a store"),
    ],
)  # fmt: skip
def test_what_a_standby_does_not_allow(
    tmp_path: Path, file: str, flags: tuple[str, ...], why: str
) -> None:
    (tmp_path / "c.toml").write_text(file)
    done = run_zkv("follow", "tcp://127.0.0.1:1", "--config", "c.toml", *flags, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"zkv: {why}")


# --- Arrays of tables ------------------------------------------------------------------------

CACHES: Final = """
[[cache]]
prefix = "a/"
max_bytes = 1_000

# A comment.
[log]
requests = false

[[cache]]
max_bytes = 7
prefix = "b/"
policy = "ttl"
"""


def test_caches_are_shown_with_their_lines(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(CACHES)
    tables, text = shown(tmp_path, "--config", "c.toml")
    assert tables["cache"] == [
        {"prefix": "a/", "max_bytes": 1_000, "policy": "lru"},
        {"prefix": "b/", "max_bytes": 7, "policy": "ttl"},
    ]
    heads = [line for line in text.splitlines() if line.startswith("[[cache]]")]
    assert [line.rpartition("  # ")[2] for line in heads] == ["c.toml:2", "c.toml:10"]
    (tmp_path / "again.toml").write_text(text)
    assert shown(tmp_path, "--config", "again.toml")[0] == tables
    assert "cache" not in shown(tmp_path)[0]


@pytest.mark.parametrize(
    ("file", "faults"),
    [
        (
            "cache = 3",
            ["c.toml:1: cache: expected tables, that is, a line [[cache]] for each with"],
        ),
        ('[cache]\nprefix = "a"', ["c.toml:1: cache: expected tables, that is"]),
        ("cache = [3]", ["c.toml:1: cache: expected tables"]),
        (
            "[[cache]]\n[[cache]]\nmax_bytes = 0\npolicy = 'lfu'\nprefix = ''",
            [
                "c.toml:1: cache[0].prefix is missing: expected text in quotes",
                "c.toml:1: cache[0].max_bytes is missing: expected a whole number from 1 to",
                "c.toml:3: cache[1].max_bytes: expected a whole number from 1 to 46116",
                'c.toml:4: cache[1].policy: expected one of "lru", "ttl", got "lfu"',
                'c.toml:5: cache[1].prefix: expected text that is not empty, got ""',
            ],
        ),
        (
            'cache = [{ prefx = "a", max_bytes = 1, prefix = 1 }]',
            [
                "c.toml:1: cache[0]: unknown setting 'prefx'; did you mean prefix?",
                "c.toml:1: cache[0].prefix: expected text in quotes, got 1",
            ],
        ),
        (
            "[[cache]]\nprefix = 'a/b'\nmax_bytes = 1\n[[cache]]\nmax_bytes = 1\nprefix = 'a'\n",
            ["c.toml:2: cache[0].prefix: 'a/b' begins with 'a', which is cache[1].prefix: an"],
        ),
        (
            "[[cache]]\nprefix = 'a'\nmax_bytes = 1\n[[cache]]\nmax_bytes = 1\nprefix = 'a'\n",
            ["c.toml:6: cache[1].prefix: 'a' begins with 'a', which is cache[0].prefix"],
        ),
    ],
)
def test_a_bad_cache_is_named(tmp_path: Path, file: str, faults: list[str]) -> None:
    (tmp_path / "c.toml").write_text(file)
    done = run_zkv("config", "check", "c.toml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert len(lines) == len(faults)
    for line, fault in zip(lines, faults, strict=True):
        assert line.startswith(f"zkv: {fault}")


def test_a_program_hears_which_cache_is_bad() -> None:
    with pytest.raises(ConfigError, match=r"^zkv.Server: cache\[0\].max_bytes is missing"):
        zkv.Server(cache=[{"prefix": "a"}])
    with pytest.raises(ConfigError, match=r"^zkv.Server: cache: expected tables"):
        zkv.Server(cache={"prefix": "a"})


def test_caches_change_with_the_next_start(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, config=CACHES) as server:
        reload(server, "[log]\nrequests = false\n", "cache changed from [{ prefix = ")
        assert "to [], takes effect at the next start" in server.log()


# --- SIGHUP ----------------------------------------------------------------------------------


def reload(server: ServerProcess, text: str, told: str) -> None:
    """Replace the server's file, send SIGHUP, and wait until the log tells the rest."""
    seen = len(server.log())
    (server.directory / "config.toml").write_text(text)
    server.signal(signal.SIGHUP)
    eventually(lambda: told in server.log()[seen:], told)


def test_sighup_switches_the_request_log(tmp_path: Path) -> None:
    """In all threads: the front answers a PUT, if it is compiled, and a worker a SCAN."""
    on, off = "[log]\n", "[log]\nrequests = false\n"
    with ServerProcess(tmp_path, config=off) as server, Raw(server.endpoint) as client:
        client.ok(op="PUT", key="before", value=0)
        client.ok(op="SCAN", prefix="before")
        reload(server, on, "INFO log.requests changed from false to true")
        client.ok(op="PUT", key="between", value=0)
        client.ok(op="SCAN", prefix="between")
        reload(server, off, "INFO log.requests changed from true to false")
        client.ok(op="PUT", key="behind", value=0)
        client.ok(op="SCAN", prefix="behind")
        assert server.stop() == 0
        log = server.log()
    assert "PUT key='between' ok" in log
    assert log.count(" PUT ") == 1
    assert log.count(" SCAN ") == 1


def test_sighup_changes_what_is_slow(tmp_path: Path) -> None:
    none, all_ = "[metrics]\nslow = 0\n", "[metrics]\nslow = 1e-9\n"
    with ServerProcess(tmp_path, config=none) as server, Raw(server.endpoint) as client:
        client.ok(op="PUT", key="before", value=0)
        reload(server, all_, "INFO metrics.slow changed from 0.0 to 1e-09")
        client.ok(op="PUT", key="between", value=0)
        client.ok(op="COUNT")
        reload(server, none, "INFO metrics.slow changed from 1e-09 to 0.0")
        client.ok(op="PUT", key="behind", value=0)
        assert [each["op"] for each in client.ok(op="SLOW")["entries"]] == ["COUNT", "PUT"]


def test_sighup_changes_the_level(tmp_path: Path) -> None:
    high, low = '[log]\nlevel = "ERROR"\n', '[log]\nlevel = "DEBUG"\n'
    with ServerProcess(tmp_path, config=high) as server, Raw(server.endpoint) as client:
        client.ok(op="PUT", key="before", value=0)
        reload(server, low, 'log.level changed from "ERROR" to "DEBUG"')
        client.ok(op="PUT", key="behind", value=0)
        assert server.stop() == 0
        log = server.log()
    assert "PUT key='behind' ok" in log
    assert "before" not in log
    assert "INFO stopped" in log


def test_sighup_tells_what_needs_a_restart(tmp_path: Path) -> None:
    """And applies the rest."""
    new = '[server]\nworkers = 3\n[log]\nrequests = false\n[durability]\nfsync = "never"\n'
    with ServerProcess(tmp_path, config="[server]\nworkers = 2\n") as server:
        with Raw(server.endpoint) as client:
            for _ in range(2):  # It is told each time, for as long as it is so.
                reload(
                    server, new,
                    'WARNING durability.fsync changed from "always" to "never", '
                    "takes effect at the next start",
                )  # fmt: skip
            client.ok(op="PUT", key="k", value=0)
            assert client.ok(op="INFO")["stats"]["workers"] == 2
        assert server.stop() == 0
        log = server.log()
        assert "WARNING server.workers changed from 2 to 3, takes effect at the next start" in log
        assert log.count("log.requests changed") == 1
        assert " PUT " not in log

        server.start()

        with Raw(server.endpoint) as client:
            assert client.ok(op="INFO")["stats"]["workers"] == 3
        assert server.stop() == 0


def test_sighup_with_a_bad_file_changes_nothing(tmp_path: Path) -> None:
    good = "[log]\nrequests = true\n"
    with ServerProcess(tmp_path, config=good) as server, Raw(server.endpoint) as client:
        for bad, why in (
            ("[log]\nrequests = false\n[server]\nworkers = 0\n", ":4: server.workers: expected"),
            ("[log]\nrequests = false\nx", "config.toml: not TOML: "),
        ):
            reload(server, bad, "all settings stay as they are")
            assert why in server.log()
        client.ok(op="PUT", key="after", value=0)
        eventually(lambda: "PUT key='after' ok" in server.log(), "requests are logged")
        assert "changed from" not in server.log()
        reload(server, "[log]\nrequests = false\n", "log.requests changed from true to false")


def test_sighup_reads_the_same_sources(tmp_path: Path) -> None:
    """The environment and the flags still override the file."""
    env = {"ZKV_CFG_LOG__REQUESTS": "true"}
    with ServerProcess(tmp_path, *FLAG, config="", env=env) as server:
        reload(
            server, FILE + "[log]\nrequests = false\n",
            "the settings have been read again; none has changed",
        )  # fmt: skip


def test_sighup_when_the_file_has_gone(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, config="") as server:
        (tmp_path / "config.toml").unlink()
        server.signal(signal.SIGHUP)
        why = "config.toml: No such file or directory; all settings stay as they are"
        eventually(lambda: why in server.log(), why)
        assert server.stop() == 0
