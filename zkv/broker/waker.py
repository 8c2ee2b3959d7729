"""A waker: how other threads wake one that waits in a poll."""

from __future__ import annotations

import contextlib
import socket


class Waker:
    """Register it with a poller; it is readable from a `wake` until the next `clear`.

    A pair of connected sockets, since it can be polled beside ZeroMQ's sockets and, unlike them,
    may be written to from any thread.
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._awake = False

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._reader.fileno()

    def wake(self) -> None:
        """Wake whoever waits. Any thread."""
        if not self._awake:
            self._awake = True
            with contextlib.suppress(OSError):  # It is being closed: nobody waits any more.
                self._writer.send(b"\0")

    def clear(self) -> None:
        """Forget the wake-ups so far. Call this before looking at what they were for."""
        try:
            self._reader.recv(4096)
        except BlockingIOError:
            return
        self._awake = False

    def close(self) -> None:
        """Close both ends. `wake` does nothing from now on."""
        self._awake = True
        self._reader.close()
        self._writer.close()
