"""A U-Net's inputs besides latents and timesteps, as one record of rows.

To add an input, add a field to `Conditions`, fill it in `conditions_of` and `random_conditions`, and pass it
to diffusers in `models.UNet`. All code in between passes the record on unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch

from deployments.engine.messages import DenoiseRequest, LatentShape
from deployments.engine.transfers import send

MAX_TOKENS = 77  # the same in every Stable Diffusion text encoder
NUM_TIME_IDS = 6  # original size, crop, target size


class UNetInterface(Protocol):
    """What the code that makes inputs reads from a U-Net, real or simulated; see `models.UNet`."""

    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def latent_channels(self) -> int: ...
    @property
    def picture_channels(self) -> int: ...
    @property
    def embeds_width(self) -> int: ...
    @property
    def pooled_width(self) -> int: ...
    @property
    def time_ids_width(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Conditions:
    """Rows of a U-Net's other inputs. All requests have the same fields, so their rows fit together. Rows of
    fewer tokens are repeated, which changes roundings alone: attention sees each key and value as often.

    An input that the model does not take has width 0. An input that the request does not use has a value that
    changes nothing.
    """

    prompt_embeds: torch.Tensor  # [rows, tokens, width]
    pooled_prompt_embeds: torch.Tensor  # [rows, width], width 0 except for SDXL
    time_ids: torch.Tensor  # [rows, NUM_TIME_IDS], width 0 except for SDXL
    picture_channels: torch.Tensor  # [rows, C, h, w]: a mask and the masked picture, or no channels

    @classmethod
    def join(cls, parts: Sequence[Conditions]) -> Conditions:
        """The rows of all parts, in order."""
        tokens = math.lcm(*(part.prompt_embeds.shape[1] for part in parts))
        alike = [replace(part, prompt_embeds=_of_length(part.prompt_embeds, tokens)) for part in parts]
        return cls(*map(torch.cat, zip(*(part.tensors() for part in alike), strict=True)))

    def tensors(self) -> list[torch.Tensor]:
        return [getattr(self, field.name) for field in fields(self)]

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Conditions:
        return Conditions(*map(change, self.tensors()))

    def take(self, rows: torch.Tensor) -> Conditions:
        """The rows with these indices."""
        return self.map(lambda tensor: tensor[rows])

    def last(self, rows: int) -> Conditions:
        """The last rows."""
        return self.map(lambda tensor: tensor[-rows:])

    def repeat_first(self, times: int) -> Conditions:
        """The first row, repeated `times` times."""
        return self.map(lambda tensor: tensor[:1].expand(times, *tensor.shape[1:]))


def conditions_of(request: DenoiseRequest, picture_channels: torch.Tensor, unet: UNetInterface) -> Conditions:
    """A request's rows on the U-Net's device, the negative prompt's row first.

    picture_channels: [unet.picture_channels, h, w]
    """
    embeds = request.embeds
    # diffusers' default values.
    time_ids = torch.tensor([request.height, request.width, 0, 0, request.height, request.width])
    of_both = (time_ids[: unet.time_ids_width][None], picture_channels[None])
    rows = [Conditions(embeds.prompt_embeds[None], embeds.pooled_prompt_embeds[None], *of_both)]
    if embeds.negative_prompt_embeds is not None:
        assert embeds.negative_pooled_prompt_embeds is not None, "a negative prompt has both"
        negative = (embeds.negative_prompt_embeds[None], embeds.negative_pooled_prompt_embeds[None])
        rows.insert(0, Conditions(*negative, *of_both))
    conditions = Conditions.join(rows)
    return conditions.map(lambda tensor: send(tensor.to(unet.dtype), unet.device))


def _of_length(embeds: torch.Tensor, tokens: int) -> torch.Tensor:
    """Embeddings [rows, tokens, width], repeated."""
    if embeds.shape[1] == tokens:
        return embeds  # nearly always, and a copy would cost each request a kernel a step
    return embeds.repeat(1, tokens // embeds.shape[1], 1)


def random_conditions(rows: int, latent_shape: LatentShape, unet: UNetInterface) -> Conditions:
    """Random rows with the U-Net's widths, on its device, for warming up and measuring."""
    conditions = Conditions(
        prompt_embeds=torch.randn(rows, MAX_TOKENS, unet.embeds_width),
        pooled_prompt_embeds=torch.randn(rows, unet.pooled_width),
        time_ids=torch.ones(rows, unet.time_ids_width),
        picture_channels=torch.zeros(rows, unet.picture_channels, *latent_shape),
    )
    return conditions.map(lambda tensor: tensor.to(unet.device, unet.dtype))
