"""``zkv doctor``: checks a running server, and advises on what should be changed.

The checks go from the outside in: the endpoint, then the replies to PING and INFO, then facts that
only the same machine can see. Keys and, with ``--config``, the settings for security come first:
they need no server. Each check yields findings, one line each: a fact and, if something
should be done, advice. A check never writes to the store.

Exit status: 0 nothing to do; 1 something to do; 2 wrong usage, or the findings cannot be printed; 3
no answer in time.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from zkv import __version__, compiled, figures, system
from zkv.cli import cluster
from zkv.cli.diagnosis import ACT, FINE, TELL, Diagnosis
from zkv.cli.output import has_colours
from zkv.cli.protection import check_exposure, check_here
from zkv.cli.values import to_bytes
from zkv.client import (
    AuthenticationError,
    Client,
    ClientError,
    DeniedError,
    NoReplyError,
    RetryPolicy,
    UnavailableError,
)
from zkv.client.curve import given
from zkv.durability.mounts import REMOTE, VOLATILE, file_system
from zkv.endpoint import check_option, is_exposed
from zkv.entries.text import to_json
from zkv.errors import ConfigError
from zkv.readable import duration, size
from zkv.streams import complain, write

WRONG: Final = 1
USAGE: Final = 2
NO_ANSWER: Final = 3

PROTOCOL: Final = 1
PINGS: Final = 5
SLOW: Final = 0.020
"""A slow round trip, in seconds: with it a client that waits for each reply makes 50 per second."""
RECENT_MINUTES: Final = 60
CLOCKS_APART: Final = 1.0
FEED_PATIENCE: Final = 3.0
FEW_FILES: Final = 4_096
MAX_SOCKETS: Final = 1_023
"""ZeroMQ's default limit of sockets per context. Each takes a file; if none is left, ZeroMQ aborts
the process."""
FULL: Final = 0.8
"""The share of a limit at which the doctor advises to act."""
LARGE_SHARE: Final = 0.75
"""The share of session_bytes that replies which are not small may use."""
SPACE: Final = 1024**3
"""Bytes that should be free in addition to the space for the next snapshot and segment."""
FAR_BEHIND: Final = 15.0
"""Seconds after which a standby that is behind, or has not asked, needs somebody to look."""
MEMBERS: Final = frozenset({"leader", "follower"})
"""The roles of the members of a store in etcd."""
REASONS: Final = "the server's log has the reason: the disk, the memory, or the data directory"
ADVICE_ON_RIGHTS: Final = (
    "most checks need it: run the doctor as another user, or: zkv user add {user} --admin monitor"
)
COLOURS: Final = {FINE: "\x1b[32m", TELL: "\x1b[36m", ACT: "\x1b[31m"}


Info = dict[str, Any]


def run(options: argparse.Namespace) -> int:
    """Carry out all checks, and print each finding at once; returns the exit status."""
    status = 0
    try:
        for finding in _all_findings(options):
            _print(finding, options.json)
            status = WRONG if finding.level == ACT else status
    except AuthenticationError as error:
        advice = "an admin of the server knows its public key, and whose keys it lets in"
        _print(Diagnosis(ACT, "keys", str(error), advice), options.json)
        return WRONG
    except NoReplyError as error:
        _print(_no_reply(error), options.json)
        return NO_ANSWER
    except ClientError as error:
        advice = "the endpoint is not that of a zkv server, or the server is stopping: see its log"
        if isinstance(error, DeniedError):
            advice = "the users file of the server has who may do what"
        _print(Diagnosis(ACT, "answers", str(error), advice), options.json)
        return WRONG
    except ValueError as error:
        complain("zkv", str(error))
        return USAGE
    return status


def _all_findings(options: argparse.Namespace) -> Iterator[Diagnosis]:
    """All findings, of this machine and of the server.

    Raises:
        ConfigError: the settings are bad.
        ValueError: the endpoint is.
        ClientError: the server does not answer.
    """
    yield from check_here(options.config)
    endpoints = check_option(options.endpoint)
    policy = RetryPolicy(wait_for_start=False)
    try:
        client = Client(endpoints, options.timeout, retry=policy, **given(options))
    except ConfigError as error:
        advice = "this client cannot connect until its keys are in order"
        yield Diagnosis(ACT, "keys", str(error), advice)
        return
    with client:
        yield from _findings(options.latency)(client)


def _findings(of_latency: bool) -> Callable[[Client], Iterator[Diagnosis]]:
    """The function that examines a server."""
    if not of_latency:
        return examine
    from zkv.cli import latency

    return latency.examine


def examine(client: Client) -> Iterator[Diagnosis]:
    """All findings about a server. Raises ClientError."""
    yield from check_round_trips(client)
    yield from check_clock(client)
    info = client.call("INFO")
    if hidden := figures.hidden(info):
        yield Diagnosis(ACT, "rights", hidden, ADVICE_ON_RIGHTS.format(user=info["user"]))
    for check in OPEN_CHECKS if hidden else CHECKS:
        try:
            yield from check(client, info)
        except (KeyError, TypeError) as error:  # INFO of another version has other fields.
            subject = check.__name__.removeprefix("check_")
            yield Diagnosis(TELL, subject, f"not in the server's INFO: {error}")


def check_round_trips(client: Client) -> Iterator[Diagnosis]:
    """Does the server answer, and how soon?"""
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
        advice = "send many keys in one request (MGET, MPUT), or many requests at once (DEALER)"
        yield Diagnosis(ACT, "endpoint", text, advice)
    else:
        yield Diagnosis(FINE, "endpoint", text)


def check_clock(client: Client) -> Iterator[Diagnosis]:
    """Do the two clocks agree? The server applies a `deadline` by its own clock."""
    begin = time.time()
    reply = client.call("PING")
    end = time.time()
    apart = reply["time"] / 1000 - (begin + end) / 2
    unsure = (end - begin) / 2 + 0.001
    if abs(apart) - unsure > CLOCKS_APART:
        ahead = "ahead of" if apart > 0 else "behind"
        yield Diagnosis(
            ACT, "clock", f"the server's clock is {duration(abs(apart))} {ahead} the one here",
            "set both machines' clocks by NTP: the server applies a `deadline` by its own clock",
        )  # fmt: skip
    else:
        difference = duration(abs(apart) + unsure)
        yield Diagnosis(FINE, "clock", f"the clocks differ by less than {difference}")


def check_version(_client: Client, info: Info) -> Iterator[Diagnosis]:
    """Do server and client have the same version?"""
    version, protocol = info["version"], info["protocol"]
    text = f"server {version}, protocol {protocol}; here {__version__}, protocol {PROTOCOL}"
    if protocol != PROTOCOL:
        yield Diagnosis(ACT, "version", text, "install the same release on both sides")
    elif version != __version__:
        yield Diagnosis(TELL, "version", f"{text}: they work together")
    else:
        yield Diagnosis(FINE, "version", text)


def check_durability(_client: Client, info: Info) -> Iterator[Diagnosis]:
    """Is an answered write on disk?"""
    settings = info["durability"]
    if info.get("replication", {}).get("role") in MEMBERS:
        yield Diagnosis(FINE, "durability", "answered writes are on disk at most nodes of etcd")
        return
    match settings["fsync"]:
        case "always":
            yield Diagnosis(FINE, "durability", "fsync = always: answered writes are on disk")
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
    """Does the server accept writes?"""
    if refusal := figures.READ_ONLY.of(info):
        since = figures.READ_ONLY_SINCE.of(info)
        how_long = "" if since is None else f", for {duration(max(0.0, time.time() - since))}"
        yield Diagnosis(
            ACT, "writes", f"refused now{how_long}: {refusal}",
            "see DURABILITY.md; reads continue, so zkv-cli export can save the data",
        )  # fmt: skip


def check_failures(_client: Client, info: Info) -> Iterator[Diagnosis]:
    """Has the server refused writes, or met bugs?"""
    failures = figures.REQUESTS.need(info, 3)
    if refused := failures.get("READ_ONLY", 0) - _unsaved(info):
        yield Diagnosis(
            ACT, "writes", f"{refused:,} were refused because the log could not be written", REASONS
        )  # fmt: skip
    bugs = failures.get("INTERNAL", 0) + figures.BUGS.need(info)
    if bugs:
        advice = "the server's log has tracebacks: report them"
        yield Diagnosis(ACT, "bugs", f"{bugs:,} unexpected errors since the start", advice)
    if not refused and not bugs:
        yield Diagnosis(FINE, "failures", "no write was refused, no unexpected error")


def check_snapshots(_client: Client, info: Info) -> Iterator[Diagnosis]:
    """Have snapshots been written?"""
    age, failed_at = figures.SNAPSHOT_AGE.of(info), figures.SNAPSHOT_FAILED_AT.of(info)
    if failed_at is not None and (age is None or time.time() - failed_at < age):
        yield Diagnosis(
            ACT, "snapshots",
            f"the last one could not be written: {figures.SNAPSHOT_FAILURES.of(info, 1)}",
            "until one is written, the log grows, and a start takes longer",
        )  # fmt: skip
    elif unsaved := _unsaved(info):
        yield Diagnosis(
            ACT, "snapshots", f"{unsaved:,} requested snapshots could not be written", REASONS
        )
    else:
        there = "none has been needed" if age is None else f"the newest is {duration(age)} old"
        yield Diagnosis(FINE, "snapshots", there)


def _unsaved(info: Info) -> int:
    """How many requested snapshots could not be written."""
    by_op = figures.REQUESTS.of(info, 2) or {}
    return sum(by_op.get(op, {}).get("READ_ONLY", 0) for op in ("SNAPSHOT", "END"))


def check_clients(_client: Client, info: Info) -> Iterator[Diagnosis]:
    """Do clients read their replies, and get through the handshake?"""
    dropped = figures.REPLIES_DROPPED.need(info)
    failed = sum(figures.HANDSHAKES_FAILED.need(info).values())
    text = f"{figures.CONNECTIONS.need(info):,} connections"
    if dropped:
        text += f"; {dropped:,} replies were dropped, for clients that do not read theirs"
    if failed:
        text += f"; {failed:,} more ended in the handshake, which is not always a client of zkv"
    yield Diagnosis(TELL if dropped or failed else FINE, "clients", text)


def check_memory(_client: Client, info: Info) -> Iterator[Diagnosis]:
    """Is there room for more entries?"""
    used, most = figures.MEMORY_USED.need(info), figures.MEMORY_LIMIT.of(info)
    if not most:
        yield Diagnosis(FINE, "memory", f"{size(used)} are used; there is no limit")
        return
    text = f"{size(used)} of {size(most)} are used"
    if used > FULL * most:
        advice = "remove entries, or raise limits.max_memory: beyond it writes that grow are FULL"
        yield Diagnosis(ACT, "memory", text, advice)
    else:
        yield Diagnosis(FINE, "memory", text)


def check_sessions(_client: Client, info: Info) -> Iterator[Diagnosis]:
    """Is there room for more exactly-once clients?"""
    limits, taken = info["limits"], figures.SESSION_BYTES.need(info)
    there, most = figures.SESSIONS.need(info), figures.SESSIONS_LIMIT.need(info)
    text = f"{there:,} of {most:,}"
    if there > FULL * most:
        advice = "raise limits.max_sessions, shorten session_ttl, or keep sessions for longer"
        yield Diagnosis(ACT, "sessions", text, advice)
    elif taken > FULL * LARGE_SHARE * limits["session_bytes"]:
        yield Diagnosis(
            ACT, "sessions",
            f"{text}; replies take {size(taken)} of {size(limits['session_bytes'])}",
            "raise limits.session_bytes, lower session_window, or ask for less in one write",
        )  # fmt: skip
    else:
        yield Diagnosis(FINE, "sessions", text)


def check_feed(client: Client, info: Info) -> Iterator[Diagnosis]:
    """Can a client here follow the changes?"""
    from zkv.client.feed import hear
    from zkv.client.follower import feed_endpoint

    advice = "set server.feed to an endpoint that can be reached from here"
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
        took = hear(client, feed, FEED_PATIENCE)
    except (ValueError, ClientError) as error:
        yield Diagnosis(ACT, "feed", str(error), advice)
        return
    dropped = figures.FEED_DROPPED.of(info)
    if took is None:
        yield Diagnosis(
            ACT, "feed", f"no message from {feed} within {duration(FEED_PATIENCE)}",
            "set server.feed to an address and a port that can be reached from here",
        )  # fmt: skip
    elif dropped:
        yield Diagnosis(
            TELL, "feed",
            f"{feed} is working; {dropped:,} messages were dropped because followers were too slow",
        )  # fmt: skip
    else:
        yield Diagnosis(FINE, "feed", f"a message from {feed} after {duration(took)}")


def check_latency(client: Client, info: Info) -> Iterator[Diagnosis]:
    """Have requests been slow?"""
    if "SLOW" not in info.get("features", ()):
        return
    minutes = client.call("SLOW", limit=RECENT_MINUTES)["minutes"]
    since = (time.time() - 60 * RECENT_MINUTES) * 1000
    recent = [minute for minute in minutes if minute["time"] >= since]
    if not recent:
        yield Diagnosis(FINE, "latency", "no request was slow within the last hour")
        return
    count = sum(minute["count"] for minute in recent)
    slowest = max(minute["slowest"]["timing"]["total"] for minute in recent) / 1e6
    yield Diagnosis(
        TELL, "latency",
        f"{count:,} slow requests within the last hour; the slowest took {duration(slowest)}",
        "zkv doctor --latency says why",
    )  # fmt: skip


def check_replication(_client: Client, info: Info) -> Iterator[Diagnosis]:
    """Do the standbys keep up, or the members?"""
    if "replication" not in info:
        return
    replication = info["replication"]
    text = f"{replication['role']} in term {replication['term']}"
    if replication["role"] in MEMBERS:
        yield from cluster.examine(info, text)
        yield from _check_standbys(figures.APPLIED.need(info), replication["standbys"])
        return
    lag = figures.LAG.of(info)
    if replication["role"] != "primary":
        followed = ", ".join(replication["leader"] or ["nobody"])
        text = f"{text}; follows {followed}"
        if lag is None or lag > FAR_BEHIND:
            how_far = "" if lag is None else f", and is {duration(lag)} behind"
            advice = "the log of this server says why; nothing is read or written here meanwhile"
            yield Diagnosis(ACT, "standby", text + how_far, advice)
        else:
            yield Diagnosis(FINE, "standby", f"{text}, and is {duration(lag)} behind")
        return
    yield Diagnosis(FINE, "primary", text)
    yield from _check_standbys(figures.APPLIED.need(info), replication["members"])


def _check_standbys(applied: int, standbys: list[Info]) -> Iterator[Diagnosis]:
    for each in standbys:
        missing, silent = max(0, applied - each["durable"]), each["seconds"]
        there = f"{each['name']} lacks {missing:,} commits; it asked {duration(silent)} ago"
        advice = "look at the log there; the list forgets it an hour after it has asked"
        late = silent > FAR_BEHIND
        yield Diagnosis(ACT if late else FINE, "member", there, advice if late else "")


def check_files(_client: Client, info: Info) -> Iterator[Diagnosis]:
    """Can the server, and a client here, open enough files for their connections?"""
    used, most = figures.OPEN_FILES.of(info) or 0, figures.MAX_FILES.need(info)
    text = f"the server has {used:,} of {most:,} open; each client takes one"
    advice = "raise it: ulimit -n, or LimitNOFILE= in a systemd unit"
    level = ACT if used > FULL * most or most < FEW_FILES else FINE
    yield Diagnosis(level, "files", text, advice if level == ACT else "")
    here = system.file_limits()
    if here is not None and here[0] < MAX_SOCKETS:
        text = f"a process here may open {here[0]:,} files, but {MAX_SOCKETS:,} ZeroMQ sockets"
        yield Diagnosis(ACT, "files here", text, advice)


def check_disk(client: Client, info: Info) -> Iterator[Diagnosis]:
    """Is there enough space, on a disk that keeps the data? On the same machine only."""
    settings = info["durability"]
    directory = _data_dir(client.endpoint, info)
    if directory is None:
        yield Diagnosis(
            TELL, "disk", f"not checked: {settings['data_dir']!r} cannot be seen from here"
        )
        return
    kind = file_system(directory)
    if kind in VOLATILE:
        advice = "set durability.data_dir to a directory on a disk"
        text = f"{directory} is in memory ({kind}): a reboot deletes it"
        yield Diagnosis(ACT, "disk", text, advice)
    elif kind in REMOTE:
        advice = "set durability.data_dir to a directory on a local disk"
        yield Diagnosis(
            ACT, "disk", f"{directory} is on a network ({kind}): fsync may not be reliable", advice
        )
    free = shutil.disk_usage(directory).free
    wanted = space_wanted(figures.SNAPSHOT_BYTES.need(info), settings["segment_bytes"])
    text = f"{size(free)} free at {directory}"
    if free < wanted:
        advice = f"free space, up to {size(wanted)}: on a full disk, writes are refused"
        yield Diagnosis(ACT, "disk", text, advice)
    else:
        yield Diagnosis(FINE, "disk", text)


def space_wanted(snapshot_bytes: int, segment_bytes: int) -> int:
    """Return the bytes of a disk that should be free beside what a server has there."""
    return SPACE + 2 * snapshot_bytes + 2 * segment_bytes


def check_build(_client: Client, info: Info) -> Iterator[Diagnosis]:
    """Are the C parts of the server built?"""
    if slow := compiled.what_is_slow(info["stats"]):
        yield Diagnosis(TELL, "build", slow, f"on the server's machine: {compiled.ADVICE}")
    else:
        yield Diagnosis(FINE, "build", "store and mailbox are compiled")


CHECKS: Final[tuple[Callable[[Client, Info], Iterable[Diagnosis]], ...]] = (
    check_version, check_durability, check_refusal, check_failures, check_snapshots, check_clients,
    check_memory, check_sessions, check_feed, check_latency, check_replication, check_exposure,
    check_files, check_disk, check_build,
)  # fmt: skip
OPEN_CHECKS: Final = (check_version, check_feed)
"""Those that need no right."""


def _no_reply(error: NoReplyError) -> Diagnosis:
    """The finding for a missing reply. The error says if there was a connection."""
    if isinstance(error, UnavailableError):
        advice = "start a server with zkv serve, or give its endpoint with -e or ZKV_ENDPOINT"
    else:
        advice = "the endpoint is not that of a zkv server, or the server hangs: see its log"
    return Diagnosis(ACT, "endpoint", str(error), advice)


def _data_dir(endpoint: str, info: Info) -> Path | None:
    """The server's data directory; None if it cannot be seen from here."""
    if is_exposed(endpoint):
        return None
    directory = Path("/proc", str(info["stats"]["process"]["pid"]), "cwd")
    try:
        directory = directory.readlink() / info["durability"]["data_dir"]
        return directory if directory.is_dir() else None
    except OSError:
        return None


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
