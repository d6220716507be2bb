"""Makes the pictures of the playground in this folder, with a running server:

    .venv/bin/python docs/screenshots.py [URL]

It needs Chromium, and playwright, which `make install-dev` installs.
"""

import os
import random
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from playwright.sync_api import Browser, Page, sync_playwright

FOLDER = Path(__file__).parent
PROMPTS = (
    "a large red star on a blue background",
    "a green circle left of a white square on a black background",
    "a yellow star on a purple background",
    "a small orange triangle above a blue circle on a white background",
    "a white circle on a green background",
    "a purple square right of a yellow triangle on a black background",
    "a blue triangle on an orange background",
    "a red circle below a white star on a blue background",
)
WIDTH, HEIGHT = 1280, 800
# Requests a second, and how long they have come when the live view is taken.
RATE, LOAD_S = 1.6, 16.0
STEPS = (4, 4, 8, 20, 20, 30, 50, 100)


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    with sync_playwright() as playwright:
        # Chromium's sandbox refuses to run as root.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        page = opened(browser, url, "light")
        make(page)
        page.screenshot(path=FOLDER / "playground.png")
        page = opened(browser, url, "dark")
        show_load(page, url)
        browser.close()


def opened(browser: Browser, url: str, theme: str) -> Page:
    context = browser.new_context(
        base_url=url, viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=theme, device_scale_factor=1
    )
    page = context.new_page()
    page.goto("/")
    page.get_by_label("Steps", exact=True).wait_for()  # the server has said what it offers
    return page


def make(page: Page) -> None:
    """Finished pictures, and one that is being made."""
    for prompt in reversed(PROMPTS):
        page.get_by_label("Prompt", exact=True).fill(prompt)
        page.keyboard.press("Control+Enter")
        page.get_by_role("button", name=f"Open: {prompt}", exact=True).wait_for(timeout=120_000)
    page.get_by_label("Steps", exact=True).fill("100")
    page.get_by_label("Steps", exact=True).blur()
    page.get_by_label("Prompt", exact=True).fill("a red star left of a yellow circle on a black background")
    page.keyboard.press("Control+Enter")
    page.locator("img.preview").first.wait_for(timeout=120_000)
    page.get_by_label("Prompt", exact=True).click()
    page.evaluate("document.querySelectorAll('*').forEach((element) => { element.scrollTop = 0; })")


def show_load(page: Page, url: str) -> None:
    """Requests of all lengths, by a fixed seed."""
    page.goto("/#live")
    draw = random.Random(1)

    def send(steps: int, seed: int) -> None:
        body = {"prompt": PROMPTS[seed % len(PROMPTS)], "num_inference_steps": steps, "seed": seed}
        httpx.post(f"{url}/v1/images/generations", json=body, timeout=300)

    with ThreadPoolExecutor(64) as threads:
        ends_at, seed = time.monotonic() + LOAD_S, 0
        while time.monotonic() < ends_at:
            threads.submit(send, draw.choice(STEPS), seed := seed + 1)
            page.wait_for_timeout(1000 * draw.expovariate(RATE))
        page.screenshot(path=FOLDER / "live.png")


if __name__ == "__main__":
    main()
