"""The body of `POST /v1/predictions`: Replicate's fields, and its usual names for a model's input."""

import re
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import Field

from serve.errors import InvalidRequestError
from serve.http.body import Body, Text, parse_body
from serve.jobs.job import WebhookEvent
from serve.served_model import MAX_SEED, Wanted

MAX_WAIT_S = 60.0
MIN_LIFETIME_S, MAX_LIFETIME_S = 5.0, 24 * 3600.0
MAX_KEY_LENGTH = 255

_NOT_OFFERED = {
    "input.image": "image-to-image is not offered",
    "input.mask": "inpainting is not offered",
    "input.prompt_strength": "image-to-image is not offered",
}


class PredictionInput(Body):
    """What the picture shall be."""

    prompt: Text
    negative_prompt: Text | None = None
    width: Annotated[int, Field(ge=1)] | None = None
    height: Annotated[int, Field(ge=1)] | None = None
    num_outputs: Annotated[int, Field(ge=1)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = None
    scheduler: str | None = None
    eta: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    output_format: Literal["png", "webp", "jpeg", "jpg"] | None = None
    output_quality: Annotated[int, Field(ge=0, le=100)] | None = None

    deterministic: bool | None = None
    priority: Annotated[int, Field(ge=-2, le=2)] | None = None


class PredictionBody(Body):
    """A body that is well-formed."""

    input: PredictionInput
    version: str | None = None
    webhook: str | None = None
    webhook_events_filter: list[Literal["start", "output", "logs", "completed"]] | None = None
    stream: bool | None = None  # every prediction has a stream

    @property
    def webhook_events(self) -> frozenset[WebhookEvent]:
        """All of them where the client does not choose."""
        if self.webhook_events_filter is None:
            return frozenset(WebhookEvent)
        return frozenset(map(WebhookEvent, self.webhook_events_filter))


# What Replicate's clients call fields, as far as they are called otherwise here.
_RENAMED = {"num_images": "num_outputs", "sampler": "scheduler"}
_NAMES = {name: f"input.{_RENAMED.get(name, name)}" for name in (field.name for field in fields(Wanted))}


def read_body(raw: bytes) -> PredictionBody:
    """Raises InvalidRequestError, which names the field."""
    return parse_body(PredictionBody, raw, _NOT_OFFERED)


def wanted_of(body: PredictionBody, model: str, model_field: str) -> Wanted:
    """model: from the path or the version, as the field of that name has it."""
    given = body.input
    return Wanted(
        prompt=given.prompt,
        model=model,
        negative_prompt=given.negative_prompt,
        width=given.width,
        height=given.height,
        num_inference_steps=given.num_inference_steps,
        guidance_scale=given.guidance_scale,
        sampler=given.scheduler,
        eta=given.eta,
        seed=given.seed,
        num_images=given.num_outputs,
        deterministic=given.deterministic,
        output_format="jpeg" if given.output_format == "jpg" else given.output_format,
        output_quality=given.output_quality,
        priority=given.priority,
        names=_NAMES | {"model": model_field},
    )


def given_input(body: PredictionBody) -> dict[str, Any]:
    """As the client gave it, to be shown again."""
    return body.input.model_dump(exclude_unset=True)


def wait_s(prefer: str | None) -> float | None:
    """Seconds from `Prefer: wait` or `wait=N`; None for an answer at once.

    Unknown preferences are ignored, as RFC 7240 has it. Raises InvalidRequestError.
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
    """Seconds from `Cancel-After: 90s`, `1m`, `1h30m`. Raises InvalidRequestError."""
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
    """The key, quoted as the draft has it or bare as most clients send it. Raises InvalidRequestError."""
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
