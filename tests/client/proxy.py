"""A TCP proxy on the loopback that loses, holds up, slows down and cuts what passes by."""

from __future__ import annotations

import asyncio
from typing import Final, Self

from tests.client.blocking import Loop

PIECES: Final = 50
"""How many pieces a slow link carries in a second."""


class Proxy:
    """Passes connections on to a server. Use as a context manager.

    Args:
        endpoint: of the server, ``tcp://HOST:PORT``.
        host: the address at which it listens.
    """

    def __init__(self, endpoint: str, host: str = "127.0.0.1") -> None:
        self._host = host
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        self._target = host, int(port)
        self._loop = Loop()
        self._server: asyncio.Server
        self._passing: set[_Passing] = set()
        self._delay = 0.0
        self._parted = False
        self._flows: asyncio.Event  # Not set while everything is held up.
        self._rate = 0
        self.endpoint: str

    def __enter__(self) -> Self:
        self._loop.__enter__()
        self._loop.run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run(self._stop())
        self._loop.__exit__()

    def cut(self) -> None:
        """Cut all connections: requests and replies on their way are lost."""
        self._loop.run(self._cut())

    def part(self) -> None:
        """Cut all connections, and let nobody through until `join`."""
        self._parted = True
        self.cut()

    def join(self) -> None:
        """Let everybody through again, after `part` or `hold`."""
        self._parted = False
        self._loop.run(self._set_flow(True))

    def mute(self) -> None:
        """Let no reply through any more on the connections that there are."""
        self._loop.run(self._mute())

    def delay(self, seconds: float) -> None:
        """Hold up every piece that passes by from now on."""
        self._delay = seconds

    def hold(self) -> None:
        """Hold up everything, on new connections too, until `join`; then it arrives."""
        self._loop.run(self._set_flow(False))

    async def _set_flow(self, flows: bool) -> None:
        if flows:
            self._flows.set()
        else:
            self._flows.clear()

    def slow(self, rate: int) -> None:
        """Let so many bytes a second through from now on, on each connection in each direction."""
        self._rate = rate

    async def _start(self) -> None:
        self._flows = asyncio.Event()
        self._flows.set()
        self._server = await asyncio.start_server(self._connected, self._host, 0)
        self.endpoint = "tcp://{}:{}".format(*self._server.sockets[0].getsockname())

    async def _stop(self) -> None:
        self._server.close()
        await self._cut()

    async def _cut(self) -> None:
        for passing in list(self._passing):
            passing.task.cancel()
        await asyncio.gather(*[passing.task for passing in self._passing], return_exceptions=True)

    async def _mute(self) -> None:
        for passing in self._passing:
            passing.muted = True

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._parted:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        passing = _Passing(task)
        self._passing.add(passing)
        writers = [writer]
        try:
            there, back = await asyncio.open_connection(*self._target)
            writers.append(back)
            await asyncio.gather(self._pass(reader, back, None), self._pass(there, writer, passing))
        except (OSError, asyncio.CancelledError):
            pass  # Cut, or nobody is there.
        finally:
            self._passing.discard(passing)
            for each in writers:
                each.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, muting: _Passing | None
    ) -> None:
        """Pass on what comes, until one side ends."""
        while piece := await reader.read(self._rate // PIECES or 65_536):
            if self._delay:
                await asyncio.sleep(self._delay)
            await self._flows.wait()
            if self._rate:
                await asyncio.sleep(len(piece) / self._rate)
            if muting is None or not muting.muted:
                writer.write(piece)
                await writer.drain()
        raise ConnectionResetError


class _Passing:
    """One connection that passes through."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        self.task = task
        self.muted = False
