"""Spans of OpenTelemetry: which there are, what they tell, and that the server's log names them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import SpanContext, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import Attributes

from tests.client.blocking import AnyClient, Kind
from tests.peer import Peer, reply, swallow
from tests.support import LIMIT, ROOT, ServerInProcess, environment, eventually
from zkv import (
    AsyncClient,
    BadRequestError,
    Client,
    ClosedError,
    ConflictError,
    DeniedError,
    NoReplyError,
    NotFoundError,
    RetryPolicy,
    UnavailableError,
    WrongTypeError,
)
from zkv.protocol.replies import InfoReply
from zkv.requests import commands

HASTY: Final = RetryPolicy(patience=0.05, pause=0.001, longest_pause=0.01)
SECRET: Final = "tariff"
"""Part of all keys and values here: spans hold neither."""


class Switch(Sampler):
    """Records nothing but in the tests below, which share their process with others."""

    on = False

    def should_sample(
        self,
        parent_context: object,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        *_: object,
        **_keywords: object,
    ) -> SamplingResult:
        return SamplingResult(Decision.RECORD_AND_SAMPLE if self.on else Decision.DROP, attributes)

    def get_description(self) -> str:
        return "a switch"


SWITCH: Final = Switch()
EXPORTER: Final = InMemorySpanExporter()


class Spans:
    """The spans that have ended."""

    def all(self) -> Sequence[ReadableSpan]:
        return EXPORTER.get_finished_spans()

    def of(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name == name]

    def only(self) -> ReadableSpan:
        (span,) = self.all()
        return span


@pytest.fixture(scope="module")
def provider() -> TracerProvider:
    """The program's, which it can set only once."""
    provider = TracerProvider(sampler=SWITCH)
    provider.add_span_processor(SimpleSpanProcessor(EXPORTER))
    trace.set_tracer_provider(provider)
    return provider


@pytest.fixture
def spans(provider: TracerProvider) -> Iterator[Spans]:
    EXPORTER.clear()
    SWITCH.on = True
    yield Spans()
    SWITCH.on = False


FEATURES: Final = {"trace": True}
"""Those of the servers in this process, which a test may change."""


@pytest.fixture(autouse=True)
def featured(monkeypatch: pytest.MonkeyPatch) -> None:
    def info_reply(**fields: Any) -> InfoReply:
        return InfoReply(**fields | {"features": tuple(FEATURES)})

    monkeypatch.setattr(commands, "InfoReply", info_reply)


@pytest.fixture
def without_trace(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes the next servers in this process such that do not list the field."""
    return lambda: monkeypatch.delitem(FEATURES, "trace")


def context_of(span: ReadableSpan) -> SpanContext:
    context: SpanContext | None = span.context
    assert context is not None
    return context


def traceparent(span: ReadableSpan) -> str:
    """The span's name, as OpenTelemetry itself would send it."""
    carrier: dict[str, str] = {}
    context = trace.set_span_in_context(trace.NonRecordingSpan(context_of(span)))
    TraceContextTextMapPropagator().inject(carrier, context)
    return carrier["traceparent"]


def logged(server: ServerInProcess, number: int) -> list[tuple[str, str | None]]:
    """Op and trace of the requests that the server has logged: so many, INFO beside them."""

    def found() -> list[tuple[str, str | None]]:
        return [(each.op, each.trace) for each in server.records if each.op != "INFO"]

    eventually(lambda: len(found()) >= number, "the requests are logged")
    return found()


def infos(server: ServerInProcess) -> int:
    return sum(record.op == "INFO" for record in server.records)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def retries(span: ReadableSpan) -> list[Any]:
    assert {event.name for event in span.events} <= {"retry"}
    return [dict(event.attributes or {})["error.type"] for event in span.events]


# --- Which spans there are


def use(kv: AnyClient) -> None:
    """Send requests of many kinds, of which each is one span."""
    key = f"{SECRET}/k"
    kv.put(key, SECRET)
    assert kv.get(key) == SECRET
    assert kv.get(f"{SECRET}/absent") is None
    kv.put_many({f"{SECRET}/{n}": SECRET for n in range(3)})
    kv.get_many([f"{SECRET}/{n}" for n in range(2)])
    kv.get_many([key])
    with kv.pipeline() as pipe:
        pipe.put(f"{SECRET}/a", 1)
        pipe.get(key)
        pipe.incr(f"{SECRET}/n")
    with kv.txn() as txn:
        txn.incr(f"{SECRET}/n")
        txn.incr(f"{SECRET}/n")
    list(kv.scan(SECRET))
    kv.namespace(f"{SECRET}/").delete("k")
    kv.call("PING")


USED: Final = [
    ("PUT", None), ("GET", None), ("GET", None), ("MPUT", 3), ("MGET", 2), ("MGET", None),
    ("TXN", 3), ("TXN", 2), ("SCAN", None), ("DELETE", None), ("PING", None),
]  # fmt: skip


def test_each_request_is_one_span(kv: AnyClient, near: ServerInProcess, spans: Spans) -> None:
    use(kv)
    host, _, port = near.endpoint.removeprefix("tcp://").rpartition(":")
    for span, (op, size) in zip(spans.all(), USED, strict=True):
        expected = {
            "db.system.name": "zkv", "db.operation.name": op,
            "server.address": host, "server.port": int(port),
        }  # fmt: skip
        if size:
            expected["db.operation.batch.size"] = size
        assert attributes(span) == expected
        assert (span.name, span.kind) == (op, SpanKind.CLIENT)
        assert span.status.status_code is StatusCode.UNSET
        assert not retries(span)
        assert span.instrumentation_scope is not None
        assert span.instrumentation_scope.name == "zkv"
    assert SECRET not in " ".join(span.to_json() for span in spans.all())


def test_each_trace_is_in_the_servers_log(
    kv: AnyClient, near: ServerInProcess, spans: Spans
) -> None:
    use(kv)
    expected = [(span.name, traceparent(span)) for span in spans.all()]
    assert all(len(trace) == 55 for _, trace in expected)
    assert logged(near, len(USED)) == expected
    assert infos(near) == 1


def test_a_request_that_is_not_recorded_costs_the_server_nothing(
    kv: AnyClient, near: ServerInProcess, spans: Spans
) -> None:
    SWITCH.on = False
    use(kv)
    assert logged(near, len(USED)) == [(op, None) for op, _ in USED]
    assert (infos(near), spans.all()) == (0, ())


def test_a_trace_of_the_caller_is_left_as_it_is(
    kv: AnyClient, near: ServerInProcess, spans: Spans
) -> None:
    kv.call("PING", trace="mine")
    assert logged(near, 1) == [("PING", "mine")]
    assert spans.only().name == "PING"


def test_the_current_span_is_the_parent(kv: AnyClient, spans: Spans) -> None:
    kv.put("root", 1)
    with trace.get_tracer("program").start_as_current_span("work") as work:
        kv.put("below", 1)
        assert trace.get_current_span() is work
    root, below = spans.of("PUT")
    assert root.parent is None
    assert below.parent == work.get_span_context()
    assert context_of(below).trace_id == work.get_span_context().trace_id


async def test_each_task_has_its_own_parent(near: ServerInProcess, spans: Spans) -> None:
    async def work(kv: AsyncClient, number: int) -> None:
        with trace.get_tracer("program").start_as_current_span(f"work {number}"):
            await asyncio.gather(kv.put(f"{number}", 1), kv.incr(f"n/{number}"))

    async with AsyncClient(near.endpoint, LIMIT) as kv:
        await asyncio.gather(*[work(kv, number) for number in range(20)])
    check_parents(spans, near)
    assert infos(near) == 1, "the tasks share one question"


def test_each_thread_has_its_own_parent(near: ServerInProcess, spans: Spans) -> None:
    def work(number: int) -> None:
        with trace.get_tracer("program").start_as_current_span(f"work {number}"):
            kv.put(f"{number}", 1)
            kv.incr(f"n/{number}")

    with Client(near.endpoint, LIMIT) as kv, ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(20)))
    check_parents(spans, near)
    assert 1 <= infos(near) <= 4, "at most one for each connection"


def check_parents(spans: Spans, server: ServerInProcess) -> None:
    """There are 20 spans of the program, and below each a PUT and an INCR, which are logged."""
    works = [span.context for span in spans.all() if span.name.startswith("work")]
    assert len(works) == 20
    for op in ("PUT", "INCR"):
        assert sorted(map(str, works)) == sorted(str(span.parent) for span in spans.of(op))
    sent = {traceparent(span) for op in ("PUT", "INCR") for span in spans.of(op)}
    assert {trace for _, trace in logged(server, 40)} == sent


# --- What went wrong


@pytest.mark.parametrize(
    ("fails", "error", "code"),
    [
        (lambda kv: kv.get_entry(f"{SECRET}/absent"), NotFoundError, "NOT_FOUND"),
        (lambda kv: kv.put(f"{SECRET}/k", 1, if_rev=77), ConflictError, "CONFLICT"),
        (lambda kv: kv.incr(f"{SECRET}/k"), WrongTypeError, "WRONG_TYPE"),
    ],
)
def test_a_refusal_is_an_error_with_its_code(
    kv: AnyClient,
    spans: Spans,
    fails: Callable[[AnyClient], Any],
    error: type[Exception],
    code: str,
) -> None:
    kv.put(f"{SECRET}/k", SECRET)
    EXPORTER.clear()
    with pytest.raises(error):
        fails(kv)
    span = spans.only()
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["error.type"] == code
    assert attributes(span)["db.response.status_code"] == code
    assert SECRET not in span.to_json()


def test_a_missing_server_is_an_error(kind: Kind, free_endpoint: str, spans: Spans) -> None:
    hasty = RetryPolicy(wait_for_start=False)
    with kind(free_endpoint, retry=hasty) as kv, pytest.raises(UnavailableError):
        kv.put("k", 1)
    span = spans.only()
    assert (span.status.status_code, attributes(span)["error.type"]) == (
        StatusCode.ERROR,
        "UnavailableError",
    )
    assert "refused" in str(span.status.description)
    assert "db.response.status_code" not in attributes(span)


def test_a_closed_client_is_an_error(kind: Kind, near: ServerInProcess, spans: Spans) -> None:
    kv = kind(near.endpoint)
    kv.close()
    with pytest.raises(ClosedError):
        kv.put("k", 1)
    assert attributes(spans.only())["error.type"] == "ClosedError"


def test_a_repeat_is_an_event_and_has_the_same_bytes(kind: Kind, spans: Spans) -> None:
    features = reply(ok=True, features=["trace"])
    busy = reply(ok=False, code="BUSY", message="busy", retry=True, applied=False)
    answers = [features, swallow, busy, reply(ok=True, rev=1)]
    with Peer(*answers) as peer, kind(peer.endpoint, retry=HASTY) as kv:
        assert kv.put("k", 1) == 1
        asked, first, second, third = peer.requests
    assert asked["op"] == "INFO"
    assert first == second == third
    span = spans.only()
    assert first["trace"] == traceparent(span)
    assert retries(span) == ["NoReplyError", "BUSY"]
    assert span.status.status_code is StatusCode.UNSET


def test_the_last_refusal_is_the_error(kind: Kind, spans: Spans) -> None:
    busy = reply(ok=False, code="BUSY", message="busy", retry=True, applied=False)
    denied = reply(ok=False, code="DENIED", message="no", retry=False, applied=False)
    with (
        Peer(reply(ok=True), busy, busy, denied) as peer,
        kind(peer.endpoint, retry=HASTY) as kv,
        pytest.raises(DeniedError),
    ):
        kv.put("k", 1)
    span = spans.only()
    assert attributes(span)["error.type"] == "DENIED"
    assert retries(span) == ["BUSY", "BUSY"]


def test_a_lost_reply_is_an_error(kind: Kind, spans: Spans) -> None:
    once = HASTY._replace(repeat_for=0)
    with (
        Peer(afterwards=swallow) as peer,
        kind(peer.endpoint, retry=once) as kv,
        pytest.raises(NoReplyError),
    ):
        kv.put("k", 1)
    span = spans.only()
    assert attributes(span)["error.type"] == "NoReplyError"
    assert span.status.status_code is StatusCode.ERROR


async def test_a_cancelled_task_ends_its_span(spans: Spans) -> None:
    with Peer(reply(ok=True), swallow) as peer:
        async with AsyncClient(peer.endpoint, LIMIT) as kv:
            task = asyncio.create_task(kv.put("k", 1))
            await asyncio.to_thread(peer.done.wait, LIMIT)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert attributes(spans.only())["error.type"] == "CancelledError"


# --- Which servers are told


def test_a_server_that_does_not_list_it_is_not_told(
    kv: AnyClient, near: ServerInProcess, spans: Spans, without_trace: Callable[[], None]
) -> None:
    without_trace()
    use(kv)
    assert logged(near, len(USED)) == [(op, None) for op, _ in USED]
    assert infos(near) == 1
    assert len(spans.all()) == len(USED)


@pytest.mark.parametrize("facts", [{}, {"features": None}, {"features": "trace"}, {"features": []}])
def test_an_old_server_is_not_told(kind: Kind, spans: Spans, facts: dict[str, Any]) -> None:
    with (
        Peer(reply(ok=True, **facts), afterwards=reply(ok=True, rev=1)) as peer,
        kind(peer.endpoint) as kv,
    ):
        kv.put("k", 1)
        kv.put("k", 2)
        assert [request["op"] for request in peer.requests] == ["INFO", "PUT", "PUT"]
        assert not any("trace" in request for request in peer.requests)
    assert len(spans.of("PUT")) == 2


@pytest.mark.parametrize(
    "answer",
    [
        reply(ok=False, code="DENIED", message="no", retry=False, applied=False),
        reply(ok=False, code="BUSY", message="busy", retry=True, applied=False),
        reply(ok="yes"),
        swallow,
    ],
    ids=["denied", "busy", "nonsense", "lost"],
)
def test_without_an_answer_the_request_goes_on(kind: Kind, spans: Spans, answer: Any) -> None:
    def answered(request: dict[Any, Any]) -> Any:
        return (answer if request["op"] == "INFO" else reply(ok=True, rev=1))(request)

    with Peer(afterwards=answered) as peer, kind(peer.endpoint, 4.0, retry=HASTY) as kv:
        kv.put("k", 1)
        kv.put("k", 2)
        writes = [request for request in peer.requests if request["op"] == "PUT"]
        assert [request["op"] for request in peer.requests[-2:]] == ["PUT", "PUT"], "asked once"
    assert not any("trace" in request for request in writes)
    assert not any(retries(span) for span in spans.of("PUT"))


def test_the_server_that_takes_its_place_is_asked(
    kind: Kind, tmp_path: Path, free_endpoint: str, spans: Spans, without_trace: Callable[[], None]
) -> None:
    place = {"endpoints": [free_endpoint]}
    with kind(free_endpoint) as kv:
        with ServerInProcess(tmp_path / "data", server=place) as new:
            kv.put("k", 1)
            assert logged(new, 1) == [("PUT", traceparent(spans.only()))]
        without_trace()
        with ServerInProcess(tmp_path / "data", server=place) as old:
            kv.get("k")
            kv.put("k", 2)
            assert logged(old, 2)[-1] == ("PUT", None)
            assert infos(old) == 1


def test_another_endpoint_is_asked(
    kind: Kind, tmp_path: Path, spans: Spans, without_trace: Callable[[], None]
) -> None:
    with ServerInProcess(tmp_path / "a") as first, ServerInProcess(tmp_path / "b") as second:
        with kind([first.endpoint, second.endpoint]) as kv:
            kv.put("k", 1)
            assert logged(first, 1) == [("PUT", traceparent(spans.only()))]
            first.stop()
            kv.put("k", 2)
            kv.put("k", 3)
            assert infos(second) in {1, 2}, "asked what it is, and once what it takes"
        at_first, late, later = spans.of("PUT")
        assert logged(second, 2)[-1] == ("PUT", traceparent(later))
        ports = [int(each.endpoint.rpartition(":")[2]) for each in (first, second, second)]
        assert [attributes(span)["server.port"] for span in (at_first, late, later)] == ports


def test_a_server_that_refuses_it_gets_the_request_without(kind: Kind, spans: Spans) -> None:
    """An older one has taken the place of the one that was asked, while the client was idle."""

    def answered(request: dict[Any, Any]) -> Any:
        if request["op"] == "INFO":
            return reply(ok=True, features=["trace"])(request)
        if "trace" in request:
            text = "PUT: unknown field `trace`; PUT takes key, value"
            return reply(ok=False, code="BAD_REQUEST", message=text, retry=False, applied=False)(
                request
            )
        return reply(ok=True, rev=1)(request)

    with Peer(afterwards=answered) as peer, kind(peer.endpoint) as kv:
        assert kv.put("k", 1) == 1
    asked, refused, accepted = peer.requests
    assert asked["op"] == "INFO"
    assert refused == {**accepted, "trace": traceparent(spans.only())}
    assert retries(spans.only()) == ["BAD_REQUEST"]
    assert spans.only().status.status_code is StatusCode.UNSET


def test_another_unknown_field_is_refused(
    kv: AnyClient, near: ServerInProcess, spans: Spans
) -> None:
    with pytest.raises(BadRequestError, match="`nonsense`"):
        kv.call("PING", nonsense=1)
    kv.call("PING")
    refused, accepted = spans.of("PING")
    assert attributes(refused)["error.type"] == "BAD_REQUEST"
    assert logged(near, 2)[-1] == ("PING", traceparent(accepted))


# --- Programs without OpenTelemetry, and forks


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), cwd=ROOT,
        capture_output=True, text=True, timeout=2 * LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


USE_BOTH: Final = """
import asyncio, signal, sys
import zkv

async def use(endpoint):
    async with zkv.AsyncClient(endpoint) as kv:
        await kv.put("k", 2)
        return await kv.get("k")

def use_both():
    with zkv.Server("tcp://127.0.0.1:*") as server, zkv.Client(server.endpoint) as kv:
        kv.put("k", 1)
        value, other = kv["k"], asyncio.run(use(server.endpoint))
        print(value, other, sorted(kv.info()["stats"]["requests"].items()))
"""

USED_BOTH: Final = "1 2 [('GET', 2), ('PUT', 2)]\n"
"""So nobody has sent an INFO."""


def test_nothing_is_imported_where_the_program_does_not() -> None:
    code = "use_both(); print([each for each in sys.modules if each.startswith('opentelemetry')])"
    assert run(f"{USE_BOTH}\n{code}") == f"{USED_BOTH}[]\n"


def test_it_need_not_be_installed() -> None:
    block = """
class Blocked:
    def find_spec(self, name, *_):
        if name.startswith("opentelemetry"):
            raise ImportError(name)

sys.meta_path.insert(0, Blocked())
sys.modules["opentelemetry.trace"] = None
"""
    assert run(f"{USE_BOTH}\n{block}\nuse_both()") == USED_BOTH


def test_the_api_without_an_sdk_changes_nothing() -> None:
    assert run(f"{USE_BOTH}\nfrom opentelemetry import trace\nuse_both()") == USED_BOTH


def test_a_client_older_than_the_provider_makes_spans() -> None:
    code = """
with zkv.Server("tcp://127.0.0.1:*") as server, zkv.Client(server.endpoint) as kv:
    kv.put("k", 1)
    from opentelemetry import trace
    kv.put("k", 2)
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    kv.get("k")
    print([span.name for span in exporter.get_finished_spans()])
"""
    assert run(f"{USE_BOTH}{code}") == "['GET']\n"


def test_a_child_by_fork_has_spans_of_its_own() -> None:
    code = """
import os
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)

class Thing: pass

child = None
def fork(thing):
    global child
    child = os.fork()
    return b""

codec = zkv.Codec(zkv.ValueType(1, Thing, fork, lambda _: None))
with zkv.Server("tcp://127.0.0.1:*") as server:
    kv = zkv.Client(server.endpoint, codec=codec)
    with trace.get_tracer("program").start_as_current_span("work") as work:
        try:
            kv.put("k", Thing())
        except zkv.ClosedError:
            assert child == 0
        if child == 0:
            signal.alarm(15)
            kv.get("n")
        else:
            os.waitpid(child, 0)
        same = all(span.parent == work.get_span_context() for span in exporter.get_finished_spans())
        names = [span.name for span in exporter.get_finished_spans()]
        print("child" if child == 0 else "parent", names, same, flush=True)
    os._exit(0)
"""
    assert run(f"{USE_BOTH}{code}") == "child ['GET'] True\nparent ['PUT'] True\n"
