"""A1111's second pass, `enable_hr`."""

from collections.abc import Mapping

from deployments.engine.messages import Upscaler
from serve.errors import InvalidRequestError
from serve.http.a1111.bodies import Txt2ImgBody
from serve.http.a1111.samplers import sampler_of
from serve.http.a1111.strengths import strength_of
from serve.served_model import ServedModel
from serve.wanted import WantedHires, shown

_MAX_SCALE = 4.0  # as in the other dialects
_SCALE = 2.0  # A1111's
_LATENT = "Latent"
# By A1111's names, its default first. Without an upscaler, A1111 enlarges by Lanczos.
UPSCALERS: Mapping[str, Upscaler] = {
    _LATENT: "latent",
    "Latent (bicubic)": "latent",
    "Lanczos": "lanczos",
    "None": "lanczos",
}
_SAME = ("", "None", "Use same checkpoint", "Use same sampler", "Use same scheduler")


def hires_of(
    body: Txt2ImgBody, model: ServedModel, sampler: str, steps: int
) -> tuple[WantedHires | None, list[str]]:
    """The second pass, if there is one, and warnings. sampler, steps: of the first. Raises
    InvalidRequestError."""
    if not body.enable_hr:
        return None, []
    _check_as_first(body, model, sampler)
    name = body.hr_upscaler or _LATENT
    if name not in UPSCALERS:
        raise InvalidRequestError(
            f"hr_upscaler: {shown(name)} is not offered; {', '.join(UPSCALERS)} are.", "hr_upscaler"
        )
    warnings = []
    if name == _LATENT:
        warnings.append(
            "hr_upscaler: 'Latent' enlarges by bicubic interpolation here, as 'Latent (bicubic)'."
        )
    second_steps = body.hr_second_pass_steps or steps
    return WantedHires(
        scale=_scale(body, model),
        upscaler=UPSCALERS[name],
        strength=strength_of(body.denoising_strength, second_steps),
        num_inference_steps=second_steps,
    ), warnings


def _check_as_first(body: Txt2ImgBody, model: ServedModel, sampler: str) -> None:
    """Raises InvalidRequestError if the second pass is to have anything of its own."""
    has_scheduler = body.hr_scheduler not in (None, *_SAME)
    scheduler = body.hr_scheduler if has_scheduler else body.scheduler
    own = {
        "hr_checkpoint_name": body.hr_checkpoint_name not in (None, *_SAME, model.id),
        "hr_sampler_name": body.hr_sampler_name not in (None, *_SAME)
        and sampler_of(str(body.hr_sampler_name), scheduler, "hr_sampler_name", "hr_scheduler") != sampler,
        "hr_scheduler": has_scheduler
        and sampler_of(sampler, scheduler, levels_field="hr_scheduler") != sampler,
        "hr_prompt": body.hr_prompt not in ("", body.prompt),
        "hr_negative_prompt": body.hr_negative_prompt not in ("", body.negative_prompt),
    }
    for field, is_own in own.items():
        if is_own:
            raise InvalidRequestError(
                f"{field}: {shown(getattr(body, field))} was given, and the second pass has the model, the "
                "sampler and the prompts of the first.",
                field,
            )


def _scale(body: Txt2ImgBody, model: ServedModel) -> float:
    """How many times larger both sides become."""
    height, width = model.default_size
    sides = {
        "hr_resize_x": (body.hr_resize_x, body.width or width),
        "hr_resize_y": (body.hr_resize_y, body.height or height),
    }
    asked = {name: target / side for name, (target, side) in sides.items() if target}
    if not asked:
        asked = {"hr_scale": _SCALE if body.hr_scale is None else body.hr_scale}
    name, scale = next(iter(asked.items()))
    if len(asked) == 2 and abs(asked["hr_resize_x"] - asked["hr_resize_y"]) > 0.01 * scale:
        raise InvalidRequestError(
            f"hr_resize_x: {body.hr_resize_x} was given, and {body.hr_resize_y} as hr_resize_y; both sides "
            "grow alike, and nothing is cut off.",
            name,
        )
    if not 1 < scale <= _MAX_SCALE:
        raise InvalidRequestError(
            f"{name}: would make both sides {scale:g} times as long; allowed is more than 1, up to "
            f"{_MAX_SCALE:g}.",
            name,
        )
    return scale
