"""A load through a simulated application, with the configuration's admission, stages and scaling."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from simpy import Environment

from cluster.bench.answers import Answer, Kind
from cluster.bench.load import RequestOutcome
from cluster.bench.mix import PlannedRequest
from cluster.plan.denoiser import DenoiserReplica
from cluster.plan.devices import Devices
from cluster.plan.model import Model
from cluster.plan.model_slots import Loads
from cluster.plan.pool import Pool
from cluster.plan.routing import LeastWorkRouter, LessBusyRouter
from cluster.plan.scaling import Scaler
from cluster.plan.stages import DecoderReplica, EncoderReplica, Process, VaeCall
from deployments.engine.messages import DenoiseRequest, PromptEmbeds, TokenCount
from serve.capacity.admission import Admission
from serve.errors import InvalidRequestError, QueueFullError
from serve.generation import GenerationRequest

_NOTHING = torch.empty(0)


@dataclass(frozen=True, slots=True)
class Replicas:
    """Fixed numbers of replicas of each stage."""

    encoder: int
    denoiser: int
    decoder: int


@dataclass(frozen=True)
class Simulated:
    """The results of a load.

    outcomes: in the order of the load; gpus: most devices at once; gpu_s: seconds that they were held
    denoisers: (second, running and starting replicas) at each change
    num_loads: of models; waited_for_load: share of the requests with an image that waited for one
    """

    outcomes: Sequence[RequestOutcome]
    gpus: int
    gpu_s: float
    denoisers: Sequence[tuple[float, int]]
    num_loads: int = 0
    waited_for_load: float = 0.0


class Simulation:
    """One run. Its clock starts at 0 with the replicas running.

    replicas: None for autoscaling, starting with min_replicas of each stage
    """

    def __init__(self, model: Model, replicas: Replicas | None, seed: int = 0) -> None:
        self._model = model
        self._env = env = Environment()
        self._devices = Devices(env, model.sharing)
        self._loads = Loads()
        config, info, cost = model.config, model.info, model.cost
        shares = config.num_gpus()
        # Denoisers are placed first, because they have large shares. The others fill the remaining room.
        self._denoisers: Pool[DenoiseRequest] = Pool(
            env,
            self._devices,
            lambda device: DenoiserReplica(
                env,
                device,
                config.admission_batching(info),
                model.denoising,
                model.overheads,
                model.room,
                self._loads,
            ),
            shares["denoiser"] or 1.0,
            config.max_ongoing_requests("denoiser", info),
            LeastWorkRouter(env, seed),
        )
        self._decoders: Pool[VaeCall] = Pool(
            env,
            self._devices,
            lambda device: DecoderReplica(
                env, device, config.max_decoded_images, cost, config.internal.max_hold_s
            ),
            shares["decoder"],
            config.max_ongoing_requests("decoder", info),
            LessBusyRouter(seed),
        )
        self._encoders: Pool[Sequence[str]] = Pool(
            env,
            self._devices,
            lambda device: EncoderReplica(
                env, device, config.text_batching, cost.encode, config.internal.encoder_cache_size
            ),
            shares["encoder"],
            config.max_ongoing_requests("encoder", info),
            LessBusyRouter(seed),
        )
        limits = config.limits
        self._admission = Admission(limits.max_queue, limits.max_wait_s, self._num_denoisers)
        self._started = env.now
        self._begin(replicas)

    def _num_denoisers(self) -> float:
        return max(1.0, float(len(self._denoisers.running)))

    def _begin(self, replicas: Replicas | None) -> None:
        config = self._model.config
        for name, pool in (
            ("denoiser", self._denoisers),
            ("decoder", self._decoders),
            ("encoder", self._encoders),
        ):
            autoscaling = config.autoscaling_of(name)
            number = autoscaling.min_replicas if replicas is None else getattr(replicas, name)
            pool.resize(number, cold_start_s=0.0)
            if replicas is None and autoscaling.is_on:
                scaler = Scaler(self._env, name, pool, autoscaling)
                self._env.process(scaler.report())
                self._env.process(scaler.scale())

    def run(
        self, planned: Sequence[PlannedRequest], on_outcome: Callable[[RequestOutcome], None] | None = None
    ) -> Simulated:
        """Runs until the whole load is answered. A second run starts from the state the first one left.

        on_outcome: called when a request ends
        """
        self._started = self._env.now
        requests = [
            self._env.process(self._request(request, str(index))) for index, request in enumerate(planned)
        ]
        for request in requests:
            if on_outcome is not None:
                request.callbacks.append(lambda ended: on_outcome(ended.value))
        outcomes: Any = self._env.run(self._env.all_of(requests))
        waited = {image.partition("/")[0] for image in self._loads.waited}
        return Simulated(
            [outcomes[request] for request in requests],
            self._devices.most,
            self._devices.held_s,
            self._denoisers.history,
            self._loads.number,
            len(waited) / len(planned) if planned else 0.0,
        )

    def _request(self, planned: PlannedRequest, request_id: str) -> Process:
        """The process of a request; its value is the outcome."""
        yield self._env.timeout(planned.due_s)
        try:
            request = self._model.accepted(planned, request_id)
        except InvalidRequestError as error:
            return self._outcome(planned, Kind.REJECTED, detail=str(error))
        yield self._devices.outside()(self._model.overheads.request_s)
        try:
            with self._admission.admitted(request):
                yield from self._generate(request, self._model.digest(planned))
        except QueueFullError as error:
            return self._outcome(planned, Kind.BUSY, detail=str(error))
        return self._outcome(planned, Kind.COMPLETED, request.num_images)

    def _generate(self, request: GenerationRequest, model: str) -> Process:
        """model: as in DenoiseRequest"""
        texts = (
            [request.prompt, request.negative_prompt or ""] if request.needs_negative else [request.prompt]
        )
        encoded = [self._env.process(self._encoders.run(texts))]
        if request.strength is not None:  # at the same time, once for all images
            picture = VaeCall(request.latent_shape, is_encoding=True)
            encoded.append(self._env.process(self._decoders.run(picture)))
        yield self._env.all_of(encoded)
        images = (
            self._env.process(self._image(request, model, index)) for index in range(request.num_images)
        )
        yield self._env.all_of(images)

    def _image(self, request: GenerationRequest, model: str, index: int) -> Process:
        yield self._env.process(self._denoisers.run(_denoise_request(request, model, index)))
        yield self._env.process(self._decoders.run(VaeCall(request.latent_shape)))

    def _outcome(self, planned: PlannedRequest, kind: Kind, num_images: int = 0, **of: Any) -> RequestOutcome:
        return RequestOutcome(
            planned, planned.due_s, Answer(kind, self._env.now - self._started, num_images, **of)
        )


class _Image(DenoiseRequest):
    """A request whose guided calls are computed once. Simulated steps take no other time, and ask often."""

    @cached_property
    def guided_calls(self) -> range:
        return super().guided_calls


def _denoise_request(request: GenerationRequest, model: str, index: int) -> DenoiseRequest:
    """One image of a request, like the pipeline's, with embeddings that nobody reads."""
    negative = _NOTHING if request.needs_negative else None
    return _Image(
        request_id=f"{request.request_id}/{index}",
        model=model,
        embeds=PromptEmbeds(_NOTHING, negative, _NOTHING, negative, TokenCount(0, 0), TokenCount(0, 0)),
        work_s=(request.work_s or 0.0) / request.num_images,
        **request.parameters() | {"seed": request.seed + index},
    )
