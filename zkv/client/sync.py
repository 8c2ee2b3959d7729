"""A client that waits for each reply, over one REQ socket.

What makes it dependable:

- It never waits without a limit: a request is sent without waiting, a reply awaited by polling.
- A REQ socket that is still owed a reply refuses the next request for ever. So a socket goes with
  any request that was not answered well, and the next request opens a fresh one.
- LINGER is 0: a request to a server that is down is dropped with its socket. It neither holds up
  the end of the process nor is run when nobody waits for it any more. The option IMMEDIATE is left
  alone: with it, a reply may be lost after which the server closes the connection, as after END.
- Every request has an id of its own, and only the reply with the same id counts.
- Nothing is sent twice: after a lost reply the caller decides, knowing `ClientError.applied`.
"""

from __future__ import annotations

import math
import time
from typing import Any, Final, Self

import zmq

from zkv.client.errors import NoReplyError
from zkv.client.messages import lost, pack_request, read_reply, refusal

LONGEST_TIMEOUT: Final = 86_400.0
"""Seconds. A limit there must be, since poll counts milliseconds in a C int."""


class Client:
    """A connection to a server: one request at a time, not to be shared by threads.

    The server need not be up: ZeroMQ connects in the background, now or later.

    Args:
        endpoint: where the server listens: ``tcp://HOST:PORT`` or ``ipc://PATH``.
        timeout: seconds to wait for each reply; above 0, a day at most.

    Raises:
        ValueError: the endpoint is malformed, or the timeout out of range.
    """

    def __init__(self, endpoint: str, timeout: float = 5.0) -> None:
        if not 0 < timeout <= LONGEST_TIMEOUT:
            raise ValueError(f"timeout {timeout:g}: seconds, above 0 and up to {LONGEST_TIMEOUT:g}")
        self.endpoint = endpoint
        self.timeout = timeout
        self._last_id = 0
        self._socket: zmq.Socket[bytes] | None = None
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket and drop what it is owed. May be called again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def call(self, op: str, /, **fields: Any) -> dict[str, Any]:
        """Carry out an op and return the reply.

        Args:
            op: an op of the protocol, upper case.
            **fields: the request's other fields; ``id`` is set here.

        Raises:
            RefusedError: the server answered that the request failed.
            NoReplyError: no reply came in time.
            BadReplyError: a reply came, and breaks the protocol.
            TypeError, ValueError, OverflowError: msgpack cannot hold a field; nothing was sent.
        """
        self._last_id += 1
        body = pack_request(op, self._last_id, fields)
        try:
            reply = read_reply(op, self._last_id, self._exchange(op, body))
        except BaseException:  # Ctrl-C too must not leave a socket that is owed a reply.
            self.close()
            raise
        if reply["ok"] is False:
            raise refusal(op, reply)
        return reply

    def _exchange(self, op: str, body: bytes) -> list[bytes]:
        """Send a body and return the frames of what comes back. Raises NoReplyError."""
        socket = self._open()
        socket.send(body, zmq.NOBLOCK)
        if not self._wait(socket):
            raise NoReplyError(f"no reply from {self.endpoint} within {self.timeout:g} s", lost(op))
        return socket.recv_multipart(zmq.NOBLOCK)

    def _wait(self, socket: zmq.Socket[bytes]) -> bool:
        """Whether a reply comes in time.

        Waits in steps: an interrupt that comes just before a poll begins is only seen after it.
        """
        end = time.monotonic() + self.timeout
        while (left := end - time.monotonic()) > 0:
            if socket.poll(math.ceil(min(left, 1.0) * 1000)):
                return True
        return False

    def _open(self) -> zmq.Socket[bytes]:
        """The socket; a fresh one where there is none. Raises ValueError."""
        if self._socket is None:
            socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
            socket.linger = 0
            try:
                socket.connect(self.endpoint)
            except zmq.ZMQError as error:
                socket.close()
                raise ValueError(
                    f"endpoint {self.endpoint!r}: {zmq.strerror(error.errno or 0)}; expected "
                    f"tcp://HOST:PORT or ipc://PATH"
                ) from error
            self._socket = socket
        return self._socket
