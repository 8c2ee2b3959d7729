"""One client process of a load: sends random ops, and records each before it is sent.

It is a program of its own, run by `tests.durability.crash.load`, with its profile as JSON in its
only argument. Lines on standard input tell it what to do, bytes on standard output what came of it:

    go ENDPOINT FILE    begin a history in FILE
    finish              send no more, wait for the replies that are due, say ``!``
    abandon             send no more, take the replies that have come, say ``!``

``.`` stands for a write that was answered with ok, ``x`` for one that was refused. When standard
input ends, so does the client. It imports nothing of zkv.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgpack
import zmq

Message = dict[str, Any]

STDIN: Final = 0
STDOUT: Final = 1
WRITES: Final = frozenset({"PUT", "MPUT", "DELETE", "MDELETE"})


class Profile(NamedTuple):
    """How a client behaves.

    Args:
        name: no two clients of a test have the same.
        seed: of its choices.
        shared: keys that every client uses.
        own: keys that only this one uses.
        weights: how often each op is chosen.
        window: most requests in flight.
        rate: most requests in a second.
        value_bytes: the longest value.
        durable: the share of writes that ask to be on disk.
    """

    name: str
    seed: int
    shared: list[str]
    own: list[str]
    weights: dict[str, int]
    window: int
    rate: float
    value_bytes: int
    durable: float


class Choices:
    """The ops of one client: the same for the same seed."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._random = random.Random(profile.seed)
        self._keys = profile.shared + profile.own
        self._ops = list(profile.weights)
        self._weights = list(profile.weights.values())
        self._number = 0

    def next(self) -> Message:
        """The fields of the next request; its id names it in the history."""
        self._number += 1
        name = f"{self._profile.name}/{self._number}"
        op = self._random.choices(self._ops, self._weights)[0]
        request: Message = {"id": name, "op": op}
        match op:
            case "PUT":
                request |= {"key": self._key(), "value": self._value(name)}
            case "MPUT":
                value = self._value(name)
                request["items"] = dict.fromkeys(self._some_keys(), value)
            case "GET" | "DELETE":
                request["key"] = self._key()
            case "MGET" | "MDELETE":
                request["keys"] = self._some_keys()
        if op in WRITES and self._random.random() < self._profile.durable:
            request["durable"] = True
        return request

    def _key(self) -> str:
        return self._random.choice(self._keys)

    def _some_keys(self) -> list[str]:
        return self._random.sample(self._keys, self._random.randint(2, 5))

    def _value(self, name: str) -> str:
        """A value that no other write has."""
        return name.ljust(self._random.randint(len(name), self._profile.value_bytes), "=")


class Commands:
    """The lines on standard input."""

    def __init__(self) -> None:
        self._text = b""

    @property
    def waiting(self) -> bool:
        """Whether the next one has been read from the pipe already."""
        return b"\n" in self._text

    def take(self) -> list[str]:
        """The words of the next one; none once standard input has ended."""
        while not self.waiting:
            data = os.read(STDIN, 4096)
            if not data:
                return []
            self._text += data
        line, _, self._text = self._text.partition(b"\n")
        return line.decode().split()


class Client:
    """Sends what `Choices` gives, as long as it is told to."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._choices = Choices(profile)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._in_flight: set[str] = set()

    def run(self) -> None:
        """Do as told until standard input ends."""
        commands = Commands()
        while command := commands.take():
            _, endpoint, path = command
            self._serve(endpoint, Path(path), commands)

    def _serve(self, endpoint: str, path: Path, commands: Commands) -> None:
        """One history: from "go" to "finish" or "abandon"."""
        self._in_flight.clear()
        with open(path, "ab", buffering=0) as history, self._context.socket(zmq.DEALER) as socket:
            socket.linger = 0
            socket.connect(endpoint)
            poller = zmq.Poller()
            poller.register(socket, zmq.POLLIN)
            poller.register(STDIN, zmq.POLLIN)
            word, due = "go", time.monotonic()
            while word == "go" or (word == "finish" and self._in_flight):
                may_send = word == "go" and len(self._in_flight) < self._profile.window
                if may_send and due <= time.monotonic():
                    due = max(due, time.monotonic() - 0.1) + 1 / self._profile.rate
                    self._send(socket, history.fileno())
                    wait = 0.0
                else:
                    wait = max(0.0, due - time.monotonic()) if may_send else 60.0
                ready = dict(poller.poll(0 if commands.waiting else round(wait * 1000)))
                if socket in ready:
                    self._receive(socket, history.fileno())
                if commands.waiting or STDIN in ready:
                    word = (commands.take() or ["abandon"])[0]
            self._receive(socket, history.fileno())
        os.write(STDOUT, b"!")

    def _send(self, socket: zmq.Socket[bytes], history: int) -> None:
        request = self._choices.next()
        self._in_flight.add(request["id"])
        keys = request.get("keys") or list(request.get("items", ())) or [request.get("key")]
        value = request.get("value") or next(iter(request.get("items", {}).values()), None)
        line = {
            "name": request["id"], "op": request["op"], "start": time.monotonic_ns(),
            "keys": [key for key in keys if key is not None], "value": value,
        }  # fmt: skip
        _write_line(history, line)
        socket.send_multipart([b"", msgpack.packb(request)], zmq.NOBLOCK)

    def _receive(self, socket: zmq.Socket[bytes], history: int) -> None:
        """Record every reply that has come."""
        marks = b""
        while True:
            try:
                _, body = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            end = time.monotonic_ns()
            reply = msgpack.unpackb(body)
            name = reply.pop("id")
            self._in_flight.remove(name)
            if "stats" in reply:  # Of INFO, the revisions are enough.
                reply = {field: reply[field] for field in ("ok", "rev", "durable_rev")}
            _write_line(history, {"name": name, "end": end, "reply": reply})
            if "durable" in reply and reply["ok"]:
                marks += b"."
            elif reply.get("code") == "READ_ONLY":
                marks += b"x"
        if marks:
            os.write(STDOUT, marks)


def _write_line(history: int, line: Message) -> None:
    os.write(history, json.dumps(line).encode() + b"\n")


if __name__ == "__main__":
    Client(Profile(**json.loads(sys.argv[1]))).run()
