"""The body of `POST /v1/predictions`: Replicate's fields, and its usual names in a model's input."""

import re
from collections.abc import Mapping
from dataclasses import fields
from itertools import chain
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, Field

from deployments.engine.prompt_text import Syntax
from serve.errors import InvalidRequestError
from serve.http.body import Body, Text, Whole, parse_body
from serve.http.field_names import (
    GUIDANCE_SCALE,
    IMAGE,
    MASK,
    NEGATIVE_PROMPT,
    NOT_OFFERED,
    NUM_INFERENCE_STEPS,
)
from serve.http.hires import HiresBody, hires_of
from serve.http.loras import LORAS, Loras, Scale, lora_warnings, loras_of
from serve.jobs.job import WebhookEvent
from serve.parameters import MAX_SEED
from serve.wanted import LongPrompts, Wanted, WantedAdapter

MAX_WAIT_S = 60.0
MIN_LIFETIME_S, MAX_LIFETIME_S = 5.0, 24 * 3600.0
MAX_KEY_LENGTH = 255
_SHOWN_OF_DATA = 64  # characters of a data URL

# Accepted fields of Replicate's models without effect.
_IDLE = {
    "apply_watermark": "pictures get no watermark",
    "disable_safety_checker": "there is no safety checker",
    "refine": "there is no refiner",
    "high_noise_frac": "there is no refiner",
}
# Names of the first and the second adapter in Replicate's models, by the fields with their scales.
_LORA_NAMES = {"lora_scale": ("lora_weights", "hf_lora"), "extra_lora_scale": ("extra_lora",)}


class PredictionInput(Body):
    """The parameters of the picture."""

    not_offered: ClassVar[Mapping[str, str]] = NOT_OFFERED

    prompt: Text
    negative_prompt: Text | None = Field(None, validation_alias=NEGATIVE_PROMPT)
    width: Annotated[int, Field(ge=1), Whole] | None = None
    height: Annotated[int, Field(ge=1), Whole] | None = None
    num_outputs: Annotated[int, Field(ge=1), Whole] | None = Field(
        None, validation_alias=AliasChoices("num_outputs", "num_images", "batch_size", "n")
    )
    num_inference_steps: Annotated[int, Field(ge=1), Whole] | None = Field(
        None, validation_alias=NUM_INFERENCE_STEPS
    )
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, validation_alias=GUIDANCE_SCALE
    )
    guidance_start: Annotated[float, Field(ge=0, le=1)] | None = None
    guidance_end: Annotated[float, Field(ge=0, le=1)] | None = None
    guidance_rescale: Annotated[float, Field(ge=0, le=1)] | None = None
    prompt_syntax: Syntax | None = None
    long_prompts: LongPrompts | None = None
    clip_skip: Annotated[int, Field(ge=0), Whole] | None = None
    scheduler: str | None = Field(None, validation_alias=AliasChoices("scheduler", "sampler", "sampler_name"))
    eta: Annotated[float, Field(ge=0, le=1)] | None = None
    image: str | None = Field(None, validation_alias=IMAGE)
    mask: str | None = Field(None, validation_alias=MASK)
    prompt_strength: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, validation_alias=AliasChoices("prompt_strength", "strength", "denoising_strength")
    )
    padding_mask_crop: Annotated[int, Field(ge=0, le=4096), Whole] | None = None
    preserve_unmasked: bool | None = None
    hires: HiresBody | None = None
    loras: Loras | None = Field(None, validation_alias=LORAS)
    lora_weights: Text | None = Field(None, validation_alias=AliasChoices(*_LORA_NAMES["lora_scale"]))
    lora_scale: Scale | None = None
    extra_lora: Text | None = None
    extra_lora_scale: Scale | None = None
    seed: Annotated[int, Field(ge=-1, le=MAX_SEED), Whole] | None = None
    output_format: Literal["png", "webp", "jpeg", "jpg"] | None = None
    output_quality: Annotated[int, Field(ge=0, le=100), Whole] | None = None
    num_previews: Annotated[int, Field(ge=0, le=8), Whole] | None = None

    deterministic: bool | None = None
    priority: Annotated[int, Field(ge=-2, le=2), Whole] | None = None

    apply_watermark: bool | None = None
    disable_safety_checker: bool | None = None
    refine: Literal["no_refiner"] | None = None
    high_noise_frac: float | None = None


class PredictionBody(Body):
    """A well-formed body."""

    input: PredictionInput
    version: str | None = None
    webhook: str | None = None
    webhook_events_filter: list[Literal["start", "output", "logs", "completed"]] | None = None
    stream: bool | None = None  # every prediction has a stream

    @property
    def webhook_events(self) -> frozenset[WebhookEvent]:
        """The chosen events, or all if the client does not choose."""
        if self.webhook_events_filter is None:
            return frozenset(WebhookEvent)
        return frozenset(map(WebhookEvent, self.webhook_events_filter))


# Names of fields that Replicate's clients call differently.
_RENAMED = {"num_images": "num_outputs", "sampler": "scheduler", "strength": "prompt_strength"}


def read_body(raw: bytes) -> PredictionBody:
    """Parses a body. Raises InvalidRequestError, which names the field."""
    return parse_body(PredictionBody, raw)


def wanted_of(body: PredictionBody, model: str, model_field: str) -> Wanted:
    """The body as a `Wanted`. model: from the path or the version, by the field of that name"""
    given = body.input
    names = {
        field.name: f"input.{given.written(_RENAMED.get(field.name, field.name))}" for field in fields(Wanted)
    }
    return Wanted(
        prompt=given.prompt,
        model=model,
        negative_prompt=given.negative_prompt,
        width=given.width,
        height=given.height,
        num_inference_steps=given.num_inference_steps,
        guidance_scale=given.guidance_scale,
        guidance_start=given.guidance_start,
        guidance_end=given.guidance_end,
        guidance_rescale=given.guidance_rescale,
        sampler=given.scheduler,
        eta=given.eta,
        prompt_syntax=given.prompt_syntax,
        long_prompts=given.long_prompts,
        clip_skip=given.clip_skip,
        seed=given.seed,
        num_images=given.num_outputs,
        deterministic=given.deterministic,
        output_format=given.output_format,
        output_quality=given.output_quality,
        num_previews=given.num_previews,
        priority=given.priority,
        strength=given.prompt_strength,
        padding_mask_crop=given.padding_mask_crop,
        preserve_unmasked=given.preserve_unmasked,
        hires=hires_of(given.hires),
        loras=_loras_of(given),
        names=names | {"model": model_field},
    )


def _loras_of(given: PredictionInput) -> tuple[WantedAdapter, ...]:
    single = []
    for scale_field, (name_field, *_) in _LORA_NAMES.items():
        if name := getattr(given, name_field):  # forms send an empty text for none
            scale = getattr(given, scale_field)
            field = f"input.{given.written(name_field)}"
            single.append(WantedAdapter(name, 1.0 if scale is None else scale, field))
    return (*single, *loras_of(given.loras, f"input.{given.written('loras')}"))


def given_input(body: PredictionBody) -> dict[str, Any]:
    """The input as the client gave it, to show it again; of pictures in it, only the beginning."""
    given = body.input
    return {
        given.written(field): _cut(value) for field, value in given.model_dump(exclude_unset=True).items()
    }


def _cut(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("data:") and len(value) > _SHOWN_OF_DATA:
        return f"{value[:_SHOWN_OF_DATA]}... ({len(value)} characters)"
    return value


def input_warnings(given: Mapping[str, Any]) -> list[str]:
    """A sentence for each given field of an input that has no effect."""
    idle = [f"{field}: changes nothing; {reason}." for field, reason in _IDLE.items() if field in given]
    for scale, names in _LORA_NAMES.items():
        if scale in given and not any(name in given for name in names):
            idle.append(f"{scale}: changes nothing; it is the scale of {names[0]}.")
    lists = [name for name in map(str, LORAS.choices) if isinstance(given.get(name), list)]
    return [*idle, *chain.from_iterable(lora_warnings(given[name], name) for name in lists)]


def wait_s(prefer: str | None) -> float | None:
    """Seconds from `Prefer: wait` or `wait=N`; None for an answer at once.

    Unknown preferences are ignored, as in RFC 7240. Raises InvalidRequestError.
    """
    for preference in (prefer or "").split(","):
        name, _, value = (part.strip() for part in preference.partition("="))
        if name.lower() != "wait":
            continue
        if not value:
            return MAX_WAIT_S
        if not re.fullmatch("[0-9]{1,9}", value) or not 1 <= int(value) <= MAX_WAIT_S:
            raise InvalidRequestError(
                f"Prefer: wait={value[:20]} was given; allowed are 1 to {MAX_WAIT_S:.0f} seconds.", "Prefer"
            )
        return float(value)
    return None


_UNITS_S = {"h": 3600, "m": 60, "s": 1}


def lifetime_s(cancel_after: str | None) -> float | None:
    """The seconds in `Cancel-After: 90s`, `1m`, `1h30m`. Raises InvalidRequestError."""
    if cancel_after is None:
        return None
    text = cancel_after.strip()
    parts = re.findall(r"(\d{1,6})([hms]?)", text)
    if not text or "".join(number + unit for number, unit in parts) != text:
        raise InvalidRequestError(
            f'Cancel-After: {text[:40]!r} is no duration such as "90s", "5m" or "1h30m".', "Cancel-After"
        )
    seconds = float(sum(int(number) * _UNITS_S[unit or "s"] for number, unit in parts))
    if not MIN_LIFETIME_S <= seconds <= MAX_LIFETIME_S:
        raise InvalidRequestError(
            f"Cancel-After: {seconds:.0f} s were given; allowed are {MIN_LIFETIME_S:.0f} s to "
            f"{MAX_LIFETIME_S / 3600:.0f} h.",
            "Cancel-After",
        )
    return seconds


def idempotency_key(header: str | None) -> str | None:
    """The key, either quoted as in the draft or bare as most clients send it. Raises InvalidRequestError."""
    if header is None:
        return None
    key = header.strip()
    if len(key) > 1 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not 1 <= len(key) <= MAX_KEY_LENGTH or not key.isprintable():
        raise InvalidRequestError(
            f"Idempotency-Key: must have 1 to {MAX_KEY_LENGTH} printable characters.", "Idempotency-Key"
        )
    return key
