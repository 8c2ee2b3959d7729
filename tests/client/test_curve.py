"""Keys: what a client does with them, and what it says, at once, where they are wrong.

Each of these is tried by both kinds of client, and by what follows the changes.
"""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

import zkv
from tests.client.blocking import AnyClient, Kind
from tests.client.proxy import Proxy
from tests.support import FREE_PORT, LIMIT, ROOT, ServerInProcess, environment, eventually
from tests.users.secured import Secured
from zkv import AuthenticationError, ClosedError, DeniedError, FullError, UnavailableError
from zkv.client import trouble
from zkv.client.curve import KEY_FILE, SERVER_KEY, CurveKeys
from zkv.errors import ConfigError
from zkv.keys import make_key_file, read_key_file

ALL: dict[str, Any] = {"write": [""], "admin": True}
LONG = 10 * LIMIT
"""A timeout that no test survives: whoever waits for it is told so."""
VARIABLES = ("ZKV_SERVER_PUBLIC_KEY", "ZKV_KEY_FILE")


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Secured]:
    """A server with CURVE, a feed, and the user ann."""
    with Secured(tmp_path, {"ann": ALL}, feed=True) as server:
        yield server


def file_of(secured: Secured, name: str) -> Path:
    """The key file of a user, or of somebody who is none."""
    secured.key(name)
    return secured.directory / f"{name}.key"


def as_user(secured: Secured, name: str, **others: Any) -> dict[str, Any]:
    """The arguments of a client of a user."""
    keys = {"server_key": secured.server_key, "key_file": file_of(secured, name)}
    return {"endpoint": secured.endpoint, "timeout": LONG} | keys | others


def key_of(path: Path) -> str:
    """The public key of a new key file."""
    return make_key_file(path)


# --- What a client does with its keys


def request(kv: AnyClient) -> None:
    kv.put("k", 1)


def send_once(kv: AnyClient) -> None:
    kv.call("PUT", key="k", value=1)


def watch(kv: AnyClient) -> None:
    with kv.watch("k", since=0) as changes:
        changes.next(LONG)


def mirror(kv: AnyClient) -> None:
    with kv.mirror("k"):
        pass


USES = [request, send_once, watch, mirror]
Use = Callable[[AnyClient], None]


@pytest.mark.parametrize("use", USES)
def test_a_client_with_keys_gets_all(kind: Kind, secured: Secured, use: Use) -> None:
    with kind(**as_user(secured, "ann")) as kv:
        kv.put("k", 1)
        assert kv.info()["user"] == "ann"
        use(kv)


def test_the_feed_uses_the_same_keys(kind: Kind, secured: Secured) -> None:
    """Its changes come by the feed, and not by a request for changes."""
    with kind(**as_user(secured, "ann")) as kv, kv.watch("k") as changes:
        eventually(lambda: follows_by_feed(secured, changes), "the follower")
        rev = kv.put("k", 1)
        change = changes.next(LIMIT)
        assert (change.key, change.rev) == ("k", rev)


def follows_by_feed(secured: Secured, changes: AnyClient) -> bool:
    """Whether the server has a follower, while nothing changes."""
    assert changes.next(0.01) is None
    return bool(stats(secured)["followers"])


def stats(secured: Secured) -> Any:
    """What the server has counted."""
    info = secured.server.server.info()
    assert isinstance(info, dict)
    return info["stats"]


def test_a_key_that_was_right_is_tried_first(kind: Kind, secured: Secured) -> None:
    """So a follower needs one handshake."""
    other = key_of(secured.directory / "other.key")

    def failed(counted: int) -> int:
        """How many handshakes have failed, once ``counted`` refusals at the end are counted."""
        with zkv.Client(**as_user(secured, "eve")) as eve, pytest.raises(AuthenticationError):
            eve.ping()
        eventually(lambda: stats(secured)["handshakes_failed"]["auth"] == counted, "the refusals")
        return int(sum(stats(secured)["handshakes_failed"].values())) - counted

    with kind(**as_user(secured, "ann", server_key=[other, secured.server_key])) as kv:
        kv.put("k", 1)
        before = failed(1)
        with kv.watch("k") as changes, kv.mirror("k"):
            eventually(lambda: follows_by_feed(secured, changes), "the follower")
        assert failed(2) == before >= 1


def test_a_server_without_users_takes_any_key(kind: Kind, tmp_path: Path) -> None:
    """Also one that the client makes for itself."""
    public = key_of(tmp_path / "server.key")
    security = {"secret_key_file": str(tmp_path / "server.key")}
    server = {"feed": FREE_PORT}
    with (
        ServerInProcess(tmp_path / "data", security=security, server=server) as near,
        kind(near.endpoint, server_key=public) as kv,
    ):
        for use in USES:
            use(kv)


def test_keys_are_for_tcp_alone(kind: Kind, tmp_path: Path) -> None:
    users = {"me": ALL | {"uids": [os.getuid()]}, "ann": ALL}
    with Secured(tmp_path, users) as secured:
        for endpoint, user in (
            (secured.ipc, "me"), ([secured.ipc, secured.endpoint], "me"),
            ([secured.endpoint, secured.ipc], "ann"), (["ipc:///none", secured.endpoint], "ann"),
        ):  # fmt: skip
            with kind(**as_user(secured, "ann", endpoint=endpoint)) as kv:
                assert kv.info()["user"] == user
        keys = {"server_key": secured.server_key, "key_file": "absent"}
        with kind(secured.ipc, **keys) as kv:
            assert kv.info()["user"] == "me"


def test_another_endpoint_may_know_whom_one_refuses(kind: Kind, tmp_path: Path) -> None:
    with Secured(tmp_path, {"me": ALL | {"uids": [os.getuid()]}}) as secured:
        endpoints = [secured.endpoint, secured.ipc]
        with kind(**as_user(secured, "eve", endpoint=endpoints)) as kv:
            assert kv.info()["user"] == "me"


# --- Where they come from


def test_keys_come_from_the_environment(
    kind: Kind, secured: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = key_of(secured.directory / "other.key")
    monkeypatch.setenv("ZKV_SERVER_PUBLIC_KEY", f"{other} , {secured.server_key}")
    monkeypatch.setenv("ZKV_KEY_FILE", str(file_of(secured, "ann")))
    with kind(secured.endpoint) as kv:
        assert kv.info()["user"] == "ann"
    with kind(secured.endpoint, LONG, key_file=file_of(secured, "eve")) as kv:
        refused(kv, request, "eve.key")
    with kind(secured.endpoint, LONG, server_key=other) as kv:
        refused(kv, request, "another key than the one that this client was given (server_key)")
    monkeypatch.setenv("ZKV_SERVER_PUBLIC_KEY", other)
    with kind(secured.endpoint, LONG) as kv:
        refused(kv, request, "another key", "(ZKV_SERVER_PUBLIC_KEY)")


def test_empty_variables_are_none(
    kind: Kind, near: ServerInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
    with kind(near.endpoint) as kv:
        kv.put("k", 1)


def test_an_empty_list_is_no_key_whatever_the_environment_says(
    kind: Kind, near: ServerInProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZKV_SERVER_PUBLIC_KEY", key_of(tmp_path / "server.key"))
    monkeypatch.setenv("ZKV_KEY_FILE", "absent")
    with pytest.raises(ConfigError, match="ZKV_KEY_FILE: absent: No such file"):
        kind(near.endpoint)
    nones: list[Any] = [(), []]
    for none in nones:
        with kind(near.endpoint, server_key=none) as kv:
            kv.put("k", 1)


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"server_key": None}, TypeError, "server_key: a str, or a list of them; not NoneType"),
    ({"server_key": b"x" * 40}, TypeError, "server_key: a str, or a list of them; not bytes"),
    ({"server_key": [b"x"]}, TypeError, "server_key: a key is a str, not bytes"),
    ({"server_key": "x" * 39}, ValueError, "server_key: not a key: .*got 39 characters"),
    ({"server_key": ["%" * 40]}, ValueError, "server_key: not a key"),
    ({"key_file": None}, TypeError, "key_file: the name of a file; not NoneType"),
    ({"key_file": 5}, TypeError, "key_file: the name of a file; not int"),
    ({"key_file": ""}, ValueError, "key_file: the name of a file; not empty"),
    ({"key_file": "absent"}, ValueError, "key_file: a key file is of no use without the key of"),
    ({"key_file": "absent", "server_key": []}, ValueError, "key_file: a key file is of no use"),
]


@pytest.mark.parametrize(("arguments", "error", "says"), WRONG)
def test_wrong_arguments_are_named(
    kind: Kind, arguments: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        kind("tcp://127.0.0.1:1", **arguments)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("ZKV_SERVER_PUBLIC_KEY", "x,y", "ZKV_SERVER_PUBLIC_KEY: not a key"),
        ("ZKV_SERVER_PUBLIC_KEY", ",", "ZKV_SERVER_PUBLIC_KEY: not a key"),
        ("ZKV_KEY_FILE", "absent", "ZKV_KEY_FILE: a key file is of no use without the key of"),
    ],
)
def test_wrong_variables_are_named(
    kind: Kind, monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=says):
        kind("tcp://127.0.0.1:1")


def test_a_bad_key_file_is_named(kind: Kind, tmp_path: Path) -> None:
    public = key_of(tmp_path / "my.key")
    secret = read_key_file(tmp_path / "my.key").secret
    (tmp_path / "open.key").write_text(secret)
    (tmp_path / "open.key").chmod(0o644)
    (tmp_path / "none.key").touch(0o600)
    for file in ("absent.key", "open.key", "none.key", ""):
        path = tmp_path / file
        with pytest.raises(ConfigError) as caught:
            kind("tcp://127.0.0.1:1", server_key=public, key_file=path)
        assert str(caught.value).startswith(f"key_file: {path}: ")
        assert secret not in str(caught.value)


def test_a_key_in_place_of_a_file_is_not_shown(kind: Kind, tmp_path: Path) -> None:
    public = key_of(tmp_path / "my.key")
    secret = read_key_file(tmp_path / "my.key").secret
    with pytest.raises(ConfigError, match="key_file: the name of a file, not a key itself"):
        kind("tcp://127.0.0.1:1", server_key=public, key_file=secret)


def test_a_libzmq_without_curve_is_told(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zmq, "has", lambda name: name != "curve")
    with pytest.raises(ConfigError, match="server_key: the libzmq here was built without CURVE"):
        kind("tcp://127.0.0.1:1", server_key=key_of(tmp_path / "server.key"))


def test_keys_are_neither_shown_nor_copied(secured: Secured) -> None:
    keys = CurveKeys(secured.server_key, file_of(secured, "ann"))
    secret = keys.pair().secret
    with zkv.Client(**as_user(secured, "ann")) as kv:
        kv.put("k", 1)
        for thing in (keys, keys.pair(), kv, SERVER_KEY, KEY_FILE, kv._endpoints.current):
            assert secret not in repr(thing)
    for copier in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            copier(keys)


# --- Why a server does not let a client in


def refused(kv: AnyClient, use: Use, *says: str) -> AuthenticationError:
    """That a use is refused at once, in these words."""
    with pytest.raises(AuthenticationError) as caught:
        use(kv)
    error = caught.value
    assert error.applied is False
    assert error.reason in str(error)
    for each in says:
        assert each in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.reason) == (type(error), str(error), error.reason)
    return error


@pytest.mark.parametrize("use", USES)
def test_a_server_that_does_not_know_the_key_of_the_client(
    kind: Kind, secured: Secured, use: Use
) -> None:
    with kind(**as_user(secured, "eve")) as kv:
        path = secured.directory / "eve.key"
        error = refused(kv, use, secured.endpoint, f"{secured.key('eve').public} ({path})")
        assert "the server does not know the key of this client" in error.reason
        assert secured.key("eve").secret not in str(error)
    other = key_of(secured.directory / "other.key")
    for keys in ([secured.server_key, other], [other, secured.server_key]):
        with kind(**as_user(secured, "eve", server_key=keys)) as kv:
            refused(kv, use, "the server does not know the key of this client")
    with kind(secured.endpoint, LONG, server_key=secured.server_key) as kv:
        refused(kv, use, "known keys alone", "this client has none", "key_file", "ZKV_KEY_FILE")


@pytest.mark.parametrize("use", USES)
def test_a_server_that_has_another_key(kind: Kind, secured: Secured, use: Use) -> None:
    others = [key_of(secured.directory / f"other{number}.key") for number in range(2)]
    with kind(**as_user(secured, "ann", server_key=others[0])) as kv:
        refused(kv, use, secured.endpoint, "the server has another key than the one", "server_key")
    with kind(**as_user(secured, "ann", server_key=others)) as kv:
        refused(kv, use, "the server has none of the keys", "server_key")


@pytest.mark.parametrize("use", USES)
def test_a_server_that_wants_curve(kind: Kind, secured: Secured, use: Use) -> None:
    with kind(secured.endpoint, LONG) as kv:
        refused(kv, use, secured.endpoint, "wants CURVE", "server_key", "ZKV_SERVER_PUBLIC_KEY")


@pytest.mark.parametrize("use", USES)
def test_a_server_that_has_no_curve(
    kind: Kind, near: ServerInProcess, tmp_path: Path, use: Use
) -> None:
    key = key_of(tmp_path / "server.key")
    with kind(near.endpoint, LONG, server_key=key) as kv:
        refused(kv, use, near.endpoint, "does not use CURVE", "a key (server_key)")
    with kind(near.endpoint, LONG, server_key=[key, key_of(tmp_path / "next.key")]) as kv:
        refused(kv, use, "does not use CURVE", "2 keys (server_key)")


@pytest.mark.parametrize("use", USES)
def test_a_server_that_knows_nobody_without_curve(kind: Kind, tmp_path: Path, use: Use) -> None:
    with (
        Secured(tmp_path, {"ann": ALL}, security={"secret_key_file": ""}) as secured,
        kind(secured.endpoint, LONG) as kv,
    ):
        refused(kv, use, secured.endpoint, "no user `anonymous`")


@pytest.mark.parametrize("use", USES)
def test_a_server_that_does_not_know_the_system_user(
    kind: Kind, secured: Secured, use: Use
) -> None:
    with kind(secured.ipc, LONG) as kv:
        refused(kv, use, secured.ipc, f"the uid of this process, {os.geteuid()}")


def test_a_wrong_key_is_told_although_others_are_away(
    kind: Kind, secured: Secured, free_endpoint: str
) -> None:
    """The client waits for those, and does not forget the key."""
    endpoints = [free_endpoint, secured.endpoint]
    with kind(**as_user(secured, "eve", endpoint=endpoints, timeout=1)) as kv:
        refused(kv, request, f"{free_endpoint}: connection refused", "does not know the key of")


def test_the_feed_of_a_server_with_curve_is_no_server(kind: Kind, secured: Secured) -> None:
    with (
        kind(**as_user(secured, "ann", endpoint=secured.feed)) as kv,
        pytest.raises(UnavailableError, match="a change feed listens there") as caught,
    ):
        kv.put("k", 1)
    assert type(caught.value) is UnavailableError


def test_a_refused_client_is_let_in_later(kind: Kind, secured: Secured) -> None:
    """No socket is stuck after a refusal."""
    with kind(**as_user(secured, "bob")) as kv:
        for _ in range(3):
            refused(kv, request)
        secured.reload({"ann": ALL, "bob": ALL})
        for _ in range(3):
            request(kv)


def test_other_mechanisms_are_told(kind: Kind, context: zmq.Context[Any]) -> None:
    with context.socket(zmq.ROUTER) as router:
        router.plain_server = True
        router.bind(FREE_PORT)
        endpoint = str(router.get_string(zmq.LAST_ENDPOINT))
        with kind(endpoint, LONG) as kv, pytest.raises(UnavailableError, match="wants PLAIN"):
            kv.put("k", 1)


# --- Rights


def test_a_denied_request_names_the_key(kind: Kind, tmp_path: Path) -> None:
    with (
        Secured(tmp_path, {"ann": {"read": ["a/"], "write": ["b/"]}}) as secured,
        kind(**as_user(secured, "ann")) as kv,
    ):
        kv.put("b/1", 1)
        calls: list[Callable[[], object]] = [
            lambda: kv.put("a/1", 1),
            lambda: kv.call("PUT", key="a/1", value=1),
            lambda: kv.put_many({"b/2": 1, "a/1": 1}),
            lambda: kv.namespace("a/").put("1", 1),
        ]
        for call in calls:
            with pytest.raises(DeniedError, match="DENIED") as caught:
                call()
            assert caught.value.key == "a/1"
            assert caught.value.applied is False
            assert caught.value.retry is False
        with pytest.raises(DeniedError) as caught:
            kv.snapshot()
        assert caught.value.key is None


def test_a_quota_that_is_used_up_is_an_error_of_its_own(kind: Kind, tmp_path: Path) -> None:
    """What goes beyond it may succeed later, so the client tries again."""
    users = {"ann": {"write": ["a/"], "max_bytes": 1_000}}
    with (
        Secured(tmp_path, users) as secured,
        kind(**as_user(secured, "ann", timeout=3.0)) as kv,
    ):
        kv.put("a/1", 1)
        with pytest.raises(FullError, match="FULL") as caught:
            kv.put("a/2", "x" * 1_000)
        assert caught.value.retry is True
        assert caught.value.applied is False
        kv.put("a/3", 1)


def test_what_may_not_be_read_is_not_followed(kind: Kind, tmp_path: Path) -> None:
    """Nor is it as if nothing ever changed there."""
    with (
        Secured(tmp_path, {"ann": {"read": ["a/"]}}, feed=True) as secured,
        kind(**as_user(secured, "ann")) as kv,
    ):
        with kv.mirror("a/") as entries, kv.watch("a/") as changes:
            assert dict(entries) == {}
            assert changes.next(0) is None
        for prefix in ("", "a", "b/"):
            with pytest.raises(DeniedError), kv.mirror(prefix):
                pass
            with pytest.raises(DeniedError), kv.watch(prefix) as changes:
                changes.next(LONG)


# --- A key that is removed


def test_a_removed_key_is_denied(kind: Kind, secured: Secured) -> None:
    """Requests that are sent over its connection, and everything that is connected anew."""
    with kind(**as_user(secured, "ann")) as kv:
        kv.put("k", 1)
        secured.reload({"bob": ALL})
        for _ in range(3):
            with pytest.raises(DeniedError):
                kv.get("k")
    with kind(**as_user(secured, "ann")) as kv:
        refused(kv, request, "does not know the key of this client")


def test_what_follows_with_a_removed_key_ends(kind: Kind, secured: Secured) -> None:
    with (
        kind(**as_user(secured, "ann")) as kv,
        kv.watch() as changes,
        kv.mirror() as entries,
    ):
        kv.put("k", 1)
        assert changes.next(LIMIT).key == "k"
        entries.wait_for(1, LIMIT)
        secured.reload({"bob": ALL})
        with kind(**as_user(secured, "bob")) as bob:
            rev = bob.put("k", 2)
        with pytest.raises((DeniedError, AuthenticationError)):
            changes.next(LONG)
        with pytest.raises((DeniedError, AuthenticationError)):
            entries.wait_for(rev, LONG)
        assert entries["k"] == 1


def test_what_follows_ends_when_the_server_comes_back_without_its_user(
    kind: Kind, tmp_path: Path
) -> None:
    """No request of theirs is answered by DENIED: none is sent."""
    with Secured(tmp_path, {"ann": ALL}, feed=True) as first:
        endpoints = {"endpoints": [first.endpoint], "feed": first.feed}
        with (
            kind(**as_user(first, "ann")) as kv,
            kv.watch() as changes,
            kv.mirror() as entries,
        ):
            first.server.stop()
            with Secured(tmp_path, {"bob": ALL}, server=endpoints):
                with pytest.raises(AuthenticationError, match="does not know the key"):
                    changes.next(LONG)
                with pytest.raises(AuthenticationError, match="does not know the key"):
                    entries.wait_for(10**6, LONG)


# --- The feed alone


def follows(kv: AnyClient, **arguments: Any) -> Iterator[Use]:
    """Uses that need the feed, in a client that can send requests."""

    def next_change(kv: AnyClient) -> None:
        with kv.watch("k", **arguments) as changes:
            changes.next(LONG)

    def wait(kv: AnyClient) -> None:
        with kv.mirror("k", **arguments) as entries:
            entries.wait_for(10**6, LONG)

    return iter((next_change, wait))


def test_the_feed_may_need_keys_although_requests_do_not(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zkv.client.follower.SILENCE_SECONDS", LONG)  # Changes come by the feed.
    users = {"me": ALL | {"uids": [os.getuid()]}, "ann": ALL}
    with Secured(tmp_path, users, feed=True) as secured:
        others = key_of(tmp_path / "other.key")
        for arguments, says in (
            ({"server_key": ()}, "wants CURVE"),
            ({"server_key": others}, "another key than the one"),
            ({"server_key": secured.server_key}, "known keys alone"),
            ({"key_file": file_of(secured, "eve")}, "does not know the key"),
        ):
            keys = {"server_key": secured.server_key} | arguments
            with kind(secured.ipc, LONG, **keys) as kv:
                for use in follows(kv):
                    refused(kv, use, f"no connection to the feed {secured.feed}: ", says)
        for server_key in (secured.server_key, [others, secured.server_key]):
            arguments = as_user(secured, "ann", endpoint=secured.ipc, server_key=server_key)
            with kind(**arguments) as kv, kv.watch() as changes:
                eventually(lambda: follows_by_feed(secured, changes), "the follower")
                kv.put("k", 1)
                assert changes.next(LIMIT).key == "k"


def test_a_feed_that_the_program_names_has_its_words(
    kind: Kind, secured: Secured, context: zmq.Context[Any]
) -> None:
    with context.socket(zmq.XPUB) as plain, kind(**as_user(secured, "ann")) as kv:
        plain.bind(FREE_PORT)
        feed = str(plain.get_string(zmq.LAST_ENDPOINT))
        for use in follows(kv, feed=feed):
            refused(kv, use, feed, "does not use CURVE")


def test_a_feed_that_is_none_only_delays_changes(kind: Kind, secured: Secured) -> None:
    """It is the server's endpoint for requests, by mistake."""
    with (
        kind(**as_user(secured, "ann")) as kv,
        kv.watch("k", feed=secured.endpoint) as changes,
        kv.mirror("k", feed=secured.endpoint) as entries,
    ):
        rev = kv.put("k", 1)
        assert changes.next(LIMIT).rev == rev
        entries.wait_for(rev, LIMIT)
    keys = CurveKeys(secured.server_key, file_of(secured, "ann"))
    failed = int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
    found = trouble.find_trouble(secured.endpoint, LIMIT, keys, failed, for_feed=True)
    assert found is not None
    assert "a server listens there for requests" in found.reason
    assert not found.is_refusal


def test_a_connection_of_the_feed_that_is_cut_is_made_again(
    kind: Kind, secured: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: not only when the feed has been silent for so long that the client asks."""
    monkeypatch.setattr("zkv.client.follower.SILENCE_SECONDS", LONG)
    with (
        Proxy(secured.feed) as proxy,
        kind(**as_user(secured, "ann")) as kv,
        kv.watch(feed=proxy.endpoint) as changes,
    ):
        for number in range(5):
            rev = kv.put("k", number)
            assert changes.next(LIMIT).rev == rev
            proxy.cut()


# --- While the server's key is changed


@pytest.fixture
def changing(tmp_path: Path) -> Iterator[Secured]:
    """A server that has two keys."""
    key_of(tmp_path / "server.key")
    key_of(tmp_path / "next.key")
    files = [str(tmp_path / "server.key"), str(tmp_path / "next.key")]
    security = {"secret_key_file": files}
    with Secured(tmp_path, {"ann": ALL}, feed=True, security=security) as secured:
        yield secured


def test_while_the_server_has_two_keys_either_will_do(kind: Kind, changing: Secured) -> None:
    """The kernel chooses which of the keys a connection meets."""
    following = read_key_file(changing.directory / "next.key").public
    old = changing.server_key
    for keys in (old, following, [old, following], [following, old]):
        for _ in range(5):
            with kind(**as_user(changing, "ann", server_key=keys)) as kv, kv.watch() as changes:
                rev = kv.put("k", 1)
                assert changes.next(LIMIT).rev == rev
    with kind(**as_user(changing, "ann", server_key=changing.key("eve").public)) as kv:
        refused(kv, request, "another key than the one")
    with kind(**as_user(changing, "eve")) as kv:
        refused(kv, request, "does not know the key of this client")


def test_a_client_that_knows_both_keys_needs_no_restart(kind: Kind, tmp_path: Path) -> None:
    """The server is restarted with two keys, then with the new one alone."""
    keys = [key_of(tmp_path / name) for name in ("old.key", "new.key")]
    files = [str(tmp_path / name) for name in ("old.key", "new.key")]

    def start(endpoint: str, feed: str, files: list[str]) -> zkv.Server:
        data = tmp_path / "data"
        server = zkv.Server(endpoint, data_dir=data, feed=feed, secret_key_file=files)
        server.start()
        return server

    server = start(FREE_PORT, FREE_PORT, files[:1])
    endpoint, feed = server.endpoint, server.feed
    assert feed is not None
    try:
        with kind(endpoint, server_key=keys) as kv, kv.watch() as changes:
            for among in (files[:1], files, files[1:]):
                server.stop()
                server = start(endpoint, feed, among)
                rev = kv.put("k", 1)
                assert changes.next(LIMIT).rev == rev
    finally:
        server.stop()


def test_restarts_of_a_server_are_no_wrong_keys(kind: Kind, tmp_path: Path) -> None:
    """However a handshake ends that the end of the server cuts short."""
    keys: dict[str, Any] = {
        "server_key": key_of(tmp_path / "server.key"), "key_file": tmp_path / "ann.key"
    }  # fmt: skip
    ann = key_of(tmp_path / "ann.key")
    (tmp_path / "users.toml").write_text(f"[users.ann]\nkeys = ['{ann}']\nwrite = ['']\n")
    files: dict[str, Any] = {
        name: str(tmp_path / file)
        for name, file in (("secret_key_file", "server.key"), ("users", "users.toml"))
    }
    over = threading.Event()
    failures: list[BaseException] = []

    def connect_again_and_again() -> None:
        try:
            while not over.is_set():
                with zkv.Client(endpoint, LIMIT, **keys) as kv:
                    kv.put("k", 1)
        except BaseException as error:
            failures.append(error)

    with zkv.Server(FREE_PORT, data_dir=tmp_path / "data", fsync="never", **files) as server:
        endpoint = server.endpoint
        thread = threading.Thread(target=connect_again_and_again)
        thread.start()
        try:
            with kind(endpoint, LIMIT, **keys) as kv, kv.watch("mine") as changes:
                for _ in range(10):
                    rev = kv.put("mine", 1)
                    server.stop()
                    server.start()
                    assert changes.next(LIMIT).rev == rev
        finally:
            over.set()
            thread.join(LIMIT)
    assert not failures


# --- Processes


FORK = """
import os, sys, zkv
endpoint, server_key, key_file = sys.argv[1:]
with zkv.Client(endpoint, 20, server_key=server_key, key_file=key_file) as kv:
    kv["parent"] = 1
    child = os.fork()
    if child == 0:
        kv["child"] = 1
        print(kv.info()["user"], flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(status, kv["child"])
"""


def test_a_forked_child_has_the_keys(secured: Secured) -> None:
    words = [secured.endpoint, secured.server_key, str(file_of(secured, "ann"))]
    done = subprocess.run(
        [sys.executable, "-c", FORK, *words], cwd=ROOT, env=environment(), capture_output=True,
        text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.stdout == "ann\n0 1\n", done.stderr


def test_a_closed_client_with_keys_says_so(kind: Kind, secured: Secured) -> None:
    with kind(**as_user(secured, "ann")) as kv:
        kv.put("k", 1)
    with pytest.raises(ClosedError):
        kv.put("k", 1)
