"""The settings of ``zkv serve``: from a file, the environment and flags."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, Final

from zkv import config

FLAGS: Final = {
    "--endpoint": "server.endpoints",
    "--feed": "server.feed",
    "--data-dir": "durability.data_dir",
    "--fsync": "durability.fsync",
    "--workers": "server.workers",
    "--store": "store.url",
    "--member": "store.member",
}
"""Flag -> full name of its setting."""
BESIDE: Final = "tcp://127.0.0.1:*"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for settings to the parser of a command."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings; see config.toml")
    parser.add_argument(
        "--endpoint", action="append", metavar="E",
        help="where to listen: tcp://HOST:PORT (* = a free port) or ipc://PATH; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--feed", metavar="E",
        help="where to publish changes; empty = nowhere; default with --endpoint: a free port",
    )  # fmt: skip
    parser.add_argument("--data-dir", metavar="DIR", help="the data directory")
    parser.add_argument(
        "--fsync", choices=("always", "interval", "never"), help="when writes are made durable"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="the number of worker threads")
    parser.add_argument(
        "--store", metavar="URL",
        help="the store in etcd: etcd://HOST:PORT,HOST:PORT/PREFIX; empty = in the data directory",
    )  # fmt: skip
    parser.add_argument("--member", metavar="NAME", help="the name of this member of that store")


def given_flags(options: argparse.Namespace) -> dict[str, Any]:
    """Return the flags of `add_flags` that are given, and their values."""
    values = {flag: getattr(options, flag[2:].replace("-", "_")) for flag in ("--config", *FLAGS)}
    return {flag: value for flag, value in values.items() if value is not None}


def read_settings(options: argparse.Namespace) -> config.MergedSettings:
    """Read the settings of a command with `add_flags`. Raises ConfigError."""
    given = given_flags(options)
    file = _from_file(given.pop("--config", None))
    environment = config.from_environment(os.environ)
    flags = config.Layer()
    for flag, value in given.items():
        flags.add(FLAGS[flag], value, flag)
    feed = (file.given | environment.given).get("server.feed")
    if "--endpoint" in given and "--feed" not in given and (feed is None or feed.value):
        # A second server must not use the feed port of the configured one.
        flags.add(FLAGS["--feed"], BESIDE, "--endpoint")
    return config.merge(file, environment, flags)


def read_file_and_environment(file: Path | None) -> config.Settings:
    """Read the settings of a command without `add_flags`. Raises ConfigError.

    Args:
        file: the file of settings; None = none.
    """
    return config.merge(_from_file(file), config.from_environment(os.environ)).settings


def _from_file(file: Path | None) -> config.Layer:
    return config.Layer() if file is None else config.from_file(file)
