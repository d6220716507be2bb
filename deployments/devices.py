"""A model's parts on the device that its placement names, real or simulated."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from deployments.cost_measurement import CostMeasurement, MeasuredOn
from deployments.engine.cost import CostModel, StageCost
from deployments.engine.device_step import StepRunner, warm_up
from deployments.engine.engine_config import EngineConfig
from deployments.engine.forward_costs import ForwardCosts
from deployments.engine.images import LatentDecoder
from deployments.engine.model_pool import UNetLoader
from deployments.engine.model_source import (
    ModelRef,
    ModelSource,
    Placement,
    load_model_info,
    load_unet_config,
)
from deployments.engine.models import check_quantization, load_text_pipeline, load_vae
from deployments.engine.pictures import PictureEncoder
from deployments.engine.prompts import TextEncoder
from deployments.engine.simulated import (
    SimulatedDecoder,
    SimulatedDevice,
    SimulatedLoader,
    SimulatedPictureEncoder,
    SimulatedSteps,
    SimulatedTextEncoder,
)
from deployments.engine.simulated_faults import SimulatedFaults
from deployments.engine.unet_loader import DeviceLoader
from deployments.kept_costs import device_name
from deployments.quality_gate import QualityGate


def measured_on(placement: Placement) -> MeasuredOn:
    """The device and the precision of a placement that is not simulated. Raises ModelLoadError."""
    dtype = str(placement.torch_dtype()).removeprefix("torch.")
    return MeasuredOn(device_name(placement.torch_device()), dtype)


def text_encoder(
    source: ModelSource, placement: Placement, known: CostModel | None, max_rank: int = 0
) -> TextEncoder | SimulatedTextEncoder:
    """max_rank: as in AdapterBank"""
    if not placement.is_simulated:
        embeddings = None if source.embeddings is None else Path(source.embeddings)
        return TextEncoder(load_text_pipeline(source, placement), embeddings, max_rank)
    is_xl = load_unet_config(source).get("addition_embed_type") == "text_time"
    return SimulatedTextEncoder(_of_device(known).encode, is_xl, SimulatedFaults(placement.faults, "encoder"))


@dataclass(frozen=True)
class Unets:
    """A device's first model and its cost, and the way to others.

    config: the engine's, for this device; load_s: seconds that a model takes to load
    gate: what other models have to pass; None where nothing is quantized
    """

    loader: UNetLoader
    first: StepRunner
    config: EngineConfig
    cost: StageCost
    load_s: float
    gate: QualityGate | None = None


def unets(
    model: ModelRef,
    placement: Placement,
    measurement: CostMeasurement,
    engine: EngineConfig,
    num_threads: int,
    host_bytes: float = 0.0,
    pool_bytes: float = 0.0,
    capture_failed: Callable[[], None] = lambda: None,
) -> Unets:
    """Loads the first model and measures the cost of its forwards.

    host_bytes, pool_bytes, capture_failed: see DeviceLoader
    Raises ModelLoadError.
    """
    if placement.is_simulated:
        known = _of_device(measurement.known)
        device = SimulatedDevice(faults=SimulatedFaults(placement.faults, "denoiser"))
        config = engine.padded_to(known.forward.padded_to)
        simulated = SimulatedLoader(
            device, ForwardCosts(known.forward, model).of, known.load_s, engine.max_rank
        )
        first: StepRunner = SimulatedSteps(known.forward, device, engine.max_rank)
        cost = measurement.forward_cost(partial(warm_up, simulated.describe(model), first), config)
        return Unets(simulated, first, config, cost, known.load_s)
    measurement.check_device(measured_on(placement))
    check_quantization(placement)  # before anything is loaded
    gate = None if placement.quantization == "none" else QualityGate(placement, measurement.kept)
    if gate is not None:
        gate.check(model)
    config = engine.for_device(placement.torch_device())
    loader = DeviceLoader(
        placement,
        config.static_shapes,
        num_threads,
        host_bytes,
        config.max_rank,
        pool_bytes,
        capture_failed,
    )
    began = time.perf_counter()
    first = loader.load(model, None)
    load_s = time.perf_counter() - began
    torch.set_num_threads(1)  # forwards on a CPU have their own threads (engine.row_parts)
    cost = measurement.forward_cost(partial(warm_up, loader.describe(model), first), config)
    return Unets(loader, first, config, cost, load_s, gate)


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
