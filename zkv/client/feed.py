"""The change feed as a client hears it: one socket, and what has come over it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

import zmq

from zkv.client.connection import SocketContext
from zkv.client.following import HEARTBEAT_TOPIC, Batch, Follower
from zkv.client.operations import Change

QUEUED: Final = 100_000
"""Messages of the feed that may wait here, as many as at the server."""
AT_ONCE: Final = 1_000
"""Messages that are taken before anything is told."""


def join(
    context: SocketContext | None, topics: Iterable[bytes], endpoint: str
) -> zmq.Socket[bytes]:
    """A socket at the feed that hears of some topics. Raises ValueError.

    Args:
        context: to make it in; None = the process's own.
        topics: what messages begin with.
        endpoint: the feed's.
    """
    socket: zmq.Socket[bytes] = (context or zmq.Context.instance()).socket(zmq.SUB)
    socket.linger = 0
    socket.rcvhwm = QUEUED
    socket.ipv6 = "[" in endpoint
    for topic in topics:
        socket.subscribe(topic)
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        socket.close()
        raise ValueError(f"feed {endpoint!r}: {zmq.strerror(error.errno or 0)}") from error
    return socket


def drain(socket: zmq.Socket[bytes], follower: Follower) -> Batch | None:
    """Hand over the messages that are there; None where they bring nothing new."""
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
    return Batch(changes, follower.rev) if follower.rev != told else None


def hear(endpoint: str, seconds: float) -> float | None:
    """How many seconds the feed's first heartbeat takes; None = none comes in time.

    Raises:
        ValueError: the endpoint is malformed.
    """
    begin = time.monotonic()
    with join(None, [HEARTBEAT_TOPIC], endpoint) as socket:
        return time.monotonic() - begin if socket.poll(round(seconds * 1000)) else None
