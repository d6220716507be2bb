"""`midstep profile`: measures the costs of an application's stages on this machine, without Ray."""

import gc
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from deployments.cost_measurement import CostMeasurement
from deployments.device_memory import image_room
from deployments.devices import measured_on, text_encoder, unets, vae
from deployments.engine.cost import CostModel, Curve, StageCost
from deployments.engine.fingerprint import model_ref
from deployments.engine.model_source import ModelInfo, load_model_info
from serve.config.app import AppConfig
from serve.config.model import CostModelFile
from serve.config.schema import ConfigError

Measured = TypeVar("Measured")


def profile(config: AppConfig) -> CostModelFile:
    """Measures stage by stage, each with its configured number of threads and alone on the device. Forwards
    are measured with adapters too, whether they are offered or not.

    Raises ModelLoadError and ConfigError.
    """
    source, placement = config.model.source(), config.placement()
    if placement.is_simulated:
        raise ConfigError("model.device: there is nothing to measure on a simulated device")
    info = load_model_info(source)
    config.check_for(info)
    measurement = CostMeasurement(config.latent_shapes(info))
    encode = _alone(lambda: _encode_cost(config, measurement))
    forward, load_s = _alone(lambda: _forward_cost(config, info, measurement))
    decode, encode_picture = _alone(lambda: _vae_costs(config, measurement))
    here = measured_on(placement)
    return CostModelFile(
        path=config.model.path,
        dtype=here.dtype,
        attention=config.model.attention,
        compile=config.model.compile,
        quantization=config.model.quantization,
        device=here.device,
        cost_model=CostModel(encode, forward, decode, encode_picture, load_s),
    )


def _alone(measure: Callable[[], Measured]) -> Measured:
    """Measures a stage and frees its memory, so that no two stages are on the device at once."""
    measured = measure()
    gc.collect()
    torch.cuda.empty_cache()
    return measured


def _encode_cost(config: AppConfig, measurement: CostMeasurement) -> Curve:
    torch.set_num_threads(config.encoder.num_threads)
    encoder = text_encoder(config.model.source(), config.placement(), None)
    return measurement.encode_cost(encoder.warm_up, config.text_batching.max_batch_size)


def _forward_cost(
    config: AppConfig, info: ModelInfo, measurement: CostMeasurement
) -> tuple[StageCost, float]:
    """The cost of forwards, and the seconds of a load."""
    threads = config.denoiser.num_threads
    torch.set_num_threads(threads)
    engine = replace(config.engine_config(info), max_rank=config.adapters.max_rank)
    found = unets(model_ref(config.model.source()), config.placement(), measurement, engine, threads)
    return found.cost, found.load_s


def _vae_costs(config: AppConfig, measurement: CostMeasurement) -> tuple[StageCost, StageCost]:
    """The costs of decoding and of encoding, in calls as large as a decoder's."""
    torch.set_num_threads(config.decoder.num_threads)
    source, placement = config.model.source(), config.placement()
    share, num_models = config.decoding_share(), config.max_models("decoder")
    room = image_room(source, placement, share, config.max_decoded_images, num_models)
    most = min(map(room.images, measurement.shapes))
    loaded = vae(source, placement, None)
    decode = measurement.decode_cost(loaded.decoder.warm_up, most)
    return decode, measurement.encode_picture_cost(loaded.encoder.warm_up, most)


def write_profile(config: AppConfig, output: Path) -> None:
    """Measures and writes the file. Raises ConfigError and ModelLoadError."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("ray.serve").setLevel(logging.INFO)
    output.write_text(profile(config).model_dump_json(indent=2) + "\n")
    print(f"written to {output}; set model.cost_model to use it")
