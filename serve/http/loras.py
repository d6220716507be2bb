"""The field `loras` of both dialects: the adapters of a request."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AliasChoices, BeforeValidator, Field

from serve.adapters import MAX_SCALE
from serve.http.body import Body, Text
from serve.wanted import WantedAdapter

LORAS = AliasChoices("loras", "lora", "image_loras", "hf_loras")
MOST_LORAS = 64  # in a body; the configuration's limit is lower
Scale = Annotated[float, Field(ge=-MAX_SCALE, le=MAX_SCALE)]


class LoraBody(Body):
    """An adapter.

    id: its name here, a hub id or a URL; scale: how strong it is, 1 by default
    text_encoder_scale: in the text encoders, by default the same
    """

    not_offered: ClassVar[Mapping[str, str]] = {
        "transformer": "the U-Net and the text encoders are what adapters change",
        "weight_name": "write the file behind the hub id: owner/name/file.safetensors",
    }

    id: Text = Field(validation_alias=AliasChoices("id", "path", "name", "model", "model_name"))
    scale: Scale | None = Field(None, validation_alias=AliasChoices("scale", "weight", "strength"))
    text_encoder_scale: Scale | None = None


def _items(given: Any) -> Any:
    """A list of objects: from one, from names alone, or from a form's text."""
    if isinstance(given, str) and given.lstrip().startswith(("[", "{")):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise ValueError(f"must be a list in JSON: {error}") from error
    items = given if isinstance(given, list) else [given]
    if len(items) > MOST_LORAS:
        raise ValueError(f"must have at most {MOST_LORAS} adapters")
    return [{"id": item} if isinstance(item, str) else item for item in items]


Loras = Annotated[list[LoraBody], BeforeValidator(_items, json_schema_input_type=list[LoraBody | str])]


def loras_of(bodies: list[LoraBody] | None, field: str) -> tuple[WantedAdapter, ...]:
    """field: as the client wrote it"""
    return tuple(
        WantedAdapter(
            one.id,
            1.0 if one.scale is None else one.scale,
            f"{field}.{index}.{one.written('id')}",
            text_scale=one.text_encoder_scale,
        )
        for index, one in enumerate(bodies or ())
    )
