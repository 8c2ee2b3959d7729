"""One contract for a mailbox and its two ways to its socket: in Python, and compiled.

`Mailbox` and `Frames` have their peer, the front's DEALER, in the test's own hands. The compiled
twin must do in every case what the plain one does, also with messages that no client should send;
the long form runs all of this with a twin that is watched by AddressSanitizer.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.broker.mailboxes import WAYS, Context, Make, Middle, Peer, Socket
from tests.compiled.sanitizer import COMPILER, run_under_address_sanitizer
from tests.conftest import Connect
from tests.support import LIMIT, ROOT, Frames, ServerInProcess, eventually, terminate
from zkv.broker import frames
from zkv.broker.frames import COMPILED, STAMP, PythonFrames
from zkv.broker.mailbox import WORKERS_BATCH, ReplyFailedError
from zkv.requests.batch import (
    NO_BODY,
    NO_DELIMITER,
    NO_MEMORY,
    TWO_BODIES,
    BadEnvelope,
    Batch,
    new_batch,
)

BATCH, BATCH_BYTES = WORKERS_BATCH


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Make:
    """Each of the two ways."""
    make: Make | None = WAYS[request.param]
    if make is None:
        pytest.skip("zkv was installed without a C compiler")
    return make


@pytest.fixture
def peer(context: Context, way: Make) -> Iterator[Peer]:
    """A mailbox of each way."""
    peer = Peer(context, way)
    yield peer
    peer.mailbox.close()
    peer.socket.close()


# --- What is a message


LONG = bytes(range(256)) * 5_000
GOOD = {
    "client": [b"\0client", b"", b"body"],
    "behind a broker": [b"a", b"b", b"", b"body"],
    "behind many": [*[b"%d" % number for number in range(40)], b"", b"body"],
    "long ids": [b"i" * 255, b"j" * 10_000, b"", b"body"],
    "empty body": [b"a", b"", b""],
    "long body": [b"a", b"", LONG],
    "nobody's id": [b"", b"", b"body"],
}
BAD = {
    "no delimiter": ([b"a", b"body"], NO_DELIMITER, [b"a", b""]),
    "no delimiter, many frames": ([b"a", b"b", b"c", LONG], NO_DELIMITER, [b"a", b""]),
    "no body": ([b"a", b""], NO_BODY, [b"a", b""]),
    "no body, behind a broker": ([b"a", b"b", b""], NO_BODY, [b"a", b"b", b""]),
    "two bodies": ([b"a", b"", b"1", b"2"], TWO_BODIES, [b"a", b""]),
    "many bodies": ([b"a", b"", *[b"%d" % n for n in range(600)]], TWO_BODIES, [b"a", b""]),
    "empty bodies": ([b"a", b"", b"", b"", b""], TWO_BODIES, [b"a", b""]),
}


@pytest.mark.parametrize("message", GOOD.values(), ids=GOOD)
def test_body_comes_in_and_reply_goes_to_the_sender(peer: Peer, message: Frames) -> None:
    peer.send(message)
    assert peer.take() == [message[-1]]
    peer.reply([b"reply"])
    assert peer.receive() == [*message[:-1], b"reply"]


@pytest.mark.parametrize(("message", "stands_for", "envelope"), BAD.values(), ids=BAD)
def test_bad_message_is_told_and_answered(
    peer: Peer, message: Frames, stands_for: BadEnvelope, envelope: Frames
) -> None:
    peer.send(message, [b"other", b"", b"good"])
    bodies = peer.take()
    assert bodies[0] is stands_for
    assert bodies[1:] == [b"good"]
    peer.reply([b"bad", b"well"])
    assert peer.receive() == [*envelope, b"bad"]
    assert peer.receive() == [b"other", b"", b"well"]
    assert peer.mailbox.passed.unroutable == 0


def test_message_without_a_sender_is_counted(peer: Peer) -> None:
    peer.send([b"alone"], [b""], [LONG], [b"a", b"", b"body"])
    assert peer.take() == [b"body"]
    assert peer.mailbox.passed.unroutable == 3
    peer.reply([b"reply"])
    assert peer.waiting() == [[b"a", b"", b"reply"]]


def test_many_frames_of_many_messages(peer: Peer) -> None:
    """More than is reserved for a batch, and good messages before and behind."""
    deep = [b"%d" % number for number in range(9_000)]
    messages = [[b"a", b"", b"1"], [*deep, b"", b"2"], [*deep, b"3"], [b"d", b"", b"4"]]
    for _ in range(2):
        peer.send(*messages)
        assert peer.take() == [b"1", b"2", NO_DELIMITER, b"4"]
        peer.reply([b"5", b"6", b"7", b"8"])
        assert peer.waiting() == [
            [b"a", b"", b"5"], [*deep, b"", b"6"], [b"0", b"", b"7"], [b"d", b"", b"8"],
        ]  # fmt: skip


@pytest.mark.parametrize("size", [0, 1, 29, 30, 33, 34, 255, 256, 65_535, 65_536, 3_000_000])
def test_replies_of_every_size(peer: Peer, size: int) -> None:
    """libzmq keeps short, long and shared contents in different ways."""
    reply = os.urandom(size)
    peer.send([b"a" * (size % 250 + 1), b"", reply])
    assert peer.take() == [reply]
    peer.reply([reply])
    assert peer.receive()[-1] == reply


# --- Batches


def test_everything_is_answered_in_order_in_bounded_batches(peer: Peer) -> None:
    count = 1_000
    peer.send(*[[b"%d" % number, b"", b"body %d" % number] for number in range(count)])
    sizes, answered = [], 0
    while answered < count:
        bodies = peer.take()
        assert bodies == [b"body %d" % (answered + i) for i in range(len(bodies))]
        peer.reply([b"reply %d" % (answered + i) for i in range(len(bodies))])
        answered += len(bodies)
        sizes.append(len(bodies))
    assert max(sizes) == BATCH
    assert peer.waiting() == [
        [b"%d" % number, b"", b"reply %d" % number] for number in range(count)
    ]


@pytest.mark.parametrize("large", [0, -1], ids=["envelopes", "bodies"])
def test_a_batch_is_bounded_by_its_bytes_too(peer: Peer, large: int) -> None:
    message = [b"a", b"b", b"", b"body"]
    message[large] = bytes(BATCH_BYTES // 3)
    peer.send(*[message] * 7)
    sizes: list[int] = []
    while sum(sizes) < 7:
        sizes.append(len(peer.take()))
        peer.reply([b"reply"] * sizes[-1])
    assert sizes == [3, 3, 1]


def test_idle_means_that_nothing_is_queued(peer: Peer) -> None:
    assert peer.mailbox.is_idle()
    peer.send([b"a", b"", b"1"])
    eventually(lambda: not peer.mailbox.is_idle(), "a message is there")
    peer.take()
    assert peer.mailbox.is_idle()
    assert peer.mailbox.unanswered == 1
    peer.reply([b"2"])
    assert peer.mailbox.unanswered == 0


@pytest.mark.parametrize("kept", [[], [0], [2, 0], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("size", [4, 5_000, 100_000])
def test_a_batch_is_split(peer: Peer, kept: list[int], size: int) -> None:
    """Requests go with their envelopes, bodies and replies, however libzmq keeps them."""
    messages = [[b"%d" % number, b"", bytes([number]) * size] for number in range(3)]
    peer.send(*messages)
    peer.take()
    batch = peer.mailbox._batch
    for place in range(3):
        batch.set_reply(place, b"reply %d" % place)
    taken = batch.split(kept)
    assert [taken[place] for place in range(len(taken))] == [messages[n][-1] for n in kept]
    peer.mailbox.reply()
    rest = [number for number in range(3) if number not in kept]
    assert peer.waiting() == [[b"%d" % n, b"", b"reply %d" % n] for n in rest]
    peer.frames.send(taken)
    assert peer.waiting() == [[b"%d" % n, b"", b"reply %d" % n] for n in kept]
    assert [taken.reply(place) for place in range(len(taken))] == [None] * len(taken)


def test_places_that_a_batch_does_not_have(peer: Peer) -> None:
    peer.send([b"a", b"", b"1"])
    assert peer.take() == [b"1"]
    batch: Any = peer.mailbox._batch
    for use in (batch.reply, batch.envelope, batch.is_request, lambda n: batch.set_reply(n, b"")):
        with pytest.raises(IndexError):
            use(1)
    with pytest.raises(TypeError):
        batch.set_reply(0, "text")
    peer.reply([b"2"])
    assert peer.waiting() == [[b"a", b"", b"2"]]


class Later:
    """Replies that are made when the test says so."""

    ready: Callable[[], None]

    def __init__(self, *bodies: bytes) -> None:
        self._bodies = list(bodies)
        self.sizes = list(map(len, bodies))

    def notify(self, ready: Callable[[], None]) -> None:
        self.ready = ready

    def complete(self, batch: Batch) -> None:
        for place, body in enumerate(self._bodies):
            batch.set_reply(place, body)

    def give_up(self, batch: Batch, error: BaseException) -> None:
        for place in range(len(batch)):
            batch.set_reply(place, repr(error).encode())


def test_pending_reply_leaves_when_it_is_completed(peer: Peer) -> None:
    """Another thread completes it while the mailbox waits; others are answered before."""
    later = Later(b"later", b"as well")
    peer.send([b"a", b"x", b"", b"1"], [b"b", b"", b"2"], [b"c", b"", b"3"])
    assert peer.take() == [b"1", b"2", b"3"]
    peer.reply([None, b"at once", None], [([0, 2], later)])
    assert peer.receive() == [b"b", b"", b"at once"]
    assert peer.waiting() == []

    def complete_and_go_on() -> None:
        later.ready()
        assert peer.receive() == [b"a", b"x", b"", b"later"]
        assert peer.receive() == [b"c", b"", b"as well"]
        peer.send([b"d", b"", b"4"])

    thread = threading.Thread(target=complete_and_go_on)
    thread.start()
    assert peer.take() == [b"4"]
    thread.join()
    peer.reply([b"done"])


def test_end_waits_for_what_is_queued_and_pending(peer: Peer) -> None:
    later = Later(b"later")
    peer.send([b"a", b"", b"1"])
    peer.take()
    peer.reply([None], [([0], later)])
    peer.send([b"b", b"", b"2"])
    peer.mailbox.stop()
    assert peer.take() == [b"2"]
    peer.reply([b"two"])
    thread = threading.Thread(target=later.ready)
    thread.start()
    assert peer.take() == []
    thread.join()
    assert peer.waiting() == [[b"b", b"", b"two"], [b"a", b"", b"later"]]


# --- Waiting


def test_others_run_while_it_waits(peer: Peer) -> None:
    """Python's lock is free meanwhile: else this thread could never stop it."""
    thread = threading.Timer(0, peer.mailbox.stop)
    thread.start()
    assert peer.take() == []
    thread.join()


def test_signal_while_it_waits(peer: Peer) -> None:
    """In the main thread the handler runs, and waiting goes on; what it raises ends it.

    Signals come until one is noticed: one that comes just before the waiting begins wakes nobody.
    """
    happened = []
    raises = False

    class HandlerError(Exception):
        pass

    def handler(*_: object) -> None:
        happened.append("signal")
        if raises:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise HandlerError
        if len(happened) == 1:
            peer.send([b"a", b"", b"body"])

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        assert peer.take() == [b"body"]
        signal.setitimer(signal.ITIMER_REAL, 0)
        peer.reply([b"reply"])
        raises = True
        with pytest.raises(HandlerError):  # noqa: PT012  a signal may come before it waits
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
            peer.take()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert happened


def test_context_ends_while_it_waits(way: Make) -> None:
    context: Context = zmq.Context()
    peer = Peer(context, way)
    peer.socket.close()
    thread = threading.Thread(target=terminate, args=(context,))
    thread.start()
    with pytest.raises(zmq.ContextTerminated):
        peer.take()
    peer.mailbox.close()
    thread.join()


# --- The end of a socket


def test_what_was_sent_before_the_end_arrives(context: Context, way: Make) -> None:
    peer = Peer(context, way)
    peer.send(*[[b"%d" % number, b"", b"body"] for number in range(BATCH)])
    count = len(peer.take())
    peer.reply([b"reply"] * count)
    peer.mailbox.close()
    assert [peer.receive()[0] for _ in range(count)] == [b"%d" % number for number in range(count)]
    peer.socket.close()


def test_reply_to_a_front_that_is_gone(context: Context, way: Make) -> None:
    peer = Peer(context, way)
    peer.send([b"a", b"", b"1"], [b"b", b"", b"2"])
    assert peer.take() == [b"1", b"2"]
    peer.socket.close()
    eventually(
        lambda: not int(peer.inner.getsockopt(zmq.EVENTS)) & zmq.POLLOUT, "it has seen the end"
    )
    peer.reply([b"reply", b"reply"])
    assert peer.mailbox.passed.unroutable == 2
    peer.mailbox.close()


def test_frames_take_flags_by_name_alone(peer: Peer) -> None:
    receive: Callable[..., object] = peer.frames.receive
    batch = new_batch()
    peer.send([b"a", b"", b"1"])
    for positional, named in (((batch, True), {}), ((batch,), {}), ((batch,), {"take": True})):
        with pytest.raises(TypeError):
            receive(*positional, **named)
    with pytest.raises(TypeError):
        receive(batch, wait=True, block=True)
    with pytest.raises(TypeError):
        receive(wait=True)
    assert peer.take() == [b"1"]
    peer.reply([b"reply"])


def test_closed_socket_is_never_touched(context: Context, way: Make) -> None:
    peer = Peer(context, way)
    peer.frames.close()
    peer.frames.close()
    batch, other = new_batch(), new_batch()
    other.add([b"a", b""], b"body")
    other.set_reply(0, b"reply")
    uses: list[Callable[[], object]] = [
        lambda: peer.frames.receive(batch, wait=False),
        lambda: peer.frames.receive(batch, wait=True),
        lambda: peer.frames.send(other),
        lambda: peer.frames.receive(batch, wait=True, take=True, capacity=True),
        peer.frames.readable,
    ]
    for use in uses:
        with pytest.raises(zmq.ZMQError) as caught:
            use()
        assert caught.value.errno == zmq.ENOTSOCK
    peer.mailbox.close()
    peer.socket.close()


def test_only_what_has_a_reply_is_sent(peer: Peer) -> None:
    peer.send([b"a", b"", b"1"], [b"b", b"", b"2"], [b"c", b"", b"3"])
    assert peer.take() == [b"1", b"2", b"3"]
    peer.reply([None, b"reply", None])
    assert peer.receive() == [b"b", b"", b"reply"]
    assert peer.waiting() == []


LITTLE_MEMORY = """
import resource, sys
import zmq
from tests.broker.mailboxes import BOUNDS, WAYS
from zkv.broker.waker import Waker
from zkv.requests.batch import new_batch

def end_memory():
    with open("/proc/self/statm") as file:
        room = int(file.read().split()[0]) * resource.getpagesize() + 100_000_000
    resource.setrlimit(resource.RLIMIT_AS, (room, room))

context = zmq.Context()
server, client = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
client.routing_id = b"a"
server.bind("inproc://x")
client.connect("inproc://x")
frames = WAYS[sys.argv[1]](server, Waker(), BOUNDS)
batch = new_batch()
"""


def run_with_little_memory(name: str, script: str) -> str:
    """What a script prints that has ``frames`` of a way, their ``client``, and ``end_memory``."""
    if WAYS[name] is None:
        pytest.skip("zkv was installed without a C compiler")
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("needs /proc")
    command = [sys.executable, "-c", LITTLE_MEMORY + script, name]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=LIMIT, cwd=ROOT
    ).stdout


@pytest.mark.parametrize("name", WAYS)
def test_a_reply_that_memory_does_not_hold_goes_to_nobody(name: str) -> None:
    """And the next one goes to its own client, and not behind half of that."""
    script = """if True:
        for _ in range(2):
            client.send_multipart([b"", b"hello"])
        frames.receive(batch, wait=True)
        assert len(batch) == 2
        batch.set_reply(0, bytes(300_000_000))
        batch.set_reply(1, b"for a")
        end_memory()
        try:
            frames.send(batch)
        except (MemoryError, zmq.ZMQError):
            print([frame.decode() for frame in client.recv_multipart()])
    """
    assert run_with_little_memory(name, script) == "['', 'for a']\n"


@pytest.mark.parametrize("name", WAYS)
def test_a_request_that_memory_does_not_hold_is_answered(name: str) -> None:
    """And those before and behind it are what they are."""
    script = """if True:
        client.send_multipart([b"", b"small"])
        client.send_multipart([b"", bytes(300_000_000)])
        client.send_multipart([b"", b"two", bytes(300_000_000)])
        client.send_multipart([b"", b"another"])
        end_memory()
        answers = []
        while len(answers) < 4:
            frames.receive(batch, wait=True)
            answers += [getattr(body, "reason", body) for body in batch]
        print(answers)
    """
    expected = [b"small", NO_MEMORY.reason, TWO_BODIES.reason, b"another"]
    assert run_with_little_memory(name, script) == f"{expected}\n"


class Failing(Later):
    """Replies that nobody can make."""

    def complete(self, batch: Batch) -> None:
        raise KeyError("a bug")


def test_a_pending_reply_that_cannot_be_made_is_answered_otherwise(peer: Peer) -> None:
    later, failing = Later(b"later"), Failing(b"")
    peer.send([b"a", b"", b"1"], [b"b", b"", b"2"])
    assert peer.take() == [b"1", b"2"]
    peer.reply([None, None], [([0], failing), ([1], later)])
    failing.ready()
    later.ready()
    with pytest.raises(ReplyFailedError) as raised:
        peer.take()
    assert isinstance(raised.value.__cause__, KeyError)
    peer.mailbox.stop()
    assert peer.take() == []
    assert peer.receive() == [b"a", b"", b"KeyError('a bug')"]
    assert peer.receive() == [b"b", b"", b"later"]


# --- Batches that are answered while they are received


def answer_all(batch: Batch) -> None:
    """Answer each request with itself."""
    for place, body in enumerate(batch):
        assert isinstance(body, bytes)
        batch.set_reply(place, body.upper())


def test_batches_are_answered_and_sent_until_one_is_not_whole(peer: Peer) -> None:
    batch, sizes = new_batch(), []

    def answer(batch: Batch) -> str | None:
        sizes.append(len(batch))
        if batch[0] == b"last":
            return "what is left"
        answer_all(batch)
        if len(sizes) < 3:
            peer.send([b"a", b"", b"%d" % len(sizes)])
        else:
            peer.send([b"b", b"", b"last"])
        return None

    peer.send([b"a", b"", b"x"], [b"c", b"", b"y"])
    eventually(peer.frames.readable, "both are there")
    assert peer.frames.receive(batch, wait=True, answer=answer) == "what is left"
    assert sizes == [2, 1, 1, 1]
    assert list(batch) == [b"last"], "it is still to be answered"
    got = [(envelope, body) for envelope, _, body in peer.waiting()]
    assert got == [(b"a", b"X"), (b"c", b"Y"), (b"a", b"1"), (b"a", b"2")]


def test_who_is_woken_looks_up_after_the_batch_at_hand(peer: Peer) -> None:
    batch, waker = new_batch(), peer.mailbox._waker

    def answer(batch: Batch) -> None:
        answer_all(batch)
        peer.send([b"a", b"", b"more"])
        waker.wake()

    peer.send([b"a", b"", b"x"])
    assert peer.frames.receive(batch, wait=True, answer=answer) is None
    assert (len(batch), peer.receive()) == (0, [b"a", b"", b"X"])
    waker.clear()
    assert peer.take() == [b"more"], "nothing is lost"


def test_what_answering_raises_leaves_the_batch_as_it_was(peer: Peer) -> None:
    def answer(batch: Batch) -> None:
        batch.set_reply(0, b"well")
        raise KeyError("a bug")

    peer.send([b"a", b"", b"1"], [b"a", b"", b"2"])
    eventually(peer.frames.readable, "both are there")
    batch = new_batch()
    with pytest.raises(KeyError):
        peer.frames.receive(batch, wait=True, answer=answer)
    assert list(batch) == [b"1", b"2"]
    assert peer.waiting() == []


def test_an_empty_batch_is_not_answered(peer: Peer) -> None:
    def answer(batch: Batch) -> None:
        raise AssertionError("there is nothing to answer")

    assert peer.frames.receive(new_batch(), wait=False, answer=answer) is None


# --- With others behind


@pytest.fixture
def middle(context: Context, way: Make) -> Iterator[Middle]:
    """One of each way."""
    with contextlib.closing(Middle(context, way)) as middle:
        yield middle


@pytest.fixture
def narrow(context: Context, way: Make) -> Iterator[Middle]:
    """One of each way, which has room for one request to those behind."""
    with contextlib.closing(Middle(context, way, room=1)) as middle:
        yield middle


def requested(worker: Socket) -> list[bytes]:
    """The frames of a request that was left, without the stamp in front of them."""
    stamp, *frames = worker.recv_multipart()
    arrived, waited = STAMP.unpack(stamp)
    assert 0 < arrived <= time.perf_counter()
    assert waited == 0
    return frames


def test_what_is_left_goes_to_those_behind_and_their_reply_to_the_client(middle: Middle) -> None:
    worker = middle.add_worker()
    middle.ask(b"1", b"2", b"3")
    assert middle.take_all(3) == [b"1", b"2", b"3"]
    middle.reply([None, b"two", None], [], [0, 2])
    assert middle.client.recv_multipart() == [b"", b"two"]
    for number in (b"1", b"3"):
        *envelope, delimiter, body = requested(worker)
        assert (delimiter, body) == (b"", number)
        worker.send_multipart([*envelope, b"", b"reply", b"of", LONG])  # Whatever it is made of.
    worker.send_multipart([b"nobody", b"", b"reply"])
    worker.close()
    assert middle.queued() == []
    assert middle.client.recv_multipart() == [b"", b"reply", b"of", LONG]
    assert middle.client.recv_multipart() == [b"", b"reply", b"of", LONG]
    assert not middle.client.poll(0)


def test_replies_to_one_client_keep_their_order(middle: Middle) -> None:
    """Those of a batch leave in the order of connections, of which there are several."""
    count = 30
    others = [middle.connect_client() for _ in range(3)]
    clients = [middle.client, *others]
    for number in range(count):
        for client in clients:
            client.send_multipart([b"", b"%d" % number])
    answered = 0
    while answered < count * len(clients):
        bodies = middle.take()
        middle.reply([body for body in bodies if isinstance(body, bytes)])
        answered += len(bodies)
    for client in clients:
        replies = [client.recv_multipart()[1] for _ in range(count)]
        assert replies == [b"%d" % number for number in range(count)]
    for client in others:
        client.close()


def test_replies_pass_while_it_waits_for_requests(middle: Middle) -> None:
    def answer_and_ask() -> None:
        with middle.add_worker() as worker:
            *envelope, _ = requested(worker)
            worker.send_multipart([*envelope, b"one"])
            assert middle.client.recv_multipart() == [b"", b"one"]
        middle.ask(b"2")

    middle.ask(b"1")
    assert middle.take_all(1) == [b"1"]
    middle.reply([None], [], [0])
    thread = threading.Thread(target=answer_and_ask)
    thread.start()
    assert middle.take() == [b"2"]
    thread.join()
    middle.reply([b"two"])


def test_nothing_is_taken_while_those_behind_have_no_room(narrow: Middle) -> None:
    count = 40
    bodies = [b"%d" % number for number in range(count)]
    narrow.ask(*bodies)
    assert narrow.take_all(count) == bodies
    narrow.reply([None] * count, [], list(range(count)))  # Nobody is there at all.
    narrow.ask(b"later")
    assert narrow.queued(take=False) == []
    taken = []

    def work() -> None:
        with narrow.add_worker() as worker:
            for _ in range(count):
                *_, body = requested(worker)
                taken.append(body)

    thread = threading.Thread(target=work)
    thread.start()
    assert narrow.take() == [b"later"]
    thread.join()
    assert taken == bodies
    narrow.reply([b"reply"])


def test_the_rest_of_a_batch_comes_next_after_it_has_waited_for_room(narrow: Middle) -> None:
    """Its replies had become large, and of what had run before some was left."""
    narrow.ask(b"left", b"large", b"rest", b"rest")
    assert len(narrow.take_all(4)) == 4
    narrow.reply([None, b"reply", None, None], [], [0], end=2)  # Nobody is there yet.
    narrow.ask(b"later")
    eventually(narrow.frames.readable, "it has come")
    with narrow.add_worker() as worker:
        assert narrow.take() == [b"rest", b"rest"]
        assert requested(worker)[-1] == b"left"
        narrow.reply([b"1", b"2"])
        assert narrow.take() == [b"later"]
        narrow.reply([b"3"])
    replies = [narrow.client.recv_multipart()[1] for _ in range(4)]
    assert replies == [b"reply", b"1", b"2", b"3"]


def test_replies_pass_while_it_waits_for_room(narrow: Middle) -> None:
    """Whenever they come: one of a pair comes while what the other one brought is looked at."""
    worker = narrow.add_worker()
    count = 20
    narrow.ask(*[b"%d" % number for number in range(count)])
    narrow.take_all(count)
    narrow.reply([None] * count, [], list(range(count)))
    thread = threading.Thread(target=narrow.take)
    thread.start()
    *envelope, _ = requested(worker)
    try:
        for number in range(10_000):
            for _ in range(2):
                worker.send_multipart([*envelope, b"reply"])
                deque(range(number % 500), maxlen=0)  # Takes a moment, some 10 us at most.
            for _ in range(2):
                assert narrow.client.recv_multipart() == [b"", b"reply"]
    finally:
        narrow.mailbox.stop()
        thread.join()
        worker.close()


def test_only_what_had_arrived_is_taken_at_the_end(middle: Middle) -> None:
    """A client that goes on asking is not waited for; what is pending, and behind, is."""
    worker, later = middle.add_worker(), Later(b"later")
    middle.ask(b"1", b"2", b"3")
    middle.take_all(3)
    middle.reply([b"one", None, None], [([1], later)], [2])
    middle.ask(b"4")
    eventually(middle.frames.readable, "a message is there")
    middle.mailbox.drain()
    assert middle.take() == [b"4"]
    middle.reply([b"four"])
    thread = threading.Thread(target=end, args=(middle, worker, later))
    thread.start()
    assert middle.take() == []
    thread.join()
    replies = [middle.client.recv_multipart()[1] for _ in range(4)]
    assert sorted(replies) == [b"four", b"later", b"one", b"three"]


def end(middle: Middle, worker: Socket, later: Later) -> None:
    """What happens while the front waits for its end."""
    assert middle.mailbox.drained.wait(LIMIT)
    middle.ask(b"too late")
    *envelope, _ = requested(worker)
    worker.send_multipart([*envelope, b"three"])
    worker.close()
    middle.mailbox.stop()
    later.ready()


# --- Nothing leaks


def test_memory_stays_flat(peer: Peer) -> None:
    """Good and bad messages, 200 MB in all."""
    large = bytes(20_000)
    batch = [[b"a", b"", large], [b"a", large], [b"a", b"", large, large], [large], [b"a", b""]]

    def exchange(rounds: int) -> None:
        for _ in range(rounds):
            peer.send(*batch)
            left = 4
            while left:
                bodies = peer.take()
                peer.reply([large] * len(bodies))
                left -= len(bodies)
            peer.waiting()

    exchange(100)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    references = sys.getrefcount(large)
    exchange(2_000)
    assert sys.getrefcount(large) == references
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000


# --- Both do the same, whatever comes


frame = st.one_of(st.just(b""), st.binary(max_size=40), st.integers(1, 300).map(bytes))
message = st.lists(frame, min_size=1, max_size=8)


@settings(max_examples=150)
@given(batches=st.lists(st.lists(message, max_size=10), max_size=5))
def test_both_ways_do_the_same(batches: list[list[Frames]]) -> None:
    """Whatever frames come, in batches: the same bodies, and the same frames in reply."""
    if COMPILED is None:
        pytest.skip("zkv was installed without a C compiler")
    outcomes = []
    context: Context = zmq.Context()
    for way in (PythonFrames, COMPILED):
        peer = Peer(context, way)
        outcome: list[Any] = []
        for batch in batches:
            peer.send(*batch)
            peer.mailbox.stop()  # So that it does not wait where nothing can be answered.
            while bodies := peer.take():
                outcome.append(bodies)
                peer.reply([b"reply %d" % number for number in range(len(bodies))])
        outcomes.append((outcome, peer.waiting(), peer.mailbox.passed.unroutable))
        peer.mailbox.close()
        peer.socket.close()
    terminate(context)
    assert outcomes[0] == outcomes[1]


# --- Which one runs


def test_info_tells_which_one_runs(tmp_path: Path, connect: Connect) -> None:
    with ServerInProcess(tmp_path / "data") as server:
        expected = "plain" if COMPILED is None else "compiled"
        assert connect(server.endpoint).ok(op="INFO")["stats"]["mailbox"] == expected


def test_server_runs_with_the_plain_one(
    tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zkv.broker.front.FRAMES", PythonFrames)
    monkeypatch.setattr("zkv.broker.broker.FRAMES", PythonFrames)
    with ServerInProcess(tmp_path / "data") as server:
        client = connect(server.endpoint)
        client.ok(op="PUT", key="k", value=1)
        assert client.ok(op="INFO")["stats"]["mailbox"] == "plain"


def test_libzmq_is_looked_for_in_what_is_loaded() -> None:
    if COMPILED is None:
        pytest.skip("zkv was installed without a C compiler")
    from zkv.broker import _frames

    with pytest.raises(ImportError):
        _frames.attach("/nowhere/lib.so")
    with pytest.raises(ImportError, match="zmq_version"):
        _frames.attach(str(sys.modules["msgspec._core"].__file__))


def test_another_libzmq_is_not_used() -> None:
    assert not frames._attach(lambda _: (4, 0, 9))


@pytest.mark.parametrize("compiler", [COMPILER, "/nowhere/cc"], ids=["compiler", "no compiler"])
def test_installs_with_and_without_a_compiler(tmp_path: Path, compiler: str | None) -> None:
    if compiler is None or not os.path.exists(sysconfig.get_path("include") + "/Python.h"):
        pytest.skip("needs a C compiler and Python's headers")
    source, target = copy_of_sources(tmp_path), tmp_path / "installed"
    install = [
        sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install",
        "--no-deps", "--no-build-isolation", "--target", str(target), str(source),
    ]  # fmt: skip
    quickly = {"CC": compiler, "CFLAGS": "-O0"}
    subprocess.run(install, check=True, timeout=60, env=os.environ | quickly)
    program = "from zkv.broker.frames import COMPILED; print(COMPILED is not None)"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(target)},
        capture_output=True, text=True, check=True, timeout=LIMIT,
    )  # fmt: skip
    assert run.stdout == f"{compiler == COMPILER}\n"


def copy_of_sources(directory: Path) -> Path:
    """What zkv is installed from, and nothing that was built."""
    source = directory / "source"
    shutil.copytree(ROOT / "zkv", source / "zkv", ignore=shutil.ignore_patterns("*.so", "__*__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    return source


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_contract_under_address_sanitizer(tmp_path: Path) -> None:
    """All of the above with a twin that is watched at each access to memory."""
    files = "tests/broker/test_mailbox.py", "tests/broker/test_publisher.py"
    arguments = *files, "-k", "not installs and not memory_does_not_hold"
    printed = run_under_address_sanitizer(tmp_path, *arguments)
    assert "skipped" not in printed
