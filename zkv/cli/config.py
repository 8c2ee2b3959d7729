"""``zkv config``: shows the settings that ``zkv serve`` would use, and checks files of settings.

Exit status: 0 done, or the file is good; 1 the file is bad; 2 the settings are bad, or wrong usage.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from zkv import config
from zkv.cli.settings import given_flags, read_settings
from zkv.cli.values import to_bytes
from zkv.errors import ConfigError
from zkv.streams import complain, write

BAD = 1


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status. Raises ConfigError."""
    if options.file is not None:
        if given := given_flags(options):
            raise ConfigError(f"config check takes a file only, not {', '.join(given)}")
        return _check(options.file)
    write(to_bytes(config.toml_file(read_settings(options))))
    return 0


def _check(path: Path) -> int:
    faults = _faults(path)
    for fault in faults:
        complain("zkv", fault)
    if faults:
        return BAD
    write(to_bytes(f"{path}: good"))
    return 0


def _faults(path: Path) -> list[str]:
    """Return what is wrong with a file: all settings at fault, or else how they relate."""
    try:
        layer = config.from_file(path)
        if not layer.faults:
            config.merge(layer)
    except ConfigError as error:
        return [str(error)]
    return layer.faults
