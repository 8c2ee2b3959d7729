"""Which exactly-once requests have run, and what they were answered.

This is the completion record of RIFL (Lee et al., "Implementing Linearizability at Large Scale and
Low Latency", SOSP 2015): the reply is made durable in the same log frame as the write, and a repeat
finds it before anything runs. We differ where RIFL asks for more of clients than a REQ socket has:
a session is a random name and not a lease from a coordinator; it is forgotten after a time of
silence; and instead of acknowledging replies, a client is promised that the last so many are kept.

Repeats are signs of life, but are not logged: after a restart, silence counts from the last write.

What all replies take together is bounded, too. Nothing that was promised to be remembered is
forgotten for that: a new write is refused instead. One whose reply is large is refused earlier, so
that a few clients with large replies do not keep out all the others, whose replies are small.

Everything here is guarded by the keyspace's lock.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from msgspec import Struct

from zkv.errors import BadRequest, Busy, StaleSeq, shorten
from zkv.keyspace.change import Once

REPLY_OVERHEAD: Final = 256
"""Bytes that a remembered reply takes besides itself."""
REPLY_STEP: Final = 64
"""Replies are counted in steps of so many bytes. The common ones are smaller than that, and so one
takes the place of another also where a revision or a sum has become a byte longer.
"""
SMALL_REPLY: Final = 1_024
"""Bytes of a reply that may take the room that is kept for small ones."""
KEPT_SHARE: Final = 4
"""This share of the room is kept for small replies."""
FORGOTTEN_AT_ONCE: Final = 20
"""Silent sessions that one request forgets at most: about 0.2 ms, however many there are."""


class Remembered(Struct, frozen=True, gc=False):
    """One reply that a repeat gets again.

    Args:
        digest: of the request.
        reply: packed.
        rev: the newest revision that it tells of.
        lsn: the log's number of its frame; 0 after a restart, when it is on disk anyway.
    """

    digest: bytes
    reply: bytes
    rev: int
    lsn: int


class Window(Struct, frozen=True, gc=False):
    """What a session's window was before a reply was remembered.

    Args:
        newest: the highest number then.
        dropped: what has fallen out of it since.
    """

    newest: int
    dropped: tuple[tuple[int, Remembered], ...]


SessionState = tuple[str, int, list[tuple[int, bytes, bytes, int]]]
"""Name, when last used, and for each remembered reply: seq, digest, reply and revision."""


class ClientSession(Struct, gc=False):
    """The remembered replies of one client.

    Args:
        used: when it was last heard of, Unix time in ms.
        newest: the highest number so far.
        replies: by their number.
    """

    used: int
    newest: int = 0
    replies: dict[int, Remembered] = {}


class Sessions:
    """All sessions, the one that was silent for longest first.

    Args:
        window: how many of the newest sequence numbers of a session are remembered.
        ttl: silence in ms after which a session is forgotten.
        most: how many sessions there may be. By default, nothing is forgotten.
        most_bytes: what all replies may take together.
    """

    def __init__(
        self,
        window: int = 2**62,
        ttl: int = 2**62,
        most: int = 2**62,
        most_bytes: int = 2**62,
    ) -> None:
        self._window = window
        self._ttl = ttl
        self._most = most
        self._most_bytes = most_bytes
        self._sessions: OrderedDict[str, ClientSession] = OrderedDict()
        self._replies = 0
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._sessions)

    def recall(self, name: str, seq: int, digest: bytes, now: int) -> Remembered | None:
        """What this request was answered before; None where it is new, and may run.

        Raises:
            BadRequest: another request had this number.
            StaleSeq: the number is older than what is remembered.
            Busy: there are as many sessions as there may be, and this would be one more.
        """
        self.forget_silent(now)
        session = self._sessions.get(name)
        if session is not None and self._is_silent(session, now):
            self._forget(name)
            session = None
        if session is None:
            if len(self._sessions) >= self._most:
                raise Busy(f"there are {self._most} sessions already; max_sessions")
            return None
        session.used = now
        self._sessions.move_to_end(name)
        known = session.replies.get(seq)
        if known is None:
            if seq <= session.newest - self._window:
                raise StaleSeq(
                    f"seq {seq} of session {shorten(name)} is older than the last "
                    f"{self._window}, up to {session.newest}, which are remembered"
                )
            return None
        if known.digest != digest:
            raise BadRequest(f"seq {seq} of session {shorten(name)} was another request before")
        return known

    def require_room(self, name: str, seq: int, size: int) -> None:
        """Raise Busy where a reply of ``size`` bytes to a new request is too much.

        One that takes no more than what it drives out of its session's window never is.
        """
        small = size <= SMALL_REPLY
        most = self._most_bytes if small else self._most_bytes - self._most_bytes // KEPT_SHARE
        more = room(size)
        if self._bytes + more <= most:
            return
        session = self._sessions.get(name)
        if session is not None and seq > session.newest:
            edge = seq - self._window
            more -= sum([_room_of(known) for old, known in session.replies.items() if old <= edge])
        if more > 0 and self._bytes + more > most:
            raise Busy(
                f"the replies that are remembered take {self._bytes} bytes, and one of {size} more "
                f"would be too much; session_bytes is {self._most_bytes}"
                + ("" if small else ", of which a quarter is kept for small replies")
            )

    def remember(self, once: Once, rev: int, lsn: int, now: int) -> Window:
        """Keep a reply, and let go of those that fall out of the session's window.

        Returns what `undo` needs.
        """
        session = self._sessions.get(once.session)
        anew = session is not None and once.seq <= session.newest
        if session is not None and anew and self._is_silent(session, now):
            # Only replay comes here: it was forgotten back then, too. Where the numbers go on it
            # was kept alive by repeats, which are in no log.
            self._forget(once.session)
            session = None
        if session is None:
            session = self._sessions[once.session] = ClientSession(now)
        session.used = max(session.used, now)
        self._sessions.move_to_end(once.session)
        before = session.newest
        if once.seq <= before - self._window:
            return Window(before, ())  # Only replay of an old log comes here: it is known no more.
        self._drop(session, once.seq)
        known = Remembered(once.digest, once.reply, rev, lsn)
        session.replies[once.seq] = known
        self._replies += 1
        self._bytes += _room_of(known)
        if once.seq <= before:
            return Window(before, ())
        session.newest = once.seq
        edge = once.seq - self._window
        gone = [edge] if once.seq == before + 1 else [seq for seq in session.replies if seq <= edge]
        dropped = [(seq, self._drop(session, seq)) for seq in gone]
        return Window(before, tuple([(seq, known) for seq, known in dropped if known is not None]))

    def undo(self, once: Once, window: Window) -> None:
        """Forget a reply whose commit has been rolled back; ``window`` is how it was before."""
        session = self._sessions.get(once.session)
        if session is None:
            return
        self._drop(session, once.seq)
        session.newest = window.newest
        for seq, known in window.dropped:
            session.replies[seq] = known
            self._replies += 1
            self._bytes += _room_of(known)

    def forget_silent(self, now: int) -> None:
        """Forget sessions that have been silent for too long, some of them at a time."""
        for _ in range(FORGOTTEN_AT_ONCE):
            name = next(iter(self._sessions), None)
            if name is None or not self._is_silent(self._sessions[name], now):
                return
            self._forget(name)

    def names(self) -> list[str]:
        """The names of all sessions."""
        return list(self._sessions)

    def state(self, name: str, rev: int) -> SessionState | None:
        """A session for a snapshot, with its replies up to ``rev``; None if it is forgotten."""
        session = self._sessions.get(name)
        if session is None:
            return None
        replies = [
            (seq, known.digest, known.reply, known.rev)
            for seq, known in session.replies.items()
            if known.rev <= rev
        ]
        return name, session.used, replies

    def restore(self, state: SessionState) -> None:
        """Take a session back from a snapshot."""
        name, used, replies = state
        for seq, digest, reply, rev in replies:
            self.remember(Once(name, seq, digest, reply), rev, 0, used)

    def statistics(self) -> dict[str, int]:
        """How many there are, and what they take."""
        return {"sessions": len(self._sessions), "replies": self._replies, "bytes": self._bytes}

    def _is_silent(self, session: ClientSession, now: int) -> bool:
        return now - session.used >= self._ttl

    def _forget(self, name: str) -> None:
        session = self._sessions.pop(name)
        self._replies -= len(session.replies)
        self._bytes -= sum(map(_room_of, session.replies.values()))

    def _drop(self, session: ClientSession, seq: int) -> Remembered | None:
        known = session.replies.pop(seq, None)
        if known is not None:
            self._replies -= 1
            self._bytes -= _room_of(known)
        return known


def room(size: int) -> int:
    """What a reply of ``size`` bytes takes of what all may take together."""
    return REPLY_OVERHEAD + size + -size % REPLY_STEP


def _room_of(known: Remembered) -> int:
    return room(len(known.reply))
