"""The lineage of a store: which store it is, and where each of its terms began.

A *term* is a part of a store's history that one server wrote. It ends where another server is
promoted, or where the store is restored. So a log number alone is no position: after a promotion,
two servers may have different commits with the same number. A position is a term and a log number,
as PostgreSQL's timelines with their WAL locations are.

A term has a number, and a random tag: if two servers are promoted by force at the same time, both
begin a term with the same number, but these are different histories.

A lineage does not change: `begin` returns a new one. Terms have increasing numbers and increasing
first log numbers. A store has no identity, and no terms, until another machine first asks for it.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Final, NamedTuple

from msgspec import Meta, Struct

LogNumber = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Term(NamedTuple):
    """One term.

    Args:
        number: 1 for the first one.
        first_lsn: the log number of the commit that begins it.
        tag: 16 random hexadecimal digits.
    """

    number: LogNumber
    first_lsn: LogNumber
    tag: str


class TermStart(Struct, frozen=True, forbid_unknown_fields=True):
    """The beginning of a term, as the commit that begins it has it.

    Args:
        store: the identity of the store.
        term: the number of the term.
        tag: its tag.
    """

    store: str
    term: LogNumber
    tag: str


class Lineage(NamedTuple):
    """The identity of a store, and its terms, the oldest first."""

    store: str = ""
    """32 random hexadecimal digits; empty: the store has no identity yet."""
    terms: tuple[Term, ...] = ()

    @property
    def term(self) -> int:
        """The number of the newest term; 0 = there is none."""
        return self.terms[-1].number if self.terms else 0

    def next_start(self, store: str = "", above: int = 0) -> TermStart:
        """Return the start of the next term.

        Args:
            store: the identity if there is none yet.
            above: a number that the term has to exceed.
        """
        number = max(self.term, above) + 1
        return TermStart(self.store or store or secrets.token_hex(16), number, new_tag())

    def begin(self, start: TermStart, lsn: int) -> Lineage:
        """Return the lineage with one term more, which begins with the commit ``lsn``.

        Raises ValueError if that cannot follow: another store, or a term that is not higher.
        """
        if self.store not in {"", start.store}:
            raise ValueError(f"a term of store {start.store} in the log of store {self.store}")
        if start.term <= self.term:
            raise ValueError(f"term {start.term} after term {self.term}")
        return Lineage(start.store, (*self.terms, Term(start.term, lsn, start.tag)))

    def at(self, lsn: int) -> Term | None:
        """Return the term of the commit ``lsn``; None if it is from before the first term."""
        return next((term for term in reversed(self.terms) if term.first_lsn <= lsn), None)

    def written(self, lsn: int) -> tuple[Term | None, int]:
        """Return the newest commit up to ``lsn`` that does more than begin a term, and its term.

        A term of which there is only the beginning may never have been led: a promotion may have
        failed at its last step. Nothing was ever answered in it.
        """
        term = self.at(lsn)
        while term is not None and term.first_lsn == lsn:
            lsn -= 1
            term = self.at(lsn)
        return term, lsn

    def end_of(self, term: Term, last_lsn: int) -> int:
        """Return the last log number of a term of this lineage.

        Args:
            term: the term.
            last_lsn: the newest log number of the store.
        """
        following = self.terms[self.terms.index(term) + 1 :]
        return following[0].first_lsn - 1 if following else last_lsn

    def common(self, other: Lineage, other_lsn: int, last_lsn: int) -> int:
        """Return the last log number up to which two histories are the same; 0 if none is.

        Args:
            other: the other lineage.
            other_lsn: the newest log number there.
            last_lsn: the newest log number here.
        """
        if self.store != other.store:
            return 0
        shared = [term for term in self.terms if term in other.terms]
        if not shared:
            return 0
        newest = shared[-1]
        return min(self.end_of(newest, last_lsn), other.end_of(newest, other_lsn))


NO_LINEAGE: Final = Lineage()


def new_tag() -> str:
    """Return the tag of a new term."""
    return secrets.token_hex(8)
