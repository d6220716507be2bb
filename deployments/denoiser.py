"""The denoising stage. `@serve.batch` admits requests together; the engine merges them step by step.

A Serve batch handler cannot add requests once it runs. So it wraps only admission: it hands new requests to
the engine thread and returns at once. Each request has its own stream of events.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from functools import partial

import torch
from ray import serve

from deployments.batching import Batching
from deployments.cost_measurement import CostMeasurement
from deployments.denoising_telemetry import DenoisingTelemetry
from deployments.devices import unet_and_steps
from deployments.engine.cost import StageCost
from deployments.engine.device_step import warm_up
from deployments.engine.engine import Engine
from deployments.engine.engine_config import EngineConfig
from deployments.engine.engine_thread import EngineThread
from deployments.engine.messages import (
    LAST_EVENTS,
    Checkpoint,
    DenoisedLatents,
    DenoiseEvent,
    DenoiseFailed,
    DenoiseRequest,
)
from deployments.engine.model_source import ModelSource, Placement, load_model_info
from deployments.engine.reports import StepReport
from deployments.engine.samplers import SamplerTables
from deployments.engine.step_scheduler import group_of
from deployments.health import MAX_SILENCE_S, Health
from deployments.isolation import Turn, Turns
from deployments.work import Work

logger = logging.getLogger("ray.serve")

_Stream = asyncio.Queue[DenoiseEvent]


class Denoiser:
    """Serves the engine. num_threads: torch threads of this replica"""

    def __init__(
        self,
        source: ModelSource,
        placement: Placement,
        engine: EngineConfig,
        batching: Batching,
        num_threads: int,
        measurement: CostMeasurement,
    ) -> None:
        info = load_model_info(source)
        self._tables = SamplerTables(info.scheduler_config)
        # Samplers are compiled here, because compiling on the engine's thread would hold up all requests. One
        # torch thread, because a second team of OpenMP workers would slow down the engine's (engine_thread).
        self._compiler = ThreadPoolExecutor(1, "sampler-tables", torch.set_num_threads, (1,))

        def build() -> Engine:
            torch.set_num_threads(num_threads)
            unet, run_step, config = unet_and_steps(source, placement, measurement, engine)
            torch.set_num_threads(1)  # forwards on a CPU have their own threads (engine.row_parts)
            self._cost = measurement.forward_cost(partial(warm_up, unet, run_step), config)
            self._config = config
            if placement.compile_cache:
                # From here on nothing is compiled, so that no request waits for a compiler.
                torch.compiler.set_stance("eager_on_recompile")
            return Engine(
                unet,
                run_step,
                self._tables,
                config,
                self._cost,
                halved=self._health.halved,
            )

        self._streams: dict[str, _Stream] = {}
        self._turns = Turns()
        self._health = Health()
        self._telemetry = DenoisingTelemetry()
        self._work = Work()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = EngineThread(build, self._deliver, self._health.lost)
        self._thread.start()
        batching.apply_to(self._admit)

    async def denoise(self, request: DenoiseRequest) -> AsyncIterator[DenoiseEvent | Turn]:
        """The request's events; the last is DenoisedLatents or DenoiseFailed. Leaving the iterator aborts it.

        An isolated request waits for its turn (deployments.isolation). The turn ends with its first
        checkpoint, as isolation does in the engine.
        """
        self._loop = asyncio.get_running_loop()
        with (
            self._telemetry.image(request) as tell,
            self._work.of(await self._work_s(request)),
            self._stream(request.request_id) as stream,
        ):
            async with AsyncExitStack() as isolation:
                if request.isolated:
                    turn = await isolation.enter_async_context(self._turns.next())
                    yield turn
                    await self._turns.begun(turn)
                await self._admit(request)
                while True:
                    event = await stream.get()
                    tell(event)
                    yield event
                    if isinstance(event, LAST_EVENTS):
                        return
                    if isinstance(event, Checkpoint):
                        await isolation.aclose()

    async def begin_turn(self, turn: Turn) -> None:
        self._turns.begin(turn)

    async def cost(self) -> StageCost:
        """The cost of forwards by rows."""
        return self._cost

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve for autoscaling."""
        self._telemetry.set_running(len(self._streams))  # set again for the same reason as in Work.stats
        return self._work.stats()

    def check_health(self) -> None:
        """Called by Serve, which replaces the replica when this raises."""
        if problem := self._thread.problem(MAX_SILENCE_S):
            raise RuntimeError(problem)

    def __del__(self) -> None:
        if hasattr(self, "_thread"):
            self._thread.stop()

    async def _work_s(self, request: DenoiseRequest) -> float:
        """Device-seconds that are left. Compiles the sampler's table if there is none yet."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._compiler, self._tables.table_for, request)
        if (work_s := request.work_left_s) is not None:
            return work_s
        # The first requests come before their ingress knows the costs.
        rows = request.rows_left(request.first_call)
        return self._config.work_s(group_of(request), self._cost, rows)

    @contextmanager
    def _stream(self, request_id: str) -> Iterator[_Stream]:
        """The queue of a request's events. On leaving, the engine drops the request if it still has it."""
        stream = self._streams[request_id] = _Stream()
        self._telemetry.set_running(len(self._streams))
        try:
            yield stream
        finally:
            del self._streams[request_id]
            self._telemetry.set_running(len(self._streams))
            self._thread.abort(request_id)

    @serve.batch  # type: ignore[untyped-decorator]
    async def _admit(self, requests: list[DenoiseRequest]) -> list[None]:
        # A request whose caller left while the batch was collected has no stream any more.
        self._thread.add([request for request in requests if request.request_id in self._streams])
        return [None] * len(requests)

    def _deliver(self, report: StepReport) -> None:
        """Runs on the engine's thread. Makes one hop to the event loop for all events of a step."""
        assert self._loop is not None, "nothing runs before the first request"
        for event in report.events:
            match event:
                case DenoiseFailed(_, reason, fault):
                    self._health.failed(fault, reason)
                case DenoisedLatents():
                    self._health.worked()
        self._loop.call_soon_threadsafe(self._dispatch, report)

    def _dispatch(self, report: StepReport) -> None:
        for event in report.events:
            if stream := self._streams.get(event.request_id):
                stream.put_nowait(event)
        if report.forward is not None:
            self._telemetry.record(report.forward)
