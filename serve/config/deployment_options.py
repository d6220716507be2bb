"""What Serve is told of each deployment, as `Deployment.options`."""

from typing import Any

from deployments.engine.model_source import ModelInfo
from serve.config.app import AppConfig
from serve.config.internal import STAGE_DRAIN_TIMEOUT_S

# Replicas more than there should be while new ones take over from old ones, in percent. A new ingress is
# there before the old one goes, with its connections; devices have no room for two.
_INGRESS_SURGE, _STAGE_SURGE = 100, 0


def stage_options(config: AppConfig, stage: str, info: ModelInfo) -> dict[str, Any]:
    """The options of the encoder, the denoiser or the decoder."""
    options = {
        "ray_actor_options": config.stages[stage].ray_actor_options()
        | {"num_gpus": config.num_gpus()[stage]},
        "max_ongoing_requests": config.max_ongoing_requests(stage, info),
        "graceful_shutdown_timeout_s": STAGE_DRAIN_TIMEOUT_S,
        "max_surge_percent": _STAGE_SURGE,
        "autoscaling_config": config.autoscaling_of(stage).autoscaling_config(),
    }
    if stage == "denoiser":
        options["request_router_config"] = {"request_router_class": "serve.calls.routing:LeastWorkRouter"}
    return options


def ingress_options(config: AppConfig, info: ModelInfo, drain_timeout_s: float) -> dict[str, Any]:
    """The options of the ingress. drain_timeout_s: seconds that a replica which is to go has"""
    return {
        "ray_actor_options": config.ingress.ray_actor_options(),
        "max_ongoing_requests": config.max_ongoing_requests("ingress", info),
        "graceful_shutdown_timeout_s": drain_timeout_s,
        "max_surge_percent": _INGRESS_SURGE,
        "autoscaling_config": config.autoscaling_of("ingress").autoscaling_config(),
    }
