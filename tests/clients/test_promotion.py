"""The clients go on over promotions of real servers, and their watchers lose and repeat nothing."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from pathlib import Path
from typing import Final, Self

import pytest

from tests.clients.languages import Driver, Language, languages, watcher
from tests.replication.following import (
    QUIET,
    Follower,
    catch_up,
    fixed_ports,
    promote,
    replication,
)
from tests.support import LIMIT, Message, Raw, ServerProcess, pack, read_line, unpack

COUNT: Final = 20
"""Increments of each client at a time."""
RETRIES: Final = 100
PATIENCE: Final = 6.0
"""Seconds that a client waits for each reply: all attempts together outlast a promotion."""
SOON: Final = 1.0
"""The same where a reply is to be lost, and one that comes is not to be."""
INCR: Final = pack({"op": "INCR", "key": "watched/n"})


@pytest.fixture
def present() -> list[Language]:
    """All languages with lists that can be run here."""
    found = [each for each in languages() if each.lists and each.is_present]
    for language in found:
        language.build()
    return found


class Counting:
    """Clients that increment one counter.

    Args:
        drivers: of the clients.
    """

    def __init__(self, drivers: list[Driver]) -> None:
        self._drivers = drivers
        self.counted: list[int] = []
        """What was answered."""

    def begin(self) -> None:
        """Have each client send some."""
        for driver in self._drivers:
            for _ in range(COUNT):
                driver.send(INCR)

    def finish(self) -> None:
        """Take all replies. What was certainly not applied, as nobody led, is asked for again."""
        for driver in self._drivers:
            for _ in range(COUNT):
                reply = self._reply(driver)
                for _ in range(RETRIES):
                    if reply["ok"] or reply["code"] != "NOT_LEADER" or reply["applied"] is None:
                        break
                    driver.send(INCR)
                    reply = self._reply(driver)
                assert reply["ok"], (driver.language, reply)
                self.counted.append(reply["value"])

    def _reply(self, driver: Driver) -> Message:
        reply: Message = unpack(driver.receive())
        return reply


class Watchers:
    """The watchers of some languages. Use as a context manager.

    Args:
        present: the languages.
        endpoints: of the servers.
    """

    def __init__(self, present: list[Language], endpoints: str) -> None:
        self._present = [language for language in present if language.watch]
        self._endpoints = endpoints
        self._stack = contextlib.ExitStack()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.told: dict[str, list[tuple[int, int]]] = {}
        """The changes that each has printed: their revisions and values."""

    def __enter__(self) -> Self:
        for each in self._present:
            self._processes[each.name] = self._stack.enter_context(
                watcher(each, self._endpoints, "watched/")
            )
            self.told[each.name] = []
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def signal(self, number: int) -> None:
        """Send all of them a signal."""
        for process in self._processes.values():
            process.send_signal(number)

    def read(self, count: int) -> None:
        """Read so many more changes from each."""
        for name, process in self._processes.items():
            assert process.stdout is not None
            for _ in range(count):
                line = read_line(process.stdout, 2 * LIMIT).decode().rstrip("\n")
                rev, op, key, value = line.split("\t")
                assert (op, key) == ("PUT", "watched/n")
                self.told[name].append((int(rev), int(value)))


@pytest.mark.timeout(600)
def test_they_count_and_watch_over_two_promotions(present: list[Language], tmp_path: Path) -> None:
    """A planned one, and one by force, back to the first server."""
    ports, more = fixed_ports(), fixed_ports()
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(ServerProcess(tmp_path / "one", *ports, config=QUIET))
        two = stack.enter_context(Follower(tmp_path / "two", one.endpoint, *more, config=QUIET))
        endpoints = f"{one.endpoint},{two.endpoint}"
        watchers = stack.enter_context(Watchers(present, endpoints))
        counting = Counting(
            [stack.enter_context(Driver(each, endpoints, PATIENCE)) for each in present]
        )
        each = COUNT * len(present)
        counting.begin()
        counting.finish()
        watchers.read(each)
        watchers.signal(signal.SIGSTOP)  # They are late: what is new belongs to both servers.
        counting.begin()
        assert promote(two.endpoint).returncode == 0
        counting.finish()
        watchers.signal(signal.SIGCONT)
        watchers.read(each)

        one.stop()  # It comes back as a standby, and takes over again once the other one is gone.
        back = stack.enter_context(
            Follower(tmp_path / "back", two.endpoint, *ports, data_dir=one.data_dir, config=QUIET)
        )
        with Raw(back.endpoint) as here, Raw(two.endpoint) as there:
            catch_up(here, there)
        two.kill()
        counting.begin()
        assert promote(back.endpoint, "--force").returncode == 0
        counting.finish()

        total = 3 * each
        assert sorted(counting.counted) == list(range(1, total + 1))
        with Raw(back.endpoint) as client:
            assert client.ok(op="GET", key="watched/n")["value"] == total
            assert replication(client)["term"] == 3
            client.ok(op="PUT", key="watched/n", value=0)
        watchers.read(each + 1)
        for name, told in watchers.told.items():
            assert [value for _, value in told] == [*range(1, total + 1), 0], name
            assert told == sorted(told), name


def test_what_concerns_one_server_stays_there(present: list[Language], tmp_path: Path) -> None:
    """The primary is gone, and nobody ends its standby, which takes over then."""
    with (
        ServerProcess(tmp_path / "one", config=QUIET) as one,
        Follower(tmp_path / "two", one.endpoint, config=QUIET) as two,
        contextlib.ExitStack() as stack,
    ):
        endpoints = f"{one.endpoint},{two.endpoint}"
        drivers = [stack.enter_context(Driver(each, endpoints, SOON)) for each in present]
        for driver in drivers:
            assert unpack(driver.exchange(INCR))["ok"]
        with Raw(two.endpoint) as there, Raw(one.endpoint) as here:
            catch_up(there, here)
        one.kill()
        for op in ("SNAPSHOT", "END"):
            for driver in drivers:
                driver.send(pack({"op": op}))
            replies = [unpack(driver.receive()) for driver in drivers]
            assert {reply["code"] for reply in replies} == {"NO_REPLY"}
        assert promote(two.endpoint, "--force").returncode == 0
        for driver in drivers:
            assert unpack(driver.exchange(INCR))["ok"]
        with Raw(two.endpoint) as client:
            asked = client.ok(op="INFO")["stats"]["requests"]
            assert client.ok(op="GET", key="watched/n")["value"] == 2 * len(drivers)
        assert not {"END", "SNAPSHOT"} & set(asked)
