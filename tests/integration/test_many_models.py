"""Twelve models of three families on two denoisers with room for two each, over real HTTP."""

import asyncio
import base64
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.engine.cost import CostModel, Curve, StageCost
from deployments.ingestion.ingest import ingest
from deployments.ingestion.model_entry import ModelToIngest
from serve.app import build_app
from serve.config.app import AppConfig
from serve.config.model import CostModelFile
from tests import tiny_models
from tests.integration.pictures_over_http import TIMEOUT_S, job_picture, kill_a_denoiser
from tests.integration.simulated import deployed

APPLICATION = "many"
FAMILIES = ("sd1", "sd2", "sdxl")
NAMES = [f"{family}-{seed}" for family in FAMILIES for seed in range(4)]
CONFIGURED, LATE, LEAVING = NAMES[0], NAMES[1], NAMES[2]
PROMPT, STEPS = "a red star on a blue background", 6
# Made up: it decides turns and estimates. The pictures are real.
COST = CostModel(
    Curve(0.005, 8, 0.001),
    StageCost((((32, 32), Curve(0.03, 4, 0.005)),)),
    StageCost((((32, 32), Curve(0.02, 1, 0.02)),)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models in diffusers format, one folder each, and a catalog that names all but two of them. They are
    read in already, as that takes ten seconds each in processes of their own."""
    root = tmp_path_factory.mktemp(APPLICATION)
    (root / "models.d").mkdir()
    for name in NAMES:
        family, _, seed = name.partition("-")
        tiny_models.build(family, int(seed)).save_pretrained(root / name)
        if name not in (CONFIGURED, LATE):
            ingest(ModelToIngest(str(root / name)), root / "data" / "models")
            add(root, name)
    return root


def add(root: Path, name: str) -> None:
    (root / "models.d" / f"{name}.yaml").write_text(f"source: {root / name}\n")


@pytest.fixture(scope="module")
def url(base_url: str, folder: Path) -> Iterator[str]:
    file = CostModelFile(path=str(folder / CONFIGURED), dtype="float32", device="CPU", cost_model=COST)
    (folder / "cost_model.json").write_text(file.model_dump_json())
    stage = {"num_cpus": 0.05, "num_threads": 1, "max_models": 2}
    config = {
        "model": {
            "id": CONFIGURED,
            "path": str(folder / CONFIGURED),
            "device": "cpu",
            "cost_model": str(folder / "cost_model.json"),
        },
        "catalog": {"folder": str(folder / "models.d")},
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


def given(seed: int) -> dict[str, Any]:
    return {"prompt": PROMPT, "seed": seed, "num_inference_steps": STEPS, "deterministic": True}


async def picture(http: httpx.AsyncClient, model: str, seed: int) -> bytes:
    response = await http.post("/v1/images/generations", json=given(seed) | {"model": model})
    assert response.status_code == 200, (model, response.text)
    return base64.b64decode(response.json()["data"][0]["b64_json"])


async def served(http: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    return {one["id"]: one for one in (await http.get("/v1/models")).json()["data"]}


async def until_served(http: httpx.AsyncClient, name: str, expected: bool) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while (name in await served(http)) != expected:
        assert time.monotonic() < deadline, f"{name} is {'not ' * expected}served"
        await asyncio.sleep(0.5)


def test_each_picture_is_its_own_models_while_models_come_and_go_and_a_denoiser_dies(
    url: str, folder: Path
) -> None:
    async def run() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as http:
            there = [name for name in NAMES if name != LATE]
            assert set(await served(http)) == set(there)
            while not (await served(http))[CONFIGURED]["is_resident"]:  # noqa: ASYNC110 (said every 2 s)
                await asyncio.sleep(0.5)
            expected = {name: await picture(http, name, 1) for name in there}
            assert len(set(expected.values())) == len(there), "no two models make the same picture"

            rng = random.Random(1)
            load = rng.choices(there, weights=[1 / rank for rank in range(1, len(there) + 1)], k=40)
            asked = [asyncio.create_task(picture(http, name, 1)) for name in load]
            job_names = rng.choices(there, k=10) + [LEAVING] * 2
            jobs = [
                (await http.post("/v1/predictions", json={"version": name, "input": given(1)})).json()["id"]
                for name in job_names
            ]
            # Accepted jobs are made although their model has left the catalog.
            (folder / "models.d" / f"{LEAVING}.yaml").unlink()
            add(folder, LATE)
            await until_served(http, LEAVING, expected=False)
            assert (
                await http.post("/v1/images/generations", json={"model": LEAVING} | given(1))
            ).status_code == 404
            kill_a_denoiser(APPLICATION)
            for name, made in zip(load, await asyncio.gather(*asked), strict=True):
                assert made == expected[name], name
            for name, job_id in zip(job_names, jobs, strict=True):
                assert await job_picture(http, job_id) == expected[name], name
            await until_served(http, LATE, expected=True)
            assert await picture(http, LATE, 1) not in expected.values()

    asyncio.run(run())
