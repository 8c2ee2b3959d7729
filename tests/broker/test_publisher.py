"""One contract for the publisher of a feed and its two ways to its socket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from tests.support import LIMIT, eventually
from zkv.broker.publisher import PUBLISHER, Publisher, PythonPublisher

Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]


@pytest.fixture
def feed(context: Context) -> Iterator[Socket]:
    """A feed by inproc, where nothing but the queues of followers holds messages."""
    socket = context.socket(zmq.XPUB)
    socket.linger = 0
    socket.sndhwm = 2
    socket.xpub_nodrop = True
    socket.bind("inproc://feed")
    yield socket
    socket.close()


@pytest.fixture(params=[PythonPublisher, PUBLISHER])
def publisher(request: pytest.FixtureRequest, feed: Socket) -> Publisher:
    """A publisher of each way."""
    made: Publisher = request.param(feed)
    return made


def follower(context: Context, feed: Socket, topic: bytes) -> Any:
    """A follower that has room for one message, beside those that wait in the feed."""
    socket = context.socket(zmq.SUB)
    socket.linger = 0
    socket.rcvhwm = 1
    socket.subscribe(topic)
    socket.connect("inproc://feed")
    assert feed.poll(round(LIMIT * 1000))
    assert feed.recv() == b"\1" + topic
    return socket


BODIES = [b"", b"small", b"x" * 33, b"x" * 34, b"x" * 1_000_000]


@pytest.mark.parametrize("body", BODIES, ids=map(len, BODIES))
def test_what_waits_is_counted_until_the_last_follower_has_it(
    context: Context, feed: Socket, publisher: Publisher, body: bytes
) -> None:
    size = 1 + len(body)
    with follower(context, feed, b"a") as one, follower(context, feed, b"") as two:
        assert publisher.waiting == (0, 0)
        assert publisher.send(b"a", body)
        assert publisher.send(b"b", body)
        assert publisher.waiting == (2, 2 * size)
        assert one.recv_multipart() == [b"a", body]
        assert two.recv_multipart() == [b"a", body]
        eventually(lambda: publisher.waiting == (1, size), "one to be released")
        assert two.recv_multipart() == [b"b", body]
        eventually(lambda: publisher.waiting == (0, 0), "all to be released")


def test_nobody_follows(publisher: Publisher) -> None:
    assert publisher.send(b"a", b"body")
    eventually(lambda: publisher.waiting == (0, 0), "it to be released")


def test_a_queue_is_full(context: Context, feed: Socket, publisher: Publisher) -> None:
    with follower(context, feed, b"a") as one, follower(context, feed, b"") as two:
        for _ in range(3):
            assert publisher.send(b"a", b"body")
            two.recv_multipart()
        assert not publisher.send(b"a", b"for nobody")
        feed.poll(0)  # Else libzmq learns only after a moment that something has been read.
        assert publisher.send(b"b", b"for two")
        assert two.recv_multipart() == [b"b", b"for two"]
        feed.xpub_nodrop = False
        feed.poll(0)
        assert publisher.send(b"a", b"for two")
        assert two.recv_multipart() == [b"a", b"for two"]
        assert [one.recv_multipart() for _ in range(3)] == [[b"a", b"body"]] * 3
        assert not one.poll(0)
        eventually(lambda: publisher.waiting == (0, 0), "all to be released")


def test_a_follower_leaves(context: Context, feed: Socket, publisher: Publisher) -> None:
    with follower(context, feed, b"a"):
        assert publisher.send(b"a", b"body")
        assert publisher.waiting == (1, 5)
    eventually(lambda: not feed.poll(10) or feed.recv() == b"\0a", "that it has left")
    eventually(lambda: publisher.waiting == (0, 0), "all to be released")


def test_only_bytes_are_sent(publisher: Publisher) -> None:
    for topic, body in (("a", b""), (b"a", "b"), (b"a", None)):
        with pytest.raises(TypeError):
            publisher.send(topic, body)  # type: ignore[arg-type]
    assert publisher.send(b"a", b"")
