"""The served model and its placement, and the information that is known before its parts are loaded.

Models that cannot be served are refused here, with the reason. Nothing here needs torch or diffusers, so that
code that only reads a configuration is fast.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployments.engine.cuda_driver import driver_problem
from deployments.engine.model_files import (
    PIPELINES,
    SCHEDULER_FILE,
    UNET_FILE,
    VAE_FILE,
    ConfigFileError,
    WeightFiles,
    part_problems,
    read_config,
    sample_size,
    scheduler_problems,
    unet_problems,
    vae_problems,
)

if TYPE_CHECKING:
    import torch


_USUAL_LAYERS = 12  # of CLIP's text encoder in Stable Diffusion 1


class ModelLoadError(RuntimeError):
    """The model, or the way to run it, is not supported. The message has one line per reason."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A diffusers model: a folder or a hub id.

    variant: as in `from_pretrained`, for example fp16
    allow_pickle: whether weights may be pickles where there is no safetensors file
    embeddings: a folder of textual inversions for its text encoders
    """

    path: str
    revision: str | None = None
    variant: str | None = None
    allow_pickle: bool = False
    embeddings: str | None = None

    @property
    def is_folder(self) -> bool:
        return Path(self.path).is_dir()

    def from_pretrained_kwargs(self) -> dict[str, Any]:
        given = {"revision": self.revision, "variant": self.variant}
        # With None, diffusers prefers safetensors.
        return {name: value for name, value in given.items() if value} | {
            "use_safetensors": None if self.allow_pickle else True
        }


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model as stages know it; they load its parts when a request needs them.

    digest: of everything that decides about its pictures
    text, unet, vae: digests of its parts, of which stages keep equal ones once. The U-Net's counts the noise
        schedule too
    """

    source: ModelSource
    digest: str
    text: str
    unet: str
    vae: str


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and how a part of a model runs.

    device: auto, cpu, cuda or simulated; attention: sdpa or xformers
    dtype: float32, bfloat16 or float16; auto takes bfloat16 on CUDA, or float16 where the GPU has none, and
        float32 elsewhere
    compile_cache: a folder; if given, the U-Net is compiled and the result is kept there
    faults: a folder of faults, for a simulated device only (simulated_faults)
    quantization: of the U-Net's weights: none, int8 or fp8
    """

    device: str = "auto"
    dtype: str = "float32"
    attention: str = "sdpa"
    compile_cache: str | None = None
    faults: str | None = None
    quantization: str = "none"

    @property
    def is_simulated(self) -> bool:
        return self.device == "simulated"

    def torch_device(self) -> torch.device:
        """The torch device. Raises ModelLoadError if it does not exist, or if torch has no code for it.

        `auto` warns where there is an NVIDIA driver or GPU that torch cannot use.
        """
        import torch  # noqa: PLC0415

        if self.device not in ("auto", "cuda"):
            return torch.device(self.device)
        is_available = torch.cuda.is_available()
        problem = _gpu_problem() if is_available else driver_problem()
        if is_available and not problem:
            return torch.device("cuda")
        if self.device == "cuda":
            reason = problem or "torch sees no CUDA device here"
            raise ModelLoadError(f"device: cuda cannot be used: {reason}. device: cpu needs no GPU")
        if problem:
            warnings.warn(f"device: auto computes on the CPU: {problem}", RuntimeWarning, stacklevel=1)
        return torch.device("cpu")

    def torch_dtype(self) -> torch.dtype:
        """The torch dtype. Raises ModelLoadError if the device does not exist, or only emulates bfloat16."""
        import torch  # noqa: PLC0415

        if self.dtype in ("float32", "float16"):
            dtype: torch.dtype = getattr(torch, self.dtype)
            return dtype
        if self.torch_device().type != "cuda":
            return torch.float32 if self.dtype == "auto" else torch.bfloat16
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        if self.dtype == "auto":
            return torch.float16
        major, minor = torch.cuda.get_device_capability()
        raise ModelLoadError(
            f"dtype: bfloat16 was asked for, but {torch.cuda.get_device_name()} (compute capability "
            f"{major}.{minor}) only emulates it. Use dtype: float16, or auto"
        )


def _gpu_problem() -> str | None:
    """The reason why torch has no code for the GPU, as a sentence; None if it has.

    Code for a GPU (sm_75) runs on those of the same major version and no lower minor one, and code that the
    driver compiles (compute_75) on all later ones.
    """
    import torch  # noqa: PLC0415

    found = re.findall(r"\b(sm|compute)_(\d+)(\d)", " ".join(torch.cuda.get_arch_list()))
    if not found:
        return None
    major, minor = torch.cuda.get_device_capability()
    for kind, *digits in found:
        code = tuple(map(int, digits))
        if code <= (major, minor) and (kind == "compute" or code[0] == major):
            return None
    return (
        f"{torch.cuda.get_device_name()} has compute capability {major}.{minor}, and torch "
        f"{torch.__version__} has code for {', '.join(torch.cuda.get_arch_list())} only"
    )


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the HTTP side needs to know about a model, read from its configuration files only."""

    scheduler_config: Mapping[str, Any]
    scale_factor: int  # image pixels per latent, in each direction
    default_height: int  # pixels
    default_width: int  # pixels
    max_clip_skip: int = 10  # layers of the smallest text encoder that can be left out
    needs_mask: bool = False  # a model for inpainting: it makes images only from a picture and a mask


def load_model_info(source: ModelSource, with_weights: bool = False) -> ModelInfo:
    """Reads no weights. Raises ModelLoadError with everything that is wrong.

    with_weights: also checks a folder's tokenizers and weights, which only loading needs
    """
    name = pipeline_name(source)
    configs: dict[str, Mapping[str, Any]] = {}
    problems: list[str] = []
    for file, problems_of in (
        (UNET_FILE, unet_problems),
        (VAE_FILE, vae_problems),
        (SCHEDULER_FILE, scheduler_problems),
    ):
        try:
            configs[file] = _read_config(source, file)
            problems += problems_of(configs[file])
        except ConfigFileError as error:
            problems.append(str(error))
    if with_weights and source.is_folder:
        weights = WeightFiles(source.variant, source.allow_pickle)
        problems += part_problems(Path(source.path), PIPELINES[name], weights)
    if problems:
        raise refusal(source, *problems)
    scale_factor = 2 ** (len(configs[VAE_FILE]["block_out_channels"]) - 1)
    size = sample_size(configs[UNET_FILE])
    assert size is not None, "unet_problems checks it"
    unet = configs[UNET_FILE]
    return ModelInfo(
        scheduler_config=configs[SCHEDULER_FILE],
        scale_factor=scale_factor,
        default_height=size[0] * scale_factor,
        default_width=size[1] * scale_factor,
        max_clip_skip=_max_clip_skip(source, PIPELINES[name]),
        needs_mask=unet["in_channels"] != unet["out_channels"],
    )


def _max_clip_skip(source: ModelSource, text_encoders: Sequence[str]) -> int:
    """SDXL always leaves out one layer more than it says. A model to simulate has no text encoders."""
    layers = [_USUAL_LAYERS]
    for part in text_encoders:
        with suppress(ConfigFileError):
            layers.append(
                int(_read_config(source, f"{part}/config.json").get("num_hidden_layers", layers[0]))
            )
    return min(layers) - len(text_encoders)


def load_unet_config(source: ModelSource) -> Mapping[str, Any]:
    """The U-Net's configuration. Raises ModelLoadError for a U-Net that needs more than a prompt."""
    pipeline_name(source)
    config = part_config(source, UNET_FILE)
    if problems := list(unet_problems(config)):
        raise refusal(source, *problems)
    return config


def part_config(source: ModelSource, file: str) -> Mapping[str, Any]:
    """One configuration file. Raises ModelLoadError if it cannot be read."""
    try:
        return _read_config(source, file)
    except ConfigFileError as error:
        raise refusal(source, str(error)) from error


def refusal(source: ModelSource, *problems: str) -> ModelLoadError:
    return ModelLoadError("\n".join(f"model {source.path!r}: {problem}" for problem in problems))


def _read_config(source: ModelSource, file: str) -> Mapping[str, Any]:
    """A configuration file of the model. Raises ConfigFileError."""
    if source.is_folder:
        return read_config(Path(source.path), file)
    hub = import_module("huggingface_hub")
    try:
        found = Path(hub.hf_hub_download(source.path, file, revision=source.revision))
    except hub.errors.RemoteEntryNotFoundError as error:
        raise ConfigFileError(f"{file} is not there") from error
    except (OSError, ValueError) as error:  # unknown model, no access or no network
        reason = str(error).strip().partition("\n")[0]
        raise ConfigFileError(f"{file} cannot be fetched from the hub: {reason}") from error
    return read_config(found.parent, found.name)


def pipeline_name(source: ModelSource) -> str:
    """The class name of its pipeline. Raises ModelLoadError if that pipeline is not served."""
    try:
        index = _read_config(source, "model_index.json")
    except ConfigFileError as error:
        raise ModelLoadError(f"model {source.path!r} cannot be read: {error}") from error
    name = index.get("_class_name")
    if name not in PIPELINES:
        raise ModelLoadError(f"model {source.path!r} is a {name}; served are {' and '.join(PIPELINES)}")
    if index.get("requires_aesthetics_score"):
        raise ModelLoadError(
            f"model {source.path!r} is an SDXL refiner, which makes no image from a prompt alone"
        )
    return str(name)
