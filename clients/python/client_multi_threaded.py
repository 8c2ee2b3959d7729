#!/usr/bin/env python3
"""Load a zkv server from many threads, and check every answer.

Each thread has its own connection and keys that no other thread writes. So it always knows
what the server must answer: the value and revision of its last PUT, or NOT_FOUND after a
DELETE. It also checks that revisions only increase. At the end each thread reads all its
keys once more, deletes them, and checks the count.

If a write gets no reply, the state of its key is unknown: the write may have been applied,
or not, or may be applied later. The thread reads the key, which must have the old state or
the new one. From then on it uses a new key instead, because a late write could still change
the old one.

If the server is killed and restarted during the run, a write that it had acknowledged
before it was on disk (`durable` false) may be lost. That counts as a wrong answer, too.

Progress goes to standard error, the summary to standard output. Exit status: 0 no errors;
1 a wrong answer; 2 wrong usage, or a permanent refusal (such as TOO_LARGE); 3 no answer in
time, or a temporary refusal (such as BUSY).
"""

from __future__ import annotations

import argparse
import math
import os
import random
import secrets
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TextIO

from client import DEFAULT_ENDPOINT, Client, NoReply, ZkvError, seconds

WEIGHTS = {"GET": 50, "PUT": 40, "DELETE": 10}  # of a hundred requests
GIVE_UP_AFTER = 3  # requests in a row without a reply: the server is gone
READ_BACKS = 10  # attempts to read a key whose state is unknown
PAUSE = 0.05  # seconds before the next request after a failure with `retry`
BATCH = 100  # keys in one MGET or MDELETE at the end
SHOWN = 10  # faults that are printed; all are counted
MOST_THREADS = 1000  # ZeroMQ's default limit is 1,023 sockets
REDRAW = {True: 0.2, False: 2.0}  # seconds between two lines of progress: terminal, pipe

Entry = tuple[Any, Any]  # value and revision


class Tally:
    """The results of one thread; only that thread writes them, others may read them."""

    def __init__(self) -> None:
        self.done = 0  # requests of the mix, successful or not
        self.wrong = 0
        self.put_off: Counter[str] = Counter()  # temporary failures by code, with NO_REPLY
        self.refused: Counter[str] = Counter()
        self.notes: list[str] = []  # descriptions of the first faults
        self.latencies: dict[str, list[float]] = {op: [] for op in WEIGHTS}  # microseconds


class Worker:
    """The connection of one thread, its keys, and their expected states."""

    def __init__(self, name: str, options: argparse.Namespace, stop: threading.Event) -> None:
        self.tally = Tally()
        self._options = options
        self._stop = stop
        # Not for secrets: the same seed must give the same requests.
        self._random = random.Random(f"{options.seed}/{name}")  # noqa: S311
        self._client: Client
        self._keys = [f"parallel/{options.run}/{name}/{slot}" for slot in range(options.keys)]
        self._known: dict[str, Entry | None] = dict.fromkeys(self._keys)  # None: absent
        self._retired: list[str] = []
        self._newest = 0  # the highest revision of this thread's writes
        self._unanswered = 0  # requests in a row without a reply

    def run(self) -> None:
        """Send the whole mix, then check all keys; return early if the server is gone."""
        options = self._options
        # One attempt, because repeats inside the client would distort the latencies.
        with Client(options.endpoint, timeout=options.timeout, attempts=1) as self._client:
            while self.tally.done < self._options.requests and self._going():
                self._step()
                self.tally.done += 1
            if self._going():
                self._close_accounts()

    def _going(self) -> bool:
        return self._unanswered < GIVE_UP_AFTER and not self._stop.is_set()

    def _step(self) -> None:
        """Send one request of the mix."""
        slot = self._random.randrange(len(self._keys))
        key = self._keys[slot]
        (op,) = self._random.choices(list(WEIGHTS), list(WEIGHTS.values()))
        value = self._random.randbytes(self._options.value_size) if op == "PUT" else None
        try:
            if op == "GET":
                self._expect(op, key, self._get(key, timed=True))
            elif op == "PUT":
                self._put(key, value)
            else:
                self._delete(key)
        except ZkvError as error:
            self._fault(f"{op} {key}", error)
            if op != "GET" and error.applied is None:
                self._settle(slot, value)

    def _get(self, key: str, *, timed: bool = False) -> Entry | None:
        reply = self._call("GET", timed=timed, key=key)
        return None if reply is None else (reply.get("value"), reply.get("rev"))

    def _put(self, key: str, value: Any) -> None:
        reply = self._call("PUT", key=key, value=value)
        self._known[key] = (value, self._grown("PUT", key, reply or {}))

    def _delete(self, key: str) -> None:
        reply = self._call("DELETE", key=key)
        if (reply is None) != (self._known[key] is None):
            self._wrong(f"DELETE {key}: {reply or 'NOT_FOUND'}, known {self._known[key]!r:.60}")
        if reply is not None:
            self._grown("DELETE", key, reply)
        self._known[key] = None

    def _call(self, op: str, *, timed: bool = True, **fields: Any) -> dict[str, Any] | None:
        """Return the reply, None for NOT_FOUND; any other failure raises ZkvError."""
        started = time.perf_counter()
        try:
            reply = self._client.call(op, **fields)
        except ZkvError as error:
            self._unanswered = self._unanswered + 1 if isinstance(error, NoReply) else 0
            if error.code != "NOT_FOUND":
                raise
            reply = None
        self._unanswered = 0
        if timed:
            self.tally.latencies[op].append((time.perf_counter() - started) * 1e6)
        return reply

    def _grown(self, op: str, key: str, reply: dict[str, Any]) -> Any:
        """Return the revision of a write; it must be above all earlier ones of the thread."""
        rev = reply.get("rev")
        if isinstance(rev, int) and rev > self._newest:
            self._newest = rev
        else:
            self._wrong(f"{op} {key}: reply {reply} after revision {self._newest}")
        return rev

    def _expect(self, op: str, key: str, found: Entry | None) -> None:
        known = self._known[key]
        if found != known:
            self._wrong(f"{op} {key}: found {found!r:.60}, known {known!r:.60}")

    def _settle(self, slot: int, value: Any) -> None:
        """Read a key whose last write has an unknown result, then replace it by a new one."""
        key = self._keys[slot]
        old = self._known.pop(key)
        for _ in range(READ_BACKS):
            if not self._going():
                break
            try:
                found = self._get(key)
            except ZkvError as error:
                self._fault(f"GET {key}", error)
                continue
            if found != old and (found and found[0]) != value:
                self._wrong(f"GET {key}: found {found!r:.60}, neither the old state nor the new")
            break
        self._retired.append(key)
        self._keys[slot] = f"{key}+"
        self._known[self._keys[slot]] = None

    def _close_accounts(self) -> None:
        """Check all keys once more and remove them."""
        try:
            for start in range(0, len(self._keys), BATCH):
                self._check_and_remove(self._keys[start : start + BATCH])
            for start in range(0, len(self._retired), BATCH):
                self._client.call("MDELETE", keys=self._retired[start : start + BATCH])
        except ZkvError as error:
            self._fault("the last check", error)

    def _check_and_remove(self, keys: list[str]) -> None:
        reply = self._client.call("MGET", keys=keys)
        found = list(zip(reply.get("values", ()), reply.get("revs", ()), strict=False))
        if len(found) != len(keys):
            self._wrong(f"MGET: {len(found)} values and revisions for {len(keys)} keys")
        for key, entry in zip(keys, found, strict=False):
            self._expect("MGET", key, None if entry == (None, 0) else entry)
        present = sum(self._known[key] is not None for key in keys)
        deleted = self._client.call("MDELETE", keys=keys)["deleted"]
        if deleted != present:
            self._wrong(f"MDELETE: {deleted} deleted where {present} were present")

    def _wrong(self, note: str) -> None:
        self.tally.wrong += 1
        self._note(f"WRONG {note}")

    def _fault(self, what: str, error: ZkvError) -> None:
        """Count a failed request; a violation of the protocol counts as a wrong answer."""
        if error.code in {"BAD_REPLY", "INTERNAL", "NOT_FOUND"}:
            self._wrong(f"{what}: {error}")
            return
        counter = self.tally.put_off if error.retry else self.tally.refused
        counter[error.code] += 1
        self._note(f"{what}: {error}")
        if error.retry and not isinstance(error, NoReply):
            self._stop.wait(PAUSE)

    def _note(self, note: str) -> None:
        if len(self.tally.notes) < SHOWN:
            self.tally.notes.append(note)


def show_progress(futures: Sequence[Future[None]], tallies: Sequence[Tally], total: int) -> None:
    """Print the progress until all threads are done: on one line, or on many in a pipe."""
    out: TextIO = sys.stderr
    live = out.isatty()
    started = time.perf_counter()
    running = True
    while running:
        running = bool(wait(futures, timeout=REDRAW[live]).not_done)
        done = sum(tally.done for tally in tallies)
        wrong = sum(tally.wrong for tally in tallies)
        failed = sum(tally.put_off.total() + tally.refused.total() for tally in tallies)
        rate = done / (time.perf_counter() - started)
        line = f"{done / total:4.0%}  {done:,} of {total:,} requests  {rate:,.0f}/s"
        line += f"  {failed:,} errors  {wrong:,} wrong"
        out.write(f"\r{line}\x1b[K" if live else f"{line}\n")
        out.flush()
    if live:
        out.write("\n")


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Return a percentile of the ordered values."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def print_summary(tallies: Sequence[Tally], total: int, duration: float) -> None:
    """Print figures, and the first faults; `duration` is in seconds."""
    notes = [note for tally in tallies for note in tally.notes]
    for note in sorted(notes, key=lambda note: not note.startswith("WRONG"))[:SHOWN]:
        print(note)
    done = sum(tally.done for tally in tallies)
    print(f"{done:,} of {total:,} requests in {duration:.2f} s: {done / duration:,.0f} ops/s")
    errors: Counter[str] = Counter()
    for tally in tallies:
        errors += tally.put_off + tally.refused
    codes = "".join(f", {code} {count:,}" for code, count in errors.most_common())
    print(f"errors {errors.total():,}{codes}; wrong answers {sum(t.wrong for t in tallies):,}")
    print("latency, us       count       p50       p90       p99       max")
    for op in WEIGHTS:
        ordered = sorted(value for tally in tallies for value in tally.latencies[op])
        if ordered:
            row = [percentile(ordered, percent) for percent in (50, 90, 99, 100)]
            print(f"{op:<11} {len(ordered):>11,}" + "".join(f"{value:>10,.0f}" for value in row))


def exit_status(tallies: Sequence[Tally]) -> int:
    """Return the exit status for the most serious fault of all threads."""
    if any(tally.wrong for tally in tallies):
        return 1
    if any(tally.put_off for tally in tallies):
        return 3
    return 2 if any(tally.refused for tally in tallies) else 0


def count(text: str) -> int:
    """Parse a number of at least 1."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options, with a seed and a name for this run; exits on wrong usage."""
    parser = argparse.ArgumentParser(
        description="Load a zkv server from many threads and check every answer.",
        epilog="Exit status: 0 no errors; 1 a wrong answer; 2 wrong usage, or a permanent "
        "refusal; 3 no answer in time, or a temporary refusal.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    endpoint = os.environ.get("ZKV_ENDPOINT") or DEFAULT_ENDPOINT
    parser.add_argument("-e", "--endpoint", default=endpoint, help="of the server")
    parser.add_argument("--threads", type=count, default=8, metavar="N", help="threads")
    parser.add_argument("--requests", type=count, default=1000, metavar="N", help="per thread")
    parser.add_argument("--keys", type=count, default=100, metavar="N", help="keys per thread")
    parser.add_argument("--value-size", type=count, default=100, metavar="N", help="bytes")
    parser.add_argument("--timeout", type=seconds, default=5.0, metavar="S", help="seconds")
    parser.add_argument("--seed", type=int, help="same seed, same requests; random if not given")
    options = parser.parse_args(arguments)
    if options.threads > MOST_THREADS:
        parser.error(f"argument --threads: {MOST_THREADS} at most")
    if options.seed is None:
        options.seed = secrets.randbelow(2**32)
    options.run = secrets.token_hex(4)  # in every key, so that runs never share one
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the load and return the exit status."""
    options = parse(arguments)
    try:
        with Client(options.endpoint, timeout=options.timeout) as client:
            client.call("PING")  # reports a missing server at once, and only once
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except ZkvError as error:
        print(error, file=sys.stderr)
        return 3 if error.retry else 2
    stop = threading.Event()
    workers = [Worker(f"{number:03}", options, stop) for number in range(options.threads)]
    tallies = [worker.tally for worker in workers]
    total = options.threads * options.requests
    print(f"{options.threads} threads, seed {options.seed}", file=sys.stderr)
    started = time.perf_counter()
    with ThreadPoolExecutor(options.threads) as pool:
        futures = [pool.submit(worker.run) for worker in workers]
        try:
            show_progress(futures, tallies, total)
        except KeyboardInterrupt:
            stop.set()
    print_summary(tallies, total, time.perf_counter() - started)
    for future in futures:
        future.result()  # raises the error of a thread that died
    return 130 if stop.is_set() else exit_status(tallies)


if __name__ == "__main__":
    sys.exit(main())
