"""``zkv-cli`` with several servers that have copies of one store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cli.running import run
from tests.client.members import Member, Store, running
from zkv.cli.asking import NO_ANSWER
from zkv.cli.output import FAILED


@pytest.fixture
def pair() -> Iterator[tuple[Member, Member]]:
    """A standby that lacks the newest revision; and the primary, which it names."""
    store = Store()
    store.commits += [("k", "old"), ("k", "new")]
    standby, primary = Member("standby", store), Member("primary", store)
    standby.rev = 1
    with running(standby, primary):
        standby.leader = [primary.endpoint]
        yield standby, primary


def test_a_list_finds_the_leader(pair: tuple[Member, Member]) -> None:
    endpoints = ",".join(member.endpoint for member in pair)
    assert run("-e", endpoints, "put", "k", "newest").stdout == b"OK, revision 3, on disk\n"
    assert run("-e", endpoints, "get", "k").stdout == b"newest\n"


def test_one_endpoint_names_the_leader(pair: tuple[Member, Member]) -> None:
    standby, primary = pair
    refused = run("-e", standby.endpoint, "get", "k")
    assert refused.returncode == FAILED
    assert f"NOT_LEADER: words; the leader is at {primary.endpoint}" in refused.stderr.decode()


def test_a_copy_is_read_only_if_that_is_asked_for(pair: tuple[Member, Member]) -> None:
    standby, primary = pair
    here = "-e", standby.endpoint
    assert run(*here, "get", "k", "--stale").stdout == b"old\n"
    assert run(*here, "mget", "k", "--stale").stdout == b'"old"\n'
    assert run(*here, "count", "--stale").stdout == b"1\n"
    assert run(*here, "scan", "--stale").stdout == b'k\t"old"\n'
    behind = run(*here, "get", "k", "--min-rev", "2")
    assert behind.returncode == FAILED
    assert b"BEHIND" in behind.stderr
    standby.rev = 2
    assert run(*here, "get", "k", "--min-rev", "2").stdout == b"new\n"
    assert run(*here, "scan", "--min-rev", "2").stdout == b'k\t"new"\n'
    assert primary.ops == []


def test_end_ends_the_first_server_only(pair: tuple[Member, Member]) -> None:
    standby, primary = pair
    standby.swallows = {"END"}
    endpoints = ",".join(member.endpoint for member in pair)
    assert run("-e", endpoints, "end", "--timeout", "0.5").returncode == NO_ANSWER
    assert primary.ops == []
