"""The entries of etcd, all as they were at one revision.

The time that its lease has left becomes an entry's time to live. Who keeps a lease alive in etcd
does not keep the entry alive in zkv.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from zkv.cli.output import FAILED, CommandError
from zkv.cli.sources import Found
from zkv.errors import ConfigError
from zkv.etcd import CompactedRevisionError, EtcdError, EtcdSecurity, Item, connect, with_prefix

SCHEME: Final = "etcd://"
OPTIONS: Final = ("ca", "cert", "key", "user", "password_file")
"""In the query of the URL; those of `EtcdSecurity`, and of the table ``[store.etcd]``."""
AT_ONCE: Final = 500
FIRST: Final = 50
BYTES_AT_ONCE: Final = 4 * 1024 * 1024
"""About what one answer may have."""


class EtcdEntries:
    """The entries of a cluster; see `Entries`.

    Args:
        url: ``etcd://HOST:PORT,HOST:PORT?OPTION=...``.
        prefix: of the keys.
        timeout: seconds for an answer.

    Raises:
        CommandError: the extra ``etcd`` is not installed, the URL is wrong, or etcd does not
            answer.
    """

    def __init__(self, url: str, prefix: str, timeout: float) -> None:
        self._timeout = timeout
        endpoints, security = _split(url)
        self.name = f"{SCHEME}{','.join(endpoints)}"
        self._begin, self._end = with_prefix(prefix.encode())
        with self._failing():
            self._etcd = connect(endpoints, security)
            seen = self._etcd.read(self._begin, self._end, limit=1, keys_only=True, timeout=timeout)
        self._revision = seen.revision
        self.count: int | None = seen.count

    def __iter__(self) -> Iterator[Found]:
        begin, limit, more = self._begin, FIRST, True
        while more:
            with self._failing():
                page = self._etcd.read(
                    begin, self._end, limit=limit, revision=self._revision, timeout=self._timeout
                )
                times = self._times_to_live(page.items)
            size = 1
            for item in page.items:
                begin = item.key + b"\0"
                size += len(item.value)
                yield Found(item.key, item.value, times.get(item.lease))
            limit = max(1, min(AT_ONCE, 2 * limit, limit * BYTES_AT_ONCE // size))
            more = page.more

    def close(self) -> None:
        """See `Entries.close`."""
        self._etcd.close()

    def _times_to_live(self, items: list[Item]) -> dict[int, float]:
        """Each lease -> the seconds that it has left."""
        leases = {item.lease for item in items if item.lease}
        left = {lease: self._etcd.lease_time_to_live(lease, self._timeout) for lease in leases}
        return {lease: float(seconds or 0) for lease, seconds in left.items()}

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Turn errors of etcd into CommandError."""
        try:
            yield
        except CompactedRevisionError:
            why = f"its revision {self._revision} was compacted while it was read: import again"
            raise CommandError(FAILED, f"{self.name}: {why}") from None
        except (EtcdError, ConfigError) as error:
            raise CommandError(FAILED, f"{self.name}: {error}") from None


def _split(url: str) -> tuple[list[str], EtcdSecurity]:
    """Endpoints and security in a URL. Raises CommandError."""
    if "@" in url:  # Not shown: it may be a password.
        how = "?user=NAME&password_file=FILE"
        raise CommandError(FAILED, f"--from: a user of etcd is named by {how}")
    parts = urlsplit(url)
    if parts.path.strip("/"):
        raise CommandError(FAILED, "--from: keys of etcd are named by --prefix, not by a path")
    query = dict(parse_qsl(parts.query))
    if unknown := query.keys() - set(OPTIONS):
        known = ", ".join(OPTIONS)
        raise CommandError(FAILED, f"--from: {min(unknown)!r:.80} is no option for etcd: {known}")
    return parts.netloc.split(","), EtcdSecurity(**query)
