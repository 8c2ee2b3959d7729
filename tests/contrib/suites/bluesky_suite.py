"""Bluesky's RunEngine with its metadata in `zkv.contrib.nested.NestedDict`: killed, and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
from bluesky import RunEngine
from bluesky import plan_stubs as bps
from bluesky.run_engine import RunEngineInterrupted

import zkv
from tests.docs.sessions import run_sessions
from tests.support import ServerProcess, read_line
from zkv.codecs import standard
from zkv.contrib.nested import NestedDict

CHILD = """
import sys, time
from bluesky import RunEngine, plan_stubs as bps
import zkv
from zkv.contrib.nested import NestedDict

client = zkv.Client(sys.argv[1])
RE = RunEngine(NestedDict(client, "re/"))
RE.md.setdefault("sample", {"name": "Fe3O4", "runs": []})

def plan():
    for number in range(1000):
        yield from bps.open_run()
        RE.md["sample"]["runs"].append(RE.md["scan_id"])
        RE.md["sample"]["last"] = {"scan": RE.md["scan_id"]}
        print(RE.md["scan_id"], flush=True)
        yield from bps.close_run()

RE(plan())
"""


def run_once(engine: RunEngine, **metadata: Any) -> dict[str, Any]:
    """The document that a run begins with."""
    documents: list[dict[str, Any]] = []

    def plan() -> Any:
        yield from bps.open_run(metadata)
        yield from bps.close_run()

    engine(plan(), {"start": lambda _, document: documents.append(document)})
    return documents[0]


def test_a_run_engine_that_is_killed_goes_on_where_it_was(endpoint: str) -> None:
    with zkv.Client(endpoint) as kv:
        kv.namespace("re/").clear()
        seen, printed = 0, set[int]()
        for _ in range(2):
            child = subprocess.Popen(
                [sys.executable, "-c", CHILD, endpoint], stdout=subprocess.PIPE, env=os.environ
            )
            assert child.stdout is not None
            for number in range(seen + 1, seen + 6):
                assert int(read_line(child.stdout, 60)) == number
                printed.add(number)
            child.send_signal(signal.SIGKILL)
            child.wait()
            child.stdout.close()
            seen = kv["re/scan_id"]
        md = NestedDict(kv, "re/")
        runs = md["sample"]["runs"]
        assert runs == sorted(set(runs))
        assert printed <= {*runs}
        engine = RunEngine(md)
        document = run_once(engine)
        assert document["scan_id"] == seen + 1 == md["scan_id"]
        assert document["sample"]["runs"] == runs
        assert type(document["sample"].copy()) is dict


def test_metadata_of_more_types(endpoint: str) -> None:
    with zkv.Client(endpoint, codec=standard()) as kv:
        md = NestedDict(kv, "types/")
        md["detector"] = {"mask": numpy.eye(3), "gain": numpy.float64(1.5)}
        md["detector"]["mask"] = md["detector"]["mask"] * 2
        document = run_once(RunEngine(md), note="x")
        assert (document["detector"]["mask"] == numpy.eye(3) * 2).all()
        assert md["versions"]["bluesky"]
        assert "note" not in md


def test_a_server_that_is_killed_stops_the_run_with_an_error(fragile: ServerProcess) -> None:
    with zkv.Client(fragile.endpoint, timeout=1) as kv:
        md = NestedDict(kv, "md/")
        engine = RunEngine(md)
        assert run_once(engine)["scan_id"] == 1
        fragile.kill()
        with pytest.raises((zkv.ClientError, RunEngineInterrupted)):
            run_once(engine)
        fragile.start()
        assert run_once(engine)["scan_id"] == 2


def test_the_page_runs_as_shown(tmp_path: Path) -> None:
    run_sessions("docs/nested.md", tmp_path / "page")
