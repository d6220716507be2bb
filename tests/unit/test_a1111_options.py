"""A1111's options, of each client, and its lists."""

import base64
from pathlib import Path
from typing import Any

import httpx

from deployments.engine.samplers import SAMPLERS, canonical_sampler
from tests.job_stores import in_loop
from tests.unit.test_a1111_images import TXT2IMG, Seen, made, refused
from tests.unit.test_authentication import ALICE, API_KEYS, BOB, IMAGE, IMAGES, by, serving

OPTIONS = "/sdapi/v1/options"


def basic(key: str, user: str = "anybody") -> dict[str, str]:
    return {"authorization": f"Basic {base64.b64encode(f'{user}:{key}'.encode()).decode()}"}


async def options(client: httpx.AsyncClient, **headers: str) -> Any:
    answer = await client.get(OPTIONS, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


@in_loop
async def test_options_are_kept_and_hold_for_requests(tmp_path: Path) -> None:
    seen: Seen = []
    async with serving(tmp_path, [], seen=seen) as client:
        before = await options(client)
        assert before["sd_model_checkpoint"] == "shapes"
        assert (before["samples_format"], before["CLIP_stop_at_last_layers"]) == ("png", 1)
        assert (before["sd_vae"], before["randn_source"]) == ("Automatic", "CPU")
        changed = {"CLIP_stop_at_last_layers": 2, "samples_format": "webp", "send_seed": False}
        answer = await client.post(OPTIONS, json=changed)
        assert (answer.status_code, answer.json()) == (200, None)
        assert await options(client) == before | changed
        await made(client, prompt="a star")
        own = {"CLIP_stop_at_last_layers": 1, "jpeg_quality": 60}
        await made(client, prompt="a star", override_settings=own)
    async with serving(tmp_path, []) as client:
        assert await options(client) == before | changed, "after a restart, too"
    (by_options, _), (by_itself, _) = seen
    assert (by_options.reading.clip_skip, by_itself.reading.clip_skip) == (1, None)
    assert by_options.image_format.media_type == by_itself.image_format.media_type == "image/webp"
    assert (by_options.image_format.quality, by_itself.image_format.quality) == (80, 60)


@in_loop
async def test_what_a_client_got_can_be_sent_back(tmp_path: Path) -> None:
    """As Open WebUI does to choose a model. What the model decides stays open."""
    async with serving(tmp_path, []) as client:
        got = await options(client)
        answer = await client.post(OPTIONS, json=got | {"sd_model_checkpoint": "shapes [abc]"})
        assert (answer.status_code, answer.json()) == (200, None)
        assert await options(client) == got


@in_loop
async def test_options_that_are_not_offered(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        for given, field, part in (
            ({"sd_vae": "other.pt"}, "sd_vae", "comes with its VAE"),
            ({"randn_source": "GPU"}, "randn_source", "on the CPU"),
            ({"CLIP_stop_at_last_layers": 13}, "CLIP_stop_at_last_layers", "less than or equal to 12"),
            ({"samples_format": "avif"}, "samples_format", "but 'avif' was given"),
            ({"send_seed": "no"}, "send_seed", "true or false"),
        ):
            status, param, detail = await refused(client, OPTIONS, given)
            assert (status, param) == (422, field)
            assert part in detail
        status, param, _ = await refused(client, OPTIONS, {"sd_model_checkpoint": "sdxl"})
        assert (status, param) == (404, "sd_model_checkpoint")
        given = {"show_progress_every_n_steps": 5, "sd_checkpoint_hash": "x", "samples_save": True}
        assert (await client.post(OPTIONS, json=given)).json() == {
            "warnings": [
                "samples_save: True changes nothing; pictures are only in the answer.",
                "show_progress_every_n_steps: is not known here and changes nothing.",
            ]
        }
        assert "show_progress_every_n_steps" not in await options(client)


@in_loop
async def test_each_client_has_its_own_by_bearer_or_basic(tmp_path: Path) -> None:
    async with serving(tmp_path, API_KEYS) as client:
        answer = await client.post(OPTIONS, json={"jpeg_quality": 50}, headers=basic(ALICE))
        assert answer.status_code == 200
        for headers, quality in ((basic(ALICE), 50), (by(ALICE), 50), (basic(BOB, ""), 80)):
            assert (await options(client, **headers))["jpeg_quality"] == quality
        assert (await client.post(TXT2IMG, json=IMAGE, headers=basic(ALICE))).status_code == 200
        for wrong in (
            basic("mst_wrong"),
            {"authorization": f"Basic {ALICE}"},
            {"authorization": "Basic"},
            {},
        ):
            assert (await client.get(OPTIONS, headers=wrong)).status_code == 401
        assert (await client.post(IMAGES, json=IMAGE, headers=basic(ALICE))).status_code == 401
        named_so = "/v1/models/sdapi/shapes/predictions"
        assert (await client.post(named_so, json={}, headers=basic(ALICE))).status_code == 401


@in_loop
async def test_lists_have_what_a1111s_clients_read(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:

        async def listed(name: str) -> Any:
            answer = await client.get(f"/sdapi/v1/{name}")
            assert answer.status_code == 200
            return answer.json()

        [model] = await listed("sd-models")
        assert (model["title"], model["model_name"], model["filename"]) == ("shapes", "shapes", "shapes")
        samplers = [one["name"] for one in await listed("samplers")]
        assert list(map(canonical_sampler, samplers)) == list(SAMPLERS)
        assert "DPM2" in samplers
        assert [one["label"] for one in await listed("schedulers")] == ["Automatic", "Uniform", "Karras"]
        assert [one["name"] for one in await listed("upscalers")] == ["Lanczos", "None"]
        assert [one["name"] for one in await listed("latent-upscale-modes")] == ["Latent", "Latent (bicubic)"]
        for name in ("sd-vae", "hypernetworks", "face-restorers", "realesrgan-models", "prompt-styles"):
            assert await listed(name) == []
        assert await listed("scripts") == {"txt2img": [], "img2img": []}
        assert await listed("embeddings") == {"loaded": {}, "skipped": {}}
        assert (await listed("cmd-flags"))["api"] is True
        memory = await listed("memory")
        assert memory["ram"]["total"] == memory["ram"]["free"] + memory["ram"]["used"] > 0
        for name in ("refresh-checkpoints", "refresh-loras", "unload-checkpoint", "reload-checkpoint"):
            answer = await client.post(f"/sdapi/v1/{name}")
            assert (answer.status_code, answer.json()) == (200, {})
        gone = await client.post("/sdapi/v1/extra-single-image", json={})
        assert (gone.status_code, gone.json()["error_type"]) == (404, "route_not_found")


@in_loop
async def test_adapters_are_named_as_prompts_name_them(tmp_path: Path) -> None:
    seen: Seen = []
    async with serving(tmp_path, [], seen=seen, adapters={"folder": "models/shapes/adapters"}) as client:
        listed = (await client.get("/sdapi/v1/loras")).json()
        assert {one["name"] for one in listed} >= {"lcm"}
        [lcm] = [one for one in listed if one["name"] == "lcm"]
        assert (lcm["alias"], lcm["path"]) == ("lcm", "lcm.safetensors")
        assert lcm["metadata"]["models"] == ["shapes"]
        answer = await made(client, prompt="a star <lora:lcm:0.5>")
        assert "warnings" not in answer
        missing = await client.post(TXT2IMG, json={"prompt": "a star <lora:lcn:0.5>"})
        assert (missing.status_code, missing.json()["error"]["param"]) == (404, "prompt")
    [(request, _)] = seen
    assert [use.scale for use in request.adapters] == [0.5]
