"""Tells a service manager, such as systemd, how this process is: the protocol of ``Type=notify``.

The manager names a datagram socket in ``NOTIFY_SOCKET``. Each message to it has lines
``NAME=value``, as sd_notify(3) says. Without that variable nothing is sent, and no thread runs.

There are two states. A *busy* process loads or saves, for as long as that takes: a thread has the
manager extend its timeout, again and again, so only a process that does not run at all is given up.
A process that *serves* sends a sign of life four times in ``WATCHDOG_USEC``, unless a part of it is
stuck. If none comes for that long, the manager restarts it.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_log = logging.getLogger("zkv.server")

EXTEND_SECONDS: Final = 60
"""How long the manager is asked to go on waiting."""
BUSY_SECONDS: Final = 5.0
"""How often it is asked."""
SIGNS: Final = 4
"""Signs of life within ``WATCHDOG_USEC``: a late one or two do no harm."""
SEND_SECONDS: Final = 5.0
"""How long a message may wait for a manager that does not read."""


class ServiceManager:
    """The service manager that has started this process, if there is one. Busy at first.

    `ready`, `busy` and `close` are for one thread.

    Args:
        variables: those of the environment.
        status: what the process does, in words.
    """

    def __init__(self, variables: Mapping[str, str], status: str) -> None:
        self._socket = _connect(variables.get("NOTIFY_SOCKET", ""))
        self._watchdog = _watchdog(variables)
        self._stuck: Callable[[], list[str]] | None = None  # None: it is busy.
        self._changed = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="zkv-manager", daemon=True)
        self.busy(status)
        if self._socket is not None:
            self._thread.start()

    def ready(self, status: str, stuck: Callable[[], list[str]]) -> None:
        """Say that the process serves from now on.

        Args:
            status: what it does.
            stuck: returns which parts have done nothing since the last call. Called in a thread.
        """
        self._stuck = stuck
        self._send("READY=1", f"STATUS={status}")
        self._changed.set()

    def busy(self, status: str, *lines: str) -> None:
        """Say that the process loads or saves from now on.

        Args:
            status: what it does.
            lines: to send with that.
        """
        self._stuck = None
        self._send(*lines, f"STATUS={status}", *self._signs_of_work())
        self._changed.set()

    def close(self) -> None:
        """End the thread. The manager sees the end of the process by itself."""
        self._closing = True
        self._changed.set()
        if self._socket is not None:
            self._thread.join()
            self._socket.close()

    def _run(self) -> None:
        while not self._closing:
            stuck = self._stuck
            if self._changed.wait(self._pause(stuck is None)):
                self._changed.clear()
            elif stuck is None:
                self._send(*self._signs_of_work())
            else:
                self._look(stuck)

    def _look(self, stuck: Callable[[], list[str]]) -> None:
        """Give a sign of life if there is life."""
        try:
            parts = stuck()
        except Exception:  # No memory, or a bug. The next look may succeed.
            _log.critical("nobody knows if this server hangs", exc_info=True)
            return
        if parts:
            _log.critical("%s: nothing has happened there for a while", ", ".join(parts))
        else:
            self._send("WATCHDOG=1")

    def _pause(self, busy: bool) -> float | None:
        """Return the seconds to the next sign; None = none is needed."""
        watchdog = None if self._watchdog is None else self._watchdog / SIGNS
        return min(BUSY_SECONDS, watchdog or BUSY_SECONDS) if busy else watchdog

    def _signs_of_work(self) -> list[str]:
        lines = [f"EXTEND_TIMEOUT_USEC={EXTEND_SECONDS * 1_000_000}"]
        return lines if self._watchdog is None else [*lines, "WATCHDOG=1"]

    def _send(self, *lines: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.send("\n".join(lines).encode())
        except OSError as error:
            _log.warning("the service manager does not take messages: %s", error)


def _connect(address: str) -> socket.socket | None:
    """Return a socket to the manager; None if there is none, or no way to reach it."""
    if not address:
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    connection.settimeout(SEND_SECONDS)
    try:
        # An address without a file is written with an @ for its first byte, which is NUL.
        connection.connect(f"\0{address[1:]}" if address.startswith("@") else address)
    except (OSError, ValueError) as error:
        _log.warning("NOTIFY_SOCKET: %s: %s", address, error)
        connection.close()
        return None
    return connection


def _watchdog(variables: Mapping[str, str]) -> float | None:
    """Return the seconds within which this process has to give a sign of life; None = it has not.

    The variables may have been meant for another process, which has started this one.
    """
    if variables.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        seconds = int(variables.get("WATCHDOG_USEC", "0")) / 1e6
    except ValueError:
        return None
    return seconds if seconds > 0 else None
