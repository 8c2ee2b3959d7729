"""A bell: how other threads wake one that waits in a poll."""

from __future__ import annotations

import contextlib
import socket


class Bell:
    """Register it with a poller; it is readable from a `ring` until the next `hush`.

    A pair of connected sockets, since it can be polled beside ZeroMQ's sockets and, unlike them,
    may be written to from any thread.
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._rung = False

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._reader.fileno()

    def ring(self) -> None:
        """Wake whoever waits. Any thread."""
        if not self._rung:
            self._rung = True
            with contextlib.suppress(OSError):  # It is being closed: nobody waits any more.
                self._writer.send(b"\0")

    def hush(self) -> None:
        """Be silent again. What the ring was for must be looked at after this, not before."""
        try:
            self._reader.recv(4096)
        except BlockingIOError:
            return
        self._rung = False

    def close(self) -> None:
        """Close both ends. Ringing does nothing from now on."""
        self._rung = True
        self._reader.close()
        self._writer.close()
