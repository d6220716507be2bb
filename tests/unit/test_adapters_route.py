"""Adapters over HTTP, without Ray: how requests name them in both dialects, and the list of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from deployments.engine.adapters import AdapterRef, AdapterUse
from serve.calls.image_metadata import image_metadata
from serve.capacity.admission import Admission
from serve.capacity.rate_limits import RateLimits
from serve.errors import QueueFullError
from serve.generation import GenerationRequest
from serve.http import adapters as adapters_route
from serve.http.adapter_sources import AdapterSources
from serve.http.replicate.schema import input_warnings
from tests.adapter_folders import add
from tests.generation_requests import generation_request
from tests.job_stores import in_loop, opened
from tests.unit.test_authentication import IMAGE, IMAGES, JOB, JOBS, serving
from tests.unit.test_edits_route import EDITS, Seen, edit, file, form, part
from tests.unit.test_edits_route import URL as PICTURE
from tests.unit.test_openapi import check_answer, document_of
from tests.unit.test_predictions_routes import database_in

ADAPTERS = "/v1/adapters"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of adapters."""
    inside = tmp_path / "adapters"
    add(inside, "styles/stripes", metadata={"modelspec.trigger_phrase": "stripes, zebra"})
    add(inside, "both", unet_rank=8, text_rank=4)
    (inside / "broken.safetensors").write_bytes(b"no adapter")
    return inside


def offering(folder: Path, seen: Seen | None = None, **jobs: Any) -> Any:
    return serving(folder.parent / "data", [], seen=seen, adapters={"folder": str(folder)}, **jobs)


def scales(uses: tuple[AdapterUse, ...]) -> dict[str, float]:
    return {use.adapter.name: use.scale for use in uses}


def input_of(job: Mapping[str, Any], **given: Any) -> dict[str, Any]:
    return {**job, "input": {**job["input"], **given}}


NAMED = [
    {"loras": [{"id": "stripes", "scale": 0.8}, "both"]},
    {"loras": [{"path": "styles/stripes", "weight": 0.8}, {"name": "both"}]},
    {"loras": [{"lora_name": "stripes", "lora_scale": 0.8}, {"name": "both", "path": "both"}]},
    {"prompt": "a star <lora:stripes:0.8><lyco:both>", "prompt_syntax": "a1111"},
    {"prompt": "a star <lora:stripes:0.8>", "prompt_syntax": "a1111", "lora": "both"},
]


@pytest.mark.parametrize("named", NAMED)
@in_loop
async def test_the_images_dialect(folder: Path, named: dict[str, Any]) -> None:
    seen: Seen = []
    async with offering(folder, seen) as client:
        for path, body in ((IMAGES, {"json": IMAGE | named}), (EDITS, edit(image=PICTURE, **named))):
            answer = await client.post(path, **body)
            assert answer.status_code == 200, answer.text
            assert "warnings" not in answer.json()
    for request, _ in seen:
        assert scales(request.adapters) == {"styles/stripes": 0.8, "both": 1.0}
        assert scales(request.text_adapters) == {"both": 1.0}
        assert request.prompt == named.get("prompt", "a red star"), "as it was written"
        assert scales(request.passes[0].adapters) == scales(request.adapters)


@in_loop
async def test_openais_client_writes_the_list_into_a_form(folder: Path) -> None:
    parts = [
        part("loras[][id]", "stripes"),
        part("loras[][id]", "both"),
        part("loras[][scale]", "0.8"),
        part("loras[][scale]", "1"),
    ]
    seen: Seen = []
    async with offering(folder, seen) as client:
        for given in (
            parts,
            [part("loras[]", "stripes"), part("loras[]", "both")],
            [part("loras[id]", "both")],
        ):
            answer = await client.post(EDITS, **form(EDITS, file("image"), *given))
            assert answer.status_code == 200, answer.text
        for wrong, words in (
            (parts[:3], "loras: 2 of id, 1 of scale were given, so it cannot be told which belong together"),
            ([*parts, part("loras", "both")], "'loras': was given twice"),
            ([part("loras[][ip]", "x")], "loras.0.id: is required"),
        ):
            answer = await client.post(EDITS, **form(EDITS, file("image"), *wrong))
            assert answer.status_code == 400
            assert words in answer.json()["detail"]
    assert [scales(request.adapters) for request, _ in seen] == [
        {"styles/stripes": 0.8, "both": 1.0},
        {"styles/stripes": 1.0, "both": 1.0},
        {"both": 1.0},
    ]


@in_loop
async def test_vllm_omnis_path_and_number_change_nothing_and_that_is_told(folder: Path) -> None:
    lora = {"name": "stripes", "path": "/models/stripes", "scale": 0.5, "int_id": 7}
    seen: Seen = []
    async with offering(folder, seen) as client:
        answer = await client.post(IMAGES, json=IMAGE | {"lora": lora})
        assert answer.json()["warnings"] == [
            "lora.0.lora_path: '/models/stripes' changes nothing; the name is what counts.",
            "lora.0.int_id: 7 changes nothing; adapters have no numbers here.",
        ]
        job = (await client.post(JOBS, json=input_of(JOB, lora=lora))).json()
    assert scales(seen[0][0].adapters) == {"styles/stripes": 0.5}
    assert len(input_warnings(job["input"])) == 2


@pytest.mark.parametrize("text", ["stripes", '[{"id": "stripes"}]', '["stripes"]', '{"path": "stripes"}'])
@in_loop
async def test_a_form_has_a_name_or_json(folder: Path, text: str) -> None:
    seen: Seen = []
    async with offering(folder, seen) as client:
        answer = await client.post(EDITS, **form(EDITS, file("image"), part("loras", text)))
        assert answer.status_code == 200, answer.text
    assert scales(seen[0][0].adapters) == {"styles/stripes": 1.0}


@in_loop
async def test_in_plain_prompts_they_are_text(folder: Path) -> None:
    seen: Seen = []
    async with offering(folder, seen) as client:
        answer = await client.post(IMAGES, json={"prompt": "a star <lora:stripes:0.8>"})
        assert "<lora:name:1> need prompt_syntax 'a1111'" in answer.json()["warnings"][0]
    assert seen[0][0].adapters == ()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"lora_weights": "stripes"}, {"styles/stripes": 1.0}),
        ({"hf_lora": "stripes", "lora_scale": 0.6}, {"styles/stripes": 0.6}),
        (
            {"lora_weights": "stripes", "extra_lora": "both", "extra_lora_scale": -0.5},
            {"styles/stripes": 1.0, "both": -0.5},
        ),
        (
            {"lora_weights": "stripes", "loras": [{"path": "both", "scale": 2}]},
            {"styles/stripes": 1, "both": 2},
        ),
        ({"lora_weights": "", "lora_scale": 0.6}, {}),
        ({"loras": ""}, {}),
    ],
)
@in_loop
async def test_a_job_keeps_its_adapters(
    folder: Path, given: dict[str, Any], expected: dict[str, float]
) -> None:
    async with offering(folder) as client, opened(database_in(folder.parent / "data")) as store:
        answer = await client.post(JOBS, json=input_of(JOB, **given))
        assert answer.status_code == 201, answer.text
        assert (
            answer.json()["input"].items()
            >= {key: value for key, value in given.items() if key != "loras"}.items()
        )
        [job] = await store.queue.claim(1, 60.0)
        assert scales(job.request.adapters) == expected
        [kept] = (await store.page(1)).items
        assert kept.request == job.request


def test_a_scale_without_its_adapter_is_told() -> None:
    assert input_warnings({"lora_scale": 0.6}) == [
        "lora_scale: changes nothing; it is the scale of lora_weights."
    ]
    assert input_warnings({"hf_lora": "x", "lora_scale": 0.6}) == []


@pytest.mark.parametrize(
    ("given", "status", "field", "words"),
    [
        ({"loras": [{"id": "strips"}]}, 404, "loras.0.id", "did you mean 'styles/stripes'"),
        ({"loras": ["both", {"path": "nowhere"}]}, 404, "loras.1.path", "GET /v1/adapters"),
        ({"loras": ["broken"]}, 400, "loras.0.id", "broken is not a safetensors file"),
        ({"loras": ["https://example.com/x"]}, 403, "loras.0.id", "adapters.allow_remote"),
        ({"loras": ["owner/name"]}, 404, "loras.0.id", "there is no adapter 'owner/name'"),
        ({"loras": ["both"] * 9}, 400, "loras.0.id", "at most 8"),
        ({"prompt": "a <lora:x:1>", "prompt_syntax": "a1111"}, 404, "prompt", "no adapter 'x'"),
        ({"prompt": "a <lora:https://x/y>", "prompt_syntax": "a1111"}, 400, "prompt", "named in `loras`"),
        ({"prompt": "a <lora:both:1>" * 9, "prompt_syntax": "a1111"}, 400, "prompt", "at most 8"),
        ({"loras": [{"id": "both", "sha256": "AB" * 32}]}, 422, "loras.0.id", f"and {'ab' * 32} was given"),
        ({"loras": [{"id": "both", "sha256": "ab"}]}, 400, "loras.0.sha256", "pattern"),
        ({"prompt": "a <lora:both:101>", "prompt_syntax": "a1111"}, 400, "prompt", "the scale 101"),
        ({"prompt": "a <hypernet:x:1>", "prompt_syntax": "a1111"}, 400, "prompt", "only adapters"),
    ],
)
@in_loop
async def test_a_refusal_names_the_field_of_its_dialect(
    folder: Path, given: dict[str, Any], status: int, field: str, words: str
) -> None:
    async with offering(folder) as client:
        document = await document_of(client)
        answers = [
            (await client.post(IMAGES, json=IMAGE | given), IMAGES, status, field),
            (await client.post(EDITS, **edit(image=PICTURE, **given)), EDITS, status, field),
            (
                await client.post(JOBS, json=input_of(JOB, **given)),
                JOBS,
                422 if status == 400 else status,
                f"input.{field}",
            ),
        ]
        assert (await client.get(JOBS)).json()["results"] == []
    for answer, path, expected, param in answers:
        assert (answer.status_code, answer.json()["error"]["param"]) == (expected, param), answer.text
        assert words in answer.json()["detail"]
        assert str(folder) not in answer.text
        check_answer(document, path, answer)


@pytest.mark.parametrize(
    "named", [{"loras": ["both"]}, {"prompt": "a star <lora:both:1>", "prompt_syntax": "a1111"}]
)
@in_loop
async def test_a_repeated_submission_gets_its_job_though_the_adapter_is_gone(
    folder: Path, named: dict[str, Any]
) -> None:
    async with offering(folder) as client:

        async def submitted() -> httpx.Response:
            body = input_of(JOB, **named)
            return await client.post(JOBS, json=body, headers={"idempotency-key": "once"})

        first = await submitted()
        (folder / "both.safetensors").unlink()
        assert (await submitted()).json()["id"] == first.json()["id"]
        other = await client.post(
            JOBS, json=input_of(JOB, loras=["stripes"]), headers={"idempotency-key": "once"}
        )
        assert (other.status_code, other.json()["error_type"]) == (422, "idempotency_key_reused")


@pytest.mark.parametrize(
    ("owner", "check", "routes"), [(Admission, "check_room", [IMAGES]), (RateLimits, "check", [IMAGES, JOBS])]
)
@in_loop
async def test_nothing_is_fetched_for_those_who_are_refused_anyway(
    folder: Path, monkeypatch: pytest.MonkeyPatch, owner: type, check: str, routes: list[str]
) -> None:
    def refuse(*given: Any) -> None:
        raise QueueFullError("full")

    monkeypatch.setattr(owner, check, refuse)
    monkeypatch.setattr(AdapterSources, "with_files", lambda *given: pytest.fail("it was fetched"))
    async with offering(folder) as client:
        for path in routes:
            body = input_of(JOB, loras=["both"]) if path == JOBS else IMAGE | {"loras": ["both"]}
            assert (await client.post(path, json=body)).status_code == 429


@in_loop
async def test_the_list_says_what_each_is(folder: Path) -> None:
    async with offering(folder) as client:
        document = await document_of(client)
        answer = await client.get(ADAPTERS)
        check_answer(document, ADAPTERS, answer)
        page = answer.json()
        assert (page["object"], page["next"], page["previous"]) == ("list", None, None)
        both, broken, stripes = page["data"]
        assert (both["id"], both["family"], both["models"]) == ("both", "sd1", ["shapes"])
        assert (both["rank"], both["text_encoder_rank"], both["kinds"]) == (8, 4, ["lora"])
        assert both["problem"] is None
        assert both["size_bytes"] == (folder / "both.safetensors").stat().st_size
        assert (broken["family"], broken["rank"]) == (None, None)
        assert "is not a safetensors file" in broken["problem"]
        assert stripes["trigger_words"] == ["stripes", "zebra"]
        assert (await client.get("/adapters")).json() == page
        for name in ("styles/stripes", "stripes"):
            one = await client.get(f"{ADAPTERS}/{name}")
            check_answer(document, ADAPTERS + "/{id}", one)
            assert one.json() == stripes
        missing = await client.get(f"{ADAPTERS}/nothing")
        assert (missing.status_code, missing.json()["error_type"]) == (404, "adapter_not_found")
        assert len((await client.get("/v1/models")).json()["data"]) == 1


@in_loop
async def test_a_long_list_has_pages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters_route, "_PAGE_SIZE", 2)
    names = [f"a b/{number}" for number in range(5)]
    for name in names:
        (folder / f"{name}.safetensors").parent.mkdir(exist_ok=True)
        (folder / f"{name}.safetensors").touch()
    async with offering(folder) as client:
        url, ids, pages = ADAPTERS, [], []
        while url:
            pages.append(page := (await client.get(url)).json())
            ids += [one["id"] for one in page["data"]]
            url = page["next"]
        assert ids == [*names, "both", "broken", "styles/stripes"]
        assert (await client.get(pages[-1]["previous"])).json()["data"] == pages[-2]["data"]
        assert (await client.get(ADAPTERS, params={"cursor": "zzz"})).json()["data"] == []


@in_loop
async def test_without_a_folder_there_are_none(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        assert (await client.get(ADAPTERS)).json()["data"] == []
        answer = await client.post(IMAGES, json=IMAGE | {"loras": ["x"]})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "loras.0.id")
        assert "adapters are not offered here" in answer.json()["detail"]


BOTH = AdapterRef("styles/both", "/f/both.safetensors", "ab12" * 16, 8, 4)
WORDS = AdapterRef("a: b,c", "/f/words.safetensors", "cd34" * 16, 0, 4)


def request_with(unet: float, text: float) -> GenerationRequest:
    return generation_request(
        adapters=(AdapterUse(BOTH, unet),) if unet else (),
        text_adapters=(*((AdapterUse(BOTH, text),) if text else ()), AdapterUse(WORDS, 0.5)),
    )


def test_a_picture_says_its_adapters() -> None:
    text = image_metadata(request_with(0.8, 0.8), 7)
    both = {"id": "styles/both", "scale": 0.8, "sha256": "ab12" * 16}
    words = {"id": "a: b,c", "scale": 0.5, "sha256": "cd34" * 16}
    assert json.loads(text["loras"]) == [both, words]
    assert 'Lora hashes: "both: ab12ab12ab, a bc: cd34cd34cd"' in text["parameters"]
    assert text["parameters"].startswith(f"{text['prompt']} <lora:both:0.8> <lora:a bc:0.5>\n")
    for unet, in_text in ((0.8, 0.0), (0.0, 0.8), (0.8, -0.3)):
        other = image_metadata(request_with(unet, in_text), 7)
        [of_both, _] = json.loads(other["loras"])
        assert of_both == both | {"scale": unet, "text_encoder_scale": in_text}
        assert f"<lora:both:{in_text:g}:{unet:g}>" in other["parameters"]
    assert "loras" not in image_metadata(generation_request(), 7)


@pytest.mark.parametrize(
    "named",
    [
        {"prompt": "a star <lora:stripes:0.8><lyco:both:1:0.5>", "prompt_syntax": "a1111"},
        {"prompt": "a star <lora:stripes:0.5>", "prompt_syntax": "a1111", "loras": ["both", "stripes"]},
        {"prompt": "a star", "loras": ["both"]},
    ],
)
@in_loop
async def test_what_a_picture_says_makes_it_again(folder: Path, named: dict[str, Any]) -> None:
    seen: Seen = []
    async with offering(folder, seen) as client:
        assert (await client.post(IMAGES, json=IMAGE | named)).status_code == 200
        text = image_metadata(seen[0][0], 7)
        again = {name: text[name] for name in ("prompt", "prompt_syntax", "loras") if name in text}
        answer = await client.post(IMAGES, json=IMAGE | again)
        assert answer.status_code == 200, answer.text
    first, second = (request for request, _ in seen)
    assert (first.adapters, first.text_adapters) == (second.adapters, second.text_adapters)
    assert first.text == second.text


def test_a_request_with_adapters_comes_back_from_json() -> None:
    adapter = TypeAdapter(GenerationRequest)
    request = request_with(0.8, -0.3)
    assert adapter.validate_python(adapter.dump_python(request, mode="json")) == request
