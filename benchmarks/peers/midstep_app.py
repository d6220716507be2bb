"""Midstep itself, as `serve_config.yaml` has it, but with a denoiser for each core, as suits load best, and a
queue that refuses nobody, as its peers have."""

from ray.serve import Application

from serve.app import build_app as build_midstep
from serve.config import AppConfig

_MAX_QUEUE = 4096


def build_app(num_threads: int) -> Application:
    config = {
        "denoiser": {
            "num_threads": 1,
            "autoscaling": {"min_replicas": num_threads, "max_replicas": num_threads},
        },
        "ingress": {"max_ongoing_requests": _MAX_QUEUE},
        "limits": {"max_queue": _MAX_QUEUE},
    }
    return build_midstep(AppConfig.model_validate(config))
