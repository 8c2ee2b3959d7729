"""`zkv.broker.frames.PythonFrames` in C."""

from collections.abc import Callable, Sequence

import zmq

from zkv.broker.frames import BadEnvelope

def attach(path: str, /) -> tuple[int, int, int]: ...

class Frames:
    def __new__(
        cls,
        *,
        socket: zmq.Socket[bytes],
        waker: int,
        most: int,
        most_bytes: int,
        no_delimiter: BadEnvelope,
        no_body: BadEnvelope,
        two_bodies: BadEnvelope,
        no_memory: BadEnvelope,
        error: Callable[[int], Exception],
        behind: zmq.Socket[bytes] | None = None,
    ) -> Frames: ...
    @property
    def unroutable(self) -> int: ...
    def receive(
        self, *, wait: bool, take: bool = True, capacity: bool = False
    ) -> tuple[list[list[bytes]], list[bytes | BadEnvelope]]: ...
    def send(self, envelopes: list[list[bytes]], bodies: Sequence[bytes | None], /) -> None: ...
    def forward(
        self, envelopes: list[list[bytes]], bodies: Sequence[bytes | BadEnvelope], /
    ) -> int: ...
    def readable(self) -> bool: ...
    def close(self) -> None: ...
