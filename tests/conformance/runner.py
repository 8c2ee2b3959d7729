"""Sends the vectors to a server, by itself or through a client, and compares the replies.

The store must be fresh: sessions and keys of the vectors must not be known to it. The server must
have default limits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from typing import Final, NamedTuple

from tests.conformance.notation import Node, NotationError, decode, difference, encode
from tests.conformance.vectors import INFO, Case, Sequence, without_id

Exchange = Callable[[bytes], bytes]
"""Sends the body of a request and gives the body of its reply."""

PATIENCE: Final = 20.0
"""Seconds until a case that needs time to pass has failed."""


class NotFreshError(Exception):
    """The store has been written to, so revisions and sessions may not be as expected."""


class Outcome(NamedTuple):
    """What became of a case.

    Attributes:
        sequence, case: which one.
        through_client: whether the client sent it, and not this program.
        fault: what is wrong with the reply; "" = nothing.
    """

    sequence: Sequence
    case: Case
    through_client: bool
    fault: str


class Driven(NamedTuple):
    """A client that is to send what it can.

    Attributes:
        exchange: drives it.
        lacks: what its msgpack library is not capable of.
    """

    exchange: Exchange
    lacks: Collection[str] = ()

    def can(self, case: Case) -> bool:
        """Whether it can send this request and tell this reply."""
        return not case.direct and not case.needs.intersection(self.lacks)


def run(
    sequences: list[Sequence], direct: Exchange, client: Driven | None = None
) -> Iterator[Outcome]:
    """Run all cases in their order. Raises NotFreshError.

    Args:
        sequences: from `load`.
        direct: reaches the server without a client between.
        client: sends what it can; the rest goes through ``direct``, so that sequences stay whole.
    """
    if _revision(direct):
        raise NotFreshError("the server's store is not fresh: its revision is not 0")
    for sequence in sequences:
        base = _revision(direct)
        for case in sequence.cases:
            driven = client if client is not None and client.can(case) else None
            # A client's library may have packed what is read, whoever reads it.
            fault = _fault(case, base, driven.exchange if driven else direct, exact=client is None)
            yield Outcome(sequence, case, driven is not None, fault)


def _revision(direct: Exchange) -> int:
    revision = decode(direct(INFO)).get("rev")
    assert revision is not None
    return int(revision.value)


def _fault(case: Case, base: int, exchange: Exchange, *, exact: bool) -> str:
    deadline = time.monotonic() + PATIENCE
    body = encode(case.request, base)
    while True:
        fault = _compare(case, base, exchange(body), exact=exact)
        if not fault or not case.until or time.monotonic() > deadline:
            return fault


def _compare(case: Case, base: int, packed: bytes, *, exact: bool) -> str:
    try:
        reply = decode(packed)
    except NotationError as error:
        return f"the reply cannot be read: {error}: {packed.hex():.80}"
    if reply.kind != "map":
        return f"the reply is no map: {packed.hex():.80}"
    if not exact and not _has_id(case.request):  # A client adds one.
        reply = without_id(reply)
    return difference(case.reply, reply, base, exact=exact)


def _has_id(request: Node) -> bool:
    found = request.get("id")
    return found is not None and found.kind != "nil"
