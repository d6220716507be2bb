"""The live status of a running application: a request that joins a running batch and leaves it first."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from jsonschema import Draft202012Validator

from serve.live_ids import live_id
from tests.integration.conftest import wait_for
from tests.integration.predictions import PROMPT, create, finished

STATUS = "/v1/status"
LONG, SHORT = "a-long-request", "a-short-request"


def statuses(stream: httpx.Response) -> Iterator[dict[str, Any]]:
    """The data of a stream's events."""
    for line in stream.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def requests_of(status: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The requests in all denoisers by their ids."""
    return {one["id"]: one for denoiser in status["denoisers"] for one in denoiser["requests"]}


def test_a_short_request_joins_a_long_one_and_leaves_first(client: httpx.Client, base_url: str) -> None:
    def generate(request_id: str, steps: int) -> None:
        body = {"prompt": PROMPT, "num_inference_steps": steps}
        headers = {"x-request-id": request_id}
        httpx.post(
            f"{base_url}/v1/images/generations", json=body, headers=headers, timeout=120
        ).raise_for_status()

    last: dict[str, dict[str, Any]] = {}
    with ThreadPoolExecutor(2) as pool, client.stream("GET", f"{STATUS}/stream") as stream:
        pool.submit(generate, LONG, 50)
        has_short = False
        for status in statuses(stream):
            last |= requests_of(status)
            long = last.get(live_id(LONG), {"state": "unknown"})
            if long["state"] == "running" and not has_short:
                has_short = True
                pool.submit(generate, SHORT, 4)
            if long["state"] == "done":
                break

    short = last[live_id(SHORT)]
    assert (short["state"], short["steps"], short["step"], short["rows"]) == ("done", 4, 4, 2)
    assert (short["model"], short["image"], short["pass"]) == ("shapes", 0, 0)
    assert (long["steps"], long["step"]) == (50, 50)
    assert long["first_forward"] < short["first_forward"] <= short["last_forward"] < long["last_forward"]
    assert long["came_at"] <= long["joined_at"] < short["came_at"] <= short["joined_at"]
    assert short["joined_at"] < short["left_at"] < long["left_at"] < status["now"]

    [denoiser] = [one for one in status["denoisers"] if live_id(LONG) in requests_of({"denoisers": [one]})]
    assert denoiser["forwards"] >= long["last_forward"]
    assert (status["device"], denoiser["models"][0], denoiser["max_rows"]) == ("cpu", "shapes", 16)
    assert status["stages"]["ingress"]["running"] == status["stages"]["runner"]["running"] == 1
    assert status["throughput"]["images_per_s"] > 0


def test_a_prediction_and_a_request_whose_client_leaves_are_shown(client: httpx.Client) -> None:
    job = create(client, num_inference_steps=2)
    finished(client, job["id"])
    status = client.get(STATUS).json()
    assert requests_of(status)[live_id(job["id"])]["state"] == "done"
    document = client.get("/openapi.json").json()
    schema = document["components"]["schemas"]["LiveStatus"]
    Draft202012Validator({**schema, "components": document["components"]}).validate(status)

    def state() -> str | None:
        shown = requests_of(client.get(STATUS).json()).get(live_id("one-that-leaves"))
        return shown and shown["state"]

    body = {"prompt": PROMPT, "num_inference_steps": 100, "width": 256, "height": 256, "stream": True}
    headers = {"x-request-id": "one-that-leaves"}
    with client.stream("POST", "/v1/images/generations", json=body, headers=headers):
        wait_for(lambda: state() == "running")
    wait_for(lambda: state() == "canceled")
    assert client.get(STATUS).json()["queue"]["images"] == 0
