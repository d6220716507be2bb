"""The options of each deployment, for `Deployment.options`."""

import os
from collections.abc import Mapping
from typing import Any

from deployments.engine.model_source import ModelInfo
from serve.config.app import AppConfig
from serve.config.internal import ROUTING_STATS_PERIOD_S, STAGE_DRAIN_TIMEOUT_S

# Surplus replicas in percent while new ones take over from old ones. A new ingress starts before the old one
# stops, with its connections. Devices have no room for two.
_INGRESS_SURGE, _STAGE_SURGE = 100, 0
# Calls have many shapes. PyTorch keeps what one has freed in segments, which may be too small for the next.
_ALLOCATOR = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
_ALLOCATOR_VARIABLES = (*_ALLOCATOR, "PYTORCH_ALLOC_CONF")


def stage_options(config: AppConfig, stage: str, info: ModelInfo) -> dict[str, Any]:
    """The options of the encoder, the denoiser or the decoder."""
    options = {
        "ray_actor_options": _actor_options(config, stage),
        "max_ongoing_requests": config.max_ongoing_requests(stage, info),
        "graceful_shutdown_timeout_s": STAGE_DRAIN_TIMEOUT_S,
        "max_surge_percent": _STAGE_SURGE,
        "autoscaling_config": config.autoscaling_of(stage).autoscaling_config(),
    }
    if stage == "denoiser":
        options["request_router_config"] = {
            "request_router_class": "serve.calls.routing:LeastWorkRouter",
            "request_routing_stats_period_s": ROUTING_STATS_PERIOD_S,
        }
    return options


def _actor_options(config: AppConfig, stage: str) -> dict[str, Any]:
    options = config.stages[stage].ray_actor_options() | {"num_gpus": config.num_gpus()[stage]}
    if config.model.device == "cuda" and (variables := allocator_variables(os.environ)):
        options["runtime_env"] = {"env_vars": variables}  # also on nodes whose Ray others started
    return options


def allocator_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that set PyTorch's allocator for a GPU; none if the environment sets it already.

    They must be set before torch is imported.
    """
    return {} if any(name in environment for name in _ALLOCATOR_VARIABLES) else dict(_ALLOCATOR)


def ingress_options(config: AppConfig, info: ModelInfo, drain_timeout_s: float) -> dict[str, Any]:
    """The options of the ingress. drain_timeout_s: seconds that a stopping replica has"""
    return {
        "ray_actor_options": config.ingress.ray_actor_options(),
        "max_ongoing_requests": config.max_ongoing_requests("ingress", info),
        "graceful_shutdown_timeout_s": drain_timeout_s,
        "max_surge_percent": _INGRESS_SURGE,
        "autoscaling_config": config.autoscaling_of("ingress").autoscaling_config(),
    }
