"""The peers' own protocols, as thin as the load for zkv: templates out, the least of parsing in.

One class makes the requests of a peer, another splits what a connection receives into replies.
Nothing is asked of a reply but where it ends, which request it answers, and whether it is a
success. Redis's and memcached's come in the order of their requests; NATS tells by the subject,
etcd by the number of the HTTP/2 stream.

- redis: RESP, GET and SET; MGET and MSET for batches.
- memcached: the text protocol's meta commands, ``mg`` and ``ms``.
- nats: the KV bucket that its clients would use: a PUT is a publish to ``$KV.bench.<key>`` with an
  acknowledgement, a GET is a direct get from the bucket's stream.
- etcd: gRPC over HTTP/2, `Range` and `Put` of ``etcdserverpb.KV``, without a gRPC library: headers
  that never change are sent as literals, and of a response only the frames' headers are read. Its
  JSON gateway would cost etcd about twice as much per request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from zkv.bench.connections import BenchError, Dialect
from zkv.bench.workload import Requests, Workload, key_name

BUCKET: Final = "bench"
NATS_INBOX: Final = b"_INBOX.zkv."


def dialect(name: str) -> Dialect:
    """The dialect of a peer, for one connection."""
    known: dict[str, Callable[[], Dialect]] = {
        "redis": Redis, "memcached": Memcached, "nats": Nats, "etcd": Etcd,
    }  # fmt: skip
    return known[name]()


def requests(name: str, workload: Workload) -> Requests:
    """What makes the requests of a peer."""
    values = Workload(value_bytes=workload.value_bytes, seed=workload.seed).make_values()
    plain = [value[-workload.value_bytes :] for value in values]
    known: dict[str, Callable[[list[bytes]], Requests]] = {
        "redis": RedisRequests, "memcached": MemcachedRequests, "nats": NatsRequests,
        "etcd": EtcdRequests,
    }  # fmt: skip
    return known[name](plain)


class _PlainRequests(Requests):
    """What all peers' requests have in common. Values are written in turn."""

    def __init__(self, values: list[bytes]) -> None:
        self.values = values
        self._written = 0

    def value(self) -> bytes:
        self._written += 1
        return self.values[self._written % len(self.values)]

    def mget(self, keys: list[int]) -> bytes:
        raise BenchError("this peer has no request for many keys")

    def mput(self, keys: list[int]) -> bytes:
        raise BenchError("this peer has no request for many keys")

    def scan(self, key: int, limit: int) -> bytes:
        raise BenchError("scans are for zkv only")

    def modify(self, key: int, reply: bytes) -> bytes:
        raise BenchError("read-modify-write is for zkv only")


class _InOrder(Dialect):
    """What connections have in common whose replies come in the order of the requests."""

    def greeting(self) -> bytes:
        return b""

    def number(self, request: bytes, place: int) -> bytes:
        return request


# --- Redis, Valkey ---------------------------------------------------------------------------


class RedisRequests(_PlainRequests):
    """RESP."""

    def get(self, key: int) -> bytes:
        return b"*2\r\n$3\r\nGET\r\n$18\r\nbench:%012d\r\n" % key

    def put(self, key: int) -> bytes:
        value = self.value()
        return b"*3\r\n$3\r\nSET\r\n$18\r\nbench:%012d\r\n$%d\r\n%b\r\n" % (key, len(value), value)

    def mget(self, keys: list[int]) -> bytes:
        names = b"".join([b"$18\r\nbench:%012d\r\n" % key for key in keys])
        return b"*%d\r\n$4\r\nMGET\r\n%b" % (len(keys) + 1, names)

    def mput(self, keys: list[int]) -> bytes:
        value = self.value()
        packed = b"$18\r\nbench:%%012d\r\n$%d\r\n%b\r\n" % (len(value), value.replace(b"%", b"%%"))
        items = b"".join([packed % key for key in keys])
        return b"*%d\r\n$4\r\nMSET\r\n%b" % (2 * len(keys) + 1, items)

    def failure(self, reply: bytes) -> str:
        if reply[:1] == b"-":
            return reply[1:].split()[0].decode()
        return "NOT_FOUND" if reply == b"$-1\r\n" else ""


class Redis(_InOrder):
    """RESP. All items of an array are taken to be as long as its first: load has such values."""

    def split(self, data: bytes) -> tuple[list[tuple[int, bytes]], bytes, bytes]:
        found = []
        begin, length = 0, len(data)
        while begin < length:
            line = data.find(b"\r\n", begin) + 2
            if line == 1:
                break
            end = line
            if data[begin] == 0x24:  # $
                size = int(data[begin + 1 : line])
                if size >= 0:
                    end = line + size + 2
            elif data[begin] == 0x2A:  # *
                first = data.find(b"\r\n", line) + 2
                if first == 1:
                    break
                item = first - line + int(data[line + 1 : first]) + 2
                end = line + int(data[begin + 1 : line]) * item
            if end > length:
                break
            found.append((-1, data[begin:end]))
            begin = end
        return found, data[begin:], b""


# --- memcached -------------------------------------------------------------------------------


class MemcachedRequests(_PlainRequests):
    """Meta commands."""

    def get(self, key: int) -> bytes:
        return b"mg bench:%012d v\r\n" % key

    def put(self, key: int) -> bytes:
        value = self.value()
        return b"ms bench:%012d %d\r\n%b\r\n" % (key, len(value), value)

    def failure(self, reply: bytes) -> str:
        if reply[:2] in {b"VA", b"HD"}:
            return ""
        return "NOT_FOUND" if reply[:2] == b"EN" else reply.strip().decode(errors="replace")


class Memcached(_InOrder):
    """Meta commands: ``VA <size>`` has a value behind it, all other replies are a line."""

    def split(self, data: bytes) -> tuple[list[tuple[int, bytes]], bytes, bytes]:
        found = []
        begin, length = 0, len(data)
        while begin < length:
            end = data.find(b"\r\n", begin) + 2
            if end == 1:
                break
            if data[begin : begin + 3] == b"VA ":
                end += int(data[begin + 3 : end].split()[0]) + 2
            if end > length:
                break
            found.append((-1, data[begin:end]))
            begin = end
        return found, data[begin:], b""


# --- NATS ------------------------------------------------------------------------------------


class NatsRequests(_PlainRequests):
    """Requests with ``%b`` where the connection's inbox for the reply goes."""

    def get(self, key: int) -> bytes:
        name = _nats_key(key)
        return b"PUB $JS.API.DIRECT.GET.KV_bench.$KV.bench.%b \0 0\r\n\r\n" % name

    def put(self, key: int) -> bytes:
        value = self.value()
        return b"PUB $KV.bench.%b \0 %d\r\n%b\r\n" % (_nats_key(key), len(value), value)

    def failure(self, reply: bytes) -> str:
        """``reply`` is what follows the MSG or HMSG line."""
        if reply.startswith(b"NATS/1.0 "):
            return reply[9 : reply.find(b"\r\n")].decode(errors="replace")
        return "" if b'"error"' not in reply else reply.decode(errors="replace")


class Nats(Dialect):
    """The client protocol; the last token of a reply's subject is the place of its request."""

    def greeting(self) -> bytes:
        options = b'{"verbose":false,"headers":true,"no_responders":true}'
        self._inbox = NATS_INBOX + b"%x." % id(self)
        return b"CONNECT %b\r\nSUB %b* 1\r\n" % (options, self._inbox)

    def number(self, request: bytes, place: int) -> bytes:
        return request.replace(b"\0", self._inbox + b"%d" % place, 1)

    def split(self, data: bytes) -> tuple[list[tuple[int, bytes]], bytes, bytes]:
        found = []
        answer = b""
        begin, length = 0, len(data)
        while begin < length:
            line = data.find(b"\r\n", begin) + 2
            if line == 1:
                break
            words = data[begin : line - 2].split()
            end = line
            if words[0] in {b"MSG", b"HMSG"}:
                end = line + int(words[-1]) + 2
                if end > length:
                    break
                found.append((int(words[1][words[1].rfind(b".") + 1 :]), data[line : end - 2]))
            elif words[0] == b"PING":
                answer += b"PONG\r\n"
            elif words[0] == b"-ERR":
                raise BenchError(f"nats: {data[begin:line]!r}")
            begin = end
        return found, data[begin:], answer


def _nats_key(key: int) -> bytes:
    """A colon is no character of a NATS key."""
    return key_name(key).replace(":", ".").encode()


# --- etcd ------------------------------------------------------------------------------------

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
PLENTY: Final = 0x7FFF0000
"""The largest window, roughly: responses are small, and are waited for."""
REFILL: Final = 0x3FFF0000


def _literal(name: bytes, value: bytes) -> bytes:
    """A header field for HPACK (RFC 7541) that is put into no table: nothing to keep in step."""
    return b"\0%c%b%c%b" % (len(name), name, len(value), value)


def _request_headers(path: bytes) -> bytes:
    return (
        b"\x83\x86"  # :method POST and :scheme http, from the static table.
        + _literal(b":path", path)
        + _literal(b":authority", b"127.0.0.1")
        + _literal(b"content-type", b"application/grpc")
        + _literal(b"te", b"trailers")
    )


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + b"%c%c" % (kind, flags) + stream.to_bytes(4) + payload


class EtcdRequests(_PlainRequests):
    """HEADERS and DATA frames of a stream, whose number the connection puts in."""

    def __init__(self, values: list[bytes]) -> None:
        super().__init__(values)
        self._get = _request_headers(b"/etcdserverpb.KV/Range")
        self._put = _request_headers(b"/etcdserverpb.KV/Put")

    def get(self, key: int) -> bytes:
        return self._unary(self._get, b"\x0a\x12bench:%012d" % key)

    def put(self, key: int) -> bytes:
        value = self.value()
        size = _varint(len(value))
        return self._unary(self._put, b"\x0a\x12bench:%012d\x12%b%b" % (key, size, value))

    def failure(self, reply: bytes) -> str:
        """``reply`` is the message: a failed call has none, only a status in its headers."""
        return "" if reply else "FAILED"

    def _unary(self, headers: bytes, message: bytes) -> bytes:
        body = b"\0" + len(message).to_bytes(4) + message
        return _frame(HEADERS, END_HEADERS, 0, headers) + _frame(DATA, END_STREAM, 0, body)


class Etcd(Dialect):
    """HTTP/2 as far as a gRPC client of unary calls needs it (RFC 9113)."""

    def __init__(self) -> None:
        self._stream = -1
        self._places: dict[int, int] = {}
        self._messages: dict[int, bytes] = {}
        self._received = 0

    def greeting(self) -> bytes:
        settings = b"\0\x01\0\0\0\0" + b"\0\x02\0\0\0\0" + b"\0\x04" + PLENTY.to_bytes(4)
        return (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + _frame(SETTINGS, 0, 0, settings)  # No header table, no push, large windows.
            + _frame(WINDOW_UPDATE, 0, 0, PLENTY.to_bytes(4))
        )

    def number(self, request: bytes, place: int) -> bytes:
        self._stream += 2
        stream = self._stream.to_bytes(4)
        self._places[self._stream] = place
        data = 9 + int.from_bytes(request[:3])  # Where the DATA frame begins.
        return request[:5] + stream + request[9 : data + 5] + stream + request[data + 9 :]

    def split(self, data: bytes) -> tuple[list[tuple[int, bytes]], bytes, bytes]:
        found = []
        answer = b""
        begin, length = 0, len(data)
        while begin + 9 <= length:
            size = int.from_bytes(data[begin : begin + 3])
            end = begin + 9 + size
            if end > length:
                break
            kind, flags = data[begin + 3], data[begin + 4]
            stream = int.from_bytes(data[begin + 5 : begin + 9])
            if kind == DATA:
                self._received += size
                self._messages[stream] = self._messages.get(stream, b"") + data[begin + 9 : end]
            elif kind == SETTINGS and not flags & ACK:
                answer += _frame(SETTINGS, ACK, 0, b"")
            elif kind == PING and not flags & ACK:
                answer += _frame(PING, ACK, 0, data[begin + 9 : end])
            elif kind in {GOAWAY, RST_STREAM}:
                raise BenchError(f"etcd: {data[begin + 9 : end]!r}")
            if kind == HEADERS and flags & END_STREAM:
                found.append((self._places.pop(stream), self._messages.pop(stream, b"")))
            begin = end
        if self._received > REFILL:
            answer += _frame(WINDOW_UPDATE, 0, 0, self._received.to_bytes(4))
            self._received = 0
        return found, data[begin:], answer


def _varint(number: int) -> bytes:
    packed = b""
    while number > 0x7F:
        packed += b"%c" % (number & 0x7F | 0x80)
        number >>= 7
    return packed + b"%c" % number
