"""The clients that take lists of endpoints find the server that leads, and do nothing twice.

The servers are scripted: each answers as a test tells it to. Two real ones, of which one is killed,
show that the parts fit together.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
from pathlib import Path
from typing import Any, Final, Self

import pytest
import zmq

from tests.clients.languages import Driver, Language, languages
from tests.support import (
    FREE_PORT,
    LIMIT,
    Raw,
    ServerProcess,
    free_ports,
    pack,
    unpack,
)  # fmt: skip

LANGUAGES: Final = languages()
SOON: Final = 1.0
"""A timeout in seconds where a reply is to be lost, and one that comes is not to be."""
GET: Final = pack({"op": "GET", "key": "a"})
INCR: Final = pack({"op": "INCR", "key": "n"})

takes_lists: Final = pytest.mark.parametrize(
    "language", [language for language in LANGUAGES if language.lists], ids=repr, indirect=True
)
takes_lists_and_keys: Final = pytest.mark.parametrize(
    "language",
    [language for language in LANGUAGES if language.lists and language.curve],
    ids=repr,
    indirect=True,
)


class Server:
    """What a scripted server says. It leads, and answers everything, unless told otherwise.

    Args:
        store: of its INFO, with ``term``; "" = it is not replicated.
        term: of its INFO.
        loses: the ops that it does not answer.
        leader: what NOT_LEADER tells of, to all but INFO; None = it leads.
        applied: of NOT_LEADER.
    """

    def __init__(
        self,
        store: str = "",
        term: int = 1,
        *,
        loses: tuple[str, ...] = (),
        leader: list[Any] | None = None,
        applied: bool | None = False,
    ) -> None:
        self.store, self.term, self.loses = store, term, loses
        self.leader, self.applied = leader, applied
        self.bodies: list[bytes] = []
        """The requests that came."""

    def ops(self) -> list[str]:
        """Of the requests that came."""
        return [unpack(body)["op"] for body in self.bodies]

    def answer(self, body: bytes) -> bytes | None:
        """The reply to a request; None: it is lost."""
        self.bodies.append(body)
        request = unpack(body)
        fields: dict[str, Any] = {"ok": True, "value": 1, "rev": 1}
        if request["op"] in self.loses:
            return None
        if request["op"] == "INFO":
            if self.store:
                fields["replication"] = {"store": self.store, "term": self.term}
        elif self.leader is not None:
            fields = {"ok": False, "code": "NOT_LEADER", "message": "a standby", "retry": True}
            fields |= {"applied": self.applied, "leader": self.leader or None}
        return pack(fields | {"id": request["id"]})


SILENT: Final = ("INFO", "GET", "INCR", "END", "SNAPSHOT")


class Group:
    """Scripted servers, each at its endpoint. Use as a context manager.

    Args:
        servers: what each says.
        secret_key: of all of them, for CURVE; b"" = without.
    """

    def __init__(self, *servers: Server, secret_key: bytes = b"") -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets: dict[zmq.Socket[bytes], Server] = {}
        for server in servers:
            router = self._context.socket(zmq.ROUTER)
            router.linger = 0
            if secret_key:
                router.curve_server, router.curve_secretkey = True, secret_key
            router.bind(FREE_PORT)
            self._sockets[router] = server
        self.endpoints = [str(router.get_string(zmq.LAST_ENDPOINT)) for router in self._sockets]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for router in self._sockets:
            router.close()
        self._context.term()

    @property
    def list(self) -> str:
        """All endpoints, as a client takes them."""
        return ",".join(self.endpoints)

    def _run(self) -> None:
        poller = zmq.Poller()
        for router in self._sockets:
            poller.register(router, zmq.POLLIN)
        while not self._stop.is_set():
            for router, _ in poller.poll(20):
                peer, empty, body = router.recv_multipart()
                reply = self._sockets[router].answer(body)
                if reply is not None:
                    router.send_multipart([peer, empty, reply])


# --- It finds the one that answers ----------------------------------------------------------------


@takes_lists
def test_a_silent_server_is_left(language: Language) -> None:
    servers = Server(loses=SILENT), Server()
    with Group(*servers) as group, Driver(language, group.list, SOON) as driver:
        replies = [unpack(driver.exchange(GET)) for _ in range(2)]

    assert [reply["ok"] for reply in replies] == [True, True]
    assert [server.ops() for server in servers] == [["INFO"], ["INFO", "GET", "GET"]]


@takes_lists
def test_a_lost_write_is_repeated_elsewhere_as_it_was(language: Language) -> None:
    servers = Server("s", loses=("INCR",)), Server("s", 2)
    with Group(*servers) as group, Driver(language, group.list, SOON) as driver:
        reply = unpack(driver.exchange(INCR))

    assert (reply["ok"], reply["value"]) == (True, 1)
    assert [server.ops() for server in servers] == [["INFO", "INCR"], ["INFO", "INCR"]]
    assert servers[0].bodies[1] == servers[1].bodies[1]
    assert unpack(servers[1].bodies[1])["seq"] == 1


@takes_lists
@pytest.mark.parametrize("applied", [False, None])
def test_the_one_that_leads_is_found(language: Language, applied: bool | None) -> None:
    servers = Server("s", leader=[], applied=applied), Server("s")
    with Group(*servers) as group, Driver(language, group.list) as driver:
        reply = unpack(driver.exchange(INCR))
        again = unpack(driver.exchange(INCR))

    assert (reply["ok"], again["ok"]) == (True, True)
    assert [server.ops() for server in servers] == [["INFO", "INCR"], ["INFO", "INCR", "INCR"]]
    assert servers[0].bodies[1] == servers[1].bodies[1]


@takes_lists
def test_it_goes_at_once_to_the_one_that_is_said_to_lead(language: Language) -> None:
    servers = Server(leader=[]), Server(), Server()
    with Group(*servers) as group, Driver(language, group.list) as driver:
        servers[0].leader = ["tcp://127.0.0.1:1", group.endpoints[2]]
        reply = unpack(driver.exchange(INCR))

    assert reply["ok"]
    assert [server.ops() for server in servers] == [["INFO", "INCR"], [], ["INFO", "INCR"]]


@takes_lists
def test_servers_that_name_each_other_do_not_hold_it(language: Language) -> None:
    servers = Server(leader=[]), Server(leader=[]), Server()
    with Group(*servers) as group, Driver(language, group.list) as driver:
        servers[0].leader, servers[1].leader = [group.endpoints[1]], [group.endpoints[0]]
        reply = unpack(driver.exchange(INCR))

    assert reply["ok"]
    assert servers[2].ops() == ["INFO", "INCR"]


@takes_lists_and_keys
def test_one_that_names_itself_does_not_hold_it(language: Language) -> None:
    public, secret = zmq.curve_keypair()
    servers = Server(leader=[]), Server()
    env = {"ZKV_SERVER_PUBLIC_KEY": public.decode()}
    with (
        Group(*servers, secret_key=secret) as group,
        Driver(language, group.list, env=env) as driver,
    ):
        servers[0].leader = [group.endpoints[0]]
        reply = unpack(driver.exchange(INCR))

    assert reply["ok"]
    assert servers[0].ops() == ["INFO", "INCR"]


@takes_lists
def test_it_goes_nowhere_else_without_keys(language: Language) -> None:
    stranger = Server()
    servers = Server(leader=[]), Server()
    with Group(stranger) as other, Group(*servers) as group:
        servers[0].leader = other.endpoints
        with Driver(language, group.list) as driver:
            reply = unpack(driver.exchange(INCR))
        with Driver(language, group.endpoints[0]) as driver:
            alone = unpack(driver.exchange(INCR))

    assert reply["ok"]
    assert (alone["code"], alone["applied"]) == ("NOT_LEADER", False)
    assert alone["leader"] == other.endpoints
    assert stranger.bodies == []


@takes_lists_and_keys
def test_with_keys_it_goes_wherever_it_is_sent(language: Language) -> None:
    """But only by tcp, where the other side has to prove its key."""
    public, secret = zmq.curve_keypair()
    servers = Server("s", leader=[]), Server("s")
    env = {"ZKV_SERVER_PUBLIC_KEY": public.decode()}
    with Group(*servers, secret_key=secret) as group:
        servers[0].leader = ["ipc:///nowhere", group.endpoints[1]]
        with Driver(language, group.endpoints[0], env=env) as driver:
            replies = [unpack(driver.exchange(INCR)) for _ in range(2)]

    assert [reply["ok"] for reply in replies] == [True, True]
    assert servers[1].ops() == ["INFO", "INCR", "INCR"]


@takes_lists_and_keys
def test_it_survives_being_sent_to_what_is_no_endpoint(language: Language) -> None:
    public, secret = zmq.curve_keypair()
    servers = Server(leader=[7, "tcp://"]), Server()
    env = {"ZKV_SERVER_PUBLIC_KEY": public.decode()}
    with (
        Group(*servers, secret_key=secret) as group,
        Driver(language, group.list, env=env) as driver,
    ):
        reply = unpack(driver.exchange(INCR))

    assert reply["ok"]
    assert servers[1].ops() == ["INFO", "INCR"]


# --- It finds no other store ----------------------------------------------------------------------


@takes_lists
def test_another_store_or_an_older_term_gets_no_request(language: Language) -> None:
    servers = (
        Server("s", 2, leader=[]), Server("t", 3), Server("s", 1), Server(), Server("s", 2),
    )  # fmt: skip
    with Group(*servers) as group, Driver(language, group.list) as driver:
        reply = unpack(driver.exchange(INCR))

    assert reply["ok"]
    assert [server.ops() for server in servers] == [
        ["INFO", "INCR"], ["INFO"], ["INFO"], ["INFO"], ["INFO", "INCR"],
    ]  # fmt: skip


@takes_lists
def test_an_old_primary_that_returns_gets_no_request(language: Language) -> None:
    servers = Server("s", 1), Server("s", 2)
    with Group(*servers) as group, Driver(language, group.list) as driver:
        before = unpack(driver.exchange(INCR))
        servers[0].leader = []
        promoted = unpack(driver.exchange(INCR))
        servers[0].leader, servers[1].leader = None, []
        refused = unpack(driver.exchange(INCR))

    assert (before["ok"], promoted["ok"]) == (True, True)
    assert (refused["ok"], refused["code"]) == (False, "NOT_LEADER")
    assert (refused["retry"], refused["applied"]) == (True, False)
    assert servers[0].ops().count("INCR") == 2


# --- It does nothing twice ------------------------------------------------------------------------


@takes_lists
@pytest.mark.parametrize("op", ["END", "SNAPSHOT"])
@pytest.mark.parametrize("reachable", [True, False])
def test_what_concerns_one_server_is_not_repeated_at_another(
    language: Language, op: str, reachable: bool
) -> None:
    servers = Server(loses=(op,) if reachable else SILENT), Server()
    with Group(*servers) as group, Driver(language, group.list, SOON / 2) as driver:
        reply = unpack(driver.exchange(pack({"op": op})))

    assert (reply["ok"], reply["code"], reply["retry"]) == (False, "NO_REPLY", True)
    assert servers[1].ops() == []
    if op == "END":
        assert servers[0].ops() == ["INFO", "END"][: 1 + reachable]


@takes_lists
@pytest.mark.parametrize("lost", [True, False])
def test_without_a_session_nothing_is_repeated_elsewhere(language: Language, lost: bool) -> None:
    """If it may have been applied. Some clients add a session even so."""
    doubtful = Server(loses=("INCR",)) if lost else Server(leader=[], applied=None)
    incr = pack({"op": "INCR", "key": "n", "session": None})
    servers = doubtful, Server()
    with Group(*servers) as group, Driver(language, group.list, SOON / 2) as driver:
        driver.exchange(incr)

    assert "INCR" in servers[0].ops()
    for body in servers[1].bodies:
        assert unpack(body)["op"] == "INFO" or unpack(body)["session"]


@takes_lists
def test_without_a_session_it_goes_on_if_nothing_has_happened(language: Language) -> None:
    servers = Server(leader=[]), Server()
    with Group(*servers) as group, Driver(language, group.list) as driver:
        reply = unpack(driver.exchange(pack({"op": "INCR", "key": "n", "session": None})))

    assert reply["ok"]
    assert servers[1].ops() == ["INFO", "INCR"]


@takes_lists
@pytest.mark.parametrize("lost", [True, False])
def test_nobody_knows_what_became_of_a_write_that_was_in_doubt(
    language: Language, lost: bool
) -> None:
    """Though the last one to be asked says that it has not applied it."""
    doubtful = Server(loses=("INCR",)) if lost else Server(leader=[], applied=None)
    servers = doubtful, Server(leader=[])
    with Group(*servers) as group, Driver(language, group.list, SOON / 2) as driver:
        reply = unpack(driver.exchange(INCR))

    assert (reply["ok"], reply["code"], reply["retry"]) == (False, "NO_REPLY", True)
    assert reply.get("applied") is None


@takes_lists
def test_where_nobody_leads_that_is_the_failure(language: Language) -> None:
    servers = Server(leader=[]), Server(leader=[])
    with Group(*servers) as group, Driver(language, group.list) as driver:
        reply = unpack(driver.exchange(INCR))

    assert (reply["ok"], reply["code"]) == (False, "NOT_LEADER"), reply
    assert (reply["retry"], reply["applied"]) == (True, False)
    assert [server.ops().count("INCR") for server in servers] == [3, 3]


# --- On the command line --------------------------------------------------------------------------


@takes_lists
def test_the_variable_may_have_a_list(language: Language) -> None:
    servers = Server(leader=[]), Server()
    with Group(*servers) as group:
        env = language.environment() | {"ZKV_ENDPOINT": " , ".join(group.endpoints)}
        done = subprocess.run(
            language.command("incr", "n"), cwd=language.directory, env=env,
            capture_output=True, timeout=LIMIT * 3, check=False,
        )  # fmt: skip

    assert (done.returncode, done.stdout) == (0, b"1\n"), done.stderr


@takes_lists
@pytest.mark.parametrize("bad", ["frob", ""])
def test_each_endpoint_of_a_list_is_checked_at_once(language: Language, bad: str) -> None:
    with Group(server := Server()) as group:
        done = language.run(f"{group.endpoints[0]},{bad}", "incr", "n")

    assert (done.returncode, done.stdout) == (2, b""), done.stderr
    assert server.bodies == []


# --- Real servers ---------------------------------------------------------------------------------


@takes_lists
def test_it_goes_on_when_a_server_is_killed(language: Language, tmp_path: Path) -> None:
    endpoints = [f"tcp://127.0.0.1:{port}" for port in free_ports(2)]
    with contextlib.ExitStack() as stack:
        first, second = (
            stack.enter_context(ServerProcess(tmp_path / endpoint[-5:], "--endpoint", endpoint))
            for endpoint in endpoints
        )
        driver = stack.enter_context(Driver(language, ",".join(endpoints), SOON))
        before = unpack(driver.exchange(INCR))
        first.kill()
        after = unpack(driver.exchange(INCR))
        with Raw(second.endpoint) as raw:
            stored = raw.ok(op="GET", key="n")

    assert (before["ok"], after["ok"]) == (True, True)
    assert stored["value"] == 1
