"""``zkv``: runs the server.

Exit status: 0 after END, SIGTERM or SIGINT with everything saved; 1 where something was not; 2
where the server did not start.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any

from zkv import __version__, config
from zkv.errors import StartupError
from zkv.log import Log
from zkv.server import Event, Server

FAILED = 1
NOT_STARTED = 2


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return serve(options)
    except StartupError as error:
        print(f"zkv: {error}", file=sys.stderr)
        return NOT_STARTED


def serve(options: argparse.Namespace) -> int:
    """Run a server until it is told to stop. Raises StartupError."""
    settings = _settings(options)
    log = Log(settings.log)
    log.start()
    try:
        server = Server(settings, log.write_requests if log.requests else None, log.reopen)
        server.start()
        _handle_signals(server)
        print("READY", *server.endpoints, flush=True)
        return 0 if server.wait() else FAILED
    finally:
        log.close()


def _settings(options: argparse.Namespace) -> config.Settings:
    settings = config.load(options.config) if options.config else config.Settings()
    server: dict[str, Any] = {"endpoints": options.endpoint, "workers": options.workers}
    durability: dict[str, Any] = {"data_dir": options.data_dir, "fsync": options.fsync}
    return config.override(settings, server=_given(server), durability=_given(durability))


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None}


def _handle_signals(server: Server) -> None:
    """First SIGTERM or SIGINT: an orderly stop. Second: the end, now. SIGHUP: a new log file."""

    def stop(number: int, _frame: object) -> None:
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signal_number, lambda number, _frame: os._exit(128 + number))
        server.post(Event.STOP)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGHUP, lambda _number, _frame: server.post(Event.REOPEN_LOG))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zkv", description="A key-value store that speaks msgpack over ZeroMQ."
    )
    parser.add_argument("--version", action="version", version=f"zkv {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    run = verbs.add_parser("serve", help="run a server", description="Run a server.")
    run.add_argument("--config", type=Path, metavar="FILE", help="settings; see config.toml")
    run.add_argument(
        "--endpoint", action="append", metavar="E",
        help="where to listen: tcp://HOST:PORT (* = a free port) or ipc://PATH; may be repeated",
    )  # fmt: skip
    run.add_argument("--data-dir", metavar="DIR", help="where data is kept")
    run.add_argument(
        "--fsync", choices=("always", "interval", "never"), help="when writes are made durable"
    )
    run.add_argument("--workers", type=int, metavar="N", help="how many worker threads")
    return parser


if __name__ == "__main__":
    sys.exit(main())
