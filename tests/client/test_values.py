"""Values, whatever they are: packed, decoded, and what cannot be decoded."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from tests.client.blocking import Kind
from tests.support import ServerInProcess
from zkv.client.codec import PACKED, Packed

ODD = [
    Packed(b"\x81\x92\x01\x02\x03"),  # {[1, 2]: 3}
    Packed(b"\x82\x01\xa1a\xc3\xa1b"),  # {1: "a", true: "b"}
    Packed(b"\xd4\xff\x00"),  # A timestamp of one byte.
    Packed(b"\xcd\x00\x01"),  # 1, in more bytes than it takes.
    Packed(b"\xca\x3f\x80\x00\x00"),  # A float of 32 bits.
    Packed(b"\xa1\xff"),  # A str that is no UTF-8.
    Packed(b"\xc0"),
]


def test_values_pass_through_as_they_are_packed(kind: Kind, near: ServerInProcess) -> None:
    keys = [f"k{n}" for n in range(len(ODD))]
    entries = dict(zip(keys, ODD, strict=True))
    with kind(near.endpoint, codec=PACKED) as kv, kv.watch() as watch:
        for key, value in entries.items():
            kv.put(key, value)
        kv.put_many(entries)
        with kv.pipeline() as pipe:
            for key, value in entries.items():
                pipe.put(key, value)
        with kv.txn() as txn:
            for key, value in entries.items():
                txn.put(key, value, ttl=1000)
                txn.get(key)
            txn.incr("n", 5)

        assert [kv.get(key) for key in keys] == ODD
        assert kv.get_many(keys) == entries
        assert {entry.key: entry.value for entry in kv.scan("k")} == entries
        assert {entry.value for entry in kv.scan("k", values=False)} == {None}
        assert [*txn.results[1:-1:2], txn.results[-1]] == [*ODD, 5]
        with kv.pipeline() as pipe:
            for key in keys:
                pipe.get(key)
        assert pipe.results == ODD
        with kv.mirror("k") as mirror:
            assert mirror == entries
            assert {type(value) for value in mirror.values()} == {Packed}
        assert [kv.pop(key) for key in keys] == ODD
        told = [watch.next().value for _ in range(5 * len(ODD) + 1)]
        assert told == [*ODD * 4, Packed(b"\x05"), *[None] * len(ODD)]
        assert [change.value for change in kv.changes(0)] == told
        assert kv.incr("n") == 6


def test_a_value_that_is_not_packed_is_packed(kind: Kind, near: ServerInProcess) -> None:
    with kind(near.endpoint, codec=PACKED) as kv:
        kv.put("k", [1, None])
        assert kv.get("k") == msgpack.packb([1, None])


@pytest.mark.parametrize("packed", [b"", b"\x01\x02", b"\x92\x01", b"\xc1"])
def test_what_is_no_whole_value_is_not_sent(
    kind: Kind, near: ServerInProcess, packed: bytes
) -> None:
    value: Any = Packed(packed)
    with kind(near.endpoint, codec=PACKED) as kv:
        with pytest.raises(ValueError, match="whole"):
            kv.put("k", value)
        with pytest.raises(ValueError, match="whole"):
            kv.put_many({"a": 1, "k": value})
        assert kv.count() == 0
