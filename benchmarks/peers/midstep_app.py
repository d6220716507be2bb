"""Midstep itself with `serve_config.yaml`, but with a denoiser per core, which suits load best, and a queue
that refuses nobody, like its peers."""

import os
from pathlib import Path
from typing import Any

from ray.serve import Application

from benchmarks.peers.diffusers_pipeline import MAX_IMAGES_PER_CALL
from benchmarks.peers.simulated_device import COST_MODEL_VARIABLE
from serve.app import build_app as build_midstep
from serve.config.app import AppConfig
from serve.config.model import CostModelFile

_MAX_QUEUE = 4096


def build_app(num_threads: int) -> Application:
    denoiser: dict[str, Any] = {
        "num_threads": 1,
        "min_replicas": num_threads,
    }
    config: dict[str, Any] = {
        "denoiser": denoiser,
        "limits": {"max_queue": _MAX_QUEUE, "max_wait_s": 1800},
    }
    if cost_model := os.environ.get(COST_MODEL_VARIABLE):
        file = CostModelFile.model_validate_json(Path(cost_model).read_text())
        config["model"] = {"device": "simulated", "cost_model": cost_model, "path": file.path}
        denoiser["max_rows"] = 2 * MAX_IMAGES_PER_CALL  # as many as a call of the peers
    return build_midstep(AppConfig.model_validate(config))
