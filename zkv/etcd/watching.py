"""A watch of a range of keys at one node.

A thread reads the stream and calls back. gRPC runs a second one, `NodeWatch._requests`, which sends
the request and then, a few times in `silence`, asks the node for a sign of life: over the same
connection, but by another call. etcd can be asked for its progress in the stream itself, and newer
versions do not answer that while the watch waits for a revision that has not come, as most do.
If no sign comes in time the watch ends, as it does when the node says that it has no leader: so one
that is cut off from the others is left, too. How long a callback takes does not matter.

The position handed to ``on_events`` is that of the last event, not the one of the response: a
response may come before older events of the same range have been sent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Final, Protocol

import grpc

from zkv.etcd import messages, rpc
from zkv.etcd.channel import NodeChannel
from zkv.etcd.errors import (
    AccessError,
    CompactedRevisionError,
    EtcdClosedError,
    EtcdError,
    UnknownOutcomeError,
    WatchLostError,
    error_of,
    has_stale_token,
)
from zkv.etcd.interface import OnEnd, OnEvents
from zkv.etcd.login import Login

PAUSE: Final = 0.25
"""The part of `silence` that passes between two signs of life; for each there is the rest."""
_SILENT: Final = frozenset({"DEADLINE_EXCEEDED", "UNAVAILABLE", "CANCELLED"})
"""Of gRPC's status: those without an answer. Also a node that refuses to tell is alive."""


class _Call(Protocol):
    """A call of `NodeChannel.watch`."""

    def __next__(self) -> rpc.WatchResponse: ...
    def cancel(self) -> object: ...


class _StaleToken(Exception):
    """The watch has to begin anew with another token."""


class NodeWatch:
    """A watch. The client makes and starts it; anybody may close it.

    Args:
        node: to watch at.
        login: has the token.
        request: what to watch, and from where on.
        on_events: takes the events.
        on_end: takes the reason of the end.
        lost: is called before ``on_end`` if the node is dead or cut off.
        silence: seconds without a word after which it is taken for dead.
    """

    def __init__(
        self,
        node: NodeChannel,
        login: Login,
        request: rpc.WatchCreateRequest,
        on_events: OnEvents,
        on_end: OnEnd,
        *,
        lost: Callable[[], None],
        silence: float,
    ) -> None:
        self._node = node
        self._login = login
        self._request = request
        self._on_events = on_events
        self._on_end = on_end
        self._lost = lost
        self._silence = silence
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._call: _Call | None = None
        self._reason: EtcdError | None = None
        self._wanted = True
        self._thread = threading.Thread(target=self._run, name="etcd-watch", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """See `EtcdWatch.close`."""
        self._wanted = False
        self._stop()

    def end(self, reason: EtcdError) -> None:
        """End it for a reason that is handed to ``on_end``. Does not wait."""
        self._reason = self._reason or reason
        self._stop()

    def join(self, timeout: float) -> bool:
        """See `EtcdWatch.join`."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _stop(self) -> None:
        with self._lock:
            self._over.set()
            if self._call is not None:
                self._call.cancel()

    # In its own thread

    def _run(self) -> None:
        error: EtcdError = WatchLostError("its callback failed", self._node.endpoint)
        try:
            error = self._follow_with_token()
        finally:
            self._stop()
            if self._wanted:
                self._finish(self._reason or error)

    def _finish(self, error: EtcdError) -> None:
        if isinstance(error, WatchLostError):
            self._lost()
        self._on_end(error)

    def _follow_with_token(self) -> EtcdError:
        """Follow; once more with another token, if the first one is not known any more."""
        try:
            token = self._login.token(self._node, self._silence)
            try:
                return self._follow(self._login.needed)
            except _StaleToken:
                self._login.renew(self._node, token, self._silence)
            return self._follow(may_renew=False)
        except UnknownOutcomeError as error:
            return WatchLostError(str(error))
        except EtcdClosedError as error:
            return error
        except grpc.RpcError as error:
            return self._ended(error)

    def _follow(self, may_renew: bool) -> EtcdError:
        """Read the stream until it ends; returns the reason."""
        done = threading.Event()
        call = self._open(done)
        if call is None:
            return WatchLostError("it was closed", self._node.endpoint)
        try:
            while True:
                response = next(call)
                if response.canceled:
                    return self._cancelled(response, may_renew)
                if response.events and not self._over.is_set():
                    found = messages.events(response)
                    self._on_events(found[-1].item.mod_revision, found)
        except StopIteration:
            return WatchLostError("the node ended the watch", self._node.endpoint)
        finally:
            done.set()
            call.cancel()

    def _open(self, done: threading.Event) -> _Call | None:
        metadata = (("hasleader", "true"), *self._login.metadata)
        with self._lock:
            if self._over.is_set():
                return None
            try:
                self._call = self._node.watch(self._requests(done), metadata=metadata)
            except ValueError:  # gRPC: the channel has been closed.
                return None
            return self._call

    def _cancelled(self, response: rpc.WatchResponse, may_renew: bool) -> EtcdError:
        endpoint, reason = self._node.endpoint, response.cancel_reason
        if response.compact_revision:
            return CompactedRevisionError(
                "the start of the watch has been compacted", endpoint, response.compact_revision
            )
        if "permission denied" in reason or has_stale_token(reason):
            if may_renew:  # The node says the same of a token that it does not know.
                raise _StaleToken
            return AccessError(reason, endpoint)
        return WatchLostError(reason or "the node ended the watch", endpoint)

    def _ended(self, error: grpc.RpcError) -> EtcdError:
        found = error_of(error.code().name, error.details() or "", self._node.endpoint)
        if isinstance(found, UnknownOutcomeError):
            return WatchLostError(error.details() or error.code().name, self._node.endpoint)
        return found

    # In a thread of gRPC

    def _requests(self, done: threading.Event) -> Iterator[rpc.WatchRequest]:
        yield rpc.WatchRequest(create_request=self._request)
        while not done.wait(self._silence * PAUSE):
            if not self._is_alive():
                self.end(WatchLostError("the node is silent", self._node.endpoint))
                return

    def _is_alive(self) -> bool:
        try:
            self._node.status(rpc.StatusRequest(), timeout=self._silence * (1 - PAUSE))
        except grpc.RpcError as error:
            return error.code().name not in _SILENT
        except ValueError:  # gRPC: the channel has been closed.
            return False
        return True
