"""Fields of A1111 that are not offered: taken where they ask for nothing, and refused where they would change
the picture. What is not known is taken with a warning, because clients send fields of many extensions."""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from serve.errors import InvalidRequestError
from serve.wanted import shown

_NEAR = 0.7  # of difflib's 0 to 1: `sampler` for `sampler_name`
_MOST_UNKNOWN = 10  # that are named; a body may have a hundred thousand


@dataclass(frozen=True, slots=True)
class Neutral:
    """The values by which a field asks for nothing, the usual one first; and why there are no others."""

    values: tuple[Any, ...]
    reason: str


NOTHING: Mapping[str, Neutral] = {}
_NO_SCRIPTS = "scripts and extensions are not offered"
_NO_VARIATIONS = "variations of a seed are not offered"
_IN_ANSWER = "pictures are only in the answer"
_ONE_MODEL = "a refiner is not offered"
# Of both txt2img and img2img; null is neutral everywhere.
COMMON: Mapping[str, Neutral] = {
    "styles": Neutral(([], [""]), "there are no styles; write their words into the prompt"),
    "subseed_strength": Neutral((0,), _NO_VARIATIONS),
    "seed_resize_from_h": Neutral((-1, 0), _NO_VARIATIONS),
    "seed_resize_from_w": Neutral((-1, 0), _NO_VARIATIONS),
    "restore_faces": Neutral((False,), "faces are not restored"),
    "tiling": Neutral((False,), "pictures that tile are not offered"),
    "s_min_uncond": Neutral((0,), "`guidance_end` of the other routes saves guidance"),
    "s_churn": Neutral((0,), "samplers are as in diffusers"),
    "s_noise": Neutral((1, 0), "samplers are as in diffusers"),  # without s_churn it changes nothing
    "refiner_checkpoint": Neutral(("None", "", "none"), _ONE_MODEL),
    "disable_extra_networks": Neutral((False,), "leave the tags out of the prompt instead"),
    "script_name": Neutral(("None", ""), _NO_SCRIPTS),
    "infotext": Neutral(("",), "it is not read; give its values as fields"),
}
OF_TXT2IMG: Mapping[str, Neutral] = {
    **COMMON,
    "firstphase_width": Neutral((0,), "`width` and `hr_scale` say the sizes of both passes"),
    "firstphase_height": Neutral((0,), "`height` and `hr_scale` say the sizes of both passes"),
    "firstpass_image": Neutral((), "img2img starts from a picture"),
    "init_images": Neutral(([],), "img2img starts from pictures"),
    "mask": Neutral(("",), "img2img starts from pictures"),
}
OF_IMG2IMG: Mapping[str, Neutral] = {
    **COMMON,
    "resize_mode": Neutral((0,), "pictures are only resized (0); crop or extend them before"),
    "latent_mask": Neutral(("",), "`mask` is the only one"),
    "mask_round": Neutral((True,), "latents are repainted or kept, and not mixed"),
    "initial_noise_multiplier": Neutral((1,), "noise is as in diffusers"),
    "enable_hr": Neutral((False,), "only txt2img has a second pass; ask for a larger size"),
}
# They change nothing here, and with the other fields as they are nothing in A1111.
IDLE = {
    "subseed",
    "s_tmin",
    "s_tmax",
    "refiner_switch_at",
    "script_args",
    "comments",
    "image_cfg_scale",
    "force_task_id",
    "do_not_save_samples",
    "do_not_save_grid",
}
# They are taken, and ask for what is not done: only these values are worth a warning.
WARNED: Mapping[str, Neutral] = {
    "save_images": Neutral((False,), _IN_ANSWER),
    "override_settings_restore_afterwards": Neutral(
        (True,), "settings of a request hold for it alone; POST /sdapi/v1/options sets them for all"
    ),
}


def check_neutral(
    given: Mapping[str, Any],
    neutral: Mapping[str, Neutral],
    known: Collection[str],
    warned: Mapping[str, Neutral] = NOTHING,
    prefix: str = "",
) -> list[str]:
    """Warnings for fields that change nothing. Raises InvalidRequestError, which names the field.

    given: fields that are not offered; known: the names of others; prefix: of their names
    """
    warnings, unknown = [], []
    for name, value in given.items():
        if value is None or name in IDLE:
            continue
        if (found := neutral.get(name)) is not None:
            if value not in found.values:
                raise InvalidRequestError(
                    f"{prefix}{name}: {shown(value)} was given, and {found.reason}.", prefix + name
                )
        elif (found := warned.get(name)) is not None:
            if value not in found.values:
                warnings.append(f"{prefix}{name}: {shown(value)} changes nothing; {found.reason}.")
        elif name not in known:
            unknown.append(name)
    names = (*known, *neutral, *warned)
    warnings += [_unknown(prefix, name, names) for name in unknown[:_MOST_UNKNOWN]]
    if len(unknown) > _MOST_UNKNOWN:
        warnings.append(f"{len(unknown) - _MOST_UNKNOWN} fields more are not known here and change nothing.")
    return warnings


def _unknown(prefix: str, name: str, known: Collection[str]) -> str:
    nearest = difflib.get_close_matches(name[:64], known, n=1, cutoff=_NEAR)
    hint = f"; the nearest one is {nearest[0]!r}" if nearest else ""
    return f"{prefix}{name[:64]}: is not known here and changes nothing{hint}."
