"""Pictures to start from: prepared, encoded and laid around results as in diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from deployments.engine.images import Pixels, latent_statistics, scale_factor_of
from deployments.engine.messages import EncodedPicture, LatentShape, Picture
from deployments.engine.stage_errors import StageError, is_finite, not_finite


@dataclass(frozen=True, slots=True)
class PreparedPicture:
    """A picture as the VAE reads it.

    pixels: [3, H, W] float32 in -1..1; mask: [1, H, W] float32 of 0 and 1, 1 where it is repainted, or None
    """

    pixels: torch.Tensor
    mask: torch.Tensor | None = None


def prepare_picture(picture: Picture, height: int, width: int) -> PreparedPicture:
    """Brings a picture or its crop to a size in pixels."""
    options = {
        "height": height,
        "width": width,
        "crops_coords": picture.crop,
        "resize_mode": "default" if picture.crop is None else "fill",
    }
    pixels = VaeImageProcessor().preprocess(Image.fromarray(picture.pixels[:, :, :3]), **options)[0]
    if not picture.has_mask:
        return PreparedPicture(pixels)
    masks = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    return PreparedPicture(pixels, masks.preprocess(_mask_of(picture), **options)[0])


def laid_around(pixels: Pixels, picture: Picture) -> Pixels:
    """A finished image, or finished crop, in what the mask keeps of the picture; in the picture's size."""
    whole = VaeImageProcessor().apply_overlay(
        _mask_of(picture),
        Image.fromarray(picture.pixels[:, :, :3]),
        Image.fromarray(pixels),
        picture.crop,
    )
    return np.asarray(whole)


def enlarged(pixels: Pixels, height: int, width: int) -> Picture:
    """A finished image in another size in pixels."""
    image = Image.fromarray(pixels)
    return Picture(np.asarray(image.resize((width, height), Image.Resampling.LANCZOS)))


def enlarged_latents(latents: torch.Tensor, shape: LatentShape) -> EncodedPicture:
    """Latents [C, h, w] in another shape, to start from."""
    return EncodedPicture(F.interpolate(latents[None], size=shape, mode="bicubic")[0], None)


def _mask_of(picture: Picture) -> Image.Image:
    return Image.fromarray(picture.pixels[:, :, 3])


class PictureEncoder:
    """Encodes pictures with a VAE. It draws nothing, so one encoding serves any number of images.

    with_masked: whether the U-Net also reads the pictures without what is repainted
    """

    def __init__(self, vae: diffusers.AutoencoderKL, with_masked: bool = False) -> None:
        self._vae = vae
        self._scale_factor = scale_factor_of(vae)
        self._with_masked = with_masked

    @torch.inference_mode()
    def encode(self, pictures: Sequence[PreparedPicture]) -> list[EncodedPicture | StageError]:
        """Encodes pictures of one size in one batch; each that overflows gives an error."""
        means, stds = self._moments([picture.pixels for picture in pictures])
        masked_means: Sequence[torch.Tensor | None] = [None] * len(pictures)
        masked_stds = masked_means
        if self._with_masked:
            masked_means, masked_stds = self._moments([_without_repainted(picture) for picture in pictures])
        return [
            EncodedPicture(mean, std, self._small(picture.mask), masked_mean, masked_std)
            if is_finite(*(one for one in (mean, std, masked_mean, masked_std) if one is not None))
            else not_finite("VAE")
            for picture, mean, std, masked_mean, masked_std in zip(
                pictures, means, stds, masked_means, masked_stds, strict=True
            )
        ]

    def warm_up(self, latent_shape: LatentShape, num_pictures: int) -> None:
        """Encodes grey pictures and waits for them, for warming up and measuring."""
        height, width = (self._scale_factor * side for side in latent_shape)
        grey = PreparedPicture(torch.zeros(3, height, width), torch.zeros(1, height, width))
        self.encode([grey] * num_pictures)

    def _moments(self, pixels: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Means and standard deviations of the scaled latents, [C, h, w] float32 on the CPU each."""
        mean, scale = latent_statistics(self._vae)
        batch = torch.stack(list(pixels)).to(self._vae.device, self._vae.dtype)
        posterior = self._vae.encode(batch).latent_dist
        means = (posterior.mean.float().cpu() - mean) / scale
        # Copies, so that keeping one picture does not keep its whole batch in memory.
        return [one.clone() for one in means], [one.clone() for one in posterior.std.float().cpu() / scale]

    def _small(self, mask: torch.Tensor | None) -> torch.Tensor | None:
        """A mask in the latents' size; nearest, as in diffusers' pipelines."""
        if mask is None:
            return None
        size = [side // self._scale_factor for side in mask.shape[1:]]
        return F.interpolate(mask[None], size=size)[0]


def _without_repainted(picture: PreparedPicture) -> torch.Tensor:
    assert picture.mask is not None, "a model for inpainting gets only pictures with a mask"
    return picture.pixels * (picture.mask < 0.5)
