"""The denoising stage. `@serve.batch` admits requests together; the engine merges them step by step.

A Serve batch handler cannot add requests once it runs. So it wraps only admission: it hands new requests to
the engine thread and returns at once. Each request has its own stream of events.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import torch
from ray import serve

from deployments.batching import Batching
from deployments.cost_measurement import CostMeasurement
from deployments.denoising_telemetry import DenoisingTelemetry
from deployments.devices import Unets, unets
from deployments.engine.adapters import AdapterMemory, bank_rows, of_unet
from deployments.engine.bank import Block
from deployments.engine.cost import StageCost
from deployments.engine.device_faults import is_device_fault
from deployments.engine.engine import Engine
from deployments.engine.engine_config import EngineConfig
from deployments.engine.engine_thread import EngineThread
from deployments.engine.forward_costs import ForwardCosts
from deployments.engine.messages import (
    LAST_EVENTS,
    Checkpoint,
    DenoisedLatents,
    DenoiseEvent,
    DenoiseFailed,
    DenoiseRequest,
)
from deployments.engine.model_pool import ModelPool
from deployments.engine.model_source import ModelLoadError, ModelRef, Placement
from deployments.engine.reports import StepReport
from deployments.engine.stage_errors import unloadable
from deployments.engine.step_scheduler import Group, group_of
from deployments.engine.unet_loader import loading_thread
from deployments.health import MAX_SILENCE_S, Health
from deployments.isolation import Turn, Turns
from deployments.packed_adapters import UNET, PackedAdapters
from deployments.running_batch import DenoiserStatus
from deployments.work import Work

logger = logging.getLogger("ray.serve")

_Stream = asyncio.Queue[DenoiseEvent]


class Denoiser:
    """Serves the engine.

    model: the one that is there from the start; num_models: how many are on the device at once
    host_bytes: memory of the host for models that are not
    adapters: memory for them
    num_threads: torch threads of this replica
    """

    def __init__(
        self,
        model: ModelRef,
        placement: Placement,
        engine: EngineConfig,
        batching: Batching,
        num_threads: int,
        num_models: int,
        host_bytes: float,
        adapters: AdapterMemory,
        measurement: CostMeasurement,
    ) -> None:
        # Samplers are compiled here, because compiling on the engine's thread would hold up all requests. One
        # torch thread, because a second team of OpenMP workers would slow down the engine's (engine_thread).
        self._compiler = ThreadPoolExecutor(1, "sampler-tables", torch.set_num_threads, (1,))

        self._loading = loading_thread(placement)
        # Not the one for loads, which would wait, and whose time is measured.
        self._checking = loading_thread(placement, "quality-gate")
        self._device = "simulated" if placement.is_simulated else placement.torch_device().type
        self._streams: dict[str, _Stream] = {}
        self._turns = Turns()
        self._health = Health()
        self._adapters = PackedAdapters(UNET, placement, adapters.host_bytes, self._health.failed)
        self._telemetry = DenoisingTelemetry()
        self._work = Work()
        self._loop: asyncio.AbstractEventLoop | None = None

        def build() -> Engine:
            torch.set_num_threads(num_threads)
            found = unets(
                model,
                placement,
                measurement,
                engine,
                num_threads,
                host_bytes,
                adapters.gpu_bytes,
                self._telemetry.capture_failed,
            )
            return self._engine(model, placement, found, num_models)

        self._thread = EngineThread(build, self._deliver, self._health.lost)
        self._thread.start()
        batching.apply_to(self._admit)

    def _engine(self, model: ModelRef, placement: Placement, found: Unets, num_models: int) -> Engine:
        """An engine for the first model and what others need. Called on the engine's thread."""
        torch.set_num_threads(1)  # forwards on a CPU have their own threads (engine.row_parts)
        if placement.compile_cache:
            # From here on nothing is compiled, so that no request waits for a compiler.
            torch.compiler.set_stance("eager_on_recompile")
        self._config, self._gate = found.config, found.gate
        usual = Group(found.config.latent_shape, deterministic=False)
        self._max_rows = found.config.row_cap(usual, found.cost)
        self._models = ModelPool(
            found.loader,
            ForwardCosts(found.cost, model).of,
            num_models,
            self._loading,
            self._look,
            (model, found.first),
            found.load_s,
        )
        self._models.know(model)
        return Engine(self._models, found.config, halved=self._health.halved)

    async def denoise(self, request: DenoiseRequest, model: ModelRef) -> AsyncIterator[DenoiseEvent | Turn]:
        """The request's events; the last is DenoisedLatents or DenoiseFailed. Leaving the iterator aborts it.

        model: the one that the request names by its digest

        An isolated request waits for its turn (deployments.isolation). The turn ends with its first
        checkpoint, as isolation does in the engine.
        """
        self._loop = asyncio.get_running_loop()
        async with AsyncExitStack() as held, AsyncExitStack() as isolation:
            tell = held.enter_context(self._telemetry.image(request, model))
            held.enter_context(self._work.of(await self._work_s(request, model)))
            adapters = of_unet(request.adapters)
            packed = await held.enter_async_context(self._adapters.of(adapters, model))
            stream = held.enter_context(self._stream(request.request_id))
            if request.isolated:
                turn = await isolation.enter_async_context(self._turns.next())
                yield turn
                await self._turns.begun(turn)
            await self._admit((request, [block for parts in packed.values() for block in parts.values()]))
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

    async def cost(self, model: ModelRef) -> tuple[StageCost, float]:
        """The cost of a model's forwards by rows, and the seconds that a model takes to load."""
        await self._know(model)
        return self._models.known(model.unet).cost, self._models.usual_load_s

    def status(self) -> DenoiserStatus:
        """This denoiser's part of the live status. Called on another thread (serve.ray_internals)."""
        return DenoiserStatus(self._device, self._models.resident, self._max_rows, self._telemetry.status())

    def record_routing_stats(self) -> dict[str, Any]:
        """Called by Serve for routers (serve.calls.routing)."""
        return {"models": self._models.resident, "load_s": self._models.usual_load_s}

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

    def _look(self) -> None:
        self._thread.look()

    async def _know(self, model: ModelRef) -> None:
        if self._models.knows(model):
            return
        # Not on the compiler's thread: the operations of another architecture take seconds to count.
        try:
            if self._gate is not None:
                await asyncio.get_running_loop().run_in_executor(self._checking, self._gate.check, model)
            await asyncio.to_thread(self._models.know, model)
        except ModelLoadError as error:
            logger.error("the model from %s cannot be used: %s", model.source.path, error)
            raise unloadable() from error
        except Exception as error:
            if is_device_fault(error):
                self._health.lost(f"{type(error).__name__}: {error}")
            raise

    async def _work_s(self, request: DenoiseRequest, model: ModelRef) -> float:
        """Device-seconds that are left. Compiles the sampler's table if there is none yet."""
        await self._know(model)
        known = self._models.known(model.unet)
        await asyncio.get_running_loop().run_in_executor(self._compiler, known.tables.table_for, request)
        # A load counts once, for the request that begins it.
        load_s = 0.0 if model.unet in self._models.resident else self._models.usual_load_s
        if (work_s := request.work_left_s) is not None:
            return work_s + load_s
        # The first requests come before their ingress knows the costs.
        rows = request.rows_left(request.first_call)
        rank = bank_rows(request.adapters)
        return self._config.work_s(group_of(request), known.cost, rows, rank) + load_s

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
    async def _admit(self, requests: list[tuple[DenoiseRequest, list[Block]]]) -> list[None]:
        # A request whose caller left while the batch was collected has no stream any more.
        self._thread.add([one for one in requests if one[0].request_id in self._streams])
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
