"""``zkv archive``: follows a server into an archive, until a signal stops it.

Exit status: 0 after SIGTERM or SIGINT; 1 if the end could not be put on disk then; 2 if the command
could not start.
"""

from __future__ import annotations

import argparse
import logging
import signal
import threading
from contextlib import closing
from typing import TYPE_CHECKING

from zkv.cli.outcome import FAILED, announce
from zkv.cli.upstream import upstream
from zkv.durability.archive import Archive
from zkv.durability.files import Files
from zkv.replication.archiver import Archiver
from zkv.replication.place import new_member
from zkv.streams import complain
from zkv.system import raise_file_limit

if TYPE_CHECKING:
    from types import FrameType


def run(options: argparse.Namespace) -> int:
    """Archive until a signal; return the exit status. Raises StartupError."""
    raise_file_limit()
    _log_to_standard_error()
    files = Files()
    with (
        closing(upstream(options, options.primary)) as source,
        closing(Archive(files, options.archive, new_member())) as archive,
    ):
        keep = None if options.keep is None else round(options.keep * 1000)
        archiver = Archiver(
            files, archive, source, keep, lambda: announce(f"READY {source.endpoint}\n")
        )
        _stop_on_signals(archiver)
        try:
            archiver.run()
        except OSError as error:
            place = error.filename or options.archive
            complain("zkv", f"{place}: {error.strerror or error}")
            return FAILED
    return 0


def _stop_on_signals(archiver: Archiver) -> None:
    def stop(_number: int, _frame: FrameType | None) -> None:
        # In a thread of its own, since this one may hold a lock that is needed for it.
        threading.Thread(target=archiver.stop).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _log_to_standard_error() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s zkv: %(message)s"))
    log = logging.getLogger("zkv")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
