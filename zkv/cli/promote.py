"""``zkv promote``: has a standby take over. It asks that one server, once, and no other."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any, Final

from zkv.cli.outcome import FAILED, NOT_STARTED
from zkv.cli.upstream import upstream
from zkv.endpoint import check_option
from zkv.replication.stream import StreamError
from zkv.streams import complain

MORE_SECONDS: Final = 30.0
"""A promotion may take so much longer than an answer: the standby catches up first."""


def run(options: argparse.Namespace) -> int:
    """Promote a standby; return the exit status: 1 if it is a standby as before.

    Raises ConfigError.
    """
    endpoints = check_option(options.endpoint)
    if len(endpoints) > 1:
        complain("zkv", "promote takes the endpoint of one server, which then leads")
        return NOT_STARTED
    request = {"op": "PROMOTE", "force": options.force}
    with contextlib.closing(upstream(options, endpoints)) as server:
        try:
            reply = server.ask(request, options.timeout + MORE_SECONDS)
        except StreamError as error:
            complain("zkv", f"{error}; it may lead nevertheless: see INFO")
            return FAILED
    return _tell(endpoints[0], reply)


def _tell(endpoint: str, reply: dict[str, Any]) -> int:
    if reply.get("ok") is not True:
        complain("zkv", f"{endpoint}: {reply.get('code')}: {reply.get('message')}")
        return FAILED
    print(f"{endpoint} leads: term {reply['term']}, from revision {reply['rev']} on")
    return 0
