#!/usr/bin/env python3
"""A client for a zkv server in one file, with a command line: copy it into your program.

A request is one msgpack map in one frame on a REQ socket, and so is its reply. This file
needs pyzmq and msgpack, and is the model of the clients in other languages. These rules
make a client reliable:

1. It never waits without a limit: it sends without blocking, and polls before receiving.
2. A REQ socket refuses to send while it waits for a reply. So after a lost reply the
   client closes the socket, and the next attempt opens a new one.
3. LINGER is 0. When the socket is closed, a request that was not sent is dropped. It
   does not delay the end of the process, and does not run later, when nobody waits for
   it. (The option IMMEDIATE prevents that, too, but may drop a reply if the server closes
   the connection directly after it, as after END.)
4. Every request has a new `id`, and a reply counts only if it has the same `id`.
5. Every write has `session` and `seq`. So after a lost reply the client can send the same
   bytes again: the write runs once, and the repeat gets the same reply.
6. A REQ socket whose handshake has failed sends nothing, and does not say so. So a monitor
   watches each socket until its handshake has succeeded.

The endpoint may be a list with commas: of the servers that have one store. The client leaves
one that sends no reply, or that does not lead, for the next one. No server gets a request
before INFO has shown that it has no other store, and no lower term of it, than was seen.

To tcp:// endpoints it uses CURVE if the variable ZKV_SERVER_PUBLIC_KEY is set.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import math
import os
import secrets
import stat
import struct
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgpack  # type: ignore[import-untyped, unused-ignore]  # has no annotations
import zmq
from zmq.utils import z85

DEFAULT_ENDPOINT = "tcp://127.0.0.1:5555"
WRITES = frozenset({"PUT", "DELETE", "TOUCH", "INCR", "MPUT", "MDELETE", "TXN"})
READS = frozenset({"PING", "GET", "MGET", "SCAN", "COUNT", "CHANGES", "INFO"})
MOVES = ("NO_REPLY", "HANDSHAKE_FAILED", "NOT_LEADER")  # another endpoint may do better
PAUSE = 0.1  # seconds before the next attempt after a failure with `retry`
# While its key is changed, a server takes each connection with one key or the other.
TRIES = 10
SHORT_PAUSE = 0.03  # seconds between them
LONGEST_TIMEOUT = 86_400.0  # seconds; poll accepts a limited number of milliseconds
# Some languages send a str that is not UTF-8. This error handler preserves its bytes.
STR_ERRORS = "surrogateescape"


class ZkvError(Exception):
    """A request that failed.

    `code` is one of the protocol's, BAD_REPLY for a reply that violates the protocol, or
    HANDSHAKE_FAILED if the client and the server cannot connect.
    `retry`: the same request may succeed later. `applied`, for a write: False = certainly
    not applied, None = unknown. `reply` is the server's whole reply, which has further
    fields for some codes (CONFLICT: `key` and `rev`).
    """

    def __init__(self, code: str, message: str, reply: Mapping[str, Any] | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.reply = dict(reply or {})
        self.retry = self.reply.get("retry") is True
        self.applied: bool | None = False if self.reply.get("applied") is False else None


class NoReply(ZkvError):
    """No reply came in time. A write may have been applied, or may be applied later.

    `applied` is False if no server has answered INFO, and so none has got the request.
    """

    def __init__(self, message: str, applied: bool | None = None) -> None:
        super().__init__("NO_REPLY", message, {"retry": True, "applied": applied})


class BadValue(ZkvError):
    """A value that the server holds and Python cannot. `packed` is its msgpack.

    A map whose keys are equal in Python (the same twice; 1, 1.0 and True), or are maps; an
    ext of a type below -1, or of type -1 that is no timestamp.
    """

    def __init__(self, reason: str, packed: bytes) -> None:
        super().__init__("BAD_VALUE", reason)
        self.packed = packed

    def name(self, key: str) -> None:
        """Say in the message whose value it is."""
        reason, self.message = self.message, f"{key!r} has a value that Python cannot hold"
        self.message += f": {reason}"
        self.args = (f"{self.code}: {self.message}",)


# ------------------------------------------------------------------------------- msgpack


def pack(value: Any) -> bytes:
    """Return a value as msgpack. Raises TypeError, ValueError or OverflowError."""
    packed: bytes = msgpack.packb(value, unicode_errors=STR_ERRORS)
    return packed


def unpack(packed: bytes) -> Any:
    """Return the value in these bytes. Raises ValueError for what Python cannot hold."""
    try:
        return msgpack.unpackb(
            packed, strict_map_key=False, unicode_errors=STR_ERRORS, object_pairs_hook=to_dict
        )
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def to_dict(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return a map as a dict, with tuples for arrays in its keys."""
    found = {as_key(key): value for key, value in pairs}
    if len(found) < len(pairs):
        raise ValueError("two keys of a map are equal in Python")
    return found


def as_key(value: Any) -> Any:
    """Return what a dict takes for a key."""
    return tuple(map(as_key, value)) if isinstance(value, list) else value


def unpack_reply(packed: bytes) -> dict[str, Any]:
    """Return a reply, with a BadValue for each value in it that Python cannot hold."""
    try:
        reply = unpack(packed)
    except ValueError:
        names_and_values = parts(packed)
        reply = {}
        for name, value in zip(names_and_values[::2], names_and_values[1::2], strict=True):
            reply[unpack(name)] = unpack_field(unpack(name), value)
    if not isinstance(reply, dict):
        raise TypeError("it is no map")
    return reply


def unpack_field(name: str, packed: bytes) -> Any:
    """Return a field of a reply; `unpack_reply`."""
    if name == "results":
        return [unpack_reply(result) for result in parts(packed)]
    return unpack_values(packed, {"values": 1, "items": 2, "changes": 2}.get(name, 0))


def unpack_values(packed: bytes, levels: int) -> Any:
    """Return a value, or so many levels of arrays of them."""
    if levels:
        return [unpack_values(part, levels - 1) for part in parts(packed)]
    try:
        return unpack(packed)
    except ValueError as error:
        return BadValue(str(error), packed)


def parts(packed: bytes) -> list[bytes]:
    """Return what is in an array, or the keys and values of a map, each still packed."""
    reader = msgpack.Unpacker(max_buffer_size=0)
    reader.feed(packed)
    is_map = 0x80 <= packed[0] < 0x90 or packed[0] in (0xDE, 0xDF)
    size = reader.read_map_header() * 2 if is_map else reader.read_array_header()
    found = []
    for _ in range(size):
        start = reader.tell()
        reader.skip()
        found.append(packed[start : reader.tell()])
    return found


def name_keys(request: Mapping[str, Any], reply: Mapping[str, Any]) -> None:
    """Tell every BadValue in a reply whose value it is."""
    for part, result in zip(request.get("ops", ()), reply.get("results", ()), strict=False):
        name_keys(part, result)
    for key, value in [
        (request.get("key"), reply.get("value")),
        (request.get("key"), reply.get("prev")),
        *zip(request.get("keys", ()), reply.get("values", ()), strict=False),
        *((item[0], item[1]) for item in reply.get("items", ())),
        *((change[2], change[3]) for change in reply.get("changes", ())),
    ]:
        if isinstance(value, BadValue):
            value.name(key)


# ---------------------------------------------------------------------------------- keys


class Keys:
    """Keys of CURVE for one client, each 40 characters of Z85.

    `server` are the server's, of which one must fit; the first is in use.
    """

    def __init__(self, server: list[bytes], file: str) -> None:
        self.server = server
        if file:
            self._secret = read_key_file(file)
            self._public = zmq.curve_public(self._secret)
        else:  # a pair for this client alone
            self._public, self._secret = zmq.curve_keypair()

    def secure(self, socket: zmq.Socket[bytes]) -> None:
        """Give the keys to a socket."""
        socket.curve_serverkey = self.server[0]
        socket.curve_publickey = self._public
        socket.curve_secretkey = self._secret

    def next(self) -> None:
        """Use the next one of the server's keys."""
        self.server.append(self.server.pop(0))


def read_keys(endpoints: list[str]) -> Keys | None:
    """Return the keys in the environment, if an endpoint needs any. Raises ValueError."""
    if not any(endpoint.startswith("tcp://") for endpoint in endpoints):
        return None
    words = os.environ.get("ZKV_SERVER_PUBLIC_KEY", "").split(",")
    server = [word.strip().encode() for word in words if word.strip()]
    file = os.environ.get("ZKV_KEY_FILE", "")
    if not all(map(is_key, server)):
        raise ValueError("ZKV_SERVER_PUBLIC_KEY: not a key: expected 40 characters of Z85")
    if file and not server:
        raise ValueError("ZKV_KEY_FILE is of no use without ZKV_SERVER_PUBLIC_KEY")
    return Keys(server, file) if server else None


def read_key_file(path: str) -> bytes:
    """Return the secret key in a file that only its owner may read. Raises ValueError."""
    try:
        with open(path, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            secret = b"" if mode & 0o077 else file.read(128).strip()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    if mode & 0o077:
        raise ValueError(f"{path}: others may read it (mode {mode:04o}): chmod 600 {path}")
    if not is_key(secret):
        raise ValueError(f"{path}: not a key file: expected one line of 40 characters of Z85")
    return secret


def is_key(text: bytes) -> bool:
    """Return True if the text is a key."""
    try:
        return len(text) == 40 and len(z85.decode(text)) == 32
    except (KeyError, struct.error):  # other characters; five of them say more than 4 bytes
        return False


# -------------------------------------------------------------------------------- client

HANDSHAKE = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
monitors = itertools.count()


class ShutOut(ZkvError):
    """The handshake failed. `cut`: ZeroMQ tries again, and a request may be sent yet."""

    def __init__(self, message: str, *, cut: bool = False) -> None:
        super().__init__(
            "HANDSHAKE_FAILED", message, {"retry": cut, "applied": None if cut else False}
        )


class Connection:
    """A REQ socket, and a monitor that reports its handshake until that has succeeded."""

    def __init__(self, endpoint: str, keys: Keys | None) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._keys = keys
        self._monitor: zmq.Socket[bytes] | None = None
        self.socket: zmq.Socket[bytes] = context.socket(zmq.REQ)
        self.socket.linger = 0
        try:
            if keys is not None:
                keys.secure(self.socket)
            address = f"inproc://zkv-handshake-{next(monitors)}"
            self.socket.monitor(address, HANDSHAKE)
            self._monitor = context.socket(zmq.PAIR)
            self._monitor.rcvhwm = 0  # no limit: otherwise ZeroMQ could wait for the client
            self._monitor.connect(address)
            self.socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ValueError(f"endpoint {endpoint!r}: {error.strerror}") from error

    def __del__(self) -> None:
        if hasattr(self, "socket"):
            self.close()

    def close(self) -> None:
        """Close both sockets."""
        self._stop_monitor()
        self.socket.close()

    def exchange(self, body: bytes, timeout: float) -> Sequence[bytes] | None:
        """Send a body and return the reply's frames; None if none comes in time. Raises ShutOut."""
        end = time.monotonic() + timeout
        try:
            self.socket.send(body, zmq.NOBLOCK)
        except zmq.Again:  # the socket has no connection any more
            self._check_handshake()
            return None
        while self._monitor is not None:
            if not self._monitor.poll(math.ceil(max(0.0, end - time.monotonic()) * 1000)):
                return None
            self._check_handshake()
        if not self.socket.poll(math.ceil(max(0.0, end - time.monotonic()) * 1000)):
            return None
        return self.socket.recv_multipart(zmq.NOBLOCK)

    def _check_handshake(self) -> None:
        """Read the events of the handshake that have come. Raises ShutOut if it has failed."""
        event = 0
        while self._monitor is not None and self._monitor.poll(0):
            event = int.from_bytes(self._monitor.recv_multipart()[0][:2], sys.byteorder)
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._stop_monitor()
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            raise ShutOut(
                "the server does not know this client: its key or, on ipc, its system user"
            )
        if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            raise ShutOut(
                "the server does not speak CURVE" if self._keys is not None
                else "the server asks for CURVE: set ZKV_SERVER_PUBLIC_KEY"
            )  # fmt: skip
        # Without keys a server that is about to start may have cut the connection.
        if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and self._keys is not None:
            raise ShutOut(
                "the handshake was cut: the server has another key than ZKV_SERVER_PUBLIC_KEY "
                "says, or no CURVE",
                cut=True,
            )

    def _stop_monitor(self) -> None:
        if self._monitor is not None:
            if not self.socket.closed:
                self.socket.disable_monitor()  # first: otherwise ZeroMQ could wait for a reader
            self._monitor.close()
            self._monitor = None


class Client:
    """One connection to a server, with one request at a time. Do not share it by threads.

    `endpoint` may be a list with commas, of servers that have one store. `timeout` is in
    seconds and applies to each of the `attempts` at each endpoint. Every method raises
    NoReply, ZkvError for a refusal, and TypeError, ValueError or OverflowError for a value
    that msgpack cannot pack.
    """

    def __init__(
        self, endpoint: str = DEFAULT_ENDPOINT, *, timeout: float = 5.0, attempts: int = 3
    ) -> None:
        self._endpoints = [item.strip() for item in endpoint.split(",")]  # the first is in use
        self._seen: tuple[str, int] | None = None  # the store, and the newest term of it
        self.timeout = timeout
        self._attempts = attempts
        self._session = secrets.token_hex(16)
        self._last_id = self._last_seq = 0
        self._keys = read_keys(self._endpoints)
        self._connection: Connection | None = None
        for _ in self._endpoints:
            self._connect()
            self._move_on()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; the next request opens a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def call(self, op: str, /, **fields: Any) -> dict[str, Any]:
        """Send any op with its fields and return the reply, a map.

        A BadValue replaces each value that Python cannot hold.
        """
        request = {"op": op, **fields}
        if "id" not in request:
            self._last_id += 1
            request["id"] = self._last_id
        if op in WRITES and "session" not in request:
            self._last_seq += 1
            request |= {"session": self._session, "seq": self._last_seq}
        body = pack(request)
        # Elsewhere, too, though it may have been applied. Other ops, as END, concern one server.
        repeatable = op in READS or (op in WRITES and request["session"] is not None)
        laps = len(self._endpoints) if repeatable else 1
        in_doubt = False  # an attempt may have been applied
        for left in reversed(range(self._attempts * laps if op != "END" else 1)):
            try:
                reply = self._ask(body, request["id"])
                name_keys(request, reply)
                return reply
            except ZkvError as error:
                # After an attempt that may have been applied, these say nothing about it.
                if not error.retry and not (
                    in_doubt and error.code in ("DEADLINE", "HANDSHAKE_FAILED")
                ):
                    raise
                in_doubt |= error.applied is None and error.code != "HANDSHAKE_FAILED"
                if error.code in MOVES and (repeatable or (op in WRITES and not in_doubt)):
                    # One lap follows hints, lest two servers name each other; then try all.
                    first_lap = left >= (self._attempts - 1) * laps
                    self._move_on(error.reply.get("leader") if first_lap else None)
                if left == 0 and not (in_doubt and error.applied is False):
                    raise
                if error.code != "NO_REPLY":
                    time.sleep(PAUSE)
        raise self._no_reply()

    def get(self, key: str) -> Any:
        """Return the value; raises NOT_FOUND if the key is absent, BadValue if it is unreadable."""
        value = self.call("GET", key=key)["value"]
        if isinstance(value, BadValue):
            raise value
        return value

    def put(self, key: str, value: Any, **options: Any) -> int:
        """Store a value and return its revision. Options: ttl (seconds), if_rev, durable."""
        return int(self.call("PUT", key=key, value=value, **options)["rev"])

    def delete(self, key: str, **options: Any) -> int:
        """Delete a key and return the revision; raises NOT_FOUND if the key is absent."""
        return int(self.call("DELETE", key=key, **options)["rev"])

    def mget(self, keys: Iterable[str]) -> list[Any]:
        """Return the values of many keys in order, None for an absent one.

        As in `scan`, a BadValue replaces each value that Python cannot hold.
        """
        return list(self.call("MGET", keys=list(keys))["values"])

    def mput(self, items: Mapping[str, Any], **options: Any) -> int:
        """Store many values, all or nothing, and return the revision they share."""
        return int(self.call("MPUT", items=dict(items), **options)["rev"])

    def incr(self, key: str, by: int = 1) -> int:
        """Add to an int and return the sum; an absent one starts at 0."""
        return int(self.call("INCR", key=key, by=by)["value"])

    def cas(self, key: str, value: Any, rev: int) -> int:
        """Store a value if the key has revision `rev` (0 = absent); else raise CONFLICT."""
        return self.put(key, value, if_rev=rev)

    def scan(self, prefix: str = "") -> Iterator[list[Any]]:
        """Yield [key, value, revision] for each key with this prefix, page by page."""
        after = None
        while True:
            page = self.call("SCAN", prefix=prefix, after=after)
            yield from page["items"]
            after = page["next"]
            if after is None:
                return

    def end(self) -> int:
        """Save everything and stop the server; return the last revision."""
        return int(self.call("END")["rev"])

    def _connect(self) -> Connection:
        """Return the open connection, or open one. A malformed endpoint raises ValueError.

        The server need not be running: ZeroMQ connects in the background.
        """
        if self._connection is None:
            endpoint = self._endpoints[0]
            self._connection = Connection(endpoint, self._keys_of(endpoint))
        return self._connection

    def _no_reply(self) -> NoReply:
        return NoReply(f"none from {', '.join(self._endpoints)} within {self.timeout:g} s")

    def _move_on(self, leader: Any = None) -> None:
        """Go to a server that leads, if it is listed or must prove its key; or to the next one."""
        left, *others = self._endpoints
        for hint in map(str, leader or ()):
            if hint in others or (hint != left and self._keys_of(hint)):
                others = [hint, *(other for other in others if other != hint)]
                break
        if others:
            self.close()
            self._endpoints = [*others, left]

    def _keys_of(self, endpoint: str) -> Keys | None:
        return self._keys if endpoint.startswith("tcp://") else None

    def _ask(self, body: bytes, sent_id: Any) -> dict[str, Any]:
        """Return the reply. Of several servers, one must first say whose it is."""
        if self._connection is None and len(self._endpoints) > 1:
            try:
                self._check()
            except ZkvError:
                self.close()
                raise
        return self._read(self._exchange(body), sent_id)

    def _check(self) -> None:
        """Raise ZkvError if this server must not get a request."""
        self._last_id += 1
        try:
            frames = self._exchange(pack({"op": "INFO", "id": self._last_id}))
        except NoReply:
            raise NoReply(f"{self._endpoints[0]}: none to INFO", applied=False) from None
        found = self._read(frames, self._last_id).get("replication") or {}
        store, term = found.get("store"), int(found.get("term") or 0)
        if self._seen and (store != self._seen[0] or term < self._seen[1]):
            why = f"{self._endpoints[0]}: it has another store, or a lower term of it"
            raise ZkvError("NOT_LEADER", why, {"retry": True, "applied": False})
        self._seen = (store, term) if store else None

    def _exchange(self, body: bytes) -> Sequence[bytes]:
        """Send one body and return the frames of the reply. Raises NoReply.

        Raises ShutOut if the handshake fails, with one of the server's keys after the other.
        """
        for _ in range(TRIES - 1):
            try:
                return self._exchange_once(body)
            except ShutOut as error:
                if not error.retry or self._keys is None:
                    raise
                self._keys.next()
                time.sleep(SHORT_PAUSE)
        return self._exchange_once(body)

    def _exchange_once(self, body: bytes) -> Sequence[bytes]:
        try:
            connection = self._connect()
        except ValueError:  # a server has sent the client there
            raise self._no_reply() from None
        try:
            frames = connection.exchange(body, self.timeout)
            if frames is None:
                raise self._no_reply()
            return frames
        except BaseException:  # also after Ctrl-C: the socket waits for a reply
            self.close()
            raise

    def _read(self, frames: Sequence[bytes], sent_id: Any) -> dict[str, Any]:
        """Return the reply in `frames`; raises ZkvError for a failure, or a bad reply."""
        try:
            (body,) = frames
            reply = unpack_reply(body)
        except (ValueError, TypeError) as error:
            self.close()
            raise ZkvError("BAD_REPLY", f"cannot read the reply: {error!r:.80}") from error
        ok, echo = reply.get("ok"), reply.get("id")
        if ok is True and echo == sent_id:
            return reply
        if ok is False and echo in (sent_id, None):  # without an id: the server could not read it
            raise ZkvError(str(reply.get("code")), str(reply.get("message")), reply)
        self.close()
        raise ZkvError("BAD_REPLY", f"ok {ok!r}, id {echo!r} where {sent_id!r} was sent")


# ------------------------------------------------------------------------ command line

USAGE = """%(prog)s [-e ENDPOINT] [--timeout S] COMMAND ...

  put KEY VALUE    get KEY    delete KEY    incr KEY [BY]    end    call

Commands may be in upper or lower case. A VALUE is text; - reads it from standard input;
after -- it may begin with a dash. get prints only the value. call reads requests, one per
line, each a msgpack map in hex, and prints the replies in the same form.

Exit status: 0 done; 1 a negative answer (NOT_FOUND, CONFLICT); 2 wrong usage, or any other
refusal by the server; 3 no answer in time."""


def seconds(text: str) -> float:
    """Parse a timeout, above 0 and at most a day."""
    value = float(text)
    if not 0 < value <= LONGEST_TIMEOUT:
        raise ValueError(text)
    return value


def read_value(word: str) -> str | bytes:
    """Return the value for a VALUE on the command line."""
    if word != "-":
        return word
    data = sys.stdin.buffer.read()
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data  # not UTF-8: stored as bin


def write_value(value: Any) -> None:
    """Print text and bin unchanged, anything else as JSON."""
    if not isinstance(value, str | bytes):
        try:
            value = json.dumps(value, ensure_ascii=False, default=plain)
        except TypeError:  # a map with keys that JSON lacks
            value = repr(value)
    data = value.encode("utf-8", STR_ERRORS) if isinstance(value, str) else value
    sys.stdout.buffer.write(data + b"\n")
    sys.stdout.buffer.flush()


def plain(value: Any) -> str:
    """Replace a value of a type that JSON lacks: bin by base64, others by text."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def call_each(client: Client, lines: Iterable[str]) -> None:
    """Send the request in each line, and print its reply; both are msgpack in hex."""
    for line in lines:
        request = unpack(bytes.fromhex(line))
        try:
            reply = client.call(request.pop("op"), **request)
        except ZkvError as error:
            reply = told(error)
        packed = msgpack.packb(reply, unicode_errors=STR_ERRORS, default=told)
        print(packed.hex(), flush=True)


def told(error: ZkvError) -> dict[str, Any]:
    """Return a failure as a map: the server's, or one of the same fields."""
    if "code" in error.reply:
        return error.reply
    return {name: value for name, value in vars(error).items() if name != "reply"} | {"ok": False}


def run(client: Client, words: Sequence[str]) -> bool:
    """Carry out one command; return False if there is no command with these words."""
    match [words[0].lower(), *words[1:]]:
        case ["put", key, value]:
            done(client.put(key, read_value(value)))
        case ["get", key]:
            write_value(client.get(key))
        case ["delete", key]:
            done(client.delete(key))
        case ["incr", key, *by] if len(by) <= 1:
            write_value(client.incr(key, *map(int, by)))
        case ["end", *rest] if [word.lower() for word in rest] in ([], ["end"]):
            done(client.end())  # "END end" is how the very first client spelled it
        case ["call"]:
            call_each(client, sys.stdin)
        case _:
            return False
    return True


def done(rev: int) -> None:
    """Report a write on standard error; standard output is only for values."""
    print(f"OK, revision {rev}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    parser = argparse.ArgumentParser(usage=USAGE)
    endpoint = os.environ.get("ZKV_ENDPOINT") or DEFAULT_ENDPOINT
    parser.add_argument("-e", "--endpoint", default=endpoint, help="default: %(default)s")
    parser.add_argument("--timeout", type=seconds, default=5.0, metavar="S", help="seconds")
    parser.add_argument("command", help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args(arguments)
    try:
        with Client(options.endpoint, timeout=options.timeout) as client:
            if not run(client, [options.command, *options.words]):
                parser.error(f"unknown command: {' '.join([options.command, *options.words])}")
        return 0
    except NoReply as error:
        return fail(3, f"{error}; a write may have been applied, or may be applied later")
    except ZkvError as error:
        return fail(1 if error.code in {"NOT_FOUND", "CONFLICT"} else 2, str(error))
    except (zmq.ZMQError, OSError, ValueError, OverflowError, RecursionError) as error:
        return fail(2, f"{options.command}: {error}")  # a bad endpoint, VALUE or output
    except KeyboardInterrupt:
        return fail(130, "interrupted")


def fail(status: int, message: str) -> int:
    """Print the message and return the exit status."""
    print(f"{os.path.basename(sys.argv[0])}: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
