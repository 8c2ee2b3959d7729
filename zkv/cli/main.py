"""``zkv``: runs the server, or another verb: each has a module of its own, see `zkv.cli.verbs`.

Exit status of ``zkv serve``: 0 after END, SIGTERM or SIGINT if everything was saved; 1 if not; 2 if
the server did not start.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from zkv import __version__
from zkv.cli.outcome import NOT_STARTED
from zkv.cli.verbs import (
    add_config,
    add_data_verbs,
    add_doctor,
    add_follow,
    add_keygen,
    add_metrics,
    add_promote,
    add_serve,
    add_size,
    add_store,
    add_user,
    add_web,
)
from zkv.errors import StartupError
from zkv.keys import joined
from zkv.streams import complain, guarded


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
    add_serve(verbs)
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
