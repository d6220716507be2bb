"""A real browser with the playground in it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, sync_playwright

TIMEOUT_MS = 120_000  # for a busy machine


@contextmanager
def launched() -> Iterator[Browser]:
    """The machine's own Chromium. Skips the test where there is none."""
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("there is no Chromium on this machine")
    # Chromium's sandbox refuses to run as root, as CI does.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, url: str, width: int = 1280, height: int = 900) -> Iterator[BrowserContext]:
    """A browser profile of its own. Fails at the end if any of its pages had an error of its own."""
    context = browser.new_context(base_url=url, viewport={"width": width, "height": height})
    context.set_default_timeout(TIMEOUT_MS)
    problems: list[str] = []
    context.on("weberror", lambda error: problems.append(str(error.error)))
    # Errors of the network are the server's answers, which the page shows itself.
    context.on(
        "console",
        lambda said: (
            problems.append(said.text)
            if said.type == "error" and not said.text.startswith("Failed to load resource")
            else None
        ),
    )
    try:
        yield context
    finally:
        context.close()
    assert not problems


def ask(page: Page, prompt: str, **settings: float | str) -> None:
    """Fills in the form and sends it by the keyboard. settings: values by the labels of their fields"""
    for label, value in settings.items():
        field = page.get_by_label(label.replace("_", " "), exact=True)
        if field.evaluate("element => element.tagName") == "SELECT":
            field.select_option(str(value))
        else:
            field.fill(str(value))
            field.blur()
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.keyboard.press("Control+Enter")


def card(page: Page, prompt: str) -> Locator:
    """The newest card of a prompt."""
    return page.get_by_role("listitem", name=prompt, exact=True).first


def picture(page: Page, prompt: str) -> Locator:
    """The button that opens a finished picture."""
    return page.get_by_role("button", name=f"Open: {prompt}", exact=True).first
