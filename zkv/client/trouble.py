"""Finds out why there is no connection, and explains it to the person who has to fix it.

libzmq reports that a connection failed, but not why. So after a failure this module uses a plain
socket: it resolves the name, connects, and sends a ZeroMQ greeting (ZMTP 3.1,
https://rfc.zeromq.org/spec/37/) to find out what kind of service listens there.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
import time
from concurrent.futures import Future
from typing import Any, Final

from zkv.client.retry import Trouble
from zkv.endpoint import host_of, is_address

GREETING: Final = (
    b"\xff\0\0\0\0\0\0\0\1\x7f\3\0".ljust(12, b"\0") + b"NULL".ljust(20, b"\0") + bytes(32)
)
"""Signature, version 3.0, mechanism, and the rest of 64 bytes."""
SIGNATURE: Final = 10
GREETING_BYTES: Final = 64
ENDS_OF_LINES: Final = b"\r\n\r\n"
"""Makes services answer that wait for the end of a line or of a header."""
MOST_BYTES: Final = 4_096
SERVERS: Final = frozenset({"ROUTER", "REP"})
FEEDS: Final = frozenset({"PUB", "XPUB"})
UNKNOWN: Final = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})


def find_trouble(endpoint: str, seconds: float) -> Trouble | None:
    """Find out why there is no connection to an endpoint; None = there may be one now.

    Args:
        endpoint: it has been checked.
        seconds: the longest time to take.
    """
    deadline = time.monotonic() + seconds
    if endpoint.startswith("ipc://"):
        return _of_path(endpoint.removeprefix("ipc://"), deadline)
    if not endpoint.startswith("tcp://"):
        return None
    found = _look_up(endpoint, seconds)
    if isinstance(found, Trouble):
        return found
    first: Trouble | None = None
    for family, place in found:
        trouble = _of_place(family, place, deadline)
        if trouble is None:
            return None
        first = first or trouble
    return first


def find_trouble_meanwhile(endpoint: str, seconds: float) -> Future[Trouble | None]:
    """Run `find_trouble` in a daemon thread, which does not delay the end of the process."""
    future: Future[Trouble | None] = Future()
    _in_thread(future, find_trouble, endpoint, seconds)
    return future


def _in_thread(future: Future[Any], function: Any, *arguments: Any) -> None:
    def run() -> None:
        try:
            result = function(*arguments)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name="zkv-trouble", daemon=True).start()


Place = tuple[int, Any]


def _look_up(endpoint: str, seconds: float) -> list[Place] | Trouble:
    """Resolve the host of a tcp endpoint to families and addresses."""
    host, port = host_of(endpoint), int(endpoint.rpartition(":")[2])
    future: Future[list[Any]] = Future()
    arguments = (host, port, socket.AF_UNSPEC, socket.SOCK_STREAM)
    try:
        if is_address(host):
            future.set_result(socket.getaddrinfo(*arguments))
        else:  # A name may take longer than there is time, and cannot be interrupted.
            _in_thread(future, socket.getaddrinfo, *arguments)
        return [(family, place) for family, _, _, _, place in future.result(max(seconds, 0.01))]
    except TimeoutError:
        return Trouble(f"unknown host {host!r}: the name service does not answer", False, True)
    except socket.gaierror as error:
        if error.errno in UNKNOWN:
            return Trouble(f"unknown host {host!r}", True, True)
        return Trouble(f"unknown host {host!r}: {error.strerror}", False, True)
    except (OSError, UnicodeError) as error:
        return Trouble(f"unknown host {host!r}: {error}", True, True)


def _of_path(path: str, deadline: float) -> Trouble | None:
    if path.startswith("@"):
        return _of_place(socket.AF_UNIX, f"\0{path[1:]}", deadline)
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return Trouble(f"{path} is not a socket", True)
    except FileNotFoundError:
        return Trouble(f"{path} does not exist: no server listens there")
    except OSError as error:
        return Trouble(f"{path}: {_words(error)}", True)
    return _of_place(socket.AF_UNIX, path, deadline)


def _of_place(family: int, place: Any, deadline: float) -> Trouble | None:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as peer:
            peer.settimeout(max(0.01, deadline - time.monotonic()))
            peer.connect(place)
            return _greet(peer, deadline)
    except ConnectionRefusedError:
        return Trouble("connection refused: no server listens there")
    except TimeoutError:
        return Trouble("nothing answers at this address")
    except PermissionError as error:
        return Trouble(_words(error), True)
    except OSError as error:
        return Trouble(_words(error), error.errno == errno.EPROTOTYPE)


def _words(error: OSError) -> str:
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


def _greet(peer: socket.socket, deadline: float) -> Trouble | None:
    """Talk ZMTP to the service, until it reports the type of its socket."""
    peer.settimeout(max(0.01, deadline - time.monotonic()) / 2)
    try:
        peer.sendall(GREETING)
        received = _receive(peer)
        if received is None:
            peer.sendall(ENDS_OF_LINES)
            received = _receive(peer)
    except ConnectionError:
        received = b""
    if received is None:
        return Trouble("the listener there sends nothing: it hangs, or is not a zkv server")
    if not received:
        return Trouble("the listener there closes connections: not a zkv server, or an idle proxy")
    return _understand(received)


def _receive(peer: socket.socket) -> bytes | None:
    """Receive until the service closes the connection or waits; None = it has sent nothing."""
    received = b""
    while not _is_enough(received) and len(received) < MOST_BYTES:
        try:
            data = peer.recv(MOST_BYTES)
        except TimeoutError:
            return received or None
        except ConnectionError:
            data = b""
        if not data:
            break
        received += data
    return received


def _is_enough(received: bytes) -> bool:
    if not _speaks_zmtp(received[:SIGNATURE]):
        return bool(received)
    if len(received) < GREETING_BYTES + 2:
        return False
    return len(received) >= GREETING_BYTES + 2 + received[GREETING_BYTES + 1]


def _speaks_zmtp(begin: bytes) -> bool:
    return begin[:1] in {b"", b"\xff"} and (len(begin) < SIGNATURE or begin[9] & 1 == 1)


def _understand(received: bytes) -> Trouble | None:
    if not _speaks_zmtp(received[:SIGNATURE]):
        line = received.split(b"\n")[0].rstrip()[:60].decode("ascii", "replace")
        return Trouble(f"the listener there is not a zkv server: it sends {line!r}", True)
    kind = _socket_type(received[GREETING_BYTES + 2 :])
    if kind in FEEDS:
        return Trouble(
            f"a change feed listens there (a socket of type {kind}); it answers no requests",
            True,
        )
    if not kind:
        return Trouble("the listener there does not finish its ZeroMQ greeting")
    if kind not in SERVERS:
        return Trouble(
            f"the listener there is not a zkv server, but a ZeroMQ socket of type {kind}", True
        )
    return None


def _socket_type(ready: bytes) -> str:
    """Return the socket type in a command READY; empty if there is none."""
    begin = ready.find(b"\x0bSocket-Type")
    if begin < 0:
        return ""
    begin += 12
    length = int.from_bytes(ready[begin : begin + 4])
    return ready[begin + 4 : begin + 4 + length].decode("ascii", "replace")
