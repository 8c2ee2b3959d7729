"""cachelib's own tests, with `zkv.contrib.cachelib.ZkvCache` in the place of its cache of Redis."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import flask
import flask_caching
import flask_session
import pytest
from clear import ClearTests
from common import CommonTests
from delete_many_with_prefix import DeleteManyWithPrefixTests
from has import HasTests
from serializer import SerializerTests

import zkv
from tests.docs.sessions import run_sessions
from tests.support import ServerProcess
from zkv.contrib.cachelib import ZkvCache, ZkvSerializer


class CountingSerializer(ZkvSerializer):
    """Another serializer than the default one."""

    def dumps(self, value: Any, protocol: int = 0) -> Any:
        return value if type(value) is int else pickle.dumps(value)

    def loads(self, bvalue: Any) -> Any:
        return pickle.loads(bvalue) if type(bvalue) is bytes else bvalue


class CustomCache(ZkvCache):
    serializer = CountingSerializer()


@pytest.fixture(autouse=True, params=[ZkvCache, CustomCache])
def cache_factory(request: pytest.FixtureRequest) -> None:
    def make(self: object, *arguments: Any, **keywords: Any) -> ZkvCache:
        cache: ZkvCache = request.param(None, *arguments, **keywords)
        cache._keys.clear()
        return cache

    if request.cls is not None:
        request.cls.cache_factory = make


class TestZkvCache(CommonTests, ClearTests, HasTests, DeleteManyWithPrefixTests, SerializerTests):
    pass


def test_a_killed_server_is_no_empty_cache(fragile: ServerProcess) -> None:
    cache = ZkvCache(fragile.endpoint, timeout=1)
    assert cache.set("a", [1])
    assert cache.add("b", {"x": 1})
    fragile.kill()
    assert not cache.set("a", [2])
    assert cache.set_many({"a": 2}) == []
    assert cache.inc("n") is None
    assert not cache.delete("a")
    with pytest.raises(zkv.ClientError):
        cache.get("a")
    with pytest.raises(zkv.ClientError):
        cache.has("a")
    fragile.start()
    assert cache.get_many("a", "b", "n") == [[1], {"x": 1}, None]


def test_flask_session_and_flask_caching() -> None:
    cache = ZkvCache(None, key_prefix="session/")
    cache.clear()
    app = flask.Flask("site")
    app.config.update(
        SESSION_TYPE="cachelib", SESSION_CACHELIB=cache, CACHE_DEFAULT_TIMEOUT=60,
        CACHE_TYPE="zkv.contrib.cachelib.ZkvCache", CACHE_OPTIONS={"key_prefix": "pages/"},
    )  # fmt: skip
    flask_session.Session(app)
    pages = flask_caching.Cache(app)
    made = []

    @app.route("/")
    def visits() -> str:
        flask.session["visits"] = flask.session.get("visits", 0) + 1
        return f"{flask.session['visits']} {page()}"

    @pages.cached(key_prefix="page")
    def page() -> str:
        made.append(1)
        return f"page {len(made)}"

    pages.clear()
    ann, bob = app.test_client(), app.test_client()
    assert [each.get("/").text for each in (ann, ann, bob)] == ["1 page 1", "2 page 1", "1 page 1"]
    assert len(cache._keys) == 2
    cache.clear()
    assert ann.get("/").text == "1 page 1"


def test_the_page_runs_as_shown(tmp_path: Path) -> None:
    run_sessions("docs/cachelib.md", tmp_path / "page")
