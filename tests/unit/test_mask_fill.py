"""Masks that are filled with the colours around them."""

import numpy as np
from PIL import Image, ImageFilter

from deployments.engine.messages import Picture
from serve.mask_fill import filled


def with_mask(
    image: Image.Image, mask: Image.Image, crop: tuple[int, int, int, int] | None = None
) -> Picture:
    image = image.copy()
    image.putalpha(mask)
    return Picture(np.asarray(image), crop)


def square(size: tuple[int, int] = (128, 128), side: int = 64) -> Image.Image:
    """A mask that is white in its middle."""
    mask = Image.new("L", size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    mask.paste(255, (left, top, left + side, top + side))
    return mask


def test_a_mask_gets_the_colours_around_it_and_the_rest_stays() -> None:
    image = Image.new("RGB", (128, 128), "red")
    image.paste("blue", (64, 0, 128, 128))
    image.paste("lime", (33, 33, 95, 95))
    given = with_mask(image, square())
    pixels = filled(given).pixels
    kept = given.pixels[:, :, 3] == 0
    assert np.array_equal(pixels[kept], given.pixels[kept])
    assert np.array_equal(pixels[:, :, 3], given.pixels[:, :, 3]), "the mask stays"
    assert pixels[:, :, 1].max() == 0, "nothing of what was there is left"
    left, right = pixels[64, 36, :3].astype(int), pixels[64, 91, :3].astype(int)
    assert left[0] > 200 > left[2]
    assert right[2] > 200 > right[0]


def test_a_soft_edge_passes_over() -> None:
    mask = square().filter(ImageFilter.GaussianBlur(4))
    given = with_mask(Image.new("RGB", (128, 128), "red"), mask)
    image = given.pixels.copy()
    image[given.pixels[:, :, 3] > 0, :3] = (0, 255, 0)
    pixels = filled(Picture(image)).pixels
    edge = (image[:, :, 3] > 0) & (image[:, :, 3] < 128)
    assert np.array_equal(pixels[edge], image[edge]), "which is hardly repainted"
    assert tuple(pixels[64, 64, :3]) == (255, 0, 0)
    row = pixels[64, 30:64, 1].astype(int)
    assert (np.diff(row[row < 255]) <= 0).all(), "there is no seam"


def test_only_a_crop_is_filled_and_a_mask_of_all_is_grey() -> None:
    image = Image.new("RGB", (256, 128), "red")
    given = with_mask(image, Image.new("L", (256, 128), 255), crop=(0, 0, 128, 128))
    pixels = filled(given).pixels
    assert (pixels[:, :128, :3] == 128).all()
    assert (pixels[:, 128:, :3] == (255, 0, 0)).all()
    assert filled(given).crop == given.crop


def test_large_pictures_are_filled_at_a_smaller_size() -> None:
    image = Image.new("RGB", (1500, 1000), "blue")
    image.paste("yellow", (600, 300, 900, 600))
    pixels = filled(with_mask(image, square((1500, 1000), 600))).pixels
    assert np.abs(pixels[:, :, :3].astype(int) - (0, 0, 255)).max() <= 2
