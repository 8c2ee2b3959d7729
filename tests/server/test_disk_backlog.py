"""The server takes no more from clients than the disk takes from it: the rest waits with them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest
import zmq

from tests.conftest import Connect
from tests.support import LIMIT, Message, ServerInProcess, eventually, pack, unpack
from zkv.durability.files import Files
from zkv.durability.wal import QUICK_SYNC_SECONDS
from zkv.engine import UNSAFE_BYTES

MIB = 2**20
HISTORY: Message = {"history": 10, "history_bytes": 4 * MIB}


class SlowDisk(Files):
    """Too slow for the front to wait for it; syncs nothing while it is held."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()
        self.free.set()
        self.waiting = threading.Event()

    def sync(self, file: BinaryIO) -> None:
        """Wait until the disk is free."""
        if not self.free.is_set():
            self.waiting.set()
            self.free.wait()
        time.sleep(2 * QUICK_SYNC_SECONDS)
        super().sync(file)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold it within the block."""
        self.free.clear()
        try:
            yield
        finally:
            self.free.set()


def put(number: int, size: int) -> bytes:
    return pack({"op": "PUT", "key": f"k{number % 4}", "value": bytes(size), "id": number})


def puts(number: int, size: int) -> bytes:
    """A request that a worker runs: it has more keys than the front takes."""
    items = {f"k{place}": bytes(size // 1_100) for place in range(1_100)}
    return pack({"op": "MPUT", "items": items, "id": number})


@pytest.mark.parametrize("request_of", [put, puts])
def test_nothing_is_taken_up_while_too_much_waits_for_the_disk(
    tmp_path: Path, connect: Connect, request_of: Callable[[int, int], bytes]
) -> None:
    disk = SlowDisk()
    with ServerInProcess(tmp_path / "data", limits=HISTORY, files=disk) as node:
        engine = node.server._engine
        store = engine.keyspace
        clients = [connect(node.endpoint, zmq.DEALER) for _ in range(8)]
        others = connect(node.endpoint, zmq.DEALER)
        assert others.ok(op="PUT", key="first", value=None)
        with disk.held():
            for number in range(200):
                clients[number % 8].send(request_of(number, MIB))
            eventually(engine.has_much_unsafe, "that much waits")
            others.send(pack({"op": "PING"}))
            assert disk.waiting.wait(LIMIT)
            broker = node.server._broker
            front = broker._front
            eventually(
                lambda: (
                    front._mailbox is not None
                    and front._mailbox._waits
                    and front.bytes_forwarded == broker._bytes_taken()
                ),
                "that the front waits, and the workers have taken all",
            )
            taken = store.rev
            assert taken * MIB * 1.1 > UNSAFE_BYTES
            assert taken < 100, "what one batch and the workers have taken comes on top"
            assert store.history.statistics()["bytes"] < 110 * MIB

        assert unpack(others.receive())["ok"]
        answers = [unpack(clients[number % 8].receive()) for number in range(200)]
        assert all(answer["ok"] for answer in answers)
        eventually(lambda: store.history.memory <= 5 * MIB, "that the history is trimmed")
        assert len(store._undo) <= 1
