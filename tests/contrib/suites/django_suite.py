"""Django's own tests of caches, and of sessions in a cache, with `zkv.contrib.django.ZkvCache`."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import threading
import warnings
from pathlib import Path
from typing import Any

import django
import pytest
from django.conf import settings

BACKEND = "zkv.contrib.django.ZkvCache"

settings.configure(
    CACHES={"default": {"BACKEND": BACKEND, "OPTIONS": {"prefix": "sessions/"}}},
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=["cache", "sessions_tests", "django.contrib.sessions"],
    MIDDLEWARE=[],
    SECRET_KEY="for tests",
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
    USE_TZ=False,
)
django.setup()

from cache.tests import BaseCacheTests, caches_setting_for_tests
from django.core.cache import caches
from django.core.cache.backends.base import InvalidCacheBackendError
from django.core.exceptions import ImproperlyConfigured
from django.test import TestCase, override_settings
from django.test.utils import setup_databases, setup_test_environment

# Sessions in a cache are tested by a class that is not to be collected from here a second time.
from sessions_tests import tests as of_sessions

import zkv
from tests.docs.sessions import run_sessions
from tests.support import ServerProcess
from zkv.contrib.django import ZkvCache


@pytest.fixture(scope="session", autouse=True)
def environment() -> None:
    setup_test_environment()
    setup_databases(verbosity=0, interactive=False)


@override_settings(
    CACHES=caches_setting_for_tests(base={"BACKEND": BACKEND}, exclude={"cull", "zero_cull"})
)
class TestCache(BaseCacheTests, TestCase):  # type: ignore[misc]
    pass


class TestSessions(of_sessions.CacheSessionTests):  # type: ignore[misc]
    pass


def make(server: ServerProcess | None = None, **options: Any) -> ZkvCache:
    return ZkvCache(server.endpoint if server else "", {"OPTIONS": options, "TIMEOUT": 60})


def test_clear_stays_below_the_prefix(endpoint: str) -> None:
    with zkv.Client(endpoint) as kv:
        kv.update({"pref": 1, "prefix": 2, "prefix/x": 3})
        mine, other = make(prefix="prefix/"), make(prefix="prefix")
        mine.set("a", 1)
        mine.clear()
        assert kv.get_many(["pref", "prefix", "prefix/x"]) == {"pref": 1, "prefix": 2}
        other.clear()
        assert kv.pop("pref") == 1


def test_a_count_is_of_all_threads() -> None:
    cache = make()
    cache.set("n", 0, timeout=1000)
    cache.set("f", 0.0, timeout=1000)

    def count() -> None:
        mine = make()
        for _ in range(20):
            mine.incr("n")
            asyncio.run(mine.aincr("f", 0.5))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (cache.get("n"), cache.get("f")) == (80, 40.0)
    with pytest.raises(ValueError, match="absent"):
        cache.incr("absent")


def test_many_keys_take_few_requests(endpoint: str) -> None:
    cache = make(prefix="many/")
    assert cache.set_many({f"k{n}": n for n in range(25_000)}) == []
    found = cache.get_many([f"k{n}" for n in range(30_000)])
    assert len(found) == 25_000
    assert found["k24999"] == 24_999
    cache.delete_many(found)
    with zkv.Client(endpoint) as kv:
        assert kv.count("many/") == 0


def test_a_cache_of_large_values_takes_them_one_by_one() -> None:
    cache = make(prefix="large/", timeout=30)
    large = {f"k{n}": bytes(9_000_000) for n in range(9)}
    cache.set_many(large)
    assert cache.get_many(large) == large
    cache.clear()


def test_threads_leave_nothing_open(endpoint: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        threads = [
            threading.Thread(target=lambda: caches["default"].set("a", 1)) for _ in range(30)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        del threads, thread
        gc.collect()
    assert [each for each in caught if each.category is ResourceWarning] == []
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        thread = threading.Thread(target=lambda: caches["default"].get("a"))
        thread.start()
        thread.join()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_options_are_checked() -> None:
    for options in ({"prefx": "a"}, {"timeout": -1}, {"server_key": "no key"}):
        with pytest.raises(ImproperlyConfigured, match=next(iter(options))):
            make(**options)
    with pytest.raises(ImproperlyConfigured, match="endpoint"):
        ZkvCache("nonsense", {})
    assert issubclass(InvalidCacheBackendError, ImproperlyConfigured)


def test_a_forked_child_has_its_own_connection() -> None:
    cache = make()
    cache.set("a", "of the parent")
    child = os.fork()
    if not child:
        os._exit(0 if cache.get("a") == "of the parent" and cache.add("b", 1) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert cache.get("b") == 1


def test_only_what_needs_it_is_pickled(endpoint: str) -> None:
    cache = make(prefix="kinds/")
    values = ["text", b"bytes", 7, 2**70, 1.5, True, None, "\ud800", (1, 2), {"a": {1}}]
    cache.set_many({str(n): value for n, value in enumerate(values)})
    assert list(cache.get_many(map(str, range(len(values)))).values()) == values
    with zkv.Client(endpoint) as kv:
        stored = {key.rpartition(":")[2]: value for key, value in kv.items() if "kinds" in key}
    assert [stored[str(n)] for n in (0, 1, 2, 4, 5, 6)] == ["text", b"bytes", 7, 1.5, True, None]
    assert pickle.loads(stored["8"].data) == (1, 2)


def test_a_killed_server_is_no_empty_cache(fragile: ServerProcess) -> None:
    cache = make(fragile, timeout=1)
    cache.set("a", 1)
    fragile.kill()
    for call in (
        lambda: cache.get("a"), lambda: cache.set("a", 2), lambda: cache.add("a", 2),
        lambda: cache.incr("a"), lambda: cache.get_many(["a"]), lambda: cache.has_key("a"),
        lambda: cache.delete("a"), lambda: cache.touch("a"), cache.clear,
    ):  # fmt: skip
        with pytest.raises(zkv.ClientError):
            call()
    fragile.start()
    assert cache.get("a") == 1


def test_the_page_runs_as_shown(tmp_path: Path) -> None:
    run_sessions("docs/django.md", tmp_path / "page")
