"""The live view and the painter of masks by themselves in a real browser, without a server."""

import base64
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect

from serve.http.playground.routes import FOLDER
from tests.integration.browsers import TIMEOUT_MS, launched, opened

NOW = 1_796_028_000.0
SIZE = (96, 64)
PAGE = """<!doctype html><html lang="en"><title>Part</title>
<link rel="stylesheet" href="/playground/tokens.css"><link rel="stylesheet" href="/playground/style.css">
<link rel="stylesheet" href="/playground/live.css"><link rel="stylesheet" href="/playground/mask.css">
<div id="part"></div>"""
LIVE = """async () => {
  const { html, render } = await import("/playground/vendor/preact.js");
  const { LiveView } = await import("/playground/live.js");
  const mine = new Map([["aaaaaaaaaaaa", { label: "a red star" }]]);
  render(html`<${LiveView} mine=${mine} />`, document.getElementById("part"));
}"""
MASK = """async (src) => {
  const { html, render, useState } = await import("/playground/vendor/preact.js");
  const { MaskPainter } = await import("/playground/mask.js");
  function Part() {
    const [value, setValue] = useState(null);
    Object.assign(window, { mask: value, setMask: setValue });
    return html`<${MaskPainter} src=${src} value=${value} onChange=${setValue} />`;
  }
  render(html`<${Part} />`, document.getElementById("part"));
}"""

expect.set_options(timeout=TIMEOUT_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as chromium:
        yield chromium


@pytest.fixture
def part(browser: Browser) -> Iterator[Page]:
    """A page with the playground's files in which nothing is shown yet."""
    with opened(browser, "http://playground.test") as context:
        page = context.new_page()
        page.route("**/*", _file)
        page.goto("/")
        yield page


def _file(route: Route) -> None:
    path = route.request.url.removeprefix("http://playground.test/")
    if path.startswith("playground/"):
        route.fulfill(path=FOLDER / path.removeprefix("playground/"))
    else:
        route.fulfill(body=PAGE, content_type="text/html")


def _request(live_id: str, **state: Any) -> dict[str, Any]:
    """A request that runs and has done a few steps."""
    places = {"id": live_id, "image": 0, "pass": 0, "model": "shapes", "width": 128, "height": 128}
    counts = {"steps": 20, "step": 7, "rows": 2, "first_forward": 1, "last_forward": 7}
    times = {"came_at": NOW - 4, "joined_at": NOW - 3, "left_at": None}
    return {**places, **counts, **times, "state": "running", **state}


def _report(requests: list[dict[str, Any]]) -> dict[str, Any]:
    rates = {"forwards_per_s": 2.5, "rows_per_forward": 4.0, "images_per_s": 0.5}
    replicas = {"running": 1, "starting": 1, "stopping": 0}
    denoiser = {
        "id": "d1",
        "models": ["shapes"],
        "max_rows": 8,
        "forwards": 7,
        "rows": 28,
        "images": 1,
        **rates,
    }
    return {
        "object": "status",
        "now": NOW,
        "device": "cpu",
        "stages": {"denoiser": replicas},
        "queue": {"images": 2, "waiting": 1, "work_s": 1.5, "seconds": 1.5},
        "throughput": {"window_s": 5.0, **rates},
        "denoisers": [{**denoiser, "requests": requests}],
    }


def _tell(page: Page, answer: Callable[[Route], None]) -> None:
    page.route("**/v1/status/stream", answer)
    page.evaluate(LIVE)


def test_the_live_view_shows_each_image_in_a_lane_of_its_own(part: Page) -> None:
    waiting = {"state": "waiting", "step": 0, "joined_at": None, "first_forward": None, "last_forward": None}
    left = {"state": "done", "steps": 4, "step": 4, "left_at": NOW - 2, "last_forward": 4}
    report = _report([_request("a" * 12), _request("b" * 12, **waiting), _request("c" * 12, **left)])
    events = f"event: status\ndata: {json.dumps(report)}\n\n"
    _tell(part, lambda route: route.fulfill(body=events, content_type="text/event-stream"))
    figures = part.locator(".live-figure")
    expect(figures.filter(has_text="Rows per forward")).to_contain_text("4.0of 8", use_inner_text=False)
    expect(part.get_by_text("1 running, 1 starting")).to_be_visible()
    expect(part.locator(".live-step").filter(has_text="waiting")).to_have_count(1)
    expect(part.locator(".live-request[data-state='done']")).to_contain_text("4/4")
    own = part.locator(".live-request[data-mine='true']")
    expect(own).to_contain_text("You: a red star")
    lanes = {
        bar.evaluate("bar => bar.style.getPropertyValue('--row')")
        for bar in part.locator(".live-request").all()
    }
    assert lanes == {"0", "1", "2"}
    rows = part.get_by_role("region", name="Requests in the denoisers").get_by_role("row")
    expect(rows).to_have_count(3)  # the head, and what is still there
    expect(rows.filter(has_text="Yours: a red star")).to_contain_text("7 of 20")


def test_a_refused_live_view_says_why(part: Page) -> None:
    body = {"detail": "An API key is needed.", "error": {"param": None}}
    _tell(part, lambda route: route.fulfill(status=401, json=body))
    expect(part.get_by_role("status").filter(has_text="An API key is needed.")).to_be_visible()
    expect(part.get_by_role("button", name="Try now")).to_be_visible()


def _url(color: str, size: tuple[int, int] = SIZE) -> str:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _painted(page: Page) -> Any:
    """The mask as an array; it has no greys."""
    image = Image.open(io.BytesIO(base64.b64decode(page.evaluate("window.mask").split(",")[1])))
    assert image.size == SIZE
    pixels = np.asarray(image.convert("L"))
    assert set(np.unique(pixels)) <= {0, 255}
    return pixels == 255


@pytest.fixture
def painter(part: Page) -> Page:
    part.evaluate(MASK, _url("orange"))
    expect(part.get_by_role("application", name="Mask")).to_be_visible()
    return part


def _drag(page: Page, button: Any = "left") -> None:
    """Across the middle of the picture."""
    box = page.get_by_role("application", name="Mask").bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.25, middle)
    page.mouse.down(button=button)
    page.mouse.move(box["x"] + box["width"] * 0.75, middle, steps=5)
    page.mouse.up(button=button)


def test_what_is_painted_is_white_and_can_be_taken_back(painter: Page) -> None:
    _drag(painter)
    first = _painted(painter)
    assert [first[32, 48], first[2, 48], first[32, 4]] == [True, False, False]
    painter.get_by_role("button", name="Invert").click()
    assert np.mean(_painted(painter) == first) < 0.01
    painter.keyboard.press("Control+z")
    assert np.array_equal(_painted(painter), first)
    painter.keyboard.press("]")
    _drag(painter, button="right")
    expect(painter.get_by_text("Nothing is painted.")).to_be_visible()
    assert painter.evaluate("window.mask") is None


def test_a_mask_is_painted_by_the_keyboard(painter: Page) -> None:
    painter.get_by_role("application", name="Mask").focus()
    painter.keyboard.down(" ")
    for _ in range(6):
        painter.keyboard.press("ArrowRight")
    painter.keyboard.up(" ")
    row = _painted(painter)[32]
    assert [row[40], row[48], row[54]] == [False, True, True]


def test_an_earlier_mask_is_restored(painter: Page) -> None:
    mask = Image.new("L", SIZE)
    mask.paste(255, (0, 0, 48, 64))
    file = io.BytesIO()
    mask.save(file, "PNG")
    earlier = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    painter.evaluate("url => setMask(url)", earlier)
    expect(painter.get_by_text("50% is painted.")).to_be_visible()
    assert painter.evaluate("window.mask") == earlier
    _drag(painter)
    both = _painted(painter)
    assert [both[2, 20], both[32, 60], both[2, 60]] == [True, True, False]
    painter.evaluate("() => setMask(null)")
    expect(painter.get_by_text("Nothing is painted.")).to_be_visible()


def test_a_mask_of_another_size_is_made_the_pictures(painter: Page) -> None:
    painter.evaluate("url => setMask(url)", _url("white", (20, 20)))
    expect(painter.get_by_text("100% is painted.")).to_be_visible()
    assert _painted(painter).all()
