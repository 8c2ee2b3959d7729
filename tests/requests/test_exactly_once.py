"""Writes that are repeated until they are answered count once, whatever gets lost on the way.

Between clients and server stands a proxy that loses, tears, delays and duplicates what passes, and
swallows replies; and the server is killed and started again meanwhile. Set ZKV_SEED to the seed
that was printed for the same requests and the same kinds of faults (not the same timing).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Self

import pytest
import zmq

from tests.conftest import Connect
from tests.support import LIMIT, Message, NoReplyError, Raw, ServerProcess, pack, unpack

Asked = dict[str, Any]

WINDOW: Final = 16
IN_FLIGHT: Final = 6
CONFIG: Final = f"""
[server]
workers = 4

[durability]
snapshot_interval = 0.2
segment_bytes = 50_000

[limits]
session_window = {WINDOW}

[log]
requests = false
"""
"""Snapshots and new segments often enough for each start to find all sorts of them."""

FIRST_PATIENCE: Final = 0.05
"""Seconds that a reply is waited for at first; twice as long each time that none comes."""
MOST_PATIENCE: Final = 3.0


# --- A bad network ----------------------------------------------------------------------------

FAULTS: Final = ("lose", "tear", "swallow", "swallow", "hang up", "delay", "duplicate", "duplicate")
CHANCE_OF_FAULT: Final = 0.25
LONGEST_DELAY: Final = 0.03
LATEST_DUPLICATE: Final = 0.3


class BadNetwork:
    """A TCP proxy that does to what passes what bad networks do. Use as a context manager.

    Each piece that a client sends may meet a fault: it is lost, torn in the middle, or passed on
    but its reply swallowed, or the connection is closed right behind it - each of these ends the
    connection - or it comes late; or all that the client has sent on this connection is sent once
    more, later, on another one.
    """

    def __init__(self, seed: int) -> None:
        self.faults: Counter[str] = Counter()
        self.endpoint = ""
        self._random = random.Random(seed)
        self._server: tuple[str, int] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="network")
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def lead_to(self, endpoint: str | None) -> None:
        """Lead to a server, or nowhere."""
        host, _, port = (endpoint or "").removeprefix("tcp://").rpartition(":")
        self._server = (host, int(port)) if endpoint else None

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = listener.sockets[0].getsockname()
        self.endpoint = f"tcp://{host}:{port}"
        self._ready.set()
        await self._stop.wait()
        listener.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._begin(self._carry(reader, writer))

    def _begin(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until either side or a fault ends it."""
        async with _closing(writer), self._connected() as (replies, requests):
            swallow = asyncio.Event()
            back = asyncio.ensure_future(_carry_replies(replies, writer, swallow))
            forth = asyncio.ensure_future(self._carry_requests(reader, requests, swallow))
            try:
                await asyncio.wait([back, forth], return_when=asyncio.FIRST_COMPLETED)
            finally:
                back.cancel()
                forth.cancel()
                await asyncio.gather(back, forth, return_exceptions=True)

    async def _carry_requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, swallow: asyncio.Event
    ) -> None:
        sent = b""
        while piece := await reader.read(65_536):
            sent += piece
            match self._fault():
                case "lose":
                    return
                case "tear":
                    writer.write(piece[: len(piece) // 2])
                    await writer.drain()
                    return
                case "hang up":
                    writer.write(piece)
                    await writer.drain()
                    return
                case "swallow":
                    swallow.set()
                case "delay":
                    await asyncio.sleep(self._random.uniform(0, LONGEST_DELAY))
                case "duplicate":
                    self._begin(self._duplicate(sent, self._random.uniform(0, LATEST_DUPLICATE)))
            writer.write(piece)
            await writer.drain()

    async def _duplicate(self, sent: bytes, delay: float) -> None:
        """Send all of a connection once more; nobody hears the replies."""
        await asyncio.sleep(delay)
        async with self._connected() as (replies, requests):
            requests.write(sent)
            await requests.drain()
            while await replies.read(65_536):
                pass

    def _fault(self) -> str:
        if self._random.random() > CHANCE_OF_FAULT:
            return ""
        fault = self._random.choice(FAULTS)
        self.faults[fault] += 1
        return fault

    @contextlib.asynccontextmanager
    async def _connected(self) -> Any:
        """A connection to the server; where there is none, this is the end of the task."""
        try:
            if self._server is None:
                raise ConnectionRefusedError
            reader, writer = await asyncio.open_connection(*self._server)
        except OSError as error:
            raise asyncio.CancelledError from error
        async with _closing(writer):
            yield reader, writer


@contextlib.asynccontextmanager
async def _closing(writer: asyncio.StreamWriter) -> Any:
    try:
        with contextlib.suppress(OSError):  # It was closed at the other end.
            yield
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _carry_replies(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, swallow: asyncio.Event
) -> None:
    while piece := await reader.read(65_536):
        if swallow.is_set():
            return
        writer.write(piece)
        await writer.drain()


# --- Clients that do not give up --------------------------------------------------------------


class Stubborn:
    """Repeats its requests until they are answered. Not to be shared by threads.

    Args:
        endpoint: where to connect; a new connection for each try that fails.
        context: of the sockets.
        seed: of the order in which requests in flight are sent.
    """

    def __init__(self, endpoint: str, context: zmq.Context[Any], seed: object) -> None:
        self._endpoint = endpoint
        self._context = context
        self._random = random.Random(str(seed))
        self._raw: Raw | None = None
        self.repeats = 0

    def close(self) -> None:
        if self._raw is not None:
            self._raw.close()
            self._raw = None

    def ask(self, request: Asked) -> Message:
        """The reply to a request."""
        return self.ask_all([request])[0]

    def ask_all(self, requests: list[Asked]) -> list[Message]:
        """The replies to requests that are in flight together, and sent in any order."""
        replies: dict[int, Message] = {}
        patience = FIRST_PATIENCE
        deadline = time.monotonic() + 2 * LIMIT
        while missing := [number for number in range(len(requests)) if number not in replies]:
            assert time.monotonic() < deadline, f"no reply to {requests[missing[0]]}"
            kind = zmq.REQ if len(requests) == 1 else zmq.DEALER
            if self._raw is None or self._raw.kind != kind:
                self.close()
                self._raw = Raw(self._endpoint, kind, context=self._context)
            self._random.shuffle(missing)
            for number in missing:
                self._raw.send(pack(requests[number] | {"id": number}))
            self._raw.timeout = patience
            try:
                for _ in missing:
                    reply = unpack(self._raw.receive())
                    replies.setdefault(reply.pop("id"), reply)
            except NoReplyError:
                self.repeats += len(missing)
                patience = min(2 * patience, MOST_PATIENCE)
                self.close()
        return [replies[number] for number in range(len(requests))]


def told(reply: Message) -> Message:
    """What a repeat must tell again: all but whether it is one, and is on disk by now."""
    plain = {name: value for name, value in reply.items() if name not in {"replayed", "durable"}}
    if "results" in plain:
        plain["results"] = [told(result) for result in plain["results"]]
    return plain


class Writer(threading.Thread):
    """A session that writes, and remembers its requests and their replies."""

    def __init__(
        self, number: int, seed: int, endpoint: str, context: zmq.Context[Any], answered: Progress
    ) -> None:
        super().__init__(name=f"writer-{number}", daemon=True)
        self.session = f"{seed}-{number}"
        self.asked: dict[int, Asked] = {}
        self.replies: dict[int, Message] = {}
        self.error: BaseException | None = None
        self._random = random.Random(f"{seed} {number}")
        self.client = Stubborn(endpoint, context, seed)
        self._answered = answered

    def run(self) -> None:
        try:
            while not self._answered.enough:
                self._write([self._choose() for _ in range(self._random.choice([1, 1, IN_FLIGHT]))])
        except BaseException as error:
            self.error = error
        finally:
            self.client.close()

    def _write(self, requests: list[Asked]) -> None:
        first = len(self.asked) + 1
        for seq, request in enumerate(requests, first):
            self.asked[seq] = request | {"session": self.session, "seq": seq}
        batch = [self.asked[seq] for seq in range(first, first + len(requests))]
        for request, reply in zip(batch, self.client.ask_all(batch), strict=True):
            assert reply["ok"] or reply["code"] in {"CONFLICT", "NOT_FOUND"}, (request, reply)
            self.replies[request["seq"]] = told(reply)
            self._answered.count()
        if self._random.random() < 0.3:
            newest = len(self.asked)
            self.check_repeat(self.client, self._random.randint(max(1, newest - 5), newest))

    def check_repeat(self, client: Stubborn, seq: int) -> None:
        """A request that was answered is answered the same again."""
        reply = client.ask(self.asked[seq])
        assert reply["replayed"] is True, (self.asked[seq], reply)
        assert told(reply) == self.replies[seq], (self.asked[seq], reply, self.replies[seq])

    def _choose(self) -> Asked:
        return self._random.choice(
            [self._incr, self._incr, self._compare_and_swap, self._move, self._refused]
        )()

    def _incr(self) -> Asked:
        return {"op": "INCR", "key": self._random.choice(COUNTERS)}

    def _compare_and_swap(self) -> Asked:
        """Count by reading first: some of these meet a conflict."""
        key = self._random.choice(SWAPPED)
        now = self.client.ask({"op": "TXN", "ops": [{"op": "GET", "key": key}]})["results"][0]
        return {"op": "PUT", "key": key, "value": (now["value"] or 0) + 1, "if_rev": now["rev"]}

    def _move(self) -> Asked:
        """From one account to the other, with a receipt that cannot be written twice."""
        amount = self._random.randint(1, 100)
        receipt = f"receipt {self.session} {self._random.getrandbits(64)}"
        return {
            "op": "TXN",
            "ops": [
                {"op": "INCR", "key": ACCOUNTS[0], "by": -amount},
                {"op": "INCR", "key": ACCOUNTS[1], "by": amount},
                {"op": "PUT", "key": receipt, "value": amount, "if_rev": 0},
            ],
        }

    def _refused(self) -> Asked:
        """Deletes a key that mostly is not there: whether it was is remembered, too."""
        return {"op": "DELETE", "key": self._random.choice(SWAPPED)[::-1]}


class Progress:
    """How many requests have been answered; shared by all threads.

    Args:
        goal: how many are enough.
    """

    def __init__(self, goal: int) -> None:
        self._changed = threading.Condition()
        self._answered = 0
        self._goal = goal

    @property
    def enough(self) -> bool:
        return self._answered >= self._goal

    def count(self) -> None:
        with self._changed:
            self._answered += 1
            self._changed.notify_all()

    def wait_for(self, answered: int) -> None:
        with self._changed:
            reached = self._changed.wait_for(lambda: self._answered >= answered, 5 * LIMIT)
            assert reached, f"stuck at {self._answered} answers"


COUNTERS: Final = ("n0", "n1", "n2")
SWAPPED: Final = ("s0", "s1")
ACCOUNTS: Final = ("from", "to")


def new_seed() -> int:
    """From ZKV_SEED, or another each time; printed."""
    seed = int(os.environ.get("ZKV_SEED") or random.SystemRandom().randrange(2**32))
    print(f"ZKV_SEED={seed}")
    return seed


def storm(directory: Path, fsync: str, writers: int, answers: int, kills: int) -> None:
    """Clients write through a bad network to a server that is killed now and then."""
    seed = new_seed()
    progress = Progress(answers)
    with (
        ServerProcess(directory, "--fsync", fsync, config=CONFIG) as server,
        BadNetwork(seed) as network,
        zmq.Context() as context,
    ):
        network.lead_to(server.endpoint)
        threads = [
            Writer(number, seed, network.endpoint, context, progress) for number in range(writers)
        ]
        for thread in threads:
            thread.start()
        for kill in range(1, kills + 1):
            progress.wait_for(answers * kill // (kills + 1))
            server.kill()
            network.lead_to(None)
            server.start()
            network.lead_to(server.endpoint)
        progress.wait_for(answers)
        for thread in threads:
            thread.join(3 * LIMIT)
        errors = [thread.error for thread in threads if thread.error is not None]
        assert not errors, errors[0]

        server.kill()
        server.start()
        client = Stubborn(server.endpoint, context, seed)
        for thread in threads:
            check_window(thread, client)
        check_sums(threads, client)
        client.close()
        complaints = [line for line in server.log().splitlines() if " ERROR " in line]
        assert not complaints, complaints[:5]
    repeats = sum(thread.client.repeats for thread in threads)
    print(f"{answers} answers, {repeats} repeats, {dict(network.faults)}")
    assert set(network.faults) == set(FAULTS)
    assert repeats > kills


def check_window(writer: Writer, client: Stubborn) -> None:
    """The last replies are remembered, the others' requests are refused."""
    newest = len(writer.asked)
    for seq in range(1, newest + 1):
        if seq > newest - WINDOW:
            writer.check_repeat(client, seq)
        else:
            reply = client.ask(writer.asked[seq])
            assert (reply["ok"], reply.get("code")) == (False, "STALE_SEQ"), reply


def check_sums(writers: Iterable[Writer], client: Stubborn) -> None:
    """Every write that was answered has happened once."""
    done = [
        (request, writer.replies[seq])
        for writer in writers
        for seq, request in writer.asked.items()
        if writer.replies[seq]["ok"]
    ]

    def values(keys: Iterable[str]) -> list[Any]:
        reply: list[Any] = client.ask({"op": "MGET", "keys": list(keys)})["values"]
        return reply

    revs = [reply["rev"] for _, reply in done]
    assert len(set(revs)) == len(revs), "two writes have the same revision"
    for key, value in zip(COUNTERS, values(COUNTERS), strict=True):
        sums = [reply["value"] for request, reply in done if request.get("key") == key]
        assert sorted(sums) == list(range(1, value + 1)), key
    for key, value in zip(SWAPPED, values(SWAPPED), strict=True):
        written = [request["value"] for request, _ in done if request.get("key") == key]
        assert sorted(written) == list(range(1, value + 1)), key
    moved = [request["ops"] for request, _ in done if request["op"] == "TXN"]
    total = sum(ops[1]["by"] for ops in moved)
    assert values(ACCOUNTS) == [-total, total]
    assert client.ask({"op": "COUNT", "prefix": "receipt"})["count"] == len(moved)
    assert client.ask({"op": "INFO"})["rev"] == max(revs) == len(revs)


@pytest.mark.parametrize("fsync", ["always", "never"])
def test_every_write_counts_once_through_a_bad_network_and_crashes(
    tmp_path: Path, fsync: str
) -> None:
    storm(tmp_path / "server", fsync, writers=12, answers=600, kills=3)


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("fsync", ["always", "interval", "never"])
def test_every_write_counts_once_for_long(tmp_path: Path, fsync: str) -> None:
    for round_ in range(5):
        storm(tmp_path / f"server {round_}", fsync, writers=24, answers=8_000, kills=20)


# --- The same number at the same time ---------------------------------------------------------


@pytest.fixture
def busy_server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server with several workers."""
    with ServerProcess(tmp_path / "server", "--workers", "4") as server:
        yield server


def test_of_repeats_at_the_same_time_one_runs_and_all_are_answered_alike(
    busy_server: ServerProcess, connect: Connect
) -> None:
    clients = [connect(busy_server.endpoint, zmq.DEALER) for _ in range(16)]
    for seq in range(1, 61):
        body = pack({"op": "INCR", "key": "n", "session": "s", "seq": seq})
        for client in clients:
            client.send(body)
        replies = [unpack(client.receive()) for client in clients]

        first = [reply for reply in replies if "replayed" not in reply]
        assert len(first) == 1
        assert all(told(reply) == told(first[0]) for reply in replies)
        assert first[0]["value"] == seq
    assert clients[0].call(op="GET", key="n")["value"] == 60


def test_of_two_requests_with_the_same_number_at_the_same_time_one_is_refused(
    busy_server: ServerProcess, connect: Connect
) -> None:
    clients = [connect(busy_server.endpoint, zmq.DEALER) for _ in range(8)]
    total = 0
    for seq in range(1, 41):
        for number, client in enumerate(clients):
            client.send(
                pack({"op": "INCR", "key": "n", "by": number % 2 + 1, "session": "s", "seq": seq})
            )
        replies = [unpack(client.receive()) for client in clients]

        won = [number % 2 for number, reply in enumerate(replies) if reply["ok"]]
        lost = [number % 2 for number, reply in enumerate(replies) if not reply["ok"]]
        assert (len(won), len(set(won))) == (4, 1)
        assert set(won).isdisjoint(lost)
        assert {reply["code"] for reply in replies if not reply["ok"]} == {"BAD_REQUEST"}
        total += won[0] + 1
    assert clients[0].call(op="GET", key="n")["value"] == total


@pytest.mark.parametrize("fsync", ["always", "never"])
def test_a_whole_window_in_flight_in_any_order_counts_once(
    tmp_path: Path, connect: Connect, fsync: str
) -> None:
    pick = random.Random(new_seed())
    window = 128
    with ServerProcess(tmp_path / "server", "--workers", "4", "--fsync", fsync) as server:
        client = connect(server.endpoint, zmq.DEALER)
        first: dict[int, Message] = {}

        def send(order: list[int]) -> None:
            for seq in order:
                client.send(pack({"op": "INCR", "key": "n", "session": "s", "seq": seq, "id": seq}))

        def receive(number: int) -> list[Message]:
            return [unpack(client.receive()) for _ in range(number)]

        # Each once, some of them twice: every other order of those arrives.
        order = list(range(1, window + 1)) + pick.choices(range(1, window + 1), k=window)
        pick.shuffle(order)
        send(order)
        for reply in receive(len(order)):
            seq = reply.pop("id")
            assert reply["ok"], reply
            assert told(first.setdefault(seq, reply)) == told(reply)
        values = sorted(reply["value"] for reply in first.values())
        assert values == list(range(1, window + 1))

        server.kill()
        server.start()
        client = connect(server.endpoint, zmq.DEALER)
        pick.shuffle(order)
        send(order)
        for reply in receive(len(order)):
            assert reply["replayed"] is True
            assert told(reply) == told(first[reply["id"]]) | {"id": reply["id"]}

        send([window + 1])
        assert receive(1)[0]["value"] == window + 1
        send([1, 2])
        codes = {reply["id"]: reply.get("code") for reply in receive(2)}
        assert codes == {1: "STALE_SEQ", 2: None}
