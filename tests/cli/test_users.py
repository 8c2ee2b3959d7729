"""``zkv keygen`` and ``zkv user``: the files that say who may connect."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zmq.utils import z85

from tests.forking import run_zkv
from tests.support import LIMIT, Raw, ServerProcess, environment, eventually, zkv_command
from zkv.cli.users_text import with_fields, with_user, without_user
from zkv.keys import read_key_file

KEYS: Final = [z85.encode(bytes([number]) * 32).decode() for number in range(1, 4)]
Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs ``zkv user`` on ``users.toml``; what it prints, or complains about with ``status``."""

    def run_here(*words: str, status: int = 0) -> str:
        done = run_zkv("user", *words, "--users", "users.toml", cwd=tmp_path)
        assert done.returncode == status, done.stderr
        return done.stderr if status else done.stdout

    return run_here


# --- Keys ------------------------------------------------------------------------------------


def test_keygen_prints_the_public_key_of_the_file_that_it_writes(tmp_path: Path) -> None:
    done = run_zkv("keygen", "server.key", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    path = tmp_path / "server.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert done.stdout.splitlines()[-1] == read_key_file(path).public
    assert path.read_text().strip() not in done.stdout


def test_keygen_never_overwrites_a_file(tmp_path: Path) -> None:
    path = tmp_path / "server.key"
    path.write_text("precious")

    done = run_zkv("keygen", "server.key", cwd=tmp_path)

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "zkv: server.key: exists already: a key is never overwritten\n"
    assert path.read_text() == "precious"


@pytest.mark.parametrize("words", [(), ("a", "b"), ("nowhere/a.key",), ("",), (".",)])
def test_wrong_usage_of_keygen(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = run_zkv("keygen", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr


# --- Adding ----------------------------------------------------------------------------------


def test_the_first_user_makes_the_file(run: Run, tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        said = run(
            "add", "ann", "--key", KEYS[0], "--uid", "1000", "--read", "config/", "--write",
            "jobs/{user}/", "--write", "ann/", "--admin", "monitor", "--max-bytes", "5000",
        )  # fmt: skip
    finally:
        os.umask(before)

    assert said == "ann added to users.toml; a running server reads the file on SIGHUP\n"
    path = tmp_path / "users.toml"
    assert tomllib.loads(path.read_text()) == {
        "users": {
            "ann": {
                "keys": [KEYS[0]], "uids": [1000], "read": ["config/"],
                "write": ["jobs/{user}/", "ann/"], "admin": ["monitor"], "max_bytes": 5000,
            }
        }
    }  # fmt: skip
    assert stat.S_IMODE(path.stat().st_mode) == 0o644, "others may write it"


def test_a_user_who_is_there_gets_more(run: Run, tmp_path: Path) -> None:
    run("add", "ann", "--key", KEYS[0], "--read", "a/", "--admin", "monitor")

    said = run(
        "add", "ann", "--key", KEYS[1], "--key", KEYS[0], "--read", "b/", "--admin", "operate",
        "--uid", "7", "--max-bytes", "1", "--max-requests", "2", "--max-in-flight-bytes", "3",
    )  # fmt: skip

    changed = "keys, uids, read, admin, max_bytes, max_requests, max_in_flight_bytes"
    assert f"{changed} of ann changed in users.toml" in said
    assert tomllib.loads((tmp_path / "users.toml").read_text())["users"]["ann"] == {
        "keys": [KEYS[0], KEYS[1]], "read": ["a/", "b/"], "admin": ["monitor", "operate"],
        "uids": [7], "max_bytes": 1, "max_requests": 2, "max_in_flight_bytes": 3,
    }  # fmt: skip


def test_what_a_user_has_already_changes_nothing(run: Run, tmp_path: Path) -> None:
    run("add", "ann", "--uid", "7", "--admin", "all", "--max-bytes", "5")
    path = tmp_path / "users.toml"
    before = path.stat()

    said = run("add", "ann", "--uid", "7", "--admin", "monitor", "--max-bytes", "5")

    assert said == "ann has all of that already; users.toml stays as it is\n"
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize(
    ("before", "admin", "after"),
    [
        ("", ["all"], True),
        ("admin = false # none\n", ["monitor"], ["monitor"]),
        ("admin = false\n", ["all", "monitor"], True),
        ('admin = ["operate"]\n', ["replicate", "operate"], ["operate", "replicate"]),
        ('admin = [ # some\n  "operate",\n] # more\n', ["all"], True),
        ("admin = true\n", ["monitor"], True),
    ],
)
def test_rights_to_administer(
    run: Run, tmp_path: Path, before: str, admin: list[str], after: Any
) -> None:
    path = tmp_path / "users.toml"
    path.write_text(f"[users.ann]\nuids = [1]\n{before}")

    run("add", "ann", *(word for right in admin for word in ("--admin", right)))

    assert tomllib.loads(path.read_text())["users"]["ann"] == {"uids": [1], "admin": after}


def test_nobody_can_be_a_user_without_key_and_uid(run: Run, tmp_path: Path) -> None:
    done = run_zkv("user", "add", "ann", "--users", "users.toml", cwd=tmp_path)
    assert done.returncode == 0
    assert "nobody can connect as ann" in done.stderr

    done = run_zkv("user", "add", "anonymous", "--users", "users.toml", cwd=tmp_path)
    assert done.stderr == ""
    assert set(tomllib.loads(run("list"))["users"]) == {"ann", "anonymous"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("add", "Ann"), "a name consists of small letters"),
        (("add", "a b"), "a name consists of small letters"),
        (("add", "bob", "--uid", "1000"), "users.bob: uid:1000 is of users.ann, too"),
        (("add", "bob", "--key", KEYS[0]), "is of users.ann, too"),
        (("add", "bob", "--key", KEYS[1][:-1]), "--key: not a key: expected 40 characters"),
        (("add", "bob", "--key", "ann.key"), "--key: this is the name of a file"),
        (("add", "bob", "--uid", "4294967295"), "users.bob.uids[0]: "),
        (("add", "bob", "--uid", "-1"), "'-1' is not a whole number"),
        (("add", "bob", "--uid", "bob"), "'bob' is not a whole number"),
        (("add", "bob", "--read", "{name}/"), "users.bob.read[0]: '{name}/': a brace"),
        (("add", "bob", "--admin", "root"), "invalid choice: 'root'"),
        (("add", "ann", "--max-bytes", "6"), "ann has max_bytes = 5 already"),
        (("add", "ann", "--max-bytes", "0"), "ann has max_bytes = 5 already"),
        (("add", "anonymous", "--uid", "7"), "users.anonymous: this is whoever comes by tcp"),
        (("add",), "NAME"),
        (("remove", "an"), "there is no user 'an'; did you mean ann?"),
        (("remove", "xyz"), "there is no user 'xyz'; there are ann"),
        (("remove", "ann"), "ann is the last user, and a server refuses a file without users"),
        (("list", "ann"), "unrecognized arguments"),
        ((), "COMMAND"),
    ],
    ids=lambda part: " ".join(part)[:30] if isinstance(part, tuple) else "",
)
def test_what_is_refused(run: Run, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    run_zkv("keygen", "ann.key", cwd=tmp_path)
    run("add", "ann", "--key", KEYS[0], "--uid", "1000", "--max-bytes", "5")
    path = tmp_path / "users.toml"
    before = path.read_bytes(), path.stat().st_ino

    assert said in (run(*words, status=2) if words else run_zkv("user", cwd=tmp_path).stderr)
    assert (path.read_bytes(), path.stat().st_ino) == before


def test_what_is_no_key_is_not_shown(run: Run) -> None:
    assert "half-of-a-secret" not in run("add", "ann", "--key", "half-of-a-secret", status=2)


# --- The file --------------------------------------------------------------------------------


def test_the_settings_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[security]\nusers = "ours.toml"\n')
    add = ["user", "add", "ann", "--uid", "1"]

    by_file = run_zkv(*add, "--config", "config.toml", cwd=tmp_path)
    by_variable = run_zkv(
        "user", "list", cwd=tmp_path, env={"ZKV_CFG_SECURITY__USERS": "ours.toml"}
    )
    neither = run_zkv(*add, cwd=tmp_path)

    assert by_file.returncode == 0, by_file.stderr
    assert by_variable.stdout == "[users.ann]\nuids = [1]\n"
    assert neither.returncode == 2
    assert "--users FILE" in neither.stderr
    assert "--config FILE" in neither.stderr


@pytest.mark.parametrize("verb", [("add", "ann"), ("list",), ("remove", "ann")])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[users.ann", "users.toml: not TOML: "),
        ("[users.bob]\nuid = 1", "users.toml: users.bob: unknown field 'uid'"),
        ("x = 1", "users.toml: unknown table or key 'x'"),
    ],
)
def test_a_bad_file_is_left_alone(
    run: Run, tmp_path: Path, verb: tuple[str, ...], content: str, said: str
) -> None:
    path = tmp_path / "users.toml"
    path.write_text(content)
    assert said in run(*verb, status=2)
    assert path.read_text() == content


@pytest.mark.parametrize("name", ["nowhere/users.toml", ".", "/dev/null", "a\udcff/b"])
def test_a_file_that_cannot_be_one(tmp_path: Path, name: str) -> None:
    done = run_zkv("user", "add", "ann", "--uid", "1", "--users", name, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_mode_and_links_stay(run: Run, tmp_path: Path) -> None:
    real = tmp_path / "real.toml"
    real.write_text("[users.ann]\nuids = [1]\n")
    real.chmod(0o640)
    (tmp_path / "users.toml").symlink_to(real)

    run("add", "bob", "--uid", "2")

    assert (tmp_path / "users.toml").is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert "[users.bob]" in real.read_text()


def test_commands_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    adding = [
        subprocess.Popen(
            zkv_command("user", "add", f"u{n}", "--uid", str(n), "--users", "users.toml"),
            cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL,
        )
        for n in range(6)
    ]  # fmt: skip
    assert [process.wait(LIMIT) for process in adding] == [0] * len(adding)
    users = tomllib.loads((tmp_path / "users.toml").read_text())["users"]
    assert sorted(users) == [f"u{n}" for n in range(6)]


def test_a_running_server_reads_the_file_on_sighup(tmp_path: Path) -> None:
    (tmp_path / "users.toml").write_text(f"[users.ann]\nuids = [{os.getuid()}]\n")
    security = f'[security]\nusers = "{tmp_path}/users.toml"\n'
    flags = ["--endpoint", f"ipc://{tmp_path}/socket"]
    with (
        ServerProcess(tmp_path / "server", *flags, config=security) as server,
        Raw(server.endpoint) as client,
    ):
        assert client.call(op="PUT", key="a/1", value=1)["code"] == "DENIED"
        run_zkv("user", "add", "ann", "--write", "a/", "--users", "users.toml", cwd=tmp_path)
        server.signal(signal.SIGHUP)
        eventually(lambda: "user ann changed" in server.log(), "the users have been read")
        client.ok(op="PUT", key="a/1", value=1)


# --- What a person has written in it ---------------------------------------------------------

WRITTEN: Final = """\
# Who may use the store of the lab.

[users.ann]   # the boss
# Her machines.
keys = [
    "{}", # laptop
    "{}"  # desk ]
]
read = ["config/"]  # not "jobs/"

# Bob comes by the socket [only].
[users.bob]
uids = [1000]
write = [ "bob/", ]
admin = false # for now

# That is all.
""".format(*KEYS)


def test_comments_and_order_stay(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "users.toml"
    path.write_text(WRITTEN)

    run("add", "ann", "--key", KEYS[2], "--read", "x/", "--write", "ann/")
    run("add", "bob", "--uid", "1001", "--write", "b/", "--admin", "operate")
    run("add", "eve", "--uid", "7")

    assert (
        path.read_text()
        == """\
# Who may use the store of the lab.

[users.ann]   # the boss
# Her machines.
keys = [
    "{}", # laptop
    "{}",  # desk ]
    "{}",
]
read = ["config/", "x/"]  # not "jobs/"
write = ["ann/"]

# Bob comes by the socket [only].
[users.bob]
uids = [1000, 1001]
write = [ "bob/", "b/"]
admin = ["operate"] # for now

# That is all.

[users.eve]
uids = [7]
""".format(*KEYS)
    )


def test_comments_of_others_stay_when_a_user_goes(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "users.toml"
    path.write_text(WRITTEN)

    run("remove", "ann")

    assert (
        path.read_text()
        == """\
# Who may use the store of the lab.

# Bob comes by the socket [only].
[users.bob]
uids = [1000]
write = [ "bob/", ]
admin = false # for now

# That is all.
"""
    )


@pytest.mark.parametrize(
    "content",
    ["users = {ann = {uids = [1]}, bob = {}}\n", "[users]\nann = {uids = [1]}\nbob = {}\n",
     "users.ann.uids = [1]\nusers.bob.uids = []\n"],
)  # fmt: skip
def test_what_is_written_in_another_way_is_left_to_a_person(
    run: Run, tmp_path: Path, content: str
) -> None:
    path = tmp_path / "users.toml"
    path.write_text(content)
    for words in (("add", "ann", "--uid", "2"), ("remove", "ann")):
        assert "users.toml: edit it by hand: the table of ann" in run(*words, status=2)
    assert path.read_text() == content


def test_nobody_can_be_added_to_an_inline_table(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "users.toml"
    path.write_text("users = {ann = {uids = [1]}}\n")
    assert "users.toml: edit it by hand: " in run("add", "zoe", "--uid", "2", status=2)
    assert path.read_text() == "users = {ann = {uids = [1]}}\n"


gaps = st.sampled_from(["", "", " ", "\n", "\n\n"])


@st.composite
def arrays(draw: st.DrawFn, items: list[str]) -> str:
    """An array as people write it: in one line or many, with comments and commas or without."""
    if draw(st.booleans()):
        space, comma = draw(st.sampled_from(["", " "])), draw(st.sampled_from(["", ",", " ,"]))
        return f"[{space}{', '.join(items)}{comma if items else ''}{space}]"
    lines = ["["]
    for item in items:
        comment = draw(st.sampled_from(["", " # a note", ' # see "x", [1]', " # ]", "\n\n  # own"]))
        is_last = item is items[-1]
        lines.append(
            f"{draw(gaps)}  {item}{'' if is_last and draw(st.booleans()) else ','}{comment}"
        )
    return "\n".join([*lines, draw(st.sampled_from(["]", "  ]", "# end\n]"]))])


@st.composite
def files(draw: st.DrawFn) -> str:
    """A users file as people write it."""
    text = draw(st.sampled_from(["", "# Ours.\n", "# Ours.\n\n", "\n\n"]))
    for name in draw(st.lists(st.sampled_from(["ann", "bob", "eve"]), min_size=1, unique=True)):
        text += draw(
            st.sampled_from(["[users.{}]\n", "  [ users . {} ] # [x]\n", "[\"users\".'{}']\n"])
        ).format(name)
        for field in draw(st.lists(st.sampled_from(["uids", "read", "admin"]), unique=True)):
            items = {"uids": ["1", "0xf", "2"], "read": ['"a]#"', "'b,'", '"""\nc"""']}
            value = draw(st.sampled_from(["false", "true", "[]"]))
            if field in items:
                chosen = draw(st.lists(st.sampled_from(items[field]), unique=True))
                value = draw(arrays(chosen))
            quote = draw(st.sampled_from(["", '"', "'"]))
            comment = draw(st.sampled_from(["", " # n]"]))
            text += f"{draw(gaps)}{quote}{field}{quote} = {value}{comment}\n"
        text += draw(st.sampled_from(["", "\n", "\n# Next.\n", "# Next.\n\n"]))
    if draw(st.booleans()):
        text = text.replace("\n", "\r\n")
    return text if draw(st.booleans()) else text.rstrip("\r\n")


def comments(text: str) -> int:
    return sum(text.count(f"# {word}") for word in ("Ours", "Next", "a note", "own", "see", "n]"))


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(files(), st.sampled_from(["ann", "bob", "eve", "zoe"]), st.data())
def test_an_edit_changes_what_it_should_and_loses_no_comment(
    text: str, name: str, data: st.DataObject
) -> None:
    users: dict[str, Any] = tomllib.loads(text)["users"]
    if name not in users:
        users[name] = {"uids": [5]}
        edited = with_user(text, name, users[name])
    elif len(users) > 1 and data.draw(st.booleans()):
        del users[name]
        edited = without_user(text, name)
    else:
        there = users[name]
        admin = data.draw(st.sampled_from([True, ["monitor"]]))
        if isinstance(there.get("admin"), list) and isinstance(admin, list):
            admin = there["admin"] + admin
        more = {"uids": [*there.get("uids", []), 77], "read": [*there.get("read", []), 'q"]']}
        users[name] = there | more | {"admin": admin}
        edited = with_fields(text, name, more | {"admin": admin})

    assert tomllib.loads(edited)["users"] == users
    assert name not in users or comments(edited) == comments(text)
    assert edited.count("\r\n") == (edited.count("\n") if "\r\n" in text else 0)
