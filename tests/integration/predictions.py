"""Jobs over HTTP: submit and follow."""

import time
from typing import Any

import httpx

ROUTE = "/v1/predictions"
SHORT = {"num_inference_steps": 4}
PROMPT = "a large red star on a blue background"
FINISH_TIMEOUT_S = 180.0


def create(client: httpx.Client, headers: dict[str, str] | None = None, **given: Any) -> dict[str, Any]:
    response = client.post(ROUTE, json=body(**given), headers=headers)
    assert response.status_code == 201, response.text
    answer: dict[str, Any] = response.json()
    return answer


def body(**given: Any) -> dict[str, Any]:
    return {"version": "shapes", "input": {"prompt": PROMPT} | given}


def get(client: httpx.Client, job_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = client.get(f"{ROUTE}/{job_id}").json()
    return answer


def begun(client: httpx.Client, job_id: str) -> None:
    """Returns once the job has made progress."""
    deadline = time.monotonic() + FINISH_TIMEOUT_S
    while not get(client, job_id)["progress"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def finished(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """The prediction, once it is finished."""
    deadline = time.monotonic() + FINISH_TIMEOUT_S
    while (prediction := get(client, job_id))["status"] in ("starting", "processing"):
        assert time.monotonic() < deadline, prediction
        time.sleep(0.1)
    return prediction


def refused(client: httpx.Client, status: int, title: str) -> None:
    response = client.post(ROUTE, json=body(**SHORT))
    assert (response.status_code, response.json()["title"]) == (status, title), response.text


def still_makes_pictures(client: httpx.Client) -> None:
    """The application still answers synchronous requests, which have nothing to do with jobs."""
    given = {"prompt": "a red star", "num_inference_steps": 4}
    assert client.post("/v1/images/generations", json=given).status_code == 200


def all_succeed(client: httpx.Client, job_ids: list[str]) -> None:
    for job_id in job_ids:
        job = finished(client, job_id)
        assert job["status"] == "succeeded", job
        for url in job["output"]:
            assert client.get(httpx.URL(url).path).headers["content-type"] == "image/png"
