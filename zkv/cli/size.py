"""``zkv size``: estimates what a server takes, from the number and the lengths of its keys.

What a server counts (`zkv.keyspace.room`), and its files, follow from the formats: one write, one
entry and one session are packed as the server packs them, and their sizes multiplied. What the
process takes beside the count was measured; docs/sizing.md has how, and the tests compare all of it
with a server.

The limits that are advised leave room: with them `zkv doctor` has nothing to say.

Exit status: 0 done; 2 wrong usage, or the settings are bad.
"""

from __future__ import annotations

import argparse
from math import ceil
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import Raw

from zkv.cli.doctor import FEW_FILES, FULL, LARGE_SHARE, space_wanted
from zkv.cli.settings import read_file_and_environment
from zkv.cli.values import to_bytes
from zkv.client.session import random_name
from zkv.config.memory import COUNTED_SHARE, OUTSIDE_BYTES, PARTS_SHARE
from zkv.config.schema import LEAST_MEMORY
from zkv.durability.segment import FRAME_HEAD_BYTES
from zkv.durability.snapshot import KEPT_SNAPSHOTS, size_of_entry, size_of_session
from zkv.durability.snapshotter import REST_FACTOR, SMALL_SHARE
from zkv.entries.text import to_json
from zkv.errors import ConfigError
from zkv.keyspace.change import PUT, Commit, KeyChange, Once
from zkv.keyspace.entry import StoredEntry
from zkv.keyspace.history import COMMIT_BYTES
from zkv.keyspace.room import DEADLINE_BYTES, ENTRY_BYTES, UNLIMITED
from zkv.keyspace.sessions import SESSION_BYTES, counted_size
from zkv.protocol.codec import encode_reply
from zkv.protocol.replies import WriteReply
from zkv.readable import size
from zkv.streams import write

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zkv.config import Settings
    from zkv.config.schema import LimitSettings

PROCESS_BYTES: Final = 36_000_000
"""Memory that a server takes without entries and without clients."""
PROCESS_FACTOR: Final = 1.1
"""Memory that the process usually takes for each byte that is counted."""
CONNECTION_BYTES: Final = 60_000
"""Memory that a connection takes, of a client or a follower, once it has been used."""
REPLACED_BYTES: Final = 300
"""Memory that an entry takes beside its key and value while it is kept for a snapshot, since it was
replaced before the snapshot had come to it."""
OWN_FILES: Final = 64
"""Files that a server has open without clients, rounded up."""
SNAPSHOT_RATE: Final = 50_000_000
"""Bytes of a snapshot that are written in a second; a fast disk takes twice as many."""
MIB: Final = 1024 * 1024
TIME: Final = 2**40
"""Any time of these years, in ms: all are packed in the same number of bytes."""

Estimate = dict[str, dict[str, int]]
"""By group and part: memory, process and disk in bytes, files, and the limits that are advised."""


class Demand(NamedTuple):
    """The store, and its clients, of which the size is estimated.

    Args:
        keys: number of keys.
        key: length of a key, in bytes.
        value: length of a packed value.
        expiring: number of keys that expire.
        writes: writes a second, one key each.
        changes: changes that the history holds; None = as many as it may.
        sessions: number of sessions; if there are some, all writes are exactly-once.
        connections: connections of clients.
        followers: connections of followers.
    """

    keys: int
    key: int = 20
    value: int = 100
    expiring: int = 0
    writes: int = 100
    changes: int | None = None
    sessions: int = 0
    connections: int = 100
    followers: int = 0


def run(options: argparse.Namespace) -> int:
    """Print the estimate; returns the exit status. Raises ConfigError."""
    settings = read_file_and_environment(options.config)
    demand = Demand(**{name: getattr(options, name) for name in Demand._fields})
    _check(demand, settings.limits)
    found = estimate(demand, settings)
    write(to_bytes(to_json(found) if options.json else "\n".join(_lines(found))))
    return 0


def _check(demand: Demand, limits: LimitSettings) -> None:
    """Raise ConfigError if there can be no such store."""
    for option, least, most, why in (
        ("key", 0, limits.max_key_bytes, "limits.max_key_bytes"),
        ("value", 1, limits.max_value_bytes, "limits.max_value_bytes"),
        ("expiring", 0, demand.keys, "the number of keys"),
    ):
        if not least <= getattr(demand, option) <= most:
            raise ConfigError(
                f"--{option}: {getattr(demand, option)} is not from {least} to {most}, {why}"
            )


def estimate(demand: Demand, settings: Settings) -> Estimate:
    """Return what a server with these settings takes, in bytes and files, by part."""
    counted = _counted(demand, settings.limits)
    used = sum(counted.values())
    limits = _advised(demand, counted, settings.limits)
    open_files = OWN_FILES + demand.connections + demand.followers
    return {
        "memory": {"used": used, **counted},
        "process": _process(demand, settings, used, limits["max_memory"]),
        "disk": _disk(demand, settings),
        "files": {"open": open_files, "limit": max(FEW_FILES, ceil(open_files / FULL))},
        "limits": limits,
    }


# --- What is counted


def _counted(demand: Demand, limits: LimitSettings) -> dict[str, int]:
    """Return the parts of INFO's ``stats.memory``."""
    commit = _commit_bytes(demand, limits)
    changes = max(1, min(limits.history, limits.history_bytes // commit))
    if demand.changes is not None:
        changes = min(changes, demand.changes)
    reply = counted_size(len(_once(demand, limits).reply))
    return {
        "keys": demand.keys * demand.key,
        "values": demand.keys * demand.value,
        "index": demand.keys * ENTRY_BYTES + demand.expiring * DEADLINE_BYTES,
        "history": changes * (commit + COMMIT_BYTES),
        "sessions": demand.sessions * (SESSION_BYTES + limits.session_window * reply),
    }


def _commit_bytes(demand: Demand, limits: LimitSettings) -> int:
    """Return the mean length of a packed commit, of which as many expire as keys do."""
    once = _once(demand, limits) if demand.sessions else None
    key, value = "k" * demand.key, Raw(bytes(demand.value))
    puts = [KeyChange(PUT, key, value, expires) for expires in (None, TIME)]
    lasting, expiring = (
        len(Commit(demand.keys, TIME, demand.keys, (put,), once).pack()) for put in puts
    )
    return lasting + (expiring - lasting) * demand.expiring // max(1, demand.keys)


def _once(demand: Demand, limits: LimitSettings) -> Once:
    """Return what is remembered of an exactly-once write."""
    reply = encode_reply(WriteReply(rev=demand.keys))
    return Once(random_name(), limits.session_window, bytes(8), reply)


# --- What the process takes


def _process(demand: Demand, settings: Settings, used: int, max_memory: int) -> dict[str, int]:
    connections = (demand.connections + demand.followers) * CONNECTION_BYTES
    kept = _kept_for_a_snapshot(demand, settings.limits)
    return {
        "usual": PROCESS_BYTES + int(PROCESS_FACTOR * used) + connections,
        "allow": int(max_memory / COUNTED_SHARE) + OUTSIDE_BYTES + connections + kept,
    }


def _kept_for_a_snapshot(demand: Demand, limits: LimitSettings) -> int:
    """Return the memory that replaced entries take, at most, while a snapshot is written."""
    took = _snapshot_bytes(demand, limits) / SNAPSHOT_RATE
    entries = min(demand.keys, ceil(demand.writes * took))
    return entries * (demand.key + demand.value + REPLACED_BYTES)


# --- What is on disk


def _disk(demand: Demand, settings: Settings) -> dict[str, int]:
    snapshot = _snapshot_bytes(demand, settings.limits)
    parts = {
        "snapshots": KEPT_SNAPSHOTS * snapshot,
        "log": _log_bytes(demand, settings, snapshot),
        "free": space_wanted(snapshot, settings.durability.segment_bytes),
    }
    return {"total": sum(parts.values()), **parts}


def _snapshot_bytes(demand: Demand, limits: LimitSettings) -> int:
    key, value = "k" * demand.key, bytes(demand.value)
    lasting, expiring = (
        size_of_entry(key, StoredEntry(value, demand.keys, expires)) for expires in (None, TIME)
    )
    once = _once(demand, limits)
    reply = (once.seq, once.digest, once.reply, demand.keys)
    session = size_of_session((once.session, TIME, [reply] * limits.session_window))
    entries = demand.keys * lasting + demand.expiring * (expiring - lasting)
    return entries + demand.sessions * session


def _log_bytes(demand: Demand, settings: Settings, snapshot: int) -> int:
    """Return the length of the log just before a snapshot is complete.

    It goes back to the snapshot before the last, and has the whole segment that ends there, but for
    the last writes of that segment: those that are written together are in one segment. While there
    are few writes, snapshots wait until the log has a share of their size.
    """
    took = snapshot / SNAPSHOT_RATE
    period = took * (1 + REST_FACTOR) + settings.durability.snapshot_interval
    rate = demand.writes * (FRAME_HEAD_BYTES + _commit_bytes(demand, settings.limits))
    between = max(rate * period, SMALL_SHARE * snapshot)
    return settings.durability.segment_bytes + int(KEPT_SNAPSHOTS * between + rate * took)


# --- What is advised


def _advised(demand: Demand, counted: dict[str, int], limits: LimitSettings) -> dict[str, int]:
    """Return the memory limit that fits, and other limits as far as they are too small."""
    advised: dict[str, int] = {}
    replies = counted["sessions"] - demand.sessions * SESSION_BYTES
    session_bytes = max(limits.session_bytes, ceil(replies / (FULL * LARGE_SHARE)))
    if session_bytes > limits.session_bytes:
        advised["session_bytes"] = session_bytes
    if demand.sessions > FULL * limits.max_sessions:
        advised["max_sessions"] = ceil(demand.sessions / FULL)
    # A memory limit scales the bound on replies down with that on the history (`fit_memory`).
    shrunk = PARTS_SHARE * (session_bytes + limits.history_bytes) / session_bytes
    wanted = max(
        sum(counted.values()) / FULL, replies / (FULL * LARGE_SHARE) * shrunk, LEAST_MEMORY
    )
    advised["max_memory"] = min(ceil(wanted / MIB) * MIB, UNLIMITED)
    return advised


# --- How it is told


MEANINGS: Final = {
    ("memory", "used"): "what the server counts, in stats.memory of INFO:",
    ("memory", "keys"): "the keys",
    ("memory", "values"): "the values",
    ("memory", "index"): "each entry besides, and its expiry",
    ("memory", "history"): "the newest changes",
    ("memory", "sessions"): "the replies to exactly-once writes",
    ("process", "usual"): "what the process takes (RSS)",
    ("process", "allow"): "what to allow it, such as the limit of its container",
    ("disk", "total"): "the disk that it needs:",
    ("disk", "snapshots"): "the two newest, which are kept",
    ("disk", "log"): "the log, at most, once the data is loaded",
    ("disk", "free"): "to be left for the next snapshot and segments, and 1 GiB",
    ("files", "open"): "files and sockets",
    ("files", "limit"): "ulimit -n, or LimitNOFILE= in a systemd unit",
}


def _lines(found: Estimate) -> Iterator[str]:
    """Yield the lines for people; the last ones are settings, as a file has them."""
    for (group, name), meaning in MEANINGS.items():
        number = found[group][name]
        shown = f"{number:,}" if group == "files" else size(number)
        yield f"{group:9}{name:10}{shown:>11}  {meaning}"
    yield ""
    yield "[limits]"
    for name, number in found["limits"].items():
        yield f"{name} = {number}"
