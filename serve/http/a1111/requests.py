"""A1111's bodies as `Wanted`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve.errors import InvalidRequestError
from serve.http.a1111.bodies import CommonBody, Img2ImgBody, Txt2ImgBody
from serve.http.a1111.hires import hires_of
from serve.http.a1111.neutral import OF_IMG2IMG, OF_TXT2IMG, WARNED, check_neutral
from serve.http.a1111.samplers import automatic_warning, sampler_of, with_eta
from serve.http.a1111.settings import Settings, check_overrides
from serve.http.a1111.strengths import strength_of
from serve.served_model import ServedModel
from serve.wanted import Wanted, shown

# Of all images together, for `progress` and for what `interrupt` leaves. Each takes the decoding stage's CPU
# half as long as writing a PNG (57 ms and 125 ms at 1024x1024 pixels).
_PREVIEWS = 8
_MASK_BLUR = 4  # A1111's
_FILL = 0
_NOT_OFFERED_FILLS = {2: "latent noise", 3: "latent nothing"}
_NAMES = {
    "num_inference_steps": "steps",
    "guidance_scale": "cfg_scale",
    "sampler": "sampler_name",
    "strength": "denoising_strength",
    "image": "init_images",
    "padding_mask_crop": "inpaint_full_res_padding",
    "preserve_unmasked": "mask",
    "hires": "enable_hr",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a body asks for, img2img without its pictures. warnings: sentences for the client"""

    wanted: Wanted
    warnings: tuple[str, ...]


def asked_of(body: Txt2ImgBody | Img2ImgBody, settings: Settings, model: ServedModel) -> Asked:
    """settings: of the client and the request; model: that they name. Raises InvalidRequestError."""
    warnings = [*_checked(body), *check_overrides(body.override_settings)]
    name_field = "sampler_index" if body.sampler_name is None and body.sampler_index else "sampler_name"
    named = body.sampler_name or body.sampler_index or model.defaults.sampler
    meant = sampler_of(named, body.scheduler, name_field)
    warnings += automatic_warning(meant, body.scheduler)
    sampler, eta = with_eta(meant, body.eta)
    steps = body.steps or model.defaults.num_inference_steps
    num_images = body.batch_size * body.n_iter
    own: dict[str, Any]
    if isinstance(body, Img2ImgBody):
        own = _img2img(body, steps)
    else:
        hires, more = hires_of(body, model, meant, steps)
        own, warnings = {"hires": hires}, warnings + more
    names = {**_NAMES, **_option_names(settings), "sampler": name_field, "num_images": _counts(body)}
    is_lossy = settings.samples_format != "png"
    wanted = Wanted(
        prompt=body.prompt,
        model=model.id,
        # A1111 has no negative prompt but the empty one, and reads it for SDXL as diffusers reads none.
        negative_prompt=body.negative_prompt or None,
        width=body.width,
        height=body.height,
        num_inference_steps=steps,
        guidance_scale=body.cfg_scale,
        sampler=sampler,
        eta=eta,
        seed=body.seed,
        num_images=num_images,
        deterministic=body.deterministic,
        output_format=settings.samples_format,
        output_quality=settings.jpeg_quality if is_lossy else None,
        num_previews=max(1, _PREVIEWS // num_images) if settings.has_live_previews else 0,
        prompt_syntax="a1111",
        long_prompts="chunk",
        clip_skip=settings.clip_skip(model),
        needs_prompt=False,
        names=names,
        **own,
    )
    return Asked(wanted, tuple(warnings))


def _checked(body: CommonBody) -> list[str]:
    """Warnings for fields that change nothing. Raises InvalidRequestError for those that are not offered."""
    _check_scripts(body.alwayson_scripts or {})
    neutral = OF_IMG2IMG if isinstance(body, Img2ImgBody) else OF_TXT2IMG
    return check_neutral(body.model_extra or {}, neutral, tuple(type(body).model_fields), WARNED)


def _check_scripts(scripts: Mapping[str, Any]) -> None:
    """Raises InvalidRequestError for an extension that is asked to do something."""
    for name, given in scripts.items():
        args = given.get("args") if isinstance(given, dict) else given
        if not _is_off(args):
            field = f"alwayson_scripts.{name[:64]}"
            raise InvalidRequestError(
                f"{field}: extensions such as ControlNet and ADetailer are not offered.", field
            )


def _is_off(args: Any) -> bool:
    """Whether an extension does nothing: it has no arguments, or the first of them, or all units, say so."""
    if not args:
        return True
    if not isinstance(args, list):
        return False
    units = [one for one in args if isinstance(one, dict)]
    are_off = bool(units) and all(one.get("enabled", one.get("enable")) is False for one in units)
    return args[0] in (False, None) or (are_off and len(units) == len(args))


def _img2img(body: Img2ImgBody, steps: int) -> dict[str, Any]:
    own: dict[str, Any] = {"strength": strength_of(body.denoising_strength, steps)}
    if not body.mask:
        return own
    if body.inpainting_fill in _NOT_OFFERED_FILLS:
        raise InvalidRequestError(
            f"inpainting_fill: {body.inpainting_fill} ({_NOT_OFFERED_FILLS[body.inpainting_fill]}) is not "
            "offered; 0 (fill) and 1 (original) are.",
            "inpainting_fill",
        )
    return own | {
        "preserve_unmasked": True,
        "padding_mask_crop": body.inpaint_full_res_padding if body.inpaint_full_res else None,
        "black_is_repainted": body.inpainting_mask_invert,
        "mask_blur": _mask_blur(body),
        "fills_mask": body.inpainting_fill == _FILL,
    }


def _mask_blur(body: Img2ImgBody) -> int:
    blur = _MASK_BLUR if body.mask_blur is None else body.mask_blur
    by_side = {one for one in (body.mask_blur_x, body.mask_blur_y) if one is not None}
    if body.mask_blur is None and len(by_side) == 1 and None not in (body.mask_blur_x, body.mask_blur_y):
        return by_side.pop()
    if by_side - {blur, _MASK_BLUR}:
        raise InvalidRequestError(
            f"mask_blur_x: {shown(body.mask_blur_x)} was given, and {shown(body.mask_blur_y)} as "
            "mask_blur_y; masks are blurred alike in both directions, by mask_blur.",
            "mask_blur_x",
        )
    return blur


def _counts(body: CommonBody) -> str:
    """The fields that say how many images there are."""
    if body.n_iter == 1:
        return "batch_size"
    return "n_iter" if body.batch_size == 1 else "batch_size x n_iter"


def _option_names(settings: Settings) -> dict[str, str]:
    return {
        "model": settings.name("sd_model_checkpoint"),
        "clip_skip": settings.name("CLIP_stop_at_last_layers"),
        "output_format": settings.name("samples_format"),
        "output_quality": settings.name("jpeg_quality"),
    }
