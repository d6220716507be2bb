"""The options that describe a load, for every command that makes or plans one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from cluster.bench.adapters import with_adapters
from cluster.bench.arrivals import TraceArrival, constant, poisson, steps, trace
from cluster.bench.mix import Mix, PlannedRequest, plan, plan_trace, read_mix, read_size, read_weights
from cluster.bench.option_values import (
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVES,
    Read,
    read_count,
    read_not_negative,
    read_positive_count,
    read_share,
)
from cluster.bench.tasks import Task, read_task

R = TypeVar("R")
T = TypeVar("T")
NO_ADAPTERS = "no request has any; --num-loras 0:85,1:15 gives one to 15% of them"


def file_of(read: Callable[[Path], T]) -> Read[T]:
    return Read("file", lambda text: read(Path(text)))


def _weights(read: Callable[[str], T]) -> Read[dict[T, float]]:
    return Read("value:weight,...", lambda text: read_weights(text, read))


def _read_name(text: str) -> str:
    if not text:
        raise ValueError("a name is empty")
    return text


def _read_prompts(path: Path) -> list[str]:
    if not (prompts := [line for line in path.read_text().splitlines() if line.strip()]):
        raise ValueError(f"{path}: has no prompts; it needs one per line")
    return prompts


_WHEN = (
    click.option(
        "--arrivals",
        type=click.Choice(("poisson", "constant", "step", "trace")),
        help="When requests fall due (poisson; with --trace: trace).",
    ),
    click.option(
        "--rate",
        "--rates",
        "rates",
        type=POSITIVES,
        help="Requests/s; several values are several runs, or with --arrivals step the steps of one run.",
    ),
    click.option(
        "--duration",
        "duration_s",
        type=POSITIVE,
        help="Seconds of a run or step (60; plan: 600; trace: to its end).",
    ),
    click.option(
        "--trace",
        type=Path,
        help="CSV or CSV.GZ with arrival_s, num_images, num_inference_steps; optionally task, strength, "
        "checkpoint, num_lora.",
    ),
    click.option(
        "--speed-up",
        "speed_ups",
        type=POSITIVES,
        help="Speed of a trace's replay (1); several values are several runs.",
    ),
    click.option("--start", "start_s", type=NOT_NEGATIVE, help="Second of the trace to start at (0)."),
    click.option("--warmup", type=COUNT, default="0", help="Uncounted requests before each run."),
    click.option(
        "--timeout", "timeout_s", type=POSITIVE, default="300", help="Seconds from due to the last byte."
    ),
)
_WHAT = (
    click.option("--mix", type=file_of(read_mix), help="The mix of requests, as a YAML or JSON file."),
    click.option("--prompts", type=file_of(_read_prompts), help="A file with one prompt per line."),
    click.option("--sizes", type=_weights(read_size), help="Such as 512x512:3,768x768:1."),
    click.option(
        "--steps", "num_inference_steps", type=_weights(read_positive_count), help="4:20,20:40,50:10"
    ),
    click.option("--guidance-scales", type=_weights(read_not_negative), help="1:1,5:3"),
    click.option("--samplers", type=_weights(str), help="'Euler a:1,DPM++ 2M:2'"),
    click.option("--num-images", type=_weights(read_positive_count), help="Images per request: 1:3,4:1."),
    click.option(
        "--tasks",
        type=_weights(read_task),
        help="txt2img:90,img2img:8,inpaint:2; the last two start from pictures (txt2img).",
    ),
    click.option(
        "--strengths",
        type=_weights(read_share),
        help="Of images that start from pictures: 0.5:1,0.8:3 (img2img: 0.8; inpaint: 1).",
    ),
    click.option("--models", type=_weights(_read_name), help="Models to name: sdxl:3,anime:1."),
    click.option(
        "--num-loras", type=_weights(read_count), help="Adapters (LoRAs) per request: 0:85,1:15 (0)."
    ),
    click.option(
        "--adapters",
        type=_weights(_read_name),
        help="Adapters to name: stripes:3,ink:1 (those that are served, the n-th 1/n as often as the first).",
    ),
    click.option("--seed", type=COUNT, default="0", help="Seed of arrival times and requests."),
)


@dataclass(frozen=True)
class LoadOptions:
    """The given options, None for those not given. Its methods raise click.BadParameter."""

    arrivals: str | None
    rates: Sequence[float] | None
    duration_s: float | None
    trace: Path | None
    speed_ups: Sequence[float] | None
    start_s: float | None
    warmup: int
    timeout_s: float
    mix: Mix | None
    prompts: Sequence[str] | None
    sizes: Mapping[tuple[int, int], float] | None
    num_inference_steps: Mapping[int, float] | None
    guidance_scales: Mapping[float, float] | None
    samplers: Mapping[str, float] | None
    num_images: Mapping[int, float] | None
    tasks: Mapping[Task, float] | None
    strengths: Mapping[float, float] | None
    models: Mapping[str, float] | None
    num_loras: Mapping[int, float] | None
    adapters: Mapping[str, float] | None
    seed: int

    def whole_mix(self) -> Mix:
        """The file's mix, or the default, with the values of the other options."""
        given = {field.name: getattr(self, field.name) for field in fields(Mix)}
        return replace(
            self.mix or Mix(), **{name: value for name, value in given.items() if value is not None}
        )

    def kind(self) -> str:
        return self.arrivals or ("poisson" if self.trace is None else "trace")

    def plans(self, default_duration_s: float = 60.0) -> list[list[PlannedRequest]]:
        """The plan of each run. default_duration_s: of runs without a trace"""
        mix, seed = self.whole_mix(), self.seed
        if self.kind() == "trace":
            plans = [plan_trace(times, mix, seed) for times in self._traces()]
        else:
            duration_s = self.duration_s or default_duration_s
            plans = [plan(times, mix, seed) for times in self._times(duration_s)]
        if not all(plans):
            _refuse("--start" if self.start_s else "--duration", "no request falls due")
        if not mix.adapters:
            return plans
        if not any(one.num_loras for planned in plans for one in planned):
            _refuse("--adapters", NO_ADAPTERS)
        return [with_adapters(planned, lambda _: mix.adapters, seed) for planned in plans]

    def settings(self, default_duration_s: float | None = None) -> dict[str, Any]:
        """The settings for a file of results: no paths, no hosts."""
        mix = self.whole_mix()
        sizes = {size and f"{size[0]}x{size[1]}": weight for size, weight in mix.sizes.items()}
        return {
            "arrivals": self.kind(),
            "rate": self.rates,
            "duration": self.duration_s or (None if self.kind() == "trace" else default_duration_s),
            "speed_up": self.speed_ups,
            "start": self.start_s,
            "warmup": self.warmup,
            "timeout": self.timeout_s,
            "seed": self.seed,
            "mix": asdict(mix) | {"sizes": sizes, "prompts": len(mix.prompts)},
        }

    def _times(self, duration_s: float) -> list[list[float]]:
        for option, value in (("trace", self.trace), ("speed-up", self.speed_ups), ("start", self.start_s)):
            if value is not None:
                _refuse(f"--{option}", "needs --arrivals trace")
        if self.rates is None:
            _refuse("--rate", "is required")
        match self.kind():
            case "poisson":
                return [poisson(rate, duration_s, self.seed) for rate in self.rates]
            case "constant":
                return [constant(rate, duration_s) for rate in self.rates]
        return [steps([(rate, duration_s) for rate in self.rates], self.seed)]

    def _traces(self) -> list[list[TraceArrival]]:
        if self.rates is not None:
            _refuse("--rate", "a trace has its own rate; --speed-up changes it")
        if self.trace is None:
            _refuse("--trace", "is required with --arrivals trace")
        try:
            return [
                trace(self.trace, speed_up, self.duration_s, self.start_s or 0.0, self.seed)
                for speed_up in self.speed_ups or [1.0]
            ]
        except OSError as error:
            _refuse("--trace", f"{self.trace}: {error.strerror or error}")
        except ValueError as error:
            _refuse("--trace", str(error))


def _refuse(option: str, message: str) -> NoReturn:
    raise click.BadParameter(message, param_hint=option)


def with_load_options(command: Callable[..., R]) -> Callable[..., R]:
    """Adds the options to a command, which gets them together as `load`."""

    @wraps(command)
    def with_load(**given: Any) -> R:
        load = LoadOptions(**{field.name: given.pop(field.name) for field in fields(LoadOptions)})
        return command(load=load, **given)

    for option in reversed(_WHEN + _WHAT):
        option(with_load)
    return with_load
