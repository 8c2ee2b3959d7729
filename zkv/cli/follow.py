"""Following the changes of a store: without gaps, without repeats, and for as long as it takes.

The change feed is used as a bell. What it says tells only that there is something new, or that it
is still there; the changes themselves are taken from CHANGES, which knows every one of them, in
order, and says so where it does not. So messages that are lost, dropped for a slow reader or
doubled do no harm, and neither does a server that starts anew: the revision of the last change is
all that has to be known. Where there is no feed, or it cannot be reached, CHANGES is asked now and
then.
"""

from __future__ import annotations

import socket as posix
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import msgpack
import zmq

from zkv.cli.asking import reading
from zkv.cli.output import FAILED, CommandError
from zkv.client import NoReplyError, RefusedError
from zkv.endpoint import check_to_connect, host_of, is_name

if TYPE_CHECKING:
    from zkv.client import Client

HEARTBEAT: Final = b"\0"
QUIET: Final = 3.0
"""Seconds without a heartbeat, of which there is one a second: something is wrong with the feed."""
SELDOM: Final = 1.0
"""Seconds between two questions where only other keys have changed, or where there is no feed."""
PAUSE: Final = 0.5
"""Seconds before a server that did not answer is asked again."""
PAGE: Final = 1_000


class Change(NamedTuple):
    """One change, as CHANGES tells it."""

    rev: int
    op: str
    key: str
    value: Any


class Bell:
    """Rings when something may have changed. Use as a context manager.

    Args:
        endpoint: the feed's; None where there is none.
        server: an endpoint of the server, for a feed that says only which port it has.
        prefix: of the keys.
    """

    def __init__(self, endpoint: str | None, server: str, prefix: str) -> None:
        self._prefix = prefix.encode("utf-8", "surrogateescape")
        self._socket: zmq.Socket[bytes] | None = None
        if endpoint is not None:
            self._socket = _subscribe(reachable(endpoint, server), self._prefix)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close()

    def wait(self, seen: int) -> bool:
        """Wait until there may be a change behind revision ``seen``.

        Returns:
            Whether the feed has been heard. False means that nobody knows.
        """
        begin, socket = time.monotonic(), self._socket
        if socket is None:
            time.sleep(SELDOM)
            return True
        heard, until, others_only = False, begin + QUIET, False
        while (left := until - time.monotonic()) > 0:
            if not socket.poll(max(1, round(min(left, 1.0) * 1000))):
                continue
            heard = True
            rung = self._drain(socket, seen)
            if rung == "ours" or (rung == "any" and not self._prefix):
                return True
            others_only = others_only or rung == "any"
            until = begin + SELDOM if others_only else time.monotonic() + QUIET
        return heard

    def _drain(self, socket: zmq.Socket[bytes], seen: int) -> str:
        """Take all that has come: ``ours``: a key of ours; ``any``: a later revision; or neither.

        A revision below ``seen`` is news as well: the store has gone back.
        """
        rung = ""
        while True:
            try:
                topic, body = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return rung
            if topic != HEARTBEAT:
                rung = "ours"
            elif not rung and _revision(body) != seen:
                rung = "any"


def reachable(feed: str, server: str) -> str:
    """The endpoint at which a feed is reached that may listen at every address of its machine.

    Raises CommandError where what the server tells is none.
    """
    try:
        check_to_connect(feed)
    except (TypeError, ValueError) as error:
        raise CommandError(FAILED, f"the server tells of a feed that is none: {error}") from error
    for anywhere in ("tcp://0.0.0.0:", "tcp://[::]:"):
        if feed.startswith(anywhere) and server.startswith("tcp://"):
            return f"{server.rpartition(':')[0]}:{feed.removeprefix(anywhere)}"
    return feed


def hear(feed: str, server: str, seconds: float) -> float | None:
    """How many seconds the feed's first heartbeat took; None where none came in time."""
    begin = time.monotonic()
    socket = _subscribe(reachable(feed, server), HEARTBEAT)
    try:
        return time.monotonic() - begin if socket.poll(round(seconds * 1000)) else None
    finally:
        socket.close()


def follow(
    client: Client, prefix: str, since: int | None, say: Callable[[str], None]
) -> Iterator[list[Change]]:
    """Changes as they come, in pages; for ever.

    Args:
        client: whose server is followed.
        prefix: of the keys.
        since: the revision to begin behind; None = that which the store has now.
        say: told in a line when the server is lost and found.

    Raises:
        ClientError: the server cannot be asked, at the beginning; or it refuses.
        CommandError: there is a gap: the changes behind ``since`` are not kept any more, or the
            store has gone back.
    """
    info = client.call("INFO")
    seen: int = info["rev"] if since is None else since
    say(f"watching from revision {seen} on")
    while True:
        with Bell(info.get("feed"), client.endpoint, prefix) as bell:
            heard = True
            while heard:
                try:
                    for changes, following in _behind(client, prefix, seen):
                        seen = following
                        if changes:
                            yield changes
                except (NoReplyError, RefusedError) as error:
                    if not _may_pass(error):
                        raise
                    break
                heard = bell.wait(seen)
        info = _wait_for_answer(client, say)


def _behind(client: Client, prefix: str, seen: int) -> Iterator[tuple[list[Change], int]]:
    """All that has changed behind ``seen``, in pages, each with the revision that it reaches."""
    while True:
        try:
            reply = client.call("CHANGES", since=seen, prefix=prefix, limit=PAGE)
        except RefusedError as error:
            if error.code == "COMPACTED":
                raise _gap(f"the changes behind revision {seen} are not kept any more") from error
            raise
        with reading("CHANGES"):
            changes = [Change(*each) for each in reply["changes"]]
            newest, following = int(reply["rev"]), int(reply["next"])
        if newest < seen:
            raise _gap(f"the store has gone back from revision {seen} to {newest}")
        seen = following
        yield changes, seen
        if seen >= newest:
            return


def _gap(what: str) -> CommandError:
    return CommandError(FAILED, f"{what}: read the store anew, then watch from its revision")


def _wait_for_answer(client: Client, say: Callable[[str], None]) -> dict[str, Any]:
    """INFO, as soon as the server answers again."""
    lost = False
    while True:
        try:
            info = client.call("INFO")
        except (NoReplyError, RefusedError) as error:
            if not _may_pass(error):
                raise
            if not lost:
                say(f"{error}; trying again")
            lost = True
            time.sleep(PAUSE)
            continue
        if lost:
            say(f"{client.endpoint} answers again")
        return info


def _may_pass(error: NoReplyError | RefusedError) -> bool:
    return isinstance(error, NoReplyError) or error.retry


def _subscribe(endpoint: str, prefix: bytes) -> zmq.Socket[bytes]:
    """A socket that takes heartbeats, and what concerns keys with a prefix unless that is empty."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
    socket.linger = 0
    for topic in {HEARTBEAT, prefix or HEARTBEAT}:
        socket.subscribe(topic)
    try:
        for place in _places(endpoint):
            socket.ipv6 = place.startswith("tcp://[")
            socket.connect(place)
    except zmq.ZMQError as error:
        socket.close()
        raise CommandError(FAILED, f"feed {endpoint!r}: {error.strerror}") from error
    return socket


def _places(endpoint: str) -> list[str]:
    """All addresses of a name's host, IPv4 and IPv6: whichever is heard will do."""
    if not is_name(endpoint):
        return [endpoint]
    port = int(endpoint.rpartition(":")[2])
    try:
        found = posix.getaddrinfo(host_of(endpoint), port, type=posix.SOCK_STREAM)
    except (OSError, UnicodeError):
        return [endpoint]
    hosts = dict.fromkeys(str(place[0]) for _, _, _, _, place in found)
    return [f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}" for host in hosts]


def _revision(body: bytes) -> object:
    """What a heartbeat says. Whatever it is else, it is none that has been seen."""
    try:
        return msgpack.unpackb(body).get("rev")
    except (ValueError, AttributeError):
        return None
