"""`build_app`: from a configuration to a Ray Serve application. The only place that binds deployments."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application, Deployment

from deployments.batching import Batching
from deployments.cost_measurement import CostMeasurement
from deployments.denoiser import Denoiser
from deployments.engine.fingerprint import fingerprint
from deployments.engine.models import ModelInfo
from deployments.kept_costs import KeptCosts
from deployments.prompt_encoder import PromptEncoder
from deployments.vae_decoder import VaeDecoder
from serve.capacity.config_problems import drain_timeout_s
from serve.checks import checked_model_info
from serve.config.app import AppConfig
from serve.config.deployment_options import ingress_options, stage_options
from serve.http.replicate.prediction import describe
from serve.ingress import Ingress
from serve.jobs.resources import job_store, object_store, resolve
from serve.runner import Runner

# Serve learns that a replica has died when it asks for its health, and only then begins another: with its own
# 10 s that is five seconds later, as a rule.
HEALTH_CHECK_PERIOD_S = 2.0


def build_app(config: AppConfig) -> Application:
    """The application of `serve_config.yaml` (`import_path: serve.app:build_app`, `args` are the AppConfig).

    Raises ConfigError and ModelLoadError, naming the key or the model, before anything is deployed.
    """
    source, placement = config.model.source(), config.placement()
    info = checked_model_info(config)
    jobs = resolve(config.jobs)
    (
        job_store(jobs, [], describe),
        object_store(jobs),
    )  # said now rather than by replicas that cannot start
    config = config.model_copy(update={"jobs": jobs})
    made_by = fingerprint(source, placement, config.engine_config(info).deterministic_rows)
    measurement = _cost_measurement(config, info, made_by)
    engine, internal = config.engine_config(info), config.internal

    def deployment(replica: type, stage: str) -> Deployment:
        return _deployment(replica, stage_options(config, stage, info))

    def gathered(stage: str) -> tuple[Batching, int]:
        return config.batching(stage, info), config.stages[stage].num_threads

    encoder = deployment(PromptEncoder, "encoder").bind(
        source, placement, *gathered("encoder"), internal.encoder_cache_size, measurement
    )
    denoiser = deployment(Denoiser, "denoiser").bind(
        source, placement, engine, *gathered("denoiser"), measurement
    )
    decoder = deployment(VaeDecoder, "decoder").bind(
        source, placement, *gathered("decoder"), internal.max_hold_s, measurement
    )
    stages = (encoder, denoiser, decoder)
    runner = _deployment(Runner, config.jobs.runner_options()).bind(config, info, made_by, *stages)
    drain_s = drain_timeout_s(config, info)
    return _deployment(Ingress, ingress_options(config, info, drain_s)).bind(config, info, *stages, runner)


def _deployment(replica: type, options: Mapping[str, Any]) -> Deployment:
    return serve.deployment(replica, health_check_period_s=HEALTH_CHECK_PERIOD_S, **options)


def _cost_measurement(config: AppConfig, info: ModelInfo, made_by: str) -> CostMeasurement:
    """Raises ConfigError for a cost model file that cannot be read."""
    shapes = config.latent_shapes(info)
    measured_with = {
        "fingerprint": made_by,
        "model": config.model.model_dump(exclude={"id", "sizes", "cost_model"}),
        "latent_shapes": shapes,
        "num_threads": {name: stage.num_threads for name, stage in config.stages.items()},
    }
    kept = KeptCosts(str(Path(config.jobs.data_folder) / "costs"), measured_with)
    return CostMeasurement(shapes, config.model.known_cost(), kept)


def __getattr__(name: str) -> Application:
    """`serve.app:app`, for `serve build`: the embedded model, built when asked for."""
    if name == "app":
        return build_app(AppConfig())
    raise AttributeError(name)
