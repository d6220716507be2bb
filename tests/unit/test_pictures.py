"""Pixels, previews and image files."""

import io
import struct
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from deployments.engine.images import encode_image
from deployments.engine.messages import ImageFormat
from tests.conftest import LoadedModel
from tests.shapes import scenes

PIXELS = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)


def test_a_png_has_the_pixels_and_the_metadata() -> None:
    metadata = {"prompt": "ein großer roter Stern ★", "seed": "7"}
    encoded = encode_image(PIXELS, ImageFormat("image/png"), metadata)
    image = Image.open(io.BytesIO(encoded.data))
    assert np.array_equal(np.asarray(image), PIXELS)
    assert image.text == metadata  # type: ignore[attr-defined]
    assert (encoded.height, encoded.width) == (24, 32)


@pytest.mark.parametrize(("media_type", "name"), [("image/webp", "WEBP"), ("image/jpeg", "JPEG")])
def test_quality_costs_bytes(media_type: str, name: str) -> None:
    low, high = (encode_image(PIXELS, ImageFormat(media_type, quality), {}).data for quality in (10, 95))
    assert Image.open(io.BytesIO(low)).format == name
    assert len(low) < len(high)


@pytest.mark.parametrize("media_type", ["image/webp", "image/jpeg"])
def test_other_formats_have_the_parameters_in_exif(media_type: str) -> None:
    text = "ein großer ★\nSteps: 20, Seed: 7"
    first, again = (encode_image(PIXELS, ImageFormat(media_type), {"parameters": text}) for _ in range(2))
    assert first.data == again.data
    exif = Image.open(io.BytesIO(first.data)).getexif()
    comment = exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    assert comment == b"UNICODE\0" + text.encode("utf-16-be")
    undefined = struct.pack(">HH", ExifTags.Base.UserComment, 7)
    assert undefined in first.data, "the type that A1111 reads it by"
    too_long = encode_image(PIXELS, ImageFormat(media_type), {"parameters": "a" * 40_000})
    assert len(Image.open(io.BytesIO(too_long.data)).getexif()) == 0


def test_decoding_in_a_batch_is_decoding_alone(load_model: Callable[..., LoadedModel]) -> None:
    decoder = load_model("shapes").decoder
    latents = list(torch.randn(3, 8, 16, 16, generator=torch.Generator().manual_seed(0)))
    together = decoder.decode(latents)
    for index, item in enumerate(latents):
        [alone] = decoder.decode([item])
        assert np.abs(together[index].astype(int) - alone.astype(int)).max() <= 1


def test_a_preview_has_the_colours_of_the_picture(load_model: Callable[..., LoadedModel]) -> None:
    model = load_model("shapes")
    vae = model.decoder._vae
    picture = scenes.draw("blue", (scenes.Placed(scenes.Thing("yellow", "square", "large"), 64, 64, 46),))
    signal = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.inference_mode():
        latents = vae.encode(signal).latent_dist.mean[0] * vae.config.scaling_factor
    preview = model.decoder.preview(latents)
    assert preview.shape == (128, 128, 3)
    likeness = np.corrcoef(preview.ravel().astype(float), np.asarray(picture).ravel().astype(float))[0, 1]
    assert likeness > 0.7
