"""U-Nets and VAEs of real size with random weights, which take as long as trained ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging

from deployments.engine.adapters import targets_of
from deployments.engine.bank import EMPTY_LAYOUT, AdapterBank, Layout
from deployments.engine.cost import Curve, StageCost
from deployments.engine.device_step import StepRunner, step_runner, warm_up
from deployments.engine.engine import Engine
from deployments.engine.engine_config import EngineConfig
from deployments.engine.messages import (
    DenoisedLatents,
    DenoiseRequest,
    LatentShape,
    PromptEmbeds,
    TokenCount,
)
from deployments.engine.model_pool import KnownModel, OneModel
from deployments.engine.models import UNet
from deployments.engine.samplers import SamplerTables
from deployments.engine.step_inputs import StepInputs

# diffusers warns of every cast to another precision.
diffusers_logging.set_verbosity_error()

DEVICES = Path(__file__).parents[1] / "cluster/devices"
# The noise schedule with which every Stable Diffusion was trained.
NOISE_SCHEDULE: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "num_train_timesteps": 1000,
}
SAMPLER = "DPM++ 2M"
GUIDANCE_SCALE = 5.0
SD15, SDXL = (
    UNet2DConditionModel.load_config(DEVICES / family, subfolder="unet") for family in ("sd15", "sdxl")
)
# For machines without a GPU: the same code at tiny sizes.
TINY_SD15: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
}
TINY_SDXL = TINY_SD15 | {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 32,
}
U_NETS = {"sd15": SD15, "sdxl": SDXL, "tiny-sd15": TINY_SD15, "tiny-sdxl": TINY_SDXL}


class _Keeping:
    """A step runner that runs nothing and keeps its last inputs."""

    def __init__(self, bank: AdapterBank) -> None:
        self.bank = bank
        self.inputs: StepInputs

    def launch(self, inputs: StepInputs) -> torch.Tensor:
        self.inputs = inputs
        return inputs.states

    def completion(self) -> "_Keeping":
        return self

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass


def capture_failed() -> None:
    """For step runners that are not to run eagerly instead. Raises RuntimeError."""
    raise RuntimeError("a step could not be captured; the warning before says why")


@dataclass(frozen=True)
class RandomModel:
    """side: of the latents; width: of the prompt embeddings; layout: of its bank for adapters"""

    unet: UNet
    module: UNet2DConditionModel
    tables: SamplerTables
    side: int
    width: int
    layout: Layout

    @classmethod
    def build(
        cls, family: str, device: torch.device, dtype: torch.dtype, max_rank: int = 0, seed: int = 0
    ) -> "RandomModel":
        """A model of U_NETS. max_rank: of its bank for adapters; seed: of its weights"""
        torch.manual_seed(seed)
        config = U_NETS[family]
        with device:
            module = UNet2DConditionModel(**config).eval().requires_grad_(False)
        module.to(dtype=dtype, memory_format=torch.channels_last)
        layout = Layout.of(targets_of(module)) if max_rank else EMPTY_LAYOUT
        bank = AdapterBank(layout, max_rank, device, dtype)
        bank.attach(module)
        unet = UNet(module, device, dtype, bank)
        tables = SamplerTables(NOISE_SCHEDULE)
        return cls(unet, module, tables, config["sample_size"], config["cross_attention_dim"], layout)

    @property
    def shape(self) -> LatentShape:
        return self.side, self.side

    def step_runner(self) -> StepRunner:
        """The fastest runner on its device, as a denoiser has it, but it raises where a capture fails."""
        return step_runner(self.unet, [self.shape], capture_failed=capture_failed)

    def inputs(self, rows: int, rank: int = 0) -> StepInputs:
        """Random inputs of a step, one row for each request. rank: of adapters"""
        keeping = _Keeping(self.unet.bank)
        warm_up(self.unet.shape, keeping, self.shape, rows, rank)
        return keeping.inputs

    def engine(
        self,
        max_rows: int,
        run_step: StepRunner | None = None,
        checkpoint_interval_s: float | None = None,
        halved: Callable[[], None] = lambda: None,
    ) -> Engine:
        """An engine with few row counts, as on CUDA. Rows cost nothing, so all share a forward."""
        config = EngineConfig(max_rows, max_rows, max_rows, self.shape, (2, 4, 8, 16), checkpoint_interval_s)
        cost = StageCost(((self.shape, Curve(0.01, 1, 0.0)),))
        known = KnownModel(self.unet.shape, self.tables, cost)
        return Engine(OneModel(known, run_step or self.step_runner()), config, halved=halved)

    def denoise(
        self, requests: Sequence[DenoiseRequest], run_step: StepRunner, max_rows: int = 8
    ) -> dict[str, torch.Tensor]:
        """Latents [4, h, w] by request id, from an engine of its own."""
        engine = self.engine(max_rows, run_step)
        for request in requests:
            engine.add(request)
        latents = {}
        while engine.num_requests:
            for event in engine.step().events:
                if isinstance(event, DenoisedLatents):
                    latents[event.request_id] = event.latents
        return latents

    def embeds(self, seed: int) -> PromptEmbeds:
        generator = torch.Generator().manual_seed(seed)
        positive, negative = (torch.randn(77, self.width, generator=generator) for _ in range(2))
        pooled = [torch.randn(self.unet.shape.pooled_width, generator=generator) for _ in range(2)]
        return PromptEmbeds(positive, negative, pooled[0], pooled[1], TokenCount(10, 10), TokenCount(2, 2))

    def request(self, request_id: str, seed: int, steps: int, deterministic: bool = False) -> DenoiseRequest:
        return DenoiseRequest(
            request_id=request_id,
            embeds=self.embeds(seed),
            height=8 * self.side,
            width=8 * self.side,
            latent_shape=self.shape,
            sampler=SAMPLER,
            num_inference_steps=steps,
            num_calls=steps,
            guidance_scale=GUIDANCE_SCALE,
            seed=seed,
            deterministic=deterministic,
        )

    def pipeline(self) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
        """diffusers' own pipeline around the same U-Net. It takes embeddings and returns latents."""
        parts: dict[str, Any] = {
            "vae": AutoencoderKL(block_out_channels=(32, 32, 32, 32)),  # only for its scale factor
            "text_encoder": None,
            "tokenizer": None,
            "unet": self.module,
            "scheduler": DPMSolverMultistepScheduler.from_config(NOISE_SCHEDULE),
        }
        if self.unet.shape.pooled_width:
            pipeline = StableDiffusionXLPipeline(**parts, text_encoder_2=None, tokenizer_2=None)
        else:
            parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
            pipeline = StableDiffusionPipeline(**parts)
        pipeline.to(self.unet.device)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def run_pipeline(self, pipeline: Any, batch_size: int, steps: int) -> torch.Tensor:
        """Latents [batch_size, 4, h, w]."""
        all_embeds = [self.embeds(seed) for seed in range(batch_size)]
        named = ["prompt_embeds", "negative_prompt_embeds"]
        if self.unet.shape.pooled_width:
            named += ["pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
        given = {
            name: torch.stack([getattr(embeds, name) for embeds in all_embeds]).to(
                self.unet.device, self.unet.shape.dtype
            )
            for name in named
        }
        latents: torch.Tensor = pipeline(
            **given,
            height=8 * self.side,
            width=8 * self.side,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE_SCALE,
            generator=[torch.Generator().manual_seed(seed) for seed in range(batch_size)],
            output_type="latent",
        ).images
        return latents


def build_vae(family: str, device: torch.device, dtype: torch.dtype) -> AutoencoderKL:
    """A VAE of Stable Diffusion's shape, which is also SDXL's, or a tiny one."""
    torch.manual_seed(0)
    is_tiny = family.startswith("tiny-")
    channels = (16, 16, 16, 16) if is_tiny else (128, 256, 512, 512)
    groups = 8 if is_tiny else 32
    with device:
        vae = AutoencoderKL(
            block_out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            norm_num_groups=groups,
        )
    return vae.to(dtype=dtype, memory_format=torch.channels_last).eval().requires_grad_(False)
