"""The types of the C part: see the C sources beside this file."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from zkv.keyspace.bounds import Range
from zkv.keyspace.change import PackedCommit
from zkv.keyspace.entry import StoredEntry
from zkv.keyspace.store import Watcher

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

class Replaced:
    def entries(self) -> dict[str, StoredEntry | None]: ...

class Answers(Protocol):
    """The lists that `Lane.run` appends to: see `zkv.requests.lane.Answers`."""

    replies: list[bytes | None]
    reveals: list[int]
    ops: list[str]
    subjects: list[tuple[str | int, int, int] | None] | None

class Run(NamedTuple):
    """The results of `Lane.run`.

    Attributes:
        taken: number of requests answered.
        newest: newest revision that one of their replies reveals; 0 if none does.
        rev: revision of the store after the run.
        commits: the commits that the run made, in order.
        changes: number of changes in the commits.
        bytes: size of the commits' payloads.
        replaced: undo information; None if the run wrote nothing.
    """

    taken: int
    newest: int
    rev: int
    commits: list[PackedCommit]
    changes: int
    bytes: int
    replaced: Replaced | None

class Lane:
    def __new__(
        cls,
        *,
        table: Table,
        commit_type: type[PackedCommit],
        max_key_bytes: int,
        max_value_bytes: int,
        max_batch: int,
        max_reply_bytes: int,
        max_levels: int,
        durable: bool,
        forget_deadline: Callable[[int, str], None],
        notify_watchers: Callable[[str, StoredEntry | None], None],
        watchers: list[Watcher],
        may_run: Callable[[str, int, bytes, int, int], bool],
        remember: Callable[[str, int, bytes, bytes, int, int, int], None],
    ) -> Lane: ...
    def run(
        self,
        bodies: Sequence[object],
        answers: Answers,
        *,
        rev: int,
        removed_rev: int,
        now: int,
        takes_writes: bool,
    ) -> Run: ...

def measure(packed: bytes, at: int) -> tuple[int, int]: ...
def pack_frames(payloads: list[bytes], synced: int, salt: int) -> bytes: ...
def load_entries(table: Table, payload: bytes) -> int | None: ...
def replay(
    table: Table,
    frames: bytes,
    at: int,
    salt: int,
    next_rev: int,
    limit: int,
    rev: int,
    oldest: int,
    commit_type: type[PackedCommit],
) -> tuple[
    int, int, int, int, list[PackedCommit], int, int, list[tuple[str, int, bytes, bytes, int, int]]
]: ...
def siphash13(data: bytes, k0: int, k1: int) -> int: ...
def crc32(data: bytes, crc: int) -> int: ...
def blake2b(data: bytes, size: int) -> bytes: ...
