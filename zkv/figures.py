"""The figures of a server: one table, with a line for each, and what counts them.

INFO has the figures, as fields that programs of any language can read. All else that shows them is
derived from this table: the metrics (`zkv.metrics`), ``zkv-cli top``, ``zkv doctor``, and the list
in docs/monitoring.md. So a figure has one name, one unit and one explanation, and cannot be missing
somewhere.

`Buckets` counts values by their order of magnitude. It has no lock: one thread at a time adds, and
a reader may miss what is being added at that moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import add
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from zkv import compiled

STEPS: Final = 64
"""Buckets of a histogram: values below 1, 2, 4, 8 ... No value exceeds the last one."""


class PythonBuckets:
    """The counts of `Buckets`. The log in C adds to them: see zkv/compiled/figures.c."""

    __slots__ = ("counts", "total")

    counts: list[int]
    total: float

    def add(self, step: int, value: float, count: int = 1) -> None:
        """Add ``value`` ``count`` times to bucket ``step``; for a time, that of `step_of`."""
        self.counts[step] += count
        self.total += value * count


if TYPE_CHECKING:
    _Base = PythonBuckets
else:
    _Base = compiled.store.BucketsBase if compiled.COMPILED else PythonBuckets


class Buckets(_Base):
    """A histogram with buckets in powers of two, and the sum of all values.

    Attributes:
        counts: number of values in each bucket. To change the list may change nothing.
        total: sum of the values, in their own unit.
    """

    __slots__ = ()

    def __init__(self, counts: list[int] | None = None, total: float = 0) -> None:
        self.counts = counts or [0] * STEPS
        self.total = total

    def add_time(self, seconds: float) -> None:
        """Add a time."""
        self.add(step_of(seconds), seconds)

    def merge(self, other: Buckets) -> None:
        """Add all values of another one."""
        self.counts = list(map(add, self.counts, other.counts))
        self.total += other.total

    def report(self) -> dict[str, Any]:
        """Return the map that INFO has for it."""
        return {"counts": trimmed(list(self.counts)), "sum": rounded(self.total)}


def step_of(seconds: float) -> int:
    """Return the bucket of a time: the number of bits of its µs."""
    return int(seconds * 1e6).bit_length()


def rounded(total: float) -> float:
    """Return a sum as INFO reports it: seconds to the µs."""
    return round(total, 6)


def trimmed(counts: list[int]) -> list[int]:
    """Return ``counts`` without the zeros at the end."""
    while counts and not counts[-1]:
        counts.pop()
    return counts


def hidden(info: Mapping[str, Any]) -> str:
    """Return why a reply to INFO has no statistics; empty if it has them.

    Args:
        info: the reply.
    """
    if "stats" in info or "user" not in info:
        return ""
    return f"user {info['user']} may not see the statistics: it needs the right {MONITOR}"


COUNTER: Final = "counter"
"""Counts from 0 since the start of the server, and never decreases."""
GAUGE: Final = "gauge"
"""Is as it is at present."""
FLAG: Final = "flag"
"""In INFO a text, or nil; as a metric a gauge: 1 if there is a text, 0 if not."""
HISTOGRAM: Final = "histogram"
"""In INFO a map of `Buckets.report`."""
SUMMARY: Final = "summary"
"""In INFO a map with ``count`` and ``sum``."""
FACTS: Final = "info"
"""Texts that hardly change; as a metric they are labels of a gauge that is 1."""

SECONDS: Final = "seconds"
BYTES: Final = "bytes"
TIME: Final = "time"
"""Unix time in seconds."""

OPEN: Final = ""
"""The right to see it: everybody who may connect has it."""
MONITOR: Final = "monitor"


class Figure(NamedTuple):
    """One figure.

    Args:
        name: the name as a metric.
        kind: one of the kinds above.
        paths: where it is in INFO. The first one has the figure; others have parts of it, or tell
            it in other words.
        help: one line that explains it.
        unit: `SECONDS`, `BYTES` or `TIME`; otherwise a plain number.
        labels: names of the labels that the metric has: one for the keys of a map.
        members: the values that the label has, if the figure is only a part of the map.
        place: heading and name in ``zkv-cli top``; None = in its table of ops.
        right: the right to see it.
    """

    name: str
    kind: str
    paths: tuple[str, ...]
    help: str
    unit: str = ""
    labels: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    place: tuple[str, str] | None = None
    right: str = MONITOR

    def of(self, info: Mapping[str, Any], path: int = 0) -> Any:
        """Return what a reply to INFO has at one of the paths; None if there is nothing."""
        found: Any = info
        for name in self.paths[path].split("."):
            if not isinstance(found, Mapping) or name not in found:
                return None
            found = found[name]
        if self.members and path == 0:
            return {name: found[name] for name in self.members if name in found}
        return found

    def need(self, info: Mapping[str, Any], path: int = 0) -> Any:
        """Return the same as `of`. Raises KeyError, with the path, if there is nothing."""
        found = self.of(info, path)
        if found is None:
            raise KeyError(self.paths[path])
        return found


REQUESTS: Final = Figure(
    "zkv_requests_total", COUNTER,
    ("stats.requests", "stats.succeeded", "stats.failures_by_op", "stats.failures"),
    "Requests by op, and by the code of the failure; OK if they succeeded.",
    labels=("op", "code"),
)  # fmt: skip
LATENCIES: Final = Figure(
    "zkv_request_seconds", HISTOGRAM, ("stats.latencies", "stats.seconds"),
    "Times from the start of a request to its reply, the wait for the disk included.",
    SECONDS, ("op",),
)  # fmt: skip
QUEUE_WAIT: Final = Figure(
    "zkv_queue_wait_seconds", SUMMARY, ("stats.queue_wait",),
    "Waits of requests that are not simple, from their arrival in the server to a worker.",
    SECONDS, place=("waits", "for a worker"),
)  # fmt: skip
LOCK_WAIT: Final = Figure(
    "zkv_lock_wait_seconds", HISTOGRAM, ("stats.lock_wait",),
    "Waits for the lock of the store, of those who did not get it at once.",
    SECONDS, place=("waits", "for the lock"),
)  # fmt: skip
FSYNC: Final = Figure(
    "zkv_fsync_seconds", HISTOGRAM, ("stats.fsync",),
    "Times of the syncs of the log.", SECONDS, place=("waits", "for the disk"),
)  # fmt: skip
GROUP_COMMITS: Final = Figure(
    "zkv_group_commits", HISTOGRAM, ("stats.group_commits",),
    "Commits that each sync of the log has put on disk.", place=("waits", "commits per sync"),
)  # fmt: skip
BYTES_IN: Final = Figure(
    "zkv_received_bytes_total", COUNTER, ("stats.bytes_in",),
    "Bytes of the bodies of requests.", BYTES, place=("clients", "bytes in"),
)  # fmt: skip
BYTES_OUT: Final = Figure(
    "zkv_sent_bytes_total", COUNTER, ("stats.bytes_out",),
    "Bytes of the bodies of replies.", BYTES, place=("clients", "bytes out"),
)  # fmt: skip
CONNECTIONS: Final = Figure(
    "zkv_connections", GAUGE, ("stats.connections",),
    "Open connections of clients, by tcp and ipc.", place=("clients", "connections"),
)  # fmt: skip
HANDSHAKES_FAILED: Final = Figure(
    "zkv_failed_handshakes_total", COUNTER, ("stats.handshakes_failed",),
    "Connections that ended in the handshake, by reason.",
    labels=("reason",), place=("clients", "failed handshakes"),
)  # fmt: skip
CONNECTIONS_CUT: Final = Figure(
    "zkv_cut_connections_total", COUNTER, ("stats.connections_cut",),
    "Connections that the server has cut off, apart from handshakes that failed, by reason.",
    labels=("reason",), place=("clients", "cut off"),
)  # fmt: skip
REPLIES_DROPPED: Final = Figure(
    "zkv_replies_dropped_total", COUNTER, ("stats.replies_dropped",),
    "Replies dropped because too many waited for a client that does not read them.",
    place=("clients", "replies dropped"),
)  # fmt: skip
UNROUTABLE: Final = Figure(
    "zkv_unroutable_messages_total", COUNTER, ("stats.unroutable",),
    "Messages without a receiver, such as replies to clients that have left.",
    place=("clients", "unroutable"),
)  # fmt: skip
FOLLOWERS: Final = Figure(
    "zkv_followers", GAUGE, ("stats.followers",),
    "Open connections of followers to the feed, by tcp and ipc.",
    place=("changes", "followers"),
)  # fmt: skip
FEED_PUBLISHED: Final = Figure(
    "zkv_feed_messages_total", COUNTER, ("stats.feed.published",),
    "Changes published by the feed.", place=("changes", "published"),
)  # fmt: skip
FEED_DROPPED: Final = Figure(
    "zkv_feed_dropped_total", COUNTER, ("stats.feed.dropped",),
    "Messages that a follower did not get: its queue was full, or it was cut off.",
    place=("changes", "dropped"),
)  # fmt: skip
FEED_SKIPPED: Final = Figure(
    "zkv_feed_skipped_revisions_total", COUNTER, ("stats.feed.skipped",),
    "Revisions skipped because the feed was too far behind.", place=("changes", "skipped"),
)  # fmt: skip
FEED_CUT_OFF: Final = Figure(
    "zkv_followers_cut_off_total", COUNTER, ("stats.feed.cut_off",),
    "Followers cut off: they did not read, or had too many topics.", place=("changes", "cut off"),
)  # fmt: skip
FEED_REVISION: Final = Figure(
    "zkv_feed_revision", GAUGE, ("stats.feed.rev",),
    "The revision published last.", place=("changes", "up to revision"),
)  # fmt: skip
HISTORY_CHANGES: Final = Figure(
    "zkv_history_changes", GAUGE, ("stats.history.changes",),
    "Changes that are kept.", place=("changes", "kept"),
)  # fmt: skip
HISTORY_BYTES: Final = Figure(
    "zkv_history_bytes", GAUGE, ("stats.history.bytes",),
    "Bytes of the changes that are kept.", BYTES, place=("changes", "their bytes"),
)  # fmt: skip
HISTORY_OLDEST: Final = Figure(
    "zkv_history_oldest_revision", GAUGE, ("stats.history.oldest",),
    "The oldest revision that is kept.", place=("changes", "oldest revision"),
)  # fmt: skip
REVISION: Final = Figure(
    "zkv_revision", GAUGE, ("rev",),
    "The revision of the store.", place=("store", "revision"), right=OPEN,
)  # fmt: skip
DURABLE_REVISION: Final = Figure(
    "zkv_durable_revision", GAUGE, ("durable_rev",),
    "The newest revision on disk.", place=("store", "on disk"),
)  # fmt: skip
KEYS: Final = Figure("zkv_keys", GAUGE, ("keys",), "Keys.", place=("store", "keys"))
EXPIRING: Final = Figure(
    "zkv_expiring_keys", GAUGE, ("stats.expiring",),
    "Keys that will expire.", place=("store", "that expire"),
)  # fmt: skip
EXPIRED: Final = Figure(
    "zkv_expired_total", COUNTER, ("stats.expired",),
    "Entries removed because they had expired.", place=("store", "expired"),
)  # fmt: skip
EVICTED: Final = Figure(
    "zkv_evicted_total", COUNTER, ("stats.evicted",),
    "Entries evicted from caches to make room; 0 without a cache.",
    place=("store", "evicted"),
)  # fmt: skip
MEMORY: Final = Figure(
    "zkv_memory_bytes", GAUGE, ("stats.memory",),
    "Memory by part, counted; it is less than the process takes.",
    BYTES, ("part",), ("keys", "values", "index", "history", "sessions"), ("memory", ""),
)  # fmt: skip
MEMORY_USED: Final = Figure(
    "zkv_memory_used_bytes", GAUGE, ("stats.memory.used",),
    "The sum of these parts.", BYTES, place=("memory", "all"),
)  # fmt: skip
MEMORY_LIMIT: Final = Figure(
    "zkv_memory_limit_bytes", GAUGE, ("stats.memory.limit",),
    "What they may take at most: the setting max_memory; 0 if there is no limit.",
    BYTES, place=("memory", "at most"),
)  # fmt: skip
SESSIONS: Final = Figure(
    "zkv_sessions", GAUGE, ("stats.sessions.sessions",),
    "Sessions of exactly-once clients that are remembered.", place=("sessions", "remembered"),
)  # fmt: skip
SESSIONS_LIMIT: Final = Figure(
    "zkv_sessions_limit", GAUGE, ("limits.max_sessions",),
    "The largest number of sessions: the setting max_sessions.",
    place=("sessions", "at most"), right=OPEN,
)  # fmt: skip
SESSION_REPLIES: Final = Figure(
    "zkv_session_replies", GAUGE, ("stats.sessions.replies",),
    "Replies that the sessions remember.", place=("sessions", "replies"),
)  # fmt: skip
SESSION_BYTES: Final = Figure(
    "zkv_session_bytes", GAUGE, ("stats.sessions.bytes",),
    "Bytes of these replies, as the setting session_bytes counts them.",
    BYTES, place=("sessions", "their bytes"),
)  # fmt: skip
LOG_WRITTEN: Final = Figure(
    "zkv_log_written_bytes_total", COUNTER, ("durability.log_bytes",),
    "Bytes written to the log.", BYTES, place=("log", "written"),
)  # fmt: skip
LOG_BYTES: Final = Figure(
    "zkv_log_bytes", GAUGE, ("stats.log_bytes",),
    "Bytes of the log that are on disk now.", BYTES, place=("log", "size"),
)  # fmt: skip
SYNCS: Final = Figure(
    "zkv_syncs_total", COUNTER, ("durability.syncs",),
    "Syncs of the log.", place=("log", "syncs"),
)  # fmt: skip
READ_ONLY: Final = Figure(
    "zkv_read_only", FLAG, ("durability.refusal",),
    "1 while writes are refused because the log cannot be written.",
    place=("log", "writes refused"),
)  # fmt: skip
READ_ONLY_SINCE: Final = Figure(
    "zkv_read_only_since_timestamp_seconds", GAUGE, ("stats.read_only_since",),
    "Unix time since which writes have been refused.", TIME, place=("log", "refused for"),
)  # fmt: skip
SNAPSHOTS: Final = Figure(
    "zkv_snapshots_total", COUNTER, ("durability.snapshots",),
    "Snapshots written.", place=("snapshots", "written"),
)  # fmt: skip
SNAPSHOT_REVISION: Final = Figure(
    "zkv_snapshot_revision", GAUGE, ("durability.snapshot_rev",),
    "The revision of the newest snapshot.", place=("snapshots", "newest revision"),
)  # fmt: skip
SNAPSHOT_AGE: Final = Figure(
    "zkv_snapshot_age_seconds", GAUGE, ("stats.snapshot.age",),
    "Seconds since the newest snapshot was written. None is written while nothing changes.",
    SECONDS, place=("snapshots", "age"),
)  # fmt: skip
SNAPSHOT_SECONDS: Final = Figure(
    "zkv_snapshot_duration_seconds", GAUGE, ("durability.snapshot_seconds",),
    "Seconds that the last snapshot took.", SECONDS, place=("snapshots", "took"),
)  # fmt: skip
SNAPSHOT_BYTES: Final = Figure(
    "zkv_snapshot_bytes", GAUGE, ("durability.snapshot_bytes",),
    "Bytes of the last snapshot.", BYTES, place=("snapshots", "size"),
)  # fmt: skip
SNAPSHOT_FAILURES: Final = Figure(
    "zkv_snapshot_failures_total", COUNTER,
    ("stats.snapshot.failures", "stats.snapshot.failure"),
    "Snapshots that could not be written.", place=("snapshots", "failures"),
)  # fmt: skip
SNAPSHOT_FAILED_AT: Final = Figure(
    "zkv_snapshot_failed_timestamp_seconds", GAUGE, ("stats.snapshot.failed_at",),
    "Unix time of the last failure to write a snapshot.", TIME, place=("snapshots", "last failure"),
)  # fmt: skip
LEADS: Final = Figure(
    "zkv_replication_info", FACTS, ("replication.role", "replication.store"),
    "What the server is to its store, where that is copied, and which store it is.",
    labels=("role", "store"), place=("replication", "role"),
)  # fmt: skip
TERM: Final = Figure(
    "zkv_replication_term", GAUGE, ("replication.term",),
    "The term of the store: it goes up when another server takes over.",
    place=("replication", "term"),
)  # fmt: skip
APPLIED: Final = Figure(
    "zkv_replication_applied", GAUGE, ("replication.applied",),
    "The newest log number.", place=("replication", "log number"),
)  # fmt: skip
LAG: Final = Figure(
    "zkv_replication_lag_seconds", GAUGE, ("replication.lag_seconds",),
    "Seconds by which a standby or a follower is behind the server that leads; 0 there.", SECONDS,
    place=("replication", "behind"),
)  # fmt: skip
MEMBERS: Final = Figure(
    "zkv_members", GAUGE, ("replication.declared",),
    "Members of a store in etcd, whether they run or not.", place=("replication", "members"),
)  # fmt: skip
MEMBERS_ALIVE: Final = Figure(
    "zkv_members_alive", GAUGE, ("replication.alive",),
    "Members that have told within 15 seconds how far they are.",
    place=("replication", "that are there"),
)  # fmt: skip
LEADER_SILENT: Final = Figure(
    "zkv_leader_silent_seconds", GAUGE, ("replication.leader_seconds",),
    "Seconds since a follower has seen the leader renew its lease; 0 at the leader.", SECONDS,
    place=("replication", "leader renewed"),
)  # fmt: skip
LEASE_LEFT: Final = Figure(
    "zkv_lease_left_seconds", GAUGE, ("replication.lease_seconds",),
    "Seconds for which the leader still leads without a word from etcd; 0 at a follower.", SECONDS,
    place=("replication", "leads for"),
)  # fmt: skip
ETCD_SILENT: Final = Figure(
    "zkv_etcd_silent_seconds", GAUGE, ("replication.etcd.answered_seconds",),
    "Seconds since this member has had an answer from etcd.", SECONDS,
    place=("etcd", "answered"),
)  # fmt: skip
ETCD_NODES: Final = Figure(
    "zkv_etcd_nodes", GAUGE, ("replication.etcd.nodes",),
    "Nodes of etcd that the URL of the store names.", place=("etcd", "nodes"),
)  # fmt: skip
ETCD_ANSWERING: Final = Figure(
    "zkv_etcd_nodes_answering", GAUGE, ("replication.etcd.answering",),
    "Those of them that answer.", place=("etcd", "that answer"),
)  # fmt: skip
ETCD_APPENDS: Final = Figure(
    "zkv_etcd_append_seconds", HISTOGRAM, ("replication.etcd.append",),
    "Times that etcd took to append a batch of commits.", SECONDS, place=("etcd", "append"),
)  # fmt: skip
ETCD_COMMITS: Final = Figure(
    "zkv_etcd_append_commits", HISTOGRAM, ("replication.etcd.append_commits",),
    "Commits in each batch.", place=("etcd", "commits per append"),
)  # fmt: skip
ETCD_BYTES: Final = Figure(
    "zkv_etcd_db_bytes", GAUGE, ("replication.etcd.db_bytes",),
    "Bytes of etcd's database file, the largest one of all nodes.", BYTES,
    place=("etcd", "file"),
)  # fmt: skip
ETCD_USED: Final = Figure(
    "zkv_etcd_db_used_bytes", GAUGE, ("replication.etcd.db_used_bytes",),
    "Bytes of it that are used, likewise.", BYTES, place=("etcd", "used"),
)  # fmt: skip
ETCD_QUOTA: Final = Figure(
    "zkv_etcd_quota_bytes", GAUGE, ("replication.etcd.quota_bytes",),
    "What the file may take: as etcd says, and at most the setting store.quota_bytes.", BYTES,
    place=("etcd", "at most"),
)  # fmt: skip
ETCD_ALARMS: Final = Figure(
    "zkv_etcd_alarm", FLAG, ("replication.etcd.alarms",),
    "1 while etcd has raised an alarm, such as NOSPACE.", place=("etcd", "alarms"),
)  # fmt: skip
UPTIME: Final = Figure(
    "zkv_uptime_seconds", GAUGE, ("uptime",),
    "Seconds since the start.", SECONDS, place=("process", "up"),
)  # fmt: skip
WORKERS: Final = Figure(
    "zkv_workers", GAUGE, ("stats.workers",), "Worker threads.", place=("process", "workers")
)
BUGS: Final = Figure(
    "zkv_workers_replaced_total", COUNTER, ("stats.workers_replaced",),
    "Batches, and threads, that a bug or a lack of memory ended.", place=("process", "bugs"),
)  # fmt: skip
CPU: Final = Figure(
    "process_cpu_seconds_total", COUNTER, ("stats.process.cpu_seconds",),
    "Processor time that the server has used, in seconds.", SECONDS, place=("process", "cpu"),
)  # fmt: skip
RSS: Final = Figure(
    "process_resident_memory_bytes", GAUGE, ("stats.process.rss",),
    "Memory that the process takes.", BYTES, place=("process", "memory"),
)  # fmt: skip
OPEN_FILES: Final = Figure(
    "process_open_fds", GAUGE, ("stats.process.open_files",),
    "Open files and sockets.", place=("process", "open files"),
)  # fmt: skip
MAX_FILES: Final = Figure(
    "process_max_fds", GAUGE, ("stats.process.max_open_files",),
    "The largest number of open files and sockets.", place=("process", "at most"),
)  # fmt: skip
BUILD: Final = Figure(
    "zkv_build_info", FACTS, ("version", "stats.mailbox", "stats.store"),
    "The version, and which parts are compiled.", labels=("version", "mailbox", "store"),
    place=("process", "version"),
)  # fmt: skip

FIGURES: Final[tuple[Figure, ...]] = tuple(
    figure for figure in globals().values() if isinstance(figure, Figure)
)
"""All of them, in this order."""
