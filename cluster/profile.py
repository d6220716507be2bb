"""`midstep profile`: measures the costs of an application's stages on this machine, without Ray."""

import logging
from dataclasses import replace
from pathlib import Path

import torch

from deployments.cost_measurement import CostMeasurement
from deployments.devices import measured_on, text_encoder, unets, vae
from deployments.engine.cost import CostModel
from deployments.engine.fingerprint import model_ref
from deployments.engine.model_source import load_model_info
from serve.config.app import AppConfig
from serve.config.model import CostModelFile
from serve.config.schema import ConfigError


def profile(config: AppConfig) -> CostModelFile:
    """Measures stage by stage, each with its configured number of threads. Forwards are measured with
    adapters too, whether they are offered or not.

    Raises ModelLoadError and ConfigError.
    """
    source, placement = config.model.source(), config.placement()
    if placement.is_simulated:
        raise ConfigError("model.device: there is nothing to measure on a simulated device")
    info = load_model_info(source)
    config.check_for(info)
    measurement = CostMeasurement(config.latent_shapes(info))

    torch.set_num_threads(config.encoder.num_threads)
    encoder = text_encoder(source, placement, None)
    encode = measurement.encode_cost(encoder.warm_up, config.text_batching.max_batch_size)

    torch.set_num_threads(config.denoiser.num_threads)
    threads = config.denoiser.num_threads
    engine = replace(config.engine_config(info), max_rank=config.adapters.max_rank)
    found = unets(model_ref(source), placement, measurement, engine, threads)

    torch.set_num_threads(config.decoder.num_threads)
    loaded = vae(source, placement, None)
    most = config.decoder.max_batch_size
    decode = measurement.decode_cost(loaded.decoder.warm_up, most)
    encode_picture = measurement.encode_picture_cost(loaded.encoder.warm_up, most)
    here = measured_on(placement)
    return CostModelFile(
        path=config.model.path,
        dtype=here.dtype,
        attention=config.model.attention,
        compile=config.model.compile,
        quantization=config.model.quantization,
        device=here.device,
        cost_model=CostModel(encode, found.cost, decode, encode_picture, found.load_s),
    )


def write_profile(config: AppConfig, output: Path) -> None:
    """Measures and writes the file. Raises ConfigError and ModelLoadError."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("ray.serve").setLevel(logging.INFO)
    output.write_text(profile(config).model_dump_json(indent=2) + "\n")
    print(f"written to {output}; set model.cost_model to use it")
