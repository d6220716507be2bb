"""The denoising engine: a request joins the running batch at any step and leaves it at any step.

It is single-threaded. Its caller owns the device (`engine_thread` in a server, a loop in a script):

    engine.add(request)
    while engine.num_requests:
        for event in engine.step().events: ...

`Engine.step()` picks whose turn it is (`step_scheduler`), launches that forward, and finishes the previous
one. On CUDA a launch returns before the device is done, so the next forward is launched before the previous
one is finished, and the device need not wait. The sampler tables say which requests finish at a step, so no
values are needed for that.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import torch

from deployments.engine.adapters import bank_rows, of_unet, overflow
from deployments.engine.bank import Block, RowAdapters
from deployments.engine.denoising import Denoising, begin
from deployments.engine.device_faults import DeviceFaultError, is_device_fault, is_out_of_memory
from deployments.engine.device_step import StepRunner
from deployments.engine.engine_config import EngineConfig
from deployments.engine.fitting import Fitting, does_not_fit
from deployments.engine.forward_events import forward_events
from deployments.engine.launched_forward import LaunchedForward
from deployments.engine.messages import (
    Checkpoint,
    DenoisedLatents,
    DenoiseEvent,
    DenoiseFailed,
    DenoiseRequest,
    LatentShape,
    StepProgress,
)
from deployments.engine.model_pool import Models
from deployments.engine.reports import ForwardReport, StepReport
from deployments.engine.sampler_table import STATE_SLOTS
from deployments.engine.stage_errors import StageError, broken, is_finite
from deployments.engine.step_inputs import step_inputs
from deployments.engine.step_scheduler import (
    Group,
    StepScheduler,
    group_of,
    num_rows,
    pick_members,
    rank_of,
    slack_s,
    unloaded_s,
)

logger = logging.getLogger(__name__)

_KEPT_COSTS = 4096
# How early to launch the next forward before the running one should be done: a share of its predicted time,
# but at least some milliseconds, since a thread may wait that long for its turn. A request that arrives later
# joins one forward later.
_LEAD = 0.1
_MIN_LEAD_S = 0.01
# How often to look whether the device is done earlier: a share of the predicted time, capped in seconds.
_LOOK_AFTER = 0.05
_MAX_LOOK_AFTER_S = 0.01


class Engine:
    """Denoises any mix of requests on one device.

    Its parts are passed in: its models, and a clock that counts as deadlines do (seconds since the epoch).
    halved: called when a forward did not fit into the device's memory
    """

    def __init__(
        self,
        models: Models,
        config: EngineConfig,
        clock: Callable[[], float] = time.time,
        halved: Callable[[], None] = lambda: None,
    ) -> None:
        self._models = models
        self._config = config
        self._clock = clock
        self._denoisings: dict[str, Denoising] = {}
        # Read often at each step. The cache is bounded because every isolated request is a group of its own.
        self._seconds = lru_cache(maxsize=_KEPT_COSTS)(self._seconds_uncached)
        self._fitting = Fitting("rows", halved)
        row_cap = lru_cache(maxsize=_KEPT_COSTS)(
            lambda group: config.row_cap(group, models.known(group.model).cost)
        )
        self._scheduler = StepScheduler(
            lambda group: self._fitting.most(_memory_shape(group), row_cap(group)),
            self._seconds,
            config.max_rank,
        )
        self._under_way: LaunchedForward | None = None
        self._done_at = 0.0  # when the last forward was finished, by time.perf_counter

    @property
    def num_requests(self) -> int:
        """Number of requests whose last event is still to come."""
        return len(self._denoisings)

    @property
    def waiting(self) -> list[Denoising]:
        """The requests with steps that are not yet launched."""
        return [item for item in list(self._denoisings.values()) if item.calls_left]

    def _is_ready(self, item: Denoising) -> bool:
        """Whether there is something to do for a waiting request: its model is there, or never will be."""
        models, model = self._models, item.group.model
        return models.runner(model) is not None or models.failure(model) is not None

    def arrange(self) -> None:
        """Takes in models that were loaded, and says who waits for which. `add` and `step` do it too."""
        by_model: dict[str, list[Denoising]] = {}
        for item in self.waiting:
            by_model.setdefault(item.group.model, []).append(item)
        now, forward = self._clock(), self._under_way
        slacks = {model: slack_s(items, now) for model, items in by_model.items()}
        self._models.arrange(slacks, {forward.batch[0].group.model} if forward else (), now)

    def add(
        self, request: DenoiseRequest, arrival: float | None = None, blocks: Sequence[Block] = ()
    ) -> None:
        """Adds a request; it joins the next forward that has room for it.

        arrival: on the engine's clock, if it did not arrive just now
        blocks: the adapters of the U-Net that it names, packed for its model's bank
        Raises DeviceFaultError, UnsupportedSamplerError if this model or step count cannot have the sampler,
        and ValueError if the id is in use.
        """
        if request.request_id in self._denoisings:
            raise ValueError(f"request {request.request_id!r} is being denoised already")
        model = self._models.known(request.model)
        table = model.tables.table_for(request)
        group = group_of(request)
        now = self._clock()
        rank = bank_rows(request.adapters)
        alone_s = unloaded_s(request, lambda rows: self._seconds(group, rows, rank))
        # It can be served from when its model is there; until then it could not have been prompter.
        arrived = (now if arrival is None else arrival) + self._models.load_s(request.model)
        self._denoisings[request.request_id] = self._fitting.patiently(
            _memory_shape(group),
            2 if request.is_guided else 1,
            lambda: begin(request, table, group, model.unet, arrived, now, alone_s, blocks),
        )
        self.arrange()

    def abort(self, request_id: str) -> None:
        """Frees the request's rows from the next forward on. Ignores unknown and finished ids."""
        self._drop(request_id)
        self.arrange()

    def _drop(self, request_id: str) -> None:
        self._denoisings.pop(request_id, None)

    @property
    def due_in_s(self) -> float | None:
        """Seconds until the next step or the next look; 0 for now, None if there is no request, or none whose
        model is there.

        The next forward is launched shortly before the running one is done: late enough that requests
        arriving until then join it, and early enough that the device does not wait.
        """
        forward = self._under_way
        if forward is None:
            return 0.0 if any(map(self._is_ready, self.waiting)) else None
        if forward.completion.query():
            return 0.0
        runs_s = time.perf_counter() - max(forward.started, self._done_at)
        lead_s = max(_LEAD * forward.predicted_s, _MIN_LEAD_S) + forward.launch_s
        left_s = max(0.0, forward.predicted_s - lead_s - runs_s)
        return min(left_s, _LOOK_AFTER * forward.predicted_s, _MAX_LOOK_AFTER_S)

    def step(self) -> StepReport:
        """Launches the next forward and finishes the one before it; there must be a request.

        A forward that is done when its launch returns is finished at once. Raises DeviceFaultError. If a
        forward breaks otherwise, its requests are tried one by one, and a request that breaks alone fails.
        """
        before = self._under_way
        failed: list[DenoiseEvent] = []
        if before is not None and before.completion.query():
            self._under_way = None
        else:
            self._under_way, failed = self._launch_next()
            if before is None and self._under_way is not None and self._under_way.completion.query():
                before, self._under_way = self._under_way, None
        report = self._finish(before) if before is not None else StepReport([], None)
        self.arrange()  # a model whose last forward has ended may make way now
        return StepReport([*failed, *report.events], report.forward)

    def _launch_next(self) -> tuple[LaunchedForward | None, list[DenoiseEvent]]:
        """Launches the next forward, if a request is waiting. Returns it, and the failures of requests."""
        self.arrange()
        failed = self._fail_unloadable()
        ready = [item for item in self.waiting if self._is_ready(item)]
        batch: Sequence[Denoising] = self._scheduler.admit(ready, self._clock()) if ready else []
        while batch:
            started = time.perf_counter()
            try:
                outputs = self._launch(batch)
            except Exception as error:  # the boundary of a forward: every error is handled
                if is_device_fault(error):
                    raise DeviceFaultError.of(error) from error
                if not is_out_of_memory(error):
                    logger.exception("a forward for %d requests broke", len(batch))
                    return None, failed + self._fail_one_or_isolate(batch, error)
            else:
                self._fitting.fitted(_memory_shape(batch[0].group), self._forward_rows(batch))
                return self._launched(batch, outputs, started), failed
            # Here and not in the handler: the error's traceback keeps the allocated memory alive.
            batch, too_large = self._make_smaller(batch)
            failed += too_large
        return None, failed

    def _fail_unloadable(self) -> list[DenoiseEvent]:
        """Fails the requests whose model could not be loaded."""
        failures = [(item, self._models.failure(item.group.model)) for item in self.waiting]
        return [self._fail(item, error) for item, error in failures if error is not None]

    def _runner(self, batch: Sequence[Denoising]) -> StepRunner:
        run_step = self._models.runner(batch[0].group.model)
        assert run_step is not None, "only requests whose model is there are admitted"
        return run_step

    def _make_smaller(self, batch: Sequence[Denoising]) -> tuple[Sequence[Denoising], list[DenoiseEvent]]:
        """The part of a batch to try after it did not fit, or the failures if it cannot be made smaller."""
        shape, rows = _memory_shape(batch[0].group), self._forward_rows(batch)
        self._runner(batch).bank.pool.clear()
        smaller = pick_members(batch, max(1, rows // 2), self._config.max_rank)
        if self._forward_rows(smaller) < rows:
            self._fitting.halve(shape, rows)
            return smaller, []
        if self._fitting.wait(shape, rows):
            return batch, []
        return [], [self._fail(item, does_not_fit("rows", shape[0])) for item in batch]

    def _fail_one_or_isolate(self, batch: Sequence[Denoising], error: Exception) -> list[DenoiseEvent]:
        """After a broken forward: fails the request if it was alone, else isolates each of them."""
        if len(batch) == 1:
            return [self._fail(batch[0], broken(error))]
        for item in batch:
            item.group = replace(item.group, isolated=item.request.request_id)
        return []

    def _forward_rows(self, batch: Sequence[Denoising]) -> int:
        return self._config.forward_rows(batch[0].group, num_rows(batch))

    @torch.inference_mode()
    def _launch(self, batch: Sequence[Denoising]) -> torch.Tensor:
        """One model call for every request in the batch. All are of one group; calls and tables may differ.

        If it fails, nothing has changed, so the calls can be made again.
        """
        static = self._config.has_static_inputs(batch[0].group)
        runner, rows = self._runner(batch), self._forward_rows(batch)
        rank = self._config.forward_rank(rank_of(batch))
        scales = None
        if rank:
            padding = RowAdapters(rows - num_rows(batch))
            scales = runner.bank.load(
                [*(item.row_adapters for item in batch), padding], rank, batch[0].group.deterministic
            )
        return runner.launch(step_inputs(batch, rows, static, scales))

    @torch.inference_mode()
    def _launched(self, batch: Sequence[Denoising], outputs: torch.Tensor, started: float) -> LaunchedForward:
        # Of this call, not of the next.
        steps, forward_rows = [item.next_step for item in batch], self._forward_rows(batch)
        rows, rank = sum(step.rows for step in steps), rank_of(batch)
        for item, state in zip(batch, outputs[:, :STATE_SLOTS], strict=False):  # padding comes last
            item.advance(state)
        events = forward_events(
            batch, outputs[:, STATE_SLOTS], self._config.checkpoint_interval_s, self._clock()
        )
        return LaunchedForward(
            batch=batch,
            steps=steps,
            events=events,
            completion=self._runner(batch).completion(),
            started=started,
            launch_s=time.perf_counter() - started,
            forward_rows=forward_rows,
            predicted_s=self._seconds(batch[0].group, rows, rank),
        )

    def _finish(self, forward: LaunchedForward) -> StepReport:
        """Waits for a forward and returns its events. Finished requests leave. Raises DeviceFaultError."""
        try:
            forward.completion.synchronize()
        except Exception as error:
            # With CUDA, an error that shows only now affects every other forward here too.
            raise DeviceFaultError.of(error) from error
        started, self._done_at = max(forward.started, self._done_at), time.perf_counter()
        events = [
            self._tell(item, event)
            for item, event in forward.events
            # Requests that are still here, and not later ones with the same ids.
            if self._is_here(item)
        ]
        report = ForwardReport(
            steps=forward.steps,
            forward_rows=forward.forward_rows,
            latent_shape=forward.batch[0].group.latent_shape,
            seconds=self._done_at - started,
            predicted_s=forward.predicted_s,
        )
        return StepReport(events, report)

    def _tell(self, item: Denoising, event: DenoiseEvent) -> DenoiseEvent:
        """The event of a forward that is done; a failure if its values are not finite."""
        match event:
            case DenoisedLatents(_, values):
                self._drop(event.request_id)
            case Checkpoint(state=values):
                # When an engine died or a forward broke under this request and others, it had come no further
                # than it now has alone. So it was not the cause.
                item.group = replace(item.group, isolated=None)
            case StepProgress(preview_latents=values):
                pass
        return (
            event
            if is_finite(values)
            else self._fail(item, overflow("U-Net", of_unet(item.request.adapters)))
        )

    def _fail(self, item: Denoising, error: StageError) -> DenoiseFailed:
        request_id = item.request.request_id
        logger.error("request %s failed: %s", request_id, error)
        self._drop(request_id)
        return DenoiseFailed(request_id, error.detail, error.fault)

    def _is_here(self, item: Denoising) -> bool:
        return self._denoisings.get(item.request.request_id) is item

    def _seconds_uncached(self, group: Group, rows: int, rank: int) -> float:
        """The cost model's seconds for a forward of that many rows, with adapters of that rank."""
        return self._config.seconds(group, self._models.known(group.model).cost, rows, rank)


def _memory_shape(group: Group) -> tuple[LatentShape, bool, str]:
    """The key that decides how many rows fit. Deterministic forwards have a fixed row count."""
    return group.latent_shape, group.deterministic, group.model
