"""``python -m tests.conformance ENDPOINT``: does the server there keep the protocol?

It must have been started on an empty data directory, with default limits. Exit status: 0 if it
does, 1 if not, 2 if it cannot be asked.
"""

from __future__ import annotations

import argparse
import sys
import textwrap

from tests.conformance.runner import NotFreshError, run
from tests.conformance.vectors import GENERATED, LAST, generated, load
from tests.support import NoReplyError, Raw


def main() -> int:
    """Run one command and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("endpoint", nargs="?", help="such as tcp://127.0.0.1:5555")
    parser.add_argument("sequences", nargs="*", help="only these, such as keys or values")
    parser.add_argument("--end", action="store_true", help="also test END, which ends the server")
    parser.add_argument("--update", action="store_true", help="only write vectors.json anew")
    parser.add_argument("-v", "--verbose", action="store_true", help="name each case")
    options = parser.parse_args()
    if options.update:
        GENERATED.write_text(generated(), encoding="utf-8")
        return 0
    if options.endpoint is None:
        parser.error("an endpoint is needed")
    try:
        return check(options.endpoint, options.sequences, end=options.end, verbose=options.verbose)
    except (NotFreshError, NoReplyError) as error:
        print(f"{options.endpoint}: {error}", file=sys.stderr)
        return 2


def check(endpoint: str, names: list[str], *, end: bool, verbose: bool) -> int:
    """Check a server, tell what is wrong and return the exit status."""
    sequences = [
        sequence
        for sequence in load()
        if (end or sequence.name != LAST) and (not names or sequence.name in names)
    ]
    total = faults = 0
    with Raw(endpoint) as raw:
        for outcome in run(sequences, raw.exchange):
            total += 1
            faults += bool(outcome.fault)
            if verbose or outcome.fault:
                print(f"{outcome.sequence.name}: {outcome.case.name}", flush=True)
            if outcome.fault:
                print(textwrap.indent(outcome.fault, "    "))
    print(f"{total} cases, {faults} of them not as they should be")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
