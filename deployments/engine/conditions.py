"""A U-Net's inputs besides latents and timesteps, as one record of rows.

To add an input, add a field to `Conditions`, fill it in `conditions_of` and `random_conditions`, and pass it
to diffusers in `models.UNet`. All code in between passes the record on unchanged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch

from deployments.engine.messages import DenoiseRequest, LatentShape
from deployments.engine.transfers import send

MAX_TOKENS = 77  # the same in every Stable Diffusion text encoder
NO_ADAPTERS = torch.zeros(1, 0)
NUM_TIME_IDS = 6  # original size, crop, target size


class UNetInterface(Protocol):
    """What the code that makes inputs reads of a U-Net: a UNetShape, or a simulated one."""

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
class UNetShape:
    """The inputs of a U-Net, which its configuration tells without its weights.

    latent_channels: channels of latents; picture_channels: further ones of U-Nets for inpainting; 0: none
    embeds_width, pooled_width: widths of the prompt embeddings; time_ids_width: number of time ids; 0: none
    """

    device: torch.device
    dtype: torch.dtype
    latent_channels: int
    picture_channels: int
    embeds_width: int
    pooled_width: int
    time_ids_width: int

    @classmethod
    def of(cls, config: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> UNetShape:
        """config: as in unet/config.json"""
        is_xl = config.get("addition_embed_type") == "text_time"
        pooled_width = 0
        if is_xl:
            of_time_ids = NUM_TIME_IDS * config["addition_time_embed_dim"]
            pooled_width = config["projection_class_embeddings_input_dim"] - of_time_ids
        latent_channels = config["out_channels"]
        return cls(
            device=device,
            dtype=dtype,
            latent_channels=latent_channels,
            picture_channels=config["in_channels"] - latent_channels,
            embeds_width=config["cross_attention_dim"],
            pooled_width=pooled_width,
            time_ids_width=NUM_TIME_IDS if is_xl else 0,
        )


# They say where a U-Net is from and what it was trained with, and nothing about its weights' shapes.
_NOT_ARCHITECTURE = (
    "_class_name",
    "_diffusers_version",
    "_name_or_path",
    "_use_default_values",
    "sample_size",
)


def architecture(config: Mapping[str, Any]) -> str:
    """A key that U-Nets share if one's weights can take the place of the other's.

    config: of a module, which has all defaults filled in; a file's may leave some out
    """
    told = {name: value for name, value in config.items() if name not in _NOT_ARCHITECTURE}
    return json.dumps(told, sort_keys=True, default=str)


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
    adapter_scales: torch.Tensor  # [rows, rank] float32, as in bank.Scales; rank 0 without adapters
    other_scales: torch.Tensor  # the same of the layers outside of transformers

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
    # Where adapters lie in the bank is known when a forward is launched.
    of_both = (time_ids[: unet.time_ids_width][None], picture_channels[None], NO_ADAPTERS, NO_ADAPTERS)
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


def random_conditions(rows: int, latent_shape: LatentShape, unet: UNetInterface, rank: int = 0) -> Conditions:
    """Random rows with the U-Net's widths, on its device, for warming up and measuring.

    rank: of adapters of the transformers, as most are
    """
    conditions = Conditions(
        prompt_embeds=torch.randn(rows, MAX_TOKENS, unet.embeds_width),
        pooled_prompt_embeds=torch.randn(rows, unet.pooled_width),
        time_ids=torch.ones(rows, unet.time_ids_width),
        picture_channels=torch.zeros(rows, unet.picture_channels, *latent_shape),
        adapter_scales=torch.ones(rows, rank),
        other_scales=torch.ones(rows, 0),
    )
    return conditions.map(lambda tensor: tensor.to(unet.device, unet.dtype))
