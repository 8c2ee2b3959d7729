"""The connection to one node of etcd, over gRPC.

gRPC connects when the first call is made, and again after a failure. Its options differ from the
defaults where these would delay a fail-over, repeat a call, or have the node end the connection.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Protocol, Self, TypeVar

import grpc

from zkv.errors import ConfigError
from zkv.etcd import rpc
from zkv.etcd.security import EtcdCredentials

OPTIONS: Final = (
    # A node that was away is tried again soon: by default the pauses grow to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # In spite of its name, the time that an attempt to connect may take, TLS included.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    # etcd ends connections that ping more often than every 5 s, or while nothing is called.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    # etcd has the limits: of a request, and of what is read by `limit`.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A transaction is sent once; and who runs the DNS does not decide on that.
    ("grpc.enable_retries", 0),
    ("grpc.service_config_disable_resolution", 1),
    # Each client connects by itself, and to etcd, not to a proxy of the web.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
_ENDPOINT: Final = re.compile(r"(?:(https?)://)?([^/\s:]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})/?")


class _Message(Protocol):
    def SerializeToString(self) -> bytes: ...  # noqa: N802, RUF100  so it is called there
    @classmethod
    def FromString(cls, data: bytes, /) -> Self: ...  # noqa: N802, RUF100


Asked = TypeVar("Asked", bound=_Message)
Answer = TypeVar("Answer", bound=_Message)


class NodeChannel:
    """The connection to a node, with what can be called there.

    Args:
        address: host and port.
        credentials: how both prove who they are.
    """

    def __init__(self, address: str, credentials: EtcdCredentials) -> None:
        self.endpoint = address
        self._channel = _open(address, credentials)
        self.range = self._unary("KV/Range", rpc.RangeRequest, rpc.RangeResponse)
        self.txn = self._unary("KV/Txn", rpc.TxnRequest, rpc.TxnResponse)
        self.compact = self._unary("KV/Compact", rpc.CompactionRequest, rpc.CompactionResponse)
        self.time_to_live = self._unary(
            "Lease/LeaseTimeToLive", rpc.LeaseTimeToLiveRequest, rpc.LeaseTimeToLiveResponse
        )
        self.status = self._unary("Maintenance/Status", rpc.StatusRequest, rpc.StatusResponse)
        self.alarm = self._unary("Maintenance/Alarm", rpc.AlarmRequest, rpc.AlarmResponse)
        self.authenticate = self._unary(
            "Auth/Authenticate", rpc.AuthenticateRequest, rpc.AuthenticateResponse
        )
        self.watch = self._channel.stream_stream(
            "/etcdserverpb.Watch/Watch",
            rpc.WatchRequest.SerializeToString,
            rpc.WatchResponse.FromString,
        )

    def close(self) -> None:
        """End all calls. Does not wait for the node."""
        self._channel.close()

    def _unary(
        self, name: str, asked: type[Asked], answer: type[Answer]
    ) -> grpc.UnaryUnaryMultiCallable[Asked, Answer]:
        serialize: Callable[[Asked], bytes] = asked.SerializeToString
        deserialize: Callable[[bytes], Answer] = answer.FromString
        return self._channel.unary_unary(f"/etcdserverpb.{name}", serialize, deserialize)


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


def _open(address: str, credentials: EtcdCredentials) -> grpc.Channel:
    if not credentials.tls:
        return grpc.insecure_channel(address, OPTIONS)
    tls = grpc.ssl_channel_credentials(credentials.ca, credentials.key, credentials.cert)
    return grpc.secure_channel(address, tls, OPTIONS)
