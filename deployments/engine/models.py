"""Loads the parts of a model in diffusers format on a device in a dtype.

Stable Diffusion 1.x and 2.x (epsilon or v-prediction) and SDXL are served. Other models are refused here, at
start, with the reason.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as transformers_logging

from deployments.engine.adapters import targets_of
from deployments.engine.attention import sdpa_backends
from deployments.engine.bank import EMPTY_LAYOUT, AdapterBank, DevicePool, Layout
from deployments.engine.conditions import MAX_TOKENS, Conditions, UNetShape, architecture
from deployments.engine.model_files import PIPELINES, VAE_FILE, WeightFiles
from deployments.engine.model_source import (
    ModelLoadError,
    ModelSource,
    Placement,
    load_unet_config,
    part_config,
    pipeline_name,
    refusal,
)
from deployments.engine.transfers import copy, pinned

# Importing diffusers' models makes transformers log in every process, so once per replica, that torchvision
# is not installed, and draw progress bars into the log. These lines are in time, because diffusers imports a
# model only when its name is used, as in `diffusers.AutoencoderKL`.
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

logger = logging.getLogger("ray.serve")

_READ_BYTES = 16 << 20
_FP8_CAPABILITY = (8, 9)


@contextmanager
def _loading(source: ModelSource, part: str) -> Iterator[None]:
    """Turns the libraries' errors into a ModelLoadError that names the part."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        raise refusal(source, f"its {part} cannot be loaded: {error}") from error


def load_text_pipeline(source: ModelSource, placement: Placement) -> diffusers.DiffusionPipeline:
    """The stock pipeline with only its tokenizers and text encoders, for `encode_prompt`."""
    name = pipeline_name(source)
    parts: dict[str, Any] = {"unet": None, "vae": None, "feature_extractor": None, "image_encoder": None}
    if name in ("StableDiffusionPipeline", "StableDiffusionInpaintPipeline"):
        parts |= {"safety_checker": None, "requires_safety_checker": False}
    with _loading(source, " and ".join(PIPELINES[name])):
        pipeline = getattr(diffusers, name).from_pretrained(
            source.path, dtype=placement.torch_dtype(), **parts, **source.from_pretrained_kwargs()
        )
    weights = WeightFiles(source.variant, source.allow_pickle)
    for part in PIPELINES[name] if source.is_folder else ():  # transformers makes up missing tensors
        _refuse_missing(source, part, weights.lacking(Path(source.path), part, getattr(pipeline, part)))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(placement.torch_device())


def _refuse_missing(source: ModelSource, part: str, missing: Sequence[str]) -> None:
    if missing:
        raise refusal(source, f"the weights of {part} lack {len(missing)} tensors, such as {missing[0]}")


def _read_through(source: ModelSource, part: str, rest: Callable[[], None] = lambda: None) -> None:
    """Reads a part's files from beginning to end, so that the system has them in memory.

    rest: called again and again meanwhile

    The libraries map files and then read them page by page, which takes minutes instead of seconds from slow
    mounts (ComfyUI's issues 1992 and 8713).
    """
    for path in Path(source.path, part).glob("*.safetensors") if source.is_folder else ():
        with path.open("rb", buffering=0) as file:
            while file.read(_READ_BYTES):
                rest()


def load_vae(source: ModelSource, placement: Placement) -> diffusers.AutoencoderKL:
    """The VAE, in its own precision (vae_dtype)."""
    with _loading(source, "vae"):
        _read_through(source, "vae")
        vae, loading = diffusers.AutoencoderKL.from_pretrained(
            source.path,
            subfolder="vae",
            dtype=vae_dtype(source, placement.torch_dtype()),
            output_loading_info=True,
            **source.from_pretrained_kwargs(),
        )
    _refuse_missing(source, "vae", loading["missing_keys"])
    vae.to(placement.torch_device(), memory_format=torch.channels_last)
    return vae.eval().requires_grad_(False)


def vae_dtype(source: ModelSource, dtype: torch.dtype) -> torch.dtype:
    """The VAE's dtype: float32 where diffusers' pipeline decodes in float32 although the rest is in float16.

    dtype: of the rest
    """
    return torch.float32 if dtype is torch.float16 and _is_upcast(source) else dtype


def _is_upcast(source: ModelSource) -> bool:
    """Whether diffusers upcasts the model's VAE to float32, as SDXL's own VAE overflows in float16.

    Only SDXL's pipeline reads the key `force_upcast`, and takes it as true if it is absent. The VAEs of
    Stable Diffusion 1.x and 2.x run in float16 in any case.
    """
    if "StableDiffusionXL" not in pipeline_name(source):
        return False
    return bool(part_config(source, VAE_FILE).get("force_upcast", True))


class UNet:
    """A U-Net as the engine calls it: rows in, predictions out, always float32 outside. shape: its inputs'

    bank: what its layers read adapters from
    fill: copies values into one of its tensors
    """

    def __init__(
        self,
        module: diffusers.UNet2DConditionModel,
        device: torch.device,
        dtype: torch.dtype,
        bank: AdapterBank,
        is_compiled: bool = False,
        fill: Callable[[torch.Tensor, torch.Tensor], object] = copy,
    ) -> None:
        self._module = module
        self._fill = fill
        self.bank = bank
        self.is_compiled = is_compiled
        self.shape = UNetShape.of(module.config, device, dtype)
        self.device = device

    def __call__(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        conditions: Conditions,
    ) -> torch.Tensor:
        """The model's output for every row, [rows, C, h, w] float32.

        latents [rows, C, h, w] float32, timesteps [rows], conditions with as many rows
        """
        added = {"text_embeds": conditions.pooled_prompt_embeds, "time_ids": conditions.time_ids}
        inputs = latents.to(self.shape.dtype)
        if self.shape.picture_channels:
            inputs = torch.cat([inputs, conditions.picture_channels], dim=1)
        # A compiled module would compile anew for each length of texts and each rank, in mid-service.
        is_usual = conditions.prompt_embeds.shape[1] == MAX_TOKENS and not conditions.adapter_scales.shape[1]
        forward = self._module if is_usual else self._module.forward
        with self.bank.scaled(conditions.adapter_scales, conditions.other_scales):
            prediction: torch.Tensor = forward(
                inputs,
                timesteps,
                encoder_hidden_states=conditions.prompt_embeds,
                added_cond_kwargs=added if self.shape.time_ids_width else None,
                return_dict=False,
            )[0]
        return prediction.float()

    def is_like(self, module: diffusers.UNet2DConditionModel) -> bool:
        """Whether another U-Net's weights can take the place of this one's."""
        return architecture(self._module.config) == architecture(module.config)

    @torch.inference_mode()
    def take(self, module: diffusers.UNet2DConditionModel) -> None:
        """Copies the weights of a U-Net like this one into this one's memory."""
        other = module.state_dict()
        is_cuda = self.device.type == "cuda"
        for name, tensor in self._module.state_dict(keep_vars=True).items():
            self._fill(tensor, pinned(other[name]) if is_cuda else other[name])

    @torch.inference_mode()
    def take_file(self, source: ModelSource, rest: Callable[[], None]) -> bool:
        """Copies the weights from a model's file into this one's memory.

        rest: called again and again meanwhile
        Returns whether it could. They must be in one safetensors file, with the tensors of a U-Net like this
        one. No module is built for it, which is Python's work, and forwards on a CPU wait meanwhile.
        Raises ModelLoadError.
        """
        config = load_unet_config(source)
        path = WeightFiles(source.variant, source.allow_pickle).single_file(Path(source.path), "unet")
        if path is None or architecture(_with_defaults(config)) != architecture(self._module.config):
            return False
        # Without keep_vars they would be detached, which quantized ones cannot be in inference mode.
        mine = self._module.state_dict(keep_vars=True)
        with _loading(source, "unet"):
            _read_through(source, "unet", rest)
            with safe_open(path, framework="pt") as file:
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
                if shapes != {name: tuple(tensor.shape) for name, tensor in mine.items()}:
                    return False
                for name, tensor in mine.items():
                    self._fill(tensor, file.get_tensor(name))
                    rest()
        return True


def _with_defaults(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A file's configuration as a module has it."""
    parameters = signature(diffusers.UNet2DConditionModel.__init__).parameters
    return {name: config.get(name, one.default) for name, one in parameters.items() if name != "self"}


def load_unet(source: ModelSource, placement: Placement) -> UNet:
    """Raises ModelLoadError if the U-Net needs more than a prompt, or if the attention cannot run here."""
    module = load_unet_module(source, placement.torch_dtype())
    return place_unet(module, placement, unet_bank(module, placement, 0))


def unet_bank(
    module: diffusers.UNet2DConditionModel,
    placement: Placement,
    max_rank: int,
    pool: DevicePool | None = None,
) -> AdapterBank:
    """A bank for U-Nets like this one. max_rank, pool: as in AdapterBank"""
    layout = Layout.of(targets_of(module)) if max_rank else EMPTY_LAYOUT
    return AdapterBank(layout, max_rank, placement.torch_device(), placement.torch_dtype(), pool)


def place_unet(module: diffusers.UNet2DConditionModel, placement: Placement, bank: AdapterBank) -> UNet:
    """Moves a module to its device and quantizes it. Raises ModelLoadError if its attention or its
    quantization cannot run there."""
    device, dtype = placement.torch_device(), placement.torch_dtype()
    module.to(device, memory_format=torch.channels_last)
    fill = copy if placement.quantization == "none" else _quantized(module, placement)
    _set_attention(module, placement.attention, device, dtype)
    bank.attach(module)  # before it is compiled, which takes the hooks in
    if placement.compile_cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = placement.compile_cache  # read when it first compiles
        compile_module(module)
    return UNet(module, device, dtype, bank, placement.compile_cache is not None, fill)


def compile_module(module: torch.nn.Module) -> None:
    """Lets dynamo compile a module when it is first called, as replicas have it."""
    # Each row count of each size is compiled separately. Past its limit dynamo silently runs eagerly.
    torch._dynamo.config.recompile_limit = 256
    # Otherwise the fastest way to sum is chosen by timing, and another start may give other bytes. An option,
    # as dynamo sets torch._inductor.config.deterministic back after the first compilation.
    module.compile(dynamic=False, options={"deterministic": True})


def load_unet_module(source: ModelSource, dtype: torch.dtype) -> diffusers.UNet2DConditionModel:
    """The module on the CPU. Raises ModelLoadError."""
    load_unet_config(source)
    with _loading(source, "unet"):
        _read_through(source, "unet")
        module, loading = diffusers.UNet2DConditionModel.from_pretrained(
            source.path,
            subfolder="unet",
            dtype=dtype,
            output_loading_info=True,
            **source.from_pretrained_kwargs(),
        )
    _refuse_missing(source, "unet", loading["missing_keys"])
    return module.eval().requires_grad_(False)


def check_quantization(placement: Placement) -> None:
    """Raises ModelLoadError if the device cannot compute with the placement's quantization."""
    if placement.quantization != "fp8":
        return
    device, dtype = placement.torch_device(), placement.torch_dtype()
    here, has_fp8 = f"the {device.type}", False
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        has_fp8 = capability >= _FP8_CAPABILITY
        here = f"{torch.cuda.get_device_name(device)} of {'.'.join(map(str, capability))}"
    if not has_fp8 or dtype is not torch.bfloat16:
        raise ModelLoadError(
            "model.quantization: fp8 needs bfloat16 on a CUDA device of compute capability 8.9 or more; "
            f"this is {here} in {str(dtype).removeprefix('torch.')}. Use int8 or none"
        )


def _quantized(
    module: diffusers.UNet2DConditionModel, placement: Placement
) -> Callable[[torch.Tensor, torch.Tensor], object]:
    """Quantizes a module on its device. Returns what copies values into its tensors."""
    check_quantization(placement)
    from deployments.engine.quantization import fill, quantize  # noqa: PLC0415 - torchao takes a while

    quantize(module, placement.quantization)
    return fill


def _set_attention(
    module: diffusers.UNet2DConditionModel, attention: str, device: torch.device, dtype: torch.dtype
) -> None:
    processors = import_module("diffusers.models.attention_processor")
    if attention == "sdpa":
        module.set_attn_processor(processors.AttnProcessor2_0())
        for backend, sizes in sdpa_backends(module, device, dtype).items():
            logger.info("attention: %s for heads of %s in %s", backend, sizes, dtype)
        return
    query = torch.zeros(1, 8, 2, 32, device=device, dtype=dtype)
    try:
        import_module("xformers.ops").memory_efficient_attention(query, query, query)
    except (ImportError, NotImplementedError, RuntimeError) as error:
        raise ModelLoadError(
            f"attention: xformers cannot run on {device.type} in {dtype}: {_xformers_problem(device, error)}"
        ) from error
    module.set_attn_processor(processors.XFormersAttnProcessor())


def _xformers_problem(device: torch.device, error: Exception) -> str:
    """The reason for an error of xformers' attention, and what to do."""
    if device.type != "cuda":
        return "it computes on CUDA only. Use attention: sdpa"
    library = sys.modules.get("xformers._cpp_lib")
    build = getattr(getattr(library, "_cpp_library_load_exception", None), "build_info", None)
    if build is None:
        return f"{' '.join(str(error).split())[:300]}. Use attention: sdpa"
    return (
        f"xformers {version('xformers')} is built for torch {build.torch_version}, and its kernels do not "
        f"load beside torch {torch.__version__}. Use attention: sdpa, or `make serve ATTENTION=xformers`, "
        "which installs what fits"
    )
