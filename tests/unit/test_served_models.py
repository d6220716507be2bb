"""All models that are served now, by their names: the configured one, and those of the catalog."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from deployments.engine.fingerprint import model_ref
from deployments.engine.model_source import load_model_info
from serve.catalog import Catalog, EntryState, EntryStatus
from serve.catalog_model import CatalogModel
from serve.config.app import AppConfig
from serve.config.catalog import CatalogEntry
from serve.errors import ModelNotFoundError, NotReadyError
from serve.served_model import ServedModel
from serve.served_models import ServedModels
from serve.wanted import Wanted

CONFIG = AppConfig.model_validate(
    {"model": {"aliases": ["default", "stability-ai/sdxl"]}, "defaults": {"sampler": "DDIM", "width": 256}}
)
SOURCE = CONFIG.model.source()
INFO, REF = load_model_info(SOURCE), model_ref(SOURCE)


@dataclass
class StillCatalog:
    """A catalog of given models, without a folder."""

    models: dict[str, CatalogModel] = field(default_factory=dict)
    statuses: list[EntryStatus] = field(default_factory=list)

    def add(self, name: str, **given: Any) -> None:
        entry = CatalogEntry.model_validate({"id": name, "source": "somewhere"} | given)
        self.models = self.models | {name: CatalogModel(entry, replace(REF, unet=name), INFO, 10, "sd1")}


@pytest.fixture
def catalog() -> StillCatalog:
    return StillCatalog()


@pytest.fixture
def models(catalog: StillCatalog) -> ServedModels:
    pipeline = cast(
        Any,
        SimpleNamespace(
            costs=SimpleNamespace(known=lambda model: None, is_resident=lambda model: model is None)
        ),
    )
    configured = ServedModel.of(CONFIG, INFO, lambda: None)
    return ServedModels(CONFIG, configured, cast(Catalog, catalog), pipeline)


def test_a_model_goes_by_its_names_and_without_one_the_configured_is_meant(
    models: ServedModels, catalog: StillCatalog
) -> None:
    catalog.add("noob", aliases=["owner/noob"])
    for name in ("default", "stability-ai/sdxl", "shapes", None):
        assert models.named(name, "model") is models.configured
    assert models.named("noob", "model") is models.named("owner/noob", "model")
    assert models.named("noob", "model").id == "noob"
    assert [one.id for one in models.all] == ["shapes", "noob"]
    assert (models.is_resident(models.configured), models.is_resident(models.named("noob", "model"))) == (
        True,
        False,
    )


def test_an_unknown_model_is_not_found(models: ServedModels, catalog: StillCatalog) -> None:
    with pytest.raises(ModelNotFoundError, match="model: 'dall-e-3' is not served here; 'shapes' is"):
        models.named("dall-e-3", "model")
    for number in range(20):
        catalog.add(f"dreamshaper-{number}")
    with pytest.raises(ModelNotFoundError, match=r"did you mean 'dreamshaper-\d+'.* lists the 21 that are"):
        models.named("dreamshaper", "version")


def test_one_that_is_being_read_in_is_not_ready(models: ServedModels, catalog: StillCatalog) -> None:
    catalog.statuses = [EntryStatus("noob", Path("noob.yaml"), EntryState.READING, 0.4, "unet")]
    with pytest.raises(NotReadyError, match="model: 'noob' is being read in, 40% done") as refusal:
        models.named("noob", "model")
    assert refusal.value.retry_after_s


def test_a_models_defaults_are_its_own_and_sizes_are_never_the_applications(
    models: ServedModels, catalog: StillCatalog
) -> None:
    catalog.add("noob", defaults={"num_inference_steps": 7, "negative_prompt": "blurry"})
    request = models.named("noob", "model").accept(Wanted("a star"), "id").request
    assert (request.model, request.ref, request.pool) == ("noob", replace(REF, unet="noob"), "shapes")
    assert (request.num_inference_steps, request.negative_prompt, request.sampler) == (7, "blurry", "DDIM")
    assert (request.width, models.configured.default_size) == (128, (128, 256))
    assert models.of(request) is models.named("noob", "model")


def test_models_come_and_go_and_an_accepted_request_counts_as_the_configured_ones(
    models: ServedModels, catalog: StillCatalog
) -> None:
    catalog.add("noob")
    before = models.named("noob", "model")
    catalog.add("other")
    assert models.named("noob", "model") is before, "its tables are kept"
    request = before.accept(Wanted("a star"), "id").request
    catalog.models = {}
    assert [one.id for one in models.all] == ["shapes"]
    assert models.of(request) is models.configured
