"""A watch of a range of keys at one node.

It has a connection and a thread of its own. The thread reads and calls back. When nothing has come
for a while it asks the node for a sign of life: over the same connection, but by another call. etcd
can be asked for its progress in the stream itself, and newer versions do not answer that while the
watch waits for a revision that has not come, as most do; pings of HTTP/2 it takes but every 5 s. If
no sign comes in time the watch ends, as it does when the node says that it has no leader: so one
that is cut off from the others is left, too. How long a callback takes does not matter.

The position handed to ``on_events`` is that of the last event, not the one of the response: a
response may come before older events of the same range have been sent.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from zkv.etcd import calls, messages, rpc
from zkv.etcd.calls import CallError
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
from zkv.etcd.http2 import Http2Connection, Stream
from zkv.etcd.interface import OnEnd, OnEvents
from zkv.etcd.link import Link, LinkError
from zkv.etcd.login import Login

PAUSE: Final = 0.25
"""After this part of `silence` without a word a sign of life is asked for, which has the rest."""


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
        self._link: Link | None = None
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
            if self._link is not None:
                self._link.cut()

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
        except CallError as error:
            return self._ended(error)

    def _follow(self, may_renew: bool) -> EtcdError:
        """Read the stream until it ends; returns the reason. Raises CallError."""
        node = self._node
        link = node.link()
        with self._lock:
            if self._over.is_set():
                node.drop(link)
                return WatchLostError("it was closed", node.endpoint)
            self._link = link
        connection = node.connect(link, time.monotonic() + self._silence)
        try:
            return self._read(connection, may_renew)
        except (LinkError, TimeoutError) as error:
            raise node.failure(error) from None
        finally:
            node.drop(link)

    def _read(self, connection: Http2Connection, may_renew: bool) -> EtcdError:
        pulse = _Pulse(connection, self._node, self._silence)
        request = rpc.WatchRequest(create_request=self._request).SerializeToString()
        stream = calls.begin(
            connection, self._node.watch.head, (("hasleader", "true"), *self._login.metadata),
            request, pulse.lost_at, has_timeout=False,
        )  # fmt: skip
        while True:
            while (message := calls.take_message(stream)) is not None:
                response = self._node.watch.answer_in(message)
                if response.canceled:
                    return self._cancelled(response, may_renew)
                if response.events and not self._over.is_set():
                    found = messages.events(response)
                    self._on_events(found[-1].item.mod_revision, found)
                pulse.heard()
            if stream.has_ended:
                calls.check_status(stream)
                return WatchLostError("the node ended the watch", self._node.endpoint)
            if not pulse.wait():
                return WatchLostError("the node is silent", self._node.endpoint)

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

    def _ended(self, error: CallError) -> EtcdError:
        found = error_of(error.code, error.details, self._node.endpoint)
        if isinstance(found, UnknownOutcomeError):
            return WatchLostError(error.details or error.code, self._node.endpoint)
        return found


class _Pulse:
    """Tells if a node is alive: it has sent something for the watch, or a sign of life.

    Args:
        connection: of the watch.
        node: the node.
        silence: seconds without a word after which it is taken for dead.
    """

    def __init__(self, connection: Http2Connection, node: NodeChannel, silence: float) -> None:
        self._connection = connection
        self._node = node
        self._silence = silence
        self._asked: Stream | None = None
        self.heard()

    def heard(self) -> None:
        """Note that it lives, or that nobody has listened until now."""
        now = time.monotonic()
        self._ask_at = now + self._silence * PAUSE
        self.lost_at = now + self._silence

    def wait(self) -> bool:
        """Wait for what comes next; return False if the node is silent.

        Raises:
            LinkError, TimeoutError
        """
        try:
            self._connection.receive(self._ask_at if self._asked is None else self.lost_at)
        except TimeoutError:
            if self._asked is not None:
                return False
            request = rpc.StatusRequest().SerializeToString()
            self._asked = calls.begin(
                self._connection, self._node.status.head, (), request, self.lost_at
            )
        else:
            if self._asked is not None:
                self._asked.data.clear()
                if self._asked.has_ended:  # Also a node that refuses to tell is alive.
                    self._asked = None
                    self.heard()
        return True
