"""Replicate's Python client, version 2."""

import asyncio
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import replicate
from pictures import PROMPT, SIZE, fetched, is_repainted, png, png_mask, size_of

MODEL = "midstep/shapes"
FEW = {"prompt": PROMPT, "num_inference_steps": 2}
LONG = {"prompt": PROMPT, "num_inference_steps": 100, "num_outputs": 8}


@pytest.fixture
def client(url: str) -> Iterator[replicate.Replicate]:
    with replicate.Replicate(bearer_token="any", base_url=f"{url}/v1", max_retries=0) as client:
        yield client


def assert_pictures(outputs: Any, count: int = 1) -> None:
    assert [size_of(fetched(str(output))) for output in outputs] == [SIZE] * count


@pytest.mark.parametrize("model", [MODEL, f"{MODEL}:shapes"])
def test_run(client: replicate.Replicate, model: str) -> None:
    assert_pictures(client.run(model, input=FEW | {"num_outputs": 2}), 2)


@pytest.mark.parametrize("wait", [False, 1, 60])
def test_run_and_wait(client: replicate.Replicate, wait: Any) -> None:
    assert_pictures(client.run(MODEL, input=FEW, wait=wait))


def test_use(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module's function: the client's own method hands itself on where it needs its class."""
    monkeypatch.setenv("REPLICATE_BASE_URL", f"{url}/v1")
    monkeypatch.setenv("REPLICATE_API_TOKEN", "any")
    [path] = replicate.use(MODEL)(**FEW)
    assert size_of(Path(path).read_bytes()) == SIZE


def test_run_asynchronously(url: str) -> None:
    async def run() -> Any:
        async with replicate.AsyncReplicate(bearer_token="any", base_url=f"{url}/v1") as client:
            return await client.run(MODEL, input=FEW)

    assert_pictures(asyncio.run(run()))


def test_run_configured_by_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLICATE_BASE_URL", f"{url}/v1")
    monkeypatch.setenv("REPLICATE_API_TOKEN", "any")
    with replicate.Replicate() as client:
        assert_pictures(client.run(MODEL, input=FEW))


def test_the_base_url_may_lack_v1(url: str) -> None:
    with replicate.Replicate(bearer_token="any", base_url=url) as client:
        assert_pictures(client.run(MODEL, input=FEW))


def test_predictions(client: replicate.Replicate) -> None:
    created = client.predictions.create(version="shapes", input=FEW)
    assert created.status in ("starting", "processing", "succeeded")
    prediction = client.predictions.wait(created.id)
    assert prediction.status == "succeeded"
    assert_pictures(prediction.output)
    assert client.predictions.get(prediction_id=created.id).output == prediction.output
    assert created.id in [one.id for one in client.predictions.list()]


def test_a_models_predictions(client: replicate.Replicate) -> None:
    created = client.models.predictions.create(
        model_owner="midstep", model_name="shapes", input=FEW, prefer="wait"
    )
    assert created.status == "succeeded"
    assert_pictures(created.output)


def test_cancel(client: replicate.Replicate) -> None:
    created = client.predictions.create(version="shapes", input=LONG)
    assert client.predictions.cancel(prediction_id=created.id).status == "canceled"
    assert client.predictions.wait(created.id).status == "canceled"


def test_models(client: replicate.Replicate) -> None:
    listed = [(model.owner, model.name) for model in client.models.list()]
    assert listed == [("midstep", "shapes"), ("midstep", "outlines")]
    model = client.models.get(model_owner="midstep", model_name="shapes")
    assert model.latest_version is not None
    names = {"model_owner": "midstep", "model_name": "shapes"}
    assert [version.id for version in client.models.versions.list(**names)] == ["shapes"]
    assert client.models.versions.get(version_id="shapes", **names).id == "shapes"
    with pytest.raises(replicate.NotFoundError, match="not served here"):
        client.models.get(model_owner="stability-ai", model_name="sdxl")


def test_files(client: replicate.Replicate) -> None:
    given = client.files.create(content=("red.png", png(), "image/png"))
    assert (given.content_type, given.size) == ("image/png", len(png()))
    assert fetched(given.urls.get) == png()
    assert client.files.get(file_id=given.id).checksums.sha256 == given.checksums.sha256
    assert given.id in [file.id for file in client.files.list()]
    client.files.delete(file_id=given.id)
    with pytest.raises(replicate.NotFoundError, match="There is no file"):
        client.files.get(file_id=given.id)


def test_a_file_of_bytes_alone(client: replicate.Replicate) -> None:
    assert client.files.create(content=png()).size == len(png())


@pytest.mark.parametrize("strategy", ["url", "base64"])
def test_a_picture_and_a_mask_in_the_input(client: replicate.Replicate, strategy: Any) -> None:
    """They are uploaded, or put into the body."""
    given = FEW | {
        "image": io.BytesIO(png()),
        "mask": io.BytesIO(png_mask()),
        "preserve_unmasked": True,
    }
    [output] = client.run(MODEL, input=given, file_encoding_strategy=strategy)
    assert is_repainted(fetched(str(output))) == (False, True)


def test_an_output_is_the_input_of_another(client: replicate.Replicate) -> None:
    [first] = client.run(MODEL, input=FEW)
    again = FEW | {"image": str(first), "prompt_strength": 0.5}
    assert_pictures(client.run(MODEL, input=again))


def test_account_and_hardware(client: replicate.Replicate) -> None:
    assert client.account.get().type == "user"
    assert [hardware.sku for hardware in client.hardware.list()] == ["cpu"]


def test_the_secret_of_webhooks_is_told_to_clients_with_keys(client: replicate.Replicate) -> None:
    with pytest.raises(replicate.PermissionDeniedError, match="api_keys"):
        client.webhooks.default.secret.get()


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
    client: replicate.Replicate, given: dict[str, Any], field: str
) -> None:
    with pytest.raises(replicate.UnprocessableEntityError, match=re.escape(field)):
        client.run(MODEL, input=FEW | given)


@pytest.mark.parametrize("name", ["collections", "deployments", "trainings"])
def test_what_there_is_none_of_is_refused_in_a_sentence(client: replicate.Replicate, name: str) -> None:
    with pytest.raises(replicate.NotFoundError, match=f"There is nothing at /v1/{name}"):
        getattr(client, name).list()
