"""``zkv metrics``: serves the metrics of a server that does not serve them itself.

It sends INFO for each scrape, which needs the right to monitor. A server that does not answer is
not ready.

Exit status: 0 after SIGTERM or SIGINT; 2 wrong usage, or the address cannot be listened at.
"""

from __future__ import annotations

import argparse
import signal
from typing import Any

from zkv import figures
from zkv.cli.outcome import NOT_STARTED, announce
from zkv.client import Client, ClientError, RetryPolicy
from zkv.client.curve import given
from zkv.endpoint import check_option
from zkv.metrics import REFUSED
from zkv.metrics.endpoint import MetricsEndpoint
from zkv.streams import complain


class _Remote:
    """A server that is asked by a client; see `zkv.metrics.endpoint.Watched`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def info(self) -> dict[str, Any] | str:
        """See `zkv.metrics.endpoint.Watched`."""
        try:
            info = self._client.call("INFO")
        except ClientError as error:
            return str(error)
        return figures.hidden(info) or info

    def unready(self, for_write: bool) -> str:
        """Return why the server cannot answer, or take a write."""
        if for_write:
            info = self.info()
            if isinstance(info, str):
                return info
            return REFUSED if figures.READ_ONLY.of(info) is not None else ""
        try:
            self._client.call("PING")
        except ClientError as error:
            return str(error)
        return ""


def run(options: argparse.Namespace) -> int:
    """Serve until a signal ends it. Raises EndpointError."""
    try:
        endpoints = check_option(options.endpoint)
        policy = RetryPolicy(wait_for_start=False)
        client = Client(endpoints, options.timeout, retry=policy, **given(options))
    except ValueError as error:
        complain("zkv", str(error))
        return NOT_STARTED
    with client:
        endpoint = MetricsEndpoint(f"http://{options.listen}", "--listen", _Remote(client))
        signals = {signal.SIGTERM, signal.SIGINT}
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        try:
            announce(f"READY {endpoint.start()}\n")
            signal.sigwait(signals)
        finally:
            endpoint.close()
    return 0
