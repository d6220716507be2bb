"""The playground in a real browser, against real servers."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from cluster.ports import free_port
from serve.config.api_keys import key_sha256
from tests.integration.applications import whole_application
from tests.integration.browsers import TIMEOUT_MS, ask, card, launched, opened, picture

RED, GREEN = "a large red star on a blue background", "a green circle on a black background"
LONG = 100  # steps
KEY = "mst_playground"
STORAGE = {  # scripts that run before the page's own
    "NOTHING": """
        for (const name of ["localStorage", "indexedDB"]) {
          Object.defineProperty(window, name, { get() { throw new DOMException("no", "SecurityError"); } });
        }
    """,
    "DAMAGED": """
        if (location.protocol === "http:") {  // not on the empty page before
          localStorage.setItem("midstep.draft", '{"loras": null, "prompt": {}, "start": {}, "count": "x"}');
          localStorage.setItem("midstep.made.older", '{"id": "older", "input": {}}');
          localStorage.setItem("midstep.made.broken", "{");
        }
    """,
    "FULL": """
        for (let length = 2 ** 22; length; length >>= 1) {
          try { for (;;) localStorage.setItem(`other ${Math.random()}`, "x".repeat(length)); } catch {}
        }
    """,
}

expect.set_options(timeout=TIMEOUT_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as chromium:
        yield chromium


@pytest.fixture
def page(browser: Browser, base_url: str) -> Iterator[Page]:
    """The playground as somebody sees it who comes for the first time."""
    with opened(browser, base_url) as context:
        page = context.new_page()
        page.goto("/")
        yield page


def records(page: Page) -> list[dict[str, Any]]:
    """What the browser keeps of the pictures that it made, the newest first."""
    kept: list[dict[str, Any]] = page.evaluate(
        "import('./playground/store.js').then((store) => store.made.now)"
    )
    return kept


def file_of(page: Page, base_url: str) -> bytes:
    [record] = records(page)[:1]
    return httpx.get(f"{base_url}/{record['outputs'][0]}").content


def png(color: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (128, 128), color).save(file, "PNG")
    return file.getvalue()


def test_a_picture_is_seen_coming_and_found_again(page: Page) -> None:
    ask(page, RED, Steps=LONG, Seed=7)
    expect(card(page, RED).get_by_role("progressbar", name="Progress")).to_be_visible()
    expect(card(page, RED).locator("img.preview")).to_be_visible()
    expect(picture(page, RED)).to_be_visible()
    page.reload()
    picture(page, RED).click()
    shown = page.get_by_role("dialog", name="Picture")
    expect(shown.get_by_role("img", name=RED)).to_be_visible()
    expect(shown.get_by_text("Seed", exact=True).locator("xpath=following-sibling::dd")).to_have_text("7")
    page.keyboard.press("Escape")
    expect(shown).to_be_hidden()


def test_settings_are_used_again_and_seeds_varied(page: Page) -> None:
    ask(page, RED, Steps=4, Seed=7)
    picture(page, RED).click()
    page.get_by_role("button", name="Use these again").click()
    expect(page.get_by_label("Seed", exact=True)).to_have_value("7")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("button", name=f"Open: {RED}")).to_have_count(2)
    again, first = records(page)
    assert again["input"] == first["input"]
    picture(page, RED).click()
    page.get_by_role("button", name="Vary the seed").click()
    expect(page.get_by_role("button", name=f"Open: {RED}")).to_have_count(3)
    varied = records(page)[0]["input"]
    assert varied["seed"] != 7
    assert varied | {"seed": 7} == first["input"]


def test_a_canceled_picture_is_not_made(page: Page, base_url: str) -> None:
    ask(page, RED, Steps=LONG, Number_of_pictures=4)
    card(page, RED).get_by_role("button", name="Cancel").click()
    expect(card(page, RED)).to_contain_text("Canceled")
    answer = httpx.get(f"{base_url}/v1/predictions/{records(page)[0]['id']}")
    assert answer.json()["status"] == "canceled"


def test_a_mask_is_painted_and_only_that_part_changes(page: Page, base_url: str) -> None:
    white = (255, 255, 255)
    page.get_by_label("Start from a picture").set_input_files(
        {"name": "white.png", "mimeType": "image/png", "buffer": png(white)}
    )
    page.get_by_role("button", name="Paint a mask").click()
    box = page.get_by_role("application", name="Mask").bounding_box()
    assert box is not None
    # A stroke through the middle of the left half, from above to below.
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 4)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] * 3 / 4, steps=10)
    page.mouse.up()
    page.get_by_role("button", name="Done").click()
    page.get_by_label("Keep the rest exactly as it is").check()
    ask(page, GREEN, Steps=8, Strength=1)
    expect(picture(page, GREEN)).to_be_visible()
    pixels = np.asarray(Image.open(io.BytesIO(file_of(page, base_url))))
    is_changed = (pixels != white).any(axis=2)
    assert is_changed[64, 32]
    assert not is_changed[:, 96:].any()


def test_another_model_and_a_lora(page: Page, base_url: str) -> None:
    page.get_by_label("Model", exact=True).select_option("outlines")
    page.get_by_label("LoRAs", exact=True).select_option("lcm")
    page.get_by_label("Weight of lcm").fill("0.9")
    page.get_by_label("Weight of lcm").blur()
    ask(page, RED, Steps=4, Guidance=1, Sampler="LCM")
    expect(picture(page, RED)).to_be_visible()
    said = Image.open(io.BytesIO(file_of(page, base_url))).info
    [lora] = json.loads(said["loras"])
    assert (said["model"], lora["id"], lora["scale"]) == ("outlines", "lcm", 0.9)


def test_two_tabs_are_in_step(page: Page) -> None:
    other = page.context.new_page()
    other.goto("/#gallery")
    ask(page, RED, Steps=4)
    expect(picture(other, RED)).to_be_visible()
    card(other, RED).get_by_role("button", name="Delete").click()
    other.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(card(other, RED)).to_have_count(0)
    expect(card(page, RED)).to_have_count(0)


def test_an_error_is_the_servers_own_sentence_at_its_field(page: Page) -> None:
    page.get_by_role("radio", name="Custom").check()
    page.get_by_label("Width").fill("100")
    page.get_by_label("Width").blur()
    ask(page, RED)
    expect(page.locator("#size-notes")).to_contain_text("a width of 100 was given; allowed are multiples of")
    expect(page.get_by_label("Width")).to_be_focused()


def test_the_live_view_shows_who_joins_and_leaves_whom(page: Page, base_url: str) -> None:
    """As its table tells it; tests/integration/test_playground_parts.py looks at the bars."""
    ask(page, RED, Steps=LONG, Number_of_pictures=4)
    page.goto("/#live")
    rows = page.get_by_role("region", name="Requests in the denoisers").get_by_role("row")
    expect(rows.filter(has_text=f"Yours: {RED}")).to_have_count(4)
    httpx.post(
        f"{base_url}/v1/images/generations", json={"prompt": GREEN, "num_inference_steps": 4}, timeout=120
    )
    expect(rows.filter(has_text=RED)).to_have_count(4)
    expect(rows.filter(has_text=RED)).to_have_count(0)


def test_what_is_sent_too_early_waits_for_the_server(page: Page) -> None:
    """Something before the server answers first, and not as the server would."""
    answers: list[dict[str, Any]] = [{"status": 502, "content_type": "text/html", "body": "Bad gateway"}]
    answers.append({"status": 200, "content_type": "text/html", "body": "Log in"})
    page.route("**/v1/models", lambda route: route.fulfill(**answers.pop(0)) if answers else route.fallback())
    page.reload()
    page.get_by_label("Prompt", exact=True).fill(RED)
    page.keyboard.press("Control+Enter")
    expect(picture(page, RED)).to_be_visible()
    assert not answers
    assert len(records(page)) == 1


@pytest.mark.parametrize("kept", ["NOTHING", "DAMAGED", "FULL"])
def test_it_works_whatever_the_browser_keeps(browser: Browser, base_url: str, kept: str) -> None:
    with opened(browser, base_url) as context:
        context.add_init_script(STORAGE[kept])
        page = context.new_page()
        page.goto("/")
        ask(page, RED, Steps=4)
        expect(picture(page, RED)).to_be_visible()
        page.get_by_role("link", name="Gallery", exact=True).click()
        expect(page.get_by_role("listitem")).to_have_count(1)


def test_the_focus_stays_where_somebody_was(page: Page) -> None:
    for prompt in (RED, GREEN):
        ask(page, prompt, Steps=4)
        expect(picture(page, prompt)).to_be_visible()
    page.get_by_role("link", name="Gallery", exact=True).click()
    card(page, GREEN).get_by_role("button", name="Delete").press("Enter")
    page.get_by_role("dialog").get_by_role("button", name="Delete").press("Enter")
    expect(picture(page, RED)).to_be_focused()
    card(page, RED).get_by_role("button", name="Use these settings again").press("Enter")
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_everybody_can_use_it(browser: Browser, base_url: str, theme: Any, width: int) -> None:
    with opened(browser, base_url, width) as context:
        page = context.new_page()
        page.emulate_media(color_scheme=theme, reduced_motion="reduce")
        page.goto("/")
        if width == 360:
            page.get_by_text("Settings", exact=True).click()
        ask(page, RED, Steps=4)
        expect(picture(page, RED)).to_be_visible()
        _check(page)
        picture(page, RED).click()
        _check(page)
        page.keyboard.press("Escape")
        for tab in ("Gallery", "Live"):
            page.get_by_role("link", name=tab, exact=True).click()
            expect(page.get_by_role("link", name=tab, exact=True)).to_have_attribute("aria-current", "page")
            _check(page)


def _check(page: Page) -> None:
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"


def test_a_server_that_restarts_loses_no_picture(browser: Browser, cost_model: Path, tmp_path: Path) -> None:
    """The server wants a key, too."""
    jobs, port = {"data_folder": str(tmp_path / "data")}, free_port()
    keys = [{"name": "someone", "key_sha256": key_sha256(KEY)}]
    with opened(browser, f"http://127.0.0.1:{port}") as context:
        page = context.new_page()
        with whole_application(jobs, tmp_path / "first.log", cost_model, api_keys=keys, port=port):
            page.goto("/")
            page.get_by_label("Key", exact=True).fill("wrong")
            page.get_by_role("button", name="Use this key").click()
            expect(page.get_by_role("dialog", name="API key").get_by_role("alert")).to_be_visible()
            page.get_by_label("Key", exact=True).fill(KEY)
            page.get_by_role("button", name="Use this key").click()
            ask(page, RED, Steps=LONG, Number_of_pictures=8)
            expect(card(page, RED).locator("img.preview").first).to_be_visible()
        expect(page.get_by_role("status", name="Server")).to_contain_text("not lost")
        with whole_application(jobs, tmp_path / "second.log", cost_model, api_keys=keys, port=port):
            expect(page.get_by_role("button", name=f"Open: {RED}")).to_have_count(8)
            expect(page.get_by_role("progressbar")).to_have_count(0)
            assert records(page)[0]["status"] == "succeeded"
