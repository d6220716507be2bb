"""Applications with simulated devices, beside the session's application."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray import serve
from ray.serve import Application

from deployments.engine.cost import CostModel, Curve, StageCost
from serve.app import build_app
from serve.config.app import AppConfig
from serve.config.model import CostModelFile

Stages = Mapping[str, Mapping[str, Any]]

SHAPE = (16, 16)
# 20 guided steps take 1 s alone and half of it beside another image; a picture takes 0.3 s to decode.
COST = CostModel(
    encode=Curve(0.002, 8, 0.0005),
    forward=StageCost(((SHAPE, Curve(0.05, 4, 0.0125)),)),
    decode=StageCost(((SHAPE, Curve(0.3, 1, 0.3)),)),
)
# Two images run at once and two wait for their turn.
DENOISER = {"max_rows": 4, "max_ongoing_requests": 4}


def simulated_app(
    stages: Stages,
    folder: Path,
    cost: CostModel = COST,
    cost_model: str = "cost_model.json",
    faults: Path | None = None,
) -> Application:
    """stages: their sections of the configuration, and others; folder: for its jobs and the cost model of
    that name

    faults: faults of the devices (deployments.engine.simulated_faults), which no configuration can set
    """
    file = CostModelFile(path="models/shapes", dtype="float32", device="simulated", cost_model=cost)
    (folder / cost_model).write_text(file.model_dump_json())
    config = {
        "model": {"device": "simulated", "cost_model": str(folder / cost_model)},
        "ingress": {"num_cpus": 0.05},
        "limits": {"max_queue": 1000, "max_width": 128, "max_height": 128},
        "jobs": {"data_folder": str(folder), "num_cpus": 0.05},
        **stages,
        "internal": {"lease_s": 4.0, **stages.get("internal", {})},
    }
    placement = AppConfig.placement
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            AppConfig, "placement", lambda self: replace(placement(self), faults=faults and str(faults))
        )
        return build_app(AppConfig.model_validate(config))


@contextmanager
def deployed(app: Application, name: str, base_url: str) -> Iterator[str]:
    """The URL of the deployed application."""
    serve.run(app, name=name, route_prefix=f"/{name}")
    try:
        yield f"{base_url}/{name}"
    finally:
        serve.delete(name)


async def ask(http: httpx.AsyncClient, due_s: float, seed: int, steps: int = 20) -> int:
    """Sends a request in due_s seconds. Returns the status."""
    await asyncio.sleep(due_s)
    body = {"prompt": f"a red circle of size {seed}", "num_inference_steps": steps, "seed": seed}
    return (await http.post("/v1/images/generations", json=body)).status_code
