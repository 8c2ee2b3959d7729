"""The client's side of the change feed: a socket, and the messages that it receives."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import closing
from itertools import cycle
from typing import TYPE_CHECKING, Final

import zmq

from zkv.client.connection import Address, Connection, SocketContext, addresses
from zkv.client.curve import CurveKeys
from zkv.client.follower import HEARTBEAT_TOPIC, ChangeBatch, Follower
from zkv.client.operations import Change
from zkv.client.retry import DEFAULT_POLICY, REASON_SECONDS, Attempts

if TYPE_CHECKING:
    from zkv.client.namespace import ClientOps

QUEUED: Final = 100_000
"""Messages of the feed that may wait in the socket, as many as at the server."""
AT_ONCE: Final = 1_000
"""The maximum number of messages in one batch."""


def join(
    context: SocketContext | None, topics: Iterable[bytes], address: Address, keys: CurveKeys
) -> Connection:
    """Return a connection that subscribes to some topics of the feed.

    Args:
        context: the ZeroMQ context of the socket; None = the process's own.
        topics: the beginnings of the messages to receive.
        address: of the feed.
        keys: of the client.

    Raises:
        ValueError: libzmq refuses the endpoint.
        ClosedError: the context has been terminated.
    """

    def prepare(socket: zmq.Socket[bytes]) -> None:
        socket.rcvhwm = QUEUED
        for topic in topics:
            socket.subscribe(topic)

    return Connection(context or zmq.Context.instance(), zmq.SUB, address, keys, prepare)


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


def named(endpoint: str) -> str:
    """Return the feed at an endpoint, as messages name it."""
    return f"the feed {endpoint}"


def hear(client: ClientOps, endpoint: str, seconds: float) -> float | None:
    """Return the seconds until the feed's first heartbeat; None = none arrives in time.

    Args:
        client: whose keys to use.
        endpoint: of the feed; it has been checked.
        seconds: to wait at most.

    Raises:
        ValueError: libzmq refuses the endpoint, or the client's keys do not suffice.
        UnavailableError: there is no connection to the feed.
    """
    from zkv.client.trouble import find_trouble

    keys = client._endpoints.keys
    attempts = Attempts(DEFAULT_POLICY, "INFO", True, seconds)
    begin = time.monotonic()
    for address in cycle(addresses(endpoint, keys)):
        with closing(join(None, [HEARTBEAT_TOPIC], address, keys)) as connection:
            if connection.connected or connection.wait(attempts.time_to_connect()):
                is_there = connection.socket.poll(max(0, round(attempts.left() * 1000)))
                return time.monotonic() - begin if is_there else None
            if connection.ends_round or attempts.left() <= 0:
                trouble = None
                if attempts.asks_why(named(endpoint), connection.failure):
                    limit = max(0.0, min(attempts.left(), REASON_SECONDS))
                    trouble = find_trouble(endpoint, limit, keys, connection.failure, True)
                time.sleep(attempts.no_connection(named(endpoint), trouble, 1, True))
    return None
