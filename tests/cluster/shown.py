"""Members of a store in this process, over a fake etcd, that look at each other often."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.etcd.fake import FakeClient, FakeEtcd
from tests.support import ServerInProcess, eventually
from zkv.cluster import joining, observer
from zkv.config import build
from zkv.etcd import Etcd

URL: Final = "etcd://nowhere:2379/test"
LEASE: Final = 2.0
OFTEN: Final = 0.02


class RealClock:
    """The time of this machine, for a fake etcd."""

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        threading.Event().wait(seconds)


class Members:
    """A store and its members.

    Attributes:
        etcd: the fake one.
        clients: that of each member, by name.
    """

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._directory = directory
        self._next = ""
        self.etcd = FakeEtcd(1, clock=RealClock(), quota=10_000_000)
        self.clients: dict[str, FakeClient] = {}
        monkeypatch.setattr(joining, "_client", self._new_client)
        monkeypatch.setattr(observer, "OBSERVE_SECONDS", OFTEN)
        settings = build({"store": {"url": URL}})
        joining.found(joining.shared_log(settings), settings.limits)

    def _new_client(self, _settings: object, _endpoints: object) -> Etcd:
        client = self.etcd.client()
        self.clients[self._next] = client
        return client

    @contextlib.contextmanager
    def leader(self, name: str) -> Iterator[ServerInProcess]:
        """A member that leads."""
        with self.member(name) as server:
            eventually(lambda: server.server.role.leads, f"{name} leads")
            yield server

    def member(self, name: str, **tables: dict[str, Any]) -> ServerInProcess:
        """A member, which is to be started before the next one is made."""
        self._next = name
        store = {"url": URL, "member": name, "lease": LEASE}
        return ServerInProcess(self._directory / name, None, None, store=store, **tables)
