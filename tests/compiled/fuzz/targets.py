"""What is done with each input that libFuzzer makes: raises where C and Python differ."""

from __future__ import annotations

from typing import Any

import zmq

from tests.broker.mailboxes import Context, Peer
from tests.compiled.alike import check_alike
from tests.compiled.lane_requests import LIMITS
from tests.requests.contract_stores import FakeClock, MemoryStore, PureMemoryStore
from zkv.broker.frames import COMPILED, PythonFrames

BETWEEN = b"\xc1\xc1"
"""Between two bodies, or two frames: bytes that no msgpack has."""
APART = b"\xc1\xc2"
"""Between two batches, or two messages."""
HELD = [(b"a", 1), (b"b", 2**63 - 1), (b"ab", "text"), (b"k" * 12, b"bytes")]


def lane(data: bytes) -> None:
    """Batches of bodies, by the lane and by the commands, on stores that hold something."""
    clock = FakeClock()
    fast, plain = MemoryStore(clock, **LIMITS), PureMemoryStore(clock, **LIMITS)
    for store in (fast, plain):
        for key, value in HELD:
            store.ok("PUT", key=key.decode(), value=value)
        store.ok("PUT", key="\x01", value=1, ttl=1)
    for batch in data.split(APART):
        bodies = batch.split(BETWEEN)
        try:
            check_alike(fast.worker, plain.worker, bodies)
        except TypeError:
            return  # A map with a map as a key: Python has nothing to unpack that into.
        clock.advance(700)
    assert _held(fast) == _held(plain)


def _held(store: MemoryStore | PureMemoryStore) -> list[Any]:
    """What a store holds, has committed and remembers, as bytes."""
    keyspace = store.node.engine.keyspace
    commits, rev = keyspace.changes_since(0, 1_000_000)
    sessions = keyspace.sessions
    states = [sessions.state(name, 2**62) for name in sessions.names()]
    remembered = [state for state in states if state and state[2]]
    entries = sorted(keyspace.entries.items())
    return [rev, entries, list(keyspace.keys_after("")), commits, remembered]


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
        before = peer.mailbox.unroutable
        peer.send(*messages)
        peer.mailbox.stop()  # So that it does not wait where nothing can be answered.
        outcome: list[Any] = []
        while bodies := peer.take():
            outcome.append(bodies)
            peer.reply([b"reply %d" % number for number in range(len(bodies))])
        outcomes.append((outcome, peer.waiting(), peer.mailbox.unroutable - before))
    assert outcomes[0] == outcomes[1]
