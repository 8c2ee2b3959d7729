"""The types of the C part: see the C sources beside this file."""

from collections.abc import Callable, Collection, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from zkv.activity import Activity
from zkv.bounds import Range
from zkv.errors import Overload
from zkv.keyspace.entry import StoredEntry
from zkv.keyspace.log import CommitLog
from zkv.keyspace.store import Keyspace, Undo, Watcher
from zkv.log import Answer
from zkv.replication.role import Role
from zkv.requests import batch
from zkv.requests.account import Account
from zkv.requests.batch import BadEnvelope
from zkv.requests.slow_log import SlowLog
from zkv.requests.stopping import Stopping
from zkv.users.rights import PythonPrefixes, User

A = TypeVar("A")

class Table:
    def __new__(cls, entry_type: type[StoredEntry], seed: bytes) -> Table: ...
    # `get` has the type of any mapping's.
    def __getitem__(self, key: str) -> StoredEntry: ...
    def __setitem__(self, key: str, entry: StoredEntry) -> None: ...
    def __delitem__(self, key: str) -> None: ...
    def __contains__(self, key: object) -> bool: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[str]: ...
    def pairs(
        self, keys: Range, most: int, reverse: bool = False, /
    ) -> list[tuple[str, StoredEntry]]: ...
    def count(self, keys: Range) -> int: ...
    def deadlines(self) -> list[tuple[int, str]]: ...
    def sizes(self) -> tuple[int, int]: ...
    def count_bytes(self, prefixes: Collection[str], /) -> None: ...
    def count_more(self, most: int, /) -> bool: ...
    def bytes_under(self, prefixes: tuple[str, ...], /) -> int | None: ...
    def keep_clocks(self) -> None: ...
    def pick(self, keys: Range, most: int, by_expiry: bool, /) -> list[tuple[str, int]]: ...

class Replaced:
    def entries(self) -> dict[str, StoredEntry | None]: ...

class Batch:
    """See `zkv.requests.batch.Batch`."""

    def __new__(cls, *, no_memory: BadEnvelope) -> Batch: ...
    def __len__(self) -> int: ...
    def __getitem__(self, place: int, /) -> bytes | BadEnvelope: ...
    def __iter__(self) -> Iterator[bytes | BadEnvelope]: ...  # By `__getitem__`.
    def add(
        self,
        envelope: list[bytes],
        body: bytes | BadEnvelope,
        arrived: float = 0.0,
        waited: float = 0.0,
        user: User | None = None,
        user_id: str = "",
        /,
    ) -> None: ...
    def clear(self) -> None: ...
    def is_request(self, place: int, /) -> bool: ...
    def envelope(self, place: int, /) -> list[bytes] | None: ...
    def reply(self, place: int, /) -> bytes | None: ...
    def set_reply(self, place: int, reply: bytes, /) -> None: ...
    def sent(self, place: int, /) -> None: ...
    def split(self, places: list[int], /) -> Batch: ...
    def places(self, after: int, /) -> list[int]: ...
    def answered(self, up_to: int, /) -> list[Answer]: ...
    def summary(self, place: int, /) -> tuple[str, int, str | None, int] | None: ...
    def timed_places(self, up_to: int, /) -> list[int]: ...
    def amend_reply(self, place: int, reply: bytes, /) -> None: ...
    def user(self, place: int, /) -> User | None: ...
    def user_id(self, place: int, /) -> str: ...
    def arrived(self, place: int, /) -> float: ...
    def lock_wait(self, place: int, /) -> float: ...
    def overload(self, place: int, /) -> Overload | None: ...
    def refuse(self, place: int, overload: Overload, /) -> None: ...
    def queued(self, end: int, /) -> float: ...
    @property
    def replied(self) -> int: ...
    taken: float
    waited: float

class Prefixes(PythonPrefixes): ...

class Latencies:
    """Histograms of the lane's answers, by op; see `zkv.requests.account.Account`."""

    def add(self, batch: object, up_to: int, slow: SlowLog, /) -> bool:
        """Count the answers of a batch that reveal no later revision than ``up_to``.

        Returns:
            True if the batch is to be explained: a reply is to say how long everything took, or the
            oldest request is one for the slow log.
        """

    def report(self) -> dict[str, tuple[list[int], float]]:
        """Return, by op, the counts of the buckets and the sum of the seconds."""

class Run(NamedTuple):
    """The results of `Lane.run`.

    Attributes:
        left: places of the requests that have not been answered.
        newest: newest revision that one of their replies reveals; 0 if none does.
        rev: revision of the store after the run.
        payloads: the commits that the run made, packed, in order.
        changes: number of changes in the commits.
        bytes: size of the commits' payloads.
        replaced: undo information; None if the run wrote nothing.
        end: place before which it has ended: the requests from there on are still to run.
    """

    left: list[int]
    newest: int
    rev: int
    payloads: list[bytes]
    changes: int
    bytes: int
    replaced: Replaced | None
    end: int

class Lane:
    def __new__(
        cls,
        *,
        table: Table,
        keyspace: Keyspace,
        max_key_bytes: int,
        max_value_bytes: int,
        max_batch: int,
        max_reply_bytes: int,
        max_levels: int,
        max_body_bytes: int,
        enough_bytes: int,
        durable: bool,
        rest: Callable[[], None] | None,
        slice_steps: int,
        forget_deadline: Callable[[int, str], None],
        notify_watchers: Callable[[str, StoredEntry | None], None],
        watchers: list[Watcher],
        may_run: Callable[[str, int, bytes, int, int], bool],
        remember: Callable[[str, int, bytes, bytes, int, int, int], None],
    ) -> Lane: ...
    def run(
        self,
        batch: object,
        first: int,
        end: int,
        /,
        *,
        rev: int,
        lsn: int,
        removed_rev: int,
        now: int,
        room: int,
        takes_writes: bool,
        aside: bool,
        logs: bool,
    ) -> Run: ...
    def read(self, batch: object, place: int, /) -> bool: ...
    @property
    def beside_long_run(self) -> bool: ...

class Turn(Generic[A]):
    """See `zkv.broker.front.FrontHandler`.

    Args:
        lane: runs the requests of a batch, on its keyspace.
        latencies: counts those that it answers.
        log: the log. What is in `WalBase` is read there.
        stopping: whether new requests must be refused.
        role: the role.
        account: the account, with ``explain(batch, up_to, executed)``.
        slow: the slow log.
        acquire: acquires the keyspace's lock, unless it is not free.
        release: releases it.
        now: returns the time in ms.
        finish: called with a batch, a run, or None if nothing has run, the epoch before that, when
            it had run, and what came of an attempt to make its commits safe, None if there was
            none: see `zkv.durability.wal.Wal.commit`.
        undo: the class of undo information.
        writing: goes on while a snapshot is written; None if none ever is.
        secures: commits are safe once they are written.
    """

    def __new__(
        cls,
        *,
        lane: Lane,
        latencies: Latencies,
        log: CommitLog,
        stopping: Stopping,
        role: Role,
        account: Account,
        slow: SlowLog,
        acquire: Callable[[bool], bool],
        release: Callable[[], None],
        now: Callable[[], int],
        finish: Callable[
            [batch.Batch, Run | None, int, float, bool | BaseException | None], A | None
        ],
        undo: type[Undo],
        writing: Activity | None,
        secures: bool,
    ) -> Turn[A]: ...
    def answer(self, batch: batch.Batch, /) -> A | None: ...

class WalBase:
    """The attributes of `zkv.durability.wal.Wal` that a turn reads and writes."""

class HistoryBase:
    """Those of `zkv.keyspace.history.History`."""

class KeyspaceBase:
    """Those of `zkv.keyspace.store.Keyspace`."""

class SessionsBase:
    """Those of `zkv.keyspace.sessions.Sessions`."""

class BucketsBase:
    """Those of `zkv.figures.PythonBuckets`."""

class ActivityBase:
    """Those of `zkv.activity.Activity`."""

class StoppingBase:
    """That of `zkv.requests.stopping.Stopping`."""

class RoleBase:
    """That of `zkv.replication.role.Role`."""

class AccountBase:
    """That of `zkv.requests.account.Account`."""

class SlowLogBase:
    """Those of `zkv.requests.slow_log.SlowLog`."""

class ClockBase:
    """That of `zkv.clock.Clock`."""

class ClientSession:
    """See `zkv.keyspace.sessions.PythonSession`."""

def measure(packed: bytes, at: int) -> tuple[int, int]: ...
def pack_frames(payloads: list[bytes], synced: int, salt: int) -> bytes: ...
def unpack_frames(
    frames: bytes, at: int, salt: int, next_lsn: int, first: int, last: int, most: int
) -> tuple[list[bytes], int, int]: ...
def load_entries(table: Table, payload: bytes) -> int | None: ...
def replay(
    table: Table,
    frames: bytes,
    at: int,
    salt: int,
    next_rev: int,
    next_lsn: int,
    limit: int,
    lsn: int,
    oldest: int,
) -> tuple[
    int,
    int,
    int,
    int,
    int,
    int,
    list[bytes],
    int,
    int,
    list[tuple[str, int, bytes, bytes, int, int]],
]: ...
def pack_plain(op: str, request_id: int, fields: dict[str, Any], /) -> bytes | None: ...
def unpack_plain(body: bytes, /) -> Any: ...
def are_texts(values: list[Any], /) -> bool: ...
def siphash13(data: bytes, k0: int, k1: int) -> int: ...
def crc32(data: bytes, crc: int) -> int: ...
def blake2b(data: bytes, size: int) -> bytes: ...
def blake2b_sum(messages: list[bytes], /) -> int: ...
