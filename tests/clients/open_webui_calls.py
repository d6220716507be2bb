"""Open WebUI's calls with its engine `automatic1111`, as it sends them: itself it is too large to install."""

from typing import Any

import requests
from pictures import PROMPT, decoded, format_of, size_of

# It sends this header with nothing in it where no authentication is configured.
_HEADERS = {"authorization": ""}


def call(url: str, method: str, path: str, json: Any = None) -> Any:
    answer = requests.request(method, f"{url}/sdapi/v1/{path}", json=json, headers=_HEADERS, timeout=120)
    answer.raise_for_status()
    return answer.json()


def set_model(url: str, title: str) -> None:
    """It gets all options, changes one, and sends all back."""
    options = call(url, "GET", "options")
    if options["sd_model_checkpoint"] != title:
        call(url, "POST", "options", options | {"sd_model_checkpoint": title})


def test_the_models_are_listed_and_one_is_chosen(url: str) -> None:
    titles = {one["title"]: one["model_name"] for one in call(url, "GET", "sd-models")}
    before = call(url, "GET", "options")
    try:
        assert {"shapes", "outlines"} <= titles.keys()
        set_model(url, "outlines")
        assert call(url, "GET", "options")["sd_model_checkpoint"] == "outlines"
    finally:
        set_model(url, before["sd_model_checkpoint"])
    assert call(url, "GET", "options") == before


def test_a_picture(url: str) -> None:
    form = {
        "prompt": PROMPT,
        "batch_size": 2,
        "width": 128,
        "height": 128,
        "steps": 4,
        "negative_prompt": "blue",
    }
    # Its administrators may set further parameters.
    answer = call(url, "POST", "txt2img", form | {"sampler_name": "Euler a", "cfg_scale": 7})
    assert isinstance(answer["info"], str)
    assert len(answer["images"]) == 2
    for image in answer["images"]:
        assert "," not in image, "else it would look for a header"
        assert (size_of(decoded(image)), format_of(decoded(image))) == ((128, 128), "PNG")
