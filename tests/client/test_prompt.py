"""At the prompt of Python, as somebody new uses it: names, help, messages, the environment."""

from __future__ import annotations

import os
import pty
import pydoc
import rlcompleter
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
import zmq

import zkv
from tests.client.blocking import AnyClient, Kind
from tests.support import LIMIT, ServerInProcess, environment
from zkv import Client, ClosedError, ConflictError
from zkv.client.endpoints import ENVIRONMENT

ANSWER = [
    ("import zkv", ""),
    ("kv = zkv.Client()", ""),
    ("kv", "<Client tcp://127.0.0.1:"),
    ("kv['a'] = 1", ""),
    ("kv.put(5, 1)", "TypeError: key: a str; not int: 5"),
    ("kv.put('a', 1, create=True)", "'a' already exists, at revision 1"),
    ("kv.get('a', timeout='5')", "TypeError"),
    ("zkv.Client(timeout='5')", "TypeError: timeout: a number of seconds or a timedelta; not str"),
    ("dict(kv)", "{'a': 1}"),
    ("kv.lock('x'), kv.queue('q')", "(<Lock 'x'>, <Queue 'q/'>)"),
    ("kv.close()", ""),
    ("kv['a']", "ClosedError: the client is closed, for instance by the end of its with block"),
]


def test_a_session_of_somebody_new(near: ServerInProcess) -> None:
    process, terminal = pty.fork()
    if process == 0:  # pragma: no cover
        variables = environment() | {"ZKV_ENDPOINT": near.endpoint, "TERM": "dumb"}
        variables["PYTHON_BASIC_REPL"] = "1"
        os.execve(sys.executable, [sys.executable, "-q", "-i"], variables)
    try:
        until_prompt(terminal)
        for typed, shown in ANSWER:
            os.write(terminal, f"{typed}\n".encode())
            printed = until_prompt(terminal)
            assert shown in printed
            assert "object at 0x" not in printed
    finally:
        os.close(terminal)
        os.waitpid(process, 0)


def until_prompt(terminal: int) -> str:
    """What is printed up to the next prompt."""
    printed = b""
    end = time.monotonic() + LIMIT
    while not printed.endswith(b">>> "):
        assert select.select([terminal], [], [], max(0, end - time.monotonic()))[0], printed
        printed += os.read(terminal, 4096)
    return printed.decode()


def test_completion_shows_public_names_alone() -> None:
    assert dir(zkv) == zkv.__all__
    offered = rlcompleter.Completer({"zkv": zkv})
    names = {str(offered.complete("zkv.", number)).split("(")[0] for number in range(200)}
    assert names - {"None"} == {f"zkv.{name}" for name in zkv.__all__ if name != "__version__"}


@pytest.mark.parametrize("name", [name for name in zkv.__all__ if name[0] != "_"])
def test_help_and_signatures_show_no_addresses(name: str) -> None:
    text = pydoc.render_doc(getattr(zkv, name), renderer=pydoc.plaintext)  # type: ignore[attr-defined]

    assert " at 0x" not in text


def test_help_of_the_package_begins_with_an_example() -> None:
    assert "kv = zkv.Client()" in str(zkv.__doc__)
    text = pydoc.render_doc(zkv, renderer=pydoc.plaintext)  # type: ignore[attr-defined]
    assert "_HOMES" not in text
    assert "TYPE_CHECKING" not in text


def test_all_that_a_client_makes_has_a_repr(kv: AnyClient) -> None:
    kv.queue("q").put("work")
    kv = getattr(kv, "_target", kv)
    for made in (
        kv, kv.namespace("n/"), kv.txn(), kv.pipeline(), kv.watch(), kv.mirror(), kv.lock("l"),
        kv.election("e"), kv.queue("q"), kv.rate_limiter("r", limit=1, period=1), kv.cache(),
        zkv.Codec(), zkv.Codec(zkv.ValueType(1, set, bytes, set)), zkv.RetryPolicy(patience=2),
        zkv.Server(),
    ):  # fmt: skip
        assert " object at 0x" not in repr(made), type(made)


def test_a_job_and_a_cached_function_have_a_repr(near: ServerInProcess) -> None:
    with Client(near.endpoint) as kv:
        queue = kv.queue("q")
        queue.put("work")
        job = queue.take()
        assert repr(job) == "<Job 'jobs/00000000000000000001' 'work'>"
        assert "double" in repr(kv.cache(prefix="double/")(lambda x: 2 * x))
        assert job is not None
        job.release()


# --- Where the server is


@pytest.fixture
def two(near: ServerInProcess, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ZKV_ENDPOINT", f"tcp://127.0.0.1:1 , {near.endpoint}")
    return near.endpoint


def test_clients_look_where_the_environment_says(kind: Kind, two: str) -> None:
    with kind(ENVIRONMENT) as kv:
        kv.put("k", 1)
        assert kv.endpoint == two


def test_the_environment_is_checked(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZKV_ENDPOINT", "tcp://127.0.0.1:1,here")
    with pytest.raises(ValueError, match="ZKV_ENDPOINT: endpoint 'here'"):
        kind(ENVIRONMENT)
    with kind("tcp://127.0.0.1:2") as kv:
        assert kv.endpoint == "tcp://127.0.0.1:2"


@pytest.mark.parametrize("value", ["", None])
def test_without_it_they_look_at_the_default(
    kind: Kind, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ZKV_ENDPOINT", raising=False)
    if value is not None:
        monkeypatch.setenv("ZKV_ENDPOINT", value)
    with kind(ENVIRONMENT) as kv:
        assert kv.endpoint == "tcp://127.0.0.1:5555"


# --- What is told


def test_a_closed_client_says_so(kind: Kind, near: ServerInProcess) -> None:
    with kind(near.endpoint) as kv:
        kv.put("k", 1)
    with pytest.raises(ClosedError, match="with block"):
        kv.get("k")


def test_conflicts_are_told_in_the_words_of_the_call(kv: AnyClient) -> None:
    kv.put("there", 1)
    namespace = kv.namespace("n/")
    calls: list[Callable[[], object]] = [
        lambda: kv.put("there", 1, create=True),
        lambda: kv.put("there", 1, if_rev=0),
        lambda: run(kv.txn(), "there", "commit"),
        lambda: run(kv.pipeline(), "there", "execute"),
    ]
    for call in calls:
        with pytest.raises(ConflictError, match="'there' already exists, at revision 1; exp"):
            call()
    with pytest.raises(ConflictError, match="'n/nobody' is absent; expected: revision 7"):
        namespace.put("nobody", 1, if_rev=7)
    with pytest.raises(ConflictError, match="'there' has revision 1, not 7"):
        kv.put("there", 1, if_rev=7)


def run(batch: Any, key: str, name: str) -> None:
    batch.put(key, 1, create=True)
    getattr(batch, name)()


class OldServer:
    """Answers as a server of another version does. Use as a context manager."""

    def __init__(self, version: str, refusal: dict[str, Any]) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self.port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self._facts = {"ok": True, "version": version, "protocol": 1, "rev": 0}
        self._refusal = {"ok": False, "retry": False, "applied": False, **refusal}
        self._over = False
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> str:
        self._thread.start()
        return f"tcp://127.0.0.1:{self.port}"

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._thread.join()
        self._context.destroy()

    def _serve(self) -> None:
        while not self._over:
            if self._socket.poll(10):
                *envelope, body = self._socket.recv_multipart()
                request = msgpack.unpackb(body)
                reply = self._facts if request["op"] == "INFO" else self._refusal
                reply = {**reply, "id": request["id"]}
                self._socket.send_multipart([*envelope, msgpack.packb(reply)])


REFUSALS = [
    {"code": "UNKNOWN_OP", "message": "no such op: 'TOUCH'"},
    {"code": "BAD_REQUEST", "message": "TOUCH: unknown field `ttl`; TOUCH takes `key`"},
]


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize(("version", "is_old"), [("0.0.9", True), (zkv.__version__, False)])
def test_an_old_server_is_named(
    kind: Kind, version: str, is_old: bool, refusal: dict[str, Any]
) -> None:
    with OldServer(version, refusal) as endpoint, kind(endpoint) as kv:
        calls: list[Callable[[], object]] = [
            lambda: kv.touch("k", 1),
            lambda: kv.namespace("n").touch("k", 1),
            lambda: kv.call("TOUCH", key="k", ttl=1),
        ]
        for call in calls:
            with pytest.raises(zkv.RefusedError, match=refusal["code"]) as caught:
                call()
            assert ("older than this client: zkv 0.0.9" in str(caught.value)) is is_old


def test_a_server_without_a_feed_in_its_info_is_no_key_error(kind: Kind) -> None:
    with (
        OldServer("0.0.1", REFUSALS[0]) as endpoint,
        kind(endpoint) as kv,
        pytest.raises(zkv.BadReplyError, match="INFO"),
    ):
        kv.watch().next(0)
