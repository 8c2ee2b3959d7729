"""A server that knows users, and clients of theirs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

import zmq

from tests.support import FREE_PORT, LIMIT, Raw, ServerInProcess, curve_options, unpack
from zkv.keys import KeyPair, make_key_file, read_key_file

Context = zmq.Context[zmq.Socket[bytes]]
Fields = Mapping[str, Any]


class Secured:
    """A server with CURVE and users. Use as a context manager.

    Args:
        directory: of its files.
        users: the fields of each user; the keys are made here.
        feed: whether it has a feed.
        **tables: further settings.
    """

    def __init__(
        self, directory: Path, users: Mapping[str, Fields], feed: bool = False, **tables: Any
    ) -> None:
        self.directory = directory
        self.path = directory / "users.toml"
        if not (directory / "server.key").exists():
            make_key_file(directory / "server.key")
        self.server_key = read_key_file(directory / "server.key").public
        self._keys: dict[str, KeyPair] = {}
        self.write(users)
        self.ipc = f"ipc://{directory}/socket"
        server = {"endpoints": [FREE_PORT, self.ipc], "feed": FREE_PORT if feed else ""}
        security = {"secret_key_file": str(directory / "server.key"), "users": str(self.path)}
        self.server = ServerInProcess(
            directory / "data",
            server=server | tables.pop("server", {}),
            security=security | tables.pop("security", {}),
            **tables,
        )

    def __enter__(self) -> Self:
        self.server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.__exit__()

    @property
    def endpoint(self) -> str:
        """Of clients, by tcp."""
        return self.server.endpoint

    @property
    def feed(self) -> str:
        """Of followers."""
        return self.server.server.feed

    def key(self, name: str) -> KeyPair:
        """The key of a user, or of somebody who is none."""
        if name not in self._keys:
            path = self.directory / f"{name}.key"
            if not path.exists():
                make_key_file(path)
            self._keys[name] = read_key_file(path)
        return self._keys[name]

    def write(self, users: Mapping[str, Fields]) -> None:
        """Write the users file. Each user has a key, unless the fields say otherwise."""
        lines = []
        for name, fields in users.items():
            lines.append(f"[users.{name}]")
            keys = {} if name == "anonymous" else {"keys": [self.key(name).public]}
            lines += [
                f"{field} = {json.dumps(value)}" for field, value in (keys | dict(fields)).items()
            ]
        self.path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def reload(self, users: Mapping[str, Fields]) -> None:
        """Change the users; return once the server has read the file."""
        self.write(users)
        self.read_again()

    def read_again(self) -> None:
        """Have the server read the users file. Raises ConfigError."""
        done: Future[None] = Future()

        def reload() -> None:
            try:
                self.server.server.reload_users()
                done.set_result(None)
            except BaseException as error:
                done.set_exception(error)

        self.server.server.run_soon(reload)
        done.result(LIMIT)

    def options(self, name: str, server_key: str = "") -> dict[int, int | bytes]:
        """The options of a socket of a user."""
        return curve_options(server_key or self.server_key, self.key(name))

    def client(self, context: Context, name: str, **keywords: Any) -> Raw:
        """A client of a user, by tcp."""
        return Raw(self.endpoint, context=context, options=self.options(name), **keywords)

    def follower(self, context: Context, name: str, *topics: bytes) -> zmq.Socket[bytes]:
        """A follower of a user."""
        socket = context.socket(zmq.SUB)
        socket.linger = 0
        socket.rcvhwm = socket.sndhwm = 0  # Subscriptions are sent, too.
        socket.reconnect_ivl = 10
        for option, value in self.options(name).items():
            socket.setsockopt(option, value)
        for topic in topics:
            socket.subscribe(topic)
        socket.connect(self.feed)
        return socket


def sees(follower: zmq.Socket[bytes], rev: int) -> bool:
    """Whether a follower soon gets the change of a revision."""
    while follower.poll(50):
        topic, body = follower.recv_multipart()
        if topic != b"\0" and unpack(body)["rev"] == rev:
            return True
    return False
