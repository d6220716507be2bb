"""A simulated device: every stage takes its cost curve's time and returns cheap placeholder values.

It reads a model's configuration and no weights. Its pictures show nothing. Figures measured with it must be
labelled as simulated.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from deployments.engine.bank import EMPTY_LAYOUT, AdapterBank
from deployments.engine.conditions import MAX_TOKENS, NUM_TIME_IDS
from deployments.engine.cost import Curve, StageCost
from deployments.engine.device_step import Completion, StepRunner
from deployments.engine.images import Pixels
from deployments.engine.messages import EncodedPicture, LatentShape, PromptEmbeds, TokenCount
from deployments.engine.model_source import ModelRef, load_unet_config
from deployments.engine.pictures import PreparedPicture
from deployments.engine.prompt_chunks import EncodedText
from deployments.engine.prompt_text import PromptText, ReadText
from deployments.engine.prompts import join_embeds
from deployments.engine.sampler_table import NUM_OUTPUTS
from deployments.engine.simulated_faults import SimulatedFaults
from deployments.engine.stage_errors import StageError
from deployments.engine.step_inputs import StepInputs
from deployments.engine.text_banks import TextAdapters

NO_FAULTS = SimulatedFaults(None, "")


class SimulatedUNet:
    """A U-Net without a forward, made from the model's own U-Net configuration. Embeddings have width 1.

    faults: faults of its device

    Tensors sent to its device have a shape but no values. Copying them is a real device's work, and would
    take the CPU longer than the rest of a step.
    """

    embeds_width = 1

    def __init__(self, unet_config: Mapping[str, Any], faults: SimulatedFaults = NO_FAULTS) -> None:
        self._faults = faults
        self.dtype = torch.float32
        self.latent_channels: int = unet_config["out_channels"]
        self.picture_channels: int = unet_config["in_channels"] - unet_config["out_channels"]
        is_xl = unet_config.get("addition_embed_type") == "text_time"
        self.pooled_width = int(is_xl)
        self.time_ids_width = NUM_TIME_IDS if is_xl else 0

    @property
    def device(self) -> torch.device:
        self._faults.check()
        return torch.device("meta")


class SimulatedDevice:
    """Its time: one piece of work after the other.

    clock, sleep: in seconds; given to simulate time itself
    runs_ahead: whether a launch returns before the step is done, as on a GPU; on a CPU it does not
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
        runs_ahead: bool = True,
        faults: SimulatedFaults = NO_FAULTS,
    ) -> None:
        self.clock = clock
        self.sleep = sleep
        self.runs_ahead = runs_ahead
        self.faults = faults
        self.done_at = -math.inf  # the end of everything launched


class SimulatedSteps:
    """Sleeps until a device would have done a step that takes what it costs."""

    def __init__(self, forward: StageCost, device: SimulatedDevice | None = None, max_rank: int = 0) -> None:
        self._forward = forward
        self._device = device or SimulatedDevice()
        self.bank = AdapterBank(EMPTY_LAYOUT, max_rank, torch.device("cpu"), torch.float32)

    def launch(self, inputs: StepInputs) -> torch.Tensor:
        device = self._device
        device.faults.check(len(inputs.request_of_row))
        shape = inputs.states.shape  # [B, STATE_SLOTS, C, h, w]
        rank = inputs.conditions.adapter_scales.shape[1]
        forward_s = self._forward.seconds((shape[3], shape[4]), len(inputs.request_of_row), rank)
        device.done_at = max(device.done_at, device.clock()) + forward_s
        if not device.runs_ahead:
            self.completion().synchronize()
        return inputs.states[:, :1].expand(-1, NUM_OUTPUTS, -1, -1, -1)

    def completion(self) -> Completion:
        return _Slept(self._device.done_at, self._device.clock, self._device.sleep)


class SimulatedLoader:
    """Takes the time of a load beside the steps. cost_of: the cost of a model's forwards

    max_rank: the most rows of a bank that the adapters of a forward take
    """

    def __init__(
        self,
        device: SimulatedDevice,
        cost_of: Callable[[ModelRef], StageCost],
        load_s: float,
        max_rank: int = 0,
    ) -> None:
        self._device = device
        self._cost_of = cost_of
        self._load_s = load_s
        self._max_rank = max_rank

    def describe(self, model: ModelRef) -> SimulatedUNet:
        return SimulatedUNet(load_unet_config(model.source), self._device.faults)

    def load(self, model: ModelRef, into: StepRunner | None) -> SimulatedSteps:
        self._device.sleep(self._load_s)
        return SimulatedSteps(self._cost_of(model), self._device, self._max_rank)


@dataclass(frozen=True, slots=True)
class _Slept:
    """The completion of simulated steps. done_at: in the clock's seconds"""

    done_at: float
    clock: Callable[[], float]
    sleep: Callable[[float], None]

    def query(self) -> bool:
        return self.clock() >= self.done_at

    def synchronize(self) -> None:
        self.sleep(max(0.0, self.done_at - self.clock()))


class SimulatedTextEncoder:
    """A TextEncoder whose embeddings are zeros, with only the values that the engine looks at."""

    def __init__(self, encode: Curve, is_xl: bool, faults: SimulatedFaults = NO_FAULTS) -> None:
        self._encode = encode
        self._faults = faults
        self._is_xl = is_xl

    def encode(
        self, texts: Sequence[ReadText], packed: TextAdapters | None = None
    ) -> list[EncodedText | StageError]:
        self._faults.check(len(texts))
        time.sleep(self._encode.seconds(len(texts)))
        pooled = torch.zeros(int(self._is_xl))
        return [_encoded(one, pooled) for one in texts]

    def warm_up(self, num_texts: int) -> None:
        self.encode([ReadText("")] * num_texts)

    def texts(self, prompt: PromptText) -> list[ReadText]:
        texts = [prompt.prompt, prompt.negative_prompt or ""] if prompt.guided else [prompt.prompt]
        return [ReadText(text, prompt.reading, prompt.adapters) for text in texts]

    def assemble(self, prompt: PromptText, encoded: Sequence[EncodedText]) -> PromptEmbeds:
        return join_embeds(encoded[0], encoded[1] if prompt.guided else None)


def _encoded(text: ReadText, pooled: torch.Tensor) -> EncodedText:
    """Zeros for as many chunks as the text has, with a token for each word."""
    size, given = MAX_TOKENS - 2, len(text.text.split())
    read = min(given, size * text.reading.max_chunks)
    chunks = max(1, -(-read // size))
    return EncodedText(torch.zeros(MAX_TOKENS * chunks, 1), pooled, TokenCount(given + 2, read + 2))


class SimulatedPictureEncoder:
    """A PictureEncoder whose latents are zeros, with only the shape of the model's."""

    def __init__(
        self,
        encode: StageCost,
        unet_config: Mapping[str, Any],
        scale_factor: int,
        faults: SimulatedFaults = NO_FAULTS,
    ) -> None:
        self._encode = encode
        self._faults = faults
        self._latent_channels: int = unet_config["out_channels"]
        self._with_masked = unet_config["in_channels"] != unet_config["out_channels"]
        self._scale_factor = scale_factor

    def encode(self, pictures: Sequence[PreparedPicture]) -> list[EncodedPicture | StageError]:
        self._faults.check(len(pictures))
        height, width = (side // self._scale_factor for side in pictures[0].pixels.shape[1:])
        time.sleep(self._encode.seconds((height, width), len(pictures)))
        zeros = torch.zeros(self._latent_channels, height, width)
        masked = zeros if self._with_masked else None
        return [
            EncodedPicture(
                zeros, zeros, None if one.mask is None else torch.ones(1, height, width), masked, masked
            )
            for one in pictures
        ]

    def warm_up(self, latent_shape: LatentShape, num_pictures: int) -> None:
        height, width = (self._scale_factor * side for side in latent_shape)
        self.encode([PreparedPicture(torch.zeros(3, height, width))] * num_pictures)


class SimulatedDecoder:
    """A LatentDecoder whose pictures are plain grey."""

    def __init__(self, decode: StageCost, scale_factor: int, faults: SimulatedFaults = NO_FAULTS) -> None:
        self._decode = decode
        self._faults = faults
        self._scale_factor = scale_factor

    def decode(self, latents: Sequence[torch.Tensor]) -> list[Pixels | StageError]:
        self._faults.check(len(latents))
        height, width = latents[0].shape[1:]
        time.sleep(self._decode.seconds((height, width), len(latents)))
        return [self.preview(item) for item in latents]

    def warm_up(self, latent_shape: LatentShape, num_images: int) -> None:
        self.decode([torch.zeros(1, *latent_shape)] * num_images)

    def preview(self, latents: torch.Tensor) -> Pixels:
        height, width = (self._scale_factor * side for side in latents.shape[1:])
        return np.full((height, width, 3), 128, np.uint8)
