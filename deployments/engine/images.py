"""Turns latents into pixels, and pixels into files."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, PngImagePlugin

from deployments.engine.messages import EncodedImage, ImageFormat, LatentShape
from deployments.engine.stage_errors import StageError, not_finite

Pixels = np.ndarray  # [height, width, 3] uint8
DEFAULT_QUALITY = 95
_MAX_EXIF_BYTES = 65533  # limit of a segment in a JPEG file
_LOSSY = {"image/webp": "WEBP", "image/jpeg": "JPEG"}


class LatentDecoder:
    """Decodes latents with a VAE, and previews them with a linear map fitted to that VAE."""

    def __init__(self, vae: diffusers.AutoencoderKL) -> None:
        self._vae = vae
        self._scale_factor = scale_factor_of(vae)
        self._rgb_map = _fit_rgb_map(vae, self._scale_factor)  # [C + 1, 3], on the CPU

    @torch.inference_mode()
    def decode(self, latents: Sequence[torch.Tensor]) -> list[Pixels | StageError]:
        """Decodes scaled latents [C, h, w] of one shape in one batch; each that overflows gives an error."""
        mean, scale = latent_statistics(self._vae)
        batch = (torch.stack(list(latents)) * scale + mean).to(self._vae.device, self._vae.dtype)
        images = self._vae.decode(batch, return_dict=False)[0]  # [B, 3, H, W] in -1..1
        finite = torch.isfinite(images).flatten(1).all(dim=1)  # [B]
        pixels = _to_pixels(images)
        return [
            one if sound else not_finite("VAE") for one, sound in zip(pixels, finite.tolist(), strict=True)
        ]

    def warm_up(self, latent_shape: LatentShape, num_images: int) -> None:
        """Decodes noise and waits for it, for warming up and measuring."""
        channels = self._vae.config.latent_channels
        self.decode(list(torch.randn(num_images, channels, *latent_shape)))

    def preview(self, latents: torch.Tensor) -> Pixels:
        """Makes a rough picture of scaled latents [C, h, w] in full size, without the VAE."""
        colours = latents.permute(1, 2, 0) @ self._rgb_map[:-1] + self._rgb_map[-1]  # [h, w, 3]
        image = F.interpolate(
            colours.permute(2, 0, 1)[None],
            scale_factor=self._scale_factor,
            mode="bicubic",
            align_corners=False,
        )
        pixels: Pixels = _to_pixels(image)[0]
        return pixels


def scale_factor_of(vae: diffusers.AutoencoderKL) -> int:
    """Image pixels per latent, in each direction."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def latent_statistics(vae: diffusers.AutoencoderKL) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and scale [1, C, 1, 1] between the U-Net's and the VAE's latents, as in diffusers' pipelines."""
    mean, std = vae.config.latents_mean, vae.config.latents_std
    if mean is None or std is None:
        mean, std = [0.0] * vae.config.latent_channels, [1.0] * vae.config.latent_channels
    return torch.tensor(mean).view(1, -1, 1, 1), torch.tensor(std).view(
        1, -1, 1, 1
    ) / vae.config.scaling_factor


def _to_pixels(images: torch.Tensor) -> Pixels:
    """Turns [B, 3, H, W] in -1..1 into [B, H, W, 3] bytes, rounded like diffusers' VaeImageProcessor."""
    unit = (images.float() * 0.5 + 0.5).clamp(0, 1)
    pixels: Pixels = (unit * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return pixels


@torch.inference_mode()
def _fit_rgb_map(vae: diffusers.AutoencoderKL, scale_factor: int) -> torch.Tensor:
    """Fits latents to the mean colour of their pixels by least squares, on random patches of colour."""
    generator = torch.Generator().manual_seed(0)
    # The sine moves colours towards the corners of the colour cube, where most of a picture's contrast is.
    colours = torch.sin(torch.pi * (torch.rand(32, 3, 4, 4, generator=generator) - 0.5))
    pictures = F.interpolate(colours, size=(16 * scale_factor, 16 * scale_factor), mode="nearest")
    means = F.avg_pool2d(pictures, scale_factor)  # [32, 3, 16, 16]
    encoded = vae.encode(pictures.to(vae.device, vae.dtype)).latent_dist.mean.float().cpu()
    mean, scale = latent_statistics(vae)
    rows = ((encoded - mean) / scale).permute(0, 2, 3, 1).flatten(0, 2)  # [32 * 16 * 16, C]
    rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
    fitted: torch.Tensor = torch.linalg.lstsq(rows, means.permute(0, 2, 3, 1).flatten(0, 2)).solution
    return fitted


def encode_image(pixels: Pixels, image_format: ImageFormat, metadata: Mapping[str, str]) -> EncodedImage:
    """Writes a file in the wanted format.

    metadata: text chunks in PNG; JPEG and WebP take only `parameters`, as a comment in EXIF
    """
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    if image_format.media_type == "image/png":
        text = PngImagePlugin.PngInfo()
        for key, value in metadata.items():
            text.add_text(key, value)
        # Level 1: a quarter less time than the default for a few percent more bytes.
        image.save(file, "PNG", compress_level=1, pnginfo=text)
    elif image_format.media_type in _LOSSY:
        quality = DEFAULT_QUALITY if image_format.quality is None else image_format.quality
        exif = _exif(metadata.get("parameters", ""))
        image.save(file, _LOSSY[image_format.media_type], quality=quality, exif=exif)
    else:
        raise ValueError(f"unknown media type {image_format.media_type!r}")
    height, width = pixels.shape[:2]
    return EncodedImage(file.getvalue(), image_format.media_type, height, width)


def _exif(comment: str) -> bytes:
    """EXIF with a comment in A1111's form; empty without a comment, or if it is too long for JPEG."""
    if not comment:
        return b""
    encoded = b"UNICODE\0" + comment.encode("utf-16-be")
    # By hand, because Pillow writes type bytes (1). EXIF says undefined (7), and readers insist on that.
    header = struct.pack(">2sHI", b"MM", 42, 8)
    main_ifd = struct.pack(">HHHIII", 1, ExifTags.IFD.Exif, 4, 1, 26, 0)
    exif_ifd = struct.pack(">HHHIII", 1, ExifTags.Base.UserComment, 7, len(encoded), 44, 0)
    exif = b"Exif\0\0" + header + main_ifd + exif_ifd + encoded
    return exif if len(exif) <= _MAX_EXIF_BYTES else b""
