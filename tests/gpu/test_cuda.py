"""On a CUDA device, with models of real size and random weights: fidelity and determinism."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from deployments.engine.denoising import Engine, EngineConfig
from deployments.engine.device_step import step_runner
from deployments.engine.messages import DenoiseRequest, PromptEmbeds
from deployments.engine.models import UNet
from deployments.engine.samplers import SamplerTables
from tests.conftest import FORWARD_COST, finish
from tests.unit.test_samplers import STABLE_DIFFUSION

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SD15: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


class Model:
    """A U-Net on the device and requests for it."""

    def __init__(self, config: dict[str, Any], dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        device = torch.device("cuda")
        with device:
            self.module = UNet2DConditionModel(**config).eval().requires_grad_(False)
        self.module.to(dtype=dtype, memory_format=torch.channels_last)
        self.unet = UNet(self.module, device, dtype)
        self.run_step = step_runner(self.unet)
        self.tables = SamplerTables(STABLE_DIFFUSION)
        self.size = config["sample_size"]
        self.width = config["cross_attention_dim"]

    def engine(self) -> Engine:
        config = EngineConfig(8, 8, 8, (self.size, self.size), row_counts=(2, 4, 8))
        return Engine(self.unet, self.run_step, self.tables, 8, config, FORWARD_COST)

    def request(
        self, request_id: str, seed: int, deterministic: bool = False, steps: int = 4
    ) -> DenoiseRequest:
        generator = torch.Generator().manual_seed(seed)
        embeds = [torch.randn(77, self.width, generator=generator) for _ in range(2)]
        pooled = [
            torch.randn(1280, generator=generator) if self.unet.needs_time_ids else None for _ in range(2)
        ]
        return DenoiseRequest(
            request_id=request_id,
            embeds=PromptEmbeds(embeds[0], embeds[1], pooled[0], pooled[1], 10, 2, 77),
            height=8 * self.size,
            width=8 * self.size,
            sampler="DPM++ 2M SDE",
            num_inference_steps=steps,
            guidance_scale=5.0,
            seed=seed,
            deterministic=deterministic,
        )


@pytest.fixture(params=[("sd15", SD15), ("sdxl", SDXL)], ids=lambda param: param[0], scope="module")
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    yield Model(request.param[1], torch.bfloat16)
    torch.cuda.empty_cache()


def test_deterministic_latents_are_the_same_bytes_among_any_neighbours(model: Model) -> None:
    results = []
    for place in range(4):
        engine = model.engine()
        for index in range(4):
            seed = 7 if index == place else 100 + 10 * place + index
            name = "wanted" if index == place else f"other {index}"
            engine.add(model.request(name, seed, deterministic=True))
        results.append(finish(engine)["wanted"])
    assert all(torch.equal(result, results[0]) for result in results)


def test_a_late_joiner_is_near_what_it_is_alone(model: Model) -> None:
    engine = model.engine()
    engine.add(model.request("wanted", 7))
    [alone] = finish(engine).values()
    engine = model.engine()
    engine.add(model.request("neighbour", 8, steps=9))
    engine.step()
    engine.add(model.request("wanted", 7))
    late = finish(engine)["wanted"]
    assert (late - alone).abs().mean() < 0.05 * alone.abs().mean()


def test_float32_latents_are_those_of_the_stock_scheduler() -> None:
    model = Model(SD15, torch.float32)
    request = model.request("image", 7)
    engine = model.engine()
    engine.add(request)
    [latents] = finish(engine).values()

    scheduler = model.tables.scheduler(request.sampler)
    scheduler.set_timesteps(request.num_inference_steps, device="cuda")
    generator = torch.Generator().manual_seed(7)
    expected = torch.randn(1, 4, 64, 64, generator=generator).cuda() * scheduler.init_noise_sigma
    negative = request.embeds.negative_prompt_embeds
    assert negative is not None
    embeds = torch.stack([negative, request.embeds.prompt_embeds]).cuda()
    for timestep in scheduler.timesteps:
        rows = scheduler.scale_model_input(torch.cat([expected] * 2), timestep)
        with torch.inference_mode():
            unconditional, conditional = model.module(rows, timestep, embeds).sample.chunk(2)
        output = unconditional + request.guidance_scale * (conditional - unconditional)
        expected = scheduler.step(output, timestep, expected, generator=generator).prev_sample
    assert (latents - expected[0].cpu()).abs().max() < 1e-3 * expected.abs().max()
