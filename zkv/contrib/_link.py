"""The way from an adapter to its keys.

A `Client` may be used by any number of threads, and starts anew in a forked child. So the adapters
of one process that name the same server share one client, and with it its connections, however many
adapters threads or requests make. Its connections close when the last of them is gone, as those of
any client that nobody has any more, or at the end of the program: nobody has to close an adapter.

A `Link` is pickled as, and compared by, what it was made from.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from zkv.client import Client

if TYPE_CHECKING:
    from zkv.client import Namespace

_shared: Final[weakref.WeakValueDictionary[object, Client]] = weakref.WeakValueDictionary()
"""By the options of the client. Without a lock: threads that come at once may make a second one."""


@atexit.register
def _close_all() -> None:
    for client in list(_shared.values()):
        client.close()


class Link:
    """The keys under a prefix of a server, for an adapter.

    Args:
        endpoint: as for `zkv.Client`; None = its default.
        prefix: of all keys.
        **options: further ones of `zkv.Client`; None = its default.

    Attributes:
        keys: the namespace of the keys.
        client: the client, which the adapter must not close.
        prefix: of all keys.
    """

    def __init__(
        self, endpoint: str | Iterable[str] | None = None, prefix: str = "", **options: Any
    ) -> None:
        options["endpoint"] = endpoint
        self._options = tuple(
            (name, tuple(value) if isinstance(value, list) else value)
            for name, value in sorted(options.items())
            if value is not None
        )
        self.prefix = prefix
        self._open()

    def _open(self) -> None:
        shared = _shared.get(self._options)
        if shared is None:
            options: dict[str, Any] = dict(self._options)
            shared = _shared.setdefault(self._options, Client(**options))
        self.client = shared
        self.keys: Namespace = shared.namespace(self.prefix)

    @cached_property
    def largest_bytes(self) -> int:
        """The number of bytes that the server takes as a value."""
        limit: int = self.client.info()["limits"]["max_value_bytes"]
        return limit - 5  # The header that msgpack puts before them.

    def __getstate__(self) -> tuple[Any, ...]:
        return self._options, self.prefix

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._options, self.prefix = state
        self._open()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Link) and self.__getstate__() == other.__getstate__()

    def __hash__(self) -> int:
        return hash(self.__getstate__())

    def __str__(self) -> str:
        return f"{self.client.endpoint}/{self.prefix}"


def in_url(url: str) -> tuple[str, str]:
    """Return endpoint and prefix of ``zkv://HOST:PORT/PREFIX``; the prefix may be empty.

    Raises:
        ValueError: it is something else.
    """
    scheme, _, rest = url.partition("://")
    place, _, prefix = rest.partition("/")
    if scheme != "zkv" or not place:
        raise ValueError(f"{url!r} is not a URL like zkv://127.0.0.1:5555/PREFIX")
    return f"tcp://{place}", prefix
