"""The first latents of an image, from noise or from a picture, and what a mask keeps of the picture.

All draws from the request's generator that come before its steps are here, in the order of diffusers'
pipelines, so that the same seed gives the same image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from deployments.engine.messages import DenoiseRequest
from deployments.engine.sampler_table import SamplerTable


@dataclass(frozen=True, slots=True)
class Kept:
    """What a mask keeps of a picture, all on one device.

    mask: [1, h, w], 1 where the image is repainted; picture: its latents, noise: [C, h, w]
    """

    mask: torch.Tensor
    picture: torch.Tensor
    noise: torch.Tensor

    def put_back(self, latents: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The latents [C, h, w] with what is kept. weights: of the picture and the noise in it, [2]"""
        known = float(weights[0]) * self.picture + float(weights[1]) * self.noise
        return self.mask * latents + (1 - self.mask) * known

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Kept:
        return Kept(change(self.mask), change(self.picture), change(self.noise))


def first_latents(
    request: DenoiseRequest, table: SamplerTable, generator: torch.Generator, shape: torch.Size
) -> tuple[torch.Tensor, Kept | None]:
    """The latents before the first call, [C, h, w] on the CPU, and what a mask keeps."""
    if request.picture is None:
        return table.initial_scale * draw_noise(generator, shape), None
    assert table.start is not None, "a request with a picture has a strength"
    on_picture, on_noise = table.start
    picture = request.picture.mean + request.picture.std * draw_noise(generator, shape)
    noise = draw_noise(generator, shape)
    noised = on_picture * picture + on_noise * noise
    if request.picture.mask is None:
        return noised, None
    draw_noise(generator, shape)  # diffusers draws the masked picture's latents, which only some models read
    latents = table.initial_scale * noise if request.strength == 1 else noised
    return latents, Kept(request.picture.mask, picture, noise)


def draw_noise(generator: torch.Generator, shape: torch.Size) -> torch.Tensor:
    # diffusers draws this shape for one image, and a generator's stream depends on the shape.
    return torch.randn(1, *shape, generator=generator)[0]
