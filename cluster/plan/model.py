"""The parts of an application that concern time: its configuration, its model, and its costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from cluster.bench.mix import PlannedRequest
from cluster.bench.tasks import Task
from cluster.plan.denoiser import DenoisingCosts, Room
from cluster.plan.devices import Sharing
from cluster.plan.model_slots import CONFIGURED
from cluster.plan.stages import Overheads
from deployments.engine.adapters import AdapterRef, AdapterUse, bank_rows
from deployments.engine.cost import CostModel
from deployments.engine.engine_config import EngineConfig
from deployments.engine.model_source import ModelInfo
from deployments.engine.samplers import UnsupportedSamplerError
from deployments.engine.step_scheduler import Group
from serve.config.app import AppConfig
from serve.errors import InvalidRequestError
from serve.generation import GenerationRequest
from serve.served_model import ServedModel
from serve.wanted import Wanted


@dataclass(frozen=True)
class Model:
    """The parts of a configuration that concern time. ranks: of the adapters that requests name"""

    config: AppConfig
    info: ModelInfo
    cost: CostModel
    sharing: Sharing
    overheads: Overheads
    ranks: Mapping[str, int] = field(default_factory=dict)

    def with_row_cap(self, rows: int) -> "Model":
        denoiser = self.config.denoiser.model_copy(update={"rows_per_forward": rows})
        return replace(self, config=self.config.model_copy(update={"denoiser": denoiser}))

    def slowed_down(self, times: float) -> "Model":
        """A model whose steps of one image take `times` times as long as the cost model says.

        On a shared machine all forwards slow down alike. A separate device is as fast as ever but is used
        later, by the same time at each step, however many requests share it.
        """
        if self.sharing is Sharing.MACHINE:
            return replace(self, overheads=replace(self.overheads, slowdown=times))
        group = Group(self.engine.latent_shape, deterministic=False)
        step_s = (times - 1) * self.denoising.seconds(group, 2, 0)  # rows, with guidance and without adapters
        return replace(self, overheads=replace(self.overheads, step_s=step_s))

    @property
    def row_cap(self) -> int:
        """The row cap for images of the usual size."""
        return self.denoising.row_cap(Group(self.engine.latent_shape, deterministic=False))

    @cached_property
    def served(self) -> ServedModel:
        return ServedModel.of(self.config, self.info, lambda: self.cost)

    @cached_property
    def _served_with_mask(self) -> ServedModel:
        """The served model for requests that have the mask that a model for inpainting needs."""
        return replace(self.served, info=replace(self.info, needs_mask=False))

    @cached_property
    def engine(self) -> EngineConfig:
        return self.config.engine_config(self.info).padded_to(self.cost.forward.padded_to)

    @cached_property
    def denoising(self) -> DenoisingCosts:
        return DenoisingCosts.of(self.engine, self.cost.forward)

    def digest(self, planned: PlannedRequest) -> str:
        """Tells the models of requests apart, like the digest of a U-Net. All cost what this one costs."""
        own = (None, self.config.model.id, *self.config.model.aliases)
        return CONFIGURED if planned.model in own else str(planned.model)

    @property
    def room(self) -> Room:
        """Room for models on a denoiser's device."""
        return Room(self.config.denoiser.max_models, self.cost.load_s)

    def accepted(self, planned: PlannedRequest, request_id: str) -> GenerationRequest:
        """The parsed request. Raises InvalidRequestError, as the server would.

        A plan has no pictures: the one that a request starts from is taken to have the size of its images.
        """
        wanted = Wanted(
            prompt=planned.prompt,
            width=planned.width,
            height=planned.height,
            num_inference_steps=planned.num_inference_steps,
            guidance_scale=planned.guidance_scale,
            sampler=planned.sampler,
            seed=planned.seed,
            num_images=planned.num_images,
        )
        served = self._served_with_mask if planned.task is Task.INPAINT else self.served
        request = served.accept(wanted, request_id).request
        if planned.loras:
            request = replace(request, adapters=self._adapters(planned.loras))
        if planned.strength is not None:
            request = self._shortened(request, planned.strength)
        return replace(request, work_s=self.served.work_s(replace(request, work_s=None)))

    def _adapters(self, names: Sequence[str]) -> tuple[AdapterUse, ...]:
        """Raises InvalidRequestError, where the server would."""
        uses = tuple(AdapterUse(AdapterRef(name, "", name, self.ranks[name], 0), 1.0) for name in names)
        allowed = self.config.adapters
        for what, given, most in (
            ("adapters were given", len(uses), allowed.max_per_request),
            ("is the rank of the adapters together", bank_rows(uses), allowed.max_rank),
        ):
            if given > most:
                raise InvalidRequestError(f"loras: {given} {what}; at most {most} is allowed.", "loras")
        return uses

    def _shortened(self, request: GenerationRequest, strength: float) -> GenerationRequest:
        """The request as if it started from a picture: only its last steps. Raises InvalidRequestError."""
        try:
            table = self.served.tables.table(
                request.sampler, request.num_inference_steps, request.eta, strength=strength
            )
        except UnsupportedSamplerError as error:
            raise InvalidRequestError(f"strength: {error}.", "strength") from error
        return replace(request, strength=strength, num_calls=table.num_calls)

    def work_s(self, planned: PlannedRequest) -> float:
        """Device-seconds of denoising the request. Raises InvalidRequestError."""
        return self.accepted(planned, "").work_s or 0.0
