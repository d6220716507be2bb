"""The bodies of `POST /v1/images/edits` and `/variations`: those of `/generations`, and a picture."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, NotRequired

from pydantic import BeforeValidator, Field, WithJsonSchema
from typing_extensions import TypedDict

from serve.http.body import Text, Whole
from serve.http.field_names import IMAGE, MASK, PICTURE_FIELDS, STRENGTH
from serve.http.openai.schema import CommonBody, wanted_of
from serve.wanted import Wanted

_MAX_PICTURES = 16  # OpenAI's


def _urls(given: Any) -> list[str]:
    """The URLs in a field: one, or OpenAI's object with one, or a list of such."""
    items = given if isinstance(given, list) else [given]
    if len(items) > _MAX_PICTURES:
        raise ValueError(f"must be one picture, and {len(items)} were given")
    return [_url(item) for item in items]


def _url(item: Any) -> str:
    if isinstance(item, dict) and item.keys() == {"image_url"}:
        item = item["image_url"]
    if not isinstance(item, str):
        raise ValueError('must be a URL, or an object with nothing but its "image_url"')
    return item


_Pictures = Annotated[
    list[str],
    BeforeValidator(_urls),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "object",
                    "properties": {"image_url": {"type": "string"}},
                    "required": ["image_url"],
                },
            ]
        }
    ),
]


class EditForm(TypedDict):
    """The form of an edit, for the OpenAPI document. All other fields of the JSON may be in it as text."""

    image: Annotated[bytes, Field(description="PNG, JPEG or WebP.")]
    mask: NotRequired[Annotated[bytes, Field(description="Of the same size.")]]
    prompt: NotRequired[str]


class EditsBody(CommonBody):
    """A well-formed body. In a form, pictures may be files too."""

    not_offered: ClassVar[Mapping[str, str]] = {
        name: reason for name, reason in CommonBody.not_offered.items() if name not in PICTURE_FIELDS
    } | {"hires": "only images from a prompt alone get a second pass; ask for a larger size"}
    hints: ClassVar[Mapping[str, str]] = {
        **CommonBody.hints,
        "input_fidelity": "strength is what sets it",
    }

    image: _Pictures | None = Field(None, validation_alias=IMAGE)
    mask: _Pictures | None = Field(None, validation_alias=MASK)
    strength: Annotated[float, Field(gt=0, le=1)] | None = Field(None, validation_alias=STRENGTH)
    padding_mask_crop: Annotated[int, Field(ge=0, le=4096), Whole] | None = None
    preserve_unmasked: bool | None = None


class VariationsBody(EditsBody):
    """OpenAI's variations have no prompt. Without one there is nothing to guide to."""

    prompt: Text = ""


def edit_of(body: EditsBody) -> Wanted:
    """The body as a `Wanted` without its pictures. Raises InvalidRequestError, which names the field."""
    wanted, needs_prompt = wanted_of(body), not isinstance(body, VariationsBody)
    if wanted.guidance_scale is None and not body.prompt:
        wanted = replace(wanted, guidance_scale=1.0)
    return replace(
        wanted,
        needs_prompt=needs_prompt,
        strength=body.strength,
        padding_mask_crop=body.padding_mask_crop,
        preserve_unmasked=body.preserve_unmasked,
        transparent_is_repainted=True,
    )
