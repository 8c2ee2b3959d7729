"""The connection to another server that the options of a command describe."""

from __future__ import annotations

import argparse

from zkv.broker.upstream import Upstream
from zkv.client.curve import KEY_FILE, SERVER_KEY, CurveKeys, given
from zkv.errors import ConfigError


def upstream(options: argparse.Namespace, endpoints: list[str]) -> Upstream:
    """Return the connection, with the keys of the options. Raises ConfigError."""
    try:
        named = {"server_key": SERVER_KEY, "key_file": KEY_FILE} | given(options)
        keys = CurveKeys(**named)
        for endpoint in endpoints:
            keys.of(endpoint)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return Upstream(endpoints, keys.servers, keys.file)
