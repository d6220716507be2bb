"""OpenAI's Python client, and its own tests of images."""

import asyncio
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from pictures import (
    PROMPT,
    SIZE,
    decoded,
    fetched,
    format_of,
    is_repainted,
    png,
    png_mask,
    size_of,
)

FEW = {"num_inference_steps": 2}
MANY = {"num_inference_steps": 100}
PARTIAL, COMPLETED = "image_generation.partial_image", "image_generation.completed"


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


def generate(client: openai.OpenAI, extra: dict[str, Any] | None = None, **given: Any) -> Any:
    return client.images.generate(prompt=PROMPT, **given, extra_body=FEW | (extra or {}))


def test_a_plain_answer_has_the_picture_and_its_url(client: openai.OpenAI) -> None:
    answer = generate(client, n=2, extra={"seed": 3})
    for item in answer.data:
        assert size_of(decoded(item.b64_json)) == SIZE
        assert fetched(item.url) == decoded(item.b64_json)
    assert [item.seed for item in answer.data] == [3, 4]
    assert answer.usage.input_tokens == 9
    assert (answer.size, answer.quality, answer.output_format) == ("128x128", None, "png")


def test_url(client: openai.OpenAI) -> None:
    [item] = generate(client, response_format="url").data
    assert item.b64_json is None
    assert size_of(fetched(item.url)) == SIZE


def test_b64_json(client: openai.OpenAI) -> None:
    [item] = generate(client, response_format="b64_json").data
    assert item.url is None
    assert size_of(decoded(item.b64_json)) == SIZE


TAKEN = [
    *(
        {"model": name}
        for name in ("shapes", "default", "gpt-image-1", "gpt-image-1-mini", "dall-e-2", "dall-e-3")
    ),
    *({"n": value} for value in (1, 2)),
    *({"size": value} for value in ("auto", "256x256", "96x160")),
    *({"quality": value} for value in ("auto", "standard")),
    *({"background": value} for value in ("auto", "opaque")),
    *({"output_format": value} for value in ("png", "jpeg", "webp")),
    *({"output_format": "jpeg", "output_compression": value} for value in (0, 50, 100)),
    {"moderation": "auto"},
    {"user": "user-1234"},
    {"safety_identifier": "user-1234"},
    {"stream": False},
]
NULLABLE = [
    "background",
    "model",
    "moderation",
    "n",
    "output_compression",
    "output_format",
    "partial_images",
    "quality",
    "response_format",
    "size",
    "stream",
    "style",
]


@pytest.mark.parametrize("given", TAKEN, ids=str)
def test_a_field_is_taken(client: openai.OpenAI, given: dict[str, Any]) -> None:
    answer = generate(client, **given)
    assert len(answer.data) == given.get("n", 1)
    assert "warnings" not in answer.model_extra
    picture = decoded(answer.data[0].b64_json)
    assert format_of(picture) == given.get("output_format", "png").upper()
    if "x" in given.get("size", ""):
        assert "{}x{}".format(*size_of(picture)) == given["size"]


@pytest.mark.parametrize("field", NULLABLE)
def test_null_is_as_if_absent(client: openai.OpenAI, field: str) -> None:
    answer = generate(client, **{field: None})
    assert size_of(decoded(answer.data[0].b64_json)) == SIZE
    assert "warnings" not in answer.model_extra


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("quality", value) for value in ("low", "medium", "high", "hd")),
        *(("style", value) for value in ("vivid", "natural")),
        ("moderation", "low"),
    ],
)
def test_a_hint_that_changes_nothing_is_told_of(client: openai.OpenAI, field: str, value: str) -> None:
    answer = generate(client, **{field: value})
    assert size_of(decoded(answer.data[0].b64_json)) == SIZE
    [warning] = answer.model_extra["warnings"]
    assert warning.startswith(f"{field}: '{value}' changes nothing")


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"size": "1024x1024"}, "size"),
        ({"size": "64x65"}, "size"),
        ({"background": "transparent"}, "background"),
        ({"output_format": "gif"}, "output_format"),
        ({"stream": True, "partial_images": 4}, "partial_images"),
        ({"frame_count": 2}, "frame_count"),
        ({"extra": {"nonsense": 1}}, "nonsense"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_by_name(
    client: openai.OpenAI, given: dict[str, Any], field: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        generate(client, **given)
    assert refusal.value.param == field
    assert f"{field}: " in refusal.value.message
    assert refusal.value.request_id


@pytest.mark.parametrize("previews", [0, 1, 2, 3])
def test_a_stream(client: openai.OpenAI, previews: int) -> None:
    with client.images.generate(
        prompt=PROMPT, stream=True, partial_images=previews, extra_body={"num_inference_steps": 8}
    ) as stream:
        events = list(stream)
    assert [event.type for event in events] == previews * [PARTIAL] + [COMPLETED]
    assert all(size_of(decoded(event.b64_json)) == SIZE for event in events)
    assert events[-1].usage.input_tokens == 9


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["shapes", "outlines"]
    assert client.models.retrieve("shapes").object == "model"
    assert client.models.retrieve("gpt-image-1").id == "shapes"
    with pytest.raises(openai.NotFoundError, match="is not served here; 'shapes', 'outlines' are"):
        client.models.retrieve("sdxl")


def test_a_model_that_is_not_served(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="is not served here; 'shapes', 'outlines' are") as refusal:
        generate(client, model="sdxl")
    assert (refusal.value.param, refusal.value.code) == ("model", "model_not_found")


def test_an_edit_starts_from_the_picture(client: openai.OpenAI) -> None:
    answer = client.images.edit(image=("red.png", png()), prompt=PROMPT, n=2, extra_body=FEW)
    assert answer.data is not None
    assert [size_of(decoded(item.b64_json)) for item in answer.data] == [SIZE, SIZE]


@pytest.mark.parametrize("image", [png(), [png()], ("red.png", io.BytesIO(png()), "image/png")], ids=type)
def test_a_mask_says_what_is_repainted(client: openai.OpenAI, image: Any) -> None:
    extra = FEW | {"preserve_unmasked": True}
    for mask in (png_mask(), png_mask(of_openai=True)):
        answer = client.images.edit(image=image, mask=mask, prompt=PROMPT, extra_body=extra)
        assert answer.data is not None
        assert is_repainted(decoded(answer.data[0].b64_json)) == (False, True)


def test_an_edit_is_streamed(client: openai.OpenAI) -> None:
    events = client.images.edit(
        image=png(),
        mask=png_mask(),
        prompt=PROMPT,
        stream=True,
        partial_images=1,
        extra_body={"num_inference_steps": 6},
    )
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]


def test_a_variation(client: openai.OpenAI) -> None:
    answer = client.images.create_variation(
        image=png(), n=2, size="256x256", response_format="url", extra_body=FEW
    )
    assert answer.data is not None
    assert [size_of(fetched(item.url)) for item in answer.data] == [(256, 256)] * 2


def test_an_edit_of_several_pictures_is_refused_by_name(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="2 pictures were given") as refusal:
        client.images.edit(image=[png(), png()], prompt=PROMPT)
    assert refusal.value.param == "image[]"
    with pytest.raises(openai.APIStatusError, match="no PNG, JPEG or WebP file"):
        client.images.edit(image=b"Example data", prompt=PROMPT)


def test_the_base_url_may_lack_v1(url: str) -> None:
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0) as client:
        assert size_of(decoded(generate(client).data[0].b64_json)) == SIZE
        assert [model.id for model in client.models.list()] == ["shapes", "outlines"]


def test_it_is_configured_by_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    with openai.OpenAI() as client:
        assert size_of(decoded(generate(client).data[0].b64_json)) == SIZE


def test_raw_and_streaming_responses(client: openai.OpenAI) -> None:
    raw = client.images.with_raw_response.generate(prompt=PROMPT, extra_body=FEW)
    assert raw.headers["x-request-id"]
    assert size_of(decoded(raw.parse().data[0].b64_json)) == SIZE
    with client.images.with_streaming_response.generate(prompt=PROMPT, extra_body=FEW) as response:
        assert size_of(decoded(response.parse().data[0].b64_json)) == SIZE


def test_asynchronously(url: str) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any") as client:
            answers = await asyncio.gather(
                *(client.images.generate(prompt=PROMPT, extra_body=FEW) for _ in range(3))
            )
            assert all(size_of(decoded(answer.data[0].b64_json)) == SIZE for answer in answers)
            stream = await client.images.generate(
                prompt=PROMPT, stream=True, partial_images=1, extra_body={"num_inference_steps": 6}
            )
            assert [event.type async for event in stream] == [PARTIAL, COMPLETED]
            assert [model.id async for model in client.models.list()] == ["shapes", "outlines"]

    asyncio.run(run())


def test_its_time_out(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).images.generate(prompt=PROMPT, n=8, size="256x256", extra_body=MANY)


def test_a_full_queue_says_when_to_come_again(url: str) -> None:
    """More requests than our queue has room for. Accepted ones leave at once."""

    async def run() -> openai.RateLimitError:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
            tasks = [
                asyncio.create_task(client.images.generate(prompt=PROMPT, n=10, extra_body=MANY))
                for _ in range(40)
            ]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert done
        return next(one for one in outcomes if isinstance(one, openai.RateLimitError))

    refusal = asyncio.run(run())
    assert refusal.code == "queue_full"
    assert int(refusal.response.headers["retry-after"]) > 0


def test_its_own_tests(url: str) -> None:
    """The client's tests that set all fields at once also ask for animation and vector graphics."""
    [sources] = (Path(sys.prefix) / "unpacked").iterdir()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "--override-ini=addopts=", "--tb=short"),
            *("-k", "generate and not all_params", "tests/api_resources/test_images.py"),
        ],
        cwd=sources,
        env=os.environ | {"TEST_API_BASE_URL": f"{url}/v1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert "30 passed" in done.stdout
