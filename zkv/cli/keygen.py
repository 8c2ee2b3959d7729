"""``zkv keygen``: makes a key pair, for a server or for a client.

Exit status: 0 done; 2 wrong usage, or the file exists or cannot be written.
"""

from __future__ import annotations

import argparse

from zkv.cli.values import to_bytes
from zkv.keys import make_key_file
from zkv.streams import write


def run(options: argparse.Namespace) -> int:
    """Write the secret key to a file, and print the public one. Raises ConfigError."""
    write(to_bytes(make_key_file(options.file)))
    return 0
