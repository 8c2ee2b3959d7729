"""Quotas of a running server: from its start on, and after the users file has changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support import Raw
from tests.users.secured import Context, Fields, Secured

WAYS: list[dict[str, Any]] = [{}, {"ttl": 1_000}]
"""Of a PUT: in the lane, and by the command."""


def user(prefix: str, max_bytes: int) -> dict[str, Any]:
    """The fields of a user."""
    return {"write": [prefix], "admin": True, "max_bytes": max_bytes}


@contextmanager
def ann_and_bob(
    directory: Path, context: Context, users: Mapping[str, Fields]
) -> Iterator[tuple[Secured, Raw, Raw]]:
    """A server, and a client of each."""
    with (
        Secured(directory, users) as secured,
        secured.client(context, "ann") as ann,
        secured.client(context, "bob") as bob,
    ):
        yield secured, ann, bob


def held(client: Raw, key: str) -> int:
    """The bytes that a refusal says are held."""
    numbers = set()
    for way in WAYS:
        reply = client.call(op="PUT", key=key, value="x" * 1_000, **way)
        assert (reply["code"], reply["retry"], reply["applied"]) == ("FULL", True, False)
        numbers.add(reply["message"].partition(" bytes")[0].rpartition(" ")[2])
    (number,) = numbers
    return int(number)


@pytest.mark.parametrize("snapshot", [False, True], ids=["log", "snapshot"])
def test_a_quota_counts_what_is_there_at_the_start(
    tmp_path: Path, context: Context, snapshot: bool
) -> None:
    users = {"ann": user("a/", 100), "bob": user("", 200)}
    with ann_and_bob(tmp_path, context, users) as (_, ann, bob):
        ann.ok(op="PUT", key="a/1", value="x" * 26)
        bob.ok(op="PUT", key="a/2", value="x" * 16)
        bob.ok(op="PUT", key="b/1", value="x" * 16)
        assert (held(ann, "a/3"), held(bob, "b/2")) == (50, 70)
        if snapshot:
            bob.ok(op="SNAPSHOT")
    with ann_and_bob(tmp_path, context, users) as (_, ann, bob):
        assert (held(ann, "a/3"), held(bob, "b/2")) == (50, 70)
        bob.ok(op="DELETE", key="a/2")
        assert (held(ann, "a/3"), held(bob, "b/2")) == (30, 50)
        ann.ok(op="PUT", key="a/3", value="x" * 64)


def test_quotas_change_with_the_users_file(tmp_path: Path, context: Context) -> None:
    """On open connections; one that is new counts what is there."""
    users = {"ann": user("a/", 40), "bob": user("b/", 0)}
    with ann_and_bob(tmp_path, context, users) as (secured, ann, bob):
        ann.ok(op="PUT", key="a/1", value="x" * 16)
        bob.ok(op="PUT", key="b/1", value="x" * 35)
        assert held(ann, "a/2") == 20
        secured.reload({"ann": user("a/", 0), "bob": user("b/", 50)})
        assert held(bob, "b/2") == 40
        ann.ok(op="PUT", key="a/2", value="x" * 35)
        secured.reload({"ann": user("a/", 90), "bob": user("", 90)})
        assert (held(ann, "a/3"), held(bob, "b/2")) == (60, 100)
