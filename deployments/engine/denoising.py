"""The denoising engine: a request joins the running batch at any step and leaves it at any step.

`Engine.step()` is the whole of it: admit, forward, advance, retire. It is single-threaded; whoever calls
it owns the device (`engine_thread` in a server, a plain loop in a script):

    engine.add(request)
    while engine.num_requests:
        for event in engine.step().events: ...
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import torch

from deployments.engine.cost import CostModel
from deployments.engine.messages import (
    DenoisedLatents,
    DenoiseEvent,
    DenoiseFailed,
    DenoiseRequest,
    LatentShape,
    StepProgress,
)
from deployments.engine.models import UNet
from deployments.engine.samplers import STATE_SLOTS, SamplerTable, SamplerTables, advance
from deployments.engine.step_scheduler import (
    Group,
    patience_deadline,
    pick_group,
    pick_members,
    slack_s,
)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How the engine batches.

    max_rows: most U-Net rows in one forward
    rows_per_forward: the row cap; None takes the knee of the measured cost, past which rows only cost time
    deterministic_rows: the one row count of deterministic forwards; another value gives other bytes
    latent_shape: the usual one, that the row cap is meant for; larger ones get fewer rows
    """

    max_rows: int
    rows_per_forward: int | None
    deterministic_rows: int
    latent_shape: LatentShape


@dataclass(eq=False, slots=True)
class Denoising:
    """A request in the engine: the only thing here that changes.

    state: [STATE_SLOTS, C, h, w] float32, the latents first
    row: the row of the table that comes next
    """

    request: DenoiseRequest
    table: SamplerTable
    group: Group
    deadline: float
    generator: torch.Generator
    conditions: "Conditions"
    state: torch.Tensor
    row: int = 0

    @property
    def rows_left(self) -> int:
        return self.table.num_rows - self.row

    def steps_done(self, row: int) -> int:
        """Steps that are done where `row` comes next; a sampler may take more than one row for a step."""
        return -(-row * self.request.num_inference_steps // self.table.num_rows)


@dataclass(frozen=True, slots=True)
class Conditions:
    """A request's rows of the U-Net's other inputs, on the device; the negative prompt's row comes first."""

    prompt_embeds: torch.Tensor  # [num_rows, tokens, width]
    pooled_prompt_embeds: torch.Tensor | None  # [num_rows, width]
    time_ids: torch.Tensor | None  # [num_rows, 6]


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did. rows: that did work; forward_rows: of the forward, padding included."""

    events: list[DenoiseEvent]
    num_requests: int
    rows: int
    forward_rows: int
    latent_shape: LatentShape
    seconds: float


class Engine:
    """Denoises any mix of requests on one device.

    Its parts are given: the U-Net, the tables of its noise schedule, the pixels per latent, what forwards
    cost, and a clock that counts as deadlines do (seconds since the epoch).
    """

    def __init__(
        self,
        unet: UNet,
        tables: SamplerTables,
        scale_factor: int,
        config: EngineConfig,
        cost_model: CostModel,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._unet = unet
        self._tables = tables
        self._scale_factor = scale_factor
        self._config = config
        self._clock = clock
        self._denoisings: dict[str, Denoising] = {}
        self._turns_waited: dict[Group, int] = {}
        self._cost_model = cost_model
        self._previous_step: torch.cuda.Event | None = None

    @property
    def num_requests(self) -> int:
        return len(self._denoisings)

    def add(self, request: DenoiseRequest) -> None:
        """Takes a request in; it joins the next forward that has room for it.

        Raises UnsupportedSamplerError for a sampler that this model or step count cannot have, ValueError for
        an id that is here already. Noise is drawn in diffusers' order: the latents first, then step by step.
        """
        if request.request_id in self._denoisings:
            raise ValueError(f"request {request.request_id!r} is being denoised already")
        table = self._tables.table(request.sampler, request.num_inference_steps)
        shape = (request.height // self._scale_factor, request.width // self._scale_factor)
        group = Group(shape, request.deterministic)
        generator = torch.Generator().manual_seed(request.seed)
        state = torch.zeros(STATE_SLOTS, self._unet.in_channels, *shape)
        state[0] = table.initial_scale * self._draw_noise(generator, shape)
        unloaded_s = table.num_rows * self._cost_model.seconds(shape, request.num_rows)
        patient = patience_deadline(self._clock(), unloaded_s, request.priority)
        self._denoisings[request.request_id] = Denoising(
            request=request,
            table=table,
            group=group,
            # A deadline that is far away is a time-out and no wish to be served last.
            deadline=min(request.deadline or math.inf, patient),
            generator=generator,
            conditions=self._conditions(request),
            state=state.to(self._unet.device),
        )

    def abort(self, request_id: str) -> None:
        """Frees the request's rows from the next forward on. Ids that are unknown or finished are ignored."""
        self._denoisings.pop(request_id, None)

    def step(self) -> StepReport:
        """One forward for the requests whose turn it is; there must be one."""
        return self.run(self.admit())

    def admit(self) -> list[Denoising]:
        """Chooses whose turn it is, and counts the turns that the others wait."""
        members: dict[Group, list[Denoising]] = {}
        for item in self._denoisings.values():
            members.setdefault(item.group, []).append(item)
        now = self._clock()
        slacks = {group: slack_s(items, self._cost_model, now) for group, items in members.items()}
        chosen = pick_group(slacks, self._turns_waited)
        self._turns_waited = {
            group: 0 if group == chosen else self._turns_waited.get(group, 0) + 1 for group in members
        }
        return pick_members(members[chosen], self._row_cap(chosen))

    @torch.inference_mode()
    def run(self, batch: list[Denoising]) -> StepReport:
        """One step of every request in the batch: of one group, at whatever rows of whatever tables."""
        started = time.perf_counter()
        model_outputs, forward_rows = self._forward(batch)
        estimates = self._advance(batch, model_outputs)
        events = self._retire(batch, estimates)
        return StepReport(
            events=events,
            num_requests=len(batch),
            rows=sum(item.request.num_rows for item in batch),
            forward_rows=forward_rows,
            latent_shape=batch[0].group.latent_shape,
            seconds=time.perf_counter() - started,
        )

    def fail(self, batch: list[Denoising], reason: str) -> list[DenoiseEvent]:
        """Ends the requests of a batch whose step a fault of ours broke."""
        for item in batch:
            self.abort(item.request.request_id)
        return [DenoiseFailed(item.request.request_id, reason) for item in batch]

    def _forward(self, batch: list[Denoising]) -> tuple[torch.Tensor, int]:
        """The guided model output of every request, [B, C, h, w], and how many rows the forward had.

        A request's rows lie side by side, the negative prompt's first; without guidance there is but one.
        """
        ends = list(accumulate(item.request.num_rows for item in batch))
        last_rows = self._to_device([end - 1 for end in ends])
        first_rows = self._to_device(
            [end - item.request.num_rows for end, item in zip(ends, batch, strict=True)]
        )
        forward_rows = self._config.deterministic_rows if batch[0].group.deterministic else ends[-1]
        padding = forward_rows - ends[-1]
        request_of_row = self._to_device(
            [index for index, item in enumerate(batch) for _ in range(item.request.num_rows)] + padding * [0]
        )

        input_scales = torch.stack([item.table.input_scales[item.row] for item in batch]).float()
        timesteps = torch.stack([item.table.timesteps[item.row] for item in batch])
        latents = torch.stack([item.state[0] for item in batch])  # [B, C, h, w]
        latents = latents * self._to_device(input_scales)[:, None, None, None]
        conditions = [item.conditions for item in batch]
        predictions = self._unet(
            latents[request_of_row],
            self._to_device(timesteps)[request_of_row],
            _pad([condition.prompt_embeds for condition in conditions], padding),
            _pad_optional([condition.pooled_prompt_embeds for condition in conditions], padding),
            _pad_optional([condition.time_ids for condition in conditions], padding),
        )
        negative, positive = predictions[first_rows], predictions[last_rows]
        guidance = self._to_device([item.request.guidance_scale for item in batch])[:, None, None, None]
        return negative + guidance * (positive - negative), forward_rows

    def _advance(self, batch: list[Denoising], model_outputs: torch.Tensor) -> torch.Tensor:
        """Moves every request one row on; returns the estimates of the clean latents, [B, C, h, w]."""
        shape = batch[0].group.latent_shape
        noise = torch.zeros(len(batch), self._unet.in_channels, *shape)
        for index, item in enumerate(batch):
            if item.table.draws_noise[item.row]:
                noise[index] = self._draw_noise(item.generator, shape)
        weights = torch.stack([item.table.weights[item.row] for item in batch]).float()
        states = torch.stack([item.state for item in batch])
        inputs = torch.cat([states, model_outputs[:, None], self._to_device(noise)[:, None]], dim=1)
        outputs = advance(self._to_device(weights), inputs)
        for item, state in zip(batch, outputs[:, :STATE_SLOTS], strict=True):
            item.state = state
            item.row += 1
        return outputs[:, STATE_SLOTS]

    def _retire(self, batch: list[Denoising], estimates: torch.Tensor) -> list[DenoiseEvent]:
        """What there is to tell of this step; finished requests leave. Only here is the device waited for."""
        events: list[DenoiseEvent] = []
        for item, estimate in zip(batch, estimates, strict=True):
            request = item.request
            if item.rows_left == 0:
                events.append(DenoisedLatents(request.request_id, item.state[0].to("cpu", copy=True)))
                del self._denoisings[request.request_id]
                continue
            step = item.steps_done(item.row)
            if step in request.preview_steps and step > item.steps_done(item.row - 1):
                events.append(StepProgress(request.request_id, step, estimate.to("cpu", copy=True)))
        self._wait_for_previous_step()
        return events

    def _wait_for_previous_step(self) -> None:
        """Lets the device lag one step behind, no more: newcomers would join behind all that is launched."""
        if self._unet.device.type != "cuda":
            return
        if self._previous_step is not None:
            self._previous_step.synchronize()
        self._previous_step = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._previous_step.record()

    def _row_cap(self, group: Group) -> int:
        if group.deterministic:
            return self._config.deterministic_rows
        usual = self._config.latent_shape
        rows = self._config.rows_per_forward or self._cost_model.knee(usual)
        return max(2, int(rows * min(1.0, math.prod(usual) / math.prod(group.latent_shape))))

    def _draw_noise(self, generator: torch.Generator, shape: LatentShape) -> torch.Tensor:
        # Of the shape that diffusers draws for one image: the stream of a generator depends on it.
        return torch.randn(1, self._unet.in_channels, *shape, generator=generator)[0]

    def _to_device(self, values: torch.Tensor | list[int] | list[float]) -> torch.Tensor:
        values = torch.as_tensor(values)
        if self._unet.device.type == "cuda":
            values = values.pin_memory()  # else the copy waits for the device
        return values.to(self._unet.device, non_blocking=True)

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
            time_ids=None if time_ids is None else time_ids.to(self._unet.device, self._unet.dtype),
        )

    def _condition(self, negative: torch.Tensor | None, positive: torch.Tensor) -> torch.Tensor:
        rows = torch.stack([positive] if negative is None else [negative, positive])
        return rows.to(self._unet.device, self._unet.dtype)


def _pad(parts: list[torch.Tensor], padding: int) -> torch.Tensor:
    """The requests' rows in one tensor; the padding repeats the first of them."""
    return torch.cat([*parts, parts[0][:1].expand(padding, *parts[0].shape[1:])])


def _pad_optional(parts: list[torch.Tensor | None], padding: int) -> torch.Tensor | None:
    """Likewise for an input that not every model takes."""
    present = [part for part in parts if part is not None]
    return _pad(present, padding) if present else None
