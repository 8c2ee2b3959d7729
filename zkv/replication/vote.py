"""The vote of all machines with a store: a standby may lead if enough of them agree.

With ``sync`` = N, a write is acknowledged once N other machines than the primary have it on disk.
All machines that may lead are named in ``[replication] machines``, the same list everywhere. Of M
machines, one is the primary, and S = M - 1 are its standbys; which one leads may change.

A standby that is promoted asks all others for a promise (`zkv.replication.promises`), and makes one
to itself. It needs

    max(S - N + 1, a majority of S)

promises, its own included, and its log must be the longest of all that were told: the highest
(number of the term, log number) of a commit that does more than begin a term.

Why nothing that was acknowledged is missing: an acknowledged write is on N + 1 of the M machines,
its primary among them. S - N + 1 = M - N others cannot all lack it: N + 1 + M - N > M. It does not
matter which machine was the primary, and whether it is among those that answer; so the list may
name it, and nobody has to know which one it is. The longest log has what each of them has: a term
that was led began with all that had been acknowledged before, by the same rule, and within a term
a longer log only adds. The commit that begins a term is left out, since a promotion may have failed
after it, while the former primary acknowledged more.

Why nobody else acknowledges a write afterwards: a primary of a lower term, whichever, finds at most
M - 1 - (M - N) = N - 1 machines that confirm to it, and needs N. If it is one of those that have
promised, it does not lead. So it may answer old reads until it is stopped, but no writes.

Why two do not lead after promotions at the same time: a term is promised once. Two majorities of
the S standbys of one primary have a standby in common, which gives one of the two a higher term. If
the one with the lower term begins nevertheless, it has held its own promise until then, and answers
the other one that it leads; so that one waits for all that may answer. Meanwhile nobody is promised
a higher term (`HELD_SECONDS` there), or two could outbid each other for ever. S - N + 1 alone would
not do: with S = N = 3 it is one standby, and two of them would lead. They could not acknowledge
anything, as each would need the other; but nobody could tell which one to stop. A former primary
that follows may be asked, too: then two may still lead, on two sides of a cut network, each with
half of an even number M of machines; N is at least M / 2 then, so neither acknowledges a write.

A planned promotion asks as well, once the primary has stopped: that one may be cut off, and another
one may lead by promises of the rest. It then needs fewer of the others, since the primary answers.
"""

from __future__ import annotations

import contextlib
import math
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from zkv.errors import ZkvError
from zkv.replication.stream import StreamError, StreamRefusedError, ask_for_promise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    from zkv.replication.stream import PromiseAnswer

ANSWER_SECONDS: Final = 5.0
"""How long another machine may take to answer."""
LAST_SECONDS: Final = 0.5
"""How long it may take once the others cannot change much: one leads, or enough have answered."""
WITHDRAWAL_SECONDS: Final = 2.0
"""The same for a withdrawal: nothing depends on it at once."""


OUTBID: Final = "another standby is being promoted"


class NotElectedError(ZkvError):
    """The standby may not lead."""


class OutbidError(NotElectedError):
    """Another standby is being promoted, or was: a higher term may be promised.

    Args:
        message: for people.
        promised: the highest term that the others know.
    """

    def __init__(self, message: str, promised: int) -> None:
        super().__init__(message)
        self.promised = promised


class OtherMachine(Protocol):
    """A connection to another machine."""

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Return the reply. Raises StreamError."""

    def interrupt(self) -> None:
        """Have a request that waits fail, and all later ones. Any thread."""

    def close(self) -> None:
        """Close the connection."""


class Machines(NamedTuple):
    """All machines with the store.

    Args:
        others: their endpoints, without this one.
        sync: the setting.
        listed: the setting `[replication] machines`.
    """

    others: list[str]
    sync: int
    listed: list[str]

    @property
    def standbys(self) -> int:
        """How many standbys there are, whichever machine leads."""
        return len(self.others)

    @property
    def needed(self) -> int:
        """How many have to promise, this one included."""
        return max(self.standbys - self.sync + 1, self.standbys // 2 + 1)

    def explain(self) -> str:
        """Return why so many are needed."""
        if self.standbys - self.sync + 1 < self.needed:
            return f"{self.needed}, a majority, are needed"
        return f"{self.standbys} - {self.sync} + 1 are needed"


class Bid(NamedTuple):
    """The request of a standby to the others.

    Args:
        member: its name.
        attempt: the number of its attempt.
        store: the identity of its store.
        term: the number of the term that it is going to begin.
        tag: the tag of that term; None: the attempt has failed, promises to it are void.
    """

    member: str
    attempt: int
    store: str
    term: int
    tag: str | None


class Vote:
    """Asks the other machines. One thread at a time.

    Args:
        machines: all of them.
        connect: returns connections to an endpoint, one with each key that the server may have.
    """

    def __init__(self, machines: Machines, connect: Callable[[str], list[OtherMachine]]) -> None:
        self.machines = machines
        self._connect = connect
        self._answering: set[str] = set()  # Those that have answered the last bid; empty = all may.

    def begin(self) -> None:
        """Begin anew: machines that did not answer before may do so."""
        self._answering = set()

    def bid(self, bid: Bid, own: PromiseAnswer, is_planned: bool) -> None:
        """Ask all others for a promise, and judge what they answer.

        Args:
            bid: what they are asked for.
            own: what this server has promised itself, and how far its own log is.
            is_planned: its primary has stopped: once there are enough, the rest may be missing.

        Raises NotElectedError.
        """
        if not own.granted:
            raise OutbidError(OUTBID, own.promised)

        def patience(answers: dict[str, PromiseAnswer]) -> float:
            if _leading(own, answers) is not None:
                return LAST_SECONDS
            granted = sum(each.granted for each in answers.values()) + 1
            if granted >= self.machines.needed:  # Another one may answer that it leads.
                return LAST_SECONDS if is_planned else ANSWER_SECONDS
            return self._patience(answers)

        answers, refusals = self._ask_all([bid], ANSWER_SECONDS, patience)
        self._answering = {*answers}
        judge(self.machines, own, answers, refusals)

    def withdraw(self, bids: list[Bid]) -> None:
        """Tell all others that attempts have failed, as far as they can be reached.

        Args:
            bids: the attempts, without a tag.
        """
        self._ask_all(bids, WITHDRAWAL_SECONDS, self._patience)

    def promised(self, bid: Bid) -> int:
        """Ask for promises without judging them; return the highest term that the others know."""
        answers, _ = self._ask_all([bid], ANSWER_SECONDS, lambda _: ANSWER_SECONDS)
        return max((each.promised for each in answers.values() if not each.granted), default=0)

    def _patience(self, answers: dict[str, PromiseAnswer]) -> float:
        """Return for how long others are waited for: not if they have not answered before."""
        have_answered = self._answering and self._answering <= answers.keys()
        return 0.0 if have_answered else ANSWER_SECONDS

    def _ask_all(
        self,
        bids: list[Bid],
        seconds: float,
        patience: Callable[[dict[str, PromiseAnswer]], float],
    ) -> tuple[dict[str, PromiseAnswer], dict[str, str]]:
        """Return answers and refusals by endpoint.

        Args:
            bids: what to ask each for. The answer is that to the last one.
            seconds: how long to wait for each answer.
            patience: returns for how long the others are waited for, after these answers.
        """
        others = self.machines.others
        answers: dict[str, PromiseAnswer] = {}
        refusals: dict[str, str] = {}
        with contextlib.ExitStack() as closing:
            asked = [(where, each) for where in others for each in self._connect(where)]
            for _, each in asked:
                closing.callback(each.close)
            pool = closing.enter_context(ThreadPoolExecutor(len(asked), "zkv-vote"))
            for _, each in asked:  # Before the pool waits for its threads.
                closing.callback(each.interrupt)
            endpoints = {pool.submit(_ask_one, each, bids, seconds): where for where, each in asked}
            for done in _completed(endpoints, lambda: patience(answers)):
                _sort(done, endpoints[done], answers, refusals)
                if len(answers) + len(refusals) == len(others):
                    break
        return answers, refusals


def _completed(
    asked: Iterable[Future[PromiseAnswer]], patience: Callable[[], float]
) -> Iterator[Future[PromiseAnswer]]:
    """Yield what is answered, until all is, or the patience with the rest has ended."""
    pending, end = set(asked), math.inf
    while pending and (left := end - time.monotonic()) > 0:
        timeout = None if left == math.inf else left
        done, pending = wait(pending, timeout, return_when=FIRST_COMPLETED)
        yield from done
        end = min(end, time.monotonic() + patience())


def _sort(
    done: Future[PromiseAnswer],
    endpoint: str,
    answers: dict[str, PromiseAnswer],
    refusals: dict[str, str],
) -> None:
    """Note an answer or a refusal; nothing if there is no reply."""
    error = done.exception()
    if error is None:
        answers[endpoint] = done.result()
    elif isinstance(error, StreamRefusedError):
        refusals[endpoint] = str(error)
    elif not isinstance(error, StreamError):
        raise error


def _ask_one(connection: OtherMachine, bids: list[Bid], seconds: float) -> PromiseAnswer:
    """Return the answer of a server to the last of these bids. Raises StreamError."""
    return [ask_for_promise(connection.ask, bid, seconds) for bid in bids][-1]


def judge(
    machines: Machines,
    own: PromiseAnswer,
    answers: dict[str, PromiseAnswer],
    refusals: dict[str, str],
) -> None:
    """Judge whether a standby may lead.

    Args:
        machines: all machines.
        own: its own answer.
        answers: those of the others, by endpoint.
        refusals: why there is no answer, likewise; none of those that were not reached.

    Raises NotElectedError, which says what is missing.
    """
    _require_same_settings(machines, answers)
    _require_different_servers(own, answers)
    leading = _leading(own, answers)
    if leading is not None:
        raise NotElectedError(f"{leading} leads, in term {answers[leading].promised}")
    voters = {where: each for where, each in answers.items() if not each.leads}
    _require_enough(machines, voters, refusals)
    refused = [each.promised for each in voters.values() if not each.granted]
    # One that has promised a higher term would not confirm this one.
    if len(voters) + 1 - len(refused) < machines.needed or max(refused, default=0) > own.promised:
        raise OutbidError(OUTBID, max(refused))
    _require_longest(own, voters)


def _leading(own: PromiseAnswer, answers: dict[str, PromiseAnswer]) -> str | None:
    """Return the endpoint of the one that leads, if one does.

    One that was cut off may not know that another one leads; it cannot acknowledge anything.
    """
    newest = max([own.place, *(each.place for each in answers.values())])
    for endpoint, each in answers.items():
        if each.leads and each.promised >= newest[0]:
            return endpoint
    return None


def _require_same_settings(machines: Machines, answers: dict[str, PromiseAnswer]) -> None:
    for endpoint, each in answers.items():
        if each.sync != machines.sync or {*each.machines} != {*machines.listed}:
            raise NotElectedError(
                f"{endpoint} has other settings: replication.sync = {each.sync}, machines = "
                f"{', '.join(each.machines) or 'none'}; here it is {machines.sync}, "
                f"{', '.join(machines.listed)}"
            )


def _require_different_servers(own: PromiseAnswer, answers: dict[str, PromiseAnswer]) -> None:
    """Raise NotElectedError if one server answers at two endpoints: it would count twice."""
    seen = {own.server: "this server"}
    for endpoint, each in answers.items():
        if each.server in seen:
            raise NotElectedError(
                f"replication.machines: {endpoint} and {seen[each.server]} are the same"
            )
        seen[each.server] = endpoint


def _require_enough(
    machines: Machines, voters: dict[str, PromiseAnswer], refusals: dict[str, str]
) -> None:
    count = len(voters) + 1
    if count < machines.needed:
        missing = [each for each in machines.others if each not in voters]
        silent = ", ".join(
            f"{each} ({refusals[each]})" if each in refusals else each for each in missing
        )
        raise NotElectedError(
            f"{count} of {machines.standbys} standbys have answered, this one included; "
            f"{machines.explain()}: start them at {silent}, or use `force`, which may lose what "
            f"only they have"
        )


def _require_longest(own: PromiseAnswer, voters: dict[str, PromiseAnswer]) -> None:
    endpoint = max(voters, key=lambda where: voters[where].place, default=None)
    if endpoint is None:
        return
    best = voters[endpoint]
    if best.place > own.place:
        raise NotElectedError(
            f"{endpoint} has a longer log, up to log number {best.lsn} of term {best.term}, and "
            f"this server only {own.lsn} of term {own.term}: promote that one"
        )
    for where, each in voters.items():
        if each.term == own.term and each.tag != own.tag:
            raise NotElectedError(
                f"{where} has another term {each.term}: both were promoted by force; choose one"
            )
