"""The entries of a file of the modules dbm and shelve: bytes under bytes.

Whoever has the file open for writing may keep it from being read: the formats lock it, or show what
is half written. It is opened for reading, and never changed.
"""

from __future__ import annotations

import dbm
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from zkv.cli.output import FAILED, CommandError
from zkv.cli.sources import Found


class DbmEntries:
    """The entries of a file; see `Entries`.

    Args:
        url: ``dbm:PATH``, as the path is given to `dbm.open`.
        prefix: of the keys.

    Raises:
        CommandError: it cannot be opened.
    """

    count: int | None = None

    def __init__(self, url: str, prefix: str) -> None:
        self.name = url.partition(":")[2]
        self._prefix = prefix.encode()
        with self._failing():
            self._file: Any = dbm.open(self.name, "r")  # noqa: SIM115  `close` closes it
            if not prefix:
                self.count = len(self._file)

    def __iter__(self) -> Iterator[Found]:
        with self._failing():
            for key in self._keys():
                if key.startswith(self._prefix):
                    yield Found(key, self._file[key])

    def close(self) -> None:
        """See `Entries.close`."""
        self._file.close()

    def _keys(self) -> Iterable[bytes]:
        if not hasattr(self._file, "firstkey"):
            return self._file.keys()  # type: ignore[no-any-return]
        return self._in_turn()

    def _in_turn(self) -> Iterator[bytes]:
        """The keys of GNU's dbm, which else makes a list of them all."""
        key = self._file.firstkey()
        while key is not None:
            yield key
            key = self._file.nextkey(key)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Turn errors of dbm into CommandError."""
        try:
            yield
        except dbm.error as error:
            raise CommandError(FAILED, f"{self.name}: {error}") from None
        except Exception as error:  # Of a damaged file, the modules raise anything.
            what = f"{type(error).__name__}: {error}"
            raise CommandError(FAILED, f"{self.name}: it is damaged: {what:.200}") from None
