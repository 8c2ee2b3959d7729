"""Follows changes without gaps or repeats. Does no I/O.

A follower has two sources. The feed publishes changes as they are made, and may drop some; CHANGES
returns all changes after a revision, as long as the server keeps them. So the follower accepts a
change of the feed only if its revision is the next one and all parts of that revision have arrived.
Anything else (a later revision, a missing part, a heartbeat with another revision) makes it ask
CHANGES for what follows the last reported revision. Nothing in the feed can make a follower skip a
change, so connections may be cut, messages lost and servers restarted at any time.

A follower of a prefix does not see the revisions of other keys, and cannot distinguish them from
lost messages. It asks CHANGES when a key under its prefix has changed, and once a second, if the
store's revision has grown, to prove that it has missed nothing.

Servers with copies of one store may take each other's place. The owner tells which history the
server has, from INFO. A revision means one thing only within one history, that is, one term of one
store. If the history has changed, following starts over; and if a server of the same history has an
older revision, it lags behind, and the follower waits for it. Heartbeats name the history, so the
follower notices where it must have INFO asked again. This needs no proof from the feed.

If CHANGES cannot answer (`CompactedError`: the follower was away too long), the history is another
one, or the store's revision is older than the follower's although the store has no copies (older
data were restored), following starts over: the follower reports
the change `RESET`, then every entry as a ``PUT``, then changes again. The pages of the scan show
different revisions, so the changes since its first page follow, except those that the scan has
already shown.

Invariants: changes are reported in the order of their revisions, those of one revision together;
between a `RESET` and the end of its scan, each key's changes are in order. `Follower.rev` is the
revision up to which all changes have been reported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from zkv.client.codec import Codec
from zkv.client.errors import (
    BadReplyError,
    BehindError,
    CompactedError,
    RefusedError,
    TooLargeError,
)
from zkv.client.messages import bad_reply
from zkv.client.operations import (
    PAGE,
    Change,
    Entry,
    FeedInfo,
    Operation,
    Reply,
    ScanPages,
    scan_fields,
)
from zkv.client.plain import unpack_first
from zkv.client.slicing import Sliced, name_errors
from zkv.client.standing import StoreTerm, history_in
from zkv.endpoint import check_to_connect

RESET: Final = "RESET"
"""The ``op`` of a change that means: discard your copy; all entries follow."""

HEARTBEAT_TOPIC: Final = b"\0"
CHECK_SECONDS: Final = 1.0
"""The shortest interval at which a follower of a prefix proves that it has missed nothing; without
a feed, the interval at which it asks for changes."""
SILENCE_SECONDS: Final = 3.0
"""The feed is considered dead after this long without a message: heartbeats come every second."""
FIRST_PATIENCE: Final = 1.0
"""Timeout in seconds of the first attempt at a request; closing waits at most this long for it."""
LONGEST_PAUSE: Final = 1.0
"""Longest pause in seconds between attempts while the server is unreachable."""


class ChangeBatch(NamedTuple):
    """Changes that are reported together.

    Args:
        changes: may be empty.
        rev: the revision up to which all changes have been reported, with these.
        in_order: True if their revisions are in order; those of a scan are not.
    """

    changes: list[Change]
    rev: int
    in_order: bool = True


class Follower:
    """Decides which requests to send and which changes to report.

    The owner receives messages of the feed and passes them to `message`; runs `request` whenever it
    returns one, and passes a refusal to `refused`; otherwise it waits for a message until
    `wait_until`.

    Args:
        namespace: the prefix to remove from the keys.
        prefix: of the keys to follow, after the namespace.
        since: the revision after which to begin; None = begin with a `RESET`.
        codec: of the values.
        has_feed: True if there is a feed.
        now: seconds of a monotonic clock.
        history: of the store, from INFO; None = it has no copies.

    Attributes:
        doubts: True if INFO must be asked again, and the answer passed to `joined`.
    """

    def __init__(
        self,
        namespace: str,
        prefix: str,
        since: int | None,
        codec: Codec,
        has_feed: bool,
        now: float,
        history: StoreTerm | None = None,
    ) -> None:
        self._namespace = namespace
        self._prefix = prefix
        self._full_prefix = namespace + prefix
        self._codec = codec
        self._has_feed = has_feed
        self._history = history
        self.doubts = False
        self.rev = since or 0
        """The revision up to which all changes have been reported."""
        self.confirmed = now
        """When this was last known to be all changes."""
        self._parts: list[Change] = []  # The parts of revision `rev` + 1 from the feed.
        self._asking = True
        self._asked = -math.inf
        self._check = math.inf  # When to ask CHANGES although nothing is known to be missing.
        self._heard = now
        self._scan: ScanPages | None = None
        self._scan_rev = 0  # The store's revision when the scan began.
        self._scanned: dict[str, int] = {}  # Revisions in the scan that are newer than that.
        self._settled = 0  # The newest of them.
        self._reset_told = False
        if since is None:
            self._begin_scan()

    @property
    def topics(self) -> list[bytes]:
        """The topics to subscribe to."""
        return [self._full_prefix.encode(), HEARTBEAT_TOPIC]

    @property
    def has_copies(self) -> bool:
        """True if other servers may have copies of the store."""
        return self._history is not None

    @property
    def settling(self) -> bool:
        """True after a `RESET`, until the reported entries show one revision."""
        return self._scan is not None or bool(self._scanned)

    # --- Messages of the feed

    def message(self, frames: Sequence[bytes], now: float) -> ChangeBatch | None:
        """Process a message of the feed. Returns the changes to report, if any."""
        self._heard = now
        if self._scan is not None:
            return None  # The scan, or CHANGES after it, returns this change, too.
        try:
            topic, body = frames
            message = unpack_first("feed", body, self._codec)
            if type(message) is Sliced:
                name_errors("feed", {}, message)
            rev = int(message["rev"])
            if topic == HEARTBEAT_TOPIC:
                self._heartbeat(rev, history_in(message), now)
                return None
            return self._change(rev, message, now)
        except (BadReplyError, LookupError, TypeError, ValueError):
            self._asking = True  # CHANGES returns whatever this message was about.
            return None

    def silent(self, now: float) -> bool:
        """True if the feed has been silent for too long: look up its endpoint and join it again."""
        return self._has_feed and now - self._heard >= SILENCE_SECONDS

    def joined(self, has_feed: bool, now: float) -> None:
        """Record that the feed was joined again. CHANGES then returns what was missed meanwhile."""
        self._has_feed = has_feed
        self._heard = now
        self._asking = True

    def told(self, place: FeedInfo, now: float) -> None:
        """Process what INFO says of the server that is asked from now on."""
        known, history = self._history, place.standing.history
        self._history = history
        self.doubts = False
        is_older = place.rev < self.rev
        if history != known and (known is not None or is_older):
            self._begin_scan()
        elif is_older and known is not None:  # It lags behind: wait.
            self._asking = False
            self._check = now + CHECK_SECONDS
        elif place.rev != self.rev:
            self._asking = True

    def _heartbeat(self, rev: int, history: StoreTerm | None, now: float) -> None:
        if history != self._history:
            self.doubts = True
        elif rev < self.rev and history is not None:
            return  # It lags behind.
        if rev == self.rev and not self._asking:
            self.confirmed = now
            self._check = math.inf
        elif math.isinf(self._check):
            self._check = max(now, self._asked + CHECK_SECONDS)

    def _change(self, rev: int, message: dict[str, Any], now: float) -> ChangeBatch | None:
        if rev <= self.rev:
            return None
        if rev > self.rev + 1 or message.get("part") != len(self._parts) + 1:
            self._asking = True
            return None
        key = message["key"][len(self._namespace) :]
        self._parts.append(Change(rev, message["op"], key, message["value"]))
        if len(self._parts) < message["parts"]:
            return None
        changes, self._parts = self._parts, []
        return self._tell(changes, rev)

    # --- Requests

    def wait_until(self, now: float) -> float:
        """Return until when to wait for a message if there is no request."""
        if not self._has_feed:
            return self._asked + CHECK_SECONDS
        return min(self._check, self._heard + SILENCE_SECONDS, now + CHECK_SECONDS)

    def want(self, rev: int) -> None:
        """Ask CHANGES for this revision unless it has been reported."""
        if rev > self.rev:
            self._asking = True

    def request(self, now: float) -> Operation[ChangeBatch] | None:
        """Return the request to send now; None = there is none."""
        if self._scan is not None:
            return self._scan_page(self._scan)
        due = self._check if self._has_feed else self._asked + CHECK_SECONDS
        if not self._asking and now < due:
            return None
        fields = {"since": self.rev, "prefix": self._full_prefix, "limit": PAGE}
        return Operation("CHANGES", fields, lambda reply: self._read_changes(reply, now))

    def refused(self, error: RefusedError) -> None:
        """React to a refused request. Raises ``error`` if no further request can succeed."""
        if isinstance(error, CompactedError):
            self._begin_scan()
        elif isinstance(error, TooLargeError) and self._scan is not None:
            self._scan.too_large(error)
        elif isinstance(error, BehindError):
            self._begin_scan()  # At a server that lags behind the one where it began.
        elif not error.retry:
            raise error

    def _read_changes(self, reply: Reply, asked: float) -> ChangeBatch:
        following, rev = reply["next"], reply["rev"]
        self._asked = asked
        self._check = math.inf
        if rev < self.rev:
            if self._history is None:
                self._begin_scan()
            else:
                self._asking = False
                self.doubts = True
            return ChangeBatch([], self.rev)
        strip = len(self._namespace)
        changes = [Change(at, op, key[strip:], value) for at, op, key, value in reply["changes"]]
        self._asking = following < rev
        if not self._asking:
            self.confirmed = asked
        if following > self.rev:
            self._parts = []
        return self._tell(changes, following)

    def _tell(self, changes: list[Change], rev: int) -> ChangeBatch:
        """Report ``changes``, which are all changes up to ``rev``."""
        self.rev = rev
        if self._scanned:
            scanned = self._scanned
            changes = [change for change in changes if change.rev > scanned.get(change.key, 0)]
            if rev >= self._settled:
                self._scanned = {}
        return ChangeBatch(changes, rev)

    # --- Starting over

    def _begin_scan(self) -> None:
        fields = scan_fields(
            self._namespace, self._prefix,
            start=None, end=None, after=None, values=True, reverse=False,
        )  # fmt: skip
        self._scan = ScanPages(self._namespace, fields, None)
        self._scanned = {}
        self._reset_told = False
        self._parts = []

    def _scan_page(self, scan: ScanPages) -> Operation[ChangeBatch] | None:
        page = scan.next_page()
        if page is None:
            return None  # Never: `_scan` is None once the scan has ended.
        read = page.read
        fields = page.fields
        if self._reset_told and self._history is not None:
            # An older page of another server might lack changes that CHANGES no longer tells.
            fields = {**fields, "min_rev": self._scan_rev}
        return Operation(page.op, fields, lambda reply: self._read_page(scan, read(reply), reply))

    def _read_page(self, scan: ScanPages, page: list[Entry], reply: Reply) -> ChangeBatch:
        changes = [Change(entry.rev, "PUT", entry.key, entry.value) for entry in page]
        if not self._reset_told:
            self._reset_told = True
            self._scan_rev = self._settled = reply["rev"]
            changes.insert(0, Change(reply["rev"], RESET, "", None))
        for entry in page:
            if entry.rev > self._scan_rev:
                self._scanned[entry.key] = entry.rev
                self._settled = max(self._settled, entry.rev)
        if scan.next_page() is None:
            self._scan = None
            self.rev = self._scan_rev
            self._asking = True
        return ChangeBatch(changes, self.rev, in_order=False)


def feed_endpoint(told: object, endpoint: str) -> str | None:
    """Return where to join the feed that the server at ``endpoint`` reports.

    If the feed is bound to all addresses of its machine, this is the address that the client uses.

    Raises:
        BadReplyError: ``told`` is not an endpoint.
    """
    if told is None:
        return None
    try:
        told = check_to_connect(told)
    except (TypeError, ValueError) as error:
        raise bad_reply("INFO", f"its field feed: {error}") from error
    if told.startswith("tcp://") and endpoint.startswith("tcp://"):
        host, _, port = told.rpartition(":")
        if host in {"tcp://0.0.0.0", "tcp://[::]"}:
            return f"{endpoint.rpartition(':')[0]}:{port}"
    return told


def pause_after(failures: int) -> float:
    """Seconds to wait after a number of failures in a row."""
    return min(LONGEST_PAUSE, 0.02 * 2.0 ** min(failures, 10))


def patience_after(failures: int, timeout: float) -> float:
    """Seconds to wait for a reply after a number of failures in a row, at most ``timeout``."""
    return min(timeout, FIRST_PATIENCE * 2.0 ** min(failures, 10))


def marked(batch: ChangeBatch, told: int) -> Iterator[tuple[Change, int]]:
    """Each change with the revision up to which all changes have been reported, including it.

    Args:
        batch: of changes.
        told: the revision up to which all changes were reported before the batch.
    """
    changes = batch.changes
    for index, change in enumerate(changes, 1):
        if index == len(changes):
            told = batch.rev
        elif batch.in_order and changes[index].rev > change.rev:
            told = change.rev
        yield change, told
