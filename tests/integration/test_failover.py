"""Work survives the deaths of replicas, on test stages that can be made to die."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
import ray
import torch
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.batching import Batching
from deployments.cost_measurement import CostMeasurement
from deployments.denoiser import Denoiser
from deployments.engine.adapters import AdapterMemory
from deployments.engine.cost import CostModel, Curve
from deployments.engine.engine_config import EngineConfig
from deployments.engine.fingerprint import model_ref
from deployments.engine.messages import (
    Checkpoint,
    DenoisedLatents,
    DenoiseEvent,
    DenoiseRequest,
    EncodedImage,
    ImageFormat,
    PromptEmbeds,
)
from deployments.engine.model_source import ModelSource, Placement
from deployments.engine.prompt_chunks import EncodedText
from deployments.engine.prompt_text import PromptText, ReadText
from deployments.engine.reports import StepReport
from deployments.prompt_encoder import PromptEncoder
from deployments.vae_decoder import VaeDecoder
from serve.app import HEALTH
from serve.calls import failover
from serve.errors import PoisonousRequestError
from tests.conftest import FORWARD_COST, LoadedModel
from tests.integration.conftest import replica
from tests.tiny_models import SHAPES_MODEL

MODEL = replace(model_ref(ModelSource(str(SHAPES_MODEL))), unet="")  # of requests that name none
POISONOUS_SEED = 666
POISONOUS_PROMPT = "a poisonous circle"
POISONOUS_VALUE = 6.0
PNG = ImageFormat("image/png")
OPTIONS = {
    "ray_actor_options": {"num_cpus": 0.25},
    "max_ongoing_requests": 32,
    **HEALTH,
}
COST = CostModel(Curve(0.01, 1, 0.0), FORWARD_COST, FORWARD_COST)


class MortalDenoiser(Denoiser):
    """Its process ends at the first step of a request with POISONOUS_SEED, as after a device fault."""

    def _deliver(self, report: StepReport) -> None:
        under_way = (item for item in self._thread._engine.waiting if item.call > 0)
        if any(item.request.seed == POISONOUS_SEED for item in under_way):
            os._exit(1)
        super()._deliver(report)


class MortalEncoder(PromptEncoder):
    """Its process ends when it encodes POISONOUS_PROMPT. Every batch waits for later requests."""

    async def _run(self, texts: Sequence[tuple[Any, ReadText, Any]]) -> list[EncodedText]:
        await asyncio.sleep(0.2)
        if any(text.text == POISONOUS_PROMPT for _, text, _ in texts):
            os._exit(1)
        return await super()._run(texts)


class MortalDecoder(VaeDecoder):
    """Its process ends when it decodes latents of only POISONOUS_VALUE. It waits like the encoder."""

    def _run(self, batches: Any, items: Sequence[tuple[Any, Any]]) -> list[Any]:
        time.sleep(0.2)
        if any(torch.all(item == POISONOUS_VALUE) for _, item in items):
            os._exit(1)
        return super()._run(batches, items)


@pytest.fixture
def encoder(base_url: str) -> Iterator[DeploymentHandle]:
    measurement = CostMeasurement(((16, 16),), COST)
    batching = Batching(8, 0.1)
    application = serve.deployment(MortalEncoder, **OPTIONS).bind(
        MODEL, Placement("cpu"), batching, 1, 1, 1, 0, AdapterMemory(), measurement
    )
    yield serve.run(application, name="mortal encoder", route_prefix=None)
    serve.delete("mortal encoder")


@pytest.fixture
def decoder(base_url: str) -> Iterator[DeploymentHandle]:
    measurement = CostMeasurement(((16, 16),), COST)
    application = serve.deployment(MortalDecoder, **OPTIONS).bind(
        MODEL, Placement("cpu"), 8, 1, 1, None, 10.0, measurement
    )
    yield serve.run(application, name="mortal decoder", route_prefix=None)
    serve.delete("mortal decoder")


@pytest.fixture(scope="module")
def denoiser(base_url: str) -> Iterator[DeploymentHandle]:
    config = EngineConfig(16, 16, 8, (16, 16), checkpoint_interval_s=0.3)
    application = serve.deployment(MortalDenoiser, **OPTIONS).bind(
        MODEL,
        Placement("cpu"),
        config,
        Batching(8, 0.005),
        2,
        1,
        0.0,
        AdapterMemory(),
        CostMeasurement(((16, 16),), COST),
    )
    yield serve.run(application, name="mortal denoiser", route_prefix=None)
    serve.delete("mortal denoiser")


async def watch(denoiser: DeploymentHandle, request: DenoiseRequest) -> AsyncIterator[DenoiseEvent]:
    # The same request is sent several times; the replica must not confuse them.
    request = replace(request, request_id=f"{request.request_id}-{os.urandom(4).hex()}")
    async with aclosing(failover.denoise(denoiser, request, MODEL)) as events:
        async for event in events:
            yield event


async def latents(denoiser: DeploymentHandle, request: DenoiseRequest) -> torch.Tensor:
    async for event in watch(denoiser, request):
        if isinstance(event, DenoisedLatents):
            return event.latents
    raise AssertionError("the events ended without latents")


def test_a_dead_replica_costs_steps_and_not_the_image(
    denoiser: DeploymentHandle, load_model: Callable[[str], LoadedModel]
) -> None:
    wanted = load_model("shapes").request("wanted", num_inference_steps=60, deterministic=True)

    async def disturbed() -> tuple[list[int], torch.Tensor]:
        calls: list[int] = []
        async for event in watch(denoiser, wanted):
            match event:
                case Checkpoint():
                    calls.append(event.call)
                    if len(calls) == 2:
                        ray.kill(replica("MortalDenoiser"), no_restart=True)
                case DenoisedLatents():
                    return calls, event.latents
        raise AssertionError("the events ended without latents")

    undisturbed = asyncio.run(latents(denoiser, wanted))
    calls, resumed = asyncio.run(disturbed())
    assert len(calls) > 2
    assert calls == sorted(set(calls)), "it went back to before its last checkpoint"
    assert torch.equal(resumed, undisturbed)


def test_a_request_of_which_replicas_die_fails_and_takes_no_other_with_it(
    denoiser: DeploymentHandle, load_model: Callable[[str], LoadedModel]
) -> None:
    model = load_model("shapes")
    others = [
        model.request(f"other {seed}", seed=seed, num_inference_steps=30, deterministic=True)
        for seed in range(3)
    ]
    poisonous = model.request("poisonous", seed=POISONOUS_SEED, deterministic=True)

    async def run() -> None:
        alone = [await latents(denoiser, other) for other in others]
        beside = [asyncio.create_task(latents(denoiser, other)) for other in others]
        await asyncio.sleep(0.3)
        with pytest.raises(PoisonousRequestError, match="2 replicas died"):
            await latents(denoiser, poisonous)
        for expected, got in zip(alone, await asyncio.gather(*beside), strict=True):
            assert torch.equal(expected, got)

    asyncio.run(run())


def test_a_prompt_of_which_encoders_die_fails_and_takes_no_other_with_it(encoder: DeploymentHandle) -> None:
    prompts = [f"a circle of size {size}" for size in range(4)]

    async def encode(prompt: str) -> PromptEmbeds:
        text = PromptText(prompt, None, True, False)
        embeds: PromptEmbeds = await failover.call(prompt, encoder, "encode", text, MODEL)
        return embeds

    async def run() -> None:
        poisonous, *others = await asyncio.gather(
            *map(encode, [POISONOUS_PROMPT, *prompts]), return_exceptions=True
        )
        assert isinstance(poisonous, PoisonousRequestError)
        for prompt, beside in zip(prompts, others, strict=True):
            assert isinstance(beside, PromptEmbeds), f"{prompt}: {beside!r}"
            assert torch.allclose(beside.prompt_embeds, (await encode(prompt)).prompt_embeds, atol=1e-4)

    asyncio.run(run())


def test_latents_of_which_decoders_die_fail_and_take_no_others_with_them(decoder: DeploymentHandle) -> None:
    harmless = [torch.full((8, 16, 16), 0.1 * value) for value in range(4)]

    async def decode(latents: torch.Tensor) -> bytes:
        wanted = (MODEL, latents, PNG, {}, False)
        image: EncodedImage = await failover.call(f"of {latents.mean():.1f}", decoder, "decode", *wanted)
        return image.data

    async def run() -> None:
        latents = [*harmless, torch.full((8, 16, 16), POISONOUS_VALUE)]
        *others, poisonous = await asyncio.gather(*map(decode, latents), return_exceptions=True)
        assert isinstance(poisonous, PoisonousRequestError)
        for beside in others:
            assert isinstance(beside, bytes), repr(beside)
        assert len(set(others)) == len(harmless)

    asyncio.run(run())
