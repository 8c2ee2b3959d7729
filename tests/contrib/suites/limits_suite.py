"""`zkv.contrib.limits` beside limits' own tests, which run with `limits_plugin`."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import flask
import flask_limiter
import pytest
import slowapi
import slowapi.util
from limits import RateLimitItemPerMinute
from limits.errors import StorageError
from limits.storage import storage_from_string
from limits.strategies import (
    FixedWindowRateLimiter,
    MovingWindowRateLimiter,
    SlidingWindowCounterRateLimiter,
)
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

import zkv
import zkv.contrib.limits
from tests.docs.sessions import run_sessions
from tests.support import ServerProcess

STRATEGIES = [FixedWindowRateLimiter, MovingWindowRateLimiter, SlidingWindowCounterRateLimiter]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_together_get_no_more_than_the_limit(strategy: type, endpoint: str) -> None:
    uri = endpoint.replace("tcp", "zkv") + f"/{strategy.__name__}/"
    item = RateLimitItemPerMinute(25)
    allowed = []
    clock = time.time()
    if clock % 60 > 50:
        pytest.skip("NOT RUN: a minute is about to end, with which another window begins")

    def hit() -> None:
        limiter = strategy(storage_from_string(uri))
        allowed.extend(limiter.hit(item, "ann") for _ in range(10))

    threads = [threading.Thread(target=hit) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sum(allowed), len(allowed)) == (25, 60)


def test_counters_expire(endpoint: str) -> None:
    storage = storage_from_string(endpoint.replace("tcp", "zkv") + "/expiry/")
    for strategy in STRATEGIES:
        assert strategy(storage).hit(RateLimitItemPerMinute(5), "ann", cost=2)
    with zkv.Client(endpoint) as kv:
        lives = [kv.get_entry(key).ttl for key in kv if key.startswith("expiry/")]
    assert len(lives) == 3
    assert None not in lives


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_killed_server_allows_nothing(strategy: type, fragile: ServerProcess) -> None:
    uri = fragile.endpoint.replace("tcp", "zkv")
    limiter = strategy(storage_from_string(uri, wrap_exceptions=True, timeout=1))
    bare = strategy(storage_from_string(uri, timeout=1))
    item = RateLimitItemPerMinute(3, 100)
    assert limiter.hit(item, cost=2)
    fragile.kill()
    with pytest.raises(StorageError):
        limiter.hit(item)
    with pytest.raises(zkv.ClientError):
        bare.hit(item)
    assert not limiter.storage.check()
    fragile.start()
    assert [limiter.hit(item) for _ in range(2)] == [True, False]


def test_flask_limiter(endpoint: str) -> None:
    app = flask.Flask("site")
    uri = endpoint.replace("tcp", "zkv") + "/flask/"
    limiter = flask_limiter.Limiter(lambda: "ann", app=app, storage_uri=uri)

    @app.route("/")
    @limiter.limit("2 per day")
    def index() -> str:
        return "hello"

    assert [app.test_client().get("/").status_code for _ in range(3)] == [200, 200, 429]


def test_slowapi(fragile: ServerProcess) -> None:
    uri = fragile.endpoint.replace("tcp", "zkv") + "/slowapi/"
    limiter = slowapi.Limiter(slowapi.util.get_remote_address, storage_uri=uri)

    @limiter.limit("2 per day")
    async def index(request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    app = Starlette()
    app.add_route("/", index)
    app.state.limiter = limiter
    app.add_exception_handler(
        slowapi.errors.RateLimitExceeded, slowapi._rate_limit_exceeded_handler
    )
    site = TestClient(app)
    assert site.get("/").status_code == 200
    fragile.kill()
    with pytest.raises(zkv.ClientError):
        site.get("/")
    fragile.start()
    assert [site.get("/").status_code for _ in range(2)] == [200, 429]


def test_the_page_runs_as_shown(tmp_path: Path) -> None:
    run_sessions("docs/limits.md", tmp_path / "page")
