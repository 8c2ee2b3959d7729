"""The users file: whatever it holds, it counts as a whole, or its fault is named."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from zmq.utils import z85

from tests.forking import run_zkv
from zkv.cli import users as command
from zkv.cli.main import main
from zkv.errors import ConfigError
from zkv.users.file import MOST_PREFIXES, UserEntry, check_users, read_users

KEYS: Final = [z85.encode(bytes([number]) * 32).decode() for number in range(1, 4)]
FEW: Final = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

junk = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.datetimes() | st.times()
    | st.sampled_from([2**63, 2**64, -(2**63) - 1, 10**300, "", *KEYS]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)  # fmt: skip
"""Anything that a TOML file can hold."""
names = st.sampled_from(["ann", "bob", "anonymous", "0", "-", "_x-"])
prefixes = st.lists(st.text(max_size=5) | st.sampled_from(["", "{user}/", "a/"]), max_size=3)
good_fields: Final[dict[str, st.SearchStrategy[Any]]] = {
    "keys": st.lists(st.sampled_from(KEYS), max_size=2),
    "uids": st.lists(st.integers(0, 2**32 - 2), max_size=3),
    "read": prefixes,
    "write": prefixes,
    "admin": st.booleans() | st.lists(st.sampled_from(["monitor", "operate", "replicate"])),
    "max_bytes": st.integers(0, 2**62),
    "max_requests": st.integers(0, 10**9),
    "max_in_flight_bytes": st.integers(0, 2**62),
}
good_users = st.fixed_dictionaries({}, optional=good_fields)
nearly_good_users = st.fixed_dictionaries(
    {}, optional={name: field | junk for name, field in good_fields.items()} | {"x": junk}
)
tables = st.one_of(
    st.dictionaries(st.sampled_from(["users", "user"]) | st.text(max_size=5), junk, max_size=2),
    st.fixed_dictionaries({"users": st.dictionaries(names, good_users, min_size=1, max_size=3)}),
    st.fixed_dictionaries(
        {"users": st.dictionaries(names | st.text(max_size=5), nearly_good_users | junk)}
    ),
)


@settings(FEW, max_examples=500)
@given(tables)
def test_any_table_is_accepted_or_its_fault_is_named(table: dict[str, Any]) -> None:
    entries, fault = outcome(check_users, table)
    if fault:
        assert names_the_fault(fault, table), fault
        return
    assert list(entries) == list(table["users"])
    for name, entry in entries.items():
        listed = {field: table["users"][name].get(field, []) for field in ("keys", "uids")}
        assert [entry.keys, entry.uids] == [listed["keys"], listed["uids"]]
        user = entry.user(name)
        for prefix in entry.write:
            assert user.may_write(prefix.replace("{user}", name) + "x")


def outcome(
    check: Callable[[Any], dict[str, UserEntry]], given_: object
) -> tuple[dict[str, UserEntry], str]:
    """The users, or the fault; any other exception is an error."""
    try:
        return check(given_), ""
    except ValueError as error:
        return {}, str(error)


def names_the_fault(message: str, table: dict[str, Any]) -> bool:
    """Whether a message names what is wrong: a field of a user, a user, or what is no user."""
    users = table.get("users")
    if set(table) - {"users"} or not isinstance(users, dict) or not users:
        return message.startswith(("unknown table or key", "there is no user"))
    found = re.match(r"users\.([a-z0-9_-]+)(?:\.(\w+)(?:\[\d+\])?)?: .|users: a name", message)
    return found is not None and (found[1] is None or found[1] in users)


@settings(FEW, max_examples=50)
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_content_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "users.toml"
    path.write_bytes(b"[users.ann]\n" + content)
    users, fault = outcome(read_users, path)
    assert "ann" in users or fault.startswith(f"{path}: ")


@FEW
@given(st.dictionaries(names, good_users, min_size=1, max_size=3))
def test_what_is_accepted_is_listed_as_such_a_file(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], users: dict[str, Any]
) -> None:
    entries, fault = outcome(check_users, {"users": users})
    assume(not fault)  # One key of two users.
    path = tmp_path / "users.toml"
    blocks = [command.table_of(name, entry) for name, entry in entries.items()]
    path.write_text("\n".join(blocks), encoding="utf-8")
    assert main(["user", "list", "--users", str(path)]) == 0
    listed = capfdbinary.readouterr().out.decode()
    assert check_users(tomllib.loads(listed)) == entries


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "there is no user"),
        ("users = 3", "there is no user"),
        ("[users]", "there is no user"),
        ("[user.ann]", "unknown table or key 'user'"),
        ("x = 1\n[users.ann]", "unknown table or key 'x'"),
        ("[users]\nann = 3", "users.ann: expected a table"),
        ("[users.Ann]", "users: a name consists of small letters a to z, digits, - and _, "
         "got 'Ann'"),
        ('[users."a\\nb"]', r"got 'a\nb'"),
        ("[users.ann]\nuid = [1]", "users.ann: unknown field 'uid'; did you mean uids?"),
        ("[users.ann]\npassword = 1", "users.ann: unknown field 'password'; there are keys"),
        ("[users.ann]\nuids = [-1]", "users.ann.uids[0]: "),
        ("[users.ann]\nuids = [4294967295]", "users.ann.uids[0]: "),
        ("[users.ann]\nuids = [true]", "users.ann.uids[0]: "),
        (f"[users.ann]\nuids = [{10**30}]", "users.ann.uids[0]: "),
        ("[users.ann]\nuids = 1000", "users.ann.uids: "),
        ("[users.ann]\nadmin = ['root']", "users.ann.admin[0]: "),
        ("[users.ann]\nadmin = 'monitor'", "users.ann.admin: "),
        ("[users.ann]\nmax_bytes = -1", "users.ann.max_bytes: "),
        ("[users.ann]\nmax_bytes = 1.5", "users.ann.max_bytes: "),
        ("[users.ann]\nmax_requests = -1", "users.ann.max_requests: "),
        ("[users.ann]\nmax_in_flight_bytes = 'x'", "users.ann.max_in_flight_bytes: "),
        ("[users.ann]\nread = ['{name}/']", "users.ann.read[0]: '{name}/': a brace is only"),
        ("[users.ann]\nread = ['{us{user}er}']", "users.ann.read[0]: "),
        ("[users.ann]\nwrite = ['a', 'b}']", "users.ann.write[1]: "),
        (f"[users.ann]\nread = {['x'] * (MOST_PREFIXES + 1)}", "users.ann.read: "),
        ("[users.anonymous]\nuids = [1]", "users.anonymous: this is whoever comes by tcp"),
        ("[users.ann]\nuids = [1]\n[users.bob]\nuids = [1]", "users.bob: uid:1 is of users.ann"),
        (f"[users.ann]\nkeys = ['{KEYS[0]}']\n[users.bob]\nkeys = ['{KEYS[0]}']",
         "users.bob: "),
        ("[users.ann", "not TOML: "),
        ("[users.ann]\nmax_bytes = " + "1" * 5000, "not TOML: an int has more than 64 bits"),
        ("[users.ann]\nread = " + "[" * 5000, "not TOML: it is nested too deeply"),
    ],
)  # fmt: skip
def test_faults(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "users.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=re.escape(f"{path}: ")) as caught:
        read_users(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_key_is_not_shown(tmp_path: Path) -> None:
    """It may be a secret, or a part of one."""
    path = tmp_path / "users.toml"
    path.write_text("[users.ann]\nkeys = ['half-of-a-secret']\n")
    with pytest.raises(ConfigError, match=r"users\.ann\.keys\[0\]: not a key") as caught:
        read_users(path)
    assert "half" not in str(caught.value)


def test_an_absent_file_is_bad(tmp_path: Path) -> None:
    done = run_zkv("user", "list", "--users", str(tmp_path / "none"), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"zkv: {tmp_path}/none: No such file or directory\n"
