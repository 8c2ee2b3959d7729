"""The client's side of the change feed: a socket, and the messages that it receives."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Final

import zmq

from zkv.client.connection import SocketContext, addresses, explain
from zkv.client.follower import HEARTBEAT_TOPIC, ChangeBatch, Follower
from zkv.client.operations import Change

QUEUED: Final = 100_000
"""Messages of the feed that may wait in the socket, as many as at the server."""
AT_ONCE: Final = 1_000
"""The maximum number of messages in one batch."""


def join(
    context: SocketContext | None, topics: Iterable[bytes], endpoint: str, turn: int
) -> zmq.Socket[bytes]:
    """Return a socket that subscribes to some topics of the feed.

    Args:
        context: the ZeroMQ context of the socket; None = the process's own.
        topics: the beginnings of the messages to receive.
        endpoint: of the feed; it has been checked.
        turn: for a name, selects IPv4 or IPv6: count up to alternate between them.

    Raises:
        ValueError: libzmq refuses the endpoint.
        ClosedError: the context has been terminated.
    """
    places = addresses(endpoint)
    try:
        socket: zmq.Socket[bytes] = (context or zmq.Context.instance()).socket(zmq.SUB)
    except zmq.ZMQError as error:
        raise explain(endpoint, error) from error
    socket.linger = 0
    socket.rcvhwm = QUEUED
    socket.ipv6 = places[turn % len(places)].ipv6
    for topic in topics:
        socket.subscribe(topic)
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        socket.close()
        raise explain(endpoint, error) from error
    return socket


def drain(socket: zmq.Socket[bytes], follower: Follower) -> ChangeBatch | None:
    """Pass the messages that have arrived to the follower; None = nothing new."""
    changes: list[Change] = []
    told = follower.rev
    for _ in range(AT_ONCE):
        try:
            frames = socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            break
        batch = follower.message(frames, time.monotonic())
        if batch is not None:
            changes += batch.changes
    return ChangeBatch(changes, follower.rev) if follower.rev != told else None


def hear(endpoint: str, seconds: float) -> float | None:
    """Return the seconds until the feed's first heartbeat; None = none arrives in time.

    Raises:
        ValueError: the endpoint is malformed.
    """
    begin = time.monotonic()
    poller = zmq.Poller()
    with ExitStack() as sockets:
        for turn in range(len(addresses(endpoint))):  # Either may be the server's.
            socket = sockets.enter_context(join(None, [HEARTBEAT_TOPIC], endpoint, turn))
            poller.register(socket, zmq.POLLIN)
        return time.monotonic() - begin if poller.poll(round(seconds * 1000)) else None
