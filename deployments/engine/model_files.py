"""Checks a model's files by their names, configurations and headers. It reads no weights.

Every problem is a sentence that names the file by its path in the model's folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    import torch

PIPELINES: Mapping[str, tuple[str, ...]] = {  # the text encoders; each has a tokenizer
    "StableDiffusionPipeline": ("text_encoder",),
    "StableDiffusionXLPipeline": ("text_encoder", "text_encoder_2"),
    "StableDiffusionInpaintPipeline": ("text_encoder",),
    "StableDiffusionXLInpaintPipeline": ("text_encoder", "text_encoder_2"),
}
SCHEDULER_FILE = "scheduler/scheduler_config.json"
UNET_FILE = "unet/config.json"
VAE_FILE = "vae/config.json"
# Their configuration is a schedule of betas over discrete timesteps, which is what samplers are made of.
# These are diffusers' KarrasDiffusionSchedulers, LCM and TCD, listed here because importing diffusers takes
# seconds. diffusers lists EDM's too, but its noise differs: pictures would come out wrong without an error.
SCHEDULERS = frozenset(
    {
        "DDIMScheduler",
        "DDPMScheduler",
        "DEISMultistepScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSDEScheduler",
        "DPMSolverSinglestepScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "LCMScheduler",
        "LMSDiscreteScheduler",
        "PNDMScheduler",
        "TCDScheduler",
        "UniPCMultistepScheduler",
    }
)
_PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files that a part's weights may be in. variant: as in `from_pretrained`, for example fp16"""

    variant: str | None
    allow_pickle: bool

    def problems(self, folder: Path, part: str) -> Iterator[str]:
        """What is wrong with the weights of one part in the model's folder."""
        if (path := self._safetensors(folder, part)) is not None:
            yield from _shard_problems(path, part) if path.suffix == ".json" else _header_problems(path, part)
            return
        stem = "pytorch_model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
        names = [
            _with_variant(f"{stem}.{end}", variant)
            for variant in self._variants(part)
            for end in ("bin", "bin.index.json")
        ]
        found = [name for name in names if (folder / part / name).is_file()]
        if found and not self.allow_pickle:
            yield (
                f"{part}/{found[0]} is a pickle, which can run any code when it is loaded. There is no "
                "safetensors file: convert it, or set model.allow_pickle if you trust its author"
            )
        elif not found:
            yield self._missing(folder, part)

    def lacking(self, folder: Path, part: str, module: torch.nn.Module) -> list[str]:
        """The tensors of a text encoder that its files lack. Unknown for pickles, so empty."""
        if (path := self._safetensors(folder, part)) is None:
            return []
        wrapper = "text_model."  # in the files; the module has it with some versions of transformers
        stored: set[str] = set()
        for file in _shards(path) if path.suffix == ".json" else [path]:
            with safe_open(file, framework="np") as header:
                names = header.keys()  # it cannot be iterated itself
            stored.update(name.removeprefix(wrapper) for name in names)
        return [name for name in module.state_dict() if name.removeprefix(wrapper) not in stored]

    def single_file(self, folder: Path, part: str) -> Path | None:
        """The safetensors file that diffusers loads. None if there are several, or pickles."""
        path = self._safetensors(folder, part)
        return path if path is not None and path.suffix == ".safetensors" else None

    def _safetensors(self, folder: Path, part: str) -> Path | None:
        """The safetensors file, or index of several files, that diffusers loads."""
        for variant in self._variants(part):
            for end in ("safetensors", "safetensors.index.json"):
                path = folder / part / _with_variant(f"{_stem(part)}.{end}", variant)
                if path.is_file():
                    return path
        return None

    def _variants(self, part: str) -> tuple[str | None, ...]:
        """The variants to look for, in order. For text encoders, diffusers falls back to plain weights."""
        return (self.variant, None) if part.startswith("text_encoder") else (self.variant,)

    def _missing(self, folder: Path, part: str) -> str:
        name = _with_variant(f"{_stem(part)}.safetensors", self.variant)
        others = sorted(path.name for path in (folder / part).glob("*.safetensors"))
        there = f"; there is {', '.join(others)}" if others else ""
        if self.variant:
            return f"{part}/{name} is not there: the part {part} has no variant {self.variant!r}{there}"
        return f"{part}/{name} is not there{there}"


def _stem(part: str) -> str:
    return "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"


def _with_variant(name: str, variant: str | None) -> str:
    """The name with the variant before its last suffix, as diffusers and transformers write it."""
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}.{variant}{dot}{suffix}" if variant else name


def _header_problems(path: Path, part: str) -> Iterator[str]:
    try:
        with safe_open(path, framework="np"):
            return
    except (OSError, SafetensorError) as error:
        yield f"{part}/{path.name} is not a complete safetensors file: {error}"


def _shard_problems(index: Path, part: str) -> Iterator[str]:
    try:
        shards = _shards(index)
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        yield f"{part}/{index.name} is not an index of safetensors files"
        return
    for path in shards:
        if path.is_file():
            yield from _header_problems(path, part)
        else:
            yield f"{part}/{path.name} is not there, although {part}/{index.name} lists it"


def _shards(index: Path) -> list[Path]:
    names = set(json.loads(index.read_bytes())["weight_map"].values())
    return [index.parent / name for name in sorted(names)]


def unet_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a U-Net's configuration. It may need a prompt, or a picture and a mask too."""
    given = config.get
    needs = {
        "in_channels": given("in_channels") not in (given("out_channels"), inpainting_channels(config))
        and "an image to edit",
        "time_cond_proj_dim": given("time_cond_proj_dim") is not None and "its guidance embedded",
        "class_embed_type": given("class_embed_type") is not None and "class labels",
        "encoder_hid_dim_type": given("encoder_hid_dim_type") is not None and "projected conditions",
        "addition_embed_type": given("addition_embed_type") not in (None, "text_time") and "more than a text",
    }
    for key, need in needs.items():
        if need:
            yield f"{UNET_FILE}: {key} says that the U-Net needs {need}, which is not served"
    if sample_size(config) is None:
        yield (
            f"{UNET_FILE}: sample_size is {given('sample_size')!r}; it must be a number of latents, "
            "or a list of height and width"
        )


def inpainting_channels(unet_config: Mapping[str, Any]) -> int:
    """The input channels of a U-Net for inpainting: latents, the mask, and the masked picture's latents."""
    return 2 * int(unet_config.get("out_channels") or 0) + 1


def sample_size(unet_config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width in latents of the U-Net's training images; None if the configuration has none."""
    given = unet_config.get("sample_size")
    sides: list[Any] = given if isinstance(given, list) else [given, given]
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        return None
    return sides[0], sides[1]


def vae_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a VAE's configuration."""
    if not config.get("block_out_channels"):
        yield f"{VAE_FILE}: block_out_channels is missing, which gives the number of pixels per latent"


def scheduler_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the scheduler's configuration, from which every sampler takes its noise schedule."""
    name, prediction_type = config.get("_class_name"), config.get("prediction_type", "epsilon")
    if name is None:
        yield f"{SCHEDULER_FILE}: _class_name is missing, which names the noise schedule"
    elif not isinstance(name, str) or name not in SCHEDULERS:
        yield (
            f"{SCHEDULER_FILE}: {name} has a noise schedule other than Stable Diffusion's betas, "
            "which is not served"
        )
    elif config.get("timestep_type", "discrete") != "discrete":
        yield f"{SCHEDULER_FILE}: timestep_type {config['timestep_type']!r} is not served; discrete is"
    elif prediction_type not in _PREDICTION_TYPES:
        yield (
            f"{SCHEDULER_FILE}: prediction_type {prediction_type!r} is not served; "
            f"{', '.join(_PREDICTION_TYPES)} are"
        )


def tokenizer_problems(folder: Path, part: str, text_config: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a tokenizer in the model's folder. The text encoder reads its tokens."""
    if not (folder / part / "tokenizer.json").is_file():
        missing = [name for name in ("vocab.json", "merges.txt") if not (folder / part / name).is_file()]
        if missing:
            # transformers would make a tokenizer without words, and every prompt would give the same picture.
            yield (f"{part} has no vocabulary: {' and '.join(missing)} must exist, or tokenizer.json")
    file = f"{part}/tokenizer_config.json"
    try:
        length = read_config(folder, file).get("model_max_length")
    except ConfigFileError as error:
        yield str(error)
        return
    most = text_config.get("max_position_embeddings", 77)
    if not isinstance(length, int) or not 2 < length <= most:
        yield (
            f"{file}: model_max_length is {length!r}; it must be a number of tokens, at most the {most} that "
            "the text encoder reads"
        )


class ConfigFileError(ValueError):
    """A configuration file of the model is missing or is not a JSON object."""


def read_config(folder: Path, file: str) -> Mapping[str, Any]:
    """The JSON object in a file of the model's folder. Raises ConfigFileError."""
    try:
        config = json.loads((folder / file).read_bytes())
    except FileNotFoundError as error:
        raise ConfigFileError(f"{file} is not there") from error
    except OSError as error:
        raise ConfigFileError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigFileError(f"{file} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ConfigFileError(f"{file} is not a JSON object")
    return config


def part_problems(folder: Path, text_encoders: Sequence[str], weights: WeightFiles) -> Iterator[str]:
    """Problems that only loading would meet: tokenizers, text encoder configurations and weights."""
    for part in text_encoders:
        text_config: Mapping[str, Any] = {}
        try:
            text_config = read_config(folder, f"{part}/config.json")
        except ConfigFileError as error:
            yield str(error)
        yield from tokenizer_problems(folder, part.replace("text_encoder", "tokenizer"), text_config)
    for part in ("unet", "vae", *text_encoders):
        yield from weights.problems(folder, part)
