"""Write the data directories of this version: ``python -m tests.durability.versions.make 0.1``.

Each later version opens them in tests (`tests/durability/test_versions.py`), so they are written
once, before the format changes, and never again. Names of cases after the version write only those.
A case is a directory:

- ``data/``: what a server of that version has left;
- ``expected.json``: what the same version read from it.

A server process writes each case. It is killed, or it stops in order, as the case says.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import zmq
from msgpack import packb

from tests.conformance import vectors
from tests.conformance.notation import encode
from tests.forking import run_zkv
from tests.support import ROOT, Raw, ServerProcess, eventually, raw_fields, unpack

HERE: Final = Path(__file__).resolve().parent
LARGEST: Final = 2_000
"""Bytes of the largest value: the cases stay small."""
YEAR: Final = 31_536_000.0
DUE_SECONDS: Final = 2.0
SMALL_SEGMENTS: Final = f"[durability]\nsegment_bytes = 1024\n[limits]\nsession_ttl = {YEAR}\n"
KEPT_SESSIONS: Final = f"[limits]\nsession_ttl = {YEAR}\n"

Repeats = list[tuple[bytes, bytes]]
"""Exactly-once requests, and what they were answered."""


def put(key: str, value: bytes, **fields: Any) -> bytes:
    """A PUT with a packed value, which goes through as it is."""
    body = bytearray(packb({"op": "PUT", "key": key, **fields}))
    body[0] += 1
    return bytes(body) + packb("value") + value


# --- What is written ---------------------------------------------------------------------------


def write_values(client: Raw) -> Repeats:
    """Every value of the vectors that is small, with and without ttl; every op that changes."""
    for sequence in vectors.load():
        for number, case in enumerate(sequence.cases):
            fields = raw_fields(encode(case.request)) if case.request.kind == "map" else {}
            value = fields.get("value")
            if fields.get("op") == packb("PUT") and value and len(value) <= LARGEST:
                client.exchange(put(f"value/{sequence.name}/{number}", value))
    client.ok(op="PUT", key="kept/for a year", value=1, ttl=YEAR)
    client.ok(op="PUT", key="touched", value=2)
    client.ok(op="TOUCH", key="touched", ttl=YEAR)
    client.ok(op="PUT", key="touched/back", value=3, ttl=YEAR)
    client.ok(op="TOUCH", key="touched/back", ttl=None)
    client.ok(op="MPUT", items={"many/a": 1, "many/\u00e9": [2], "many/gone": 3})
    client.ok(op="MDELETE", keys=["many/gone", "many/never"])
    client.ok(op="INCR", key="count", by=2**62)
    client.ok(op="INCR", key="count", by=-1)
    client.ok(
        op="TXN",
        **{"if": [["count", client.ok(op="GET", key="count")["rev"]]]},
        ops=[
            {"op": "PUT", "key": "txn/a", "value": {"b": None}},
            {"op": "DELETE", "key": "txn/a"},
            {"op": "PUT", "key": "txn/b", "value": b"\x00", "ttl": YEAR},
            {"op": "INCR", "key": "txn/count"},
        ],
    )
    expire(client)
    return []


def expire(client: Raw) -> None:
    """An entry that the server itself has removed."""
    client.ok(op="PUT", key="expired", value=1, ttl=0.001)
    eventually(
        lambda: any(
            change[1] == "EXPIRE"
            for change in client.ok(op="CHANGES", since=0, prefix="expired")["changes"]
        ),
        "that an entry expires",
    )


def write_sessions(client: Raw) -> Repeats:
    """Exactly-once writes of each op, by either way, and refusals that are remembered."""
    client.ok(op="PUT", key="there", value="text")
    requests: list[dict[str, Any]] = [
        {"op": "PUT", "key": "plain", "value": 1},
        {"op": "PUT", "key": "ttl", "value": 2, "ttl": YEAR},
        {"op": "PUT", "key": "prev", "value": 3, "prev": True},
        {"op": "PUT", "key": "there", "value": 4, "if_rev": 0},
        {"op": "MPUT", "items": {"b": 1, "a": 2}},
        {"op": "MPUT", "items": {"d": 1, "c": 2}, "ttl": YEAR},
        {"op": "INCR", "key": "n"},
        {"op": "INCR", "key": "n", "by": 41},
        {"op": "INCR", "key": "there"},
        {"op": "DELETE", "key": "never"},
        {"op": "DELETE", "key": "plain", "prev": True},
        {"op": "MDELETE", "keys": ["a", "never"]},
        {"op": "TOUCH", "key": "b", "ttl": YEAR},
        {"op": "TOUCH", "key": "never", "ttl": 1.0},
        {"op": "TXN", "ops": [{"op": "PUT", "key": "t", "value": 1}, {"op": "INCR", "key": "n"}]},
        {"op": "TXN", "if": [["there", 0]], "ops": [{"op": "DELETE", "key": "there"}]},
        {"op": "PUT", "key": "durable", "value": 5, "durable": True},
    ]
    repeats = []
    for session in ("one", "\u00fcnicode session"):
        for seq, fields in enumerate(requests, 1):
            body = packb({**fields, "session": session, "seq": seq})
            repeats.append((body, client.exchange(body)))
    return repeats


def write_segments(client: Raw) -> Repeats:
    """More than a segment, a snapshot between, and more than a segment again."""
    repeats = write_sessions(client)
    for number in range(40):
        client.ok(op="PUT", key=f"first/{number:02}", value="x" * 60)
    client.ok(op="SNAPSHOT")
    for number in range(40):
        client.ok(op="PUT", key=f"second/{number:02}", value="y" * 60)
    # The refusal has the revision of the snapshot, or the last one behind it.
    refused = packb({"op": "DELETE", "key": "never", "session": "late", "seq": 1})
    return [*repeats, (refused, client.exchange(refused))]


def write_refusals(client: Raw) -> Repeats:
    """Refusals at one revision, before and behind a snapshot of it; and an entry to expire later.

    Only the snapshot has the ones before, only the log those behind.
    """

    def refuse(session: str, seq: int) -> tuple[bytes, bytes]:
        request = packb({"op": "DELETE", "key": "never", "session": session, "seq": seq})
        return request, client.exchange(request)

    client.ok(op="PUT", key="there", value="text")
    repeats = [refuse("both", 1), refuse("both", 2), refuse("before", 1)]
    client.ok(op="SNAPSHOT")
    repeats += [refuse("both", 3), refuse("behind", 1), refuse("behind", 2)]
    client.ok(op="PUT", key="due", value=1, ttl=DUE_SECONDS)
    return [*repeats, refuse("behind", 3)]


# --- How it is left ----------------------------------------------------------------------------


def let_expire(data: Path) -> None:
    """Wait until the entry is due, which nobody has removed."""
    time.sleep(2 * DUE_SECONDS)


def tear(data: Path) -> None:
    """Cut the newest segment within its last frame, as a power cut would."""
    newest = max((data / "wal").glob("*.wal"))
    newest.write_bytes(newest.read_bytes()[:-3])


def damage_and_repair(data: Path) -> None:
    """Damage a frame that was acknowledged, and have ``zkv repair`` save what can be saved."""
    newest = max((data / "wal").glob("*.wal"))
    content = bytearray(newest.read_bytes())
    content[len(content) * 9 // 10] ^= 0xFF
    newest.write_bytes(content)
    repaired = run_zkv("repair", "--yes", str(data), cwd=data.parent)
    assert repaired.returncode == 0, repaired.stderr


def leave(data: Path) -> None:
    """Leave it as it is."""


class Plan(NamedTuple):
    """How a case comes about.

    Attributes:
        write: sends requests; returns those that may be repeated.
        config: of the server.
        stops: the server stops in order; else it is killed.
        then: what happens to the directory afterwards.
    """

    write: Callable[[Raw], Repeats]
    config: str = KEPT_SESSIONS
    stops: bool = False
    then: Callable[[Path], None] = leave


PLANS: Final = {
    "values-killed": Plan(write_values),
    "values-stopped": Plan(write_values, stops=True),
    "sessions-killed": Plan(write_sessions),
    "sessions-stopped": Plan(write_sessions, stops=True),
    "segments": Plan(write_segments, SMALL_SEGMENTS),
    "torn-tail": Plan(write_segments, SMALL_SEGMENTS, then=tear),
    "repaired": Plan(write_segments, then=damage_and_repair),
    "refusals": Plan(write_refusals, then=let_expire),
}


# --- What is read back -------------------------------------------------------------------------


class ChangesPage(msgspec.Struct):
    """A reply to CHANGES. Values stay packed: Python cannot hold all of them."""

    changes: list[tuple[int, str, str, msgspec.Raw]]


def read_back(client: Raw, now: int) -> dict[str, Any]:
    """All that a client can see of a store: entries, changes, revision."""
    entries = []
    for key, _, rev in client.ok(op="SCAN", limit=10_000, values=False)["items"]:
        reply = raw_fields(client.exchange(packb({"op": "GET", "key": key})))
        ttl = unpack(reply["ttl"]) if "ttl" in reply else None
        expires = None if ttl is None else round(now / 1000 + ttl)
        entries.append([key, reply["value"].hex(), rev, expires])
    lasting = sum(expires is not None for *_, expires in entries)
    eventually(
        lambda: client.ok(op="INFO")["stats"]["expiring"] == lasting,
        "that entries which are due are removed",
    )
    info = client.ok(op="INFO")
    oldest = info["stats"]["history"]["oldest"]
    body = client.exchange(packb({"op": "CHANGES", "since": oldest - 1, "limit": 10_000}))
    page = msgspec.msgpack.decode(body, type=ChangesPage)
    changes = [[rev, op, key, bytes(value).hex()] for rev, op, key, value in page.changes]
    return {"rev": info["rev"], "entries": entries, "changes": changes}


def make(version: str, names: Collection[str]) -> None:
    """Write the cases of these names."""
    for name in names:
        plan = PLANS[name]
        with tempfile.TemporaryDirectory() as directory:
            server = ServerProcess(Path(directory), config=plan.config)
            with server, Raw(server.endpoint, zmq.REQ) as client:
                repeats = plan.write(client)
                if plan.stops:
                    server.stop()
            plan.then(server.data_dir)
            _keep(HERE / version / name, server, repeats)


def _keep(case: Path, server: ServerProcess, repeats: Repeats) -> None:
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(server.data_dir, case / "data", ignore=shutil.ignore_patterns("LOCK"))
    now = time.time_ns() // 1_000_000
    with server, Raw(server.endpoint, zmq.REQ) as client:
        expected = {"now": now, **read_back(client, now)}
        # By what the same version answers now: a torn tail has taken the last ones with it.
        expected["repeats"] = [
            [request.hex(), reply.hex(), "replayed" in raw_fields(client.exchange(request))]
            for request, reply in repeats
        ]
    text = json.dumps(expected, indent=1, ensure_ascii=False)
    (case / "expected.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    assert Path.cwd() == ROOT
    make(sys.argv[1], sys.argv[2:] or PLANS)
