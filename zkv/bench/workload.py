"""What to send, and whether the answer is right.

A `Workload` says what the load consists of; it is data, so that it can be sent to processes and be
written into reports. A `Source` makes the requests of one process from it, for the loop in `drive`.
The requests of a zkv server are made here from templates, which cost a third of encoding each
anew.

YCSB: the six core workloads with their mixes, distributions and record shape (10 fields of 100
bytes). A record is one value, a map; so UPDATE writes the whole record, as YCSB's bindings for
other stores without fields do, and a read reads all fields. F reads, and then writes what it has
read back with a changed field, as one operation with one latency.
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
"""Begins every key that this program writes."""
KEY_DIGITS: Final = 12
LONGEST_SCAN: Final = 100
"""YCSB's maxscanlength for E."""
VALUES: Final = 64
VALUES_BYTES: Final = 1 << 22
"""So many different values are made beforehand at most, and written in turn."""

encode: Final = msgspec.msgpack.Encoder().encode
Share = tuple[str, float]


class Ycsb(Struct, frozen=True):
    """A core workload: the shares of its kinds of operation, and its distribution."""

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
    """What the load consists of.

    ``ycsb`` names a core workload, which then decides shares and distribution; a value is a record
    of ``fields`` fields of ``field_bytes`` then, else ``value_bytes`` of bin.
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
        """Each kind of operation that occurs, with its share."""
        if self.ycsb:
            return YCSB[self.ycsb].shares
        read, write = ("GET", "PUT") if self.batch == 1 else ("MGET", "MPUT")
        both = ((read, self.reads), (write, 1 - self.reads))
        return tuple((kind, share) for kind, share in both if share)

    def is_read(self) -> bool:
        """Whether keys have to be there before it."""
        return bool(self.ycsb) or self.reads > 0

    def draw_from(self) -> str:
        """The distribution that is used."""
        return YCSB[self.ycsb].distribution if self.ycsb else self.distribution

    def size(self) -> int:
        """Bytes of a value, without what packing adds."""
        return self.fields * self.field_bytes if self.ycsb else self.value_bytes

    def make_values(self) -> list[bytes]:
        """Packed values, random under the seed."""
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
    """How many operations failed, by code."""

    def next(self, slot: int) -> tuple[int, bytes]:
        """The kind and the request of the slot's next operation."""

    def reply(self, slot: int, reply: bytes) -> bytes | bool:
        """Whether the operation went well; or a further request that belongs to it."""

    def lost(self, slot: int) -> bytes | None:
        """The request to send again after no reply came; None = give the operation up."""


def key_name(number: int) -> str:
    """The key with a number."""
    return f"{PREFIX}{number:0{KEY_DIGITS}d}"


class Requests:
    """The requests of zkv's protocol.

    Args:
        values: packed, to be written in turn.
        open_ended: whether ``id`` stands last in each request, and its value is to be appended.
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
        """GET."""
        return self._get % key

    def put(self, key: int) -> bytes:
        """PUT."""
        return self._put % key + self._value() + self._tail

    def mget(self, keys: list[int]) -> bytes:
        """MGET."""
        packed = b"".join([self._key % key for key in keys])
        count = len(keys).to_bytes(4)
        return b"%c\xa2op\xa4MGET\xa4keys\xdd%b%b%b" % (
            0x82 + self._more, count, packed, self._tail,
        )  # fmt: skip

    def mput(self, keys: list[int]) -> bytes:
        """MPUT: one value for all; of a key that was drawn twice, one."""
        item = self._key + self._value().replace(b"%", b"%%")
        packed = b"".join([item % key for key in dict.fromkeys(keys)])
        count = len(dict.fromkeys(keys)).to_bytes(4)
        return b"%c\xa2op\xa4MPUT\xa5items\xdf%b%b%b" % (
            0x82 + self._more, count, packed, self._tail,
        )  # fmt: skip

    def scan(self, key: int, limit: int) -> bytes:
        """SCAN."""
        fields = {"op": "SCAN", "prefix": PREFIX, "start": key_name(key), "limit": limit}
        packed = encode(fields)
        return b"%c%b%b" % (packed[0] + self._more, packed[1:], self._tail)

    def modify(self, key: int, reply: bytes) -> bytes:
        """PUT of the record that was read, with the first field replaced."""
        record = msgspec.msgpack.decode(reply)["value"]
        record["field0"] = record["field0"][::-1]
        return self._put % key + encode(record) + self._tail

    def failure(self, reply: bytes) -> str:
        """The code of a failure."""
        if reply[1:5] == b"\xa2ok\xc3":  # Replies begin so; the protocol does not promise it.
            return ""
        fields = msgspec.msgpack.decode(reply)
        return "" if fields["ok"] is True else str(fields["code"])

    def _value(self) -> bytes:
        self._written += 1
        return self._values[self._written % len(self._values)]


class Mix:
    """A `Source` that draws operations by their shares.

    Args:
        workload: what to draw.
        requests: how to say it.
        process: number of this process, from 0.
        processes: how many there are; each has its own chance.
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
        self._inserting: dict[int, int] = {}  # By slot: the key that is on its way.
        self._modifying: dict[int, int] = {}  # By slot: the key whose value is to come.
        self.kinds = [kind for kind, _ in workload.shares()]
        self._limits = list(accumulate(share for _, share in workload.shares()))[:-1]
        self._make: list[Callable[[int], bytes]] = [self._maker(kind) for kind in self.kinds]

    def next(self, slot: int) -> tuple[int, bytes]:
        """Draw one."""
        kind = 0
        if self._limits:
            drawn = self._random()
            for limit in self._limits:
                if drawn >= limit:
                    kind += 1
        return kind, self._make[kind](slot)

    def reply(self, slot: int, reply: bytes) -> bytes | bool:
        """Check that it is a success; go on with the second half of a read-modify-write."""
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
        """Give it up."""
        self._inserting.pop(slot, None)
        self._modifying.pop(slot, None)

    def _maker(self, kind: str) -> Callable[[int], bytes]:
        """From a slot to a request of this kind."""
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
