"""Finds out why there is no connection, and explains it to the person who has to fix it.

libzmq reports that a connection failed, but not why. So after a failure this module uses a plain
socket: it resolves the name, connects, and sends a ZeroMQ greeting (ZMTP 3.1,
https://rfc.zeromq.org/spec/37/) to find out what kind of service listens there, and if it uses
CURVE.

If both sides use CURVE, the rest of the handshake is encrypted, and only libzmq can carry it out.
It tells that the server does not know the key of the client, and nothing else: a server that has
another key than the client thinks closes the connection, as one with another kind of socket does.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, NamedTuple

import zmq

from zkv.client.connection import HANDSHAKE_FAILED, REFUSED, Connection, addresses
from zkv.client.curve import KEY_FILE_VARIABLE, SERVER_KEY_VARIABLE, CurveKeys
from zkv.client.errors import ClientError
from zkv.client.retry import KEY_TRIES, Trouble
from zkv.endpoint import host_of, is_address

GREETING: Final = (
    b"\xff\0\0\0\0\0\0\0\1\x7f\3\0".ljust(12, b"\0") + b"NULL".ljust(20, b"\0") + bytes(32)
)
"""Signature, version 3.0, mechanism, and the rest of 64 bytes."""
SIGNATURE: Final = 10
VERSION: Final = 12
"""Bytes after which a service tells its mechanism. If it got another one first, it might hang up
before it has."""
MECHANISM: Final = slice(12, 32)
GREETING_BYTES: Final = 64
ENDS_OF_LINES: Final = b"\r\n\r\n"
"""Makes services answer that wait for the end of a line or of a header."""
MOST_BYTES: Final = 4_096
_IS_FEED: Final = "a change feed listens there"
_IS_SERVER: Final = "a server listens there for requests"
SERVERS: Final = frozenset({"ROUTER", "REP"})
FEEDS: Final = frozenset({"PUB", "XPUB"})
UNKNOWN: Final = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})


class _Probe(NamedTuple):
    """How to find out what listens at an address.

    Args:
        deadline: when to stop, by the monotonic clock.
        keys: of the client; None = they do not apply to the endpoint.
        for_feed: True if a feed is expected to listen there, False if a server.
    """

    deadline: float
    keys: CurveKeys | None
    for_feed: bool


def find_trouble(
    endpoint: str, seconds: float, keys: CurveKeys, failure: int = 0, for_feed: bool = False
) -> Trouble | None:
    """Find out why there is no connection to an endpoint; None = there may be one now.

    Args:
        endpoint: it has been checked.
        seconds: the longest time to take.
        keys: of the client.
        failure: of the connection, as `Connection.failure`.
        for_feed: True if a feed is expected to listen there, False if a server.
    """
    deadline = time.monotonic() + seconds
    if failure == REFUSED:
        return _refusal(_unknown_client(endpoint, keys))
    if endpoint.startswith("ipc://"):
        return _of_path(endpoint.removeprefix("ipc://"), _Probe(deadline, None, for_feed))
    if not endpoint.startswith("tcp://"):
        return None
    trouble = _of_places(endpoint, seconds, _Probe(deadline, keys, for_feed))
    if trouble is None and failure & HANDSHAKE_FAILED and keys.servers:
        return _of_handshake(endpoint, keys, for_feed, deadline)
    return trouble


def mechanism_at(host: str, port: int, seconds: float) -> str:
    """Return the mechanism that a listener of ZeroMQ asks for, such as ``CURVE``.

    Empty if it does not tell, or does not speak ZeroMQ.

    Args:
        host: its address, without brackets.
        port: its port.
        seconds: to wait at most for each of its answers.
    """
    try:
        with socket.create_connection((host, port), seconds) as peer:
            peer.sendall(GREETING[:VERSION])
            greeting = _receive(peer, _is_greeting) or b""
    except OSError:
        return ""
    return _mechanism(greeting) if _speaks_zmtp(greeting[:SIGNATURE]) else ""


def find_trouble_meanwhile(
    endpoint: str, seconds: float, keys: CurveKeys, failure: int, for_feed: bool
) -> Future[Trouble | None]:
    """Run `find_trouble` in a daemon thread, which does not delay the end of the process."""
    future: Future[Trouble | None] = Future()
    _in_thread(future, find_trouble, endpoint, seconds, keys, failure, for_feed)
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


def _of_places(endpoint: str, seconds: float, probe: _Probe) -> Trouble | None:
    """Return the trouble with the addresses of a tcp endpoint; None if one of them has none."""
    found = _look_up(endpoint, seconds)
    if isinstance(found, Trouble):
        return found
    first: Trouble | None = None
    for family, place in found:
        trouble = _of_place(family, place, probe)
        if trouble is None:
            return None
        if first is None or trouble.is_refusal:
            first = trouble
    return first


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


def _of_path(path: str, probe: _Probe) -> Trouble | None:
    if path.startswith("@"):
        return _of_place(socket.AF_UNIX, f"\0{path[1:]}", probe)
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return Trouble(f"{path} is not a socket", True)
    except FileNotFoundError:
        return Trouble(f"{path} does not exist: no server listens there")
    except OSError as error:
        return Trouble(f"{path}: {_words(error)}", True)
    return _of_place(socket.AF_UNIX, path, probe)


def _of_place(family: int, place: Any, probe: _Probe) -> Trouble | None:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as peer:
            peer.settimeout(max(0.01, probe.deadline - time.monotonic()))
            peer.connect(place)
            return _greet(peer, probe)
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


def _greet(peer: socket.socket, probe: _Probe) -> Trouble | None:
    """Talk ZMTP to the service, until it reports its mechanism and the type of its socket."""
    peer.settimeout(max(0.01, probe.deadline - time.monotonic()) / 2)
    try:
        peer.sendall(GREETING[:VERSION])
        received = _receive(peer, _is_greeting)
        if received is None:
            peer.sendall(ENDS_OF_LINES)
            received = _receive(peer, _is_greeting)
        elif received[MECHANISM] == GREETING[MECHANISM]:
            peer.sendall(GREETING[VERSION:])
            received += _receive(peer, _is_command) or b""
    except ConnectionError:
        received = b""
    if received is None:
        return Trouble("the listener there sends nothing: it hangs, or is not a zkv server")
    if not received:
        return Trouble("the listener there closes connections: not a zkv server, or an idle proxy")
    return _understand(received, probe)


def _receive(peer: socket.socket, is_enough: Callable[[bytes], bool]) -> bytes | None:
    """Receive until the service closes the connection or waits; None = it has sent nothing."""
    received = b""
    while not is_enough(received) and len(received) < MOST_BYTES:
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


def _is_greeting(received: bytes) -> bool:
    if not _speaks_zmtp(received[:SIGNATURE]):
        return bool(received)
    return len(received) >= GREETING_BYTES


def _is_command(received: bytes) -> bool:
    """Return True if the short command READY is there; another frame ends at some limit."""
    return len(received) >= 2 and len(received) >= 2 + received[1]


def _speaks_zmtp(begin: bytes) -> bool:
    return begin[:1] in {b"", b"\xff"} and (len(begin) < SIGNATURE or begin[9] & 1 == 1)


def _mechanism(greeting: bytes) -> str:
    return greeting[MECHANISM].rstrip(b"\0").decode("ascii", "replace")


def _understand(received: bytes, probe: _Probe) -> Trouble | None:
    if not _speaks_zmtp(received[:SIGNATURE]):
        line = received.split(b"\n")[0].rstrip()[:60].decode("ascii", "replace")
        return Trouble(f"the listener there is not a zkv server: it sends {line!r}", True)
    mechanism, keys = _mechanism(received), probe.keys
    if mechanism == "CURVE" and keys is not None:
        return None if keys.servers else _refusal(_WANTS_CURVE)
    if mechanism == "NULL" and keys is not None and keys.servers:
        return _refusal(f"the server does not use CURVE, for which this client has {_given(keys)}")
    if mechanism not in {"", "NULL"}:
        return Trouble(f"the listener there wants {mechanism}, which zkv does not use there", True)
    return _of_socket_type(_socket_type(received[GREETING_BYTES + 2 :]), probe.for_feed)


def _of_socket_type(kind: str, for_feed: bool) -> Trouble | None:
    if kind in (FEEDS if for_feed else SERVERS):
        return None
    if not kind:
        return Trouble("the listener there does not finish its ZeroMQ greeting")
    if kind in FEEDS:
        return Trouble(f"{_IS_FEED} (a socket of type {kind}); it answers no requests", True)
    if kind in SERVERS:
        return Trouble(f"{_IS_SERVER} (a socket of type {kind}); it publishes no changes", True)
    return Trouble(
        f"the listener there is not a zkv server, but a ZeroMQ socket of type {kind}", True
    )


def _socket_type(ready: bytes) -> str:
    """Return the socket type in a command READY; empty if there is none."""
    begin = ready.find(b"\x0bSocket-Type")
    if begin < 0:
        return ""
    begin += 12
    length = int.from_bytes(ready[begin : begin + 4])
    return ready[begin + 4 : begin + 4 + length].decode("ascii", "replace")


# --- Keys


_WANTS_CURVE: Final = (
    f"the server wants CURVE, and this client was not given the server's key: pass server_key, or "
    f"set {SERVER_KEY_VARIABLE}"
)


def _refusal(reason: str, tries: int = 1) -> Trouble:
    return Trouble(reason, is_lasting=True, is_refusal=True, tries=tries)


def _unknown_client(endpoint: str, keys: CurveKeys) -> str:
    """Why a server refuses a client, although it is reached as it wants to be."""
    if not endpoint.startswith("tcp://"):
        return f"the server has no user with the uid of this process, {os.geteuid()}"
    if not keys.servers:
        return "the server has no user `anonymous`, as whom it takes clients without CURVE"
    if not keys.file:
        return (
            f"the server lets in known keys alone, and this client has none: pass key_file, or set "
            f"{KEY_FILE_VARIABLE}"
        )
    return f"the server does not know the key of this client, {keys.pair().public} ({keys.file})"


def _given(keys: CurveKeys) -> str:
    """The keys of the server, as the client was given them."""
    return (
        f"{len(keys.servers)} keys ({keys.servers_from})"
        if len(keys.servers) > 1
        else (f"a key ({keys.servers_from})")
    )


def _of_handshake(endpoint: str, keys: CurveKeys, for_feed: bool, deadline: float) -> Trouble:
    """Return why a server that uses CURVE, as the client does, closes the connection."""
    if for_feed and _accepts(zmq.DEALER, endpoint, keys, deadline):
        return Trouble(f"{_IS_SERVER}; it publishes no changes", True)
    if not for_feed and _accepts(zmq.SUB, endpoint, keys, deadline):
        return Trouble(f"{_IS_FEED}; it answers no requests", True)
    text = "has none of the keys" if len(keys.servers) > 1 else "has another key than the one"
    text = f"the server {text} that this client was given ({keys.servers_from})"
    return _refusal(text, KEY_TRIES)


def _accepts(kind: int, endpoint: str, keys: CurveKeys, deadline: float) -> bool:
    """Return True if the service accepts a connection of another kind of socket."""
    for address in addresses(endpoint, keys):
        try:
            connection = Connection(zmq.Context.instance(), kind, address, keys)
        except (ClientError, OSError, ValueError):
            continue
        try:
            if connection.wait(max(0.0, deadline - time.monotonic())):
                return True
        finally:
            connection.close()
    return False
