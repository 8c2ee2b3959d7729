"""Which exactly-once requests have run, and what they were answered.

This is the completion record of RIFL (Lee et al., "Implementing Linearizability at Large Scale and
Low Latency", SOSP 2015): the reply is made durable in the same log frame as the write, and a repeat
finds it before anything runs. We differ where RIFL asks for more of clients than a REQ socket has:
a session is a random name and not a lease from a coordinator; it is forgotten after a time of
silence; and instead of acknowledging replies, a client is promised that the last so many are kept.

Repeats are signs of life, but are not logged: after a restart, silence counts from the last write.

Everything here is guarded by the keyspace's lock.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from msgspec import Struct

from zkv.errors import BadRequestError, BusyError, StaleSeqError, shorten
from zkv.keyspace.change import Once

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


class Session(Struct, gc=False):
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
    """

    def __init__(self, window: int = 2**62, ttl: int = 2**62, most: int = 2**62) -> None:
        self._window = window
        self._ttl = ttl
        self._most = most
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._replies = 0
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._sessions)

    def recall(self, name: str, seq: int, digest: bytes, now: int) -> Remembered | None:
        """What this request was answered before; None where it is new, and may run.

        Raises:
            BadRequestError: another request had this number.
            StaleSeqError: the number is older than what is remembered.
            BusyError: there are as many sessions as there may be, and this would be one more.
        """
        self.forget_silent(now)
        session = self._sessions.get(name)
        if session is not None and self._is_silent(session, now):
            self._forget(name)
            session = None
        if session is None:
            if len(self._sessions) >= self._most:
                raise BusyError(f"there are {self._most} sessions already; max_sessions")
            return None
        session.used = now
        self._sessions.move_to_end(name)
        known = session.replies.get(seq)
        if known is None:
            if seq <= session.newest - self._window:
                raise StaleSeqError(
                    f"seq {seq} of session {shorten(name)} is older than the last "
                    f"{self._window}, up to {session.newest}, which are remembered"
                )
            return None
        if known.digest != digest:
            raise BadRequestError(
                f"seq {seq} of session {shorten(name)} was another request before"
            )
        return known

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
            session = self._sessions[once.session] = Session(now)
        session.used = max(session.used, now)
        self._sessions.move_to_end(once.session)
        before = session.newest
        if once.seq <= before - self._window:
            return Window(before, ())  # Only replay of an old log comes here: it is known no more.
        self._drop(session, once.seq)
        session.replies[once.seq] = Remembered(once.digest, once.reply, rev, lsn)
        self._replies += 1
        self._bytes += len(once.reply)
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
            self._bytes += len(known.reply)

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

    def _is_silent(self, session: Session, now: int) -> bool:
        return now - session.used >= self._ttl

    def _forget(self, name: str) -> None:
        session = self._sessions.pop(name)
        self._replies -= len(session.replies)
        self._bytes -= sum([len(known.reply) for known in session.replies.values()])

    def _drop(self, session: Session, seq: int) -> Remembered | None:
        known = session.replies.pop(seq, None)
        if known is not None:
            self._replies -= 1
            self._bytes -= len(known.reply)
        return known
