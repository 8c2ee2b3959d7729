"""The measurements, as data. A row is one line of load for all servers of one group.

A group is the time at which a server answers a write: ``never`` waits for no disk, ``interval``
syncs afterwards, ``always`` syncs before. Rows of one section stand in one table.
"""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct

Group = Literal["never", "interval", "always"]
"""zkv's policy in that group."""
Floor = Literal["", "bare", "log"]
"""Which of the floors takes part."""


class Section(Struct, frozen=True):
    """A table.

    Args:
        title: its heading.
        figures: its columns.
        ratios: the figures in which zkv is compared.
        durability: True if each server's durability is shown.
    """

    title: str
    figures: tuple[str, ...] = ("rate", "p50", "p99", "server_cpu")
    ratios: tuple[str, ...] = ("rate", "server_cpu")
    durability: bool = True


class Row(Struct, frozen=True):
    """A load.

    Args:
        name: unique.
        section: a key of `SECTIONS`.
        connections: the number of connections.
        in_flight: requests in flight on each connection.
        op: an op of load.c.
        keys: the keys that are stored before.
        value_bytes: the size of a value.
        group: the servers that take part.
        main: True if it is part of the short form.
        floor: ``bare`` if the bare ROUTER takes part, and zkv with further I/O threads; ``log`` if
            the ROUTER with a log does.
        beside: the number of further clients that send MPUTs of 10,000 keys meanwhile.
        times: how many times as long as others it is measured.
    """

    name: str
    section: str
    connections: int
    in_flight: int
    op: str
    keys: int = 10_000
    value_bytes: int = 16
    group: Group = "never"
    main: bool = False
    floor: Floor = ""
    beside: int = 0
    times: int = 1

    @property
    def writes(self) -> bool:
        """True if it changes the store."""
        return self.op.partition(":")[0] not in {"get", "mget"}


SECTIONS: Final = {
    "one": Section("One key in each request"),
    "many": Section("Many keys in each request, 8 clients"),
    "interval": Section("Writes that are synced soon after the answer"),
    "always": Section("Writes that are on disk before the answer"),
    "size": Section("By the size of values"),
    "beside": Section(
        "GET beside large writes", ("p50", "p99", "rate", "beside"), ("p99", "rate", "beside")
    ),
    "start": Section(
        "Start with 1,000,000 keys",
        ("seconds", "cpu_seconds", "megabytes"),
        ("seconds", "cpu_seconds"),
        durability=False,
    ),
    "memory": Section(
        "Memory for each of 1,000,000 keys",
        ("bytes_per_key",),
        ("bytes_per_key",),
        durability=False,
    ),
    "python": Section(
        "Python clients", ("rate", "client_cpu"), ("rate", "client_cpu"), durability=False
    ),
}

SIZES: Final = (("1 KiB", 50, 1_000, 1 << 10), ("16 KiB", 50, 1_000, 16 << 10),
                ("1 MiB", 4, 20, 1 << 20))  # fmt: skip
"""Name, connections, keys, bytes."""

DURABLE: Final = (("1 client, PUT", 1, 1, "put", True), ("50 clients, PUT", 50, 1, "put", True),
                  ("50 x 16 in flight, PUT", 50, 16, "put", True),
                  ("8 clients, MPUT of 100 keys", 8, 1, "mput:100", False))  # fmt: skip
"""Name, connections, in flight, op, part of the short form."""

ROWS: Final = (
    Row("1 client, half GET half PUT", "one", 1, 1, "mix", main=True, floor="bare"),
    Row("50 clients, half GET half PUT", "one", 50, 1, "mix", main=True, floor="bare"),
    Row("50 clients, GET", "one", 50, 1, "get"),
    Row("50 clients, PUT", "one", 50, 1, "put", floor="log"),
    Row("50 clients, INCR", "one", 50, 1, "incr"),
    Row("50 x 16 in flight, half GET half PUT", "one", 50, 16, "mix", main=True, floor="bare"),
    Row("50 x 16 in flight, GET", "one", 50, 16, "get"),
    Row("500 clients, half GET half PUT", "one", 500, 1, "mix"),
    Row("1,000 clients, half GET half PUT", "one", 1_000, 1, "mix", main=True, floor="bare"),
    Row("4,000 clients, half GET half PUT", "one", 4_000, 1, "mix", floor="bare"),
    *(
        Row(f"{op.upper()} of {count:,} keys", "many", 8, 1, f"{op}:{count}", main=main)
        for op in ("mget", "mput")
        for count, main in ((10, False), (100, True), (1_000, True))
    ),
    Row("MPUT of 100 keys, one of them twice", "many", 8, 1, "repeat:100"),
    Row("50 clients, PUT, synced soon", "interval", 50, 1, "put", group="interval"),
    *(
        Row(f"{name}, on disk", "always", clients, in_flight, op, group="always", main=main,
            floor="log")
        for name, clients, in_flight, op, main in DURABLE
    ),
    *(
        Row(f"{op.upper()} of {name}, {clients} clients", "size", clients, 1, op, keys, size,
            main=name == "1 MiB", floor="log" if op == "put" else "")
        for name, clients, keys, size in SIZES
        for op in ("get", "put")
    ),
    Row("8 clients, GET", "beside", 8, 1, "get", 100_000, times=2),
    Row("8 clients, GET, beside 2 with MPUT of 10,000 keys", "beside", 8, 1, "get", 100_000,
        beside=2, times=2),
)  # fmt: skip
