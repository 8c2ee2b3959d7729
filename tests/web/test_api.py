"""The HTTP API of `zkv web`: over a real socket, before a real server."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import msgpack
import pytest

from tests.support import FREE_PORT, LIMIT, ServerInProcess, pack
from tests.web.consoles import JSON, MSGPACK, ConsoleInProcess
from zkv.bounds import after_prefix
from zkv.client import Client
from zkv.client.codec import PACKED, Packed
from zkv.entries.text import to_json
from zkv.reading import decode
from zkv.web import answers
from zkv.web.recent import MOST_UNSEEN, Recents
from zkv.web.transfer import AT_ONCE, exported

numbers = itertools.count()

VALUES: Final[list[Any]] = [
    None, True, 0, 2**64 - 1, -(2**63), 1.5, "text", b"\x00\xff", [], {}, {"$bin": "AP8="},
    {1: 2, "1": 3}, msgpack.ExtType(5, b"x"), msgpack.Timestamp(1, 2), float("inf"),
]  # fmt: skip
WIDE = b"\x92\xd3\x00\x00\x00\x00\x00\x00\x00\x01\xca\x3f\x80\x00\x00"
"""An array of a 64-bit 1 and a 32-bit 1.0: JSON would not keep these bytes."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerInProcess]:
    settings = {"endpoints": [FREE_PORT], "feed": FREE_PORT}
    with ServerInProcess(tmp_path_factory.mktemp("web"), server=settings) as server:
        yield server


@pytest.fixture(scope="module")
def console(server: ServerInProcess) -> Iterator[ConsoleInProcess]:
    with ConsoleInProcess(server.endpoint) as console:
        yield console


@pytest.fixture
def key() -> str:
    """A key that no other test has."""
    return f"k{next(numbers)}"


# --- One key


def test_put_get_delete(console: ConsoleInProcess, key: str) -> None:
    written = console.put(key, '{"a": [1, 2.0, null]}')
    assert (written.status, written.json["durable"]) == (200, True)
    found = console.ask("GET", "/api/entry", {"key": key})
    assert found.headers["Content-Type"] == JSON
    assert found.body.decode().strip() == (
        f'{{"key": "{key}", "value": {{"a": [1, 2.0, null]}}, "type": "map", '
        f'"rev": {written.json["rev"]}}}'
    )
    assert console.ask("DELETE", "/api/entry", {"key": key}).status == 200
    gone = console.ask("GET", "/api/entry", {"key": key})
    assert (gone.status, gone.json["code"], gone.json["applied"]) == (404, "NOT_FOUND", False)


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_each_value_comes_back_in_both_formats(
    console: ConsoleInProcess, key: str, value: object
) -> None:
    packed = pack(value)
    query = {"key": key, "raw": ""}
    assert (
        console.ask("PUT", "/api/entry", {"key": key}, packed, Content_Type=MSGPACK).status == 200
    )
    raw = console.ask("GET", "/api/entry", query, Accept=MSGPACK)
    assert (raw.headers["Content-Type"], raw.body) == (MSGPACK, packed)
    text = console.ask("GET", "/api/entry", query).body
    assert console.put(key, text.decode()).status == 200
    assert console.ask("GET", "/api/entry", query, Accept=MSGPACK).body == packed


def test_msgpack_keeps_every_byte(console: ConsoleInProcess, key: str) -> None:
    console.ask("PUT", "/api/entry", {"key": key}, WIDE, Content_Type=MSGPACK)
    found = console.ask("GET", "/api/entry", {"key": key}, Accept=MSGPACK)
    assert WIDE in found.body
    assert found.msgpack == {
        "key": key,
        "value": [1, 1.0],
        "type": "array",
        "rev": found.msgpack["rev"],
    }


@pytest.mark.parametrize(
    "key",
    [
        "a/../b",
        "..",
        "a//b",
        "ä/%2F?#&=+ ",
        "\U0001f600\u202e",
        "<img src=x onerror=alert(1)>",
        "a\0b",
    ],
)
def test_any_key(console: ConsoleInProcess, key: str) -> None:
    assert console.put(key, "1").status == 200
    assert console.ask("GET", "/api/entry", {"key": key}).json["key"] == key


def test_ttl_and_conditions(console: ConsoleInProcess, key: str) -> None:
    rev = console.put(key, "1", ttl=60).json["rev"]
    found = console.ask("GET", "/api/entry", {"key": key, "raw": ""})
    assert 0 < float(found.headers["Zkv-Ttl"]) <= 60
    assert (found.headers["Zkv-Rev"], found.headers["Zkv-Type"]) == (str(rev), "int")
    conflict = console.put(key, "2", if_rev=0)
    assert (conflict.status, conflict.json["code"], conflict.json["rev"]) == (409, "CONFLICT", rev)
    assert console.put(key, "2", if_rev=rev).status == 200
    assert console.ask("DELETE", "/api/entry", {"key": key, "if_rev": rev}).status == 409


def test_a_deadline_that_has_passed(console: ConsoleInProcess, key: str) -> None:
    late = console.put(key, "1", deadline=1)
    assert (late.status, late.json["code"]) == (504, "DEADLINE")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "word"),
    [
        ("GET", "/api/entry", None, 400, "key"),
        ("GET", "/api/entry?key=%ff", None, 400, "UTF-8"),
        ("GET", "/api/entry?key=a&key=b", None, 400, "twice"),
        ("GET", "/api/entry?key=a&kye=b", None, 400, "kye"),
        ("GET", "/api/entry?key=" + "k" * 1025, None, 413, "1024"),
        ("GET", "/api/scan?limit=201", None, 400, "200"),
        ("GET", "/api/scan?values=maybe", None, 400, "values"),
        ("PUT", "/api/entry?key=a&ttl=-1", "1", 400, "ttl"),
        ("PUT", "/api/entry?key=a&ttl=nan", "1", 400, "ttl"),
        ("PUT", "/api/entry?key=a&if_rev=x", "1", 400, "if_rev"),
        ("PUT", "/api/entry?key=a", "{", 400, "JSON"),
        ("PUT", "/api/entry?key=a", "NaN", 400, "NaN"),
        ("PUT", "/api/entry?key=a", '{"$bin": 1}', 400, "base64"),
        ("POST", "/api/txn", '{"opps": []}', 400, "opps"),
        ("POST", "/api/txn", "[1]", 400, "map"),
        ("POST", "/api/txn", '{"ops": 1}', 400, "ops"),
        ("POST", "/api/txn", '{"ops": [{"op": "END"}]}', 400, "END"),
        ("POST", "/api/entry", None, 405, "POST"),
        ("GET", "/api/nothing", None, 404, "path"),
    ],
)
def test_bad_requests_name_what_is_wrong(
    console: ConsoleInProcess, method: str, path: str, body: str | None, status: int, word: str
) -> None:
    answer = console.ask(method, path, body=body, Content_Type=JSON)
    assert answer.status == status
    assert word in answer.json["message"]
    assert answer.json["applied"] is False


def test_bad_msgpack_and_other_types(console: ConsoleInProcess, key: str) -> None:
    for body, kind in ((b"\x01\x02", MSGPACK), (b"\xc1", MSGPACK), (b"1", "text/plain")):
        answer = console.ask("PUT", "/api/entry", {"key": key}, body, Content_Type=kind)
        assert (answer.status, answer.json["code"]) == (400, "BAD_REQUEST")
        assert re.match("the body is not one whole|Content-Type", answer.json["message"])


def test_values_that_are_nested_too_deeply(console: ConsoleInProcess, key: str) -> None:
    deep = 100_000
    for body, kind in (
        (b"\x91" * deep + b"\xc0", MSGPACK),
        (b"[" * deep + b"]" * deep, JSON),
        (b"\x81\xa3ops\x91\x81\xa5value" + b"\x91" * deep + b"\xc0", MSGPACK),
    ):
        for method, path in (("PUT", "/api/entry"), ("POST", "/api/txn")):
            query = {"key": key} if method == "PUT" else {}
            answer = console.ask(method, path, query, body, Content_Type=kind)
            assert (answer.status, answer.json["code"]) == (400, "BAD_REQUEST")


def test_failures_in_msgpack(console: ConsoleInProcess, key: str) -> None:
    answer = console.ask("GET", "/api/entry", {"key": key}, Accept=MSGPACK)
    assert (answer.status, answer.msgpack["code"]) == (404, "NOT_FOUND")


# --- Many


def test_scan_page_by_page(console: ConsoleInProcess, key: str) -> None:
    for n in range(5):
        console.put(f"{key}/{n}", str(n))
    query = {"prefix": f"{key}/", "limit": 2}
    first = console.ask("GET", "/api/scan", query).json
    assert [(item["key"], item["value"]) for item in first["items"]] == [
        (f"{key}/0", 0),
        (f"{key}/1", 1),
    ]
    second = console.ask("GET", "/api/scan", {**query, "after": first["next"], "values": "false"})
    assert [sorted(item) for item in second.json["items"]] == [["key", "rev"]] * 2
    last = console.ask("GET", "/api/scan", {**query, "reverse": "true"}, Accept=MSGPACK)
    assert [item["key"] for item in last.msgpack["items"]] == [f"{key}/4", f"{key}/3"]


def test_txn(console: ConsoleInProcess, key: str) -> None:
    put = {"op": "PUT", "key": key, "value": {"$bin": "AP8="}}
    body = json.dumps({"ops": [put, {"op": "GET", "key": key}]})
    done = console.ask("POST", "/api/txn", body=body, Content_Type=JSON)
    assert done.json["results"][1]["value"] == {"$bin": "AP8="}
    failed = {"if": [[key, 0]], "ops": [{"op": "DELETE", "key": key}]}
    answer = console.ask("POST", "/api/txn", body=pack(failed), Content_Type=MSGPACK)
    assert (answer.status, answer.json["index"], answer.json["field"]) == (409, 0, "if")
    many = pack({"ops": [{"op": "INCR", "key": key}] * 201})
    assert console.ask("POST", "/api/txn", body=many, Content_Type=MSGPACK).status == 413


def test_a_body_of_many_parts_is_refused_before_they_are_read(console: ConsoleInProcess) -> None:
    for body, status, why in (
        (b"\x81\xa3ops\xdd\x00\x10\x00\x00" + b"\x80" * 2**20, 413, "1048576; the maximum is 200"),
        (b"\x81\xa3ops\x91\xde\x00\x15" + b"\xa0\xc0" * 21, 413, "over 20 fields"),
        (b"\xde\x00\x05" + b"\xa3ops\x90" * 5, 400, "5 fields"),
    ):
        refused = console.ask("POST", "/api/txn", body=body, Content_Type=MSGPACK)
        assert (refused.status, why in refused.json["message"]) == (status, True), refused.json


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_others_are_answered_beside_a_large_value(
    console: ConsoleInProcess, key: str, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    text = '"' + "x" * 100_000 + '"'
    console.put(key, text)
    begun, answered = threading.Event(), threading.Event()

    def slowly(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def converted(given: Any) -> Any:
            if isinstance(given, bytes) and len(given) > 50_000:
                begun.set()
                assert answered.wait(LIMIT)
            return convert(given)

        return converted

    monkeypatch.setattr("zkv.web.answers.decode", slowly(decode))
    monkeypatch.setattr("zkv.web.api.to_json", slowly(to_json))
    with ThreadPoolExecutor(1) as others:
        query = {"key": key, "raw": ""} if method == "GET" else {"key": key}
        large = others.submit(console.ask, method, "/api/entry", query, text, Content_Type=JSON)
        assert begun.wait(LIMIT)
        assert console.put(f"{key}/small", "1").status == 200
        answered.set()
        assert large.result().status == 200


def test_a_user_sends_only_so_much_at_a_time(
    console: ConsoleInProcess, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "MOST_BODY_BYTES", 100)
    for _ in range(2):  # What has been refused does not count any more.
        busy = console.put(key, '"' + "x" * 100 + '"')
        assert (busy.status, busy.json["code"], busy.json["retry"]) == (503, "BUSY", True)
        assert console.put(key, '"' + "x" * 90 + '"').status == 200


def test_events_are_resumed_where_they_were_cut_off(console: ConsoleInProcess, key: str) -> None:
    query = {"prefix": key}
    with console.open("GET", "/api/events", query, Accept="text/event-stream") as stream:
        events = console.events(stream)
        assert stream.getheader("Content-Type") == "text/event-stream; charset=utf-8"
        assert next(events)[0] == "BEGIN"
        first = console.put(key, '{"n": 1}').json["rev"]
        assert next(events) == ("PUT", {"rev": first, "op": "PUT", "key": key, "value": {"n": 1}})
    missed = console.ask("DELETE", "/api/entry", {"key": key}).json["rev"]
    with console.open("GET", "/api/events", query, Last_Event_ID=console.last_id) as stream:
        events = console.events(stream)
        next(events)
        assert next(events) == ("DELETE", {"rev": missed, "op": "DELETE", "key": key})


# --- What only the page uses


def test_the_tree_skips_what_is_in_folders(
    console: ConsoleInProcess, server: ServerInProcess, key: str
) -> None:
    with Client(server.endpoint) as kv:
        kv.put_many({f"{key}/{d:02}/{n}": n for d in range(30) for n in range(100)})
        kv.put_many({f"{key}/a": 1, f"{key}/z": 1, f"{key}/\U0001f600": 1, f"{key}/\uffff/x": 1})
    server.records.clear()
    found = console.ask("GET", "/page/tree", {"prefix": f"{key}/"}).json
    assert [each["name"] for each in found["folders"]] == [
        *(f"{key}/{d:02}/" for d in range(30)), f"{key}/\uffff/",
    ]  # fmt: skip
    assert [each["count"] for each in found["folders"]] == [100] * 30 + [1]
    assert [each["name"] for each in found["keys"]] == [f"{key}/a", f"{key}/z", f"{key}/\U0001f600"]
    assert found["next"] is None
    scans = [record for record in server.records if record.op == "SCAN"]
    assert len(scans) <= 34
    assert sum(record.bytes_out for record in scans) < 15_000  # All keys take four times as many.
    # Page by page, with any limit, each item is there once.
    seen, start = [], None
    while True:
        query = {"prefix": f"{key}/", "limit": 3} | ({} if start is None else {"start": start})
        page = console.ask("GET", "/page/tree", query).json
        seen += [each["name"] for each in [*page["folders"], *page["keys"]]]
        start = page["next"]
        if start is None:
            break
    assert sorted(seen) == sorted(each["name"] for each in [*found["folders"], *found["keys"]])


def test_what_comes_behind_a_prefix() -> None:
    assert after_prefix("a/") == "a0"
    assert after_prefix("a\ud7ff") == "a\ue000"
    assert after_prefix("a\U0010ffff") == "b"
    assert after_prefix("\U0010ffff") is None


def test_export_and_import_keep_every_byte(
    console: ConsoleInProcess, server: ServerInProcess, key: str
) -> None:
    with Client(server.endpoint, codec=PACKED) as kv:
        kv.put(f"{key}/wide", Packed(WIDE))
        kv.put(f"{key}/short", Packed(b"\x01"), ttl=1000)
        kv.put_many({f"{key}/n/{n:03}": Packed(pack(n)) for n in range(450)})
        query = {"prefix": f"{key}/", "format": "msgpack"}
        file = console.ask("GET", "/page/export", query).body
        text = console.ask("GET", "/page/export", {**query, "format": "json"}).body
        assert text.count(b"\n") == 452
        told = console.ask(
            "POST", "/page/delete-subtree", {"prefix": f"{key}/", "typed": f"{key}/"}
        )
        assert told.body.splitlines()[-1] == b'{"deleted": 452, "done": true}'
        assert kv.count(f"{key}/") == 0
        told = console.ask("POST", "/page/import", query, file)
        assert told.body.splitlines()[-1] == b'{"stored": 452, "done": true}'
        assert kv.get(f"{key}/wide") == WIDE
        assert 900 < (kv.get_entry(f"{key}/short").ttl or 0) <= 1000
        told = console.ask("POST", "/page/import", {**query, "prefix": "other/"}, file)
        assert b"does not begin with" in told.body
        text = text.splitlines()[0] + b"\n{"
        broken = console.ask("POST", "/page/import", {"format": "json"}, text)
        assert b"record 2: " in broken.body


def test_an_export_holds_few_values_at_a_time() -> None:
    now = most = 0

    async def ask(op: str, **_fields: Any) -> dict[str, Any]:
        nonlocal now, most
        if op == "SCAN":
            return {"items": [[f"{n:03}", None, 1] for n in range(200)], "next": None}
        if op == "GET":
            now, most = now + 1, max(most, now + 1)
            await asyncio.sleep(0)
            now -= 1
        return {"time": 0, "value": Packed(b"\x01"), "rev": 1}

    async def export() -> bytes:
        return b"".join([part async for part in exported(ask, "", False)])

    assert asyncio.run(export()).count(b"\n") == 200
    assert most == AT_ONCE


def test_an_export_of_nothing(console: ConsoleInProcess, key: str) -> None:
    empty = console.ask("GET", "/page/export", {"prefix": f"{key}/"})
    assert (empty.status, empty.body) == (200, b"")


def test_few_prefixes_are_followed_while_nobody_looks() -> None:
    async def ask(_op: str, **_fields: Any) -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    async def follow() -> int:
        recents = Recents(ask, lambda _rev: None)
        recents.get("seen").join(asyncio.Queue())
        for n in range(30):
            recents.get(str(n))
            await asyncio.sleep(0)
        followed = len(asyncio.all_tasks()) - 1
        await recents.aclose()
        return followed

    assert asyncio.run(follow()) == MOST_UNSEEN + 1


def test_a_subtree_goes_only_with_its_prefix_typed(console: ConsoleInProcess, key: str) -> None:
    console.put(f"{key}/a", "1")
    for query in ({"prefix": f"{key}/", "typed": key}, {"prefix": "", "typed": ""}):
        assert console.ask("POST", "/page/delete-subtree", query).status == 400
    assert console.ask("GET", "/api/entry", {"key": f"{key}/a"}).status == 200


def test_rename_keeps_value_and_time_to_live(console: ConsoleInProcess, key: str) -> None:
    console.ask("PUT", "/api/entry", {"key": key, "ttl": 60}, WIDE, Content_Type=MSGPACK)
    console.put(f"{key}-there", "1")
    taken = console.ask("POST", "/page/rename", {"key": key, "to": f"{key}-there"})
    assert (taken.status, taken.json["index"]) == (409, 1)
    stale = console.ask("POST", "/page/rename", {"key": key, "to": f"{key}-new", "if_rev": 0})
    assert stale.status == 409
    assert console.ask("POST", "/page/rename", {"key": key, "to": f"{key}-new"}).status == 200
    found = console.ask("GET", "/api/entry", {"key": f"{key}-new", "raw": ""}, Accept=MSGPACK)
    assert found.body == WIDE
    assert 0 < float(found.headers["Zkv-Ttl"]) <= 60


def test_live_shows_figures_and_changes(console: ConsoleInProcess, key: str) -> None:
    with console.open("GET", "/page/live", {"prefix": key}) as stream:
        events = console.events(stream)
        name, start = next(events)
        assert (name, start["columns"][0], start["read_only"]) == ("start", "time", False)
        console.put(key, '"<img src=x onerror=alert(1)>"')
        told: dict[str, object] = {}
        while not {"sample", "change"} <= told.keys():
            name, fields = next(events)
            if name == "sample":
                assert len(fields["row"]) == len(start["columns"])
                told["sample"] = fields["newest"]["groups"]["store"]
            for change in fields.get("changes", ()):
                told["change"] = change["preview"]
    assert told["change"] == '"<img src=x onerror=alert(1)>"'


def test_what_grew_and_where_most_is_written(console: ConsoleInProcess, key: str) -> None:
    for n in range(5):
        console.put(f"{key}/a/grows", '"' + "x" * 100 * (n + 1) + '"')
        console.put(f"{key}/b", "1")
    found = console.ask("GET", "/page/activity", {"prefix": f"{key}/"}).json
    assert found["folders"] == [[f"{key}/a/", 5], [f"{key}/b", 5]]
    assert found["grown"] == [[f"{key}/a/grows", 401, 503]]


def test_slow_requests(tmp_path: Path) -> None:
    with (
        ServerInProcess(tmp_path / "data", metrics={"slow": 1e-9}) as server,
        ConsoleInProcess(server.endpoint) as console,
    ):
        console.put("a", "1")
        entries = console.ask("GET", "/page/slow").json["entries"]
        assert ("PUT", "a") in [(entry["op"], entry.get("key")) for entry in entries]


# --- Failures of the server


def test_codes_of_the_server_as_statuses(tmp_path: Path) -> None:
    limits = {"max_memory": 1_048_576}
    with (
        ServerInProcess(tmp_path / "data", limits=limits) as server,
        ConsoleInProcess(server.endpoint, timeout=3.0) as console,
    ):
        full = console.put("a", '"' + "x" * 2_000_000 + '"')
        assert (full.status, full.json["code"], full.json["retry"]) == (507, "FULL", True)
        assert server.stop()
        begun = time.monotonic()
        away = console.ask("GET", "/api/entry", {"key": "a"})
        assert (away.status, away.json["code"]) == (503, "UNAVAILABLE"), time.monotonic() - begun
        assert console.ask("GET", "/healthz", token=None).status == 200


def test_no_server_at_all() -> None:
    with ConsoleInProcess("tcp://127.0.0.1:9") as console:
        away = console.put("a", "1")
        assert (away.status, away.json["applied"]) == (503, False)
        assert "refused" in away.json["message"]
