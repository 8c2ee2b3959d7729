"""Has worker's lanes run every request of two steps and more in slices of one step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from tests.requests.contract_stores import Store, request
from tests.support import Message, unpack
from zkv.requests.batch import Batch, new_batch
from zkv.requests.commands import Node
from zkv.requests.lane import Lane, open_lane


@contextlib.contextmanager
def in_slices(rest: Callable[[], None]) -> Iterator[None]:
    """Make the lanes that are opened meanwhile so; ``rest`` is called after each step."""
    with (
        mock.patch("zkv.requests.lane.LONG_STEPS", 1),
        mock.patch("zkv.requests.lane.SLICE_STEPS", 1),
        mock.patch("zkv.requests.lane.rest", rest),
    ):
        yield


def batch_of(*bodies: bytes) -> Batch:
    """A batch of requests that come from nobody."""
    batch = new_batch()
    for body in bodies:
        batch.add([], body)
    return batch


def open_front_lane(node: Node) -> Lane:
    """A lane such as the front has."""
    lane = open_lane(node.engine.keyspace, node.limits, node.max_reply_bytes, False)
    assert lane is not None
    return lane


class Onlooker:
    """Looks, in each rest, whether the front reads what was there before the long request.

    Args:
        keys: what it reads.

    Attributes:
        rests: how often it has looked.
        wrong: what it has read that was not expected; an exception in a rest would be dropped.
    """

    def __init__(self, keys: list[str]) -> None:
        self.rests = 0
        self.wrong: list[Any] = []
        self._gets = [request("GET", key=key) for key in keys]
        self._mget = request("MGET", keys=keys)
        self._put = request("PUT", key=keys[0], value=0)
        self._before: list[Message] = []
        self._lane: Lane | None = None

    def watch(self, node: Node) -> None:
        """Read from this store."""
        self._lane = open_front_lane(node)

    def expect(self, plain: Store) -> None:
        """Expect what this store, which has not run the request yet, has."""
        self._before = [unpack(plain.exchange(body)) for body in (self._mget, *self._gets)]

    def look(self) -> None:
        """To be called in each rest."""
        self.rests += 1
        self._read(self._mget, self._before[0])
        for get, before in zip(self._gets, self._before[1:], strict=True):
            self._read(get, before)

    def _read(self, body: bytes, before: Message) -> None:
        """Read, and try to write; what is absent, and the write, are left to a worker."""
        assert self._lane is not None
        batch = batch_of(body, self._put)
        self._lane.run(batch)
        read = [unpack(reply) for place in range(2) if (reply := batch.reply(place)) is not None]
        if read != ([before] if before["ok"] else []):
            self.wrong.append((read, before))
