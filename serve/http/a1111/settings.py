"""A1111's options: which of them change something here, which can only be what they are, and what is kept.

A client sets them for all of its requests (`POST /sdapi/v1/options`), or for one (`override_settings`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field

from serve.errors import InvalidRequestError
from serve.http.a1111.fields import ALSO_AS_TEXT, Flag
from serve.http.a1111.neutral import Neutral, check_neutral
from serve.http.body import Body, Text
from serve.served_model import ServedModel

_MAX_CLIP_STOP = 12  # A1111's
_NO_TRICKS = "pictures are made as diffusers makes them"
# Options that would change pictures: what they are here.
_FIXED: Mapping[str, Neutral] = {
    "sd_vae": Neutral(("Automatic", "None", ""), "a model comes with its VAE"),
    "sd_hypernetwork": Neutral(("None", ""), "hypernetworks are not offered"),
    "randn_source": Neutral(("CPU",), "noise is drawn on the CPU, so that it is the same on all devices"),
    "eta_noise_seed_delta": Neutral((0,), "samplers draw from the image's own seed"),
    "eta_ancestral": Neutral((1,), "`eta` is a field of the request"),
    "eta_ddim": Neutral((0,), "`eta` is a field of the request"),
    "s_churn": Neutral((0,), _NO_TRICKS),
    "s_noise": Neutral((1,), _NO_TRICKS),
    "s_min_uncond": Neutral((0,), "`guidance_end` of the other routes saves guidance"),
    "emphasis": Neutral(("Original",), "weights are as in A1111's `Original`"),
    "face_restoration": Neutral((False,), "faces are not restored"),
    "tiling": Neutral((False,), "pictures that tile are not offered"),
    "token_merging_ratio": Neutral((0,), "tokens are not merged"),
    "token_merging_ratio_img2img": Neutral((0,), "tokens are not merged"),
    "token_merging_ratio_hr": Neutral((0,), "tokens are not merged"),
    "img2img_color_correction": Neutral((False,), "colours are not corrected"),
    "initial_noise_multiplier": Neutral((1,), _NO_TRICKS),
    "inpainting_mask_weight": Neutral((1,), _NO_TRICKS),
}
# Options that change no picture, and what of them is not done.
_WARNED: Mapping[str, Neutral] = {
    "samples_save": Neutral((False,), "pictures are only in the answer"),
    "grid_save": Neutral((False,), "pictures are only in the answer"),
    "return_grid": Neutral((False,), "there are no grids"),
}
# Options of A1111's own page: they are kept, and change nothing.
_OF_ITS_PAGE: Mapping[str, bool] = {"send_seed": True, "send_size": True}
_ONLY_SHOWN = "sd_checkpoint_hash"  # it follows the model; clients send back all that they got
_DEFAULTS: Mapping[str, Any] = {"samples_format": "png", "jpeg_quality": 80, "live_previews_enable": True}


class SettingsBody(Body):
    """Options by A1111's names. Others are taken if they change nothing."""

    model_config = ConfigDict(extra="allow")

    sd_model_checkpoint: Text | None = None
    CLIP_stop_at_last_layers: Annotated[int, Field(ge=1, le=_MAX_CLIP_STOP), ALSO_AS_TEXT] | None = None
    samples_format: Literal["png", "jpg", "jpeg", "webp"] | None = None
    jpeg_quality: Annotated[int, Field(ge=1, le=100), ALSO_AS_TEXT] | None = None
    live_previews_enable: Flag | None = None

    def offered(self) -> dict[str, Any]:
        """What is given of the options that change something here."""
        return self.model_dump(include=set(SettingsBody.model_fields), exclude_none=True)

    def others(self) -> Mapping[str, Any]:
        return {name: value for name, value in (self.model_extra or {}).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Settings:
    """The options that hold for a request. own: the names of those that the request itself sets"""

    values: Mapping[str, Any]
    own: frozenset[str] = frozenset()

    @classmethod
    def of(cls, kept: Mapping[str, Any], given: SettingsBody | None) -> Self:
        """kept: by the client's ClientOptions; given: in the request"""
        own = {} if given is None else given.offered()
        return cls({**kept, **own}, frozenset(own))

    @property
    def checkpoint(self) -> str | None:
        found: str | None = self._get("sd_model_checkpoint")
        return found

    @property
    def clip_stop(self) -> int | None:
        found: int | None = self._get("CLIP_stop_at_last_layers")
        return found

    @property
    def samples_format(self) -> Literal["png", "jpg", "jpeg", "webp"]:
        found: Literal["png", "jpg", "jpeg", "webp"] = self._get("samples_format")
        return found

    @property
    def jpeg_quality(self) -> int:
        return int(self._get("jpeg_quality"))

    @property
    def has_live_previews(self) -> bool:
        return bool(self._get("live_previews_enable"))

    def name(self, option: str) -> str:
        """The field that has set an option, for errors."""
        return f"override_settings.{option}" if option in self.own else option

    def clip_skip(self, model: ServedModel) -> int | None:
        """As diffusers counts it, which A1111's option does not: 1 leaves out nothing, and for SDXL nor does
        2. Raises InvalidRequestError."""
        if self.clip_stop is None:
            return None
        none = _stop_of_none(model)
        most = model.info.max_clip_skip + none
        if self.clip_stop > most:
            name = self.name("CLIP_stop_at_last_layers")
            raise InvalidRequestError(
                f"{name}: {self.clip_stop} was given; at most {most} is possible with the model "
                f"{model.id!r}.",
                name,
            )
        return max(0, self.clip_stop - none)

    def _get(self, option: str) -> Any:
        return self.values.get(option, _DEFAULTS.get(option))


def check_overrides(given: SettingsBody | None) -> list[str]:
    """Warnings for options of a request that change nothing. Raises InvalidRequestError for those that would
    change the picture and are not offered."""
    if given is None:
        return []
    known = (*_OF_ITS_PAGE, _ONLY_SHOWN, *SettingsBody.model_fields)
    return check_neutral(given.others(), _FIXED, known, _WARNED, "override_settings.")


def shown_options(kept: Mapping[str, Any], model: ServedModel) -> dict[str, Any]:
    """What `GET /sdapi/v1/options` answers. model: the client's; kept: by its ClientOptions"""
    own: dict[str, Any] = {
        "sd_model_checkpoint": model.id,
        _ONLY_SHOWN: "",
        "CLIP_stop_at_last_layers": clip_stop_of(model.defaults.clip_skip, model),
    }
    fixed = {name: neutral.values[0] for name, neutral in {**_FIXED, **_WARNED}.items()}
    return {**own, **_DEFAULTS, **_OF_ITS_PAGE, **fixed, **kept}


def changes_of(given: SettingsBody, shown: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The options to keep, and warnings for those that change nothing. shown: as before the change

    Raises InvalidRequestError for those that would change pictures and are not offered.
    """
    others = dict(given.others())
    kept = {name: others.pop(name) for name in _OF_ITS_PAGE if name in others}
    for name, value in kept.items():
        if not isinstance(value, bool):
            raise InvalidRequestError(f"{name}: must be true or false.", name)
    warnings = check_neutral(others, _FIXED, (_ONLY_SHOWN, *SettingsBody.model_fields), _WARNED)
    # Clients send back all that they got: what a model has by default stays what the model has.
    changed = {name: value for name, value in (given.offered() | kept).items() if value != shown.get(name)}
    return changed, warnings


def clip_stop_of(clip_skip: int | None, model: ServedModel) -> int:
    """A1111's number for a clip_skip."""
    return clip_skip + _stop_of_none(model) if clip_skip else 1


def _stop_of_none(model: ServedModel) -> int:
    """A1111's number for the last layer that diffusers reads: the last one, or for SDXL the last but one."""
    return 2 if model.family.startswith("sdxl") else 1
