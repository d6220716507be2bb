"""The field `loras` of both dialects: the adapters of a request."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import AliasChoices, BeforeValidator, Field

from serve.adapters import MAX_SCALE
from serve.http.body import Body, Text, Whole
from serve.wanted import WantedAdapter, shown

LORAS = AliasChoices("loras", "lora", "image_loras", "hf_loras")
_NAMES = AliasChoices("id", "path", "name", "model", "model_name", "lora_name")
MOST_LORAS = 64  # in a body; the configuration's limit is lower
Scale = Annotated[float, Field(ge=-MAX_SCALE, le=MAX_SCALE)]


class LoraBody(Body):
    """An adapter.

    id: its name here, a hub id or a URL; scale: how strong it is, 1 by default
    text_encoder_scale: in the text encoders, by default the same
    sha256: of the file, in hexadecimal; another file of that name is refused
    lora_path, int_id: vLLM-Omni's, for an adapter that has a name as well; they change nothing
    """

    not_offered: ClassVar[Mapping[str, str]] = {
        "transformer": "the U-Net and the text encoders are what adapters change",
        "weight_name": "write the file behind the hub id: owner/name/file.safetensors",
    }

    id: Text = Field(validation_alias=_NAMES)
    scale: Scale | None = Field(
        None, validation_alias=AliasChoices("scale", "weight", "strength", "lora_scale")
    )
    text_encoder_scale: Scale | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")] | None = None
    lora_path: Text | None = None
    int_id: Annotated[int, Whole] | None = Field(None, validation_alias=AliasChoices("int_id", "lora_int_id"))


def _items(given: Any) -> Any:
    """A list of objects: from one, from names alone, or from a form's text."""
    if given == "":  # of a form
        return []
    if isinstance(given, str) and given.lstrip().startswith(("[", "{")):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise ValueError(f"must be a list in JSON: {error}") from error
    items = given if isinstance(given, list) else [given]
    if len(items) > MOST_LORAS:
        raise ValueError(f"must have at most {MOST_LORAS} adapters")
    return [{"id": item} if isinstance(item, str) else _named(item) for item in items]


def _named(item: Any) -> Any:
    """vLLM-Omni's adapters have a name of their own beside their path."""
    if not isinstance(item, dict):
        return item
    name = item.get("name") or item.get("lora_name")
    if name is None or item.get("path") in (None, name):
        return item
    return {("lora_path" if key == "path" else key): value for key, value in item.items()}


Loras = Annotated[list[LoraBody], BeforeValidator(_items, json_schema_input_type=list[LoraBody | str])]


def loras_of(bodies: list[LoraBody] | None, field: str) -> tuple[WantedAdapter, ...]:
    """field: as the client wrote it"""
    return tuple(
        WantedAdapter(
            one.id,
            1.0 if one.scale is None else one.scale,
            f"{field}.{index}.{one.written('id')}",
            text_scale=one.text_encoder_scale,
            sha256=None if one.sha256 is None else one.sha256.lower(),
        )
        for index, one in enumerate(bodies or ())
    )


def lora_warnings(given: Sequence[Any], field: str) -> list[str]:
    """A sentence for each part of an adapter that has no effect. given: bodies, dumped; field: their own"""
    reasons = {"lora_path": "the name is what counts", "int_id": "adapters have no numbers here"}
    return [
        f"{field}.{index}.{key}: {shown(one[key])} changes nothing; {reason}."
        for index, one in enumerate(given)
        for key, reason in reasons.items()
        if isinstance(one, dict) and one.get(key) is not None
    ]
