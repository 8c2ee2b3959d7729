"""A client of etcd over gRPC, as `zkv.etcd.interface.Etcd` specifies it.

Each endpoint has its connections. A call goes to the endpoint that answered last. After no answer
the next call goes to the next one, so that a dead or stopped node costs a call. A transaction is
never sent twice, unless it was refused unexecuted; a read is.

Calls but those of `status` and serializable reads ask for a node that has a leader: one without
refuses at once, where it would else hold the call until its own limit of some seconds.

Invariant: nothing waits for a node beyond a call's timeout, and `close` waits for none.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeVar
from weakref import WeakSet

from zkv.etcd import messages, rpc
from zkv.etcd.calls import CallError, Metadata
from zkv.etcd.channel import Answer, Asked, NodeCall, NodeChannel, parse_endpoints
from zkv.etcd.errors import (
    AccessError,
    EtcdClosedError,
    EtcdError,
    UnknownOutcomeError,
    error_of,
    has_stale_token,
)
from zkv.etcd.interface import (
    Alarm,
    Compare,
    NodeStatus,
    OnEnd,
    OnEvents,
    Op,
    ReadResult,
    TxnResult,
)
from zkv.etcd.link import in_thread
from zkv.etcd.login import Login
from zkv.etcd.security import EtcdSecurity
from zkv.etcd.watching import NodeWatch

SILENCE: Final = 5.0
"""Seconds without a word after which a watch takes its node for dead."""
PAUSE: Final = 0.05
"""Seconds between two rounds of a read through all endpoints."""
SHORTEST: Final = 0.1
"""Seconds that an endpoint is given at least, if there are as many, before a read goes on."""
WITH_LEADER: Final[Metadata] = (("hasleader", "true"),)

Result = TypeVar("Result")


class EtcdClient:
    """A client of etcd. Any thread may call each method.

    Args:
        endpoints: each ``host:port``, ``http://host:port`` or ``https://host:port``; one or more.
        security: TLS, user and password; None without.
        silence: seconds without a word after which a watch takes its node for dead.

    Raises:
        ConfigError: an endpoint is malformed, or a file of ``security`` cannot be used.
    """

    def __init__(
        self,
        endpoints: list[str],
        *,
        security: EtcdSecurity | None = None,
        silence: float = SILENCE,
    ) -> None:
        addresses, scheme = parse_endpoints(endpoints)
        credentials = (security or EtcdSecurity()).read(scheme)
        self._silence = silence
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._watches: WeakSet[NodeWatch] = WeakSet()
        self._login = Login(credentials.user, credentials.password)
        self._nodes = [NodeChannel(each, credentials) for each in addresses]
        self._current = 0

    def transact(
        self,
        compares: Sequence[Compare],
        then: Sequence[Op],
        otherwise: Sequence[Op] = (),
        *,
        timeout: float,
    ) -> TxnResult:
        """See `Etcd.transact`."""
        request = messages.txn_request(compares, then, otherwise)
        return messages.txn_result(
            self._once(lambda node, left: self._ask(node, node.txn, request, left), timeout)
        )

    def read(
        self,
        begin: bytes,
        end: bytes | None = None,
        *,
        limit: int = 0,
        serializable: bool = False,
        revision: int = 0,
        keys_only: bool = False,
        timeout: float,
    ) -> ReadResult:
        """See `Etcd.read`."""
        request = rpc.RangeRequest(
            key=begin, range_end=end or b"", limit=limit, revision=revision,
            serializable=serializable, keys_only=keys_only,
        )  # fmt: skip
        extra = () if serializable else WITH_LEADER
        return messages.read_result(
            self._again(
                lambda node, left: self._ask(node, node.range, request, left, extra), timeout
            )
        )

    def watch(
        self,
        begin: bytes,
        end: bytes | None,
        from_revision: int,
        on_events: OnEvents,
        on_end: OnEnd,
    ) -> NodeWatch:
        """See `Etcd.watch`."""
        request = rpc.WatchCreateRequest(
            key=begin, range_end=end or b"", start_revision=from_revision
        )
        with self._lock:
            node = self._node()
            watch = NodeWatch(
                node, self._login, request, on_events, on_end,
                lost=lambda: self._move_on(node), silence=self._silence,
            )  # fmt: skip
            self._watches.add(watch)
        watch.start()
        return watch

    def lease_time_to_live(self, lease: int, timeout: float) -> int | None:
        """See `Etcd.lease_time_to_live`."""
        request = rpc.LeaseTimeToLiveRequest(ID=lease)
        answer = self._again(
            lambda node, left: self._ask(node, node.time_to_live, request, left), timeout
        )
        return answer.TTL if answer.TTL >= 0 else None

    def status(self, timeout: float) -> list[NodeStatus]:
        """See `Etcd.status`."""
        self._check_open()
        answers = [
            in_thread(partial(self._status, node, timeout), "etcd-status") for node in self._nodes
        ]
        return [answer.result() for answer in answers]

    def alarms(self, timeout: float) -> list[Alarm]:
        """See `Etcd.alarms`."""
        request = rpc.AlarmRequest(action=rpc.AlarmRequest.GET)
        return messages.alarms(
            self._again(lambda node, left: self._ask(node, node.alarm, request, left), timeout)
        )

    def compact(self, revision: int, timeout: float) -> None:
        """See `Etcd.compact`."""
        request = rpc.CompactionRequest(revision=revision)
        self._once(lambda node, left: self._ask(node, node.compact, request, left), timeout)

    def close(self) -> None:
        """See `Etcd.close`."""
        self._closed.set()
        with self._lock:
            watches = list(self._watches)
        for watch in watches:
            watch.end(EtcdClosedError("the client has been closed"))
        for node in self._nodes:
            node.close()

    # Which node is asked

    def _once(self, ask: Callable[[NodeChannel, float], Result], timeout: float) -> Result:
        """Ask one node, once."""
        node = self._node()
        try:
            result = ask(node, timeout)
        except (UnknownOutcomeError, AccessError):  # A certificate may be wrong at one node only.
            self._move_on(node)
            raise
        self._answered(node)
        return result

    def _again(self, ask: Callable[[NodeChannel, float], Result], timeout: float) -> Result:
        """Ask one node after the other, until one answers or the time is over.

        None is given all the time that is left if there are others: they may have failed at once,
        and be well again soon.
        """
        deadline = time.monotonic() + timeout
        tried = 0
        while True:
            left = deadline - time.monotonic()
            try:
                return self._once(ask, min(left, max(SHORTEST, left / len(self._nodes))))
            except UnknownOutcomeError:
                tried += 1
                pause = PAUSE if tried % len(self._nodes) == 0 else 0.0
                if time.monotonic() + pause >= deadline or self._closed.wait(pause):
                    raise

    def _node(self) -> NodeChannel:
        self._check_open()
        return self._nodes[self._current]

    def _answered(self, node: NodeChannel) -> None:
        self._current = self._nodes.index(node)

    def _move_on(self, node: NodeChannel) -> None:
        with self._lock:  # Of two calls that fail at one node, only one moves on.
            if self._nodes[self._current] is node:
                self._current = (self._current + 1) % len(self._nodes)

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise EtcdClosedError("the client has been closed")

    # How it is asked

    def _ask(
        self,
        node: NodeChannel,
        call: NodeCall[Asked, Answer],
        request: Asked,
        timeout: float,
        extra: Metadata = WITH_LEADER,
    ) -> Answer:
        """Call a node, with a new token if it refuses the one that there is.

        Raises:
            EtcdError: see `zkv.etcd.errors`.
        """
        deadline = time.monotonic() + timeout
        try:
            token = self._login.token(node, timeout)
            try:
                return call(request, deadline - time.monotonic(), extra + token)
            except CallError as error:
                if not (self._login.needed and has_stale_token(error.details)):
                    raise
            self._login.renew(node, token, deadline - time.monotonic())
            return call(request, deadline - time.monotonic(), extra + self._login.metadata)
        except CallError as error:
            raise error_of(error.code, error.details, node.endpoint) from None

    def _status(self, node: NodeChannel, timeout: float) -> NodeStatus:
        try:
            answer = self._ask(node, node.status, rpc.StatusRequest(), timeout, ())
        except EtcdError as error:
            return NodeStatus(node.endpoint, error)
        return messages.status(node.endpoint, answer)
