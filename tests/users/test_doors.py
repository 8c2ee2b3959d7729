"""Who gets in: by tcp with CURVE and without, by ipc, by inproc; and who does not."""

from __future__ import annotations

import logging
import os
import re
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

import zkv
from tests.support import (
    FREE_PORT,
    LIMIT,
    NoReplyError,
    Raw,
    ServerInProcess,
    ServerProcess,
    curve_options,
    environment,
    eventually,
    pack,
    unpack,
    zkv_command,
)
from tests.users.secured import Context, Secured, sees
from zkv.errors import ConfigError, EndpointError
from zkv.keys import make_key_file, read_key_file

ALL: dict[str, Any] = {"write": [""], "admin": True}
SHORT = 0.5
"""Seconds that a test waits for what must not come."""


def is_refused(client: Raw) -> bool:
    """Whether a new client gets no reply."""
    client.timeout = SHORT
    try:
        client.call(op="PING")
    except (NoReplyError, zmq.Again):
        return True
    finally:
        client.close()
    return False


def test_a_known_key_gets_in_and_no_other(tmp_path: Path, context: Context) -> None:
    with Secured(tmp_path, {"ann": ALL}) as secured:
        with secured.client(context, "ann") as ann:
            assert ann.ok(op="INFO")["user"] == "ann"
        assert is_refused(secured.client(context, "eve"))
        other = make_key_file(tmp_path / "other.key")
        options = secured.options("ann", server_key=other)
        assert is_refused(Raw(secured.endpoint, context=context, options=options))
        assert is_refused(Raw(secured.endpoint, context=context))
        failed = secured.server.server.info()
        assert isinstance(failed, dict)
        assert failed["stats"]["handshakes_failed"]["auth"] >= 1


def test_without_users_any_key_gets_in_but_none_without_one(
    tmp_path: Path, context: Context
) -> None:
    public = make_key_file(tmp_path / "server.key")
    security = {"secret_key_file": str(tmp_path / "server.key")}
    with ServerInProcess(tmp_path / "data", security=security) as server:
        with Raw(server.endpoint, context=context, options=curve_options(public)) as client:
            client.ok(op="PUT", key="k", value=1)
            assert "user" not in client.ok(op="INFO")
        assert is_refused(Raw(server.endpoint, context=context))


def test_a_server_without_keys_refuses_who_wants_curve(tmp_path: Path, context: Context) -> None:
    with Secured(tmp_path, {"anonymous": ALL}, security={"secret_key_file": ""}) as secured:
        with Raw(secured.endpoint, context=context) as anybody:
            assert anybody.ok(op="INFO")["user"] == "anonymous"
        assert is_refused(secured.client(context, "ann"))


def test_nobody_comes_by_tcp_without_curve_unless_there_is_anonymous(
    tmp_path: Path, context: Context
) -> None:
    users = {"me": ALL | {"uids": [os.getuid()]}}
    with Secured(tmp_path, users, security={"secret_key_file": ""}) as secured:
        assert is_refused(Raw(secured.endpoint, context=context))
        with Raw(secured.ipc, context=context) as me:
            assert me.ok(op="INFO")["user"] == "me"


def test_a_system_user_is_known_at_an_ipc_endpoint(tmp_path: Path, context: Context) -> None:
    users = {"me": {"uids": [os.getuid()], "write": ["me/"]}, "anonymous": ALL}
    with Secured(tmp_path, users) as secured:
        with Raw(secured.ipc, context=context) as me:
            assert me.ok(op="INFO")["user"] == "me"
            me.ok(op="PUT", key="me/1", value=1)
            assert me.call(op="PUT", key="others", value=1)["code"] == "DENIED"
        secured.reload({"anonymous": ALL})
        assert is_refused(Raw(secured.ipc, context=context)), "anonymous is for tcp alone"


def test_the_program_itself_may_do_everything(tmp_path: Path) -> None:
    context: Context = zmq.Context.instance()
    name = f"inproc://{tmp_path.name}"
    with (
        Secured(tmp_path, {"ann": {}}, server={"endpoints": [FREE_PORT, name]}),
        Raw(name, context=context) as client,
    ):
        client.ok(op="PUT", key="k", value=1)
        assert client.ok(op="INFO")["user"] == ""
        assert "stats" in client.ok(op="INFO")


def test_a_removed_key_is_denied_on_its_open_connection(tmp_path: Path, context: Context) -> None:
    with Secured(tmp_path, {"ann": ALL, "bob": ALL}) as secured:
        with secured.client(context, "ann") as ann, secured.client(context, "bob") as bob:
            for client in (ann, bob):
                client.ok(op="PUT", key="k", value=1)
            secured.reload({"bob": ALL})
            for request in ({"op": "PING"}, {"op": "GET", "key": "k"}, {"op": "INFO"}):
                reply = ann.call(**request)
                assert (reply["code"], reply["retry"], reply["applied"]) == ("DENIED", False, False)
            bob.ok(op="GET", key="k")
        assert is_refused(secured.client(context, "ann"))


@pytest.mark.parametrize("content", ["", "users = 1", "[users.ann]\nkeys = ['x']\n", None])
def test_a_bad_file_is_refused_and_the_old_users_stay(
    tmp_path: Path, context: Context, caplog: pytest.LogCaptureFixture, content: str | None
) -> None:
    with Secured(tmp_path, {"ann": ALL}) as secured, secured.client(context, "ann") as ann:
        ann.ok(op="PING")
        if content is None:
            secured.path.unlink()
        else:
            secured.path.write_text(content)
        with pytest.raises(ConfigError, match=re.escape(str(secured.path))):
            secured.read_again()
        ann.ok(op="PUT", key="k", value=1)
        with secured.client(context, "ann") as again:
            again.ok(op="PING")
    (line,) = [each for each in caplog.messages if "stay as they are" in each]
    assert str(secured.path) in line


def test_without_the_guard_nobody_gets_in(
    tmp_path: Path, context: Context, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It dies, as by a bug: libzmq would let everybody in."""

    def die(*_: object) -> None:
        raise MemoryError

    with Secured(tmp_path, {"ann": ALL}) as secured, secured.client(context, "ann") as ann:
        ann.ok(op="PING")
        monkeypatch.setattr("zkv.broker.doors.Guard._answer", die)
        assert is_refused(secured.client(context, "ann")), "this one it dies of"
        names = [thread.name for thread in threading.enumerate()]
        assert "zkv-guard" not in names
        assert is_refused(secured.client(context, "ann"))
        assert is_refused(secured.client(context, "eve"))
        assert is_refused(Raw(secured.ipc, context=context))
        ann.ok(op="PING")
    assert "nobody can connect any more: the guard died" in caplog.text


# --- What the server refuses to open


@contextmanager
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("place", ["endpoints", "feed"])
@pytest.mark.parametrize("endpoint", ["tcp://0.0.0.0:*", "tcp://*:*", "tcp://[::]:*"])
def test_what_other_machines_reach_is_refused(tmp_path: Path, place: str, endpoint: str) -> None:
    server: dict[str, Any] = {place: [endpoint] if place == "endpoints" else endpoint}
    with pytest.raises(EndpointError) as refused:
        ServerInProcess(tmp_path / "data", server=server).server.start()
    message = str(refused.value)
    assert endpoint.rpartition(":")[0].replace("*", "0.0.0.0") in message
    assert "security.secret_key_file" in message
    assert "security.insecure = true" in message
    make_key_file(tmp_path / "server.key")
    key = {"secret_key_file": str(tmp_path / "server.key")}
    for security in ({"insecure": True}, key):
        with quiet(), ServerInProcess(tmp_path / "data", server=server, security=security):
            pass


def test_the_command_refuses_it_by_one_line_and_exit_status_2(tmp_path: Path) -> None:
    command = zkv_command("serve", "--endpoint", "tcp://0.0.0.0:*", "--data-dir", "data")
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("zkv: tcp://0.0.0.0:")


def test_what_this_libzmq_lacks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq, "zmq_version_info", lambda: (4, 3, 4))
    with pytest.raises(ConfigError, match=r"users: needs libzmq 4\.3\.5"):
        Secured(tmp_path, {"ann": ALL})
    monkeypatch.setattr(zmq, "has", lambda _: False)
    with pytest.raises(ConfigError, match="secret_key_file: this libzmq was built without CURVE"):
        Secured(tmp_path, {"ann": ALL})


@pytest.mark.parametrize(("mode", "found"), [("", 0o666), ("0600", 0o600), ("660", 0o660)])
def test_the_mode_of_an_ipc_socket(tmp_path: Path, mode: str, found: int) -> None:
    with Secured(tmp_path, {"ann": ALL}, server={"ipc_mode": mode}):
        assert stat.S_IMODE((tmp_path / "socket").stat().st_mode) == found


def test_without_users_the_umask_decides(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        endpoint = f"ipc://{tmp_path}/socket"
        with ServerInProcess(tmp_path / "data", server={"endpoints": [endpoint]}):
            assert stat.S_IMODE((tmp_path / "socket").stat().st_mode) == 0o750
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


@pytest.mark.parametrize("fault", ["absent", "readable", "no key", "users"])
def test_a_server_does_not_start_with_bad_files(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "server.key"
    if fault != "absent":
        make_key_file(path)
    if fault == "readable":
        path.chmod(0o644)
    if fault == "no key":
        path.write_text("x\n")
    users = str(tmp_path / "users.toml") if fault == "users" else ""
    with pytest.raises(ConfigError) as refused:
        ServerInProcess(tmp_path / "data", security={"secret_key_file": str(path), "users": users})
    assert str(refused.value).startswith(users or str(path))


# --- The server's key is changed


def test_two_keys_of_the_server(tmp_path: Path, context: Context) -> None:
    """Its port stays the same, and clients with either key get in, sooner or later."""
    new = make_key_file(tmp_path / "new.key")
    files = [str(tmp_path / "server.key"), str(tmp_path / "new.key")]
    with Secured(tmp_path, {"ann": ALL}, feed=True, security={"secret_key_file": files}) as secured:
        options: dict[int, int | bytes] = {}
        for key in (secured.server_key, new):
            for _ in range(5):
                options = secured.options("ann", server_key=key) | {zmq.RECONNECT_IVL: 10}
                with Raw(secured.endpoint, context=context, options=options) as client:
                    assert client.ok(op="INFO")["user"] == "ann"
        assert len(secured.server.server.endpoints) == 2
        assert read_key_file(files[1]).public == new
        feed = secured.feed
        with secured.follower(context, "ann", b"") as follower:
            for rights in ({"write": ["k"]}, ALL, {"write": ["k"]}):  # It is opened again.
                secured.reload({"ann": rights | {"read": [""]}})
                assert secured.feed == feed
                with Raw(secured.endpoint, context=context, options=options) as client:

                    def follows(client: Raw = client) -> bool:
                        return sees(follower, client.ok(op="PUT", key="k", value=1)["rev"])

                    eventually(follows, "ann to follow")


@pytest.mark.parametrize("place", ["a port in use", "nonesuch"])
def test_two_keys_at_a_place_that_cannot_be_opened(tmp_path: Path, place: str) -> None:
    files = [str(tmp_path / name) for name in ("old.key", "new.key")]
    for file in files:
        make_key_file(file)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        endpoint = f"tcp://nonesuch:{port}" if place == "nonesuch" else f"tcp://127.0.0.1:{port}"
        core = ServerInProcess(
            tmp_path / "data",
            server={"endpoints": [endpoint]},
            security={"secret_key_file": files},
        ).server
        with pytest.raises(EndpointError, match=f"server.endpoints: {re.escape(endpoint)}: "):
            core.start()


# --- Sessions


@contextmanager
def ann_and_bob(directory: Path, context: Context, **tables: Any) -> Iterator[tuple[Raw, Raw]]:
    """A server, and clients of two users who may do everything."""
    with (
        Secured(directory, {"ann": ALL, "bob": ALL}, **tables) as secured,
        secured.client(context, "ann") as ann,
        secured.client(context, "bob") as bob,
    ):
        yield ann, bob


def write(client: Raw, seq: int = 1, value: int = 1) -> dict[str, Any]:
    return client.ok(op="PUT", key="k", value=value, session="s", seq=seq)


def test_a_session_belongs_to_its_user(tmp_path: Path, context: Context) -> None:
    """Whoever learns its name gets none of its replies; it is the same after a restart."""
    with ann_and_bob(tmp_path, context) as (ann, bob):
        first = write(ann)
        assert write(ann) == first | {"replayed": True}
        other = write(bob)
        assert "replayed" not in other
        assert other["rev"] == first["rev"] + 1
        refused = ann.call(op="PUT", key="k", value=1, session="a\0b", seq=1)
        assert (refused["code"], refused["applied"]) == ("BAD_REQUEST", False)
    with ann_and_bob(tmp_path, context) as (ann, bob):
        assert write(ann) == first | {"replayed": True}
        assert write(bob) == other | {"replayed": True}


def test_a_session_from_before_users_counts_for_whoever_repeats_it(
    tmp_path: Path, context: Context
) -> None:
    with (
        ServerInProcess(tmp_path / "data") as server,
        Raw(server.endpoint, context=context) as client,
    ):
        first, second = write(client, 1), write(client, 2)
    with Secured(tmp_path, {"ann": ALL}) as secured, secured.client(context, "ann") as ann:
        assert write(ann, 2) == second | {"replayed": True}
        assert write(ann, 1) == first | {"replayed": True}
        third = write(ann, 3)
        assert third["rev"] == second["rev"] + 1
        assert write(ann, 3) == third | {"replayed": True}
        different = ann.call(op="PUT", key="k", value=9, session="s", seq=2)
        assert different["code"] == "BAD_REQUEST"


def test_a_repeat_that_is_denied_now_may_have_run_before(tmp_path: Path, context: Context) -> None:
    with Secured(tmp_path, {"ann": ALL}) as secured, secured.client(context, "ann") as ann:
        write(ann)
        secured.reload({"ann": {"read": ["k"]}})
        repeat = ann.call(op="PUT", key="k", value=1, session="s", seq=1)
        assert (repeat["code"], repeat["applied"]) == ("DENIED", None)
        another = ann.call(op="PUT", key="k", value=1, session="s", seq=2)
        assert (another["code"], another["applied"]) == ("DENIED", False)


def test_a_user_leaves_sessions_for_others(tmp_path: Path, context: Context) -> None:
    def begun(client: Raw) -> int:
        replies = [
            client.call(op="PUT", key="k", value=1, session=f"s{number}", seq=1)
            for number in range(10)
        ]
        assert {reply.get("code", "ok") for reply in replies} == {"ok", "BUSY"}
        return sum(reply["ok"] for reply in replies)

    with ann_and_bob(tmp_path, context, limits={"max_sessions": 8}) as (ann, bob):
        assert begun(ann) == 4
        assert begun(bob) == 2


def test_a_user_leaves_memory_of_replies_for_others(tmp_path: Path, context: Context) -> None:
    def remembered(client: Raw) -> int:
        for number in range(10_000):
            reply = client.call(op="INCR", key="n", session=f"s{number}", seq=1)
            if not reply["ok"]:
                assert reply["code"] == "BUSY"
                return number
        raise AssertionError("never refused")

    with ann_and_bob(tmp_path, context, limits={"session_bytes": 2 * 1024 * 1024}) as (ann, bob):
        first = remembered(ann)
        assert 0.9 * first / 2 <= remembered(bob) <= 1.1 * first / 2


# --- Who did it


def test_the_log_says_who_did_what(
    tmp_path: Path, context: Context, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "zkv.audit")
    with Secured(tmp_path, {"ann": ALL}) as secured:
        with secured.client(context, "ann") as ann:
            ann.ok(op="MPUT", items={"a": 1, "b": 2, "c": 3, "d": 4})
            ann.ok(op="GET", key="a")
            ann.ok(op="MDELETE", keys=["a", "b"])
            deletes = [{"op": "DELETE", "key": key} for key in ("c", "d")]
            ann.ok(op="TXN", ops=deletes)
            secured.reload({"ann": {"admin": ["operate"]}, "bob": ALL})
            ann.ok(op="END")
        secured.server.wait()
        eventually(lambda: len(secured.server.records) >= 5, "the records")
        assert {record.user for record in secured.server.records} == {"ann"}
    audit = [each for each in caplog.messages if each.startswith("audit: ")]
    assert audit == [
        f"audit: 1 users in {secured.path}",
        "audit: MDELETE removed 2 keys, 'a' first, by user 'ann'",
        "audit: TXN removed 2 keys, 'c' first, by user 'ann'",
        f"audit: user ann changed, by {secured.path}",
        f"audit: user bob added, by {secured.path}",
        "audit: END by user 'ann'",
    ]


def test_no_level_turns_the_audit_off(tmp_path: Path) -> None:
    make_key_file(tmp_path / "ann.key")
    users = tmp_path / "users.toml"
    public = read_key_file(tmp_path / "ann.key").public
    users.write_text(f"[users.ann]\nkeys = ['{public}']\n", encoding="utf-8")
    config = tmp_path / "zkv.toml"
    config.write_text(
        f"[security]\nusers = '{users}'\n[log]\nlevel = 'ERROR'\nrequests = false\n",
        encoding="utf-8",
    )
    with ServerProcess(tmp_path / "server", "--config", str(config)) as process:
        assert process.stop() == 0
        assert "audit: 1 users in " in process.log()
        assert len(process.log().splitlines()) == 1


def test_a_slow_request_has_its_user(tmp_path: Path, context: Context) -> None:
    with (
        Secured(tmp_path, {"ann": ALL}, metrics={"slow": 1e-9}) as secured,
        secured.client(context, "ann") as ann,
    ):
        ann.ok(op="PUT", key="k", value=1)
        ann.call(op="GET", key="absent")
        eventually(lambda: len(ann.ok(op="SLOW")["entries"]) >= 2, "entries")
        entries = ann.ok(op="SLOW")["entries"]
        assert {entry["user"] for entry in entries} == {"ann"}


def test_a_program_reloads_the_users_of_its_server(tmp_path: Path, context: Context) -> None:
    make_key_file(tmp_path / "server.key")
    users = tmp_path / "users.toml"
    uid = os.getuid()
    users.write_text(f"[users.me]\nuids = [{uid}]\n")
    files: dict[str, Any] = {
        "secret_key_file": str(tmp_path / "server.key"), "users": str(users)
    }  # fmt: skip
    server = zkv.Server(f"ipc://{tmp_path}/socket", feed="", **files)
    with pytest.raises(RuntimeError, match="does not run"):
        server.reload_users()
    with server, Raw(server.endpoint, context=context) as me:
        assert me.call(op="GET", key="k")["code"] == "DENIED"
        users.write_text(f"[users.me]\nuids = [{uid}]\nread = ['k']\n")
        server.reload_users()
        assert me.call(op="GET", key="k")["code"] == "NOT_FOUND"
        users.write_text("")
        with pytest.raises(ConfigError, match="there is no user"):
            server.reload_users()
        assert me.call(op="GET", key="k")["code"] == "NOT_FOUND"


def test_the_guard_leaves_the_program_and_its_sockets_alone(
    tmp_path: Path, context: Context, caplog: pytest.LogCaptureFixture
) -> None:
    """Those in the context that the server shares with the program; a second guard has no place."""
    shared: Context = zmq.Context.instance()
    name = f"inproc://{tmp_path.name}"
    public, secret = zmq.curve_keypair()
    with Secured(tmp_path, {"ann": ALL}, server={"endpoints": [FREE_PORT, name]}):
        for domain, enters in ((b"", True), (b"program", False)):
            with shared.socket(zmq.REP) as reply, context.socket(zmq.REQ) as ask:
                reply.linger = ask.linger = 0
                reply.curve_server, reply.curve_secretkey = True, secret
                if domain:
                    reply.zap_domain = domain
                port = reply.bind_to_random_port("tcp://127.0.0.1")
                ask.curve_publickey, ask.curve_secretkey = zmq.curve_keypair()
                ask.curve_serverkey = public
                ask.connect(f"tcp://127.0.0.1:{port}")
                ask.send(b"?", zmq.NOBLOCK)
                assert bool(reply.poll(round(1000 * (LIMIT if enters else SHORT)))) == enters
        (tmp_path / "second").mkdir()
        second = Secured(tmp_path / "second", {"ann": ALL}, server={"endpoints": [name + "2"]})
        with pytest.raises(EndpointError, match="another ZAP handler in the same ZeroMQ context"):
            second.server.server.start()


def test_rights_and_sessions_survive_a_kill(tmp_path: Path, context: Context) -> None:
    users = tmp_path / "users.toml"
    users.write_text(f"[users.me]\nuids = [{os.getuid()}]\nwrite = ['k']\n", encoding="utf-8")
    endpoint = f"ipc://{tmp_path}/socket"
    config = f"[security]\nusers = '{users}'\n"
    with ServerProcess(tmp_path / "server", "--endpoint", endpoint, config=config) as process:
        with Raw(endpoint, context=context) as me:
            first = write(me)
        for _ in range(2):
            process.kill()
            process.start()
            with Raw(endpoint, context=context) as me:
                assert write(me) == first | {"replayed": True}
                assert me.call(op="PUT", key="other", value=1)["code"] == "DENIED"
        assert process.stop() == 0


def test_a_message_may_be_as_large_over_curve(tmp_path: Path, context: Context) -> None:
    limits = {
        "max_message_bytes": 100_000, "max_value_bytes": 50_000, "max_key_bytes": 1_000,
        "max_reply_bytes": 60_000,
    }  # fmt: skip
    with Secured(tmp_path, {"ann": ALL}, limits=limits) as secured:
        for more, answer in ((0, "TOO_LARGE"), (1, None)):
            rest = len(pack({"op": "PUT", "key": "k", "value": bytes(90_000)})) - 90_000
            body = pack({"op": "PUT", "key": "k", "value": bytes(100_000 + more - rest)})
            assert len(body) == 100_000 + more
            with secured.client(context, "ann") as ann:
                if answer is None:
                    ann.timeout = SHORT
                    with pytest.raises(NoReplyError):
                        ann.exchange(body)
                else:
                    assert unpack(ann.exchange(body))["code"] == answer
