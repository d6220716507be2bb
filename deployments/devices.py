"""A model's parts on the device that its placement names, real or simulated."""

from dataclasses import dataclass
from pathlib import Path

from deployments.cost_measurement import CostMeasurement
from deployments.engine.conditions import UNetInterface
from deployments.engine.cost import CostModel
from deployments.engine.device_step import StepRunner, step_runner
from deployments.engine.engine_config import EngineConfig
from deployments.engine.images import LatentDecoder
from deployments.engine.model_source import ModelSource, Placement, load_model_info, load_unet_config
from deployments.engine.models import load_text_pipeline, load_unet, load_vae
from deployments.engine.pictures import PictureEncoder
from deployments.engine.prompts import TextEncoder
from deployments.engine.simulated import (
    SimulatedDecoder,
    SimulatedPictureEncoder,
    SimulatedSteps,
    SimulatedTextEncoder,
    SimulatedUNet,
)
from deployments.engine.simulated_faults import SimulatedFaults


def text_encoder(
    source: ModelSource, placement: Placement, known: CostModel | None
) -> TextEncoder | SimulatedTextEncoder:
    if not placement.is_simulated:
        embeddings = None if source.embeddings is None else Path(source.embeddings)
        return TextEncoder(load_text_pipeline(source, placement), embeddings)
    is_xl = load_unet_config(source).get("addition_embed_type") == "text_time"
    return SimulatedTextEncoder(_of_device(known).encode, is_xl, SimulatedFaults(placement.faults, "encoder"))


def unet_and_steps(
    source: ModelSource, placement: Placement, measurement: CostMeasurement, engine: EngineConfig
) -> tuple[UNetInterface, StepRunner, EngineConfig]:
    """The U-Net, its step runner, and the engine's configuration for the device."""
    if placement.is_simulated:
        forward = _of_device(measurement.known).forward
        faults = SimulatedFaults(placement.faults, "denoiser")
        steps = SimulatedSteps(forward, faults=faults)
        return SimulatedUNet(load_unet_config(source), faults), steps, engine.padded_to(forward.padded_to)
    unet = load_unet(source, placement)
    config = engine.for_device(unet.device)
    return unet, step_runner(unet, measurement.shapes if config.row_counts else ()), config


@dataclass(frozen=True, slots=True)
class Vae:
    """Both directions of a VAE. scale_factor: image pixels per latent, in each direction"""

    decoder: LatentDecoder | SimulatedDecoder
    encoder: PictureEncoder | SimulatedPictureEncoder
    scale_factor: int


def vae(source: ModelSource, placement: Placement, known: CostModel | None) -> Vae:
    info = load_model_info(source)
    if placement.is_simulated:
        cost, faults = _of_device(known), SimulatedFaults(placement.faults, "decoder")
        decoder = SimulatedDecoder(cost.decode, info.scale_factor, faults)
        encoder = SimulatedPictureEncoder(cost.picture, load_unet_config(source), info.scale_factor, faults)
        return Vae(decoder, encoder, info.scale_factor)
    loaded = load_vae(source, placement)
    return Vae(LatentDecoder(loaded), PictureEncoder(loaded, info.needs_mask), info.scale_factor)


def _of_device(known: CostModel | None) -> CostModel:
    assert known is not None, "the configuration check requires a cost model for a simulated device"
    return known
