"""`build_app` makes a Ray Serve application from a configuration. Only this module binds deployments."""

import logging
import re
from pathlib import Path

import ray
from ray import serve
from ray.serve import Application, Deployment

from deployments.cost_measurement import CostMeasurement, MeasuredOn
from deployments.engine.adapters import AdapterMemory
from deployments.engine.cuda_driver import cuda_of_driver, driver_problem
from deployments.engine.fingerprint import fingerprint, model_ref
from deployments.engine.model_source import ModelInfo
from deployments.kept_costs import KeptCosts
from serve.capacity.config_problems import drain_timeout_s
from serve.checks import check_adapters, checked_model_info
from serve.config.app import AppConfig
from serve.config.deployment_options import ingress_options, stage_options
from serve.config.schema import ConfigError
from serve.http.replicate.prediction import describe
from serve.ingress import Ingress
from serve.jobs.resources import job_store, object_store, resolve
from serve.ray_internals import deployment_of

logger = logging.getLogger("ray.serve")

# Serve notices a dead replica only at its next health check, and then starts a new one. With Serve's own 10 s
# that is five seconds later on average.
HEALTH = {"health_check_period_s": 2.0}
# Ray's names for GPUs of Apple, AMD, Intel and MetaX, which it counts as GPUs too.
OTHER_GPUS = re.compile(r"M\d(-\w+)?$|Apple-|AMD-|Intel-|MXC")
# Replicas import their classes by these paths; nobody else imports them.
PROMPT_ENCODER = "deployments.prompt_encoder.PromptEncoder"
DENOISER = "deployments.denoiser.Denoiser"
VAE_DECODER = "deployments.vae_decoder.VaeDecoder"
RUNNER = "serve.runner.Runner"


def build_app(config: AppConfig) -> Application:
    """The application of `serve_config.yaml` (`import_path: serve.app:build_app`, `args` are the AppConfig).

    Raises ConfigError and ModelLoadError, naming the key or the model, before anything is deployed.
    """
    config = _with_device(config)
    source, placement = config.model.source(), config.placement()
    info = checked_model_info(config)
    jobs = resolve(config.jobs)
    # What is wrong with them is said now rather than by replicas that cannot start.
    job_store(jobs, [], describe)
    object_store(jobs)
    catalog = config.catalog.resolved(jobs.data_folder)
    check_adapters(config)
    offered = config.adapters.resolved(jobs.data_folder)
    config = config.model_copy(update={"jobs": jobs, "catalog": catalog, "adapters": offered})
    model = model_ref(source)
    made_by = fingerprint(model, placement, config.engine_config(info).deterministic_rows)
    measurement = _cost_measurement(config, info, made_by)
    engine, internal = config.engine_config(info), config.internal
    adapters = AdapterMemory(config.adapters.host_bytes, config.adapters.gpu_bytes)

    def deployment(path: str, stage: str) -> Deployment:
        return deployment_of(path, **HEALTH, **stage_options(config, stage, info))

    def replica(stage: str) -> tuple[int, int]:
        return config.stages[stage].num_threads, config.max_models(stage)

    of_encoder = (internal.encoder_cache_size, engine.max_rank, adapters, measurement)
    encoder = deployment(PROMPT_ENCODER, "encoder").bind(
        model, placement, config.text_batching, *replica("encoder"), *of_encoder
    )
    of_denoiser = (config.denoiser.host_gib * 2**30, adapters, measurement)
    denoiser = deployment(DENOISER, "denoiser").bind(
        model, placement, engine, config.admission_batching(info), *replica("denoiser"), *of_denoiser
    )
    of_decoder = (config.decoding_share(), internal.max_hold_s, measurement)
    decoder = deployment(VAE_DECODER, "decoder").bind(
        model, placement, config.max_decoded_images, *replica("decoder"), *of_decoder
    )
    stages = (encoder, denoiser, decoder)
    runner = deployment_of(RUNNER, **HEALTH, **config.jobs.runner_options())
    options = ingress_options(config, info, drain_timeout_s(config, info))
    ingress = serve.deployment(Ingress, **HEALTH, **options)
    return ingress.bind(config, info, model, *stages, runner.bind(config, info, model, *stages))


def _with_device(config: AppConfig) -> AppConfig:
    """The configuration with a device in place of `auto`. Replicas cannot choose: Ray hides no GPU from those
    that reserve none, so all of them would be on the first. Raises ConfigError."""
    if config.model.device != "auto":
        return config
    if not config.reserves_gpus:
        has_gpus = _cluster_has_nvidia_gpus() if ray.is_initialized() else cuda_of_driver() is not None
        problem = driver_problem()
        if problem and has_gpus:
            logger.warning("model.device: auto is cpu, because %s", problem)
        if problem or not has_gpus:
            return config.on_device("cpu")
    try:
        return config.on_device("cuda")
    except ConfigError as error:
        why = "num_gpus reserves GPUs" if config.reserves_gpus else "Ray has GPUs"
        raise ConfigError(f"model.device: auto is cuda here, because {why}. {error}") from error


def _cluster_has_nvidia_gpus() -> bool:
    """Whether Ray knows a GPU's name, as where it can ask the driver, and it is not another vendor's."""
    found = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    prefix = "accelerator_type:"
    kinds = {name.removeprefix(prefix) for one in found for name in one if name.startswith(prefix)}
    if any(not OTHER_GPUS.match(kind) for kind in kinds):
        return True
    if found:
        names = ", ".join(sorted(kinds)) or "of no known kind"
        logger.warning("model.device: auto is cpu, because no GPU that Ray has is NVIDIA's: %s", names)
    return False


def _cost_measurement(config: AppConfig, info: ModelInfo, made_by: str) -> CostMeasurement:
    """How replicas measure costs. Raises ConfigError if the cost model file cannot be read."""
    shapes = config.latent_shapes(info)
    measured_with = {
        "fingerprint": made_by,
        "model": config.model.model_dump(
            exclude={"id", "aliases", "sizes", "cost_model", "embeddings_folder"}
        ),
        "latent_shapes": shapes,
        "max_rank": config.adapters.engine_max_rank,
        "num_threads": {name: stage.num_threads for name, stage in config.stages.items()},
    }
    kept = KeptCosts(str(Path(config.jobs.data_folder) / "costs"), measured_with)
    if (file := config.model.cost_file()) is None:
        return CostMeasurement(shapes, kept=kept)
    return CostMeasurement(shapes, file.cost_model, kept, MeasuredOn(file.device, file.dtype))


def __getattr__(name: str) -> Application:
    """`serve.app:app`, for `serve build`: the embedded model, built when asked for."""
    if name == "app":
        return build_app(AppConfig())
    raise AttributeError(name)
