"""Debian's chromium, driven by playwright, with the console's page open in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from tests.support import LIMIT
from tests.web.consoles import TOKEN, ConsoleInProcess

CHROMIUM: Final = shutil.which("chromium")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="NOT RUN: chromium is not installed here (make browser-deps)"
)
WIDE: Final = {"width": 1200, "height": 850}
NARROW: Final = {"width": 400, "height": 800}


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window."""
    expect.set_options(timeout=LIMIT * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def logged_in(
    browser: Browser, console: ConsoleInProcess, at: str = "", token: str = TOKEN
) -> Iterator[Page]:
    """A page on which somebody has logged in. At the end, nothing in it must have gone wrong.

    Args:
        browser: the browser.
        console: the console.
        at: the fragment of the URL.
        token: of the user.
    """
    context = browser.new_context(viewport=WIDE)  # type: ignore[arg-type]  # a TypedDict
    context.set_default_timeout(LIMIT * 1000)
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(f"a script has run: {dialog.message}"))

    def logged(message: ConsoleMessage) -> None:
        if "Content Security" in message.text:
            wrong.append(message.text)

    page.on("console", logged)
    try:
        page.goto(f"{console.url}/{at}")
        page.get_by_label("Token").fill(token)
        page.keyboard.press("Enter")
        page.locator("#header").wait_for(state="visible")
        page.locator("main > *").first.wait_for(state="attached")
        yield page
    finally:
        context.close()
    assert not wrong, wrong
