"""Pictures to start from: prepared as diffusers' pipelines do, and encoded by the VAE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import diffusers
import torch
import torch.nn.functional as F
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageOps

from deployments.engine.images import latent_statistics
from deployments.engine.messages import EncodedPicture
from deployments.engine.stage_errors import StageError, not_finite


@dataclass(frozen=True, slots=True)
class PreparedPicture:
    """A picture as the VAE reads it.

    pixels: [3, H, W] float32 in -1..1; mask: [1, h, w] float32 of 0 and 1 in latents' size, or None
    """

    pixels: torch.Tensor
    mask: torch.Tensor | None = None


def prepare_picture(
    picture: Image.Image, mask: Image.Image | None, height: int, width: int, scale_factor: int
) -> PreparedPicture:
    """Brings a picture and its mask to a size in pixels. What is transparent becomes white.

    mask: white is repainted; a pixel counts as white from a half on
    """
    pixels = VaeImageProcessor(vae_scale_factor=scale_factor).preprocess(
        _opaque(picture), height=height, width=width
    )[0]
    if mask is None:
        return PreparedPicture(pixels)
    masks = VaeImageProcessor(
        vae_scale_factor=scale_factor, do_normalize=False, do_binarize=True, do_convert_grayscale=True
    )
    whole = masks.preprocess(mask.convert("L"), height=height, width=width)  # [1, 1, H, W]
    # Nearest, which is what diffusers' pipelines do.
    small = F.interpolate(whole, size=(height // scale_factor, width // scale_factor))
    return PreparedPicture(pixels, small[0])


def _opaque(picture: Image.Image) -> Image.Image:
    """The picture as its EXIF says that it stands, on white."""
    upright = ImageOps.exif_transpose(picture)
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    layer = upright.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


class PictureEncoder:
    """Encodes pictures with a VAE. It draws nothing, so one encoding serves any number of images."""

    def __init__(self, vae: diffusers.AutoencoderKL) -> None:
        self._vae = vae

    @torch.inference_mode()
    def encode(self, pictures: Sequence[PreparedPicture]) -> list[EncodedPicture | StageError]:
        """Encodes pictures of one size in one batch; each that overflows gives an error."""
        mean, scale = latent_statistics(self._vae)
        batch = torch.stack([picture.pixels for picture in pictures])
        posterior = self._vae.encode(batch.to(self._vae.device, self._vae.dtype)).latent_dist
        means = (posterior.mean.float().cpu() - mean) / scale  # [B, C, h, w]
        stds = posterior.std.float().cpu() / scale
        finite = (torch.isfinite(means) & torch.isfinite(stds)).flatten(1).all(dim=1)  # [B]
        return [
            EncodedPicture(one, std, picture.mask) if sound else not_finite("VAE")
            for picture, one, std, sound in zip(pictures, means, stds, finite.tolist(), strict=True)
        ]
