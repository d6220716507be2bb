"""Replicate's Python client, version 1."""

import asyncio
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import replicate
from pictures import PROMPT, SIZE, fetched, is_repainted, png, png_mask, size_of
from replicate.exceptions import ModelError, ReplicateError
from replicate.stream import ServerSentEvent

MODEL = "midstep/shapes"
FEW = {"prompt": PROMPT, "num_inference_steps": 2}
LONG = {"prompt": PROMPT, "num_inference_steps": 100, "num_outputs": 8}


@pytest.fixture
def client(url: str) -> Iterator[replicate.Client]:
    client = replicate.Client(api_token="any", base_url=url)
    yield client
    client._client.close()  # it has no method for this


def assert_pictures(outputs: Any, count: int = 1) -> None:
    assert [size_of(fetched(str(output))) for output in outputs] == [SIZE] * count


@pytest.mark.parametrize("model", [MODEL, f"{MODEL}:shapes"])
def test_run(client: replicate.Client, model: str) -> None:
    assert_pictures(client.run(model, input=FEW | {"num_outputs": 2}), 2)


@pytest.mark.parametrize("wait", [False, 1, 60])
def test_run_and_wait(client: replicate.Client, wait: Any) -> None:
    assert_pictures(client.run(MODEL, input=FEW, wait=wait))


def test_run_asynchronously(client: replicate.Client) -> None:
    async def run() -> Any:
        outputs = await client.async_run(MODEL, input=FEW)
        await client._async_client.aclose()
        return outputs

    assert_pictures(asyncio.run(run()))


def test_run_configured_by_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLICATE_BASE_URL", url)
    monkeypatch.setenv("REPLICATE_API_TOKEN", "any")
    assert_pictures(replicate.Client().run(MODEL, input=FEW))


def test_stream(client: replicate.Client) -> None:
    kinds = ServerSentEvent.EventType
    events = list(client.stream(MODEL, input=FEW))
    assert_pictures(event.data for event in events if event.event is kinds.OUTPUT)
    assert events[-1].event is kinds.DONE


def test_predictions(client: replicate.Client) -> None:
    prediction = client.predictions.create(version="shapes", input=FEW)
    assert prediction.status in ("starting", "processing", "succeeded")
    prediction.wait()
    assert prediction.status == "succeeded"
    assert_pictures(prediction.output)
    assert prediction.progress is not None
    assert prediction.progress.percentage == 1.0
    assert client.predictions.get(prediction.id).output == prediction.output
    assert prediction.id in [one.id for one in client.predictions.list()]


@pytest.mark.parametrize("model", [MODEL, ("midstep", "shapes")], ids=str)
def test_a_models_predictions(client: replicate.Client, model: Any) -> None:
    prediction = client.models.predictions.create(model=model, input=FEW)
    prediction.wait()
    assert_pictures(prediction.output)


def test_pages_of_predictions(client: replicate.Client) -> None:
    for _ in range(2):
        client.predictions.create(version="shapes", input=FEW, wait=True)
    page = client.predictions.list()
    while page.next:
        page = client.predictions.list(page.next)
    assert page.results


def test_predictions_asynchronously(client: replicate.Client) -> None:
    async def run() -> Any:
        prediction = await client.predictions.async_create(version="shapes", input=FEW)
        await prediction.async_wait()
        await client._async_client.aclose()
        return prediction.output

    assert_pictures(asyncio.run(run()))


def test_cancel(client: replicate.Client) -> None:
    prediction = client.predictions.create(version="shapes", input=LONG)
    prediction.cancel()
    assert prediction.status == "canceled"
    prediction.reload()
    assert prediction.status == "canceled"
    assert client.predictions.cancel(prediction.id).status == "canceled"


def test_models(client: replicate.Client) -> None:
    listed = [(model.owner, model.name) for model in client.models.list()]
    assert listed == [("midstep", "shapes"), ("midstep", "outlines")]
    model = client.models.get(MODEL)
    assert model.latest_version is not None
    assert [version.id for version in model.versions.list()] == ["shapes"]
    assert model.versions.get("shapes") == model.latest_version
    assert_pictures(client.run(model, input=FEW))
    assert_pictures(client.run(model.latest_version, input=FEW))
    with pytest.raises(ReplicateError, match="not served here"):
        client.models.get("stability-ai/sdxl")


def test_files(client: replicate.Client, tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png())
    given = client.files.create(tmp_path / "red.png", metadata={"order": 7})
    assert (given.name, given.content_type, given.size) == ("red.png", "image/png", len(png()))
    assert given.metadata == {"order": 7}
    assert fetched(given.urls["get"]) == png()
    assert client.files.get(given.id).checksums == given.checksums
    assert given.id in [file.id for file in client.files.list()]
    assert client.files.delete(given.id)
    with pytest.raises(ReplicateError, match="There is no file"):
        client.files.get(given.id)


def test_files_asynchronously(client: replicate.Client) -> None:
    async def run() -> None:
        given = await client.files.async_create(io.BytesIO(png()), filename="red.png")
        assert (await client.files.async_get(given.id)).size == len(png())
        assert given.id in [file.id for file in await client.files.async_list()]
        assert await client.files.async_delete(given.id)
        await client._async_client.aclose()

    asyncio.run(run())


@pytest.mark.parametrize("strategy", ["url", "base64"])
def test_a_picture_and_a_mask_in_the_input(client: replicate.Client, strategy: Any) -> None:
    """They are uploaded, or put into the body."""
    given = FEW | {
        "image": io.BytesIO(png()),
        "mask": io.BytesIO(png_mask()),
        "preserve_unmasked": True,
    }
    [output] = client.run(MODEL, input=given, file_encoding_strategy=strategy)
    assert is_repainted(fetched(str(output))) == (False, True)


def test_an_output_is_the_input_of_another(client: replicate.Client) -> None:
    [first] = client.run(MODEL, input=FEW)
    again = FEW | {"image": str(first), "prompt_strength": 0.5}
    assert_pictures(client.run(MODEL, input=again))


def test_account_and_hardware(client: replicate.Client) -> None:
    assert client.accounts.current().type == "user"
    assert [hardware.sku for hardware in client.hardware.list()] == ["cpu"]


def test_the_secret_of_webhooks_is_told_to_clients_with_keys(client: replicate.Client) -> None:
    with pytest.raises(ReplicateError, match=r"api_keys") as refusal:
        client.webhooks.default.secret()
    assert refusal.value.status == 403


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"num_inference_steps": 0}, "input.num_inference_steps"),
        ({"width": 4096}, "input.width"),
        ({"nonsense": 1}, "input.nonsense"),
        ({"scheduler": "Nonsense"}, "input.scheduler"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_by_name(
    client: replicate.Client, given: dict[str, Any], field: str
) -> None:
    with pytest.raises(ReplicateError, match=re.escape(field)) as refusal:
        client.run(MODEL, input=FEW | given)
    assert not isinstance(refusal.value, ModelError)
    assert refusal.value.status == 422


@pytest.mark.parametrize("name", ["collections", "deployments", "trainings"])
def test_what_there_is_none_of_is_refused_in_a_sentence(client: replicate.Client, name: str) -> None:
    with pytest.raises(ReplicateError, match=f"There is nothing at /v1/{name}") as refusal:
        getattr(client, name).list()
    assert refusal.value.status == 404
