"""zarr's own tests of stores, and its state machines, with `zkv.contrib.zarr.ZkvStore`."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import xarray
import zarr
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from zarr.core.buffer import Buffer, cpu, default_buffer_prototype
from zarr.testing.stateful import ZarrHierarchyStateMachine, ZarrStoreStateMachine
from zarr.testing.store import StoreTests

import zkv
from tests.docs.sessions import run_sessions
from tests.support import ServerProcess
from zkv.contrib.zarr import ZkvStore

NUMBERS = itertools.count()


class TestZkvStore(StoreTests[ZkvStore, cpu.Buffer]):
    store_cls = ZkvStore
    buffer_cls = cpu.Buffer

    @pytest.fixture
    def store_kwargs(self, endpoint: str) -> dict[str, Any]:
        return {"endpoint": endpoint, "prefix": f"store{next(NUMBERS)}/"}

    async def get(self, store: ZkvStore, key: str) -> Buffer:
        return self.buffer_cls.from_bytes(store._link.keys[key])

    async def set(self, store: ZkvStore, key: str, value: Buffer) -> None:
        store._link.keys[key] = value.to_bytes()

    def test_store_repr(self, store: ZkvStore) -> None:
        assert repr(store) == f"ZkvStore('{store._link.client.endpoint}/{store._link.prefix}')"

    def test_store_supports_writes(self, store: ZkvStore) -> None:
        assert store.supports_writes

    def test_store_supports_listing(self, store: ZkvStore) -> None:
        assert store.supports_listing


@pytest.mark.parametrize("machine", [ZarrStoreStateMachine, ZarrHierarchyStateMachine])
def test_state_machine(machine: Any, endpoint: str) -> None:
    run_state_machine_as_test(
        lambda: machine(ZkvStore(endpoint, prefix=f"machine{next(NUMBERS)}/")),
        settings=settings(deadline=None, max_examples=20, suppress_health_check=list(HealthCheck)),
    )


@pytest.fixture
def store(endpoint: str) -> ZkvStore:
    return ZkvStore(endpoint, prefix=f"mine{next(NUMBERS)}/")


def listed(store: ZkvStore, directory: str) -> list[str]:
    async def names() -> list[str]:
        return sorted([name async for name in store.list_dir(directory)])

    return asyncio.run(names())


def test_a_directory_is_listed_by_skipping(store: ZkvStore, endpoint: str) -> None:
    with zkv.Client(endpoint) as kv:
        mine = kv.namespace(store._link.prefix)
        for directory in range(5):
            mine.put_many({f"d{directory}/c/{n}": b"" for n in range(10_000)})
        mine.put_many({"d-": b"", "d0": b"", "d0.": b"", "é/x": b"", "d0/zarr.json": b""})
        assert list(mine.scan(limit=1))
        before = kv.info()["stats"]["requests"]["SCAN"]
        assert listed(store, "") == ["d-", "d0", "d0.", "d1", "d2", "d3", "d4", "é"]
        assert listed(store, "d0") == listed(store, "d0/") == ["c", "zarr.json"]
        assert kv.info()["stats"]["requests"]["SCAN"] - before < 20
        assert len(listed(store, "d3/c")) == 10_000
        assert listed(store, "absent") == []


def test_a_real_data_set_comes_back_through_xarray(store: ZkvStore, tmp_path: Path) -> None:
    times = numpy.datetime64("2026-01-01") + numpy.arange(31)
    temperature = 15 + 8 * numpy.random.default_rng(0).standard_normal((31, 20, 30))
    data = xarray.Dataset(
        {"temperature": (("time", "lat", "lon"), temperature.astype("f4"), {"units": "degC"})},
        coords={"time": times, "lat": numpy.linspace(40, 50, 20), "lon": numpy.linspace(5, 15, 30)},
        attrs={"title": "a month"},
    )
    data.to_zarr(store, encoding={"temperature": {"chunks": (10, 10, 10)}}, consolidated=False)
    read = xarray.open_zarr(store.with_read_only(True), consolidated=False)
    xarray.testing.assert_identical(read.compute(), data)
    xarray.testing.assert_identical(
        read.sel(time="2026-01-07", lat=slice(42, 47)).compute(),
        data.sel(time="2026-01-07", lat=slice(42, 47)),
    )
    data.to_zarr(tmp_path / "files.zarr", consolidated=False)
    files = xarray.open_zarr(tmp_path / "files.zarr", consolidated=False)
    xarray.testing.assert_identical(read.compute(), files.compute())


def test_chunks_that_are_too_large_are_told_beforehand(store: ZkvStore) -> None:
    with pytest.warns(UserWarning, match="limits.max_value_bytes"):
        array = zarr.create_array(store, shape=(4000, 4000), chunks=(2000, 2000), dtype="f8")
    array[:2000, :2000] = 1  # It compresses well.
    noise = numpy.random.default_rng(0).random((2000, 2000))
    with pytest.raises(ValueError, match=r"c/1/1.*the server takes"):
        array[2000:, 2000:] = noise
    assert (array[2000:, 2000:] == 0).all()
    limit = store._link.client.info()["limits"]["max_value_bytes"]
    exact = default_buffer_prototype().buffer.from_bytes(bytes(limit - 5))
    store.set_sync("exact", exact)
    assert len(store.get_sync("exact")) == limit - 5
    sharded = zarr.create_array(
        ZkvStore(prefix="sharded/"),
        overwrite=True,
        shape=(4000, 400),
        shards=(1000, 400),
        chunks=(100, 100),
        dtype="f8",
    )
    sharded[:] = 3
    assert sharded[999, 0] == 3


def test_a_read_only_store_refuses_to_write(store: ZkvStore, endpoint: str) -> None:
    zarr.create_array(store, name="a", shape=4, dtype="i4")[:] = 7
    array = zarr.open_array(ZkvStore(endpoint, store._link.prefix, read_only=True), path="a")
    assert array[:].tolist() == [7] * 4
    with pytest.raises(ValueError, match="read-only"):
        array[:] = 8
    assert array[:].tolist() == [7] * 4


WRITE_ROW = """
import pickle, sys, zarr
zarr.open_array(pickle.loads(bytes.fromhex(sys.argv[1])))[int(sys.argv[2])] = int(sys.argv[2])
"""


def test_processes_write_into_one_array(store: ZkvStore) -> None:
    array = zarr.create_array(store, shape=(4, 100), chunks=(1, 100), dtype="i4")
    children = []
    for row in (0, 1):
        if not (child := os.fork()):
            store.set_sync(f"c/{row}/0", array.store.get_sync("zarr.json"))
            store.delete_sync(f"c/{row}/0")
            store.set_sync(f"forked/{row}", default_buffer_prototype().buffer.from_bytes(b"x"))
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    pickled = pickle.dumps(store).hex()
    for row in (2, 3):
        subprocess.run([sys.executable, "-c", WRITE_ROW, pickled, str(row)], check=True, timeout=60)
    assert array[:, 7].tolist() == [0, 0, 2, 3]
    assert listed(store, "forked") == ["0", "1"]


def test_a_killed_server_is_no_missing_chunk(fragile: ServerProcess) -> None:
    store = ZkvStore(fragile.endpoint, prefix="a/", timeout=1)
    array = zarr.create_array(store, shape=100, chunks=10, dtype="i4", fill_value=-1)
    array[:] = numpy.arange(100)
    fragile.kill()
    with pytest.raises(zkv.ClientError):
        array[:]
    with pytest.raises(zkv.ClientError):
        array[:10] = 0
    with pytest.raises(zkv.ClientError):
        zarr.open_array(store)
    with pytest.raises(zkv.ClientError):
        listed(store, "")
    fragile.start()
    assert array[:].tolist() == list(range(100))
    assert json.loads(store.get_sync("zarr.json").to_bytes())["shape"] == [100]


def test_the_page_runs_as_shown(tmp_path: Path) -> None:
    run_sessions("docs/zarr.md", tmp_path / "page")
