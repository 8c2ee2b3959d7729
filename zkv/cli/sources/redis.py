"""The entries of a Redis or Valkey server, by the package redis-py.

SCAN finds the keys. It returns every key that is there from its beginning to its end, in no order,
and may return a key twice. A value and its time to live are read in one transaction; what is larger
than the store takes is not read at all.

Strings become values as they are. With ``structures`` hashes become maps, lists and sets become
arrays, and sorted sets arrays of pairs of member and score; sets and maps are sorted, so that equal
ones become equal values. All else is left out.

Invariant: memory is bounded by a page of keys, and a batch of values or one structure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgpack

from zkv.cli.output import FAILED, CommandError, note
from zkv.cli.sources import BYTES_AT_ONCE, Convert, Found
from zkv.client.codec import Packed
from zkv.errors import ConfigError
from zkv.keys import read_secret_file

MISSING: Final = (
    "Redis needs the package redis, which is not installed here: pip install 'zkv[redis]'"
)
KEYS_AT_ONCE: Final = 500
GLOB: Final = str.maketrans({each: f"\\{each}" for each in "*?[]\\^-"})
"""Escapes all that has a meaning in the pattern of a SCAN."""
NOT_THERE: Final = -2
"""The PTTL of a key that is not there; -1 is that of one that does not expire."""

NIL: Final = Packed(b"\xc0")


class RedisEntries:
    """The entries of one database of a server; see `Entries`.

    Args:
        url: as redis-py takes it; a ``password_file`` in its query names a file with the password.
        prefix: of the keys.
        structures: makes the parts of other types than strings; None = leave those out.
        largest: bytes of a string that are read at most.
        timeout: seconds for an answer.

    Raises:
        CommandError: redis-py is not installed, the URL is wrong, or the server does not answer.
    """

    def __init__(
        self, url: str, prefix: str, structures: Convert | None, largest: int, timeout: float
    ) -> None:
        self.name = _name(url)
        self._match = f"{prefix.translate(GLOB)}*".encode() if prefix else None
        self._structures = structures
        self._largest = largest
        try:
            self._redis: Any = import_module("redis")
        except ModuleNotFoundError as error:
            if error.name != "redis":
                raise
            raise CommandError(FAILED, MISSING) from None
        self._client = self._connect(url, timeout)
        with self._failing():
            self.count: int | None = None if prefix else self._client.dbsize()
            self._warn_of_a_cluster()

    def __iter__(self) -> Iterator[Found]:
        cursor = None
        while cursor != 0:
            with self._failing():
                cursor, keys = self._client.scan(cursor or 0, self._match, KEYS_AT_ONCE)
            yield from self._page(keys)

    def close(self) -> None:
        """See `Entries.close`."""
        self._client.close()

    def _connect(self, url: str, timeout: float) -> Any:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        query.pop("decode_responses", None)  # Bytes are asked for, and stay so.
        database = parts.path.strip("/")
        if parts.scheme != "unix" and database and not database.isdecimal():
            raise CommandError(FAILED, f"{self.name}: a database is a number, not {database!r:.80}")
        limits: dict[str, Any] = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
        try:
            if file := query.pop("password_file", None):
                limits["password"] = read_secret_file(file).decode()
            place = url.partition("?")[0]
            return self._redis.Redis.from_url(f"{place}?{urlencode(query)}", **limits)
        except UnicodeDecodeError:
            raise CommandError(FAILED, f"{self.name}: the password is not in UTF-8") from None
        except (ConfigError, ValueError) as error:
            raise CommandError(FAILED, f"{self.name}: {error}") from None

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Turn the errors of redis-py into CommandError."""
        try:
            yield
        except self._redis.RedisError as error:
            raise CommandError(FAILED, f"{self.name}: {error}") from None
        except TypeError as error:  # An option in the query that no connection has.
            raise CommandError(FAILED, f"{self.name}: wrong in the URL: {error}") from None

    def _warn_of_a_cluster(self) -> None:
        try:
            info = self._client.info("cluster")
        except self._redis.ResponseError:  # The user may not ask.
            return
        if info.get("cluster_enabled"):
            note(f"{self.name} is a node of a cluster: only its keys are imported, not all")

    def _page(self, keys: list[bytes]) -> Iterator[Found]:
        """The entries of some keys."""
        strings: list[bytes] = []
        size = 0
        for key, kind, length in self._kinds(keys):
            if kind == "string" and length <= self._largest:
                strings.append(key)
                size += length
                if size >= BYTES_AT_ONCE:
                    yield from self._read(strings, _STRING)
                    strings, size = [], 0
            elif kind == "string":
                yield Found(key, b"", fault=f"its value has {length} bytes, over {self._largest}")
            elif self._structures is not None and kind in _STRUCTURES:
                yield from self._read([key], _STRUCTURES[kind])
            elif kind != "none":
                yield Found(key, b"", fault=f"it is a {kind}")
            else:
                yield Found(key, NIL, 0.0)  # It has expired, or was removed.
        yield from self._read(strings, _STRING)

    def _kinds(self, keys: list[bytes]) -> Iterator[tuple[bytes, str, int]]:
        """Each key, with its type and its length as a string."""
        with self._client.pipeline(transaction=False) as asked, self._failing():
            for key in keys:
                asked.type(key).strlen(key)
            answers = self._answers(asked)
        for key, kind, length in zip(keys, answers[::2], answers[1::2], strict=True):
            yield key, kind.decode(), 0 if isinstance(length, Exception) else length

    def _read(self, keys: list[bytes], kind: _Kind) -> Iterator[Found]:
        """Values and times to live of keys of one type."""
        with self._client.pipeline(transaction=True) as asked, self._failing():
            for key in keys:
                asked.pttl(key)
                asked.execute_command(kind.command, key, *kind.words)
            answers = self._answers(asked) if keys else []
        for key, pttl, found in zip(keys, answers[::2], answers[1::2], strict=True):
            if pttl == NOT_THERE or found is None:
                yield Found(key, NIL, 0.0)
            elif isinstance(found, Exception):
                yield Found(key, b"", fault="its type changed while it was read")
            else:
                yield self._found(key, kind, found, None if pttl < 0 else pttl / 1000)

    def _answers(self, asked: Any) -> list[Any]:
        """The answers to a pipeline, with errors only where a key has another type."""
        answers: list[Any] = asked.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, Exception) and not str(answer).startswith("WRONGTYPE"):
                raise answer
        return answers

    def _found(self, key: bytes, kind: _Kind, found: Any, ttl: float | None) -> Found:
        if kind.pack is None or self._structures is None:
            return Found(key, found, ttl)
        try:
            return Found(key, Packed(kind.pack(found, self._structures)), ttl)
        except ValueError as error:
            return Found(key, b"", fault=f"of its parts: {error}")


class _Kind(NamedTuple):
    """How a type is read.

    Args:
        command: that reads it.
        pack: makes the packed value of the answer; None = the answer is the value.
        words: of the command, after the key.
    """

    command: str
    pack: Callable[[Any, Convert], bytes] | None = None
    words: tuple[str, ...] = ()


_packer: Final = msgpack.Packer()


def _array(parts: Iterable[bytes], count: int) -> bytes:
    return b"".join([_packer.pack_array_header(count), *parts])


def _hash(found: dict[bytes, bytes], convert: Convert) -> bytes:
    parts = [_packer.pack_map_header(len(found))]
    for field, value in sorted(found.items()):
        try:
            name = field.decode()
        except UnicodeDecodeError:
            raise ValueError(f"the field {field!r:.80} is not UTF-8") from None
        parts += [_packer.pack(name), convert(value)]
    return b"".join(parts)


def _list(found: list[bytes], convert: Convert) -> bytes:
    return _array(map(convert, found), len(found))


def _set(found: Iterable[bytes], convert: Convert) -> bytes:
    return _list(sorted(found), convert)


def _sorted_set(found: list[Any], convert: Convert) -> bytes:
    pairs = (_array([convert(member), _packer.pack(float(score))], 2) for member, score in found)
    return _array(pairs, len(found))


_STRING: Final = _Kind("GET")
_STRUCTURES: Final = {
    "hash": _Kind("HGETALL", _hash),
    "list": _Kind("LRANGE", _list, ("0", "-1")),
    "set": _Kind("SMEMBERS", _set),
    "zset": _Kind("ZRANGE", _sorted_set, ("0", "-1", "WITHSCORES")),
}


def _name(url: str) -> str:
    """A URL without user, password and options."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
