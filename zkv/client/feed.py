"""The change feed as a client hears it: one socket, and what has come over it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Final

import zmq

from zkv.client.connection import SocketContext, addresses, explain
from zkv.client.follower import HEARTBEAT_TOPIC, Batch, Follower
from zkv.client.operations import Change

QUEUED: Final = 100_000
"""Messages of the feed that may wait here, as many as at the server."""
AT_ONCE: Final = 1_000
"""Messages that are taken before anything is told."""


def join(
    context: SocketContext | None, topics: Iterable[bytes], endpoint: str, turn: int
) -> zmq.Socket[bytes]:
    """A socket at the feed that hears of some topics.

    Args:
        context: to make it in; None = the process's own.
        topics: what messages begin with.
        endpoint: of the feed; one that has been checked.
        turn: which kind of address to take for a name, IPv4 or IPv6: each in its turn.

    Raises:
        ValueError: libzmq does not take the endpoint.
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
    poller = zmq.Poller()
    with ExitStack() as sockets:
        for turn in range(len(addresses(endpoint))):  # Whichever is heard will do.
            socket = sockets.enter_context(join(None, [HEARTBEAT_TOPIC], endpoint, turn))
            poller.register(socket, zmq.POLLIN)
        return time.monotonic() - begin if poller.poll(round(seconds * 1000)) else None
