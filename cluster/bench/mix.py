"""A mix of requests, and the plan of a run, drawn from the mix.

The generator works with `Mix`; `MixFile` is its form in a file.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from cluster.bench.arrivals import TraceArrival
from cluster.bench.tasks import Task

T = TypeVar("T")

PROMPTS = (
    "a large red star on a blue background",
    "a green circle left of a white square on a black background",
    "a small yellow square on a purple background",
    "a white circle above a red star on a green background",
)


@dataclass(frozen=True)
class Mix:
    """Values with their weights. Fields are drawn independently. None leaves the choice to the server.

    sizes: (width, height) in pixels; num_images: per request; strengths: of tasks with a picture, None for
    the task's default; num_loras: adapters per request
    adapters: their names; empty for those that are served, the n-th with 1/n of the first one's weight
    """

    prompts: Sequence[str] = PROMPTS
    sizes: Mapping[tuple[int, int] | None, float] = field(default_factory=lambda: {None: 1.0})
    num_inference_steps: Mapping[int | None, float] = field(default_factory=lambda: {None: 1.0})
    guidance_scales: Mapping[float | None, float] = field(default_factory=lambda: {None: 1.0})
    samplers: Mapping[str | None, float] = field(default_factory=lambda: {None: 1.0})
    num_images: Mapping[int, float] = field(default_factory=lambda: {1: 1.0})
    tasks: Mapping[Task, float] = field(default_factory=lambda: {Task.TXT2IMG: 1.0})
    strengths: Mapping[float | None, float] = field(default_factory=lambda: {None: 1.0})
    models: Mapping[str | None, float] = field(default_factory=lambda: {None: 1.0})
    num_loras: Mapping[int, float] = field(default_factory=lambda: {0: 1.0})
    adapters: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PlannedRequest:
    """due_s: seconds from the start of the run; width and height in pixels; None leaves it to the server

    strength: the share of the steps that is done if the task starts from a picture, else None
    model: a served model, or a trace's checkpoint before `checkpoints` gives it one
    num_loras: adapters that it is to have; loras: their names, None before `adapters` gives it some
    """

    due_s: float
    prompt: str
    seed: int
    num_images: int = 1
    width: int | None = None
    height: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    task: Task = Task.TXT2IMG
    strength: float | None = None
    model: str | None = None
    num_loras: int = 0
    loras: tuple[str, ...] | None = None


def plan(due_times: Sequence[float], mix: Mix, seed: int) -> list[PlannedRequest]:
    """A request for each time, reproducible by seed."""
    return plan_trace([TraceArrival(due_s) for due_s in due_times], mix, seed)


def plan_trace(arrivals: Sequence[TraceArrival], mix: Mix, seed: int) -> list[PlannedRequest]:
    """Does `plan`, but with the trace's values where it has them."""
    rng = random.Random(seed)
    # Tasks, models and adapters are drawn apart, so that they change nothing else about a load.
    of_tasks, of_models, of_loras = (random.Random(f"{name} {seed}") for name in ("tasks", "models", "loras"))
    planned = []
    for arrival in arrivals:
        drawn = _draw(arrival.due_s, mix, rng)
        task, strength = _pick(mix.tasks, of_tasks), _pick(mix.strengths, of_tasks)
        task, model = arrival.task or task, _pick(mix.models, of_models)
        num_loras = _pick(mix.num_loras, of_loras)
        strength = arrival.strength or strength or task.default_strength
        planned.append(
            replace(
                drawn,
                num_images=arrival.num_images or drawn.num_images,
                num_inference_steps=arrival.num_inference_steps or drawn.num_inference_steps,
                task=task,
                strength=strength if task.starts_from_picture else None,
                model=arrival.checkpoint or model,
                num_loras=num_loras if arrival.num_lora is None else arrival.num_lora,
            )
        )
    return planned


def _draw(due_s: float, mix: Mix, rng: random.Random) -> PlannedRequest:
    """A request without a picture."""
    width, height = _pick(mix.sizes, rng) or (None, None)
    return PlannedRequest(
        due_s=due_s,
        prompt=rng.choice(mix.prompts),
        seed=rng.getrandbits(31),  # every server accepts this range
        num_images=_pick(mix.num_images, rng),
        width=width,
        height=height,
        num_inference_steps=_pick(mix.num_inference_steps, rng),
        guidance_scale=_pick(mix.guidance_scales, rng),
        sampler=_pick(mix.samplers, rng),
    )


def _pick(choices: Mapping[T, float], rng: random.Random) -> T:
    [value] = rng.choices(list(choices), list(choices.values()))
    return value


def read_size(text: Any) -> tuple[int, int]:
    """Width and height in pixels from "WIDTHxHEIGHT". Raises ValueError."""
    width, _, height = str(text).lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise ValueError(f'{text!r} is not "WIDTHxHEIGHT", such as "512x768"')
    return int(width), int(height)


def read_weights(text: str, read: Callable[[str], T]) -> dict[T, float]:
    """Values and weights from "4:20,20:80"; a value alone weighs 1. Raises ValueError."""
    choices: dict[T, float] = {}
    for item in text.split(","):
        value, weight = item.rsplit(":", 1) if ":" in item else (item, "1")
        try:
            choices[read(value.strip())] = float(weight)
        except ValueError as error:
            raise ValueError(f"{item!r} is not VALUE or VALUE:WEIGHT: {error}") from error
        if not 0 < float(weight) < math.inf:
            raise ValueError(f"{item!r}: a weight must be above 0")
    return choices


class MixFile(BaseModel):
    """A mix as YAML or JSON: the fields of Mix, sizes as "WIDTHxHEIGHT"."""

    model_config = ConfigDict(extra="forbid")

    prompts: Annotated[list[str], Field(min_length=1)] | None = None
    sizes: dict[Annotated[tuple[int, int], BeforeValidator(read_size)], PositiveFloat] | None = None
    num_inference_steps: dict[PositiveInt, PositiveFloat] | None = None
    guidance_scales: dict[float, PositiveFloat] | None = None
    samplers: dict[str, PositiveFloat] | None = None
    num_images: dict[PositiveInt, PositiveFloat] | None = None
    tasks: dict[Task, PositiveFloat] | None = None
    strengths: dict[Annotated[float, Field(gt=0, le=1)], PositiveFloat] | None = None
    models: dict[str, PositiveFloat] | None = None
    num_loras: dict[NonNegativeInt, PositiveFloat] | None = None
    adapters: dict[str, PositiveFloat] | None = None


def read_mix(path: Path) -> Mix:
    """The mix in a file. Raises ValueError, which names the first wrong key, and OSError."""
    try:
        data = yaml.safe_load(path.read_text())  # JSON is YAML too
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    try:
        given = MixFile.model_validate(data)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"] if part != "[key]") or "the file"
        known = ", ".join(MixFile.model_fields)
        unknown = problem["type"] == "extra_forbidden"
        text = f"unknown key; known are {known}" if unknown else problem["msg"].removeprefix("Value error, ")
        raise ValueError(f"{path}: {place}: {text}") from error
    return Mix(**{name: value for name in MixFile.model_fields if (value := getattr(given, name))})
