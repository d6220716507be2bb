"""All models that an application serves now: the configured one, and those of its catalog."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from difflib import get_close_matches

from deployments.engine.model_source import ModelRef
from serve.calls.pipeline import Pipeline
from serve.catalog import Catalog, EntryState
from serve.catalog_model import CatalogModel
from serve.config.app import AppConfig
from serve.errors import ModelNotFoundError, NotReadyError
from serve.generation import GenerationRequest
from serve.served_model import ServedModel
from serve.wanted import shown

_MOST_LISTED = 5
_RETRY_AFTER_S = 5


class ServedModels:
    """The models by their names. configured: the one of the section `model`"""

    def __init__(
        self, config: AppConfig, configured: ServedModel, catalog: Catalog, pipeline: Pipeline
    ) -> None:
        self.configured = configured
        self._config = config
        self._catalog = catalog
        self._pipeline = pipeline
        # Kept, because a model's tables of samplers take a while to compile.
        self._made: dict[str, tuple[CatalogModel, ServedModel]] = {}

    @property
    def all(self) -> Collection[ServedModel]:
        """The configured one first."""
        return self._by_id().values()

    @property
    def names(self) -> Mapping[str, ServedModel]:
        """The models by all their names, ids first."""
        by_id = self._by_id()
        return {alias: one for one in by_id.values() for alias in one.aliases} | dict(by_id)

    @property
    def refs(self) -> Mapping[str, ModelRef]:
        """Where each model is, by its id."""
        return {one.id: one.ref or self._pipeline.model for one in self.all}

    def named(self, name: str | None, field: str) -> ServedModel:
        """The model with that id or alias; without one, the configured model.

        Raises ModelNotFoundError, which names the field, and NotReadyError while it is read in.
        """
        if name is None:
            return self.configured
        if (model := self.names.get(name)) is not None:
            return model
        for status in self._catalog.statuses:
            if status.id == name and status.state is EntryState.READING:
                done = f", {status.share:.0%} done" if status.share else ""
                raise NotReadyError(f"{field}: {shown(name)} is being read in{done}.", field, _RETRY_AFTER_S)
        raise ModelNotFoundError(
            f"{field}: {shown(name)} is not served here; {self._alternatives(name)}", field
        )

    def of(self, request: GenerationRequest) -> ServedModel:
        """The model of an accepted request, as it counts for estimates: the configured one, if its own has
        gone since."""
        of_its_name = (one for one in self.all if one.shown_id == request.model)
        return next(of_its_name, self.configured)

    def is_resident(self, model: ServedModel) -> bool:
        """Whether a denoiser holds it, so that a request waits for no load."""
        return self._pipeline.costs.is_resident(model.ref)

    def _by_id(self) -> dict[str, ServedModel]:
        found = {self.configured.id: self.configured}
        for name, model in self._catalog.models.items():
            made = self._made.get(name)
            if made is None or made[0] is not model:
                made = self._made[name] = model, self._of_catalog(model)
            found[name] = made[1]
        for name in self._made.keys() - found.keys():
            del self._made[name]
        return found

    def _of_catalog(self, model: CatalogModel) -> ServedModel:
        served = ServedModel.of_catalog(self._config, model, lambda: self._pipeline.costs.known(model.ref))
        return replace(served, adapters=self.configured.adapters)

    def _alternatives(self, name: str) -> str:
        names = list(self._by_id())
        if len(names) <= _MOST_LISTED:
            return ", ".join(map(repr, names)) + (" is." if len(names) == 1 else " are.")
        near = get_close_matches(name, list(self.names), n=3, cutoff=0.5)
        meant = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        return f"{meant}GET /v1/models lists the {len(names)} that are."
