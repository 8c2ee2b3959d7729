"""The connections to one node of etcd, and what can be called there.

A call takes an idle connection, or makes one, and has it for itself until it has ended: it sends
and receives in its own thread. So a call costs no switch of threads, and nothing has to run in the
background. There are as many connections as there were calls at the same time; one that was not
needed for a while is closed. A watch has a connection of its own.

A connection is looked at before it is used again: what the node has ended meanwhile, as one does
that is restarted, costs no call. A call that the node has not got, or has refused unexecuted, is
sent once more, over a new connection; and no other one.

`NodeChannel._lock` guards which links there are, and which are idle. A link that is not idle
belongs to the thread that has taken or made it; another one may only cut it.
"""

from __future__ import annotations

import re
import threading
import time
from typing import Final, Generic, Protocol, Self, TypeVar

from google.protobuf.message import DecodeError

from zkv.errors import ConfigError
from zkv.etcd import calls, rpc
from zkv.etcd.calls import CallError, Metadata
from zkv.etcd.errors import EtcdClosedError
from zkv.etcd.http2 import Http2Connection
from zkv.etcd.link import Link, LinkError, Resolver, TlsError
from zkv.etcd.security import EtcdCredentials

CONNECT_SECONDS: Final = 2.0
"""The time that an attempt to connect may take, TLS included."""
IDLE_SECONDS: Final = 30.0
"""After so long without a call a connection is closed, when the next one becomes idle."""
_ENDPOINT: Final = re.compile(r"(?:(https?)://)?([^/\s:]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})/?")


class _Message(Protocol):
    def SerializeToString(self) -> bytes: ...  # noqa: N802, RUF100  so it is called there
    @classmethod
    def FromString(cls, data: bytes, /) -> Self: ...  # noqa: N802, RUF100


Asked = TypeVar("Asked", bound=_Message)
Answer = TypeVar("Answer", bound=_Message)


class NodeCall(Generic[Asked, Answer]):
    """A method of a service that can be called at a node.

    Args:
        node: the node.
        name: of the service and the method.
        answer: the type of the answer.
    """

    def __init__(self, node: NodeChannel, name: str, answer: type[Answer]) -> None:
        self.head = calls.common_head(node.scheme, node.endpoint, f"/etcdserverpb.{name}")
        """Its headers."""
        self._node = node
        self._answer = answer

    def __call__(self, request: Asked, timeout: float, metadata: Metadata = ()) -> Answer:
        """Call it.

        Args:
            request: what is sent.
            timeout: seconds.
            metadata: more headers.

        Raises:
            CallError: the node refuses, or does not answer.
            EtcdClosedError: the client has been closed.
        """
        deadline = time.monotonic() + timeout
        return self.answer_in(
            self._node.ask(self.head, metadata, request.SerializeToString(), deadline)
        )

    def answer_in(self, message: bytes) -> Answer:
        """Return the answer that is in a message. Raises CallError."""
        try:
            return self._answer.FromString(message)
        except DecodeError:
            raise CallError("INTERNAL", "the answer is malformed") from None


class NodeChannel:
    """The connections to a node. Any thread may call each method.

    Args:
        address: host and port.
        credentials: how both prove who they are.
    """

    def __init__(self, address: str, credentials: EtcdCredentials) -> None:
        host, _, port = address.rpartition(":")
        self.endpoint = address
        self.scheme = "https" if credentials.tls else "http"
        self._tls = credentials.tls
        self._resolver = Resolver(host.strip("[]"), int(port))
        self._lock = threading.Lock()
        self._is_closed = False
        self._links: set[Link] = set()
        self._idle: list[Http2Connection] = []  # The one that was used last is the last one.
        self.range = NodeCall[rpc.RangeRequest, rpc.RangeResponse](
            self, "KV/Range", rpc.RangeResponse
        )
        self.txn = NodeCall[rpc.TxnRequest, rpc.TxnResponse](self, "KV/Txn", rpc.TxnResponse)
        self.compact = NodeCall[rpc.CompactionRequest, rpc.CompactionResponse](
            self, "KV/Compact", rpc.CompactionResponse
        )
        self.time_to_live = NodeCall[rpc.LeaseTimeToLiveRequest, rpc.LeaseTimeToLiveResponse](
            self, "Lease/LeaseTimeToLive", rpc.LeaseTimeToLiveResponse
        )
        self.status = NodeCall[rpc.StatusRequest, rpc.StatusResponse](
            self, "Maintenance/Status", rpc.StatusResponse
        )
        self.alarm = NodeCall[rpc.AlarmRequest, rpc.AlarmResponse](
            self, "Maintenance/Alarm", rpc.AlarmResponse
        )
        self.authenticate = NodeCall[rpc.AuthenticateRequest, rpc.AuthenticateResponse](
            self, "Auth/Authenticate", rpc.AuthenticateResponse
        )
        self.watch = NodeCall[rpc.WatchRequest, rpc.WatchResponse](
            self, "Watch/Watch", rpc.WatchResponse
        )
        """Its answers have no end: `NodeWatch` makes it."""

    def close(self) -> None:
        """End all calls. Does not wait for the node, nor for who makes them."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
            for link in self._links:
                link.cut()
        for connection in idle:
            self.drop(connection.link)

    def ask(self, head: bytes, metadata: Metadata, message: bytes, deadline: float) -> bytes:
        """Send a message; return the answer.

        Args:
            head: of the `NodeCall`.
            metadata: more headers.
            message: what is sent.
            deadline: by the monotonic clock.

        Raises:
            CallError: the node refuses, or does not answer.
            EtcdClosedError: the client has been closed.
        """
        if (connection := self._take_idle()) is not None:
            try:
                return self._ask(connection, head, metadata, message, deadline)
            except CallError as error:
                if not error.is_unexecuted:
                    raise
        connection = self.connect(self.link(), deadline)
        return self._ask(connection, head, metadata, message, deadline)

    def link(self) -> Link:
        """Return a new link, which `connect` connects. Raises EtcdClosedError."""
        made = Link(self._resolver, self._tls)
        with self._lock:
            if self._is_closed:
                raise EtcdClosedError("the client has been closed")
            self._links.add(made)
        return made

    def connect(self, link: Link, deadline: float) -> Http2Connection:
        """Connect a link. Raises CallError, and has dropped it then."""
        deadline = min(deadline, time.monotonic() + CONNECT_SECONDS)
        try:
            link.connect(deadline)
            return Http2Connection(link, deadline)
        except BaseException as error:
            self.drop(link)
            if not isinstance(error, LinkError | TimeoutError):
                raise
            why = "no answer in time" if isinstance(error, TimeoutError) else str(error)
            # Who does not accept the other never will: another node may.
            code = "UNAUTHENTICATED" if isinstance(error, TlsError) else "UNAVAILABLE"
            raise self._error(code, f"cannot connect: {why}") from None

    def drop(self, link: Link) -> None:
        """Close a link, in the thread to which it belongs."""
        with self._lock:
            self._links.discard(link)
        link.close()

    def failure(self, error: LinkError | TimeoutError) -> CallError:
        """Return the error for a call that got no answer over a connection."""
        if isinstance(error, TimeoutError):
            return self._error("DEADLINE_EXCEEDED", "no answer in time")
        return self._error("UNAVAILABLE", str(error), is_unexecuted=error.is_unsent)

    def _error(self, code: str, details: str, *, is_unexecuted: bool = False) -> CallError:
        if self._is_closed:
            return CallError("CANCELLED", "the client has been closed")
        return CallError(code, details, is_unexecuted=is_unexecuted)

    def _ask(
        self,
        connection: Http2Connection,
        head: bytes,
        metadata: Metadata,
        message: bytes,
        deadline: float,
    ) -> bytes:
        try:
            stream = calls.begin(connection, head, metadata, message, deadline)
            answer = calls.only_answer(connection, stream, deadline)
        except BaseException as error:
            self.drop(connection.link)
            if not isinstance(error, LinkError | TimeoutError):
                raise
            raise self.failure(error) from None
        self._keep(connection)
        calls.check_status(stream)
        if answer is None:
            raise CallError("INTERNAL", "there is no answer")
        return answer

    def _take_idle(self) -> Http2Connection | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if connection.is_usable():
                return connection
            self.drop(connection.link)

    def _keep(self, connection: Http2Connection) -> None:
        """Keep a connection for the next call, and close those that none has needed."""
        now = connection.idle_since = time.monotonic()
        with self._lock:
            if self._is_closed:
                dropped = [connection]
            else:
                self._idle.append(connection)
                dropped = [each for each in self._idle if each.idle_since < now - IDLE_SECONDS]
                del self._idle[: len(dropped)]
        for each in dropped:
            self.drop(each.link)


def parse_endpoints(endpoints: list[str]) -> tuple[list[str], str]:
    """Return hosts with ports, and the scheme: ``"http"``, ``"https"``, or empty without one.

    Args:
        endpoints: each ``host:port``, ``http://host:port`` or ``https://host:port``.

    Raises:
        ConfigError: one is malformed, they differ in their scheme, or there are none.
    """
    found = [_ENDPOINT.fullmatch(each) for each in endpoints]
    for text, match in zip(endpoints, found, strict=True):
        if match is None or not 0 < int(match[3]) < 1 << 16:
            raise ConfigError(f"{text!r}: an endpoint of etcd is https://HOST:PORT or HOST:PORT")
    schemes = {match[1] or "" for match in found if match}
    if not schemes:
        raise ConfigError("etcd needs an endpoint at least")
    if len(schemes) > 1:
        raise ConfigError("the endpoints of etcd begin alike: all with https://, or none")
    return [f"{match[2]}:{match[3]}" for match in found if match], schemes.pop()
