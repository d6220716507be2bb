"""Pictures to start from, and what a model makes of the fields beside them."""

import hashlib
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deployments.engine.model_source import load_model_info
from serve.config.app import AppConfig
from serve.errors import ImageTooLargeError, InvalidRequestError, UnsupportedImageError
from serve.generation import HiresPass, StartPicture
from serve.served_model import Accepted, ServedModel
from serve.start_pictures import OpenedPicture, open_picture
from serve.wanted import Wanted, WantedHires
from tests.picture_files import (
    QUARTERS,
    animated,
    file_of,
    half_transparent,
    picture,
    png_of_header,
    quarters,
    right_half,
)

INFO = load_model_info(AppConfig().model.source())  # of 128x128 pixels; at most 256x256
ON_WHITE = ["red", "white", "blue", "white"]
PNG = file_of(picture())
MASK = file_of(right_half())
# What makes a file that stands upright by its EXIF into the picture as it should be.
TURNED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def model(needs_mask: bool = False, scale_factor: int = INFO.scale_factor, **limits: Any) -> ServedModel:
    info = replace(INFO, needs_mask=needs_mask, scale_factor=scale_factor)
    return ServedModel.of(AppConfig.model_validate({"limits": limits}), info, lambda: None)


MODEL = model()


def opened(image: bytes, mask: bytes | None = None, edit: bool = False) -> OpenedPicture:
    """edit: as in OpenAI's dialect"""
    wanted = Wanted("a star", image=image, mask=mask, transparent_is_repainted=edit)
    return open_picture(wanted, MODEL.limits)


def repainted(image: bytes, mask: bytes | None = None, edit: bool = False) -> list[str] | None:
    """The quarters of the mask: white is repainted."""
    found = opened(image, mask, edit).mask
    return None if found is None else quarters(found)


def accept(model: ServedModel = MODEL, image: bytes | None = PNG, **fields: Any) -> Accepted:
    return model.accept(Wanted("a star", image=image, **fields), "id")


def start_of(accepted: Accepted) -> StartPicture:
    assert accepted.request.start is not None
    return accepted.request.start


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def turned(image: Image.Image, orientation: int) -> Image.Image:
    how = TURNED[orientation]
    return image if how is None else image.transpose(how)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", TURNED)
def test_a_picture_stands_as_its_exif_says(kind: str, orientation: int) -> None:
    file = file_of(turned(picture(), orientation), kind, exif=exif(orientation))
    upright = opened(file)
    assert quarters(upright.image) == QUARTERS
    assert upright.size == (64, 96)


@pytest.mark.parametrize("mode", ["L", "I;16", "P", "RGBA", "1"])
def test_it_stands_so_whatever_its_pixels_are(mode: str) -> None:
    lying = turned(right_half((64, 96)), 6)
    wide = Image.fromarray(np.asarray(lying).astype(np.uint16) * 257)
    file = file_of(wide if mode == "I;16" else lying.convert(mode), exif=exif(6))
    assert quarters(opened(file).image) == ["black", "white", "black", "white"]


def test_a_mask_stands_as_its_exif_says_too() -> None:
    mask = file_of(turned(right_half(), 6), exif=exif(6))
    assert repainted(PNG, mask) == ["black", "white", "black", "white"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "unreadable",
    [
        b"garbage",
        b"MM\0*",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0\xff\xff\xff\xff",
    ],
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_an_exif_that_cannot_be_read_says_nothing(kind: str, unreadable: bytes) -> None:
    image = opened(file_of(picture(), kind, exif=b"Exif\0\0" + unreadable)).image
    assert quarters(image) == QUARTERS


def wide_grey() -> Image.Image:
    """Grey of sixteen bits a pixel."""
    values = np.zeros((64, 96), np.uint16)
    values[:, 48:] = 0x8000
    values[:32] += 0x7FFF
    return Image.fromarray(values)


def with_one_transparent_colour(kind: str = "P") -> bytes:
    """Black, which the file says is transparent."""
    image = picture()
    if kind == "RGB":
        return file_of(image, transparency=(0, 0, 0))
    palette = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    black = palette.getpixel((95, 63))
    assert isinstance(black, int)
    if kind == "P":
        return file_of(palette, transparency=black)
    return file_of(palette, transparency=bytes(0 if index == black else 255 for index in range(4)))


@pytest.mark.parametrize(
    ("file", "seen"),
    [
        (file_of(picture().convert("P", palette=Image.Palette.ADAPTIVE)), QUARTERS),
        (with_one_transparent_colour("P"), ["red", "green", "blue", "white"]),
        (with_one_transparent_colour("alphas"), ["red", "green", "blue", "white"]),
        (with_one_transparent_colour("RGB"), ["red", "green", "blue", "white"]),
        (file_of(half_transparent(picture())), ON_WHITE),
        (file_of(half_transparent(picture()), "WEBP", lossless=True), ON_WHITE),
        (file_of(half_transparent(picture()), "WEBP"), ON_WHITE),
        (file_of(half_transparent(right_half()).convert("LA")), ["black", "white", "black", "white"]),
        (file_of(right_half(right=128)), ["black", "grey", "black", "grey"]),
        (file_of(right_half().convert("1")), ["black", "white", "black", "white"]),
        (file_of(right_half(), "JPEG"), ["black", "white", "black", "white"]),
        (file_of(picture(), "JPEG", quality=95, progressive=True), QUARTERS),
        (file_of(picture().convert("CMYK"), "JPEG", quality=95), QUARTERS),
        (file_of(picture(), "WEBP"), QUARTERS),
        (file_of(picture(), "MPO", save_all=True, append_images=[picture().rotate(180)]), QUARTERS),
        (file_of(wide_grey()), ["grey", "white", "black", "grey"]),
    ],
    ids=[
        "palette",
        "palette with a transparent colour",
        "palette with alphas",
        "RGB with a transparent colour",
        "RGBA",
        "lossless WebP with alpha",
        "WebP with alpha",
        "grey with alpha",
        "grey",
        "bits",
        "grey JPEG",
        "progressive JPEG",
        "CMYK JPEG",
        "WebP",
        "two pictures of a telephone",
        "grey of sixteen bits",
    ],
)
def test_whatever_it_is_stored_as_it_is_rgb_on_white(file: bytes, seen: list[str]) -> None:
    image = opened(file).image
    assert (image.mode, quarters(image)) == ("RGB", seen)


def test_sixteen_bits_become_the_upper_eight() -> None:
    values = np.asarray(opened(file_of(wide_grey())).image)
    assert np.unique(values).tolist() == [0, 127, 128, 255]


@pytest.mark.parametrize(
    ("mask", "edit", "seen"),
    [
        (right_half(), False, ["black", "white", "black", "white"]),
        (right_half(), True, ["black", "white", "black", "white"]),
        (right_half().convert("RGB"), True, ["black", "white", "black", "white"]),
        (right_half().convert("RGBA"), True, ["black", "white", "black", "white"]),
        (half_transparent(picture()), True, ["black", "white", "black", "white"]),
        (half_transparent(Image.new("RGB", (96, 64), "white")), True, ["black", "white", "black", "white"]),
        (half_transparent(Image.new("RGB", (96, 64), "white")), False, ["white", "black", "white", "black"]),
        (Image.new("RGBA", (96, 64)), True, ["white"] * 4),
        (wide_grey(), False, ["grey", "white", "black", "grey"]),
        (right_half().convert("1"), False, ["black", "white", "black", "white"]),
        (right_half(left=0, right=128), False, ["black", "grey", "black", "grey"]),
    ],
)
def test_a_mask_says_what_is_repainted_in_transparency_at_openai_and_else_in_white(
    mask: Image.Image, edit: bool, seen: list[str]
) -> None:
    assert repainted(PNG, file_of(mask), edit) == seen


def test_a_pictures_own_transparency_is_its_mask_at_openai_only() -> None:
    file = file_of(half_transparent(picture()))
    assert repainted(file, edit=True) == ["black", "white", "black", "white"]
    assert repainted(file, edit=False) is None
    assert repainted(PNG, edit=True) is None
    assert repainted(with_one_transparent_colour(), edit=True) == ["black", "black", "black", "white"]
    left = file_of(right_half(left=255, right=0))
    assert repainted(file, left, edit=True) == ["white", "black", "white", "black"], "a mask goes before it"
    assert quarters(opened(file, edit=True).image) == ON_WHITE


def test_the_pipeline_gets_the_picture_with_its_mask_in_the_requests_size() -> None:
    accepted = accept(image=file_of(picture(200, 100)), mask=file_of(right_half((200, 100))), width=128)
    assert accepted.picture is not None
    assert accepted.picture.has_mask
    assert accepted.picture.pixels.shape == (accepted.request.height, accepted.request.width, 4)
    assert (accepted.request.width, accepted.request.height) == (128, 64)
    assert quarters(Image.fromarray(accepted.picture.pixels[..., :3])) == QUARTERS
    assert quarters(Image.fromarray(accepted.picture.pixels[..., 3])) == ["black", "white", "black", "white"]
    assert accepted.picture.crop is None


def test_a_request_remembers_whose_picture_it_was() -> None:
    plain = start_of(accept())
    assert plain == StartPicture(
        sha256=hashlib.sha256(PNG).hexdigest(), mask_sha256=None, has_mask=False, height=64, width=96
    )
    masked = start_of(accept(mask=MASK, preserve_unmasked=True))
    assert (masked.has_mask, masked.mask_sha256) == (True, hashlib.sha256(MASK).hexdigest())
    assert masked.is_laid_around
    own = file_of(half_transparent(picture()))
    of_its_own = start_of(accept(image=own, transparent_is_repainted=True))
    assert (of_its_own.has_mask, of_its_own.mask_sha256) == (True, None)
    nothing = accept(image=None)
    assert (nothing.request.start, nothing.request.strength, nothing.picture) == (None, None, None)


def test_strength_is_the_share_of_the_steps() -> None:
    plain, masked = accept().request, accept(mask=MASK).request
    assert (plain.strength, plain.num_steps) == (0.8, 16)
    assert (masked.strength, masked.num_steps) == (1.0, 20)
    given = accept(mask=MASK, strength=0.05).request
    assert (given.strength, given.num_steps, given.num_calls) == (0.05, 1, 1)


@pytest.mark.parametrize(
    ("size", "fields", "expected"),
    [
        ((128, 128), {}, (128, 128)),
        ((96, 64), {}, (96, 64)),
        ((103, 71), {}, (96, 64)),
        ((10, 10), {}, (64, 64)),
        ((256, 256), {}, (256, 256)),
        ((1000, 500), {}, (256, 128)),
        ((500, 1000), {}, (128, 256)),
        ((200, 100), {"width": 128}, (128, 64)),
        ((100, 200), {"height": 128}, (64, 128)),
        ((100, 200), {"width": 96}, (96, 192)),
        ((1000, 500), {"height": 64}, (128, 64)),
        ((1000, 500), {"width": 64, "height": 192}, (64, 192)),
        ((70, 70), {"width": 256}, (256, 256)),
    ],
)
def test_a_size_is_the_pictures_own_or_the_nearest_that_is_allowed(
    size: tuple[int, int], fields: dict[str, Any], expected: tuple[int, int]
) -> None:
    request = accept(image=file_of(picture(*size)), **fields).request
    assert (request.width, request.height) == expected
    assert (start_of(accept(image=file_of(picture(*size)), **fields)).width) == expected[0]


@pytest.mark.parametrize("size", [(98, 98), (98, 49), (49, 98), (129, 129), (187, 374), (1000, 1000)])
def test_the_other_side_is_not_a_step_too_short(size: tuple[int, int]) -> None:
    """98 * (256 / 98) is slightly less than 256."""
    width, height = size
    image = file_of(picture(width, height))
    longest = 256 * width // max(size)
    request = accept(image=image, width=longest).request
    assert (request.width, request.height) == (longest, 256 * height // max(size))


def test_a_square_stays_a_square() -> None:
    """322 * (256 / 322) is slightly less than 256, and 260 * sqrt(128 * 128 / (260 * 260)) than 128."""
    fewer_pixels = model(max_pixels=128 * 128)
    files = {side: file_of(Image.new("RGB", (side, side))) for side in range(257, 420)}
    sizes = {side: accept(image=file).request.output_size for side, file in files.items()}
    assert sizes == dict.fromkeys(files, (256, 256))
    sizes = {side: accept(fewer_pixels, image=file).request.output_size for side, file in files.items()}
    assert sizes == dict.fromkeys(files, (128, 128))


@pytest.mark.parametrize(
    ("size", "expected"), [((1000, 1000), (128, 128)), ((1024, 256), (256, 64)), ((400, 300), (144, 104))]
)
def test_a_picture_of_too_many_pixels_is_made_smaller(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    request = accept(model(max_pixels=128 * 128), image=file_of(picture(*size))).request
    assert (request.width, request.height) == expected


@pytest.mark.parametrize(
    ("size", "expected"), [((200, 150), (192, 128)), ((65, 63), (64, 64)), ((999, 999), (256, 256))]
)
def test_sides_are_multiples_of_what_the_model_can_make(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    request = accept(model(scale_factor=64), image=file_of(picture(*size))).request
    assert (request.width, request.height) == expected
    assert request.latent_shape == (expected[1] // 64, expected[0] // 64)


@pytest.mark.parametrize("size", [(64, 64), (320, 200), (1000, 600)])
@pytest.mark.parametrize("padding", [0, 8])
def test_with_a_crop_the_model_makes_its_own_size_and_the_output_has_the_pictures(
    size: tuple[int, int], padding: int
) -> None:
    mask = Image.new("L", size)
    box = (size[0] // 2, size[1] // 2, size[0] // 2 + 20, size[1] // 2 + 10)
    mask.paste(255, box)
    accepted = accept(image=file_of(picture(*size)), mask=file_of(mask), padding_mask_crop=padding)
    request, start = accepted.request, start_of(accepted)
    assert (request.height, request.width) == (128, 128)
    assert request.output_size == (start.height, start.width) == (size[1], size[0])
    assert accepted.picture is not None
    assert accepted.picture.pixels.shape == (size[1], size[0], 4)
    assert accepted.picture.crop == start.crop
    assert start.crop is not None
    left, top, right, bottom = start.crop
    assert 0 <= left <= max(0, box[0] - padding)
    assert 0 <= top <= max(0, box[1] - padding)
    assert min(size[0], box[2] + padding) - 1 <= right <= size[0]
    assert min(size[1], box[3] + padding) - 1 <= bottom <= size[1]
    assert start.padding_mask_crop == padding
    given = accept(
        image=file_of(picture(*size)), mask=file_of(mask), padding_mask_crop=padding, width=256, height=192
    ).request
    assert (given.width, given.height, given.output_size) == (256, 192, (size[1], size[0]))


def test_grey_that_is_not_repainted_is_not_in_the_crop() -> None:
    mask = right_half((256, 256), left=127, right=0)
    mask.paste(128, (200, 100, 210, 110))
    image = file_of(picture(256, 256))
    crop = start_of(accept(image=image, mask=file_of(mask), padding_mask_crop=4)).crop
    assert crop is not None
    assert crop[2] - crop[0] < 30


EMPTY_MASK = file_of(Image.new("L", (96, 64), 127))
OPAQUE = file_of(right_half(mode="RGBA", left=(255, 0, 0, 255), right=(255, 0, 0, 200)))


@pytest.mark.parametrize(
    ("fields", "named", "why"),
    [
        ({"image": None, "strength": 0.5}, "strength", "it needs image"),
        ({"image": None, "mask": MASK}, "mask", "it needs image"),
        ({"image": None, "padding_mask_crop": 0}, "padding_mask_crop", "it needs image"),
        ({"image": None, "preserve_unmasked": False}, "preserve_unmasked", "it needs image"),
        ({"mask": file_of(right_half((64, 96)))}, "mask", "has 64x96 pixels, but the picture has 96x64"),
        ({"mask": EMPTY_MASK}, "mask", "nothing of it is white"),
        ({"mask": EMPTY_MASK, "transparent_is_repainted": True}, "mask", "nothing of it is"),
        ({"mask": OPAQUE, "transparent_is_repainted": True}, "mask", "nothing of it is transparent"),
        ({"mask": file_of(Image.new("RGBA", (96, 64)))}, "mask", "nothing of it is white"),
        ({"mask": PNG[:-40]}, "mask", "damaged or incomplete"),
        ({"strength": 0.04}, "strength", "0.04 of 20 steps leaves no step; at least 0.05 does"),
        ({"strength": 0.99, "num_inference_steps": 1}, "strength", "leaves no step"),
        ({"padding_mask_crop": 8}, "padding_mask_crop", "it needs a mask"),
        ({"preserve_unmasked": True}, "preserve_unmasked", "it needs a mask"),
        ({"width": 1000}, "width", "a width of 1000 was given"),
        ({"height": 100}, "height", "a height of 100 was given"),
        ({"width": 256, "image": file_of(picture(100, 200))}, "height", "a height of 512 was given"),
        ({"hires": WantedHires()}, "hires", "only images from a prompt alone"),
        ({"image": None, "hires": WantedHires(scale=4.0)}, "hires", "a width of 512 was given"),
        ({"image": None, "hires": WantedHires(strength=0.01)}, "hires", "leaves no step"),
        ({"image": None, "hires": WantedHires(num_inference_steps=101)}, "hires", "at most 100 are allowed"),
        (
            {"image": None, "num_inference_steps": 60, "hires": WantedHires(strength=0.8)},
            "hires",
            "together too",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_and_the_field_is_named(
    fields: dict[str, Any], named: str, why: str
) -> None:
    for name in (named, "by another name"):
        with pytest.raises(InvalidRequestError) as refused:
            accept(**fields, names={named: name})
        assert refused.value.param == name
        assert refused.value.detail.startswith(f"{name}: ")
        assert why in refused.value.detail


def test_an_image_from_a_prompt_alone_may_get_a_second_pass() -> None:
    request = accept(image=None, height=64, width=72, hires=WantedHires()).request
    assert request.hires == HiresPass(
        upscaler="lanczos",
        scale=1.5,
        height=96,
        width=112,
        latent_shape=(12, 14),
        strength=0.6,
        num_inference_steps=20,
        num_calls=12,
    )
    assert request.output_size == (96, 112)
    assert request.steps_per_image == 32


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"image": None}, "image"),
        ({"image": None, "mask": MASK}, "image"),
        ({}, "mask"),
        ({"image": file_of(half_transparent(picture()))}, "mask"),
        ({"mask": MASK}, None),
        ({"image": file_of(half_transparent(picture())), "transparent_is_repainted": True}, None),
    ],
)
def test_a_model_for_inpainting_needs_a_picture_and_a_mask(fields: dict[str, Any], named: str | None) -> None:
    inpainting = model(needs_mask=True)
    if named is None:
        assert start_of(accept(inpainting, **fields)).has_mask
        return
    with pytest.raises(InvalidRequestError, match=r"only repaints pictures|repaints a picture") as refused:
        accept(inpainting, **fields)
    assert refused.value.param == named


@pytest.mark.parametrize(
    ("file", "kind", "why"),
    [
        (b"", UnsupportedImageError, "no PNG, JPEG or WebP file"),
        (file_of(picture(), "GIF"), UnsupportedImageError, "no PNG, JPEG or WebP file"),
        (animated("PNG"), UnsupportedImageError, r"animated \(2 frames\)"),
        (animated("WEBP"), UnsupportedImageError, r"animated \(2 frames\)"),
        (PNG[:-40], UnsupportedImageError, "damaged or incomplete"),
        (png_of_header(100_000, 100_000), ImageTooLargeError, "at most 40000000 are allowed"),
        (png_of_header(8000, 5001), ImageTooLargeError, "has 40008000 pixels"),
        (PNG + bytes(20 * 2**20), ImageTooLargeError, "at most 20971520 are allowed"),
    ],
)
def test_a_file_that_is_no_picture_is_refused(file: bytes, kind: type[Exception], why: str) -> None:
    with pytest.raises(kind, match=why):
        accept(image=file)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_pillow_only_warns_of_has_too_many_pixels() -> None:
    with pytest.raises(ImageTooLargeError, match="has 100000000 pixels"):
        accept(image=png_of_header(10_000, 10_000))


def test_a_large_picture_has_no_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.start_pictures.MAX_CROPPED_PIXELS", 96 * 64 - 1)
    with pytest.raises(InvalidRequestError, match="the picture has 6144 pixels; with a crop, at most 6143"):
        accept(mask=MASK, padding_mask_crop=8)
    accept(mask=MASK)


def with_scans(number: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    file = io.BytesIO()
    Image.new("L", (64, 64), 100).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * number + data[-2:]


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="image: has more than 100 scans"):
        accept(image=with_scans(200))
    assert accept(image=with_scans(20)).request.strength == 0.8


def test_a_film_behind_a_picture_is_no_scan() -> None:
    """Telephones put one there."""
    film = np.random.default_rng(0).integers(0, 256, 8 << 20, np.uint8).tobytes()
    assert film.count(b"\xff\xda") > 100
    assert accept(image=file_of(picture(), "JPEG") + film).request.strength == 0.8
