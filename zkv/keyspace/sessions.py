"""Remembers the exactly-once requests that have run, and their replies.

This is the completion record of RIFL (Lee et al., "Implementing Linearizability at Large Scale and
Low Latency", SOSP 2015): the reply is stored in the same log frame as the write, and a repeat finds
it before anything runs. Three things differ, because RIFL asks more of clients than a REQ socket
has. A session is a random name, not a lease from a coordinator. It is forgotten after it has been
silent for some time. Clients do not acknowledge replies; the last ones, a fixed number, are kept.

Repeats end the silence, but are not logged: after a restart, silence counts from the last write.

The memory of all replies is bounded, too. No reply is forgotten early because of that: new writes
are refused instead. Those with large replies are refused sooner, so that a few clients with large
replies do not block all the others, which have small ones.

Where there are users, a session belongs to one: its name here begins with the user's scope. A user
may take as much of both bounds as is still free, so one that takes all it can leaves half of them,
and the next one a quarter (dynamic thresholds: Choudhury and Hahne, "Dynamic Queue Length
Thresholds for Shared-Memory Packet Switches", IEEE/ACM Transactions on Networking, 1998).

The usual request of a lane is looked up and remembered in C: see zkv/compiled/sessions.c.

Protected by the keyspace's lock.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from zkv import compiled
from zkv.errors import BadRequest, Busy, StaleSeq, shorten
from zkv.keyspace.change import Once
from zkv.users.rights import SCOPE_END

REPLY_OVERHEAD: Final = 256
"""Bytes that a remembered reply takes in addition to its body."""
REPLY_STEP: Final = 64
"""Sizes of replies are rounded up to a multiple of this. Common replies are smaller, so a new one
fits in place of an old one even if its revision or sum has become a byte longer.
"""
SESSION_BYTES: Final = 512
"""Memory that a session takes in addition to its replies."""
SMALL_REPLY: Final = 1_024
"""Bytes of the largest reply that may use the part reserved for small replies."""
KEPT_SHARE: Final = 4
"""One part in this many of the capacity is reserved for small replies."""
FORGOTTEN_AT_ONCE: Final = 20
"""Silent sessions that one request removes at most: about 0.2 ms, however many there are."""


class Remembered(Struct, frozen=True, gc=False):
    """One remembered reply.

    Args:
        digest: digest of the request.
        reply: the packed reply.
        rev: the newest revision that it reveals.
        lsn: log number of its frame; 0 after a restart, when it is on disk.
    """

    digest: bytes
    reply: bytes
    rev: int
    lsn: int


class Window(Struct, frozen=True, gc=False):
    """The state of a session's window before a reply was added, for `Sessions.undo`.

    Args:
        session: the session's name.
        seq: the sequence number of the reply.
        newest: the highest sequence number.
        dropped: the replies that the new one has pushed out of the window, by sequence number.
    """

    session: str
    seq: int
    newest: int
    dropped: tuple[tuple[int, Remembered], ...]


SessionState = tuple[str, int, list[tuple[int, bytes, bytes, int]]]
"""Name, time of last use, and for each remembered reply: seq, digest, reply and revision."""


class Share(Struct, gc=False):
    """The share of one user: the number of its sessions, and the bytes of their replies."""

    sessions: int = 0
    bytes: int = 0


class PythonSession(Struct, gc=False):
    """The remembered replies of one client.

    Args:
        used: time of its last request, Unix time in ms.
        newest: highest sequence number so far.
        replies: by sequence number.
        share: its user's; None = users are not known, or it is from before they were.
    """

    used: int
    newest: int = 0
    replies: dict[int, Remembered] = {}
    share: Share | None = None


if TYPE_CHECKING:
    ClientSession = PythonSession
    _Base = object
else:  # C has the attributes that it needs for the usual request of a lane.
    ClientSession = compiled.store.ClientSession if compiled.COMPILED else PythonSession
    _Base = compiled.store.SessionsBase if compiled.COMPILED else object


class Sessions(_Base):
    """All sessions, in order of their last use, the oldest first.

    Args:
        window: number of newest sequence numbers that each session remembers.
        ttl: ms of silence after which a session is forgotten.
        most: largest number of sessions.
        most_bytes: largest size of all replies together.

    By default nothing is bounded and nothing is forgotten.
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
        self._remembered_type, self._window_type = Remembered, Window  # C makes some, too.
        self._sessions: OrderedDict[str, ClientSession] = OrderedDict()
        self._shares: dict[str, Share] = {}
        self._has_users = False
        self._replies = 0
        self._bytes = 0
        self._look_at = 0  # No session is silent before.

    def share_among_users(self) -> None:
        """Have the sessions belong to users from now on. Call this before the first request."""
        self._has_users = True
        for name, session in self._sessions.items():
            if SCOPE_END in name:
                session.share = self._share_of(name)
                session.share.sessions += 1
                session.share.bytes += sum(map(_size_of, session.replies.values()))

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def memory(self) -> int:
        """The memory that the sessions take, with their replies."""
        return self._bytes + len(self._sessions) * SESSION_BYTES

    def recall(self, name: str, seq: int, digest: bytes, now: int) -> Remembered | None:
        """Return the remembered reply of a repeat; None for a new request, which may run.

        Raises:
            BadRequest: another request had this sequence number.
            StaleSeq: the sequence number is older than the window.
            Busy: the request would begin a session, and there are as many as allowed.
        """
        self.forget_silent(now)
        session = self._awake(name, now)
        if self._has_users and (session is None or seq not in session.replies):
            known = self._recall_from_before(name, seq, digest, now)
            if known is not None:
                return known
        if session is None:
            self._require_place(name)
            return None
        session.used = now
        self._sessions.move_to_end(name)
        return self._in(session, name, seq, digest)

    def knows(self, name: str, seq: int) -> bool:
        """Return True if the reply to a request is remembered."""
        names = {name, _bare(name)} if self._has_users else {name}
        sessions = [self._sessions[each] for each in names if each in self._sessions]
        return any(seq in session.replies for session in sessions)

    def _awake(self, name: str, now: int) -> ClientSession | None:
        """Return a session, unless it has been silent for too long; then it is forgotten."""
        session = self._sessions.get(name)
        if session is not None and self._is_silent(session, now):
            self._forget(name)
            return None
        return session

    def _recall_from_before(
        self, name: str, seq: int, digest: bytes, now: int
    ) -> Remembered | None:
        """Look into the session of this name from before users were turned on.

        Whoever repeats its requests gets its replies: nobody knows whose it was.
        """
        bare = _bare(name)
        session = self._awake(bare, now)
        if session is None or seq > session.newest:
            return None
        session.used = now
        self._sessions.move_to_end(bare)
        return self._in(session, name, seq, digest)

    def _in(self, session: ClientSession, name: str, seq: int, digest: bytes) -> Remembered | None:
        """See `recall`."""
        name = _bare(name) if self._has_users else name
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

    def require_capacity(self, name: str, seq: int, size: int) -> None:
        """Raise Busy if there is no capacity for a reply of ``size`` bytes to a new request.

        A reply that is no larger than those that it pushes out of its window is always taken.
        """
        small = size <= SMALL_REPLY
        most = self._most_bytes if small else self._most_bytes - self._most_bytes // KEPT_SHARE
        if self._has_users and SCOPE_END in name:
            most -= self._share_of(name).bytes
        more = counted_size(size)
        if self._bytes + more <= most:
            return
        session = self._sessions.get(name)
        if session is not None and seq > session.newest:
            edge = seq - self._window
            more -= sum([_size_of(known) for old, known in session.replies.items() if old <= edge])
        if more > 0 and self._bytes + more > most:
            raise Busy(
                f"the replies that are remembered take {self._bytes} bytes, and one of {size} more "
                f"would be too much; session_bytes is {self._most_bytes}"
                + ("" if small else ", of which a quarter is kept for small replies")
                + (", and a user may take as much of it as is free" if self._has_users else "")
            )

    def _require_place(self, name: str) -> None:
        """Raise Busy if there is no place for a new session."""
        if len(self._sessions) >= self._most:
            raise Busy(f"there are {self._most} sessions already; max_sessions")
        if self._has_users:
            mine = self._share_of(name).sessions
            if mine >= self._most - len(self._sessions):
                raise Busy(
                    f"this user has {mine} sessions already; a user may have as many as are free, "
                    f"and max_sessions is {self._most}"
                )

    def _share_of(self, name: str) -> Share:
        """Return the share of the user in the name of a session."""
        scope = name.partition(SCOPE_END)[0]
        share = self._shares.get(scope)
        if share is None:
            share = self._shares[scope] = Share()
        return share

    def _begin(self, name: str, now: int) -> ClientSession:
        session = self._sessions[name] = ClientSession(now)
        if self._has_users and SCOPE_END in name:
            session.share = self._share_of(name)
            session.share.sessions += 1
        return session

    def _add(self, session: ClientSession, seq: int, known: Remembered) -> None:
        size = _size_of(known)
        session.replies[seq] = known
        self._replies += 1
        self._bytes += size
        if session.share is not None:
            session.share.bytes += size

    def remember(self, once: Once, rev: int, lsn: int, now: int) -> Window:
        """Remember a reply, and drop those that it pushes out of the session's window.

        Returns the window's previous state, for `undo`.
        """
        session = self._sessions.get(once.session)
        if session is None or once.seq != session.newest + 1:
            return self._remember_apart(session, once, rev, lsn, now)
        known = Remembered(once.digest, once.reply, rev, lsn)
        dropped = self._remember_next(session, once.session, once.seq, known, now)
        gone = () if dropped is None else ((once.seq - self._window, dropped),)
        return Window(once.session, once.seq, once.seq - 1, gone)

    def _remember_next(
        self, session: ClientSession, name: str, seq: int, known: Remembered, now: int
    ) -> Remembered | None:
        """See `remember`: the usual case. Return the reply that was dropped, if there was one."""
        session.newest = seq
        session.used = max(session.used, now)
        self._sessions.move_to_end(name)
        if session.share is not None:
            self._add(session, seq, known)
            return self._drop(session, seq - self._window)
        # The same without calls: with them, to replay it would take 1.6 times as long.
        size = len(known.reply)
        session.replies[seq] = known
        dropped = session.replies.pop(seq - self._window, None)
        if dropped is None:
            self._replies += 1
            self._bytes += REPLY_OVERHEAD + size + -size % REPLY_STEP
        elif len(dropped.reply) != size:
            self._bytes += counted_size(size) - _size_of(dropped)
        return dropped

    def _remember_apart(
        self, session: ClientSession | None, once: Once, rev: int, lsn: int, now: int
    ) -> Window:
        """See `remember`: a new session, or a sequence number that is not the next one."""
        anew = session is not None and once.seq <= session.newest
        if session is not None and anew and self._is_silent(session, now):
            # Only during replay: the session was forgotten at that time, too. If the sequence
            # numbers continue, repeats had kept it alive, which are not in the log.
            self._forget(once.session)
            session = None
        if session is None:
            session = self._begin(once.session, now)
        session.used = max(session.used, now)
        self._sessions.move_to_end(once.session)
        before = session.newest
        if once.seq <= before - self._window:
            # Only during replay of an old log: outside the window.
            return Window(once.session, once.seq, before, ())
        self._drop(session, once.seq)
        known = Remembered(once.digest, once.reply, rev, lsn)
        self._add(session, once.seq, known)
        if once.seq <= before:
            return Window(once.session, once.seq, before, ())
        session.newest = once.seq
        edge = once.seq - self._window
        gone = [seq for seq in session.replies if seq <= edge]
        dropped = [(seq, self._drop(session, seq)) for seq in gone]
        left = tuple([(seq, known) for seq, known in dropped if known is not None])
        return Window(once.session, once.seq, before, left)

    def replay(self, run: list[tuple[str, int, bytes, bytes, int, int]]) -> None:
        """Remember the replies of commits from the log, in order.

        Args:
            run: for each its session, sequence number, digest, reply, revision, and time in ms.
        """
        for name, seq, digest, reply, rev, now in run:
            session = self._sessions.get(name)
            if session is None or seq != session.newest + 1:
                self.remember(Once(name, seq, digest, reply), rev, 0, now)
            else:
                self._remember_next(session, name, seq, Remembered(digest, reply, rev, 0), now)

    def undo(self, window: Window) -> None:
        """Forget the reply of a rolled-back commit; ``window`` is the state to return to."""
        session = self._sessions.get(window.session)
        if session is None:
            return
        self._drop(session, window.seq)
        session.newest = window.newest
        for seq, known in window.dropped:
            self._add(session, seq, known)

    def forget_silent(self, now: int) -> None:
        """Forget sessions that have been silent for longer than the ttl, a few at a time."""
        for _ in range(FORGOTTEN_AT_ONCE):
            name = next(iter(self._sessions), None)
            if name is None:
                return
            oldest = self._sessions[name]
            if not self._is_silent(oldest, now):
                self._look_at = oldest.used + self._ttl
                return
            self._forget(name)

    def names(self) -> list[str]:
        """Return the names of all sessions."""
        return list(self._sessions)

    def state(self, name: str, lsn: int) -> SessionState | None:
        """Return a session with its replies up to ``lsn``, for a snapshot; None if it is gone."""
        session = self._sessions.get(name)
        if session is None:
            return None
        replies = [
            (seq, known.digest, known.reply, known.rev)
            for seq, known in session.replies.items()
            if known.lsn <= lsn
        ]
        return name, session.used, replies

    def restore(self, state: SessionState) -> None:
        """Load a session from a snapshot."""
        name, used, replies = state
        for seq, digest, reply, rev in replies:
            self.remember(Once(name, seq, digest, reply), rev, 0, used)

    def statistics(self) -> dict[str, int]:
        """Return the fields of INFO's ``stats.sessions``."""
        return {"sessions": len(self._sessions), "replies": self._replies, "bytes": self._bytes}

    def _is_silent(self, session: ClientSession, now: int) -> bool:
        return now - session.used >= self._ttl

    def _forget(self, name: str) -> None:
        session = self._sessions.pop(name)
        size = sum(map(_size_of, session.replies.values()))
        self._replies -= len(session.replies)
        self._bytes -= size
        if session.share is not None:
            session.share.sessions -= 1
            session.share.bytes -= size

    def _drop(self, session: ClientSession, seq: int) -> Remembered | None:
        known = session.replies.pop(seq, None)
        if known is not None:
            size = _size_of(known)
            self._replies -= 1
            self._bytes -= size
            if session.share is not None:
                session.share.bytes -= size
        return known


def _bare(name: str) -> str:
    """Return the name that the client has given to a session."""
    return name.rpartition(SCOPE_END)[2]


def counted_size(size: int) -> int:
    """Return the bytes that a reply of ``size`` bytes counts as."""
    return REPLY_OVERHEAD + size + -size % REPLY_STEP


def _size_of(known: Remembered) -> int:
    return counted_size(len(known.reply))
