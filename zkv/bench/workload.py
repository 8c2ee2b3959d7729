"""Makes requests, and checks that replies report success.

A `Workload` describes the load. It is plain data, so it can be sent to processes and written into
reports. A `Source` makes the requests of one process from it, for the loop in `drive`. Requests are
made from templates, which costs a third of encoding each one.

YCSB: the six core workloads with their mixes, distributions and record shape (10 fields of 100
bytes). A record is one value, a map. So UPDATE writes the whole record, like YCSB's bindings for
other stores without fields, and a read returns all fields. F reads a record, then writes it back
with one field changed, as one operation with one latency.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from itertools import accumulate
from typing import Final, Literal, Protocol

import msgspec
from msgspec import Struct

from zkv.bench.keys import Keys

PREFIX: Final = "bench:"
"""The prefix of every key that this program writes."""
KEY_DIGITS: Final = 12
LONGEST_SCAN: Final = 100
"""YCSB's maxscanlength for E."""
VALUES: Final = 64
VALUES_BYTES: Final = 1 << 22
"""`VALUES` values, of at most these bytes together, are made beforehand and written in turn."""

encode: Final = msgspec.msgpack.Encoder().encode
Share = tuple[str, float]


class Ycsb(Struct, frozen=True):
    """A core workload of YCSB: the shares of its kinds of operation, and its distribution."""

    shares: tuple[Share, ...]
    distribution: str
    is_about: str


YCSB: Final = {
    "a": Ycsb((("READ", 0.5), ("UPDATE", 0.5)), "zipfian", "update heavy"),
    "b": Ycsb((("READ", 0.95), ("UPDATE", 0.05)), "zipfian", "read mostly"),
    "c": Ycsb((("READ", 1.0),), "zipfian", "read only"),
    "d": Ycsb((("READ", 0.95), ("INSERT", 0.05)), "latest", "read latest"),
    "e": Ycsb((("SCAN", 0.95), ("INSERT", 0.05)), "zipfian", "short ranges"),
    "f": Ycsb((("READ", 0.5), ("READ-MODIFY-WRITE", 0.5)), "zipfian", "read-modify-write"),
}


class Workload(Struct, frozen=True, kw_only=True):
    """The description of a load.

    If ``ycsb`` names a core workload, that determines shares and distribution, and a value is a
    record of ``fields`` fields of ``field_bytes``. Otherwise a value is ``value_bytes`` of bin.
    """

    keys: int = 10_000
    value_bytes: int = 16
    reads: float = 0.5
    batch: int = 1
    distribution: str = "uniform"
    seed: int = 1
    ycsb: Literal["", "a", "b", "c", "d", "e", "f"] = ""
    fields: int = 10
    field_bytes: int = 100

    def shares(self) -> tuple[Share, ...]:
        """The kinds of operation with their shares, without those that do not occur."""
        if self.ycsb:
            return YCSB[self.ycsb].shares
        read, write = ("GET", "PUT") if self.batch == 1 else ("MGET", "MPUT")
        both = ((read, self.reads), (write, 1 - self.reads))
        return tuple((kind, share) for kind, share in both if share)

    def is_read(self) -> bool:
        """True if the keys must be loaded first."""
        return bool(self.ycsb) or self.reads > 0

    def draw_from(self) -> str:
        """The distribution of keys."""
        return YCSB[self.ycsb].distribution if self.ycsb else self.distribution

    def size(self) -> int:
        """The bytes of a value before it is packed."""
        return self.fields * self.field_bytes if self.ycsb else self.value_bytes

    def make_values(self) -> list[bytes]:
        """Packed random values, which depend on the seed."""
        draw = random.Random(self.seed).randbytes  # noqa: S311  load, not secrets
        count = max(1, min(VALUES, VALUES_BYTES // self.size()))
        if not self.ycsb:
            return [encode(draw(self.value_bytes)) for _ in range(count)]
        names = [f"field{number}" for number in range(self.fields)]
        return [encode({name: draw(self.field_bytes) for name in names}) for _ in range(count)]


class Source(Protocol):
    """Makes the requests of one process. A slot is a place for one request in flight."""

    kinds: list[str]
    """The kinds of operation; `next` refers to them by number."""
    errors: Counter[str]
    """The number of failed operations by code."""

    def next(self, slot: int) -> tuple[int, bytes]:
        """The kind and the request of the slot's next operation."""

    def reply(self, slot: int, reply: bytes) -> bytes | bool:
        """True if the operation succeeded, False if it failed; or its next request."""

    def lost(self, slot: int) -> bytes | None:
        """The request to send again after a timeout; None = the operation is lost."""


def key_name(number: int) -> str:
    """The key with a number."""
    return f"{PREFIX}{number:0{KEY_DIGITS}d}"


class Requests:
    """The requests of zkv's protocol.

    Args:
        values: packed values, which are written in turn.
        open_ended: True if each request must end with the key ``id``, so that the caller can append
            its value.
    """

    def __init__(self, values: list[bytes], open_ended: bool) -> None:
        self._values = values
        self._written = 0
        self._tail = b"\xa2id" if open_ended else b""
        self._more = 1 if open_ended else 0
        packed_key = encode(key_name(0))[:-KEY_DIGITS] + b"%%0%dd" % KEY_DIGITS
        self._get = b"%c\xa2op\xa3GET\xa3key%b" % (0x82 + self._more, packed_key) + self._tail
        self._put = b"%c\xa2op\xa3PUT\xa3key%b\xa5value" % (0x83 + self._more, packed_key)
        self._key = packed_key

    def get(self, key: int) -> bytes:
        """A GET."""
        return self._get % key

    def put(self, key: int) -> bytes:
        """A PUT."""
        return self._put % key + self._value() + self._tail

    def mget(self, keys: list[int]) -> bytes:
        """An MGET."""
        packed = b"".join([self._key % key for key in keys])
        count = len(keys).to_bytes(4)
        return b"%c\xa2op\xa4MGET\xa4keys\xdd%b%b%b" % (
            0x82 + self._more, count, packed, self._tail,
        )  # fmt: skip

    def mput(self, keys: list[int]) -> bytes:
        """An MPUT with the same value for all keys; a key that was drawn twice is in it once."""
        item = self._key + self._value().replace(b"%", b"%%")
        packed = b"".join([item % key for key in dict.fromkeys(keys)])
        count = len(dict.fromkeys(keys)).to_bytes(4)
        return b"%c\xa2op\xa4MPUT\xa5items\xdf%b%b%b" % (
            0x82 + self._more, count, packed, self._tail,
        )  # fmt: skip

    def scan(self, key: int, limit: int) -> bytes:
        """A SCAN."""
        fields = {"op": "SCAN", "prefix": PREFIX, "start": key_name(key), "limit": limit}
        packed = encode(fields)
        return b"%c%b%b" % (packed[0] + self._more, packed[1:], self._tail)

    def modify(self, key: int, reply: bytes) -> bytes:
        """A PUT of the record in ``reply``, with the first field changed."""
        record = msgspec.msgpack.decode(reply)["value"]
        record["field0"] = record["field0"][::-1]
        return self._put % key + encode(record) + self._tail

    def failure(self, reply: bytes) -> str:
        """The code of a failure; empty for a success."""
        if reply[1:5] == b"\xa2ok\xc3":  # True for all successes; the protocol does not promise it.
            return ""
        fields = msgspec.msgpack.decode(reply)
        return "" if fields["ok"] is True else str(fields["code"])

    def _value(self) -> bytes:
        self._written += 1
        return self._values[self._written % len(self._values)]


class Mix:
    """A `Source` that draws operations at random, according to their shares.

    Args:
        workload: the description of the load.
        requests: makes the requests.
        process: the number of this process, from 0; each has its own random numbers.
        processes: the number of processes.
    """

    def __init__(
        self, workload: Workload, requests: Requests, process: int = 0, processes: int = 1
    ) -> None:
        chance = random.Random(workload.seed * 1_000_003 + process)  # noqa: S311  load, not secrets
        self.errors: Counter[str] = Counter()
        self._requests = requests
        self._random = chance.random
        self._batch = workload.batch
        self._keys = Keys(workload.draw_from(), workload.keys, chance, process, processes)
        self._draw = self._keys.draw
        self._inserting: dict[int, int] = {}  # By slot: the key that is being inserted.
        self._modifying: dict[int, int] = {}  # By slot: the key that is read and then written.
        self.kinds = [kind for kind, _ in workload.shares()]
        self._limits = list(accumulate(share for _, share in workload.shares()))[:-1]
        self._make: list[Callable[[int], bytes]] = [self._maker(kind) for kind in self.kinds]

    def next(self, slot: int) -> tuple[int, bytes]:
        """Draw an operation."""
        kind = 0
        if self._limits:
            drawn = self._random()
            for limit in self._limits:
                if drawn >= limit:
                    kind += 1
        return kind, self._make[kind](slot)

    def reply(self, slot: int, reply: bytes) -> bytes | bool:
        """Check for success; returns the second request of a read-modify-write, if it is one."""
        code = self._requests.failure(reply)
        if code:
            self.errors[code] += 1
            self.lost(slot)
            return False
        if self._inserting and (inserted := self._inserting.pop(slot, None)) is not None:
            self._keys.confirm(inserted)
        if self._modifying and (key := self._modifying.pop(slot, None)) is not None:
            return self._requests.modify(key, reply)
        return True

    def lost(self, slot: int) -> None:
        """Count the operation as lost."""
        self._inserting.pop(slot, None)
        self._modifying.pop(slot, None)

    def _maker(self, kind: str) -> Callable[[int], bytes]:
        """The function that makes a request of this kind for a slot."""
        requests, draw, batch = self._requests, self._draw, self._batch
        get, put = requests.get, requests.put
        makers: dict[str, Callable[[int], bytes]] = {
            "GET": lambda _: get(draw()),
            "READ": lambda _: get(draw()),
            "PUT": lambda _: put(draw()),
            "UPDATE": lambda _: put(draw()),
            "MGET": lambda _: requests.mget([draw() for _ in range(batch)]),
            "MPUT": lambda _: requests.mput([draw() for _ in range(batch)]),
            "SCAN": lambda _: requests.scan(draw(), 1 + int(self._random() * LONGEST_SCAN)),
            "INSERT": self._insert,
            "READ-MODIFY-WRITE": self._modify,
        }
        return makers[kind]

    def _insert(self, slot: int) -> bytes:
        self._inserting[slot] = key = self._keys.insert()
        return self._requests.put(key)

    def _modify(self, slot: int) -> bytes:
        self._modifying[slot] = key = self._draw()
        return self._requests.get(key)
