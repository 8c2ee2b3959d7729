"""What the adapters share: one client for each server, and requests of many keys."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

import zkv
from tests.support import LIMIT, environment, eventually
from zkv.contrib._caching import add, dump, load
from zkv.contrib._link import Link, in_url
from zkv.contrib._requests import get_all, in_parts


@pytest.fixture
def server() -> Iterator[zkv.Server]:
    with zkv.Server("tcp://127.0.0.1:*", max_value_bytes=100_000, max_reply_bytes=300_000) as made:
        yield made


def connections(server: zkv.Server) -> int:
    with zkv.Client(server.endpoint) as kv:
        return int(kv.info()["stats"]["connections"]) - 1


def test_adapters_of_a_process_share_a_client_until_the_last_is_gone(server: zkv.Server) -> None:
    links = [Link(server.endpoint, f"{n}/", timeout=3, key_file=None) for n in range(20)]
    links.append(pickle.loads(pickle.dumps(links[0])))
    assert links[0] == links[-1]
    assert len({links[0], links[1], links[-1]}) == 2
    for n, link in enumerate(links):
        link.keys["n"] = n
    assert links[0].keys["n"] == 20
    assert len({id(link.client) for link in links}) == 1
    # The server learns of connections, also of the one that asks, a moment after they are made.
    eventually(lambda: connections(server) == 1, "one client is connected")
    other = Link(server.endpoint, timeout=4)
    assert other.client is not links[0].client
    assert other.keys["0/n"] == 20
    keys = links[0].keys
    del links, link, other
    gc.collect()
    eventually(lambda: connections(server) == 1, "one client is left")
    assert keys["n"] == 20
    del keys
    gc.collect()
    eventually(lambda: connections(server) == 0, "all clients are closed")


def test_adapters_are_closed_at_the_end_of_a_program(server: zkv.Server) -> None:
    program = """
import sys
from zkv.contrib._link import Link
kept = Link(sys.argv[1])
kept.keys["a"] = 1
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "always::ResourceWarning", "-c", program,
         server.endpoint],
        env=environment(), capture_output=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")


def test_threads_that_are_gone_leave_no_connection(server: zkv.Server) -> None:
    def use() -> None:
        Link(server.endpoint).keys["a"] = 1

    for _ in range(3):
        threads = [threading.Thread(target=use) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    del thread, threads  # type: ignore[possibly-undefined]
    gc.collect()
    eventually(lambda: connections(server) == 0, "all connections are closed")


def test_a_forked_child_and_its_parent_do_not_disturb_each_other(server: zkv.Server) -> None:
    link = Link(server.endpoint, "fork/")
    link.keys["a"] = 1
    child = os.fork()
    if not child:
        try:
            os._exit(0 if link.keys.incr("a") == 2 and Link(server.endpoint).keys["fork/a"] else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert link.keys.incr("a") == 3


def test_many_or_large_items_are_sent_in_parts(server: zkv.Server) -> None:
    keys = Link(server.endpoint).keys
    large = {f"k{n:04}": bytes(50_000) for n in range(40)}
    small = {f"s{n:05}": n for n in range(25_000)}
    for items in (large, small):
        list(in_parts(lambda part: keys.put_many(dict(part)), items.items()))
        assert get_all(keys, [*items, "absent"]) == items
    assert sum(in_parts(keys.delete_many, [*large, *small, "absent"])) == 25_040
    with pytest.raises(zkv.TooLargeError):
        list(in_parts(lambda part: keys.put_many(dict(part)), [("a", 1), ("b", bytes(200_000))]))


def test_urls() -> None:
    assert in_url("zkv://h:1/a/b") == ("tcp://h:1", "a/b")
    assert in_url("zkv://[::1]:5555") == ("tcp://[::1]:5555", "")
    for url in ("", "zkv://", "redis://h:1/", "zkv:///a"):
        with pytest.raises(ValueError, match="not a URL like"):
            in_url(url)


def test_any_object_is_stored_and_only_some_are_pickled(server: zkv.Server) -> None:
    keys = Link(server.endpoint).keys
    for plain in ("é", b"\0", 2**63 - 1, -(2**63), 0.5, False, None):
        assert dump(plain) is plain
    value: object
    for value in (2**63, "\ud800", (1, [2]), {"a": {1}}, complex(1), range(3)):
        keys["a"] = dump(value)
        assert load(keys["a"]) == value


def test_a_number_of_any_kind_is_counted_once_each(server: zkv.Server) -> None:
    keys = Link(server.endpoint).keys
    keys.put("n", 5, ttl=1000)
    assert add(keys, "n", 2) == 7
    assert (keys.get_entry("n").ttl or 0) > 900
    keys.put("n", dump(2**63 - 1), ttl=1000)
    assert add(keys, "n", 1) == 2**63
    assert add(keys, "n", -1) == 2**63 - 1
    assert (keys.get_entry("n").ttl or 0) > 900
    with pytest.raises(zkv.NotFoundError):
        add(keys, "absent", 1)
    keys["text"] = "a"
    with pytest.raises(TypeError):
        add(keys, "text", 1)
    keys["f"] = 0.0

    def count() -> None:
        for _ in range(20):
            add(keys, "f", 0.5)
            add(keys, "n", 1)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (keys["f"], load(keys["n"])) == (40.0, 2**63 + 79)
