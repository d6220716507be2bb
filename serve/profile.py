"""`midstep profile`: measures what an application's stages cost on this machine, without Ray."""

from functools import partial

import torch

from deployments.engine.cost import CostModel
from deployments.engine.device_step import rehearse, step_runner
from deployments.engine.images import LatentDecoder
from deployments.engine.models import load_model_info, load_text_pipeline, load_unet, load_vae
from deployments.engine.prompts import TextEncoder
from deployments.profiling import Profiling
from serve.config import AppConfig


def profile(config: AppConfig) -> CostModel:
    """Stage by stage, each with the threads that it is configured to have. Raises ModelLoadError."""
    source, placement = config.model.source(), config.model.placement()
    info = load_model_info(source)
    config.check_for(info)
    profiling = Profiling(config.latent_shapes(info))

    torch.set_num_threads(config.encoder.num_threads)
    encoder = TextEncoder(load_text_pipeline(source, placement))
    encode = profiling.encode_cost(encoder.rehearse, config.encoder.max_batch_size)

    torch.set_num_threads(config.denoiser.num_threads)
    unet = load_unet(source, placement)
    engine = config.engine_config(info).for_device(unet.device)
    forward = profiling.forward_cost(partial(rehearse, unet, step_runner(unet)), engine)

    torch.set_num_threads(config.decoder.num_threads)
    decoder = LatentDecoder(load_vae(source, placement))
    decode = profiling.decode_cost(decoder.rehearse, config.decoder.max_batch_size)
    return CostModel(encode, forward, decode)
