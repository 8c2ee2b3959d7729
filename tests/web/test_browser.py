"""The console's page, in a real browser, before a real server."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.support import FREE_PORT, ROOT, Load, Raw, ServerInProcess
from tests.users.secured import Secured
from tests.web.browsers import NARROW, chromium, logged_in, needs_browser
from tests.web.consoles import ConsoleInProcess
from zkv.client import Client
from zkv.client.codec import PACKED, Packed
from zkv.web.tokens import Tokens, add_token

pytestmark = needs_browser

WIDTHS: Final = b"\x93\xd3\x00\x00\x00\x00\x00\x00\x00\x01\xca\x3f\x80\x00\x00\xc4\x01\xff"
"""An array of a 64-bit 1, a 32-bit 1.0 and a bin: JSON keeps neither of the first two."""
PICTURES: Final = ROOT / "docs/static"
UPDATING: Final = bool(os.environ.get("ZKV_UPDATE_DOCS"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerInProcess]:
    with ServerInProcess(tmp_path / "data", server={"feed": FREE_PORT}) as server:
        yield server


@pytest.fixture
def console(server: ServerInProcess) -> Iterator[ConsoleInProcess]:
    with ConsoleInProcess(server.endpoint) as console:
        yield console


@pytest.fixture
def kv(server: ServerInProcess) -> Iterator[Client]:
    with Client(server.endpoint) as kv:
        yield kv


def item(page: Page, name: str) -> Locator:
    """A row of the tree."""
    return page.get_by_role("treeitem").filter(has_text=re.compile(f"^[▸▾]?{re.escape(name)}"))


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def answer(page: Page, text: str, action: str) -> None:
    """Type into the dialog, and confirm."""
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("textbox").fill(text)
    dialog.get_by_role("button", name=action, exact=True).click()


def test_browse_edit_and_delete(browser: Browser, console: ConsoleInProcess, kv: Client) -> None:
    kv.put_many({f"jobs/{n:02}/state": n for n in range(30)})
    kv.put_many({"config/theme": {"big": 2**60 + 1, "whole": 1.0}, "greeting": "hello"})
    with logged_in(browser, console, "#keys") as page:
        expect(item(page, "jobs/")).to_contain_text("30")
        item(page, "config/").click()
        item(page, "theme").click()
        expect(page.locator(".entry pre")).to_contain_text('"big": 1152921504606846977')
        expect(page.locator(".facts")).to_contain_text("does not expire")
        press(page, "Edit")
        area = page.get_by_label("Value")
        area.fill(area.input_value().replace("1.0", "2.0"))
        area.press("Control+Enter")
        expect(page.get_by_role("status")).to_have_text("Stored.")
        assert kv["config/theme"] == {"big": 2**60 + 1, "whole": 2.0}
        press(page, "Time to live …")
        answer(page, "600", "OK")
        expect(page.locator(".facts")).to_contain_text("expires in")
        press(page, "Rename …")
        answer(page, "config/look", "Rename")
        expect(page.locator(".entry h2")).to_have_text("config/look")
        assert (kv.get_entry("config/look").ttl or 0) > 500
        press(page, "Delete …")
        answer(page, "delete", "Delete")
        expect(page.get_by_role("status")).to_have_text("Deleted.")
        assert "config/look" not in kv
        item(page, "jobs/").click()
        press(page, "Delete the subtree …")
        dialog = page.get_by_role("dialog")
        dialog.get_by_role("textbox").fill("jobs")
        expect(dialog.get_by_role("button", name="Delete all of it")).to_be_disabled()
        answer(page, "jobs/", "Delete all of it")
        expect(item(page, "jobs/")).to_have_count(0)
        assert dict(kv) == {"greeting": "hello"}


def test_create_and_import(
    browser: Browser, console: ConsoleInProcess, kv: Client, tmp_path: Path
) -> None:
    with logged_in(browser, console, "#keys") as page:
        page.keyboard.press("n")
        page.get_by_label("Key", exact=True).fill("new/key")
        page.get_by_label("Kind").select_option("json")
        page.get_by_label("Value").fill('{"$bin": "AP8="}')
        press(page, "Save")
        expect(page.locator(".facts")).to_contain_text("bin")
        assert kv["new/key"] == b"\x00\xff"
        item(page, "new/").click()
        file = tmp_path / "more.jsonl"
        file.write_text('{"key": "new/a", "value": 1}\n{"key": "new/b", "value": 2}\n')
        page.get_by_label("Import").set_input_files(file)
        expect(page.locator(".entry")).to_contain_text("3 keys")
        with page.expect_download() as download:
            page.get_by_role("link", name="JSON lines").click()
        assert Path(download.value.path()).read_text().count("\n") == 3


def test_a_conflict_shows_both(browser: Browser, console: ConsoleInProcess, kv: Client) -> None:
    kv["shared"] = {"by": "nobody"}
    with logged_in(browser, console, "#keys?key=shared") as page:
        press(page, "Edit")
        kv["shared"] = {"by": "somebody"}
        page.get_by_label("Value").fill('{"by": "me"}')
        press(page, "Save")
        both = page.locator(".both")
        expect(both).to_contain_text('"by": "me"')
        expect(both).to_contain_text('"by": "somebody"')
        assert kv["shared"] == {"by": "somebody"}
        press(page, "Store mine over it")
        expect(page.get_by_role("status")).to_have_text("Stored.")
        assert kv["shared"] == {"by": "me"}


def test_what_is_not_edited_keeps_its_bytes(
    browser: Browser, console: ConsoleInProcess, server: ServerInProcess
) -> None:
    with Client(server.endpoint, codec=PACKED) as kv:
        kv.put("wide", Packed(WIDTHS))
        with logged_in(browser, console, "#keys?key=wide") as page:
            expect(page.locator(".entry pre")).to_contain_text(
                '{ "$bin": "/w==" }', use_inner_text=False
            )
            press(page, "Edit")
            press(page, "Save")
            expect(page.get_by_role("status")).to_contain_text("Nothing was changed")
            press(page, "Rename …")
            answer(page, "moved", "Rename")
            expect(page.locator(".entry h2")).to_have_text("moved")
            assert kv.get("moved") == WIDTHS
            page.get_by_role("tab", name="Hex").click()
            expect(page.locator("pre.hex")).to_contain_text("93 d3 00 00")
            page.get_by_role("tab", name="Tree").click()
            expect(page.locator(".parts")).to_contain_text("float 32")


def test_hostile_keys_and_values(browser: Browser, console: ConsoleInProcess, kv: Client) -> None:
    tag = "<img src=x onerror=alert(1)>"
    kv.put_many({
        f"a{tag}": tag, f"b{tag}/c": {tag: [tag, None]}, "rtl\u202egnp.exe": "\u202eabc\u2066",
        "bytes": b"\x00" * 300, "large": b"x" * 10_000_000, "tag": {"$bin": tag},
    })  # fmt: skip
    with logged_in(browser, console, "#keys") as page:
        item(page, f"a{tag}").click()
        expect(page.locator(".entry pre")).to_have_text(tag)
        item(page, f"b{tag}/").click()
        item(page, "c").click()
        expect(page.locator(".entry pre")).to_contain_text(tag)
        page.get_by_role("tab", name="Tree").click()
        expect(page.locator(".parts")).to_contain_text(tag)
        item(page, "rtl").click()
        expect(page.locator(".entry h2")).to_have_text("rtlU+202Egnp.exe")
        expect(page.locator(".entry pre")).to_have_text("U+202EabcU+2066")
        item(page, "bytes").click()
        expect(page.locator(".entry pre")).to_contain_text("$bin")
        item(page, "tag").click()
        expect(page.locator(".entry pre")).to_contain_text("$map")
        item(page, "large").click()
        expect(page.locator(".facts")).to_contain_text("9.5 MiB")
        expect(page.get_by_role("button", name="Edit")).to_be_disabled()
        expect(page.locator("pre.hex")).to_contain_text("78 78 78")
        page.keyboard.press("3")
        expect(page.locator(".changes")).to_contain_text(tag)
        page.keyboard.press("4")
        page.get_by_role("heading", name="Slow requests").wait_for()
        assert page.locator("img").count() == 0


def test_changes_as_they_are_made(browser: Browser, console: ConsoleInProcess, kv: Client) -> None:
    kv["before"] = 1
    with logged_in(browser, console, "#changes") as page:
        rows = page.locator(".changes tbody tr")
        expect(rows.first).to_contain_text("before")
        kv["jobs/1"] = "live"
        expect(rows.first).to_contain_text("jobs/1")
        expect(rows.first).to_contain_text("live")
        page.keyboard.press("/")
        page.keyboard.type("jobs/")
        page.keyboard.press("Enter")
        expect(rows).to_have_count(1)
        kv["other"] = 1
        del kv["jobs/1"]
        expect(rows.first).to_contain_text("DELETE")
        expect(rows).to_have_count(2)
        press(page, "Refresh the sums")
        expect(page.locator(".sums")).to_contain_text("jobs/1")


def test_the_server_is_restarted_underneath(browser: Browser, tmp_path: Path) -> None:
    with ServerInProcess(tmp_path / "data") as first, Client(first.endpoint) as kv:
        kv["a"] = 1
        endpoint = first.endpoint
        with (
            ConsoleInProcess(endpoint, timeout=1.0) as console,
            logged_in(browser, console) as page,
        ):
            keys = page.locator(".cards div").filter(has_text=re.compile("^Keys"))
            expect(keys).to_contain_text("1")
            first.stop()
            banner = page.locator("#banner")
            expect(banner).to_contain_text("No answer from the server")
            with ServerInProcess(tmp_path / "data", server={"endpoints": [endpoint]}):
                expect(banner).to_be_hidden()
                kv["b"] = 2
                expect(keys).to_contain_text("2")
                page.keyboard.press("2")
                expect(item(page, "b")).to_be_visible()


def test_a_read_only_console(browser: Browser, server: ServerInProcess, kv: Client) -> None:
    kv["a"] = 1
    with (
        ConsoleInProcess(server.endpoint, read_only=True) as console,
        logged_in(browser, console, "#keys?key=a") as page,
    ):
        expect(page.locator(".entry pre")).to_have_text("1")
        expect(page.locator("#server")).to_contain_text("read-only")
        for name in ("Edit", "Rename …", "Delete …", "New key"):
            expect(page.get_by_role("button", name=name, exact=True)).to_have_count(0)


def test_a_user_with_few_rights(browser: Browser, tmp_path: Path) -> None:
    users: dict[str, dict[str, Any]] = {
        "root": {"read": [""], "write": [""], "admin": True},
        "ann": {"read": ["public/"], "write": ["ann/"]},
    }
    with Secured(tmp_path, users, feed=True) as secured:
        token = add_token(tmp_path / "tokens.toml", "ann.key")
        tokens, keys = Tokens(tmp_path / "tokens.toml"), {"server_key": secured.server_key}
        root: dict[str, Any] = {"server_key": secured.server_key, "key_file": tmp_path / "root.key"}
        with Client(secured.endpoint, **root) as kv:
            kv.put_many({"public/a": 1, "ann/b": 2, "root/secret": "secret"})
        with (
            ConsoleInProcess(secured.endpoint, tokens, keys=keys) as console,
            logged_in(browser, console, token=token) as page,
        ):
            expect(page.locator("main")).to_contain_text("needs the right monitor")
            page.keyboard.press("2")
            expect(page.locator(".tree")).to_contain_text("Type a prefix that you may read")
            page.keyboard.press("/")
            page.keyboard.type("public/")
            page.keyboard.press("Enter")
            item(page, "a").click()
            press(page, "Edit")
            page.get_by_label("Value").fill("7")
            press(page, "Save")
            expect(page.get_by_role("alert").filter(has_text="may not write")).to_be_visible()
            assert "secret" not in page.content()


@pytest.mark.slow
def test_a_folder_of_100_000_keys(browser: Browser, console: ConsoleInProcess, kv: Client) -> None:
    for first in range(0, 100_000, 10_000):
        kv.put_many({f"flat/{n:06}": n for n in range(first, first + 10_000)})
    with logged_in(browser, console, "#keys") as page:
        expect(item(page, "flat/")).to_contain_text("100,000")
        item(page, "flat/").click()
        rows = page.get_by_role("treeitem")
        expect(rows).to_have_count(201)
        press(page, "Show 200 more")
        expect(rows).to_have_count(401)
        page.keyboard.press("/")
        page.keyboard.type("flat/0999")
        page.keyboard.press("Enter")
        expect(rows).to_have_count(100)


def test_keyboard_and_a_narrow_window(
    browser: Browser, console: ConsoleInProcess, kv: Client
) -> None:
    kv.put_many({"a/b/c": "deep", "d": 1, "x" * 300: "long"})
    with logged_in(browser, console) as page:
        page.set_viewport_size(NARROW)  # type: ignore[arg-type]  # a TypedDict
        page.keyboard.press("?")
        expect(page.get_by_role("dialog")).to_contain_text("Ctrl+Enter")
        page.keyboard.press("Escape")
        page.keyboard.press("2")
        expect(item(page, "a/")).to_be_visible()
        for key in ("ArrowDown", "ArrowRight"):
            page.keyboard.press(key)
        expect(item(page, "b/")).to_be_visible()
        for key in ("ArrowRight", "ArrowRight"):
            page.keyboard.press(key)
        expect(item(page, "c")).to_be_visible()
        for key in ("ArrowDown", "Enter"):
            page.keyboard.press(key)
        expect(page.locator(".entry pre")).to_have_text("deep")
        page.keyboard.press("e")
        page.get_by_label("Value").fill("edited")
        page.keyboard.press("Control+Enter")
        expect(page.get_by_role("status")).to_have_text("Stored.")
        assert kv["a/b/c"] == "edited"
        for key in "1234":
            page.keyboard.press(key)
            page.locator(f'[aria-current][title$="({key})"]').wait_for()
            assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]


@pytest.mark.slow
def test_screenshots_of_the_guide(
    browser: Browser, console: ConsoleInProcess, server: ServerInProcess, kv: Client, tmp_path: Path
) -> None:
    """They are made anew in docs/static with ``ZKV_UPDATE_DOCS=1``."""
    directory = PICTURES if UPDATING else tmp_path
    kv.put_many({f"jobs/mon/{n:03}": {"state": "done"} for n in range(90)})
    kv.put_many({"config/theme": {"colour": "teal", "rgb": [0, 128, 128]}, "config/limit": 10})
    log: list[str] = []

    def work(raw: Raw) -> None:
        log.append("a line of the log")
        raw.ok(op="PUT", key="report/log", value=log)
        raw.ok(op="INCR", key="visits")
        raw.ok(op="GET", key="config/theme")

    with Load(server.endpoint, work, pause=0.05), logged_in(browser, console) as page:
        expect(page.locator(".u-wrap")).to_have_count(6)
        with console.open("GET", "/page/live") as stream:
            samples = (name for name, _ in console.events(stream) if name == "sample")
            for _ in range(8):
                next(samples)
        expect(page.locator("main")).to_contain_text("INCR")
        page.screenshot(path=directory / "console-overview.png")
        page.goto(f"{console.url}/#keys?key=config/theme")
        item(page, "jobs/").click()
        item(page, "config/").click()
        item(page, "theme").click()
        expect(page.locator(".entry pre")).to_contain_text("teal")
        page.screenshot(path=directory / "console-keys.png")
        page.keyboard.press("3")
        expect(page.locator(".sums")).to_contain_text("report/log")
        expect(page.locator(".changes")).to_contain_text("visits")
        page.screenshot(path=directory / "console-changes.png")
        page.keyboard.press("4")
        page.get_by_role("heading", name="Slow requests").wait_for()
        page.screenshot(path=directory / "console-slow.png")
    for name in ("overview", "keys", "changes", "slow"):
        assert (PICTURES / f"console-{name}.png").exists()


def test_json_with_line_breaks(browser: Browser, console: ConsoleInProcess) -> None:
    cases = {
        '{"a": [], "b": {}, "c": [1, "}[,"]}': (
            '{\n  "a": [],\n  "b": {},\n  "c": [\n    1,\n    "}[,"\n  ]\n}'
        ),
        "[]": "[]",
        "1": "1",
    }
    many = f"[{', '.join(['{}'] * 200_000)}]"  # Each of them must cost the same.
    deep = f"{'[' * 400}{', '.join(['1'] * 50_000)}{']' * 400}"
    script = "async (text) => (await import('/static/entry.js')).indented(text)"
    with logged_in(browser, console) as page:
        for text, lines in cases.items():
            assert page.evaluate(script, text) == lines
        found = page.wait_for_function(script, arg=many).json_value()  # It has a limit of time.
        assert found.count("\n") == 200_001
        assert len(page.evaluate(script, deep)) < 100 * 50_000


def test_a_fragment_that_names_no_page(browser: Browser, console: ConsoleInProcess) -> None:
    with logged_in(browser, console, "#constructor") as page:
        expect(page).to_have_title(re.compile("^Overview"))
