"""The bodies of `POST /v1/images/edits` and `/variations`: those of `/generations`, and a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from serve.errors import InvalidRequestError
from serve.http.body import Body, Text, Whole
from serve.http.field_names import IMAGE, MASK, PICTURE_FIELDS, STRENGTH
from serve.http.openai.schema import ImagesBody, wanted_of
from serve.wanted import Wanted


class ImageReference(Body):
    """OpenAI's object for a picture in JSON."""

    not_offered: ClassVar[Mapping[str, str]] = {"file_id": "a picture is named by `image_url`"}

    image_url: str


Reference = str | ImageReference


class EditForm(TypedDict):
    """The form of an edit, for the OpenAPI document. All other fields of the JSON body may be in it as text."""

    image: Annotated[bytes, Field(description="PNG, JPEG or WebP.")]
    mask: NotRequired[Annotated[bytes, Field(description="Of the same size.")]]
    prompt: NotRequired[str]


class EditsBody(ImagesBody):
    """A well-formed body. In a form, pictures may be files too."""

    not_offered: ClassVar[Mapping[str, str]] = {
        name: reason for name, reason in ImagesBody.not_offered.items() if name not in PICTURE_FIELDS
    }
    hints: ClassVar[Mapping[str, str]] = {
        **ImagesBody.hints,
        "input_fidelity": "strength is what sets it",
    }

    image: Reference | list[Reference] | None = Field(None, validation_alias=IMAGE)
    mask: Reference | None = Field(None, validation_alias=MASK)
    strength: Annotated[float, Field(gt=0, le=1)] | None = Field(None, validation_alias=STRENGTH)
    padding_mask_crop: Annotated[int, Field(ge=0, le=4096), Whole] | None = None
    preserve_unmasked: bool | None = None


class VariationsBody(EditsBody):
    """OpenAI's variations have no prompt. Without one there is nothing to guide to."""

    prompt: Text = ""


def edit_of(body: EditsBody, image: bytes | None, mask: bytes | None, names: Mapping[str, str]) -> Wanted:
    """The body as a `Wanted`. image, mask: files; names: of the fields that had them

    Raises InvalidRequestError, which names the field.
    """
    name = names.get("image", "image")
    if image is None:
        raise InvalidRequestError(f"{name}: is required; it is the picture to start from.", name)
    wanted = wanted_of(body)
    is_guided = body.prompt != "" or not isinstance(body, VariationsBody)
    return replace(
        wanted,
        guidance_scale=wanted.guidance_scale if is_guided else 1.0,
        needs_prompt=not isinstance(body, VariationsBody),
        image=image,
        mask=mask,
        strength=body.strength,
        padding_mask_crop=body.padding_mask_crop,
        preserve_unmasked=body.preserve_unmasked,
        transparent_is_repainted=True,
        names={**wanted.names, **names},
    )


def references(given: Any) -> Sequence[str]:
    """The URLs in a field."""
    if given is None:
        return []
    items = given if isinstance(given, list) else [given]
    return [item if isinstance(item, str) else item.image_url for item in items]
