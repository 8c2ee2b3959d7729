"""Who gets into the console, and who does not."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import LIMIT, ServerInProcess, eventually, pack
from tests.users.secured import Secured
from tests.web.consoles import JSON, MSGPACK, TOKEN, ConsoleInProcess
from zkv.errors import ConfigError
from zkv.web import app
from zkv.web.app import LONGEST_LOGIN, MOST_CONNECTIONS
from zkv.web.tokens import MOST_LOGINS, Logins, Tokens, add_token, hash_of, read_tokens


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerInProcess]:
    with ServerInProcess(tmp_path_factory.mktemp("gate")) as server:
        yield server


@pytest.fixture(scope="module")
def console(server: ServerInProcess) -> Iterator[ConsoleInProcess]:
    with ConsoleInProcess(server.endpoint) as console:
        yield console


def log_in(console: ConsoleInProcess, token: str = TOKEN, **headers: str) -> tuple[int, str, str]:
    """Log in as a browser does: status, the cookie, and its attributes."""
    given: dict[str, Any] = {"Origin": console.url, "Content_Type": JSON} | headers
    answer = console.ask("POST", "/login", body=f'{{"token": "{token}"}}', token=None, **given)
    cookie, _, attributes = answer.headers.get("Set-Cookie", "").partition("; ")
    return answer.status, cookie, attributes


# --- Pages of other sites


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1", "localhost:1", ""]
)
def test_a_foreign_host_gets_nothing(console: ConsoleInProcess, host: str) -> None:
    for path in ("/", "/api/scan", "/static/main.js"):
        answer = console.ask("GET", path, Host=host)
        assert (answer.status, answer.json["code"]) == (403, "DENIED")


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1", ""]
)
def test_a_foreign_origin_gets_nothing(console: ConsoleInProcess, origin: str) -> None:
    for method, path in (("GET", "/api/scan"), ("PUT", "/api/entry?key=a"), ("POST", "/login")):
        answer = console.ask(method, path, body=None, Origin=origin)
        assert (answer.status, answer.json["code"]) == (403, "DENIED")


def test_a_page_of_another_site_gets_nothing(console: ConsoleInProcess) -> None:
    for site in ("cross-site", "same-site"):
        assert console.ask("GET", "/api/scan", Sec_Fetch_Site=site).status == 403
        assert console.ask("GET", "/", Sec_Fetch_Site=site).status == 200  # A link leads here.
    assert console.ask("GET", "/api/scan", Sec_Fetch_Site="same-origin").status == 200


def test_a_cookie_changes_nothing_without_an_origin(console: ConsoleInProcess) -> None:
    status, cookie, _ = log_in(console)
    assert status == 200
    asked: dict[str, Any] = {"token": None, "Cookie": cookie, "Content_Type": JSON}
    refused = console.ask("PUT", "/api/entry?key=a", body="1", **asked)
    assert (refused.status, "Origin" in refused.json["message"]) == (403, True)
    done = console.ask("PUT", "/api/entry?key=a", body="1", **asked, Origin=console.url)
    assert done.status == 200
    assert console.ask("GET", "/api/entry?key=a", **asked).status == 200


# --- Login


def test_nothing_but_the_page_without_a_token(console: ConsoleInProcess) -> None:
    for path in ("/api/scan", "/api/events", "/page/live", "/page/session", "/page/export"):
        given: tuple[dict[str, Any], ...] = (
            {}, {"Authorization": "Bearer nonsense"}, {"Authorization": TOKEN},
        )  # fmt: skip
        for headers in given:
            answer = console.ask("GET", path, token=None, **headers)
            assert (answer.status, answer.json["code"]) == (401, "LOGIN")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
    for path in ("/", "/static/main.js", "/healthz"):
        assert console.ask("GET", path, token=None).status == 200
    assert console.ask("GET", "/static/../app.py", token=None).status == 404


def test_login_and_logout(console: ConsoleInProcess) -> None:
    assert log_in(console, "nonsense")[0] == 401
    assert log_in(console, Origin="http://evil.example")[0] == 403
    status, cookie, attributes = log_in(console)
    assert (status, attributes) == (200, "HttpOnly; SameSite=Strict")
    assert TOKEN not in cookie
    assert console.ask("GET", "/page/session", token=None, Cookie=cookie).status == 200
    with console.open("GET", "/page/live", token=None, Cookie=cookie) as stream:
        gone = console.ask("POST", "/logout", token=None, Cookie=cookie, Origin=console.url)
        assert gone.status == 200
        assert any(name == "end" for name, _ in console.events(stream))  # Not only new requests.
    assert console.ask("GET", "/page/session", token=None, Cookie=cookie).status == 401


def test_a_token_in_a_url_is_no_token(console: ConsoleInProcess) -> None:
    assert console.ask("GET", f"/api/scan?token={TOKEN}", token=None).status == 401


def test_headers_of_every_answer(console: ConsoleInProcess) -> None:
    kept = {"/": "no-store", "/api/scan": "no-store", "/static/main.js": "no-cache"}
    for path, keeping in kept.items():
        headers = console.ask("GET", path).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == keeping


def test_the_page_has_nothing_inline() -> None:
    static = Path(__file__).parents[2] / "zkv/web/static"
    page = (static / "index.html").read_text()
    assert not re.search(r"<style|style=|<script(?! type=\"module\" src=)|\son\w+=", page)
    for module in static.glob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", module.read_text()
        )


def test_nothing_of_a_request_is_logged(
    console: ConsoleInProcess, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    log_in(console)
    log_in(console, "a-wrong-token")
    console.ask("GET", "/api/entry?key=secret-key")
    out = caplog.text + "".join(capfd.readouterr())
    for secret in (TOKEN, "a-wrong-token", "secret-key"):
        assert secret not in out


# --- Peers that nobody knows


def sent(console: ConsoleInProcess, head: str, body: bytes = b"") -> socket.socket:
    """A connection on which the beginning of a request has been sent; ``head`` ends its lines."""
    connection = socket.create_connection(("127.0.0.1", console.port), LIMIT)
    host = f"Host: 127.0.0.1:{console.port}\r\nOrigin: {console.url}\r\n"
    connection.sendall(f"{head}\r\n{host}".encode() + body)
    return connection


def test_a_login_is_small(console: ConsoleInProcess) -> None:
    body = '{"token": "' + "x" * LONGEST_LOGIN + '"}'
    answer = console.ask(
        "POST", "/login", body=body, token=None, Origin=console.url, Content_Type=JSON
    )
    assert (answer.status, answer.json["code"]) == (413, "TOO_LARGE")


CHUNKED = b"Transfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n1\r\n{\r\n"


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("", b""), ("GET / HTTP/1.1", b""), ("POST /login HTTP/1.1", CHUNKED),
        ("POST /api/txn HTTP/1.1", CHUNKED), ("GET / HTTP/1.1", CHUNKED),
    ],
    ids=["nothing", "a head", "a login", "a body after its answer", "a body of a GET"],
)  # fmt: skip
def test_a_connection_on_which_nothing_comes_is_closed(
    server: ServerInProcess, monkeypatch: pytest.MonkeyPatch, head: str, body: bytes
) -> None:
    monkeypatch.setattr(app, "PATIENCE", 0.05)
    with ConsoleInProcess(server.endpoint) as console:
        if head:
            connection = sent(console, head, body)
        else:
            connection = socket.create_connection(("127.0.0.1", console.port), LIMIT)
        with connection, contextlib.suppress(ConnectionResetError):
            while connection.recv(65536):
                pass


def test_connections_without_a_request_give_way(console: ConsoleInProcess) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(MOST_CONNECTIONS + 10):
            address = ("127.0.0.1", console.port)
            stack.enter_context(socket.create_connection(address, LIMIT))
        assert console.ask("GET", "/healthz").status == 200


def test_an_answer_that_nobody_reads_is_given_up(
    server: ServerInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "PATIENCE", 0.05)
    with ConsoleInProcess(server.endpoint) as console:
        large = pack(b"x" * 15_000_000)  # More than the kernel takes.
        put = console.ask("PUT", "/api/entry?key=large", body=large, Content_Type=MSGPACK)
        assert put.status == 200
        asked = f"Authorization: Bearer {TOKEN}\r\nAccept: {MSGPACK}\r\n\r\n".encode()
        with sent(console, "GET /api/entry?key=large&raw HTTP/1.1", asked) as connection:
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
            eventually(lambda: console.connections == 0, "the connection is closed")


def test_streams_stay_open(server: ServerInProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "PATIENCE", 0.001)
    with (
        ConsoleInProcess(server.endpoint) as console,
        console.open("GET", "/api/events") as stream,
    ):
        events = console.events(stream)
        assert next(events)[0] == "BEGIN"
        console.put("a", "1")
        assert next(events)[1]["value"] == 1


def test_a_peer_that_leaves_early_is_no_bug(
    console: ConsoleInProcess, caplog: pytest.LogCaptureFixture
) -> None:
    with sent(console, "POST /login HTTP/1.1", CHUNKED):
        pass
    assert console.ask("GET", "/healthz").status == 200
    assert not caplog.records


def test_cookies_of_others_do_not_hide_the_login(console: ConsoleInProcess) -> None:
    cookie = log_in(console)[1]
    cookies = f'theirs={{"a": "b c"}}; other[]=1; {cookie}; last="\\'
    assert console.ask("GET", "/page/session", token=None, Cookie=cookies).status == 200


# --- Read-only


def test_a_read_only_console_writes_nothing(server: ServerInProcess) -> None:
    with ConsoleInProcess(server.endpoint, read_only=True) as console:
        for method, path, body in (
            ("PUT", "/api/entry?key=a", "1"),
            ("DELETE", "/api/entry?key=a", None),
            (
                "POST",
                "/api/txn",
                '{"ops": [{"op": "GET", "key": "a"}, {"op": "INCR", "key": "a"}]}',
            ),
            ("POST", "/page/rename?key=a&to=b", None),
            ("POST", "/page/delete-subtree?prefix=a&typed=a", None),
            ("POST", "/page/import", b""),
        ):
            answer = console.ask(method, path, body=body, Content_Type=JSON)
            assert (answer.status, answer.json["code"]) == (403, "DENIED")
            assert "read-only" in answer.json["message"]
        reads = '{"ops": [{"op": "GET", "key": "a"}]}'
        assert console.ask("POST", "/api/txn", body=reads, Content_Type=JSON).status == 200


# --- Behind a proxy


@pytest.mark.parametrize("left", ["/zkv", ""])
def test_behind_a_proxy_below_a_path(server: ServerInProcess, left: str) -> None:
    public = "https://ops.example.org"
    with ConsoleInProcess(server.endpoint, public=public, path="/zkv") as console:
        there: dict[str, Any] = {"Host": "ops.example.org"}
        assert console.ask("GET", f"{left}/api/scan", **there, Origin=public).status == 200
        plain = console.ask("GET", f"{left}/api/scan", **there, Origin="http://ops.example.org")
        assert plain.status == 403
        status, _, attributes = log_in(console, Origin=public)
        assert (status, attributes) == (200, "HttpOnly; SameSite=Strict; Secure")
        assert console.ask("GET", f"{left}/", Host="other.example.org").status == 403


# --- Users


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    users: dict[str, dict[str, Any]] = {
        "root": {"read": [""], "write": [""], "admin": True},
        "ann": {"read": ["public/"], "write": ["ann/"]},
    }
    with Secured(tmp_path_factory.mktemp("secured"), users, feed=True) as secured:
        yield secured


def test_the_server_decides_who_may_do_what(secured: Secured) -> None:
    file = secured.directory / "tokens.toml"
    ann, root = (add_token(file, f"{name}.key") for name in ("ann", "root"))
    assert file.stat().st_mode & 0o777 == 0o600
    assert ann not in file.read_text()
    keys = {"server_key": secured.server_key}
    with ConsoleInProcess(secured.endpoint, Tokens(file), keys=keys) as console:
        assert (
            console.ask(
                "PUT", "/api/entry?key=ann/a", body="1", token=ann, Content_Type=JSON
            ).status
            == 200
        )
        for method, path, body in (
            ("GET", "/api/entry?key=root/a", None),
            ("PUT", "/api/entry?key=public/a", "1"),
            ("GET", "/api/scan", None),
            ("GET", "/page/tree", None),
            ("GET", "/page/export", None),
            ("GET", "/api/events", None),
            ("GET", "/page/slow", None),
        ):
            refused = console.ask(method, path, body=body, token=ann, Content_Type=JSON)
            assert (refused.status, refused.json["code"]) == (403, "DENIED")
            assert console.ask(
                method, path.replace("events", "scan"), body=body, token=root, Content_Type=JSON
            ).status in {200, 404}
        assert console.ask("GET", "/api/scan?prefix=ann/", token=ann).status == 200
        with console.open("GET", "/page/live", {"prefix": ""}, token=ann) as stream:
            told = ""
            for _, fields in console.events(stream):
                told += str(fields)
                if "DENIED" in told and "right monitor" in told:
                    break
        # Whoever is removed from the file is out at once, also a browser that has logged in.
        status, cookie, _ = log_in(console, ann)
        assert status == 200
        assert console.ask("GET", "/page/session", token=None, Cookie=cookie).status == 200
        lines = [line for line in file.read_text().splitlines() if hash_of(ann) not in line]
        with console.open("GET", "/page/live", {"prefix": "ann/"}, token=ann) as stream:
            file.write_text("\n".join(lines))
            assert any(name == "end" for name, _ in console.events(stream))
        assert console.ask("GET", "/page/session", token=None, Cookie=cookie).status == 401
        assert console.ask("GET", "/page/session", token=ann).status == 401
        assert console.ask("GET", "/page/session", token=root).status == 200
        # A bad file is refused whole, also one that others may change.
        good = file.read_text()
        file.write_text("")
        assert console.ask("GET", "/page/session", token=root).status == 200
        file.write_text("[tokens]\n")
        file.chmod(0o602)
        assert console.ask("GET", "/page/session", token=root).status == 200
        file.chmod(0o600)
        assert console.ask("GET", "/page/session", token=root).status == 401  # All are out.
        file.write_text(good)
        assert console.ask("GET", "/page/session", token=root).status == 200


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "one table"), ("tokens = 1", "one table"), ("[tokens]\nabc = 'x.key'", "64 hex"),
        (f"[tokens]\n{hash_of('x')} = 1", "key file"), ("[other]", "one table"),
        ("[", "tokens.toml"),
    ],
)  # fmt: skip
def test_a_bad_file_of_tokens(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=why):
        read_tokens(file)


def test_a_file_that_lets_nobody_in(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text("[tokens]\n")
    with pytest.raises(ConfigError, match="no token"):
        Tokens(file)
    add_token(file, "")
    file.chmod(0o666)
    with pytest.raises(ConfigError, match="others may change it"):
        Tokens(file)


def test_a_token_is_added_only_where_it_counts(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    text = f'tokens = {{"{hash_of("x")}" = "x.key"}}\n'  # A line below is not in the table.
    file.write_text(text)
    with pytest.raises(ConfigError, match="one table"):
        add_token(file, "")
    assert file.read_text() == text


def test_nobody_logs_others_out() -> None:
    logins = Logins()
    ann, root = logins.begin("ann"), logins.begin("root")
    for _ in range(MOST_LOGINS):
        logins.begin("ann")
    assert (logins.find(ann), logins.find(root)) == (None, "root")
