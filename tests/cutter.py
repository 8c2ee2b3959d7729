"""A TCP proxy on loopback that cuts connections when it is told to."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self


class Cutter:
    """Forwards to an endpoint, which may change. Use as a context manager.

    Args:
        target: ``tcp://HOST:PORT`` to forward to.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.cuts = 0
        """Connections cut so far."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._open = True
        self._thread = threading.Thread(target=self._accept)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._open = False
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()

    def cut(self) -> None:
        """Cut every connection there is, with whatever is on its way."""
        with self._lock:
            self.cuts += len(self._sockets) // 2
            for end in self._sockets:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            host, _, port = self.target.removeprefix("tcp://").rpartition(":")
            try:
                far = socket.create_connection((host, int(port)))
            except OSError:
                near.close()  # As if nobody listened.
                continue
            with self._lock:
                self._sockets |= {near, far}
            thread = threading.Thread(target=self._forward, args=(near, far))
            self._threads.append(thread)
            thread.start()

    def _forward(self, near: socket.socket, far: socket.socket) -> None:
        """Both ways, until either end is closed."""
        back = threading.Thread(target=_pump, args=(far, near))
        back.start()
        _pump(near, far)
        back.join()
        with self._lock:
            self._sockets -= {near, far}
        near.close()
        far.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
