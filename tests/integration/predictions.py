"""Jobs over HTTP: handed in and followed."""

import time
from typing import Any

import httpx

ROUTE = "/v1/predictions"
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
    """Returns once some of it is done."""
    deadline = time.monotonic() + FINISH_TIMEOUT_S
    while not get(client, job_id)["progress"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def finished(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """The prediction, once it is."""
    deadline = time.monotonic() + FINISH_TIMEOUT_S
    while (prediction := get(client, job_id))["status"] in ("starting", "processing"):
        assert time.monotonic() < deadline, prediction
        time.sleep(0.1)
    return prediction
