"""A1111's progress, interrupt and skip: of requests under way, which fakes hold up."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from deployments.engine.messages import EncodedImage, Picture, TokenCount
from serve.calls.pipeline import FROM_THE_START
from serve.errors import GenerationFailedError
from serve.generation import (
    GenerationEvent,
    GenerationRequest,
    ImageDone,
    ImagePreview,
    PromptEncoded,
    Resume,
)
from serve.http.a1111.running import Run
from serve.http.front_desk import Generation
from tests.generation_requests import generation_request
from tests.job_stores import in_loop
from tests.picture_files import file_of, picture
from tests.unit.test_authentication import ALICE, API_KEYS, BOB, InstantPipeline, by, serving

TXT2IMG, PROGRESS = "/sdapi/v1/txt2img", "/sdapi/v1/progress"
BODY = {"prompt": "a red star", "n_iter": 2, "steps": 10, "seed": 5, "cfg_scale": 7}
PREVIEW = EncodedImage(file_of(picture(128, 128), "JPEG"), "image/jpeg", 128, 128)


class Held:
    """Makes the first image at once and a preview of the second one, and then waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on = asyncio.Event()
        self.is_waiting = asyncio.Event()
        self.num_canceled = 0
        held = self

        async def generate(
            _: InstantPipeline,
            request: GenerationRequest,
            picture: Picture | None = None,
            resume: Resume = FROM_THE_START,
        ) -> AsyncGenerator[GenerationEvent, None]:
            yield PromptEncoded(TokenCount(100, 77), TokenCount(0, 0))
            yield ImageDone(0, request.seed, EncodedImage(b"first", "image/png", 128, 128))
            yield ImagePreview(1, 0, 2, PREVIEW)
            yield ImagePreview(1, 1, 4, PREVIEW)
            held.is_waiting.set()
            try:
                await held.go_on.wait()
            except asyncio.CancelledError:
                held.num_canceled += 1
                raise
            if request.prompt == "a fault":
                raise GenerationFailedError("It is broken.")
            yield ImageDone(1, request.seed + 1, EncodedImage(b"second", "image/png", 128, 128))

        monkeypatch.setattr(InstantPipeline, "generate", generate)

    async def begun(
        self, client: httpx.AsyncClient, headers: dict[str, str] | None = None, **body: Any
    ) -> "asyncio.Task[httpx.Response]":
        self.is_waiting.clear()
        task = asyncio.create_task(client.post(TXT2IMG, json=BODY | body, headers=headers))
        await asyncio.wait_for(self.is_waiting.wait(), 60)
        return task


async def progress(client: httpx.AsyncClient, headers: dict[str, str] | None = None, **params: Any) -> Any:
    answer = await client.get(PROGRESS, params=params, headers=headers)
    assert answer.status_code == 200
    return answer.json()


@in_loop
async def test_progress_tells_the_steps_and_shows_the_latest_preview(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    async with serving(tmp_path, []) as client:
        idle = await progress(client)
        assert (idle["progress"], idle["eta_relative"], idle["current_image"]) == (0, 0, None)
        assert (idle["state"]["job_count"], idle["state"]["job"]) == (0, "")
        task = await held.begun(client)
        shown = await progress(client)
        assert shown["progress"] == pytest.approx(0.71), "14 of 20 steps, and A1111's hundredth"
        assert shown["eta_relative"] > 0
        state = shown["state"]
        assert (state["job"], state["job_count"], state["job_no"]) == ("scripts_txt2img", 1, 0)
        assert (state["sampling_step"], state["sampling_steps"]) == (7, 10)
        assert len(state["job_timestamp"]) == 14
        assert base64.b64decode(shown["current_image"]) == PREVIEW.data
        for given in ("true", "True", "1"):
            assert (await progress(client, skip_current_image=given))["current_image"] is None
        assert (await progress(client, skip_current_image="false"))["current_image"] is not None
        held.go_on.set()
        answer = (await task).json()
        assert [base64.b64decode(one) for one in answer["images"]] == [b"first", b"second"]
        assert answer["warnings"][0].startswith(
            "prompt: has 100 tokens, of which the model reads the first 77"
        )
        after = await progress(client)
        assert (after["progress"], after["state"]["job_count"], held.num_canceled) == (0, 0, 0)


@pytest.mark.parametrize("call", ["interrupt", "skip"])
@in_loop
async def test_what_is_ended_early_is_answered_as_far_as_it_is(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    async with serving(tmp_path, []) as client:
        (await client.post(f"/sdapi/v1/{call}")).raise_for_status()  # nothing runs
        task = await held.begun(client)
        ended = await client.post(f"/sdapi/v1/{call}")
        assert (ended.status_code, ended.json()) == (200, {})
        answer = (await task).json()
        assert held.num_canceled == 1
        info = json.loads(answer["info"])
        assert info["interrupted"] is True
        assert info["all_seeds"] == [5, 6]
        first, half = (base64.b64decode(one) for one in answer["images"])
        assert first == b"first"
        image = Image.open(io.BytesIO(half))
        assert (image.format, image.size) == ("PNG", (128, 128))
        assert image.info["interrupted"] == "4 of 10 steps"
        assert image.info["parameters"] == info["infotexts"][1]
        assert "Seed: 6" in info["infotexts"][1]
        assert info["infotexts"][1].endswith("Interrupted: 4 of 10 steps")
        assert "Interrupted" not in info["infotexts"][0]
        idle = await progress(client)
        flags = idle["state"]["interrupted"], idle["state"]["skipped"]
        assert (idle["progress"], *flags) == (0, call == "interrupt", call == "skip")
        held.go_on.set()
        next_one = (await (await held.begun(client))).json()
        assert len(next_one["images"]) == 2
        assert not (await progress(client))["state"]["interrupted"]


@in_loop
async def test_skip_ends_the_newest_and_interrupt_all_but_those_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    async with serving(tmp_path, API_KEYS) as client:
        of_bob = await held.begun(client, by(BOB), steps=2)
        older, newer = [await held.begun(client, by(ALICE), steps=steps) for steps in (5, 4)]
        for key, steps in ((ALICE, 4), (BOB, 2)):
            assert (await progress(client, by(key)))["state"]["sampling_steps"] == steps
        (await client.post("/sdapi/v1/skip", headers=by(ALICE))).raise_for_status()
        assert (await newer).status_code == 200
        assert not older.done()
        assert (await progress(client, by(ALICE)))["state"]["sampling_steps"] == 5
        (await client.post("/sdapi/v1/interrupt", headers=by(ALICE))).raise_for_status()
        assert (await older).status_code == 200
        assert not of_bob.done()
        held.go_on.set()
        assert "interrupted" not in json.loads((await of_bob).json()["info"])


@in_loop
async def test_a_fault_is_a_fault_and_a_client_that_leaves_cancels_its_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    async with serving(tmp_path, []) as client:
        task = await held.begun(client, prompt="a fault")
        held.go_on.set()
        answer = await task
        assert (answer.status_code, answer.json()["detail"]) == (500, "It is broken.")
        assert (await progress(client))["state"]["job_count"] == 0
        held.go_on.clear()
        task = await held.begun(client)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert held.num_canceled == 1
        assert (await progress(client))["state"]["job_count"] == 0


@in_loop
async def test_without_previews_there_is_less_to_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def generate(
        _: InstantPipeline, request: GenerationRequest, *__: object
    ) -> AsyncGenerator[GenerationEvent, None]:
        waiting.set()
        await asyncio.Event().wait()
        yield PromptEncoded(TokenCount(1, 1), TokenCount(0, 0))

    waiting = asyncio.Event()
    monkeypatch.setattr(InstantPipeline, "generate", generate)
    async with serving(tmp_path, []) as client:
        task = asyncio.create_task(client.post(TXT2IMG, json=BODY))
        await waiting.wait()
        shown = await progress(client)
        assert (shown["progress"], shown["current_image"]) == (0.01, None)
        assert shown["eta_relative"] == pytest.approx(2.0), "the work of both images"
        (await client.post("/sdapi/v1/interrupt")).raise_for_status()
        answer = await task
        assert (answer.status_code, answer.json()["images"]) == (200, [])


@in_loop
async def test_a_generation_that_is_canceled_by_others_is_no_answer() -> None:
    async def canceled() -> AsyncGenerator[GenerationEvent, None]:
        yield ImagePreview(0, 0, 2, PREVIEW)
        raise asyncio.CancelledError

    request = generation_request()
    with pytest.raises(asyncio.CancelledError):
        await Run(request, "scripts_txt2img").follow(Generation(request, canceled(), ExitStack()))
