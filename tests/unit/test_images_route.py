"""Plain answers of the images route, over HTTP but without Ray: images by URL, hints, fields not offered."""

import asyncio
import base64
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from serve.errors import ObjectStoreUnavailableError, StorageFullError
from serve.jobs.objects import ObjectStore
from tests.job_stores import in_loop
from tests.unit.test_authentication import IMAGES, serving

BODY = {"prompt": "a red star", "n": 3, "seed": 5}


async def asked(client: httpx.AsyncClient, **body: Any) -> Any:
    answer = await client.post(IMAGES, json=BODY | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refuse_to_store(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    async def put(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(ObjectStore, "put", put)


@in_loop
async def test_images_come_as_they_are_asked_for(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        both = (await asked(client))["data"]
        assert [item["seed"] for item in both] == [5, 6, 7]
        assert len({item["url"] for item in both}) == 3
        for item in both:
            assert item["url"].startswith("http://midstep/v1/files/answers/")
            file = await client.get(item["url"])
            assert (file.status_code, file.content) == (200, base64.b64decode(item["b64_json"]))
        by_url = (await asked(client, response_format="url"))["data"]
        assert [sorted(item) for item in by_url] == 3 * [["seed", "url"]]
        assert (await client.get(by_url[1]["url"])).content == b"image"
        in_it = (await asked(client, response_format="b64_json"))["data"]
        assert [sorted(item) for item in in_it] == 3 * [["b64_json", "seed"]]
        assert len(list((tmp_path / "objects" / "answers").iterdir())) == 6, "nothing is stored for the last"


@in_loop
async def test_urls_are_as_clients_reach_the_server(tmp_path: Path) -> None:
    async with serving(tmp_path, [], public_url="https://pictures.example/") as client:
        [one, *_] = (await asked(client))["data"]
        assert one["url"].startswith("https://pictures.example/v1/files/answers/")


@in_loop
async def test_where_nothing_is_kept_there_are_no_urls(tmp_path: Path) -> None:
    async with serving(tmp_path, [], answer_retention_s=0) as client:
        assert all("url" not in item for item in (await asked(client))["data"])
        refused = await client.post(IMAGES, json=BODY | {"response_format": "url"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "response_format")
        assert "jobs.answer_retention_s is 0" in refused.json()["detail"]
        assert not (tmp_path / "objects" / "answers").exists()


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (StorageFullError("No room."), 507, "storage_full"),
        (ObjectStoreUnavailableError("Away."), 503, "object_store_unavailable"),
    ],
)
@in_loop
async def test_what_cannot_be_stored_is_an_error_only_for_whoever_wants_urls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, code: str
) -> None:
    async with serving(tmp_path, []) as client:
        refuse_to_store(monkeypatch, error)
        failed = await client.post(IMAGES, json=BODY | {"response_format": "url"})
        assert (failed.status_code, failed.json()["error_type"]) == (status, code)
        assert [sorted(item) for item in (await asked(client))["data"]] == 3 * [["b64_json", "seed"]]


@in_loop
async def test_a_store_that_hangs_holds_up_nobody_who_wants_no_urls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def put(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("serve.http.openai.answer_images._PATIENCE_S", 0.01)
    async with serving(tmp_path, []) as client:
        monkeypatch.setattr(ObjectStore, "put", put)
        assert [sorted(item) for item in (await asked(client))["data"]] == 3 * [["b64_json", "seed"]]


@in_loop
async def test_openais_client_gets_its_answers(tmp_path: Path) -> None:
    """Answers have all fields of its types, with values that the types allow."""
    async with serving(tmp_path, []) as http_client:
        client = openai.AsyncOpenAI(
            base_url="http://midstep/v1", api_key="none", max_retries=0, http_client=http_client
        )
        answer = await client.images.generate(
            prompt="a red star",
            model=None,
            n=1,
            size="auto",
            quality="high",
            style="natural",
            moderation="low",
            background="opaque",
            output_format="jpeg",
            output_compression=90,
            response_format="url",
            complexity="low",
            user="somebody",
            safety_identifier="somebody",
        )
        assert answer.data is not None
        assert (answer.quality, answer.background, answer.output_format) == (None, "opaque", "jpeg")
        assert answer.model_extra is not None
        assert [sentence.partition(":")[0] for sentence in answer.model_extra["warnings"]] == [
            "quality",
            "complexity",
            "style",
            "moderation",
        ]
        with pytest.raises(openai.APIStatusError, match="no PNG, JPEG or WebP file"):
            await client.images.edit(image=b"\x89PNG" + bytes(1 << 20), prompt="a blue star")


@in_loop
async def test_a_stream_says_what_changed_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        answer = await client.post(IMAGES, json=BODY | {"stream": True, "n": 1, "style": "vivid"})
        assert '"warnings": ["style: \'vivid\' changes nothing; say it in the prompt."]' in answer.text


@in_loop
async def test_a_model_is_described_by_any_of_its_names(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        model = (await client.get("/v1/models/shapes")).json()
        assert (model["id"], model["aliases"]) == ("shapes", [])
        assert (await client.get("/v1/models/dall-e-2")).status_code == 404
