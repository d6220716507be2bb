"""API keys in a whole application: the real clients with them and without, and a limit that is reached."""

import os
import subprocess
from pathlib import Path

import httpx
import openai
import pytest
import replicate

from serve.config.api_keys import key_sha256, new_key
from tests.integration.applications import whole_application
from tests.integration.conftest import MIDSTEP
from tests.integration.predictions import FINISH_TIMEOUT_S, PROMPT, ROUTE, body

ALICE, BOB, POOR = new_key(), new_key(), new_key()
API_KEYS = [
    {"name": "alice", "key_sha256": key_sha256(ALICE)},
    {"name": "bob", "key_sha256": key_sha256(BOB)},
    {"name": "poor", "key_sha256": key_sha256(POOR), "device_seconds_per_minute": 0.001},
]
IMAGE = {"prompt": PROMPT, "num_inference_steps": 4}


def test_the_clients_with_keys_and_without(tmp_path: Path) -> None:
    jobs = {"data_folder": str(tmp_path / "data")}
    with whole_application(jobs, tmp_path / "log", None, api_keys=API_KEYS) as application:
        url = str(application.client.base_url)
        for_openai(url)
        job_id = for_replicate(url)
        for_the_command_line(url, job_id)
        for_one_with_a_limit(application.client)


def for_openai(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=ALICE) as client:
        answer = client.images.generate(prompt=PROMPT, extra_body={"num_inference_steps": 4})
        assert answer.data
        events = client.images.generate(
            prompt=PROMPT, stream=True, partial_images=1, extra_body={"num_inference_steps": 4}
        )
        assert [event.type for event in events][-1] == "image_generation.completed"
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="none") as stranger,
        pytest.raises(openai.AuthenticationError) as refusal,
    ):
        stranger.images.generate(prompt=PROMPT)
    assert refusal.value.code == "invalid_api_key"


def for_replicate(url: str) -> str:
    """The id of the job that it made."""
    client = replicate.Client(api_token=ALICE, base_url=url)
    [picture] = client.run("midstep/shapes", input={"prompt": PROMPT, "num_inference_steps": 4})
    assert httpx.get(picture).status_code == 200, "its URL needs no key"
    [prediction] = client.predictions.list()
    others = replicate.Client(api_token=BOB, base_url=url)
    assert list(others.predictions.list()) == []
    with pytest.raises(replicate.exceptions.ReplicateError) as refusal:
        others.predictions.get(prediction.id)
    assert refusal.value.status == 404
    for used in (client, others):
        used._client.close()  # it has no way of its own
    return prediction.id


def for_the_command_line(url: str, job_id: str) -> None:
    def listed(key: str) -> "subprocess.CompletedProcess[str]":
        command = [MIDSTEP, "jobs", "list", "--json", "--url", url]
        environment = os.environ | {"MIDSTEP_API_KEY": key}
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=FINISH_TIMEOUT_S, check=False
        )

    assert job_id in listed(ALICE).stdout
    assert listed(BOB).stdout.strip() == "[]"
    refused = listed("wrong")
    assert refused.returncode == 1
    assert "API key" in refused.stderr


def for_one_with_a_limit(client: httpx.Client) -> None:
    headers = {"authorization": f"Bearer {POOR}"}
    first = client.post("/v1/images/generations", json=IMAGE, headers=headers)
    assert first.status_code == 200, first.text
    for path, given in (("/v1/images/generations", IMAGE), (ROUTE, body(num_inference_steps=4))):
        refused = client.post(path, json=given, headers=headers)
        assert (refused.status_code, refused.json()["error_type"]) == (429, "rate_limit_exceeded")
        assert int(refused.headers["retry-after"]) > 60
        served = client.post(path, json=given, headers={"authorization": f"Bearer {BOB}"})
        assert served.is_success
