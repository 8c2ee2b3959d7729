"""The command line of ``zkv-bench``.

Exit status: 0 done; 1 a wrong answer with ``--verify``; 2 wrong usage, or the run failed.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from zkv import __version__, durations, keys
from zkv.bench import generator, measure, plot, result, show
from zkv.bench.connections import BenchError
from zkv.bench.generator import LoadJob, LoadTarget
from zkv.bench.keys import DISTRIBUTIONS
from zkv.bench.result import Result
from zkv.bench.servers import POLICIES, TRANSPORTS, Running
from zkv.bench.workload import YCSB, Workload
from zkv.client.curve import KEY_FILE, SERVER_KEY, CurveKeys, given
from zkv.defaults import DEFAULT_ENDPOINT
from zkv.endpoint import check_option, listed, named_by_environment
from zkv.streams import complain, guarded, say

WRONG: Final = 1
NOT_DONE: Final = 2
COMMANDS: Final = ("run", "sweep", "compare")

PLAIN_FIELDS: Final = ("value_bytes", "reads", "batch", "distribution")
FIELDS_OF_YCSB: Final = ("fields", "field_bytes")
LONGEST: Final = 31_536_000
"""The longest duration, in seconds."""
MOST_BYTES: Final = 48 * 1024 * 1024
"""The most bytes in one request: with default settings a server accepts not much more."""
LIMITS: Final = {
    "processes": (1, 1_024),
    "clients": (1, 65_536),
    "pipeline": (1, 65_536),
    "operations": (1, 2**62),
    "duration": (1e-6, LONGEST),
    "timeout": (1e-6, LONGEST),
    "ceiling": (1e-6, LONGEST),
    "rate": (1e-6, 1e9),
    "seed": (-(2**63), 2**63),
    "keys": (1, 10**12 - 1),  # Their names have twelve digits.
}
PRODUCTS: Final = {
    ("clients", "pipeline"): 1_000_000,
    ("batch", "value_bytes"): MOST_BYTES,
    ("fields", "field_bytes"): MOST_BYTES,
}
NOT_VERIFIED: Final = ("keys", "reads", "batch", "distribution", "ycsb", *FIELDS_OF_YCSB)
"""Options that do not apply to ``--verify``."""

EPILOG: Final = f"""\
commands:
  run      measure a server; the default command
  sweep    measure it at rising rates, and find the highest that it can serve
  compare  compare two results of --json
  zkv-bench COMMAND --help describes a command.

YCSB's core workloads:
{show.ycsb_list()}

examples:
  zkv-bench                                  50 lock-step clients for 10 s, half GET half PUT
  zkv-bench --pipeline 16 --processes 2      16 requests in flight on each of 50 connections
  zkv-bench --rate 5000 --plot five.svg      open loop: latencies at a fixed rate
  zkv-bench --ycsb b --keys 100000           a core workload of YCSB
  zkv-bench --start tcp --fsync never        start a server in a temporary directory
  zkv-bench --verify                         check every answer
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return guarded("zkv-bench", NOT_DONE, lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    words = keys.joined(sys.argv[1:] if arguments is None else arguments)
    command, words = (words[0], words[1:]) if words[:1] and words[0] in COMMANDS else ("", words)
    try:
        return _command(command)(words)
    except BenchError as error:
        complain("zkv-bench", str(error))
        return NOT_DONE


def _command(name: str) -> Callable[[list[str]], int]:
    return {"compare": _compare, "sweep": _sweep}.get(name, _run)


class Parser(argparse.ArgumentParser):
    """Reports errors in one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit."""
        self.exit(NOT_DONE, f"{self.prog}: {message}; see {self.prog} --help\n")


def _run(words: list[str]) -> int:
    parser = Parser(
        prog="zkv-bench",
        usage="zkv-bench [COMMAND] [OPTION ...]",
        description="Measure a zkv server. All keys that this program writes begin with bench:",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"zkv-bench {__version__}")
    _add_options(parser)
    parser.add_argument(
        "--rate", type=_positive_float, default=0.0, metavar="R",
        help="open loop: R operations per second, latencies counted from when each was due; "
        "default: closed loop, as fast as the server answers",
    )  # fmt: skip
    parser.add_argument(
        "--verify", action="store_true",
        help="check every answer: reads see writes, counters are exact, revisions increase; "
        "exit status 1 after a wrong answer",
    )  # fmt: skip
    options = parser.parse_args(words)
    _check(parser, options)
    with measure.target(_target(options), options.start, options.fsync or "always") as running:
        job = _job(options, running, rate=options.rate)
        if options.verify:
            job = msgspec.structs.replace(job, verify=result.unique_name())
        if not _load(options, job):
            return 0
        made = _measure(options, running, job, options.name)
    _save(options, made)
    if options.plot:
        plot.runs([made], options.plot)
    say(show.render(made))
    return WRONG if made.wrong_count else 0


def _sweep(words: list[str]) -> int:
    from zkv.bench import sweep

    parser = Parser(
        prog="zkv-bench sweep",
        usage="zkv-bench sweep [OPTION ...]",
        description="Measure at rising rates, open loop, and find the highest that is served: the "
        f"saturation point. A rate is served if at least {sweep.SERVED:.0%} of the operations due "
        f"by the end could be sent by then, in one of {sweep.TRIES} attempts.",
        allow_abbrev=False,
    )
    _add_options(parser)
    parser.add_argument(
        "--rates",
        type=_rates,
        metavar="R,R,...",
        help="the rates; default: from a tenth of a closed loop's rate up to one not served",
    )
    options = parser.parse_args(words)
    _check(parser, options)
    with measure.target(_target(options), options.start, options.fsync or "always") as running:
        job = _job(options, running)
        if not _load(options, job):
            return 0
        results = sweep.sweep(
            job, options.rates,
            lambda job, name: _measure(options, running, job, name),
        )  # fmt: skip
    if options.json:
        result.save(sweep.Sweep(results), options.json)
    if options.csv:
        for each in results:
            show.write_csv(each, options.csv)
    if options.plot:
        plot.sweep(results, options.plot)
    say(sweep.render(results))
    return 0


def _compare(words: list[str]) -> int:
    parser = Parser(
        prog="zkv-bench compare",
        description="Compare two results of --json. The comparison means little unless both come "
        "from the same machine at about the same time; better repeat both several times in turn.",
    )
    parser.add_argument("a", type=Path, metavar="A.json")
    parser.add_argument("b", type=Path, metavar="B.json")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw both: PNG or SVG")
    options = parser.parse_args(words)
    if options.plot:
        result.check_target(options.plot)
        plot.check(options.plot)
    a, b = result.load(options.a), result.load(options.b)
    say(show.compare(a, b))
    if options.plot:
        plot.runs([a, b], options.plot)
    return 0


def _add_options(parser: argparse.ArgumentParser) -> None:
    where = parser.add_argument_group("where")
    where.add_argument(
        "-e", "--endpoint", default=listed(named_by_environment())[0],
        metavar="E",
        help=f"the server's endpoint; default: ZKV_ENDPOINT, or else {DEFAULT_ENDPOINT}",
    )  # fmt: skip
    where.add_argument(
        "--server-key", type=keys.argument, metavar="KEY",
        help="the public key of the server, for a server with CURVE; default: "
        "ZKV_SERVER_PUBLIC_KEY",
    )  # fmt: skip
    where.add_argument(
        "--key-file", metavar="FILE",
        help="the file with your own secret key; default: ZKV_KEY_FILE, or else new keys",
    )  # fmt: skip
    where.add_argument(
        "--start", choices=TRANSPORTS, default="",
        help="start a server in a temporary directory, and connect to it in this way; "
        "inproc = within this process",
    )  # fmt: skip
    where.add_argument(
        "--fsync", choices=POLICIES, help="with --start: the fsync policy; default: always"
    )

    load = parser.add_argument_group("load")
    for name, default, text in (
        ("processes", 1, "processes that make the load; each can reach about 100,000 ops/s"),
        ("clients", 50, "connections of all processes together"),
        ("pipeline", 1, "requests in flight on each connection; 1 = lock-step, like a REQ socket"),
    ):
        load.add_argument(
            f"--{name}",
            type=_positive,
            default=default,
            metavar="N",
            help=f"{text}; default: {default}",
        )
    load.add_argument(
        "--batch", type=_positive, metavar="N",
        help="keys per request: above 1, MGET and MPUT replace GET and PUT; default: 1",
    )  # fmt: skip
    load.add_argument(
        "--duration", type=durations.positive_argument, default=10.0, metavar="TIME",
        help="length of the run: seconds, or such as 500ms, 2m; default: 10",
    )  # fmt: skip
    load.add_argument(
        "--operations", type=_positive, default=0, metavar="N",
        help="end after N operations, instead of after --duration",
    )  # fmt: skip
    load.add_argument(
        "--timeout", type=durations.positive_argument, default=5.0, metavar="TIME",
        help="reconnect after this time without a reply: seconds, or such as 500ms; default: 5",
    )  # fmt: skip

    what = parser.add_argument_group("workload")
    what.add_argument(
        "--ycsb", choices=tuple(YCSB), default="", help="a core workload of YCSB, see below"
    )
    what.add_argument(
        "--phase", choices=("both", "load", "run"), default="both",
        help="load stores all keys, run measures; default: both",
    )  # fmt: skip
    what.add_argument("--keys", type=_positive, metavar="N", help="number of keys; default: 10000")
    what.add_argument(
        "--value-bytes", type=_positive, metavar="N", help="size of each value; default: 16"
    )
    what.add_argument(
        "--reads", type=_share, metavar="P", help="share of reads, 0 to 1; default: 0.5"
    )
    what.add_argument(
        "--distribution", choices=DISTRIBUTIONS, help="distribution of keys; default: uniform"
    )
    what.add_argument(
        "--seed", type=whole, default=1, metavar="N", help="random seed; default: 1"
    )  # fmt: skip
    what.add_argument(
        "--fields", type=_positive, metavar="N", help="fields of a YCSB record; default: 10"
    )
    what.add_argument(
        "--field-bytes", type=_positive, metavar="N", help="size of each field; default: 100"
    )

    out = parser.add_argument_group("results")
    out.add_argument(
        "--name", default="zkv", help="name of the run in tables and plots; default: zkv"
    )
    out.add_argument("--json", type=Path, metavar="FILE", help="write the full record to FILE")
    out.add_argument(
        "--csv", type=Path, metavar="FILE", help="append a line for each kind of op to FILE"
    )
    out.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw latencies and rate: PNG or SVG"
    )
    out.add_argument(
        "--ceiling", type=durations.argument, default=1.0, metavar="TIME",
        help="first measure the generator for this time against a server that answers a "
        "constant; 0 = do not; default: 1",
    )  # fmt: skip


def _target(options: argparse.Namespace) -> LoadTarget:
    """The server that the options name. Raises BenchError."""
    if options.start:
        return LoadTarget()
    endpoint: str = options.endpoint
    try:
        found = CurveKeys(**{"server_key": SERVER_KEY, "key_file": KEY_FILE} | given(options))
        return LoadTarget(endpoint=endpoint, server_keys=found.of(endpoint), key_file=found.file)
    except ValueError as error:
        raise BenchError(str(error)) from None


def _check(parser: Parser, options: argparse.Namespace) -> None:
    """Check options that depend on each other, and files. Raises BenchError."""
    if not options.start:
        try:
            check_option(options.endpoint)
        except ValueError as error:
            raise BenchError(str(error)) from None
    for path in filter(None, (options.json, options.csv, options.plot)):
        result.check_target(path)
    if options.plot:
        plot.check(options.plot)
    _check_limits(parser, options)
    is_inside = options.start == "inproc"
    generator.check(options.processes, options.clients, options.operations, is_inside)
    if options.fsync and not options.start:
        parser.error("--fsync needs --start")
    if options.start and given(options):
        parser.error("--server-key and --key-file are for a server that runs, not for --start")
    decided: tuple[str, ...] = FIELDS_OF_YCSB
    why = "needs --ycsb"
    if options.ycsb:
        decided, why = PLAIN_FIELDS, "cannot be used with --ycsb, which determines it"
    if getattr(options, "verify", False):
        decided, why = NOT_VERIFIED, "cannot be used with --verify"
    for name in decided:
        if getattr(options, name) not in {None, ""}:
            parser.error(f"--{name.replace('_', '-')} {why}")


def _check_limits(parser: Parser, options: argparse.Namespace) -> None:
    """Check numbers that are out of range, or too large for a request or for memory."""
    given = vars(options)
    for name, (least, most) in LIMITS.items():
        number = given.get(name)
        if number is not None and not (number == 0 or least <= number <= most):
            text = f"{str(number)[:40]} is not from {least:,} to {most:,}"
            parser.error(f"--{name.replace('_', '-')}: {text}")
    for names, most in PRODUCTS.items():
        product = math.prod(given[name] or 1 for name in names)
        if product > most:
            flags = " times ".join(f"--{name.replace('_', '-')}" for name in names)
            parser.error(f"{flags} is more than {most:,}")
    try:
        options.name.encode()
    except UnicodeEncodeError:
        parser.error(f"--name: {options.name!r} is not valid UTF-8")


def _job(options: argparse.Namespace, running: Running, rate: float = 0.0) -> LoadJob:
    chosen = ("keys", "ycsb", "seed", *PLAIN_FIELDS, *FIELDS_OF_YCSB)
    given = {name: getattr(options, name) for name in chosen}
    workload = Workload(**{name: value for name, value in given.items() if value is not None})
    return LoadJob(
        target=running.target,
        workload=workload,
        processes=options.processes,
        clients=options.clients,
        pipeline=options.pipeline,
        duration=options.duration,
        operations=options.operations,
        rate=rate,
        timeout=options.timeout,
    )


def _load(options: argparse.Namespace, job: LoadJob) -> bool:
    """Run the load phase if it is needed; returns True if a run must follow."""
    if options.phase == "load" or (
        options.phase == "both" and job.workload.is_read() and not job.verify
    ):
        seconds = measure.load_phase(job.target, job.workload)
        rate = show.rate(job.workload.keys / seconds)
        say(f"loaded {job.workload.keys:,} keys in {seconds:.2f} s, {rate} keys/s")
    return bool(options.phase != "load")


def _measure(options: argparse.Namespace, running: Running, job: LoadJob, name: str) -> Result:
    progress = show.RunProgress(job)
    try:
        return measure.measure(name, running, job, progress, options.ceiling)
    finally:
        progress.close()


def _save(options: argparse.Namespace, made: Result) -> None:
    if options.json:
        result.save(made, options.json)
    if options.csv:
        show.write_csv(made, options.csv)


def _positive(text: str) -> int:
    number = whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def _positive_float(text: str) -> float:
    number = _number(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def _share(text: str) -> float:
    number = _number(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return number


def whole(text: str) -> int:
    """A whole number, as a ``type`` of argparse."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not a number") from None


def _rates(text: str) -> list[float]:
    rates = [_positive_float(word) for word in text.split(",")]
    least, most = LIMITS["rate"]
    if not least <= min(rates) <= max(rates) <= most:
        raise argparse.ArgumentTypeError(f"a rate is not from {least:,} to {most:,}")
    return rates


if __name__ == "__main__":
    sys.exit(main())
