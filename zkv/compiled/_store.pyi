"""See the C sources beside this file."""

from collections.abc import Callable, Iterator, Sequence

from zkv.keyspace.change import Packed
from zkv.keyspace.entry import StoredEntry
from zkv.keyspace.store import Watcher

class Table:
    def __new__(cls, entry_type: type[StoredEntry], seed: bytes) -> Table: ...
    # `get` is there, too, and typed as that of any mapping.
    def __getitem__(self, key: str) -> StoredEntry: ...
    def __setitem__(self, key: str, entry: StoredEntry) -> None: ...
    def __delitem__(self, key: str) -> None: ...
    def __contains__(self, key: object) -> bool: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[str]: ...
    def pairs(self, keys: Sequence[str]) -> list[tuple[str, StoredEntry]]: ...

class Replaced:
    def entries(self) -> dict[str, StoredEntry | None]: ...

class Lane:
    def __new__(
        cls,
        table: Table,
        commit_type: type[Packed],
        max_key_bytes: int,
        max_value_bytes: int,
        max_batch: int,
        max_reply_bytes: int,
        max_levels: int,
        durable: bool,
        add_key: Callable[[str], None],
        forget_deadline: Callable[[int, str], None],
        tell_watchers: Callable[[str, StoredEntry | None], None],
        watchers: list[Watcher],
        may_run: Callable[[str, int, bytes, int, int], bool],
        remember: Callable[[str, int, bytes, bytes, int, int, int], None],
    ) -> Lane: ...
    def run(
        self,
        bodies: Sequence[object],
        first: int,
        rev: int,
        removed_rev: int,
        now: int,
        writes: bool,
        replies: list[bytes | None],
        reveals: list[int],
        ops: list[str],
        subjects: list[tuple[str | int, int, int] | None] | None,
    ) -> tuple[int, int, int, list[Packed], int, int, Replaced | None]: ...

def measure(packed: bytes, at: int) -> tuple[int, int]: ...
def pack_frames(payloads: list[bytes], synced: int, salt: int) -> bytes: ...
def siphash13(data: bytes, k0: int, k1: int) -> int: ...
def crc32(data: bytes, crc: int) -> int: ...
def blake2b(data: bytes, size: int) -> bytes: ...
