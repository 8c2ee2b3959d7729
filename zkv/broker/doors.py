"""The doors of a server: who is let in at its endpoints.

- At a tcp endpoint, or the feed there, CURVE encrypts, and proves which key a client has. It is on
  if the server has a secret key.
- At an ipc endpoint the system tells the number of the system user. Nothing is encrypted.
- inproc is the program in which the server runs.

Without users, that is all: whoever gets in may do everything. With users, libzmq asks `Guard`, a
thread of this module, at each handshake (ZAP, https://rfc.zeromq.org/spec/27/), which answers with
a User-Id: the key, ``uid:N``, or "anonymous" for tcp without CURVE. libzmq attaches it to each
message of the connection, and `zkv.users.registry` finds the user. So the rights of a message are
those of the users file now, and not those at the handshake.

Invariant: nobody is let in unless the guard says so. Without a handler libzmq would let everybody
in; the option ZAP_ENFORCE_DOMAIN makes it refuse everybody instead.

libzmq takes the options of a door at each `bind`. So one socket has doors of several kinds. While
the server's key is changed, each tcp endpoint has two listeners on the same port, one for each key.
The system gives a new connection to either, so a client with one of the keys may have to try again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket as posix
import threading
from collections.abc import Iterator
from typing import Final

import zmq

from zkv.broker.peers import uid_address
from zkv.broker.refusals import AUTH, Refusal, RefusalLog
from zkv.broker.sockets import bind, refusal
from zkv.broker.waker import Waker
from zkv.errors import ConfigError, EndpointError
from zkv.keys import KeyPair
from zkv.users.file import ANONYMOUS, uid_credential
from zkv.users.registry import Users

_log = logging.getLogger("zkv.broker")

_Socket = zmq.Socket[bytes]

ZAP: Final = "inproc://zeromq.zap.01"
CURVE_OVERHEAD: Final = 33
"""Bytes of a MESSAGE command of CURVE beside the frame in it: name, nonce, flags, tag."""
DOMAIN: Final = b"zkv"
LEAST_VERSION: Final = (4, 3, 5)
"""Of libzmq, for users: before, XPUB_MANUAL could apply a subscription to another follower."""
_VERSION: Final = b"1.0"
_ABSTRACT: Final = "ipc://@"
"""An ipc endpoint without a file."""
_IPC: Final = b"localhost:"
"""The address of a peer at an ipc endpoint begins with it; the numbers of its user, its group and
its process follow."""


_NO_USERS_KEY: Final = Refusal(AUTH, "was made with a key that no user has")
_NO_USERS_UID: Final = Refusal(AUTH, "was made by a system user whose number no user has")
_NO_KEY: Final = Refusal(AUTH, "was made without a key, and there is no user for that")
_NO_MECHANISM: Final = Refusal(AUTH, "was made with a mechanism that the server does not have")


class Doors:
    """How the endpoints of a server are opened.

    Args:
        keys: the server's keys: none, one, or two while they are changed.
        users: the users; None = whoever gets in may do everything.
        ipc_mode: the mode of the sockets of ipc endpoints; None = as the umask says.

    Raises:
        ConfigError: libzmq is too old, or has no CURVE.
    """

    def __init__(
        self,
        keys: tuple[KeyPair, ...] = (),
        users: Users | None = None,
        ipc_mode: int | None = None,
    ) -> None:
        if keys and not zmq.has("curve"):
            raise ConfigError("security.secret_key_file: this libzmq was built without CURVE")
        if users is not None and zmq.zmq_version_info() < LEAST_VERSION:
            raise ConfigError(
                f"security.users: needs libzmq {'.'.join(map(str, LEAST_VERSION))} or later, and "
                f"this is {zmq.zmq_version()}"
            )
        self._keys = keys
        self.users = users
        self._ipc_mode = ipc_mode

    @property
    def overhead(self) -> int:
        """Bytes that encryption adds to a frame."""
        return CURVE_OVERHEAD if self._keys else 0

    @property
    def have_curve(self) -> bool:
        """True if connections by tcp have CURVE."""
        return bool(self._keys)

    def bind(self, socket: _Socket, endpoint: str, setting: str) -> str:
        """Open a door; return the endpoint with its real port number. Raises EndpointError.

        Args:
            socket: the socket behind it.
            endpoint: the endpoint.
            setting: the setting that names it.
        """
        if self.users is not None:
            socket.zap_domain = DOMAIN
            socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        is_tcp = endpoint.startswith("tcp://")
        if is_tcp and len(self._keys) > 1:
            return self._bind_for_each_key(socket, endpoint, setting)
        with _curve(socket, self._keys[0] if is_tcp and self._keys else None):
            if not endpoint.startswith("ipc://") or self._ipc_mode is None:
                return bind(socket, endpoint, setting)
            with _at_most(self._ipc_mode):
                bound = bind(socket, endpoint, setting)
            if not bound.startswith(_ABSTRACT):
                os.chmod(bound.removeprefix("ipc://"), self._ipc_mode)
            return bound

    def _bind_for_each_key(self, socket: _Socket, endpoint: str, setting: str) -> str:
        """Open a door with a listener for each key, all on one port."""
        bound = endpoint
        try:
            host, port = _resolved(socket.context, endpoint)
            for key in self._keys:
                with _listener(host, port, socket) as listener, _curve(socket, key):
                    port = listener.getsockname()[1]
                    socket.setsockopt(zmq.USE_FD, listener.detach())
                    try:
                        bound = bind(socket, f"tcp://{host}:{port}", setting)
                    finally:
                        socket.setsockopt(zmq.USE_FD, -1)
        except (OSError, zmq.ZMQError) as error:
            raise refusal(endpoint, setting, error) from None
        return bound


@contextlib.contextmanager
def _curve(socket: _Socket, key: KeyPair | None) -> Iterator[None]:
    """Have what is bound meanwhile ask for CURVE, if there is a key."""
    socket.curve_server = key is not None
    if key is not None:
        socket.curve_secretkey = key.secret.encode()
    try:
        yield
    finally:
        socket.curve_server = False


@contextlib.contextmanager
def _at_most(mode: int) -> Iterator[None]:
    """Have files that are made meanwhile get no wider mode, whoever makes them in this process."""
    before = os.umask(0o777 & ~mode)
    try:
        yield
    finally:
        os.umask(before)


def _resolved(context: zmq.Context[_Socket], endpoint: str) -> tuple[str, int]:
    """Return the address, in brackets if it is IPv6, and the port of a tcp endpoint; 0 = any.

    Raises ZMQError.
    """
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    with context.socket(zmq.PAIR) as probe:  # libzmq knows the interfaces.
        probe.ipv6 = "[" in host
        probe.bind(f"tcp://{host}:*")
        bound = probe.get_string(zmq.LAST_ENDPOINT).rstrip("\0")
    return bound.removeprefix("tcp://").rpartition(":")[0], 0 if port == "*" else int(port)


def _listener(host: str, port: int, socket: _Socket) -> posix.socket:
    """Open a listener for a socket that shares its port with others. Raises OSError."""
    listener = posix.socket(posix.AF_INET6 if "[" in host else posix.AF_INET)
    try:
        listener.setsockopt(posix.SOL_SOCKET, posix.SO_REUSEADDR, 1)
        listener.setsockopt(posix.SOL_SOCKET, posix.SO_REUSEPORT, 1)
        if int(socket.rcvbuf) > 0:
            listener.setsockopt(posix.SOL_SOCKET, posix.SO_RCVBUF, int(socket.rcvbuf))
        listener.bind((host.strip("[]"), port))
        listener.listen(int(socket.backlog))
    except BaseException:
        listener.close()
        raise
    return listener


class Guard:
    """The thread that answers libzmq's question who a peer is (a ZAP handler).

    Args:
        context: the server's ZeroMQ context, which can have one handler.
        users: the users.
        refusals: logs who is not let in.
    """

    def __init__(self, context: zmq.Context[_Socket], users: Users, refusals: RefusalLog) -> None:
        self._context = context
        self._users = users
        self._refusals = refusals
        self._waker = Waker()
        self._closing = False
        self._opened = threading.Event()
        self._error: zmq.ZMQError | None = None
        self._thread = threading.Thread(target=self._run, name="zkv-guard")

    def start(self) -> None:
        """Start the thread; return once it answers. Call this before any door is opened.

        Raises:
            EndpointError: the program has another ZAP handler in the same context.
        """
        self._thread.start()
        self._opened.wait()
        if self._error is not None:
            raise EndpointError(
                "security.users: this program has another ZAP handler in the same ZeroMQ context, "
                f"and there can be one only: {self._error.strerror}"
            )

    def close(self) -> None:
        """End the thread. Call this once all doors are closed, and also if `start` has failed."""
        self._closing = True
        self._waker.wake()
        self._thread.join()
        self._waker.close()

    def _run(self) -> None:
        socket = self._context.socket(zmq.REP)
        try:
            socket.linger = 0
            try:
                socket.bind(ZAP)
            except zmq.ZMQError as error:
                self._error = error
                return
            finally:
                self._opened.set()
            self._serve(socket)
        except BaseException:
            _log.critical("nobody can connect any more: the guard died", exc_info=True)
        finally:
            with contextlib.suppress(zmq.ZMQError):  # It was not bound.
                socket.unbind(ZAP)
            socket.close()

    def _serve(self, socket: _Socket) -> None:
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(self._waker, zmq.POLLIN)
        while not self._closing:
            poller.poll()
            self._waker.clear()
            while int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                socket.send_multipart(self._answer(socket.recv_multipart()))

    def _answer(self, question: list[bytes]) -> list[bytes]:
        """Return the reply of the handler. It is never 300, of which a client would not learn."""
        if len(question) < 6 or question[0] != _VERSION:
            request_id = question[1] if len(question) > 1 else b""
            return [_VERSION, request_id, b"500", b"malformed", b"", b""]
        request_id, domain, address, mechanism = question[1], question[2], question[3], question[5]
        if domain != DOMAIN:
            return self._answer_others(request_id, domain)
        user_id = self._user_id(address, mechanism, question[6:])
        if user_id is None or not self._users.knows(user_id):
            self._refusals.note(*_refusal(address, user_id))
            return [_VERSION, request_id, b"400", b"unknown", b"", b""]
        return [_VERSION, request_id, b"200", b"", user_id.encode(), b""]

    def _answer_others(self, request_id: bytes, domain: bytes) -> list[bytes]:
        """Answer for a socket of the program, in the same context, that is not the server's.

        Without a domain it has asked for no authentication, and so lets everybody in, as it would
        if there were no handler. Else the handler that it needs is not there.
        """
        status = b"400" if domain else b"200"
        return [_VERSION, request_id, status, b"", b"", b""]

    def _user_id(self, address: bytes, mechanism: bytes, credentials: list[bytes]) -> str | None:
        """Return the User-Id of a peer; None if it has none."""
        if mechanism == b"CURVE" and len(credentials) == 1:
            from zmq.utils import z85

            return z85.encode(credentials[0]).decode()
        if mechanism != b"NULL":
            return None
        if address.startswith(_IPC):
            uid = address.split(b":")[1]
            return uid_credential(int(uid)) if uid.isdigit() else None
        return ANONYMOUS


def _refusal(address: bytes, user_id: str | None) -> tuple[str, Refusal, str]:
    """Return what the log says of a peer that is not let in."""
    place = address.decode(errors="backslashreplace")
    if user_id is None:
        return place, _NO_MECHANISM, ""
    if user_id == ANONYMOUS:
        return place, _NO_KEY, ""
    if address.startswith(_IPC):
        return uid_address(int(address.split(b":")[1])), _NO_USERS_UID, ""
    return place, _NO_USERS_KEY, f": {user_id}"  # Public, and what somebody may want to add.
