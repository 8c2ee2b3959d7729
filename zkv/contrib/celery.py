"""A result backend for Celery (https://docs.celeryq.dev): ``zkv://HOST:PORT/PREFIX``.

Results, groups and the counters of chords are entries below the prefix (``celery/`` if it is
omitted), encoded by the serializer that Celery is configured for: JSON by default, and pickle only
where Celery is told so. They expire after ``result_expires``. Options of `zkv.Client`, such as
``timeout`` or ``key_file``, are in the setting ``result_backend_transport_options``.

If a request fails, a `zkv.ClientError` is raised, which Celery takes as one to retry if
``result_backend_always_retry`` is set.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from celery.backends.base import KeyValueStoreBackend
from celery.exceptions import ChordError, ImproperlyConfigured
from kombu.utils.encoding import bytes_to_str

from zkv.client import ClientError, NotFoundError
from zkv.contrib._link import Link, in_url
from zkv.contrib._requests import get_all


class ZkvBackend(KeyValueStoreBackend):
    """Results in a server; made by Celery.

    Args:
        url: ``zkv://HOST:PORT/PREFIX``.
        **options: those of Celery's backends.

    Raises:
        ImproperlyConfigured: the URL or an option is not allowed.
    """

    key_t = staticmethod(bytes_to_str)
    implements_incr = True
    supports_autoexpire = True
    supports_native_join = True
    supports_result_compression = True

    def __init__(self, url: str | None = None, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, url=url, **options)
        given = dict(self.app.conf.get("result_backend_transport_options") or {})
        given.pop("global_keyprefix", None)  # Celery's own.
        try:
            endpoint, prefix = in_url(url or "")
            self._keys = Link(endpoint, prefix or "celery/", **given).keys
        except (TypeError, ValueError) as error:
            raise ImproperlyConfigured(f"result_backend: {error}") from error

    def __reduce__(self, args: Any = (), kwargs: Any = None) -> Any:
        return super().__reduce__(args, {**(kwargs or {}), "url": self.url})

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        return isinstance(exc, ClientError)

    def wait_for_pending(self, result: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return super().wait_for_pending(result, *arguments, **options)
        except ChordError:  # It has only the text of the part's own error, which callers handle.
            result._maybe_reraise_parent_error()
            raise

    # The parts of nested groups count one by one, so a chord may have more than its header says.
    # Celery tells their number before it sends the last one.

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        self._keys.put(self._size_key(group_id), chord_size, ttl=self._lifetime)

    def on_chord_part_return(self, request: Any, state: Any, result: Any, **options: Any) -> None:
        if request.group and request.chord:
            request.chord["chord_size"] = self._keys.get(self._size_key(request.group), sys.maxsize)
        super().on_chord_part_return(request, state, result, **options)

    def _delete_group(self, group_id: str) -> None:
        self._keys.delete_many([self.get_key_for_group(group_id), self._size_key(group_id)])

    def _size_key(self, group_id: str) -> str:
        return f"{self.get_key_for_group(group_id)}.size"

    @property
    def _lifetime(self) -> Any:
        return self.expires or None

    def get(self, key: str) -> Any:
        return self._keys.get(key)

    def mget(self, keys: Sequence[str]) -> list[Any]:
        found = get_all(self._keys, keys)
        return [found.get(key) for key in keys]

    def set(self, key: str, value: str | bytes) -> None:
        self._keys.put(key, value, ttl=self._lifetime)

    def delete(self, key: str) -> None:
        self._keys.delete(key)

    def incr(self, key: str) -> int:
        return self._keys.incr(key)

    def expire(self, key: str, value: float | None) -> None:
        try:
            self._keys.touch(key, value or None)
        except NotFoundError:
            pass
