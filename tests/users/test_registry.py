"""The users of a running server, found by what libzmq tells of a message."""

from __future__ import annotations

from pathlib import Path

import pytest

from zkv.errors import ConfigError
from zkv.keys import make_key_file
from zkv.users.registry import NO_ID, Users
from zkv.users.rights import NOBODY, PROGRAM


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "users.toml"


@pytest.fixture
def keys(tmp_path: Path) -> list[str]:
    return [make_key_file(tmp_path / name) for name in "ab"]


def test_a_user_is_found_by_each_credential(path: Path, keys: list[str]) -> None:
    path.write_text(f"[users.ann]\nkeys = {keys}\nuids = [7, 8]\n[users.anonymous]\n")
    users = Users(path)

    for user_id in (*keys, "uid:7", "uid:8"):
        assert users.of(user_id).name == "ann"
        assert users.knows(user_id)
    assert users.of("anonymous").name == "anonymous"
    assert users.of(NO_ID) is PROGRAM
    for user_id in ("ann", "uid:", "uid:9", "7", keys[0][:-1]):
        assert users.of(user_id) is NOBODY
        assert not users.knows(user_id)
    assert len(users) == 2


def test_without_the_table_anonymous_is_nobody(path: Path) -> None:
    path.write_text("[users.ann]\nuids = [7]\n")
    assert Users(path).of("anonymous") is NOBODY


def test_a_reload_tells_what_has_changed(path: Path, keys: list[str]) -> None:
    path.write_text(
        f"[users.ann]\nkeys = [{keys[0]!r}]\n[users.bob]\nuids = [1]\n[users.eve]\nuids = [2]\n"
    )
    users = Users(path)
    assert users.reload().changes == []

    path.write_text(
        f"[users.ann]\nkeys = [{keys[1]!r}]\n[users.zoe]\nuids = [2]\n# Moved.\n"
        f"[users.bob]\nuids = [1]\n"
    )
    assert users.reload().changes == ["ann changed", "eve removed", "zoe added"]
    assert users.of(keys[0]) is NOBODY
    assert users.of(keys[1]).name == "ann"
    assert users.of("uid:2").name == "zoe"


def test_who_looks_users_up_meanwhile_sees_the_old_or_the_new_ones(path: Path) -> None:
    path.write_text("[users.ann]\nuids = [1]\n")
    users = Users(path)
    before = users.by_id

    path.write_text("[users.bob]\nuids = [1]\n")
    users.reload()

    assert before["uid:1"].name == "ann"
    assert users.by_id["uid:1"].name == "bob"


@pytest.mark.parametrize(
    ("after", "changes"),
    [
        ("uids = [1]\nread = ['a/']\nadmin = true\nmax_bytes = 7\n[users.bob]\n", False),
        ("uids = [1]\nread = ['a/', 'b/']\n", True),
        ("uids = [1]\n", True),
        ("uids = [1]\nread = []\nwrite = ['a/']\n", True),
        ("uids = [1, 2]\nread = ['a/']\n", True),
        ("uids = [2]\nread = ['a/']\n[users.bob]\nuids = [1]\n", True),
        ("# Another text.\nuids = [ 1 ]\nread = ['a/']\n", False),
    ],
)
def test_followers_are_disturbed_only_if_what_they_may_follow_changes(
    path: Path, after: str, changes: bool
) -> None:
    path.write_text("[users.ann]\nuids = [1]\nread = ['a/']\n")
    users = Users(path)
    path.write_text(f"[users.ann]\n{after}")
    assert users.reload().changes_what_is_followed is changes


@pytest.mark.parametrize(
    "content",
    [None, b"", b"# Nobody.\n", b"[users]\n", b"[users.ann", b"[users.ann]\nuids = [1, 1.5]\n",
     b"\xff", b"[users.ann]\n[users.bob]\nx = 1\n"],
)  # fmt: skip
def test_a_bad_file_changes_nothing(path: Path, content: bytes | None) -> None:
    path.write_text("[users.ann]\nuids = [1]\nread = ['x/']\n")
    users = Users(path)
    before = users.by_id

    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"users\.toml: "):
        users.reload()

    assert users.by_id is before
    assert len(users) == 1
    path.write_text("[users.ann]\nuids = [1]\nread = ['x/']\n")
    assert users.reload().changes == []
