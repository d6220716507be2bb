"""The denoising engine: a request joins the running batch at any step and leaves it at any step.

`Engine.step()` is the whole of it: admit, launch a forward, finish it. It is single-threaded; whoever calls
it owns the device (`engine_thread` in a server, a plain loop in a script):

    engine.add(request)
    while engine.num_requests:
        for event in engine.step().events: ...

Where the device has not done a step when its launch returns, as on CUDA, the next one is launched before that
is finished: so the device need not wait. Which requests finish at a step is in their tables; no values are
needed to know it.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate

import torch

from deployments.engine.cost import StageCost, counts_to_measure
from deployments.engine.device_step import Completion, StepInputs, StepRunner, UNetInterface, receive, send
from deployments.engine.messages import (
    Checkpoint,
    DenoisedLatents,
    DenoiseEvent,
    DenoiseFailed,
    DenoiseRequest,
    LatentShape,
    StepProgress,
)
from deployments.engine.sampler_table import STATE_SLOTS, SamplerTable
from deployments.engine.samplers import SamplerTables
from deployments.engine.step_scheduler import Group, StepScheduler

_KEPT_COSTS = 4096
# How long before a forward should be done the next one is launched: a share of its predicted time, and so
# many seconds at least, since a thread may wait some milliseconds for its turn. Who comes later joins one
# forward later.
_LEAD = 0.1
_MIN_LEAD_S = 0.01
# After what share of that time, and how many seconds at most, to look whether the device is done before it.
_LOOK_AFTER = 0.05
_MAX_LOOK_AFTER_S = 0.01


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How the engine batches.

    max_rows: most U-Net rows in one forward
    rows_per_forward: the row cap; None takes the knee of the measured cost, past which rows only cost time
    deterministic_rows: the one row count of deterministic forwards; another value gives other bytes
    latent_shape: the usual one, that the row cap is meant for; larger ones get fewer rows
    row_counts: what forwards are padded to, rising, so that few shapes must be captured; empty: no padding;
        None: what suits the device
    checkpoint_interval_s: how often a request that runs gives a checkpoint; None: never
    """

    max_rows: int
    rows_per_forward: int | None
    deterministic_rows: int
    latent_shape: LatentShape
    row_counts: tuple[int, ...] | None = ()
    checkpoint_interval_s: float | None = None

    def for_device(self, device: torch.device) -> "EngineConfig":
        """With row_counts filled in: a few on CUDA, where each one captured costs memory and start-up; none
        elsewhere, where nothing is captured and padding would only cost time."""
        if self.row_counts is not None:
            return self
        steps = sorted({*counts_to_measure(self.max_rows), *(3 * 2**power for power in range(1, 6))})
        return self.padded_to(steps if device.type == "cuda" else ())

    def padded_to(self, counts: Iterable[int]) -> "EngineConfig":
        """With row_counts filled in: those of the counts that max_rows allows."""
        if self.row_counts is not None:
            return self
        return replace(self, row_counts=tuple(count for count in counts if count <= self.max_rows))

    def row_cap(self, group: Group, cost: StageCost) -> int:
        """Most rows that a group's forward takes in."""
        if group.deterministic:
            return self.deterministic_rows
        usual = self.latent_shape
        counts = self.row_counts or range(2, self.max_rows + 1, 2)
        rows = self.rows_per_forward or cost.curve(usual).knee([count for count in counts if count >= 2])
        allowed = int(rows * min(1.0, math.prod(usual) / math.prod(group.latent_shape)))
        return max((count for count in counts if 2 <= count <= allowed), default=2)

    def work_s(self, group: Group, cost: StageCost, num_calls: int, num_rows: int) -> float:
        """Device-seconds of model calls of so many rows, in forwards that are as full as they get."""
        rows = self.row_cap(group, cost)
        return num_calls * num_rows * cost.seconds(group.latent_shape, rows) / rows

    def forward_rows(self, group: Group, rows: int) -> int:
        """How many rows the forward of so many has, padding included."""
        if group.deterministic:
            return self.deterministic_rows
        return next((count for count in self.row_counts or () if count >= rows), rows)


@dataclass(eq=False, slots=True)
class Denoising:
    """A request in the engine: the only thing here that changes.

    arrival: in seconds since the epoch
    unloaded_s: what it would take alone
    state: [STATE_SLOTS, C, h, w] float32, the latents first, after all that was launched
    call: of the table, the one that is launched next
    checkpointed_at: when it last could be resumed from where it was, in seconds since the epoch
    """

    request: DenoiseRequest
    table: SamplerTable
    group: Group
    arrival: float
    unloaded_s: float
    generator: torch.Generator
    conditions: "Conditions"
    state: torch.Tensor
    call: int
    checkpointed_at: float

    @property
    def num_calls(self) -> int:
        return self.table.num_calls

    @property
    def calls_left(self) -> int:
        return self.table.num_calls - self.call

    def steps_done(self, call: int) -> int:
        """Steps that are done where `call` comes next; a sampler may make more than one for a step."""
        return -(-call * self.request.num_inference_steps // self.table.num_calls)


@dataclass(frozen=True, slots=True)
class Conditions:
    """A request's rows of the U-Net's other inputs, on the device; the negative prompt's row comes first."""

    prompt_embeds: torch.Tensor  # [num_rows, tokens, width]
    pooled_prompt_embeds: torch.Tensor | None  # [num_rows, width]
    time_ids: torch.Tensor | None  # [num_rows, 6]


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did.

    rows: that did work; forward_rows: of the forward, padding included
    seconds: since it was launched or, where that is later, the one before it was finished. The launch of the
        one behind it may lie between, so that one seems too long by what the next one seems too short
    predicted_s: what the cost model said that it would take
    """

    events: list[DenoiseEvent]
    num_requests: int
    rows: int
    forward_rows: int
    latent_shape: LatentShape
    seconds: float
    predicted_s: float


@dataclass(frozen=True, slots=True)
class _Step:
    """One that was launched and is not finished.

    events: what there is to tell of it when the device has done it; only then their tensors have values
    started: when its launch began, by time.perf_counter
    """

    batch: list[Denoising]
    events: list[tuple[Denoising, DenoiseEvent]]
    completion: Completion
    started: float
    rows: int
    forward_rows: int
    predicted_s: float


class Engine:
    """Denoises any mix of requests on one device.

    Its parts are given: the U-Net and who runs its steps, the tables of its noise schedule, the pixels per
    latent, what forwards cost, and a clock that counts as deadlines do (seconds since the epoch).
    """

    def __init__(
        self,
        unet: UNetInterface,
        run_step: StepRunner,
        tables: SamplerTables,
        scale_factor: int,
        config: EngineConfig,
        cost: StageCost,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._unet = unet
        self._tables = tables
        self._scale_factor = scale_factor
        self._config = config
        self._clock = clock
        self._denoisings: dict[str, Denoising] = {}
        self._cost = cost
        # Asked for again and again at each step. A cache of bounded size: isolated requests are a group each.
        self._seconds = lru_cache(maxsize=_KEPT_COSTS)(self._seconds_uncached)
        row_cap = lru_cache(maxsize=_KEPT_COSTS)(lambda group: config.row_cap(group, cost))
        self._scheduler = StepScheduler(row_cap, self._seconds)
        self._run_step = run_step
        self._steps: deque[_Step] = deque()  # launched and not finished
        self._launch_s = 0.0  # what the last launch took
        self._done_at = 0.0  # when the last step was finished, by time.perf_counter

    @property
    def num_requests(self) -> int:
        """Those whose last event is still to come."""
        return len(self._denoisings)

    @property
    def is_idle(self) -> bool:
        return not self._denoisings and not self._steps

    @property
    def waiting(self) -> list[Denoising]:
        """The requests of which a step is still to be launched."""
        return [item for item in self._denoisings.values() if item.calls_left]

    @property
    def finishing(self) -> list[Denoising]:
        """The requests of the step that is finished next."""
        return self._steps[0].batch if self._steps else []

    def add(self, request: DenoiseRequest, arrival: float | None = None) -> None:
        """Takes a request in; it joins the next forward that has room for it.

        arrival: on the engine's clock, if it was not just now
        Raises UnsupportedSamplerError for a sampler that this model or step count cannot have, ValueError for
        an id that is here already. Noise is drawn in diffusers' order: the latents first, then step by step.
        """
        if request.request_id in self._denoisings:
            raise ValueError(f"request {request.request_id!r} is being denoised already")
        table = self._tables.table(request.sampler, request.num_inference_steps)
        group = group_of(request, self._scale_factor)
        shape = group.latent_shape
        generator = torch.Generator().manual_seed(request.seed)
        state = torch.zeros(STATE_SLOTS, self._unet.in_channels, *shape)
        state[0] = table.initial_scale * self._draw_noise(generator, shape)
        call = 0
        if checkpoint := request.resume_from:
            call = checkpoint.call
            state[: len(checkpoint.state)] = checkpoint.state
            for _ in range(sum(table.draws_noise[:call])):
                self._draw_noise(generator, shape)
        now = self._clock()
        self._denoisings[request.request_id] = Denoising(
            request=request,
            table=table,
            group=group,
            arrival=now if arrival is None else arrival,
            unloaded_s=table.num_calls * self._seconds(group, request.num_rows),
            generator=generator,
            conditions=self._conditions(request),
            state=send(state, self._unet.device),
            call=call,
            checkpointed_at=now,
        )

    def abort(self, request_id: str) -> None:
        """Frees the request's rows from the next forward on. Ids that are unknown or finished are ignored."""
        self._denoisings.pop(request_id, None)

    def step(self) -> StepReport:
        """Finishes a step, with the next one launched before that if the device has not done it yet. There
        must be a request."""
        while not self.must_finish:
            self.launch(self.admit())
        return self.finish()

    @property
    def must_finish(self) -> bool:
        """Whether a step is to be finished, and none launched before: it is done; or one is launched behind
        it already, and newcomers join behind all that is; or there is nothing to launch."""
        if not self._steps:
            return False
        return len(self._steps) > 1 or self._steps[0].completion.query() or not self.waiting

    @property
    def launch_in_s(self) -> float:
        """Seconds after which to launch the next step, or to ask again; 0: to launch or finish one now.

        It is launched shortly before the one under way is done: so late that who comes until then joins it,
        and so early that the device does not wait.
        """
        if len(self._steps) != 1 or self._steps[0].completion.query():
            return 0.0
        [step] = self._steps
        runs_s = time.perf_counter() - max(step.started, self._done_at)
        lead_s = max(_LEAD * step.predicted_s, _MIN_LEAD_S) + self._launch_s
        left_s = max(0.0, step.predicted_s - lead_s - runs_s)
        return min(left_s, _LOOK_AFTER * step.predicted_s, _MAX_LOOK_AFTER_S)

    def admit(self) -> list[Denoising]:
        """Chooses whose turn it is, of those that are waiting, one at least, and counts the turns that the
        others wait."""
        return self._scheduler.admit(self.waiting, self._clock())

    @torch.inference_mode()
    def launch(self, batch: list[Denoising]) -> None:
        """One step of every request in the batch: of one group, at whatever rows of whatever tables."""
        started = time.perf_counter()
        inputs = self._inputs(batch)
        outputs = self._run_step.launch(inputs)
        self._advance(batch, outputs[:, :STATE_SLOTS])
        events = self._events(batch, outputs[:, STATE_SLOTS])
        rows = sum(item.request.num_rows for item in batch)
        predicted_s = self._seconds(batch[0].group, rows)
        forward_rows = len(inputs.request_of_row)
        completion = self._run_step.completion()
        self._steps.append(_Step(batch, events, completion, started, rows, forward_rows, predicted_s))
        self._launch_s = time.perf_counter() - started

    def finish(self) -> StepReport:
        """Waits for the first of the steps that were launched, and tells of it; finished requests leave."""
        step = self._steps[0]
        try:
            step.completion.synchronize()
        finally:
            self._steps.popleft()
        started, self._done_at = max(step.started, self._done_at), time.perf_counter()
        # Of those that are still here, and not of others that have come under their ids.
        told = [(item, event) for item, event in step.events if self._is_here(item)]
        for item, event in told:
            if isinstance(event, DenoisedLatents):
                self.abort(event.request_id)
            elif isinstance(event, Checkpoint):
                # Alone it has by now come at least as far as it had among others when an engine died under
                # them: what killed that engine was not this request.
                item.group = replace(item.group, isolated=None)
        return StepReport(
            events=[event for _, event in told],
            num_requests=len(step.batch),
            rows=step.rows,
            forward_rows=step.forward_rows,
            latent_shape=step.batch[0].group.latent_shape,
            seconds=self._done_at - started,
            predicted_s=step.predicted_s,
        )

    def fail(self, batch: Sequence[Denoising], reason: str) -> list[DenoiseEvent]:
        """Ends the requests of a batch whose step a fault of ours broke."""
        failed = [item.request.request_id for item in batch if self._is_here(item)]
        for request_id in failed:
            self.abort(request_id)
        return [DenoiseFailed(request_id, reason) for request_id in failed]

    def _inputs(self, batch: list[Denoising]) -> StepInputs:
        """A request's rows lie side by side, the negative prompt's first; without guidance there is but one.

        Padding repeats the first request: in rows, and where shapes are static in requests as well, of which
        there are then as many as rows.
        """
        ends = list(accumulate(item.request.num_rows for item in batch))
        forward_rows = self._config.forward_rows(batch[0].group, ends[-1])
        padding = forward_rows - ends[-1]
        filled = [*batch, *([batch[0]] * (forward_rows - len(batch)))] if self._config.row_counts else batch
        last_rows = [end - 1 for end in ends]
        first_rows = [end - item.request.num_rows for end, item in zip(ends, batch, strict=True)]
        request_of_row = [index for index, item in enumerate(batch) for _ in range(item.request.num_rows)]
        request_of_row += padding * [0]
        timesteps = torch.stack([item.table.timesteps[item.call] for item in filled])
        conditions = [item.conditions for item in batch]
        return StepInputs(
            states=torch.stack([item.state for item in filled]),
            noise=self._noise(batch, len(filled)),
            weights=torch.stack([item.table.weights[item.call] for item in filled]).float(),
            input_scales=torch.stack([item.table.input_scales[item.call] for item in filled]).float(),
            guidance_scales=torch.tensor([item.request.guidance_scale for item in filled]),
            first_rows=torch.tensor(first_rows + (len(filled) - len(batch)) * [0]),
            last_rows=torch.tensor(last_rows + (len(filled) - len(batch)) * [0]),
            request_of_row=torch.tensor(request_of_row),
            timesteps=timesteps[request_of_row],
            prompt_embeds=_pad([condition.prompt_embeds for condition in conditions], padding),
            pooled_prompt_embeds=_pad_optional(
                [condition.pooled_prompt_embeds for condition in conditions], padding
            ),
            time_ids=_pad_optional([condition.time_ids for condition in conditions], padding),
        )

    def _noise(self, batch: list[Denoising], num_requests: int) -> torch.Tensor:
        """What samplers add at this step, [num_requests, C, h, w]; zeros for those that add none."""
        shape = batch[0].group.latent_shape
        noise = torch.zeros(num_requests, self._unet.in_channels, *shape)
        for index, item in enumerate(batch):
            if item.table.draws_noise[item.call]:
                noise[index] = self._draw_noise(item.generator, shape)
        return noise

    def _advance(self, batch: list[Denoising], states: torch.Tensor) -> None:
        for item, state in zip(batch, states, strict=False):  # behind the batch comes padding
            item.state = state
            item.call += 1

    def _events(
        self, batch: list[Denoising], estimates: torch.Tensor
    ) -> list[tuple[Denoising, DenoiseEvent]]:
        """What there will be to tell of the step that was launched."""
        events: list[tuple[Denoising, DenoiseEvent]] = []
        interval_s, now = self._config.checkpoint_interval_s, self._clock()
        for item, estimate in zip(batch, estimates, strict=False):
            request = item.request
            if item.calls_left == 0:
                events.append((item, DenoisedLatents(request.request_id, receive(item.state[0]))))
                continue
            step = item.steps_done(item.call)
            if step in request.preview_steps and step > item.steps_done(item.call - 1):
                events.append((item, StepProgress(request.request_id, step, receive(estimate))))
            if interval_s is not None and now - item.checkpointed_at >= interval_s:
                item.checkpointed_at = now
                state = receive(item.state[: item.table.num_slots(item.call)])
                events.append((item, Checkpoint(request.request_id, step, item.call, state)))
        return events

    def _is_here(self, item: Denoising) -> bool:
        return self._denoisings.get(item.request.request_id) is item

    def _seconds_uncached(self, group: Group, rows: int) -> float:
        """What a forward of so many rows takes by the cost model."""
        return self._cost.seconds(group.latent_shape, self._config.forward_rows(group, rows))

    def _draw_noise(self, generator: torch.Generator, shape: LatentShape) -> torch.Tensor:
        # Of the shape that diffusers draws for one image: the stream of a generator depends on it.
        return torch.randn(1, self._unet.in_channels, *shape, generator=generator)[0]

    def _conditions(self, request: DenoiseRequest) -> Conditions:
        embeds = request.embeds
        time_ids = None
        if self._unet.needs_time_ids:
            # original size, crop, target size: as diffusers sets them where nobody asks for others
            sizes = [request.height, request.width, 0, 0, request.height, request.width]
            time_ids = torch.tensor([sizes] * request.num_rows)
        return Conditions(
            prompt_embeds=self._condition(embeds.negative_prompt_embeds, embeds.prompt_embeds),
            pooled_prompt_embeds=None
            if embeds.pooled_prompt_embeds is None
            else self._condition(embeds.negative_pooled_prompt_embeds, embeds.pooled_prompt_embeds),
            time_ids=None if time_ids is None else send(time_ids.to(self._unet.dtype), self._unet.device),
        )

    def _condition(self, negative: torch.Tensor | None, positive: torch.Tensor) -> torch.Tensor:
        rows = torch.stack([positive] if negative is None else [negative, positive])
        return send(rows.to(self._unet.dtype), self._unet.device)


def group_of(request: DenoiseRequest, scale_factor: int) -> Group:
    """scale_factor: pixels per latent, each way"""
    shape = (request.height // scale_factor, request.width // scale_factor)
    return Group(shape, request.deterministic, request.request_id if request.isolated else None)


def _pad(parts: list[torch.Tensor], padding: int) -> torch.Tensor:
    """The requests' rows in one tensor; the padding repeats the first of them."""
    return torch.cat([*parts, parts[0][:1].expand(padding, *parts[0].shape[1:])])


def _pad_optional(parts: list[torch.Tensor | None], padding: int) -> torch.Tensor | None:
    """Likewise for an input that not every model takes."""
    present = [part for part in parts if part is not None]
    return _pad(present, padding) if present else None
