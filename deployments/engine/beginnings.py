"""The first latents of an image, from noise or from a picture, and what a mask keeps of the picture.

All draws from the request's generator that come before its steps are here, in the order of diffusers'
pipelines, so that the same seed gives the same image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from deployments.engine.messages import DenoiseRequest, EncodedPicture
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


@dataclass(frozen=True, slots=True)
class Beginning:
    """An image before its first call, all on the CPU.

    latents: [C, h, w]
    kept: what is put back after each step; None without a mask and for U-Nets that read the picture
    picture_channels: what such a U-Net reads beside the latents, [its further channels, h, w]
    """

    latents: torch.Tensor
    kept: Kept | None
    picture_channels: torch.Tensor


def beginning_of(
    request: DenoiseRequest,
    table: SamplerTable,
    generator: torch.Generator,
    shape: torch.Size,
    num_picture_channels: int = 0,
) -> Beginning:
    """shape: of the latents; num_picture_channels: what the U-Net reads beside them: the mask and the
    masked picture's latents, or nothing"""
    nothing = torch.empty(0, *shape[1:])
    if request.picture is None:
        assert num_picture_channels == 0, "a request to such a U-Net has a picture"
        return Beginning(table.initial_scale * draw_noise(generator, shape), None, nothing)
    assert table.start is not None, "a request with a picture has a strength"
    on_picture, on_noise = table.start
    start, mask = request.picture, request.picture.mask
    is_noise_only = mask is not None and request.strength == 1
    reads_picture = num_picture_channels > 0
    # diffusers does not encode a picture that nothing reads, so nothing is drawn for it.
    picture = None if is_noise_only and reads_picture else _drawn(start.mean, start.std, generator)
    noise = draw_noise(generator, shape)
    if is_noise_only or picture is None:
        latents = table.initial_scale * noise
    else:
        latents = on_picture * picture + on_noise * noise
    if mask is None:
        return Beginning(latents, None, nothing)
    if reads_picture:
        return Beginning(latents, None, torch.cat([mask, _drawn_masked(start, generator)]))
    assert picture is not None, "it is drawn for a U-Net that does not read it"
    draw_noise(generator, shape)  # diffusers draws the masked picture's latents in any case
    return Beginning(latents, Kept(mask, picture, noise), nothing)


def _drawn(mean: torch.Tensor, std: torch.Tensor | None, generator: torch.Generator) -> torch.Tensor:
    """Latents of a picture. Exact ones are not drawn."""
    return mean if std is None else mean + std * draw_noise(generator, mean.shape)


def _drawn_masked(picture: EncodedPicture, generator: torch.Generator) -> torch.Tensor:
    assert picture.masked_mean is not None, "a picture with a mask was encoded for this U-Net"
    return _drawn(picture.masked_mean, picture.masked_std, generator)


def draw_noise(generator: torch.Generator, shape: torch.Size) -> torch.Tensor:
    # diffusers draws this shape for one image, and a generator's stream depends on the shape.
    return torch.randn(1, *shape, generator=generator)[0]
