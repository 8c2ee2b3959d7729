"""The clients in other languages speak CURVE, and say so if a handshake fails.

A client that cannot speak it refuses to send anything where a key is given to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.clients.languages import Driver, Language, languages, watching
from tests.clients.protocol import check_protocol
from tests.support import (
    FREE_PORT,
    Raw,
    ServerInProcess,
    curve_options,
    pack,
    read_line,
    unpack,
)  # fmt: skip
from tests.users.secured import Context, Secured
from zkv.keys import make_key_file

LANGUAGES: Final = languages()
ALL: Final = {"write": [""], "admin": True}
"""The rights to do everything."""

with_curve: Final = pytest.mark.parametrize(
    "language", [language for language in LANGUAGES if language.curve], ids=repr, indirect=True
)
without_curve: Final = pytest.mark.parametrize(
    "language", [language for language in LANGUAGES if not language.curve], ids=repr, indirect=True
)


@pytest.fixture
def secured(tmp_path: Path) -> Secured:
    """A server, not yet started, where the user ann may do everything."""
    return Secured(tmp_path, {"ann": ALL}, feed=True)


def variables(server_keys: str, name: str = "", directory: Path | None = None) -> dict[str, str]:
    """What tells a client of keys; those of a user with this name, if any."""
    found = {"ZKV_SERVER_PUBLIC_KEY": server_keys}
    return found | {"ZKV_KEY_FILE": str(directory / f"{name}.key")} if directory else found


def as_user(secured: Secured, name: str) -> dict[str, str]:
    """The variables for a user of this server."""
    secured.key(name)
    return variables(secured.server_key, name, secured.directory)


def other_key(directory: Path) -> str:
    """The public key of some other server."""
    return make_key_file(directory / "other-server.key")


def keyed(directory: Path, *names: str) -> tuple[ServerInProcess, list[str]]:
    """A server with these keys and without users, not yet started; its public keys."""
    paths = [directory / name for name in names]
    public = [make_key_file(path) for path in paths]
    security = {"secret_key_file": [str(path) for path in paths]}
    fsync = {"fsync": "never"}
    return ServerInProcess(directory / "data", security=security, durability=fsync), public


# --- It gets in -----------------------------------------------------------------------------------


@pytest.mark.timeout(600)
@with_curve
def test_it_keeps_the_protocol_over_curve(language: Language, tmp_path: Path) -> None:
    server, (key,) = keyed(tmp_path, "server.key")
    make_key_file(tmp_path / "client.key")
    env = variables(key, "client", tmp_path)
    with (
        server,
        Raw(server.endpoint, options=curve_options(key)) as raw,
        Driver(language, server.endpoint, env=env) as driver,
    ):
        check_protocol(driver, raw)


@with_curve
def test_without_a_key_file_it_makes_a_key(language: Language, tmp_path: Path) -> None:
    server, (key,) = keyed(tmp_path, "server.key")
    with server:
        put = language.run(server.endpoint, "put", "a", "x", env=variables(key))
        got = language.run(server.endpoint, "get", "a", env=variables(key))

    assert (put.returncode, got.returncode, got.stdout) == (0, 0, b"x\n")


@with_curve
def test_it_finds_the_key_of_the_server_among_several(language: Language, tmp_path: Path) -> None:
    server, (key,) = keyed(tmp_path, "server.key")
    several = variables(f"{other_key(tmp_path)}, {key},")
    with server:
        # END is tried once alone: it is sent only after a handshake.
        done = language.run(server.endpoint, "end", env=several)

    assert (done.returncode, done.stdout) == (0, b""), done.stderr


@with_curve
def test_it_gets_in_while_the_key_of_the_server_is_changed(
    language: Language, tmp_path: Path
) -> None:
    """The server takes each connection with one key or the other, by chance."""
    server, keys = keyed(tmp_path, "old.key", "new.key")
    with server:
        done = [language.run(server.endpoint, "incr", "n", env=variables(key)) for key in keys * 2]

    assert [run.stdout for run in done] == [b"1\n", b"2\n", b"3\n", b"4\n"]


# --- It does not ----------------------------------------------------------------------------------


@with_curve
def test_it_says_why_it_does_not_get_in(language: Language, secured: Secured) -> None:
    with secured:
        eve = language.run(secured.endpoint, "get", "a", env=as_user(secured, "eve"))
        wrong = language.run(
            secured.endpoint, "get", "a",
            env=as_user(secured, "ann") | variables(other_key(secured.directory)),
        )  # fmt: skip
        without = language.run(secured.endpoint, "get", "a")
        by_ipc = language.run(secured.ipc, "get", "a", env=as_user(secured, "ann"))

    for run, why in [
        (eve, b"does not know this client"),
        (wrong, b"another key than ZKV_SERVER_PUBLIC_KEY"),
        (without, b"asks for CURVE: set ZKV_SERVER_PUBLIC_KEY"),
        (by_ipc, b"does not know this client"),
    ]:
        assert (run.returncode, run.stdout) == (2, b""), run.stderr
        assert b"HANDSHAKE_FAILED" in run.stderr
        assert why in run.stderr


@with_curve
def test_a_server_without_keys_is_not_spoken_to(language: Language, tmp_path: Path) -> None:
    with ServerInProcess(tmp_path / "data") as server, Raw(server.endpoint) as raw:
        done = language.run(
            server.endpoint, "put", "a", "secret", env=variables(other_key(tmp_path))
        )
        stored = raw.call(op="GET", key="a")

    assert done.returncode == 2
    assert b"HANDSHAKE_FAILED" in done.stderr
    assert b"CURVE" in done.stderr
    assert stored["code"] == "NOT_FOUND"


@with_curve
def test_it_may_be_let_in_later(language: Language, secured: Secured) -> None:
    put = pack({"op": "PUT", "key": "a", "value": 1})
    with (
        secured,
        Driver(language, secured.endpoint, env=as_user(secured, "bob")) as driver,
    ):
        refused = unpack(driver.exchange(put))
        secured.reload({"ann": ALL, "bob": ALL})
        taken = unpack(driver.exchange(put))

    assert (refused["ok"], refused["code"]) == (False, "HANDSHAKE_FAILED")
    assert (refused["retry"], refused["applied"]) == (False, False)
    assert (taken["ok"], taken["rev"]) == (True, 1)


# --- Keys that are no good ------------------------------------------------------------------------


@with_curve
def test_a_key_file_that_others_may_read_is_refused(language: Language, secured: Secured) -> None:
    env = as_user(secured, "ann")
    path = Path(env["ZKV_KEY_FILE"])
    with secured:
        for mode in (0o640, 0o604):
            path.chmod(mode)
            done = language.run(secured.endpoint, "get", "a", env=env)

            assert (done.returncode, done.stdout) == (2, b"")
            assert f"{path}: others may read it".encode() in done.stderr
            assert secured.key("ann").secret.encode() not in done.stderr


@with_curve
def test_what_is_no_key_is_refused_and_not_shown(language: Language, tmp_path: Path) -> None:
    key = other_key(tmp_path)
    bad = tmp_path / "bad.key"
    nobody = "tcp://127.0.0.1:1"
    for text in ("hush-hush", "#" * 40, "1" * 200, "é" * 20):
        bad.write_text(f"{text}\n", encoding="utf-8")
        bad.chmod(0o600)
        done = language.run(nobody, "get", "a", env=variables(key) | {"ZKV_KEY_FILE": str(bad)})
        assert (done.returncode, done.stdout) == (2, b""), text
        assert str(bad).encode() in done.stderr
        assert text.encode() not in done.stderr
    for text in ("#" * 40, f"{key},{key[:39]}"):
        done = language.run(nobody, "get", "a", env=variables(text))
        assert (done.returncode, done.stdout) == (2, b""), text
        assert b"ZKV_SERVER_PUBLIC_KEY" in done.stderr
        assert text.encode() not in done.stderr


@with_curve
def test_a_key_file_alone_or_an_absent_one_is_refused(language: Language, tmp_path: Path) -> None:
    absent = {"ZKV_KEY_FILE": str(tmp_path / "absent.key")}
    nobody = "tcp://127.0.0.1:1"
    alone = language.run(nobody, "get", "a", env=absent)
    done = language.run(nobody, "get", "a", env=variables(other_key(tmp_path)) | absent)

    assert (alone.returncode, done.returncode) == (2, 2)
    assert b"ZKV_SERVER_PUBLIC_KEY" in alone.stderr
    assert b"absent.key" in done.stderr


@with_curve
def test_ipc_needs_no_keys(language: Language, tmp_path: Path) -> None:
    server = {"endpoints": [FREE_PORT, f"ipc://{tmp_path}/socket"]}
    bad = {"ZKV_SERVER_PUBLIC_KEY": "no key", "ZKV_KEY_FILE": "/absent"}
    with ServerInProcess(tmp_path / "data", server=server):
        done = language.run(f"ipc://{tmp_path}/socket", "incr", "n", env=bad)

    assert (done.returncode, done.stdout) == (0, b"1\n"), done.stderr


# --- Without CURVE --------------------------------------------------------------------------------


@without_curve
def test_without_curve_it_sends_nothing_where_a_key_is_given(
    language: Language, tmp_path: Path
) -> None:
    with ServerInProcess(tmp_path / "data") as server, Raw(server.endpoint) as raw:
        for env in (variables(other_key(tmp_path)), {"ZKV_KEY_FILE": "some.key"}):
            done = language.run(server.endpoint, "put", "a", "secret", env=env)
            assert (done.returncode, done.stdout) == (2, b"")
            assert next(iter(env)).encode() in done.stderr
        assert raw.call(op="GET", key="a")["code"] == "NOT_FOUND"


def test_bash_says_that_the_server_asks_for_curve(secured: Secured) -> None:
    (bash,) = (language for language in LANGUAGES if language.name == "bash")
    if not bash.is_present:
        pytest.skip(f"NOT RUN: {bash} is not installed here (make clients-deps)")
    with secured:
        done = bash.run(secured.endpoint, "get", "a")

    assert done.returncode == 2
    assert b"HANDSHAKE_FAILED: the server asks for CURVE" in done.stderr


# --- Watching -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "language", [language for language in LANGUAGES if language.watch], ids=repr, indirect=True
)
def test_its_watcher_follows_over_curve(
    language: Language, secured: Secured, context: Context
) -> None:
    env = dict(as_user(secured, "ann"))
    env["ZKV_SERVER_PUBLIC_KEY"] = f"{other_key(secured.directory)},{secured.server_key}"
    with (
        secured,
        secured.client(context, "ann") as raw,
        watching(language, secured.endpoint, "users/", env) as output,
    ):
        raw.ok(op="PUT", key="others", value=1)
        raw.ok(op="PUT", key="users/a", value=2)
        line = read_line(output)

    assert line == b"2\tPUT\tusers/a\t2\n"
