"""Problems of a configuration that show only when a model's costs are known."""

import math

from deployments.engine.cost import CostModel
from deployments.engine.model_source import ModelInfo
from deployments.engine.samplers import MAX_CALLS_PER_STEP
from deployments.engine.step_scheduler import Group
from serve.config.app import AppConfig
from serve.config.schema import ConfigError

# The longest request's assumed time before its costs are known.
_UNKNOWN_LONGEST_S = 600.0


def check_drain(config: AppConfig, info: ModelInfo) -> None:
    """Checks `ingress.drain_timeout_s` if the costs are known from a file. Raises ConfigError."""
    cost = config.model.known_cost()
    if cost is not None and (problem := drain_problem(config, info, cost)):
        raise ConfigError(problem)


def drain_timeout_s(config: AppConfig, info: ModelInfo) -> float:
    """Seconds that a stopping ingress replica has to answer its requests.

    Raises ConfigError if the file of costs cannot be read.
    """
    given, wait_s = config.ingress.drain_timeout_s, config.limits.max_wait_s
    if given != "auto":
        return given
    cost = config.model.known_cost()
    return math.ceil(wait_s + (_UNKNOWN_LONGEST_S if cost is None else _longest_s(config, info, cost)))


def drain_problem(config: AppConfig, info: ModelInfo, cost: CostModel) -> str | None:
    """What is wrong with `ingress.drain_timeout_s`; None if it is long enough."""
    drain_s, wait_s = drain_timeout_s(config, info), config.limits.max_wait_s
    longest_s = _longest_s(config, info, cost)
    if drain_s >= wait_s + longest_s:
        return None
    return (
        f"ingress.drain_timeout_s: {drain_s:g} s is too short, {math.ceil(wait_s + longest_s)} are needed: a "
        f"request may wait for {wait_s:g} s (limits.max_wait_s), and the longest allowed request "
        f"(limits.max_width, max_height, max_pixels, max_num_inference_steps, max_num_images) takes "
        f"{math.ceil(longest_s)} s itself"
    )


def crowding_problem(config: AppConfig, info: ModelInfo, cost: CostModel) -> str | None:
    """What is wrong with `jobs.max_running_images`; None if jobs leave room for synchronous requests."""
    engine = config.engine_config(info).padded_to(cost.forward.padded_to)
    group = Group(config.latent_shapes(info)[0], deterministic=False)
    image_s = engine.work_s(group, cost.forward, 2 * config.defaults.num_inference_steps)
    num_images = config.images_per_runner(info) * config.jobs.num_runners
    wait_s = num_images * image_s / config.denoiser.max_replicas
    if wait_s < config.limits.max_wait_s:
        return None
    return (
        f"jobs.max_running_images: {num_images} images of running jobs keep all denoisers busy for "
        f"{wait_s:.0f} s, even with max_replicas of them. Every synchronous request would then be refused, "
        f"because it would wait for more than {config.limits.max_wait_s:g} s (limits.max_wait_s)"
    )


def _longest_s(config: AppConfig, info: ModelInfo, cost: CostModel) -> float:
    """Seconds that the longest allowed request takes, alone and with guidance; the steps may be of two
    passes."""
    limits, shape = config.limits_for(info), config.largest_shape(info)
    engine = config.engine_config(info).padded_to(cost.forward.padded_to)
    num_images = limits.max_num_images
    calls_by_rows = {2: MAX_CALLS_PER_STEP * limits.max_num_inference_steps}
    denoise_s = max(
        engine.denoise_s(Group(shape, deterministic), cost.forward, calls_by_rows, num_images)
        for deterministic in (False, True)
    )
    vae_s = 2 * cost.decode.seconds(shape, num_images) + cost.picture.seconds(shape, num_images)
    return cost.encode.seconds(2) + denoise_s + vae_s
