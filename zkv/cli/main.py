"""``zkv``: runs the server. The other verbs are in modules of their own: see `zkv.cli.verbs`.

Exit status of ``zkv serve``: 0 after END, SIGTERM or SIGINT if everything was saved; 1 if not; 2 if
the server did not start.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from zkv import __version__
from zkv.cli.serving import LEADER, NOT_STARTED, serve
from zkv.cli.settings import add_flags
from zkv.cli.verbs import (
    add_config,
    add_data_verbs,
    add_doctor,
    add_follow,
    add_keygen,
    add_metrics,
    add_promote,
    add_size,
    add_store,
    add_user,
    add_web,
)
from zkv.errors import StartupError
from zkv.keys import joined
from zkv.streams import complain, guarded

SIGNALS = (
    "Signals: SIGTERM or SIGINT saves everything and stops the server, a second one kills it; "
    "SIGHUP reopens the log file and reads the settings again; SIGUSR1 writes the stack of each "
    "thread to the log."
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return guarded("zkv", NOT_STARTED, lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    options = _parser().parse_args(joined(sys.argv[1:] if arguments is None else arguments))
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except StartupError as error:
        complain("zkv", str(error))
        return NOT_STARTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zkv", description="A key-value store that speaks msgpack over ZeroMQ."
    )
    parser.add_argument("--version", action="version", version=f"zkv {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    run = verbs.add_parser(
        "serve", help="run a server", description="Run a server.", epilog=SIGNALS
    )
    add_flags(run)
    run.add_argument(
        "--wait", choices=(LEADER,), default="",
        help="print READY only once a member leads the store: this one, or one that it follows",
    )  # fmt: skip
    run.set_defaults(run=serve)
    add_follow(verbs)
    add_promote(verbs)
    add_store(verbs)
    add_config(verbs)
    add_keygen(verbs)
    add_user(verbs)
    add_doctor(verbs)
    add_metrics(verbs)
    add_size(verbs)
    add_web(verbs)
    add_data_verbs(verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
