"""A waker wakes a thread that waits in a poll."""

from __future__ import annotations

import contextlib
import socket


class Waker:
    """A descriptor to poll: readable after `wake`, until `clear`.

    It is a pair of connected sockets. A poller accepts it beside ZeroMQ's sockets, and unlike them,
    any thread may write to it.
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self.awake = bytearray(1)
        """One byte: not 0 from `wake` until `clear`. Code in C reads it without Python's lock."""

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._reader.fileno()

    def wake(self) -> None:
        """Wake the thread that waits. Any thread."""
        if not self.awake[0]:
            self.awake[0] = 1
            with contextlib.suppress(OSError):  # It is being closed: no thread waits any more.
                self._writer.send(b"\0")

    def clear(self) -> None:
        """Reset the waker. Call this before reading the state that `wake` announced."""
        try:
            self._reader.recv(4096)
        except BlockingIOError:
            return
        self.awake[0] = 0

    def close(self) -> None:
        """Close both ends. From now on `wake` does nothing."""
        self.awake[0] = 1
        self._reader.close()
        self._writer.close()
