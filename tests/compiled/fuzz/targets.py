"""What is done with each input that libFuzzer makes: raises where C and Python differ."""

from __future__ import annotations

import contextlib
from typing import Any

import msgpack
import zmq

from tests.broker.mailboxes import Context, Peer
from tests.compiled.alike import check_alike
from tests.compiled.lane_requests import LIMITS
from tests.compiled.loading import Tree, loaded, segment_file, snapshot_file
from tests.compiled.slices import batch_of, in_slices, open_front_lane
from tests.requests.contract_stores import (
    DurableStore,
    FakeClock,
    MemoryStore,
    PureMemoryStore,
    Worker,
    request,
)
from zkv import compiled
from zkv.broker.frames import COMPILED, PythonFrames
from zkv.client.messages import pack_request
from zkv.client.values import unpack
from zkv.durability import formats
from zkv.requests.batch import Batch, new_batch
from zkv.requests.commands import Node

BETWEEN = b"\xc1\xc1"
"""Between two bodies, or two frames: bytes that no msgpack has."""
APART = b"\xc1\xc2"
"""Between two batches, or two messages."""
RESERVED = "code must be 0~127"
"""What msgpack says of it."""
KEYS = ["a", "b", "ab", "\x01", "n"]
HELD = [(b"a", 1), (b"b", 2**63 - 1), (b"ab", "text"), (b"k" * 12, b"bytes")]


def lane(data: bytes) -> None:
    """Batches of bodies, by the lane and by the commands, on stores that hold something."""
    clock = FakeClock()
    fast = MemoryStore(clock, **LIMITS)
    _compare(data, clock, fast, fast.worker)


def slices(data: bytes) -> None:
    """The same, with requests of two steps and more run in slices by a worker's lane.

    After each step the front reads.
    """

    def look() -> None:
        front.run(batch_of(request("MGET", keys=KEYS), request("GET", key="a")))

    clock = FakeClock()
    with in_slices(look):
        fast = MemoryStore(clock, **LIMITS)
    front = open_front_lane(fast.node)
    _compare(data, clock, fast, fast.worker)


def writes(data: bytes) -> None:
    """The same on a store with files, to which C commits; and it is the same after a crash."""
    clock = FakeClock()
    with contextlib.closing(DurableStore(clock, fsync="never", **LIMITS)) as fast:
        fast.engine.wal._is_direct = True
        _compare(data, clock, fast, fast.workers[0])
        rev, before, *_ = _held(fast.node)
        fast.crash()
        assert [rev, before] == _held(fast.node)[:2]


def _compare(
    data: bytes, clock: FakeClock, fast: MemoryStore | DurableStore, worker: Worker
) -> None:
    plain = PureMemoryStore(clock, **LIMITS)
    for store in (fast, plain):
        for key, value in HELD:
            store.ok("PUT", key=key.decode(), value=value)
        store.ok("PUT", key="\x01", value=1, ttl=1)
    for batch in data.split(APART):
        bodies = batch.split(BETWEEN)
        try:
            check_alike(worker, plain.worker, bodies)
        except TypeError:
            return  # A map with a map as a key: Python has nothing to unpack that into.
        except ValueError as error:
            if RESERVED not in str(error):
                raise
            return  # An extension of msgpack's own that it does not know: likewise.
        clock.advance(700)
    assert _held(fast.node) == _held(plain.node)


def _held(node: Node) -> list[Any]:
    """What a store holds, has committed and remembers, as bytes."""
    keyspace = node.engine.keyspace
    commits, rev = keyspace.changes_since(0, 1_000_000)
    sessions = keyspace.sessions
    states = [sessions.state(name, 2**62) for name in sessions.names()]
    remembered = [state for state in states if state and state[2]]
    kept = [sessions.statistics(), remembered]
    return [rev, list(keyspace.entries.items()), commits, kept]


class _Ways:
    """A mailbox of each way, for all inputs."""

    def __init__(self) -> None:
        context: Context = zmq.Context()
        assert COMPILED is not None
        self.peers = [Peer(context, way) for way in (PythonFrames, COMPILED)]


_ways: list[_Ways] = []


def mailbox(data: bytes) -> None:
    """A batch of messages, by both mailboxes."""
    if not _ways:
        _ways.append(_Ways())
    messages = [message.split(BETWEEN) for message in data.split(APART)]
    outcomes = []
    for peer in _ways[0].peers:
        before = peer.mailbox.passed.unroutable
        peer.send(*messages)
        peer.mailbox.stop()  # So that it does not wait where nothing can be answered.
        outcome: list[Any] = []
        while bodies := peer.take():
            outcome.append(bodies)
            peer.reply([b"reply %d" % number for number in range(len(bodies))])
        outcome.append(peer.waiting())
        peer.send(*messages)
        outcome.append(_answered_at_once(peer))
        outcomes.append((outcome, peer.mailbox.passed.unroutable - before))
    assert outcomes[0] == outcomes[1]


def _answered_at_once(peer: Peer) -> list[Any]:
    """Batches that are answered while they are received, the first one not as a whole; replies."""
    bodies: list[Any] = []
    batch = new_batch()

    def answer(batch: Batch) -> str | None:
        is_first = not bodies
        bodies.append(list(batch))
        for place in range(len(batch)):
            batch.set_reply(place, b"reply %d" % place)
        return "what is left" if is_first else None

    left = peer.frames.receive(batch, wait=False, answer=answer)
    peer.frames.send(batch)
    rest = peer.frames.receive(batch, wait=False, answer=answer)
    return [bodies, left, rest, list(batch), peer.waiting()]


def values(data: bytes) -> None:
    """Bytes, as a client unpacks them; what they are, it packs again."""
    found = compiled.store.unpack_plain(data)
    if found is None:
        return
    assert repr(found) == repr(unpack(data))
    packed = compiled.store.pack_plain("PUT", 1, {"value": found})
    assert packed in {None, pack_request("PUT", 1, {"value": found})}, "None: it nests too deeply"


def log(data: bytes) -> None:
    """Payloads of commits, in good frames of a segment; a snapshot covers the first.

    They are in segments of each format.
    """
    payloads = [(payload, 0) for payload in data.split(BETWEEN)]
    for version in (formats.FIRST, formats.CURRENT):
        saved = snapshot_file(1, 1, [], 0, version=version)
        _check_loaded_alike(dict([segment_file(1, payloads, version=version), saved]))


def snapshot(data: bytes) -> None:
    """Payloads of entries, in good frames of a snapshot."""
    payloads = data.split(BETWEEN)
    frames = [(2, payload) for payload in payloads]
    _check_loaded_alike(dict([snapshot_file(3, 5, frames, sum(map(_count, payloads)))]))


def _count(payload: bytes) -> int:
    """The number of entries that a payload says it has."""
    reader = msgpack.Unpacker()
    reader.feed(payload)
    try:
        return int(reader.read_array_header())
    except (ValueError, msgpack.OutOfData):
        return 0


def _check_loaded_alike(tree: Tree) -> None:
    try:
        in_c = loaded(tree, in_c=True)
    except OverflowError:
        return  # A revision or deadline of 64 bits, which only Python's table holds.
    assert in_c == loaded(tree, in_c=False)
