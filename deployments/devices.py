"""A model's parts on the device that its placement names: a real one, or a simulated one."""

from deployments.engine.cost import CostModel
from deployments.engine.device_step import StepRunner, UNetInterface, step_runner
from deployments.engine.images import LatentDecoder
from deployments.engine.models import (
    ModelSource,
    Placement,
    load_model_info,
    load_text_pipeline,
    load_unet,
    load_unet_config,
    load_vae,
)
from deployments.engine.prompts import TextEncoder
from deployments.engine.simulated import (
    SimulatedDecoder,
    SimulatedSteps,
    SimulatedTextEncoder,
    SimulatedUNet,
)


def text_encoder(
    source: ModelSource, placement: Placement, known: CostModel | None
) -> TextEncoder | SimulatedTextEncoder:
    if not placement.is_simulated:
        return TextEncoder(load_text_pipeline(source, placement))
    is_xl = SimulatedUNet(load_unet_config(source)).needs_time_ids
    return SimulatedTextEncoder(_of_device(known).encode, is_xl)


def unet_and_steps(
    source: ModelSource, placement: Placement, known: CostModel | None
) -> tuple[UNetInterface, StepRunner]:
    if placement.is_simulated:
        return SimulatedUNet(load_unet_config(source)), SimulatedSteps(_of_device(known).forward)
    unet = load_unet(source, placement)
    return unet, step_runner(unet)


def latent_decoder(
    source: ModelSource, placement: Placement, known: CostModel | None
) -> LatentDecoder | SimulatedDecoder:
    if placement.is_simulated:
        return SimulatedDecoder(_of_device(known).decode, load_model_info(source).scale_factor)
    return LatentDecoder(load_vae(source, placement))


def _of_device(known: CostModel | None) -> CostModel:
    assert known is not None, "the configuration is checked: a simulated device has a cost model"
    return known
