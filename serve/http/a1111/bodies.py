"""The bodies of A1111's requests: the fields that change something here.

Its clients send all of its fields, with their defaults, and those of its extensions. So other fields are
taken: `neutral` refuses what would change the picture, and says in `warnings` what is not known.
"""

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from serve.http.a1111.fields import ALSO_AS_TEXT, Flag
from serve.http.a1111.settings import SettingsBody
from serve.http.body import Body, Text
from serve.parameters import MAX_SEED

MAX_MASK_BLUR = 256  # pixels

_Side = Annotated[int, Field(ge=1), ALSO_AS_TEXT]
_Pixels = Annotated[int, Field(ge=0, le=4096), ALSO_AS_TEXT]
_Count = Annotated[int, Field(ge=1), ALSO_AS_TEXT]


def _with_nulls(schema: dict[str, Any]) -> None:
    """Says that every field may be null, which is as if it were absent."""
    for name, field in schema["properties"].items():
        kinds = field.pop("anyOf", None) or [{"type": field.pop("type")}]
        if {"type": "null"} not in kinds:
            kinds = [*kinds, {"type": "null"}]
        schema["properties"][name] = {**field, "anyOf": kinds}


class CommonBody(Body):
    """The fields of txt2img and img2img. Size, steps, guidance and sampler are the model's where they are
    absent, and not A1111's.

    deterministic: as in the other dialects; A1111 has no such field
    """

    model_config = ConfigDict(extra="allow", json_schema_extra=_with_nulls)

    prompt: Text = ""
    negative_prompt: Text = ""
    seed: Annotated[int, Field(ge=-1, le=MAX_SEED), ALSO_AS_TEXT] = -1
    sampler_name: Text | None = None
    sampler_index: Text | None = Field(None, description="The old name of `sampler_name`.")
    scheduler: Text | None = None
    eta: Annotated[float, Field(ge=0, le=1), ALSO_AS_TEXT] | None = None
    batch_size: _Count = 1
    n_iter: _Count = 1
    steps: _Count | None = None
    cfg_scale: Annotated[float, Field(ge=0, le=100), ALSO_AS_TEXT] | None = None
    width: _Side | None = None
    height: _Side | None = None
    denoising_strength: Annotated[float, Field(ge=0, le=1), ALSO_AS_TEXT] = 0.75
    override_settings: SettingsBody | None = None
    alwayson_scripts: dict[str, Any] | None = None
    send_images: Flag = True
    deterministic: Flag | None = None


class Txt2ImgBody(CommonBody):
    """A well-formed body of txt2img. The other fields of the second pass only count with `enable_hr`."""

    enable_hr: Flag = False
    hr_scale: Annotated[float, ALSO_AS_TEXT] | None = None
    hr_upscaler: Text | None = None
    hr_second_pass_steps: Annotated[int, Field(ge=0), ALSO_AS_TEXT] = 0
    hr_resize_x: Annotated[int, Field(ge=0), ALSO_AS_TEXT] = 0
    hr_resize_y: Annotated[int, Field(ge=0), ALSO_AS_TEXT] = 0
    hr_checkpoint_name: Text | None = None
    hr_sampler_name: Text | None = None
    hr_scheduler: Text | None = None
    hr_prompt: Text = ""
    hr_negative_prompt: Text = ""


class Img2ImgBody(CommonBody):
    """A well-formed body of img2img. Pictures are in base64, or URLs as in the other dialects.

    include_init_images: whether `parameters` in the answer has the pictures
    """

    init_images: list[str] | None = None
    mask: str | None = None
    mask_blur: Annotated[int, Field(ge=0, le=MAX_MASK_BLUR), ALSO_AS_TEXT] | None = None
    mask_blur_x: Annotated[int, Field(ge=0, le=MAX_MASK_BLUR), ALSO_AS_TEXT] | None = None
    mask_blur_y: Annotated[int, Field(ge=0, le=MAX_MASK_BLUR), ALSO_AS_TEXT] | None = None
    inpainting_fill: Annotated[int, Field(ge=0, le=3), ALSO_AS_TEXT] = 0
    inpaint_full_res: Flag = True
    inpaint_full_res_padding: _Pixels = 0
    inpainting_mask_invert: Flag = False
    include_init_images: Flag = False


class PngInfoBody(Body):
    """A picture in base64, whose parameters are to be read."""

    image: str
