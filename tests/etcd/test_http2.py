"""The client and nodes that use or break the rules of HTTP/2 and gRPC, frame by frame."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from tests.etcd.peer import (
    ACK,
    ANSWER,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FIRST,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW,
    OK,
    PADDED,
    PING,
    PRIORITY,
    PUSH,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Frame,
    Peer,
    Request,
    Script,
    Session,
)
from tests.etcd.watching import Recorder
from tests.support import LIMIT
from zkv.etcd import (
    AccessError,
    EtcdError,
    InvalidCallError,
    PutOp,
    RequestTooLargeError,
    UnknownOutcomeError,
    WatchLostError,
    channel,
    http2,
    rpc,
)
from zkv.etcd.client import EtcdClient
from zkv.etcd.link import in_thread

SHORT: Final = 0.5
"""Seconds of a call that is not answered."""
NO_ERROR, INTERNAL_ERROR, REFUSED = 0, 2, 7
MIB: Final = 1024 * 1024


def farewell(last: int, code: int = NO_ERROR) -> bytes:
    """The content of a GOAWAY."""
    return struct.pack(">II", last, code)


def number(value: int) -> bytes:
    return struct.pack(">I", value)


def prefixed(message: bytes) -> bytes:
    """A message as it is sent."""
    return struct.pack(">?I", False, len(message)) + message


def after_request(*steps: Callable[[Session, int], object]) -> Script:
    """Take a request, then do this about it, and nothing more."""

    def play(session: Session) -> None:
        session.greet()
        stream = session.request().number
        for step in steps:
            step(session, stream)
        session.hold()

    return play


def serve_one(session: Session) -> None:
    session.greet()
    session.answer(session.request().number)


def serve(session: Session) -> None:
    session.greet()
    session.serve()


def count(etcd: EtcdClient, timeout: float = LIMIT) -> int:
    """A call that is sent once, as all but reads are: what it is answered."""
    return etcd.transact([], [PutOp(b"k", b"v")], timeout=timeout).revision


def failed(peer: Peer, timeout: float = LIMIT) -> EtcdError:
    """The error of a call."""
    etcd = EtcdClient([peer.endpoint])
    try:
        with pytest.raises(EtcdError) as found:
            count(etcd, timeout)
        return found.value
    finally:
        etcd.close()


# Peers that break the rules


def endless_headers(session: Session, stream: int) -> None:
    session.send(HEADERS, 0, stream, b"")
    session.flood((CONTINUATION, 0, stream, b"\x10\x01a\x7f\x80\x7f" + bytes(100)))


def endless_empty_headers(session: Session, stream: int) -> None:
    session.send(HEADERS, 0, stream, b"")
    session.flood((CONTINUATION, 0, stream, b""))


def endless_blocks(session: Session, stream: int) -> None:
    for each in range(100_000):
        session.headers(stream, (f"name-{each}", "v"))


def references(session: Session, stream: int) -> None:
    """A few bytes that stand for many: references to one long header."""
    session.headers(stream, ("a", 3_000 * "b"))
    session.send(HEADERS, END_HEADERS, stream, 100 * b"\xbe")


BROKEN: Final[dict[str, tuple[Script, str]]] = {
    "text": (lambda s: s.socket.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "not speak HTTP/2"),
    "no settings": (lambda s: s.send(PING, 0, 0, bytes(8)), "not speak HTTP/2"),
    "closed": (lambda s: s.socket.recv(1_000), "cannot connect: the node has closed"),
    "settings": (lambda s: s.send(SETTINGS, 0, 0, bytes(5)), "settings break off"),
    "window": (
        lambda s: s.send(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW, 1 << 31)),
        "its window is 2147483648",
    ),
    "frame size": (
        lambda s: s.send(SETTINGS, 0, 0, struct.pack(">HI", 5, 100)), "its frames have 100 bytes",
    ),
    "large frame": (
        after_request(lambda s, n: s.socket.sendall(b"\x00\x40\x01\x00\x00" + number(n))),
        "a frame has 16385 bytes",
    ),
    "short ping": (after_request(lambda s, n: s.send(PING, 0, 0, b"x")), "type 6 has 1 bytes"),
    "no widening": (
        after_request(lambda s, n: s.send(WINDOW_UPDATE, 0, 0, number(0))), "widens a window by 0",
    ),
    "too wide": (
        after_request(lambda s, n: s.send(WINDOW_UPDATE, 0, n, number((1 << 31) - 1))),
        "widens a window",
    ),
    "push": (after_request(lambda s, n: s.send(PUSH, END_HEADERS, n, number(2))), "it pushes"),
    "foreign": (
        after_request(lambda s, n: s.send(DATA, 0, n + 2, b"x")), "request 3, which was not made",
    ),
    "even": (after_request(lambda s, n: s.send(DATA, 0, 2, b"x")), "request 2, which was not"),
    "padding": (
        after_request(lambda s, n: s.send(DATA, PADDED, n, b"\x05abc")), "only padding",
    ),
    "bad headers": (
        after_request(lambda s, n: s.send(HEADERS, END_HEADERS, n, 6 * b"\xff" + b"\x01")),
        "rules of HTTP/2: headers: ",
    ),
    "headers break off": (
        after_request(
            lambda s, n: s.send(HEADERS, 0, n, b""), lambda s, n: s.send(PING, 0, 0, bytes(8))
        ),
        "headers break off",
    ),
    "continuation": (
        after_request(lambda s, n: s.send(CONTINUATION, 0, n, b"")), "that have not begun",
    ),
    "endless headers": (after_request(endless_headers), "more than 65536 bytes of headers"),
    "endless empty headers": (after_request(endless_empty_headers), "continued without any"),
    "endless blocks": (after_request(endless_blocks), "more than 256 headers"),
    "references": (after_request(references), "rules of HTTP/2: headers: "),
    "farewell": (after_request(lambda s, n: s.send(GOAWAY, 0, 0, b"")), "farewell breaks off"),
    "giant": (
        after_request(lambda s, n: s.send(DATA, 0, n, b"\x00\xff\xff\xff\xff" + bytes(100))),
        "has 4294967295 bytes, which are too many",
    ),
    "compressed": (
        after_request(lambda s, n: s.send(DATA, 0, n, b"\x01\x00\x00\x00\x01x")), "is compressed",
    ),
    "two answers": (
        after_request(lambda s, n: s.message(n), lambda s, n: s.message(n)), "more than one answer",
    ),
    "no answer": (after_request(lambda s, n: s.end(n, *FIRST, *OK)), "there is no answer"),
    "no message": (after_request(lambda s, n: s.answer(n, b"\xff")), "the answer is malformed"),
    "no status": (
        after_request(
            lambda s, n: s.headers(n, *FIRST), lambda s, n: s.send(DATA, END_STREAM, n, b"")
        ),
        "has no status",
    ),
    "unknown status": (
        after_request(lambda s, n: s.end(n, *FIRST, ("grpc-status", "99"))), "UNKNOWN",
    ),
    "proxy": (after_request(lambda s, n: s.end(n, (":status", "502"))), "HTTP's status '502'"),
    "ended": (after_request(lambda s, n: s.close()), "closed the conn"),
    "half a frame": (
        after_request(lambda s, n: s.socket.sendall(b"\x00\x00"), lambda s, n: s.close()),
        "closed the connection",
    ),
    "reset": (
        after_request(lambda s, n: s.send(RST_STREAM, 0, n, number(INTERNAL_ERROR))),
        "broke the call off: INTERNAL_ERROR",
    ),
    "refused twice": (
        after_request(lambda s, n: s.send(RST_STREAM, 0, n, number(REFUSED))), "REFUSED_STREAM",
    ),
    "farewell and end": (
        after_request(lambda s, n: s.send(GOAWAY, 0, 0, farewell(n)), lambda s, n: s.close()),
        "ends the connection: NO_ERROR",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_node_that_breaks_the_rules(kind: str) -> None:
    script, text = BROKEN[kind]
    with Peer(script) as peer:
        error = failed(peer)
        assert type(error) is UnknownOutcomeError
        assert text in str(error)
        assert peer.endpoint in str(error)


def test_a_node_that_answers_tls_with_text() -> None:
    with Peer(BROKEN["text"][0]) as peer:
        etcd = EtcdClient([f"https://{peer.endpoint}"])
        with pytest.raises(AccessError, match=r"cannot connect: .*WRONG_VERSION_NUMBER"):
            count(etcd)
        etcd.close()


@pytest.mark.parametrize(
    "frame", [(PING, 0, 0, bytes(8)), (SETTINGS, 0, 0, b""), (DATA, 0, 1, b""), (77, 0, 0, b"x")]
)
def test_a_node_that_sends_without_end_and_never_answers(
    frame: tuple[int, int, int, bytes],
) -> None:
    with Peer(after_request(lambda session, _: session.flood(frame))) as peer:
        assert "no answer in time" in str(failed(peer, SHORT))


def test_data_without_end_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "DATA_BYTES", MIB)

    def flood(session: Session) -> None:
        session.greet((INITIAL_WINDOW, 1))  # So the client waits to send the rest.
        stream = session.receive(HEADERS).number
        session.flood((DATA, 0, stream, bytes(10_000)))

    with Peer(flood) as peer:
        assert "too large" in str(failed(peer))


def test_a_node_that_never_takes_the_request() -> None:
    def script(session: Session) -> None:
        session.greet((INITIAL_WINDOW, 1))
        session.hold()

    with Peer(script) as peer:
        assert "no answer in time" in str(failed(peer, SHORT))


# Peers that use the rules


@pytest.fixture
def etcd(request: pytest.FixtureRequest) -> Iterator[Callable[[Peer], EtcdClient]]:
    """Makes clients of a peer."""
    made: list[EtcdClient] = []

    def make(peer: Peer, **options: Any) -> EtcdClient:
        made.append(EtcdClient([peer.endpoint], **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


MakeClient = Callable[..., EtcdClient]


def test_what_a_request_says(etcd: MakeClient) -> None:
    seen: list[Request] = []

    def script(session: Session) -> None:
        session.greet()
        seen.append(session.request())
        session.answer(seen[0].number)

    with Peer(script) as peer:
        assert etcd(peer).read(b"k", timeout=9.0).count == 7
        (request,) = seen
        timeout = request.headers.pop("grpc-timeout")
        assert timeout.endswith("m")
        assert 0 < int(timeout[:-1]) <= 9_000
        assert request.headers == {
            ":method": "POST", ":scheme": "http", ":path": "/etcdserverpb.KV/Range",
            ":authority": peer.endpoint, "content-type": "application/grpc", "te": "trailers",
            "hasleader": "true",
        }  # fmt: skip
        assert rpc.RangeRequest.FromString(request.message).key == b"k"


def test_a_ping_amid_a_call_is_answered(etcd: MakeClient) -> None:
    pongs: list[Frame] = []

    def script(session: Session, stream: int) -> None:
        session.send(PING, 0, 0, b"12345678")
        pongs.append(session.receive(PING))
        session.send(PING, ACK, 0, b"87654321")  # Is none.
        session.answer(stream)
        session.serve()

    with Peer(after_request(script)) as peer:
        client = etcd(peer)
        assert [client.read(b"k", timeout=LIMIT).count for _ in range(2)] == [7, 7]
        assert pongs == [(PING, ACK, 0, b"12345678")]
        assert [frame for frame in peer.sessions[0].frames if frame.kind == PING] == pongs


def in_bytes(session: Session, stream: int) -> None:
    session.headers(stream, *FIRST)
    for at, byte in enumerate(prefixed(ANSWER)):
        padding = at % 3
        session.send(DATA, PADDED, stream, bytes([padding, byte]) + bytes(padding))
    session.end(stream, *OK)


def in_parts(session: Session, stream: int) -> None:
    """Headers in frames of one byte, with a priority and padding."""
    block = session.encoder.encode(FIRST)
    session.send(HEADERS, PADDED | PRIORITY, stream, b"\x02" + bytes(5) + block[:1] + bytes(2))
    for at in range(1, len(block)):
        flags = END_HEADERS if at == len(block) - 1 else 0
        session.send(CONTINUATION, flags, stream, block[at : at + 1])
    session.message(stream)
    session.end(stream, *OK)


def with_a_word_before(session: Session, stream: int) -> None:
    session.headers(stream, (":status", "103"), ("link", "x"))
    session.send(99, 0, 0, b"an extension")
    session.send(2, 0, stream, bytes(5))  # A priority.
    session.answer(stream)


def with_a_farewell(session: Session, stream: int) -> None:
    session.send(GOAWAY, 0, 0, farewell(stream))
    session.answer(stream)


def with_a_reset_after_the_end(session: Session, stream: int) -> None:
    session.answer(stream)
    session.send(RST_STREAM, 0, stream, number(NO_ERROR))


def byte_by_byte(session: Session, stream: int) -> None:
    """What goes over the wire comes in pieces, whatever the frames are."""
    ours, theirs = socket.socketpair()
    wire, session.socket = session.socket, ours
    session.answer(stream)
    ours.close()
    session.socket = wire
    while byte := theirs.recv(1):
        wire.sendall(byte)
    theirs.close()


@pytest.mark.parametrize(
    "script",
    [in_bytes, in_parts, with_a_word_before, with_a_farewell, with_a_reset_after_the_end,
     byte_by_byte],
)  # fmt: skip
def test_an_answer_however_it_is_cut(
    etcd: MakeClient, script: Callable[[Session, int], None]
) -> None:
    with Peer(after_request(script)) as peer:
        assert etcd(peer).read(b"k", timeout=LIMIT).count == 7


def status_to_keep(value: bytes) -> bytes:
    """The header with a status, which the client's table then has as number 62."""
    return b"\x40\x0bgrpc-status" + bytes([len(value)]) + value


def test_headers_that_refer_to_earlier_ones(etcd: MakeClient) -> None:
    """The same bytes mean another thing once the table has changed."""
    ok = b"\x88"  # The status of HTTP, 200.
    answers = [
        (ok + status_to_keep(b"0"), b"\xbe"),
        (ok, b"\xbe"),
        (ok + status_to_keep(b"3"), b"\xbe"),
        (ok, b"\xbf"),
    ]

    def script(session: Session) -> None:
        session.greet()
        for first, last in answers:
            stream = session.request().number
            session.send(HEADERS, END_HEADERS, stream, first)
            session.message(stream)
            session.send(HEADERS, END_HEADERS | END_STREAM, stream, last)
        session.hold()

    with Peer(script) as peer:
        client = etcd(peer)
        assert [client.read(b"k", timeout=LIMIT).count for _ in range(2)] == [7, 7]
        with pytest.raises(InvalidCallError):
            client.read(b"k", timeout=LIMIT)
        assert client.read(b"k", timeout=LIMIT).count == 7


@pytest.mark.parametrize("window", [1, 1_000, 100_000])
def test_a_request_waits_for_the_room_that_the_node_gives(etcd: MakeClient, window: int) -> None:
    """The node has a small window for each request, and 65,535 bytes for all."""
    size = MIB if window > 1 else 100
    taken: list[bytes] = []

    def script(session: Session) -> None:
        session.greet((INITIAL_WINDOW, window))
        frame = session.receive(HEADERS)
        room, all_room, body = window, 65_535, b""
        while not frame.flags & END_STREAM:
            frame = session.receive(DATA)
            body += frame.content
            assert len(frame.content) <= 16_384
            room -= len(frame.content)
            all_room -= len(frame.content)
            assert min(room, all_room) >= 0
            if not min(room, all_room) and not frame.flags & END_STREAM:
                for stream, more in ((0, 65_535 - all_room), (frame.number, window - room)):
                    if more:
                        session.send(WINDOW_UPDATE, 0, stream, number(more))
                room, all_room = window, 65_535
        taken.append(body)
        session.answer(frame.number)
        session.hold()

    with Peer(script) as peer:
        etcd(peer).transact([], [PutOp(b"k", bytes(size))], timeout=LIMIT)
        request = rpc.TxnRequest.FromString(taken[0][5:])
        assert request.success[0].request_put.value == bytes(size)


def test_a_window_that_shrinks_below_nothing(etcd: MakeClient) -> None:
    def script(session: Session) -> None:
        session.greet((INITIAL_WINDOW, 20_000))
        stream = session.receive(HEADERS).number
        came = 0
        while came < 20_000:
            came += len(session.receive(DATA).content)
        session.send(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW, 0))  # Less 20,000.
        session.send(WINDOW_UPDATE, 0, stream, number(20_001))  # So much is one more byte.
        came += len(session.receive(DATA).content)
        assert came == 20_001
        session.send(WINDOW_UPDATE, 0, stream, number(MIB))
        while not session.receive(DATA).flags & END_STREAM:
            pass
        session.answer(stream)
        session.hold()

    with Peer(script) as peer:
        etcd(peer).transact([], [PutOp(b"k", bytes(40_000))], timeout=LIMIT)


def test_an_answer_beyond_the_window_is_taken(etcd: MakeClient) -> None:
    """The node sends as much as it may, for the request and for all."""
    size = 3 * http2.WINDOW_BYTES

    def script(session: Session, stream: int) -> None:
        message = rpc.RangeResponse(kvs=[rpc.KeyValue(value=bytes(size))]).SerializeToString()
        data, at = prefixed(message), 0
        room = {0: 65_535, stream: 65_535}
        for frame in session.frames:
            if frame.kind == WINDOW_UPDATE:
                room[frame.number] += int.from_bytes(frame.content, "big")
            if frame.kind == SETTINGS and not frame.flags & ACK:
                room[stream] = dict(struct.iter_unpack(">HI", frame.content))[INITIAL_WINDOW]
        session.headers(stream, *FIRST)
        while at < len(data):
            if not min(room.values()):
                frame = session.receive(WINDOW_UPDATE)
                room[frame.number] += int.from_bytes(frame.content, "big")
                continue
            part = data[at : at + min(16_384, *room.values())]
            session.send(DATA, 0, stream, part)
            at += len(part)
            room = {each: left - len(part) for each, left in room.items()}
        session.end(stream, *OK)

    with Peer(after_request(script)) as peer:
        (item,) = etcd(peer).read(b"k", timeout=LIMIT).items
        assert len(item.value) == size


@pytest.mark.parametrize(
    ("fields", "kind", "text"),
    [
        (("8", "etcdserver: mvcc: too large"), RequestTooLargeError, "too large"),
        (("7", "no %e2%82%ac, %zz"), AccessError, "no €, %zz"),
        (("14", ""), UnknownOutcomeError, "UNAVAILABLE"),
    ],
)
def test_a_status_without_an_answer(
    etcd: MakeClient, fields: tuple[str, str], kind: type[EtcdError], text: str
) -> None:
    both = tuple(zip(("grpc-status", "grpc-message"), fields, strict=True))

    def script(session: Session) -> None:
        session.greet()
        session.end(session.request().number, *FIRST, *both)
        session.serve()

    with Peer(script) as peer:
        client = etcd(peer)
        with pytest.raises(kind, match=text):
            count(client)
        assert client.read(b"k", timeout=LIMIT).count == 7
        assert len(peer.sessions) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [("401", AccessError), ("403", AccessError), ("404", InvalidCallError)],
)
def test_a_status_of_http_that_says_why(
    etcd: MakeClient, status: str, kind: type[EtcdError]
) -> None:
    script = after_request(lambda s, n: s.end(n, (":status", status)))
    with Peer(script) as peer, pytest.raises(kind, match=status):
        count(etcd(peer))


def test_an_answer_before_all_was_sent(etcd: MakeClient) -> None:
    """As etcd refuses a request that is too large. The rest is not sent."""
    ends: list[Frame] = []

    def script(session: Session) -> None:
        session.greet((INITIAL_WINDOW, 100))
        stream = session.receive(HEADERS).number
        session.end(stream, *FIRST, ("grpc-status", "8"), ("grpc-message", "larger than max"))
        ends.append(session.receive(RST_STREAM))
        session.send(WINDOW_UPDATE, 0, stream, number(100))  # It was under way.
        session.serve()

    with Peer(script) as peer:
        client = etcd(peer)
        with pytest.raises(RequestTooLargeError):
            client.transact([], [PutOp(b"k", bytes(MIB))], timeout=LIMIT)
        assert client.read(b"k", timeout=LIMIT).count == 7
        assert len(peer.sessions) == len(ends) == 1


# Connections


def requests(peer: Peer) -> list[int]:
    """How many requests came on each connection."""
    return [sum(frame.kind == HEADERS for frame in each.frames) for each in peer.sessions]


def test_a_connection_is_used_again(etcd: MakeClient) -> None:
    with Peer(serve) as peer:
        client = etcd(peer)
        for _ in range(5):
            client.read(b"k", timeout=LIMIT)
        assert requests(peer) == [5]


def test_each_call_under_way_has_a_connection_of_its_own(etcd: MakeClient) -> None:
    meeting = threading.Barrier(3)

    def script(session: Session) -> None:
        session.greet()
        stream = session.request().number
        meeting.wait(LIMIT)
        session.answer(stream)
        session.serve()

    with Peer(script) as peer:
        client = etcd(peer)
        threads = [threading.Thread(target=client.read, args=(b"k",), kwargs={"timeout": LIMIT})
                   for _ in range(3)]  # fmt: skip
        for each in threads:
            each.start()
        for each in threads:
            each.join(LIMIT)
        client.read(b"k", timeout=LIMIT)
        assert sorted(requests(peer)) == [1, 1, 2]


def test_connections_that_nobody_needs_are_closed(
    etcd: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = threading.Event()

    def until_closed(session: Session) -> None:
        session.greet()
        try:
            session.serve()
        finally:
            closed.set()

    with Peer(until_closed) as peer:
        client = etcd(peer)
        client.read(b"k", timeout=LIMIT)
        monkeypatch.setattr(channel, "IDLE_SECONDS", -1.0)
        client.read(b"k", timeout=LIMIT)
        assert closed.wait(LIMIT)
        assert requests(peer) == [2]


@pytest.mark.parametrize(
    "end",
    [
        Session.close,
        lambda session: session.send(GOAWAY, 0, 0, farewell(1)),
        lambda session: session.send(PING, 0, 0, b""),
    ],
    ids=["closed", "farewell", "broken"],
)
def test_a_node_that_ended_the_connection_meanwhile_costs_no_call(
    etcd: MakeClient, end: Script
) -> None:
    is_idle, has_ended = threading.Event(), threading.Event()

    def script(session: Session) -> None:
        serve_one(session)
        assert is_idle.wait(LIMIT)
        end(session)
        has_ended.set()
        session.hold()

    with Peer(script, serve) as peer:
        client = etcd(peer)
        count(client)
        is_idle.set()
        assert has_ended.wait(LIMIT)
        count(client)
        assert requests(peer) == [1, 1]


@pytest.mark.parametrize("frame", [(RST_STREAM, 3, number(REFUSED)), (GOAWAY, 0, farewell(1))])
def test_a_call_that_was_refused_unexecuted_is_sent_once_more(
    etcd: MakeClient, frame: tuple[int, int, bytes]
) -> None:
    kind, stream, content = frame

    def script(session: Session) -> None:
        serve_one(session)
        session.request()
        session.send(kind, 0, stream, content)
        session.hold()

    with Peer(script, serve) as peer:
        client = etcd(peer)
        count(client)
        count(client)
        assert requests(peer) == [2, 1]


def test_a_call_of_which_nothing_could_be_sent_is_sent_once_more(
    etcd: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node breaks the connection after it was looked at, and before it is used."""
    is_broken = threading.Event()

    def script(session: Session) -> None:
        serve_one(session)
        no_farewell = struct.pack("ii", 1, 0)
        session.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_farewell)
        session.file.close()
        session.socket.close()
        is_broken.set()

    def look(connection: http2.Http2Connection) -> bool:
        return is_broken.wait(LIMIT)

    with Peer(script, serve) as peer:
        client = etcd(peer)
        count(client)
        monkeypatch.setattr(http2.Http2Connection, "is_usable", look)
        count(client)
        assert requests(peer) == [1, 1]


@pytest.mark.parametrize("is_goaway", [True, False])
def test_a_call_that_may_have_been_executed_is_never_sent_again(
    etcd: MakeClient, is_goaway: bool
) -> None:
    def script(session: Session) -> None:
        serve_one(session)
        stream = session.request().number
        if is_goaway:
            session.send(GOAWAY, 0, 0, farewell(stream))

    with Peer(script, serve) as peer:
        client = etcd(peer)
        count(client)
        with pytest.raises(UnknownOutcomeError):
            count(client)
        assert requests(peer) == [2]
        count(client)
        assert requests(peer) == [2, 1]


def test_a_read_does_not_wait_for_one_node_alone() -> None:
    """The other one fails at once, and answers when it is asked again."""
    failing = after_request(lambda session, _: session.close())
    with Peer(failing, serve) as one, Peer(Session.hold) as silent:
        client = EtcdClient([one.endpoint, silent.endpoint])
        assert client.read(b"k", timeout=2 * SHORT).count == 7
        client.close()
        assert len(silent.sessions) == 1


# Names and addresses


def test_a_node_with_an_address_of_ipv6(etcd: MakeClient) -> None:
    try:
        peer = Peer(serve, host="::1")
    except OSError:
        pytest.skip("NOT RUN: this machine has no IPv6")
    with peer:
        assert etcd(peer).read(b"k", timeout=LIMIT).count == 7


def test_a_host_by_its_name() -> None:
    with Peer(serve) as peer:
        client = EtcdClient([f"localhost:{peer.port}"])
        assert client.read(b"k", timeout=LIMIT).count == 7
        client.close()
    client = EtcdClient(["no-such-host.invalid:2379"])
    with pytest.raises(UnknownOutcomeError, match="the host is not found"):
        count(client)
    client.close()


def test_names_that_nobody_looks_up_cost_no_more_than_the_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go_on = threading.Event()
    lookups: list[str] = []
    find = socket.getaddrinfo

    def never(host: str, port: int, *, type: int, flags: int) -> Any:
        if not flags:
            lookups.append(host)
            assert go_on.wait(LIMIT)
        return find(host, port, type=type, flags=flags)

    monkeypatch.setattr(socket, "getaddrinfo", never)
    with Peer(serve) as peer:
        client = EtcdClient([f"localhost:{peer.port}"])
        for _ in range(3):
            with pytest.raises(UnknownOutcomeError, match="no answer in time"):
                count(client, 0.1)
        assert lookups == ["localhost"]
        go_on.set()
        assert client.read(b"k", timeout=LIMIT).count == 7
        client.close()


def test_a_client_that_is_closed_while_it_looks_up_a_name_connects_to_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_asked, go_on = threading.Event(), threading.Event()
    find = socket.getaddrinfo

    def late(host: str, port: int, *, type: int, flags: int) -> Any:
        if not flags:
            is_asked.set()
            assert go_on.wait(LIMIT)
        return find(host, port, type=type, flags=flags)

    monkeypatch.setattr(socket, "getaddrinfo", late)
    with Peer(serve) as peer:
        client = EtcdClient([f"localhost:{peer.port}"])
        call = in_thread(lambda: count(client), "asks")
        assert is_asked.wait(LIMIT)
        client.close()
        go_on.set()
        assert isinstance(call.exception(LIMIT), UnknownOutcomeError)
        assert peer.sessions == []


# Watches


def event(revision: int) -> bytes:
    item = rpc.KeyValue(key=b"k", mod_revision=revision)
    return rpc.WatchResponse(events=[rpc.Event(kv=item)]).SerializeToString()


def begun(session: Session) -> int:
    """Take the request of a watch, which does not end; returns its number."""
    session.greet()
    stream = session.receive(HEADERS).number
    assert not session.receive(DATA).flags & END_STREAM
    session.headers(stream, *FIRST)
    return stream


def test_a_watch_is_one_of_two_calls_on_its_connection(etcd: MakeClient) -> None:
    """The other one asks for a sign of life, for as long as nothing comes."""

    def script(session: Session) -> None:
        stream = begun(session)
        for revision in range(1, 4):
            asked = session.request()
            assert asked.headers[":path"] == "/etcdserverpb.Maintenance/Status"
            session.message(stream, event(revision))
            session.answer(asked.number, b"")
        session.message(stream, event(4)[:-1] + b"\xff")
        session.hold()

    with Peer(script) as peer:
        recorder = Recorder()
        recorder.watch(etcd(peer, silence=0.4), b"k")
        recorder.until(3)
        reason = recorder.ended()
        assert isinstance(reason, WatchLostError)
        assert "malformed" in str(reason)
        assert len(peer.sessions) == 1


def signs(session: Session, stream: int) -> None:
    session.flood((PING, 0, 0, bytes(8)))


def much_of_a_status(session: Session, stream: int) -> None:
    asked = session.request().number
    session.flood((DATA, 0, asked, bytes(10_000)))


@pytest.mark.parametrize("script", [signs, much_of_a_status])
def test_a_watch_of_a_node_that_sends_no_sense_ends(
    etcd: MakeClient, script: Callable[[Session, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2, "DATA_BYTES", MIB)
    with Peer(lambda session: script(session, begun(session))) as peer:
        recorder = Recorder()
        recorder.watch(etcd(peer, silence=0.5), b"k")
        reason = recorder.ended()
        assert isinstance(reason, WatchLostError)
        assert "the node is silent" in str(reason)


@pytest.mark.parametrize("is_farewell", [True, False])
def test_a_watch_that_the_node_ends(etcd: MakeClient, is_farewell: bool) -> None:
    def script(session: Session) -> None:
        stream = begun(session)
        if is_farewell:
            session.send(GOAWAY, 0, 0, farewell(0))
        else:
            session.end(stream, *OK)
        session.hold()

    with Peer(script) as peer:
        recorder = Recorder()
        recorder.watch(etcd(peer), b"k")
        assert isinstance(recorder.ended(), WatchLostError)


def test_a_watch_is_closed_while_it_connects(etcd: MakeClient) -> None:
    connected = threading.Event()

    def script(session: Session) -> None:
        connected.set()
        session.hold()

    with Peer(script) as peer:
        watch = Recorder().watch(etcd(peer), b"k")
        assert connected.wait(LIMIT)
        watch.close()
        assert watch.join(1.0)
