"""The application over HTTP: pictures, sharing, streams, disconnects, refusals, clients."""

import asyncio
import base64
import io
import json
import os
import re
import signal
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import ray
from PIL import Image

from tests.integration.conftest import MAX_QUEUE, Metric, replica, settled, wait_for
from tests.shapes import evaluate, scenes

ROUTE = "/v1/images/generations"
DEADLINE_S = 6.0  # enough for a picture on any machine


def picture(answer: dict[str, Any], index: int = 0) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(answer["data"][index]["b64_json"])))


def generate(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post(ROUTE, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def scene(background: str, *things: tuple[str, str, str], relation: str | None = None) -> Any:
    return scenes.Scene(
        background, tuple(scenes.Thing(colour, shape, size) for size, colour, shape in things), relation
    )


@pytest.mark.parametrize(
    "wanted",
    [
        scene("white", ("medium", "green", "circle")),
        scene("purple", ("medium", "yellow", "triangle")),
        scene("white", ("large", "blue", "star"), ("large", "red", "square"), relation="right of"),
        scene("yellow", ("large", "blue", "triangle"), ("large", "red", "star"), relation="left of"),
        scene("red", ("large", "white", "triangle"), ("large", "yellow", "star"), relation="above"),
        scene("black", ("large", "orange", "square"), ("large", "white", "star"), relation="below"),
    ],
    ids=lambda wanted: wanted.prompt(),
)
def test_the_picture_shows_what_the_prompt_says(client: httpx.Client, wanted: Any) -> None:
    answer = generate(client, prompt=wanted.prompt(), seed=1)
    verdict = evaluate.judge(wanted, np.asarray(picture(answer)))
    assert verdict == evaluate.Verdict(True, None if wanted.relation is None else True, True)


def test_the_png_says_how_it_was_made(client: httpx.Client) -> None:
    answer = generate(
        client, prompt="a red star on a blue background", seed=11, sampler="euler a", num_inference_steps=5
    )
    image = picture(answer)
    assert image.format == "PNG"
    text = dict(image.text)  # type: ignore[attr-defined]
    parameters = text.pop("parameters").splitlines()
    assert parameters[0] == "a red star on a blue background"
    assert parameters[1].startswith(
        "Steps: 5, Sampler: Euler a, CFG scale: 5, Seed: 11, Size: 128x128, Model: shapes, "
    )
    assert text == {
        "prompt": "a red star on a blue background",
        "negative_prompt": "",
        "seed": "11",
        "sampler": "Euler a",
        "num_inference_steps": "5",
        "guidance_scale": "5.0",
        "model": "shapes",
    }
    assert answer["size"] == "128x128"
    assert "warnings" not in answer


def test_images_come_by_url_too(client: httpx.Client) -> None:
    body = {"prompt": "a red star", "seed": 7, "num_inference_steps": 2, "n": 2}
    both = generate(client, **body)
    assert len({item["url"] for item in both["data"]}) == 2
    for index, item in enumerate(both["data"]):
        file = httpx.get(item["url"])
        assert file.status_code == 200
        assert file.headers["content-type"] == "image/png"
        assert file.content == base64.b64decode(both["data"][index]["b64_json"])
    [by_url, _] = generate(client, **body, response_format="url")["data"]
    assert by_url.keys() == {"url", "seed"}
    [in_it, _] = generate(client, **body, response_format="b64_json")["data"]
    assert in_it.keys() == {"b64_json", "seed"}


def test_hints_and_other_programs_names_are_taken(client: httpx.Client) -> None:
    answer = generate(
        client, prompt="a red star", model="gpt-image-1", quality="high", steps=2.0, sampler_name="k_euler",
        width=64, height=96, seed=-1, user="somebody"
    )  # fmt: skip
    assert (answer["model"], answer["sampler"], answer["size"]) == ("shapes", "Euler", "64x96")
    assert answer["num_inference_steps"] == 2
    assert answer["data"][0]["seed"] >= 0
    assert "quality" not in answer
    [warning] = answer["warnings"]
    assert warning.startswith("quality: 'high' changes nothing")


def test_several_images_take_seeds_in_a_row(client: httpx.Client) -> None:
    prompt = "a white circle on a green background"
    answer = generate(client, prompt=prompt, seed=40, n=3, num_inference_steps=4)
    assert [item["seed"] for item in answer["data"]] == [40, 41, 42]
    alone = generate(client, prompt=prompt, seed=41, num_inference_steps=4)
    difference = np.asarray(picture(answer, 1)).astype(int) - np.asarray(picture(alone)).astype(int)
    assert np.abs(difference).max() <= 1
    assert answer["data"][0]["b64_json"] != answer["data"][1]["b64_json"]


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_other_sizes_and_formats(client: httpx.Client, output_format: str) -> None:
    answer = generate(
        client, prompt="a star", size="160x96", output_format=output_format, num_inference_steps=3
    )
    assert picture(answer).size == (160, 96)
    assert picture(answer).format == output_format.upper()


def test_sixteen_clients_at_once_share_forwards(base_url: str, metric: Metric) -> None:
    cases = evaluate.draw_cases(16, seed=3)
    samplers = ["DPM++ 2M", "Euler", "UniPC", "Heun"]
    count = "ray_midstep_forward_requests_count"
    before = settled(metric, count)

    async def one(client: httpx.AsyncClient, index: int) -> dict[str, Any]:
        body = {
            "prompt": cases[index].scene.prompt(),
            "seed": index,
            "sampler": samplers[index % 4],
            "num_inference_steps": 18 + index % 5,
        }
        response = await client.post(ROUTE, json=body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    async def everyone() -> list[dict[str, Any]]:
        async with httpx.AsyncClient(base_url=base_url, timeout=180) as client:
            return await asyncio.gather(*(one(client, index) for index in range(16)))

    answers = asyncio.run(everyone())
    verdicts = [
        evaluate.judge(case.scene, np.asarray(picture(answer)))
        for case, answer in zip(cases, answers, strict=True)
    ]
    assert sum(verdict.colour for verdict in verdicts) >= 13  # the model itself sometimes errs

    calls = sum({"Heun": 2 * (18 + i % 5) - 1}.get(samplers[i % 4], 18 + i % 5) for i in range(16))

    forwards = settled(metric, count) - before
    assert forwards > 0
    assert calls / forwards > 3, "requests in the mean forward"


def read_events(response: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]


def test_a_stream_gives_previews_in_order_and_then_the_image(client: httpx.Client) -> None:
    body = {"prompt": "a large yellow square on a black background", "seed": 5}
    with client.stream("POST", ROUTE, json=body | {"stream": True, "partial_images": 3}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = read_events(response)
    assert [event["type"] for event in events] == 3 * ["image_generation.partial_image"] + [
        "image_generation.completed"
    ]
    assert [event["partial_image_index"] for event in events[:3]] == [0, 1, 2]
    assert [event["step"] for event in events[:3]] == [5, 10, 15]
    pictures = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(event["b64_json"])))).astype(float)
        for event in events
    ]
    errors = [float(np.abs(preview - pictures[-1]).mean()) for preview in pictures[:3]]
    assert errors[2] <= errors[0]
    assert errors[2] < 40, "the last preview is near the image"
    plain = generate(client, **body)
    assert np.abs(np.asarray(picture(plain)).astype(float) - pictures[-1]).max() <= 1


def test_a_client_that_goes_away_frees_its_rows(base_url: str, client: httpx.Client, metric: Metric) -> None:
    """A client leaves in the middle of a stream, and while waiting for a plain answer."""
    count = "ray_midstep_forward_requests_count"
    long = {"prompt": "a star", "num_inference_steps": 100, "sampler": "Heun", "size": "256x256"}
    before = settled(metric, count)
    with client.stream("POST", ROUTE, json=long | {"stream": True, "partial_images": 3}) as response:
        next(response.iter_lines())
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(base_url + ROUTE, json=long, timeout=1.0)
    wait_for(lambda: metric("ray_midstep_denoising_requests") == 0)
    done = settled(metric, count)
    assert 0 < done - before < 199, "neither ran to its end"


def test_a_replica_that_dies_costs_time_and_not_the_image(client: httpx.Client) -> None:
    """The replica dies in the middle of a stream: the same picture comes, and no preview comes twice."""
    body = {"prompt": "a large white star on a purple background", "seed": 3, "num_inference_steps": 60}
    wanted = generate(client, **body, deterministic=True)
    streamed = body | {"deterministic": True, "stream": True, "partial_images": 3}
    events = []
    with client.stream("POST", ROUTE, json=streamed) as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                events.append(json.loads(line[6:]))
                if len(events) == 1:
                    # Like a lost machine, it is not drained.
                    ray.kill(replica("Denoiser"), no_restart=True)
    assert [event.get("partial_image_index") for event in events] == [0, 1, 2, None]
    assert events[-1]["b64_json"] == wanted["data"][0]["b64_json"]


def test_deterministic_images_are_the_same_bytes_alone_and_under_load(base_url: str) -> None:
    wanted = {
        "prompt": "a small red star above a blue circle on a white background",
        "seed": 9,
        "deterministic": True,
        "num_inference_steps": 6,
        "sampler": "DPM++ 2M SDE",
    }

    async def one(client: httpx.AsyncClient, body: dict[str, Any]) -> str:
        response = await client.post(ROUTE, json=body)
        assert response.status_code == 200, response.text
        data: str = response.json()["data"][0]["b64_json"]
        return data

    async def run() -> tuple[str, list[str]]:
        async with httpx.AsyncClient(base_url=base_url, timeout=180) as client:
            alone = await one(client, wanted)
            others = [
                wanted | {"seed": seed, "prompt": "a green square", "num_inference_steps": 9}
                for seed in range(5)
            ]
            plain = [{"prompt": "a star", "seed": seed} for seed in range(4)]
            tasks = [asyncio.create_task(one(client, body)) for body in others[:3] + plain]
            await asyncio.sleep(0.3)
            late = [asyncio.create_task(one(client, body)) for body in (wanted, others[3], wanted, others[4])]
            answers = await asyncio.gather(*tasks, *late)
            return alone, [answers[7], answers[9]]

    alone, under_load = asyncio.run(run())
    assert under_load == [alone, alone]


def test_a_long_prompt_is_cut_and_the_answer_says_so(client: httpx.Client) -> None:
    long = "a red star and " * 40
    answer = generate(client, prompt=long, negative_prompt=long, num_inference_steps=2)
    prompt, negative_prompt = answer["warnings"]
    assert prompt.startswith("prompt: has ")
    assert negative_prompt.startswith("negative_prompt: has ")
    assert "reads the first 77" in prompt
    assert answer["usage"]["input_tokens"] == 77


def test_the_syntax_of_other_programs_is_taken_literally_and_the_answer_says_so(client: httpx.Client) -> None:
    asked = {"prompt": "a (red:1.4) star", "negative_prompt": "blue BREAK green", "num_inference_steps": 2}
    prompt, negative_prompt = generate(client, **asked)["warnings"]
    assert prompt.startswith("prompt: '(red:1.4)' was taken literally")
    assert negative_prompt.startswith("negative_prompt: 'BREAK' was taken literally")
    with client.stream("POST", ROUTE, json=asked | {"stream": True}) as response:
        last = [line for line in response.iter_lines() if line.startswith("data: {")][-1]
    assert json.loads(last.removeprefix("data: "))["warnings"] == [prompt, negative_prompt]


def test_a_deadline_that_cannot_be_met_is_refused_with_the_time_it_takes(client: httpx.Client) -> None:
    response = client.post(ROUTE, json={"prompt": "a star", "num_inference_steps": 100, "deadline_s": 0.05})
    assert response.status_code == 422
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("deadline_too_early", "deadline_s")
    [left_s, takes_s] = map(float, re.findall(r"[\d.]+(?= s\b)", error["message"]))
    assert left_s <= 0.05 < takes_s


def test_a_deadline_that_passes_is_answered(client: httpx.Client) -> None:
    """The denoiser stands still, like a hanging device."""
    pid = ray.get(replica("Denoiser").__ray_call__.remote(lambda _: os.getpid()))
    os.kill(pid, signal.SIGSTOP)
    try:
        response = client.post(
            ROUTE, json={"prompt": "a star", "num_inference_steps": 1, "deadline_s": DEADLINE_S}
        )
    finally:
        os.kill(pid, signal.SIGCONT)
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "deadline_exceeded"


def test_a_full_queue_says_when_to_come_again(base_url: str) -> None:
    async def run() -> list[httpx.Response]:
        body = {"prompt": "a star", "n": 10, "num_inference_steps": 10}
        async with httpx.AsyncClient(base_url=base_url, timeout=180) as client:
            return await asyncio.gather(*(client.post(ROUTE, json=body) for _ in range(4)))

    answers = asyncio.run(run())
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) == 4 - MAX_QUEUE // 10
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert refused[0].json()["error"]["code"] == "queue_full"
    assert [answer.status_code for answer in answers].count(200) == MAX_QUEUE // 10


MALFORMED: list[bytes] = [
    b"",
    b" ",
    b"{",
    b"}",
    b"[]",
    b"null",
    b"true",
    b"5",
    b'"a star"',
    b"prompt=a+star",
    b"\x00\xff\xfe",
    b"[" * 5000,
    b'{"prompt": "\\ud800"}',
    b'{"prompt": "a", "prompt2": "b"}',
    b'{"prompt": "a" "n": 1}',
    b'{"prompt": "a", "seed": 1e999}',
    b'{"prompt": "a", "guidance_scale": NaN}',
    b'{"prompt": "a", "guidance_scale": 1e30}',
    b'{"prompt": "' + b"a" * 40000 + b'"}',
    b'{"prompt": "' + b"a" * (1 << 20) + b'"}',
    *(
        json.dumps(body).encode()
        for body in [
            {},
            {"prompt": None},
            {"prompt": 5},
            {"prompt": ["a"]},
            {"prompt": {"text": "a"}},
            {"prompt": ""},
            {"prompt": "a\x00"},
            {"prompt": "a", "n": 0},
            {"prompt": "a", "n": 10**30},
            {"prompt": "a", "n": 1.5},
            {"prompt": "a", "size": "1x1"},
            {"prompt": "a", "size": "99999999x99999999"},
            {"prompt": "a", "size": "128\u00d7128"},
            {"prompt": "a", "size": [128, 128]},
            {"prompt": "a", "seed": -2},
            {"prompt": "a", "seed": 2**64},
            {"prompt": "a", "num_inference_steps": 10**9},
            {"prompt": "a", "sampler": "../../etc/passwd"},
            {"prompt": "a", "output_format": "svg"},
            {"prompt": "a", "response_format": "svg"},
            {"prompt": "a", "background": "transparent"},
            {"prompt": "a", "steps": 5, "num_inference_steps": 6},
            {"prompt": "a", "stream": "yes"},
            {"prompt": "a", "deterministic": 1},
            {"prompt": "a", "deadline_s": -1},
            {"prompt": "a", "priority": "high"},
            {"prompt": "a", "model": "flux-dev"},
        ]
    ),
]


def test_malformed_bodies_are_refused_in_one_form(client: httpx.Client) -> None:
    assert len(MALFORMED) >= 40
    for body in MALFORMED:
        response = client.post(ROUTE, content=body, headers={"content-type": "application/json"})
        assert 400 <= response.status_code < 500, (body[:80], response.text)
        assert response.headers["content-type"] == "application/problem+json"
        assert response.headers["x-should-retry"] == "false"
        problem = response.json()
        assert problem["status"] == response.status_code
        assert problem["detail"] == problem["error"]["message"]
        assert len(problem["detail"]) > 10, body[:80]
        assert problem["error"]["code"] == problem["error_type"]
    assert generate(client, prompt="a star", num_inference_steps=1)


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nope", 404), ("GET", ROUTE, 405), ("POST", "/readyz", 405)]
)
def test_wrong_routes_too(client: httpx.Client, method: str, path: str, status: int) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    assert response.json()["status"] == status


def test_every_response_carries_one_request_id(client: httpx.Client) -> None:
    for path in ("/livez", "/readyz", "/v1/models", "/nope"):
        assert len(client.get(path).headers.get_list("x-request-id")) == 1
    response = client.post(ROUTE, content=b"{", headers={"x-request-id": "my-own-id"})
    assert response.headers["x-request-id"] == "my-own-id"


def test_the_openai_client_works(base_url: str) -> None:
    client = openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["shapes", "outlines"]
    prompt = "a large purple circle on a white background"
    answer = client.images.generate(
        model="shapes", prompt=prompt, n=2, size="128x128", extra_body={"seed": 3, "num_inference_steps": 10}
    )
    assert answer.data is not None
    assert [item.model_extra["seed"] for item in answer.data if item.model_extra] == [3, 4]
    assert answer.usage is not None
    assert answer.usage.input_tokens == 10
    first = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json or "")))
    first_file = base64.b64decode(answer.data[0].b64_json or "")
    background, seen = evaluate.look(np.asarray(first))
    assert (background, [it.colour for it in seen]) == ("white", ["purple"])

    stream = client.images.generate(prompt=prompt, stream=True, partial_images=2, extra_body={"seed": 3})
    kinds = [event.type for event in stream]
    assert kinds == 2 * ["image_generation.partial_image"] + ["image_generation.completed"]

    with pytest.raises(openai.BadRequestError) as refusal:
        client.images.generate(prompt=prompt, size="64x65")  # type: ignore[call-overload]
    assert refusal.value.param == "size"
    assert "multiples of 8" in refusal.value.message
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt=prompt, model="flux-dev")
    by_alias = client.images.generate(
        model="gpt-image-1",
        prompt=prompt,
        response_format="url",
        quality="hd",
        style="vivid",
        user="somebody",
        extra_body={"num_inference_steps": 2},
    )
    assert by_alias.data is not None
    assert httpx.get(by_alias.data[0].url or "").status_code == 200
    assert by_alias.data[0].b64_json is None
    assert client.models.retrieve("gpt-image-1").id == "shapes"
    edited = client.images.edit(image=first_file, prompt=prompt, extra_body={"num_inference_steps": 4})
    assert edited.data is not None
    assert Image.open(io.BytesIO(base64.b64decode(edited.data[0].b64_json or ""))).size == (128, 128)
    assert scenes.IMAGE_SIZE == 128
