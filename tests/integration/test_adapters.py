"""Forty adapters through a bank with room for three, beside plain requests, pictures and another model."""

import asyncio
import base64
import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from deployments.engine.adapters import LowRank, Target, targets_of
from deployments.engine.cost import CostModel, Curve, StageCost
from deployments.ingestion.ingest import ingest
from deployments.ingestion.model_entry import ModelToIngest
from serve.app import build_app
from serve.config.app import AppConfig
from serve.config.model import CostModelFile
from tests import tiny_models
from tests.integration.pictures_over_http import TIMEOUT_S, job_picture, kill_a_denoiser
from tests.integration.simulated import deployed
from tests.unit.test_bank import as_kohya, make_weights

APPLICATION = "adapted"
RANK, NUM_OF_SD1, NUM_OF_SDXL = 16, 34, 6
# Infinite where it counts, of which the header says nothing.
BROKEN = "broken"
COST = CostModel(
    Curve(0.005, 8, 0.001),
    StageCost((((32, 32), Curve(0.03, 4, 0.005)),), adapted=((48, 1.1),)),
    StageCost((((32, 32), Curve(0.02, 1, 0.02)),)),
)
Body = dict[str, Any]


def write_adapters(folder: Path, family: str, count: int, broken: str | None = None) -> None:
    """Adapters of the U-Net; every third is also one of the text encoders."""
    pipeline = tiny_models.build(family)
    unet, text = targets_of(pipeline.unet), targets_of(pipeline.text_encoder)
    prefix = "lora_te1_" if family == "sdxl" else "lora_te_"
    for seed in range(count):
        state = as_kohya(make_weights(unet, seed, RANK, convolutions=seed % 4 == 0), unet)
        if seed % 3 == 0:
            state |= text_state(text, seed, prefix)
        save_file(state, folder / f"{family}-{seed}.safetensors")
    if broken is not None:
        state = as_kohya(make_weights(unet, 99, RANK, convolutions=False), unet)
        next(iter(state.values()))[0, 0] = float("inf")
        save_file(state, folder / f"{broken}.safetensors")


def text_state(targets: dict[str, Target], seed: int, prefix: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, target in targets.items():
        if name.endswith(("q_proj", "v_proj")):
            factors = LowRank(
                torch.randn(4, target.width, generator=generator) / target.width**0.5,
                torch.randn(target.num_outputs, 4, generator=generator),
            )
            inner = name if name.startswith("text_model.") else f"text_model.{name}"
            key = prefix + inner.replace(".", "_")
            state[f"{key}.lora_down.weight"], state[f"{key}.lora_up.weight"] = factors.a, factors.b
    return state


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(APPLICATION)
    for name in ("models.d", "adapters"):
        (root / name).mkdir()
    for name, family, seed in (("first", "sd1", 0), ("second", "sd1", 1), ("xl", "sdxl", 0)):
        tiny_models.build(family, seed).save_pretrained(root / name)
    for name in ("second", "xl"):
        ingest(ModelToIngest(str(root / name)), root / "data" / "models")
        (root / "models.d" / f"{name}.yaml").write_text(f"source: {root / name}\n")
    write_adapters(root / "adapters", "sd1", NUM_OF_SD1, broken=BROKEN)
    write_adapters(root / "adapters", "sdxl", NUM_OF_SDXL)
    return root


@pytest.fixture(scope="module")
def url(base_url: str, folder: Path) -> Iterator[str]:
    file = CostModelFile(path=str(folder / "first"), dtype="float32", device="CPU", cost_model=COST)
    (folder / "cost_model.json").write_text(file.model_dump_json())
    stage = {"num_cpus": 0.05, "num_threads": 1, "max_models": 2}
    config = {
        "model": {
            "id": "first",
            "path": str(folder / "first"),
            "device": "cpu",
            "cost_model": str(folder / "cost_model.json"),
        },
        "catalog": {"folder": str(folder / "models.d")},
        "adapters": {"folder": str(folder / "adapters"), "max_rank": 3 * RANK},
        "encoder": stage,
        "denoiser": stage | {"min_replicas": 2},
        "decoder": stage,
        "ingress": {"num_cpus": 0.05},
        "limits": {"max_queue": 1000},
        "jobs": {"data_folder": str(folder / "data"), "num_cpus": 0.05},
        "internal": {"lease_s": 4.0, "checkpoint_interval_s": 0.2},
    }
    with deployed(build_app(AppConfig.model_validate(config)), APPLICATION, base_url) as started:
        yield started


def drawn() -> str:
    file = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").resize((64, 64)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def bodies() -> list[tuple[str, Body]]:
    """A body for each adapter, and some for none, two, a picture to start from, and other models; and the
    paths to post them to."""
    rng = random.Random(1)
    given = {"prompt": "a red star", "seed": 1, "num_inference_steps": 6, "deterministic": True}
    asked: list[Body] = [{"loras": [{"id": f"sd1-{index}", "scale": 0.8}]} for index in range(NUM_OF_SD1)]
    asked += [
        {"model": "xl", "loras": [{"id": f"sdxl-{index}", "scale": 0.8}]} for index in range(NUM_OF_SDXL)
    ]
    for _ in range(4):
        pair = rng.sample(range(NUM_OF_SD1), 2)
        asked.append({"loras": [{"id": f"sd1-{one}", "scale": rng.choice((-0.5, 0.6))} for one in pair]})
    asked += [{}, {"model": "second"}, {"model": "xl"}]
    asked += [{"model": "second", "loras": [{"id": "sd1-3", "scale": 1.0}]}]
    asked += [{"prompt": "a red star <lora:sd1-5:0.7>", "prompt_syntax": "a1111"}]
    generations = [("/v1/images/generations", given | one) for one in asked]
    edit = given | {"image": drawn(), "strength": 0.7}
    edits = [edit, edit | {"loras": [{"id": "sd1-1", "scale": 1.0}]}, edit | {"loras": [{"id": "sd1-2"}]}]
    return generations + [("/v1/images/edits", one) for one in edits]


async def picture(http: httpx.AsyncClient, path: str, body: Body) -> bytes:
    response = await http.post(path, json=body)
    assert response.status_code == 200, (body.get("loras"), response.text)
    return base64.b64decode(response.json()["data"][0]["b64_json"])


async def broken(http: httpx.AsyncClient) -> None:
    body = {"prompt": "a red star", "num_inference_steps": 6, "loras": [{"id": BROKEN}]}
    response = await http.post("/v1/images/generations", json=body)
    assert response.status_code == 422, response.text
    assert BROKEN in response.text


async def leaves(http: httpx.AsyncClient, path: str, body: Body) -> None:
    request = asyncio.create_task(http.post(path, json=body))
    await asyncio.sleep(0.3)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)


def test_each_picture_has_its_own_adapters_whoever_else_is_served_leaves_or_dies(url: str) -> None:
    async def run() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as http:
            wanted = bodies()
            alone = [await picture(http, *one) for one in wanted]
            assert len(set(alone)) == len(alone), "no two make the same picture"

            order = random.Random(2).sample(range(len(wanted)), len(wanted))
            asked = [asyncio.create_task(picture(http, *wanted[index])) for index in order]
            others = [broken(http) for _ in range(3)] + [leaves(http, *wanted[index]) for index in order[:8]]
            jobs = {}
            for index in order[:8]:
                path, body = wanted[index]
                if path.endswith("generations"):
                    version = {"version": body.get("model", "first")}
                    fields = {name: value for name, value in body.items() if name != "model"}
                    answer = await http.post("/v1/predictions", json=version | {"input": fields})
                    assert answer.status_code == 201, answer.text
                    jobs[index] = answer.json()["id"]
            gathering = asyncio.gather(*others)
            await asyncio.sleep(1.0)
            kill_a_denoiser(APPLICATION)
            for index, made in zip(order, await asyncio.gather(*asked), strict=True):
                assert made == alone[index], wanted[index]
            await gathering
            for index, job in jobs.items():
                assert await job_picture(http, job) == alone[index], wanted[index]

    asyncio.run(run())


def test_the_list_says_what_each_is(url: str) -> None:
    found = httpx.get(f"{url}/v1/adapters", timeout=TIMEOUT_S).json()["data"]
    assert {one["id"] for one in found} >= {"sd1-0", "sdxl-0", BROKEN}
