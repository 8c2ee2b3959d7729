"""What a user may do, in C and in Python: both say the same of every key."""

from __future__ import annotations

from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkv import compiled
from zkv.users.file import UserEntry
from zkv.users.rights import ADMIN_RIGHTS, NOBODY, PROGRAM, PythonPrefixes, User

texts = st.text("ab/ü\U0001f600\0", max_size=4)
"""Few characters, so that one text often begins with another; some of several bytes."""
prefixes = st.lists(texts, max_size=3).map(tuple)

KINDS: Final[list[Any]] = [PythonPrefixes]
if compiled.COMPILED:
    KINDS.append(compiled.store.Prefixes)


@pytest.mark.skipif(len(KINDS) < 2, reason="the C parts are not built")
@given(prefixes, prefixes, texts)
def test_c_and_python_agree(read: tuple[str, ...], write: tuple[str, ...], key: str) -> None:
    plain, built = (kind(read, write, "scope", 0) for kind in KINDS)
    assert built.may_read(key) is plain.may_read(key)
    assert built.may_write(key) is plain.may_write(key)
    assert built.scope == plain.scope == "scope"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("read", "write", "key", "may_read", "may_write"),
    [
        ((), (), "", False, False),
        ((), (), "a", False, False),
        (("",), (), "", True, False),
        (("",), (), "a", True, False),
        ((), ("",), "a", True, True),
        (("a/",), (), "a/", True, False),
        (("a/",), (), "a", False, False),
        (("a/",), (), "A/x", False, False),
        (("a/",), (), "b/a/", False, False),
        (("a/",), ("a/b",), "a/bc", True, True),
        (("a/",), ("a/b",), "a/c", True, False),
        (("a/b",), ("a/",), "a/c", True, True),
        (("ü",), (), "ü", True, False),
        (("ü",), (), "Ã", False, False),
        (("a\0",), (), "a", False, False),
    ],
)
def test_a_prefix_covers_the_keys_that_begin_with_it(
    kind: Any,
    read: tuple[str, ...],
    write: tuple[str, ...],
    key: str,
    may_read: bool,
    may_write: bool,
) -> None:
    user = kind(read, write, "", 0)
    assert (user.may_read(key), user.may_write(key)) == (may_read, may_write)


def test_a_user_has_the_rights_of_its_entry() -> None:
    entry = UserEntry(
        read=["shared/{user}-{user}"], write=["{user}/"], admin=["monitor"], max_bytes=7
    )
    ann = entry.user("ann")
    assert ann.may_read("shared/ann-ann/x")
    assert not ann.may_read("shared/{user}-{user}/x")
    assert ann.may_write("ann/x")
    assert not ann.may_write("bob/x")
    assert ann.admin == {"monitor"}
    assert ann.max_bytes == 7
    assert UserEntry(admin=True).user("ann").admin == set(ADMIN_RIGHTS)
    assert UserEntry().user("ann").admin == set()


def test_two_users_never_share_a_session() -> None:
    assert User("ann").scope + "x" != User("an").scope + "nx"
    assert User("ann").scope != User("bob").scope


def test_nobody_may_do_nothing_and_the_program_everything() -> None:
    for key in ("", "a", "\0"):
        assert not NOBODY.may_read(key)
        assert not NOBODY.may_write(key)
        assert PROGRAM.may_read(key)
        assert PROGRAM.may_write(key)
    assert NOBODY.admin == set()
    assert PROGRAM.admin == set(ADMIN_RIGHTS)
