"""A wrong setting or field is told with its place, what it may be, and what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgpack import ExtType

from tests.support import Raw
from zkv import config
from zkv.errors import ConfigError

SETTINGS = {
    '[server]\nendpoints = "tcp://127.0.0.1:1"\n': (
        'server.endpoints: expected a list with at least one text, such as ["tcp://127.0.0.1:5555"]'
        ', got "tcp://127.0.0.1:1"'
    ),
    "[server]\nendpoints = []\n": 'such as ["tcp://127.0.0.1:5555"], got []',
    "[server]\nendpoints = [5]\n": 'server.endpoints[0]: expected text in quotes, such as "tcp://',
    "[server]\nfeed = 5556\n": (
        'server.feed: expected text in quotes, such as "tcp://127.0.0.1:5556", got 5556'
    ),
    '[server]\nworkers = "2"\n': ('server.workers: expected a whole number from 1 to 256, got "2"'),
    "[server]\nworkers = 0\n": "expected a whole number from 1 to 256, got 0",
    "[server]\nworkers = true\n": "expected a whole number from 1 to 256, got true",
    "[server]\nworker = 2\n": "server: unknown setting 'worker'; did you mean workers?",
    "[server]\nxyz = 2\n": "unknown setting 'xyz'; there are endpoints, feed, ipc_mode, workers",
    "workers = 2\n": "unknown setting 'workers': it belongs into the table [server]",
    "[serverx]\n": "unknown setting 'serverx'; did you mean server?",
    "server = 3\n": "server: expected a table, that is, a line [server] with its settings below",
    '[log]\nlevel = "LOUD"\n': (
        'log.level: expected one of "DEBUG", "INFO", "WARNING", "ERROR", got "LOUD"'
    ),
    '[log]\nformat = "xml"\n': 'expected one of "text", "json", got "xml"',
    '[log]\nrequests = "yes"\n': 'log.requests: expected true or false, got "yes"',
    '[durability]\nfsync = "everysec"\n': (
        'durability.fsync: expected one of "always", "interval", "never", got "everysec"'
    ),
    "[durability]\nfsync = 1\n": 'expected one of "always", "interval", "never", got 1',
    '[durability]\nfsync_interval = "5s"\n': (
        "durability.fsync_interval: expected a number of seconds above 0, 31536000 at most, "
        'got "5s"'
    ),
    "[durability]\nsnapshot_interval = nan\n": "expected a number of seconds above 0",
    '[durability]\ndata_dir = ""\n': 'expected text that is not empty, such as "var", got ""',
    "[limits]\nhistory = -1\n": "limits.history: expected a whole number from 0 to",
    f'[log]\nlevel = "{"x" * 1000}"\n': f'got "{"x" * 59}...',
    "[durability]\nfsync = 2026-01-01\n": 'got "2026-01-01"',
}


@pytest.mark.parametrize(("text", "why"), SETTINGS.items())
def test_a_bad_setting(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)

    with pytest.raises(ConfigError) as raised:
        config.merge(config.from_file(path))

    message = str(raised.value)
    number = 2 if "\n" in text.rstrip() else 1
    assert message.startswith(f"{path}:{number}: ")
    assert why in message
    assert "`" not in message


def test_every_setting_says_what_it_may_be(tmp_path: Path) -> None:
    """A list of a table is nothing that any of them takes."""
    for full_name in config.SETTINGS:
        table, _, name = full_name.rpartition(".")
        path = tmp_path / "config.toml"
        path.write_text(f"[{table}]\n{name} = [{{}}]\n")
        with pytest.raises(ConfigError) as raised:
            config.merge(config.from_file(path))
        assert full_name in str(raised.value)
        assert "expected" in str(raised.value)
        assert "got" in str(raised.value)


PUT = {"op": "PUT", "key": "k", "value": 1}
GET = {"op": "GET", "key": "k"}


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ({"op": "GET", "key": 7}, "GET: field `key`: expected str, got 7 (int)"),
        ({"op": "GET", "key": None}, "GET: field `key`: expected str, got nil"),
        ({"op": "GET"}, "GET: missing field `key`"),
        (GET | {"kye": 1}, "GET: unknown field `kye`; GET takes `key`, `stale`, `min_rev`"),
        (GET | {"x" * 5000: 1}, f"GET: unknown field `{'x' * 59}...`; GET takes `key`, "),
        ({"op": "PING", "x": 1}, "PING: unknown field `x`; PING takes no fields of its own"),
        (PUT | {"x": 1}, "PUT takes `key`, `value`, `ttl`, `if_rev`, `prev`"),
        (PUT | {"ttl": 0}, "PUT: field `ttl`: expected number > 0, got 0 (int)"),
        (PUT | {"ttl": "5s"}, "PUT: field `ttl`: expected number or nil, got '5s' (str)"),
        (PUT | {"if_rev": -1}, "PUT: field `if_rev`: expected int >= 0, got -1 (int)"),
        (PUT | {"prev": 1}, "PUT: field `prev`: expected bool, got 1 (int)"),
        (PUT | {"seq": 0, "session": "s"}, "field `seq`: expected int >= 1, got 0 (int)"),
        (PUT | {"session": "x" * 70, "seq": 1}, "`session`: expected str of length <= 64, got 'xx"),
        (PUT | {"durable": "yes"}, "field `durable`: expected bool, got 'yes' (str)"),
        (PUT | {"deadline": 1.5}, "field `deadline`: expected int or nil, got 1.5 (float)"),
        ({"op": "INCR", "key": "k", "by": 2**63}, f"expected int <= {2**63 - 1}, got {2**63}"),
        ({"op": "INCR", "key": "k", "by": ExtType(5, b"")}, "expected int, got ext"),
        ({"op": "INCR", "key": "k", "by": b"xy"}, "expected int, got bin of 2 bytes"),
        ({"op": "INCR", "key": "k", "by": {}}, "expected int, got map of 0"),
        ({"op": "MGET", "keys": "k"}, "field `keys`: expected array, got 'k' (str)"),
        ({"op": "MGET", "keys": ["k", 5]}, "field `keys[1]`: expected str, got 5 (int)"),
        ({"op": "MPUT", "items": [1]}, "field `items`: expected map, got array of 1"),
        ({"op": "SCAN", "limit": 0}, "field `limit`: expected int >= 1, got 0 (int)"),
        ({"op": "TXN", "ops": [1]}, "TXN: field `ops[0]`: expected map, got 1 (int)"),
        (
            {"op": "TXN", "ops": [GET, GET | {"kye": 1}]},
            "TXN: unknown field `kye` in field `ops[1]`; GET takes `key`",
        ),
        (
            {"op": "TXN", "ops": [{"op": "PING"}]},
            "`ops[0].op`: expected one of PUT, GET, DELETE, TOUCH, INCR, got 'PING' (str)",
        ),
        (
            {"op": "TXN", "ops": [PUT | {"ttl": -1}]},
            "TXN: field `ops[0].ttl`: expected number > 0, got -1 (int)",
        ),
        (
            {"op": "TXN", "ops": [], "if": [["k", -1]]},
            "TXN: field `if[0][1]`: expected int >= 0, got -1 (int)",
        ),
        ({"op": "TXN", "ops": [], "if": [["k"]]}, "expected array of length 2, got array of 1"),
        ({"op": "SET", "key": "k"}, "no such op: 'SET'; there are PING, GET, PUT, DELETE, TOUCH"),
        ({"op": "put", "key": "k"}, "no such op: 'put'; did you mean PUT?"),
    ],
    ids=lambda part: repr(part)[:60] if isinstance(part, dict) else "",
)
def test_a_bad_request(client: Raw, request_: dict[str, Any], why: str) -> None:
    failed = client.call(**request_)

    assert failed["ok"] is False
    assert why in failed["message"]
