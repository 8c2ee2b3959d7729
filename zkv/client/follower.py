"""How to follow changes without gaps or repeats, with no I/O.

A follower has two sources. The feed tells changes as they come, and may drop some; CHANGES tells
all changes after a revision, as long as the server keeps them. So the feed is believed only as far
as it proves to be whole: a change is told if its revision is the next one, and all parts of that
revision have come. Whatever else comes (a revision further on, a part too few, a heartbeat that
differs from what has been told) is a reason to ask CHANGES for what is behind the last revision
told. Nothing that the feed says can make a follower skip something, and so connections may be cut,
messages be lost, and servers restart at any time.

A follower of a prefix does not see the revisions of other keys, and cannot tell them from lost
messages. It asks when something under its prefix has changed, and once a second, if the store has
moved on, to prove that it has missed nothing.

Where CHANGES has no answer (`CompactedError`: too long away), or the store has less than had been
told (an older copy of its data was put in its place), following begins anew: the change `RESET`,
then every entry there is as a ``PUT``, then changes again. The pages of the scan show different
moments, so the changes since its first page follow, but for those that the scan has shown already.

Invariants: changes come in the order of their revisions, those of one revision together; between a
`RESET` and the end of its scan, each key's come in order. `Follower.rev` is the revision up to
which everything has been told.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from zkv.client.codec import Codec
from zkv.client.errors import BadReplyError, CompactedError, RefusedError, TooLargeError
from zkv.client.messages import bad_reply, unpack_reply
from zkv.client.operations import PAGE, Change, Entry, Operation, Reply, ScanPages, scan_fields
from zkv.client.slicing import Sliced, name_errors
from zkv.endpoint import check_to_connect

RESET: Final = "RESET"
"""The ``op`` of a change that says: forget all that you know, it is told anew from here on."""

HEARTBEAT_TOPIC: Final = b"\0"
CHECK_SECONDS: Final = 1.0
"""How often it is proved, at most, that nothing under a prefix has been missed; without a feed,
how often changes are asked for."""
SILENCE_SECONDS: Final = 3.0
"""Without a message for this long, as heartbeats come every second, the feed is taken for dead."""
FIRST_PATIENCE: Final = 1.0
"""Seconds for the first attempt at a request: closing waits as long at most, unless it drags on."""
LONGEST_PAUSE: Final = 1.0
"""Seconds between attempts while the server is away."""


class Batch(NamedTuple):
    """Changes that have become known together.

    Args:
        changes: maybe none.
        rev: up to where everything has been told once these have.
        in_order: whether their revisions are in order; those of a scan are not.
    """

    changes: list[Change]
    rev: int
    in_order: bool = True


class Follower:
    """Decides what to ask, and what to tell.

    Whoever holds it receives messages of the feed and hands them to `message`; runs `request`
    whenever there is one, and hands over what that gives or raises; and otherwise waits for a
    message until `wait_until`.

    Args:
        namespace: is taken off the keys.
        prefix: of the keys to follow, behind the namespace.
        since: the revision behind which to begin; None = with a `RESET`.
        codec: of values.
        has_feed: whether there is one.
        now: seconds on a clock that does not go back.
    """

    def __init__(
        self,
        namespace: str,
        prefix: str,
        since: int | None,
        codec: Codec,
        has_feed: bool,
        now: float,
    ) -> None:
        self._namespace = namespace
        self._prefix = prefix
        self._full_prefix = namespace + prefix
        self._codec = codec
        self._has_feed = has_feed
        self.rev = since or 0
        """Everything up to this revision has been told."""
        self.confirmed = now
        """When it was last known that this is all there is."""
        self._parts: list[Change] = []  # What the feed has told of revision `rev` + 1.
        self._asking = True
        self._asked = -math.inf
        self._check = math.inf  # When to ask although nothing is known to be missing.
        self._heard = now
        self._scan: ScanPages | None = None
        self._scan_rev = 0  # The store's revision when the scan began.
        self._scanned: dict[str, int] = {}  # What a scan has shown that is newer than that.
        self._settled = 0  # The newest of it.
        self._reset_told = False
        if since is None:
            self._begin_scan()

    @property
    def topics(self) -> list[bytes]:
        """What to subscribe to."""
        return [self._full_prefix.encode(), HEARTBEAT_TOPIC]

    @property
    def settling(self) -> bool:
        """Whether what has been told since a `RESET` is not the state of one moment yet."""
        return self._scan is not None or bool(self._scanned)

    # --- What the feed says

    def message(self, frames: Sequence[bytes], now: float) -> Batch | None:
        """A message of the feed has come; what there is to tell, if anything."""
        self._heard = now
        if self._scan is not None:
            return None  # What it tells of comes by the scan, or by CHANGES behind it.
        try:
            topic, body = frames
            message = unpack_reply("feed", body, self._codec)
            if type(message) is Sliced:
                name_errors("feed", {}, message)
            rev = int(message["rev"])
            if topic == HEARTBEAT_TOPIC:
                self._heartbeat(rev, now)
                return None
            return self._change(rev, message, now)
        except (BadReplyError, LookupError, TypeError, ValueError):
            self._asking = True  # Whatever it was to say, CHANGES says it.
            return None

    def silent(self, now: float) -> bool:
        """Whether the feed has been silent for too long: it should be looked up and joined anew."""
        return self._has_feed and now - self._heard >= SILENCE_SECONDS

    def joined(self, has_feed: bool, now: float) -> None:
        """The feed has been looked up anew. What it had to say in between is asked for."""
        self._has_feed = has_feed
        self._heard = now
        self._asking = True

    def _heartbeat(self, rev: int, now: float) -> None:
        if rev == self.rev and not self._asking:
            self.confirmed = now
            self._check = math.inf
        elif math.isinf(self._check):
            self._check = max(now, self._asked + CHECK_SECONDS)

    def _change(self, rev: int, message: dict[str, Any], now: float) -> Batch | None:
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

    # --- What is asked

    def wait_until(self, now: float) -> float:
        """Until when to wait for a message, if there is no request."""
        if not self._has_feed:
            return self._asked + CHECK_SECONDS
        return min(self._check, self._heard + SILENCE_SECONDS, now + CHECK_SECONDS)

    def want(self, rev: int) -> None:
        """Somebody knows of this revision: ask for it, unless it has been told."""
        if rev > self.rev:
            self._asking = True

    def request(self, now: float) -> Operation[Batch] | None:
        """What is to be asked now; None = nothing."""
        if self._scan is not None:
            return self._scan_page(self._scan)
        due = self._check if self._has_feed else self._asked + CHECK_SECONDS
        if not self._asking and now < due:
            return None
        fields = {"since": self.rev, "prefix": self._full_prefix, "limit": PAGE}
        return Operation("CHANGES", fields, lambda reply: self._read_changes(reply, now))

    def refused(self, error: RefusedError) -> None:
        """A request was refused. Raises ``error`` where nothing can be done about it."""
        if isinstance(error, CompactedError):
            self._begin_scan()
        elif isinstance(error, TooLargeError) and self._scan is not None:
            self._scan.too_large(error)
        elif not error.retry:
            raise error

    def _read_changes(self, reply: Reply, asked: float) -> Batch:
        following, rev = reply["next"], reply["rev"]
        self._asked = asked
        self._check = math.inf
        if rev < self.rev:
            self._begin_scan()
            return Batch([], self.rev)
        strip = len(self._namespace)
        changes = [Change(at, op, key[strip:], value) for at, op, key, value in reply["changes"]]
        self._asking = following < rev
        if not self._asking:
            self.confirmed = asked
        if following > self.rev:
            self._parts = []
        return self._tell(changes, following)

    def _tell(self, changes: list[Change], rev: int) -> Batch:
        """These are all changes up to ``rev``."""
        self.rev = rev
        if self._scanned:
            scanned = self._scanned
            changes = [change for change in changes if change.rev > scanned.get(change.key, 0)]
            if rev >= self._settled:
                self._scanned = {}
        return Batch(changes, rev)

    # --- Beginning anew

    def _begin_scan(self) -> None:
        fields = scan_fields(
            self._namespace, self._prefix,
            start=None, end=None, after=None, values=True, reverse=False,
        )  # fmt: skip
        self._scan = ScanPages(self._namespace, fields, None)
        self._scanned = {}
        self._reset_told = False
        self._parts = []

    def _scan_page(self, scan: ScanPages) -> Operation[Batch] | None:
        page = scan.next_page()
        if page is None:
            return None  # Never: a scan that is done is forgotten.
        read = page.read
        return Operation(
            page.op, page.fields, lambda reply: self._read_page(scan, read(reply), reply)
        )

    def _read_page(self, scan: ScanPages, page: list[Entry], reply: Reply) -> Batch:
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
        return Batch(changes, self.rev, in_order=False)


def feed_endpoint(told: object, endpoint: str) -> str | None:
    """Where to join the feed that a server at ``endpoint`` has told of.

    One that is bound to all addresses of its machine is found at the address that the client uses.

    Raises:
        BadReplyError: it is no endpoint.
    """
    if told is None:
        return None
    try:
        told = check_to_connect(told)
    except (TypeError, ValueError) as error:
        raise bad_reply("INFO", f"the feed that it tells of: {error}") from error
    if told.startswith("tcp://") and endpoint.startswith("tcp://"):
        host, _, port = told.rpartition(":")
        if host in {"tcp://0.0.0.0", "tcp://[::]"}:
            return f"{endpoint.rpartition(':')[0]}:{port}"
    return told


def pause_after(failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    return min(LONGEST_PAUSE, 0.02 * 2.0 ** min(failures, 10))


def patience_after(failures: int, timeout: float) -> float:
    """Seconds to wait for a reply after so many failures in a row, ``timeout`` at most."""
    return min(timeout, FIRST_PATIENCE * 2.0 ** min(failures, 10))


def marked(batch: Batch, told: int) -> Iterator[tuple[Change, int]]:
    """Each change, with the revision up to which everything has been told once it is taken.

    Args:
        batch: of changes.
        told: the revision up to which everything has been told before them.
    """
    changes = batch.changes
    for index, change in enumerate(changes, 1):
        if index == len(changes):
            told = batch.rev
        elif batch.in_order and changes[index].rev > change.rev:
            told = change.rev
        yield change, told
