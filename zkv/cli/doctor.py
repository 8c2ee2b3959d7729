"""``zkv doctor``: is a server well, and does it do what one expects of it?

Checks go from the outside in: the endpoint, then what PING and INFO tell, then what only the same
machine can see. Each gives findings, a line each: what is so, and where something should be done,
what. A check never writes to the store.

Exit status: 0 nothing to be done; 1 something should be; 2 usage, or what was found
cannot be printed; 3 no answer in time.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from zkv import __version__, compiled, durations
from zkv.cli.output import has_colours
from zkv.cli.values import to_bytes, to_json
from zkv.cli.view import duration, size
from zkv.client import Client, ClientError, NoReplyError, RetryPolicy, UnavailableError
from zkv.defaults import DEFAULT_ENDPOINT
from zkv.endpoint import check_option
from zkv.streams import complain, write

FINE: Final = "ok"
TELL: Final = "note"
ACT: Final = "todo"

WRONG: Final = 1
USAGE: Final = 2
NO_ANSWER: Final = 3

PROTOCOL: Final = 1
PINGS: Final = 5
SLOW: Final = 0.020
"""Seconds; a lock-step client does 50 requests a second then."""
CLOCKS_APART: Final = 1.0
FEED_PATIENCE: Final = 3.0
FEW_FILES: Final = 4_096
MAX_SOCKETS: Final = 1_023
"""What ZeroMQ allows a context unless told otherwise. Each takes a file; none left is a crash."""
FULL: Final = 0.8
"""The share of a limit from which on it is time to act."""
LARGE_SHARE: Final = 0.75
"""Of session_bytes: what there is for replies that are not small."""
SPACE: Final = 1024**3
"""Bytes that should be free beside what the next snapshot and segment take."""
LOCAL: Final = ("tcp://127.", "tcp://localhost:", "tcp://[::1]:", "ipc://")
VOLATILE: Final = frozenset({"tmpfs", "ramfs"})
REMOTE: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs"})
COLOURS: Final = {FINE: "\x1b[32m", TELL: "\x1b[36m", ACT: "\x1b[31m"}


class Diagnosis(NamedTuple):
    """What a check found.

    Args:
        level: `FINE`, `TELL` or `ACT`.
        subject: what was looked at.
        text: what is so.
        advice: what to do; empty = nothing.
    """

    level: str
    subject: str
    text: str
    advice: str = ""


Info = dict[str, Any]


def add_verb(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``zkv doctor`` to the command line."""
    parser = verbs.add_parser(
        "doctor",
        help="check a running server, and say what to do",
        description="Check a running server from the outside in: endpoint, round trips, versions, "
        "clocks, durability, limits, change feed, and on the same machine its disk. Nothing is "
        "changed. The exit status is 0 if there is nothing to do, 1 if there is, 3 if no answer "
        "comes in time.",
    )
    parser.add_argument(
        "-e", "--endpoint", metavar="ENDPOINT",
        default=os.environ.get("ZKV_ENDPOINT") or DEFAULT_ENDPOINT,
        help=f"where the server listens; else ZKV_ENDPOINT, else {DEFAULT_ENDPOINT}",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", metavar="TIME", type=durations.argument, default=5.0,
        help="how long to wait for an answer: seconds, or such as 500ms; else 5",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="an object for each finding")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carry out all checks, and print what they find as they find it."""
    status = 0
    try:
        check_option(options.endpoint)
        policy = RetryPolicy(wait_for_start=False)
        with Client(options.endpoint, options.timeout, retry=policy) as client:
            for finding in examine(client):
                _print(finding, options.json)
                status = WRONG if finding.level == ACT else status
    except NoReplyError as error:
        _print(_no_reply(error), options.json)
        return NO_ANSWER
    except ClientError as error:
        advice = "what listens there is no zkv server, or it ends: look at its log"
        _print(Diagnosis(ACT, "answers", str(error), advice), options.json)
        return WRONG
    except ValueError as error:
        complain("zkv", str(error))
        return USAGE
    return status


def examine(client: Client) -> Iterator[Diagnosis]:
    """All findings about a server. Raises ClientError."""
    yield from check_round_trips(client)
    yield from check_clock(client)
    info = client.call("INFO")
    for check in CHECKS:
        try:
            yield from check(client, info)
        except (KeyError, TypeError) as error:  # Another version, which tells other things.
            yield Diagnosis(TELL, check.__name__.removeprefix("check_"), f"not told: {error}")


def check_round_trips(client: Client) -> Iterator[Diagnosis]:
    """Is the endpoint answered, and how soon?"""
    client.call("PING")  # The first one also connects.
    times = []
    for _ in range(PINGS):
        begin = time.perf_counter()
        client.call("PING")
        times.append(time.perf_counter() - begin)
    half, most = sorted(times)[PINGS // 2], max(times)
    text = (
        f"{client.endpoint} answers in {duration(half)}; the slowest of {PINGS}: {duration(most)}"
    )
    if half > SLOW:
        advice = "put many keys in one request (MGET, MPUT), or have many in flight (DEALER)"
        yield Diagnosis(ACT, "endpoint", text, advice)
    else:
        yield Diagnosis(FINE, "endpoint", text)


def check_clock(client: Client) -> Iterator[Diagnosis]:
    """Do the two clocks agree? `deadline` goes by them."""
    begin = time.time()
    reply = client.call("PING")
    end = time.time()
    apart = reply["time"] / 1000 - (begin + end) / 2
    unsure = (end - begin) / 2 + 0.001
    if abs(apart) - unsure > CLOCKS_APART:
        ahead = "ahead of" if apart > 0 else "behind"
        yield Diagnosis(
            ACT, "clock", f"the server's is {duration(abs(apart))} {ahead} the one here",
            "set both machines' clocks by NTP: the server applies a `deadline` by its own clock",
        )  # fmt: skip
    else:
        yield Diagnosis(FINE, "clock", f"apart by less than {duration(abs(apart) + unsure)}")


def check_version(_client: Client, info: Info) -> Iterator[Diagnosis]:
    """Do server and client speak of the same things?"""
    version, protocol = info["version"], info["protocol"]
    text = f"server {version}, protocol {protocol}; here {__version__}, protocol {PROTOCOL}"
    if protocol != PROTOCOL:
        yield Diagnosis(ACT, "version", text, "install the same release on both sides")
    elif version != __version__:
        yield Diagnosis(TELL, "version", f"{text}: they understand each other")
    else:
        yield Diagnosis(FINE, "version", text)


def check_durability(_client: Client, info: Info) -> Iterator[Diagnosis]:
    """What does an answered write mean?"""
    settings = info["durability"]
    match settings["fsync"]:
        case "always":
            yield Diagnosis(FINE, "durability", "fsync = always: what is answered is on disk")
        case "interval":
            lost = duration(settings["fsync_interval"])
            yield Diagnosis(
                TELL, "durability",
                f"fsync = interval: a crash of the machine may lose the writes of about {lost}; "
                f"use `durable` for a write that must not be lost",
            )  # fmt: skip
        case policy:
            yield Diagnosis(
                TELL, "durability",
                f"fsync = {policy}: a crash of the machine may lose everything since the last "
                f"snapshot; use `durable` for a write that must not be lost",
            )  # fmt: skip


def check_refusal(_client: Client, info: Info) -> Iterator[Diagnosis]:
    """Does it take writes?"""
    if refusal := info["durability"].get("refusal"):
        yield Diagnosis(
            ACT, "writes", f"refused now: {refusal}",
            "see DURABILITY.md; reads continue, so zkv-cli export can save the data",
        )  # fmt: skip


def check_failures(_client: Client, info: Info) -> Iterator[Diagnosis]:
    """Has it met what it should not?"""
    stats = info["stats"]
    failures = stats["failures"]
    advice = "the server's log says why: the disk, the memory, or the data directory"
    by_op = stats.get("failures_by_op", {})
    unsaved = sum(by_op.get(op, {}).get("READ_ONLY", 0) for op in ("SNAPSHOT", "END"))
    if unsaved:
        yield Diagnosis(
            ACT, "snapshots", f"{unsaved:,} could not be written when asked for", advice
        )
    if refused := failures.get("READ_ONLY", 0) - unsaved:
        yield Diagnosis(
            ACT, "writes", f"{refused:,} were refused because the log could not be written", advice
        )  # fmt: skip
    bugs = failures.get("INTERNAL", 0) + stats["workers_replaced"]
    if bugs:
        advice = "the server's log has tracebacks: report them"
        yield Diagnosis(ACT, "bugs", f"it has met {bugs:,} since its start", advice)
    if not refused and not unsaved and not bugs:
        yield Diagnosis(FINE, "failures", "no write refused for the disk, no bug met")


def check_sessions(_client: Client, info: Info) -> Iterator[Diagnosis]:
    """Is there room for more exactly-once clients?"""
    stats, limits = info["stats"]["sessions"], info["limits"]
    there, most = stats["sessions"], limits["max_sessions"]
    text = f"{there:,} of {most:,}"
    if there > FULL * most:
        advice = "raise limits.max_sessions, shorten session_ttl, or keep sessions for longer"
        yield Diagnosis(ACT, "sessions", text, advice)
    elif stats["bytes"] > FULL * LARGE_SHARE * limits["session_bytes"]:
        yield Diagnosis(
            ACT, "sessions",
            f"{text}; replies take {size(stats['bytes'])} of {size(limits['session_bytes'])}",
            "raise limits.session_bytes, lower session_window, or ask for less in one write",
        )  # fmt: skip
    else:
        yield Diagnosis(FINE, "sessions", text)


def check_feed(client: Client, info: Info) -> Iterator[Diagnosis]:
    """Can changes be followed from here?"""
    from zkv.client.feed import hear
    from zkv.client.follower import feed_endpoint

    advice = "set server.feed to what can be reached from here"
    try:
        feed = feed_endpoint(info["feed"], client.endpoint)
    except ClientError as error:
        yield Diagnosis(ACT, "feed", str(error), advice)
        return
    if feed is None:
        yield Diagnosis(
            TELL, "feed", "off: clients can request changes with CHANGES, but not subscribe"
        )
        return
    try:
        took = hear(feed, FEED_PATIENCE)
    except (ValueError, ClientError) as error:
        yield Diagnosis(ACT, "feed", str(error), advice)
        return
    dropped = info["stats"]["feed"].get("dropped", 0)
    if took is None:
        yield Diagnosis(
            ACT, "feed", f"{feed} is not heard within {duration(FEED_PATIENCE)}",
            "set server.feed to an address and a port that can be reached from here",
        )  # fmt: skip
    elif dropped:
        yield Diagnosis(
            TELL, "feed",
            f"{feed} is heard; {dropped:,} messages were dropped for followers too slow for them",
        )  # fmt: skip
    else:
        yield Diagnosis(FINE, "feed", f"{feed} is heard after {duration(took)}")


def check_exposure(_client: Client, info: Info) -> Iterator[Diagnosis]:
    """Who can reach it? Nobody is asked for a name."""
    listening = [*info["endpoints"], info["feed"] or ""]
    exposed = [each for each in listening if each.startswith("tcp://")]
    exposed = [each for each in exposed if not each.startswith(LOCAL)]
    if exposed:
        yield Diagnosis(
            TELL, "exposure",
            f"other machines can reach {', '.join(exposed)}: anyone can read, write and stop it",
        )  # fmt: skip
    else:
        yield Diagnosis(FINE, "exposure", "only this machine reaches it")


def check_files(_client: Client, info: Info) -> Iterator[Diagnosis]:
    """May it, and may a client here, open as many files as connections take?"""
    process = info["stats"]["process"]
    used, most = process.get("open_files", 0), process["max_open_files"]
    text = f"the server has {used:,} of {most:,} open; each client takes one"
    advice = "raise it: ulimit -n, or LimitNOFILE= in a systemd unit"
    level = ACT if used > FULL * most or most < FEW_FILES else FINE
    yield Diagnosis(level, "files", text, advice if level == ACT else "")
    here, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if here < MAX_SOCKETS:
        text = f"a process here may open {here:,}, and {MAX_SOCKETS:,} sockets of ZeroMQ"
        yield Diagnosis(ACT, "files here", text, advice)


def check_disk(client: Client, info: Info) -> Iterator[Diagnosis]:
    """Is there room for what will be written, and does it stay? On the same machine only."""
    settings = info["durability"]
    directory = _data_dir(client.endpoint, info)
    if directory is None:
        yield Diagnosis(
            TELL, "disk", f"not looked at: {settings['data_dir']!r} is not seen from here"
        )
        return
    kind = _file_system(directory)
    if kind in VOLATILE:
        advice = "set durability.data_dir to a directory on a disk"
        yield Diagnosis(ACT, "disk", f"{directory} is in memory ({kind}), gone at a reboot", advice)
    elif kind in REMOTE:
        advice = "set durability.data_dir to a directory on a local disk"
        yield Diagnosis(
            ACT, "disk", f"{directory} is on a network ({kind}): few keep fsync", advice
        )
    free = shutil.disk_usage(directory).free
    wanted = SPACE + 2 * settings["snapshot_bytes"] + 2 * settings["segment_bytes"]
    text = f"{size(free)} free at {directory}"
    if free < wanted:
        advice = f"make room, up to {size(wanted)}: a full disk refuses writes"
        yield Diagnosis(ACT, "disk", text, advice)
    else:
        yield Diagnosis(FINE, "disk", text)


def check_build(_client: Client, info: Info) -> Iterator[Diagnosis]:
    """Is it as quick as it could be?"""
    if slow := compiled.what_is_slow(info["stats"]):
        yield Diagnosis(TELL, "build", slow, f"on the server's machine: {compiled.ADVICE}")
    else:
        yield Diagnosis(FINE, "build", "store and mailbox are compiled")


CHECKS: Final[tuple[Callable[[Client, Info], Iterable[Diagnosis]], ...]] = (
    check_version, check_durability, check_failures, check_sessions, check_feed, check_exposure,
    check_files, check_disk, check_build,
    check_version, check_durability, check_refusal, check_failures, check_sessions, check_feed,
    check_exposure, check_files, check_disk,
)  # fmt: skip


def _no_reply(error: NoReplyError) -> Diagnosis:
    """What to do where there was none: the error says whether there was a connection, and why."""
    if isinstance(error, UnavailableError):
        advice = "start a server with zkv serve, or name its endpoint with -e or ZKV_ENDPOINT"
    else:
        advice = "what listens there is no zkv server, or it hangs: look at its log"
    return Diagnosis(ACT, "endpoint", str(error), advice)


def _data_dir(endpoint: str, info: Info) -> Path | None:
    """The server's data directory, where it can be seen from here."""
    if not endpoint.startswith(LOCAL):
        return None
    directory = Path("/proc", str(info["stats"]["process"]["pid"]), "cwd")
    try:
        directory = directory.readlink() / info["durability"]["data_dir"]
        return directory if directory.is_dir() else None
    except OSError:
        return None


def _file_system(directory: Path) -> str:
    """The kind of file system that a directory is on; empty where nobody tells."""
    found = ("", "")
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    for mount in mounts:
        _, place, kind, *_ = mount.split(" ")
        if directory.resolve().is_relative_to(place) and len(place) >= len(found[0]):
            found = place, kind
    return found[1]


def _print(finding: Diagnosis, as_json: bool) -> None:
    if as_json:
        line = to_json(finding._asdict())
    else:
        level = f"{finding.level:4}"
        if has_colours(sys.stdout):
            level = f"{COLOURS[finding.level]}{level}\x1b[0m"
        line = f"{level}  {finding.subject:10}  {finding.text}"
        if finding.advice:
            line += f"\n{'':18}-> {finding.advice}"
    write(to_bytes(line))
