"""`build_app` makes a Ray Serve application from a configuration. Only this module binds deployments."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application, Deployment

from deployments.cost_measurement import CostMeasurement
from deployments.denoiser import Denoiser
from deployments.engine.fingerprint import fingerprint
from deployments.engine.models import ModelInfo
from deployments.kept_costs import KeptCosts
from deployments.prompt_encoder import PromptEncoder
from deployments.vae_decoder import VaeDecoder
from serve.checks import checked_model_info
from serve.config.app import AppConfig
from serve.http.replicate.prediction import describe
from serve.ingress import Ingress
from serve.jobs.resources import job_store, object_store, resolve
from serve.runner import Runner

# Serve notices a dead replica only at its next health check, and then starts a new one. With Serve's own 10 s
# that is five seconds later on average.
HEALTH_CHECK_PERIOD_S = 2.0


def build_app(config: AppConfig) -> Application:
    """The application of `serve_config.yaml` (`import_path: serve.app:build_app`, `args` are the AppConfig).

    Raises ConfigError and ModelLoadError, naming the key or the model, before anything is deployed.
    """
    source, placement = config.model.source(), config.model.placement()
    info = checked_model_info(config)
    jobs = resolve(config.jobs)
    job_store(jobs, [], describe), object_store(jobs)  # fails here instead of in replicas that cannot start
    config = config.model_copy(update={"jobs": jobs})
    made_by = fingerprint(source, placement, config.denoiser.deterministic_rows)
    measurement = _cost_measurement(config, info, made_by)
    encoder, denoiser, decoder = config.encoder, config.denoiser, config.decoder
    encoder_stage = _deployment(PromptEncoder, encoder.deployment_options()).bind(
        source, placement, encoder.batching(), encoder.num_threads, encoder.cache_size, measurement
    )
    denoiser_stage = _deployment(Denoiser, denoiser.deployment_options()).bind(
        source, placement, config.engine_config(info), denoiser.batching(), denoiser.num_threads, measurement
    )
    decoder_stage = _deployment(VaeDecoder, decoder.deployment_options()).bind(
        source, placement, decoder.batching(), decoder.num_threads, decoder.max_hold_s, measurement
    )
    stages = (encoder_stage, denoiser_stage, decoder_stage)
    runner = _deployment(Runner, config.jobs.runner_options()).bind(config, made_by, *stages)
    ingress = _deployment(Ingress, config.ingress.deployment_options())
    return ingress.bind(config, info, *stages, runner)


def _deployment(replica: type, options: Mapping[str, Any]) -> Deployment:
    return serve.deployment(replica, health_check_period_s=HEALTH_CHECK_PERIOD_S, **options)


def _cost_measurement(config: AppConfig, info: ModelInfo, made_by: str) -> CostMeasurement:
    """How replicas measure costs. Raises ConfigError if the cost model file cannot be read."""
    shapes = config.latent_shapes(info)
    measured_with = {
        "fingerprint": made_by,
        "model": config.model.model_dump(exclude={"id", "sizes", "cost_model", "compile_cache"}),
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
