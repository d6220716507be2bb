"""Finds the parts of a model in a single safetensors file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deployments.engine.model_files import SCHEDULER_FILE, ConfigFileError, read_config
from deployments.ingestion.model_entry import IngestionError, ModelToIngest
from deployments.ingestion.parts import Candidates, Part, Plan, find_tensors
from deployments.ingestion.prediction import marked_prediction, refuse_edm, scheduler_config
from deployments.ingestion.recognition import CONFIGS, VAE_PREFIXES, Layout, layout
from deployments.ingestion.recognition import architecture as architecture_name
from deployments.ingestion.vae import other_vae
from deployments.ingestion.weight_files import tokenizer_files
from deployments.tensor_files.architectures import Architecture, architecture
from deployments.tensor_files.headers import Header, read_header
from deployments.tensor_files.tensor_names import Origin, UNetNames, clip_names, open_clip, vae_ldm
from deployments.tensor_files.weights import SafetensorsFiles, read_one

_VOCABULARY = CONFIGS / "clip_vocabulary"
# Stable Diffusion 2 at 768 pixels predicts v and at 512 epsilon, and no header tells them apart. ComfyUI's
# rule does: the spread of this bias is above 0.09 only in models that predict v. diffusers takes v for all.
_SD2_BIAS = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
_SD2_SPREAD = 0.09
_SD2_BASE_SIZE = 64  # latents


def plan_single_file(model: ModelToIngest) -> Plan:
    """Reads headers and configurations only. Raises IngestionError."""
    path = Path(model.source)
    header = read_header(path)
    refuse_edm(header)
    where = layout(header)
    name = None if model.config else architecture_name(header, where)
    configs = Path(model.config) if model.config else CONFIGS / str(name)
    index = _config(configs, "model_index.json")
    files = SafetensorsFiles([header], str(path))
    scheduler = _scheduler(model, header, where, name, _config(configs, SCHEDULER_FILE))
    unet_config = dict(_config(configs, "unet/config.json"))
    if name == "sd21" and scheduler["prediction_type"] == "epsilon":
        unet_config["sample_size"] = _SD2_BASE_SIZE
    parts = [_unet(unet_config, configs, files, where)]
    text_encoders = [part for part in ("text_encoder", "text_encoder_2") if part in index]
    parts += [_text_encoder(part, configs, files, where) for part in text_encoders]
    parts.append(_vae(model, configs, files, where))
    return Plan(
        pipeline=str(index["_class_name"]),
        index=index,
        parts=parts,
        tokenizers={
            tokenizer: _tokenizer_files(configs / tokenizer)
            for tokenizer in (part.replace("text_encoder", "tokenizer") for part in text_encoders)
        },
        scheduler=scheduler,
        source=f"the file {path.name}" + (f", read as {name}" if name else ""),
    )


def _config(configs: Path, file: str) -> Mapping[str, Any]:
    try:
        return read_config(configs, file)
    except ConfigFileError as error:
        raise IngestionError(f"the configurations in {configs}: {error}") from error


def _scheduler(
    model: ModelToIngest, header: Header, where: Layout, name: str | None, base: Mapping[str, Any]
) -> dict[str, Any]:
    marked = marked_prediction(header)
    if marked is None and name == "sd21" and model.prediction_type == "auto":
        marked = _sd2_prediction(header, where)
    return scheduler_config(model, base, marked, header.tensors)


def _sd2_prediction(header: Header, where: Layout) -> str:
    bias = _ldm_name(_SD2_BIAS, where)
    if bias not in header.tensors:
        return "epsilon"
    spread = float(read_one(header, bias).std(correction=0))
    return "v_prediction" if spread > _SD2_SPREAD else "epsilon"


def _ldm_name(name: str, where: Layout) -> str:
    """The name of a U-Net's tensor in the file. In averaged weights (EMA) it has no dots."""
    return where.unet_prefix + (f"diffusion_model{name.replace('.', '')}" if where.is_ema else name)


def _unet(config: Mapping[str, Any], configs: Path, files: SafetensorsFiles, where: Layout) -> Part:
    built = architecture("unet", config, f"{configs}/unet/config.json")
    if not isinstance(built.config["layers_per_block"], int):
        raise IngestionError(
            f"{configs}/unet/config.json: layers_per_block must be a number for single files"
        )
    names = UNetNames(built.config, built.shapes)

    def candidates(name: str) -> Iterator[Origin]:
        yield Origin(_ldm_name(names.ldm(name), where))

    part = find_tensors(built, files, candidates)
    taken, prefix = {origin.name for origin in part.origins.values()}, _ldm_name("", where)
    if extra := sorted(name for name in files.shapes() if name.startswith(prefix) and name not in taken):
        raise IngestionError(
            f"{files.description}: its U-Net has {len(extra)} tensors that {configs}/unet/config.json has no "
            f"place for, such as {extra[0]}: it is of another kind, as unCLIP and GLIGEN are, and would make "
            "other pictures without them"
        )
    return part


def _text_encoder(part: str, configs: Path, files: SafetensorsFiles, where: Layout) -> Part:
    if part not in where.text:
        raise IngestionError(
            f"{files.description} has no {part}: take the whole checkpoint, or make a diffusers folder of "
            "its parts"
        )
    prefix, is_open_clip = where.text[part]
    file = f"{part}/config.json"
    built = architecture(part, _config(configs, file), f"{configs}/{file}")
    return find_tensors(built, files, _text_candidates(built, prefix, is_open_clip))


def _text_candidates(built: Architecture, prefix: str, is_open_clip: bool) -> Candidates:
    def in_open_clip(name: str) -> Iterator[Origin]:
        origin = open_clip(name)
        yield Origin(prefix + origin.name, origin.third, origin.is_transposed)
        if origin.is_transposed:  # diffusers' convert_diffusers_to_original_sdxl.py leaves it as it is
            yield Origin(f"{prefix}{origin.name}.weight")

    def in_clip(name: str) -> Iterator[Origin]:
        yield from (Origin(prefix + one) for one in sorted(clip_names(name), reverse=True))

    return in_open_clip if is_open_clip else in_clip


def _vae(model: ModelToIngest, configs: Path, files: SafetensorsFiles, where: Layout) -> Part:
    config = _config(configs, "vae/config.json")
    if model.vae is not None:
        return other_vae(model, config)
    if not where.has_vae:
        raise IngestionError(
            f"{files.description} has no VAE: name one as the model's `vae`, a file, a folder or a hub id"
        )
    built = architecture("vae", config, f"{configs}/vae/config.json")
    blocks = len(built.config["up_block_types"])

    def candidates(name: str) -> Iterator[Origin]:
        yield from (Origin(prefix + vae_ldm(name, blocks)) for prefix in VAE_PREFIXES)

    return find_tensors(built, files, candidates)


def _tokenizer_files(folder: Path) -> dict[str, Path]:
    """A folder without a vocabulary gets CLIP's, which all known models share."""
    files = tokenizer_files(folder)
    if not {"tokenizer.json", "vocab.json"} & files.keys():
        files |= tokenizer_files(_VOCABULARY)
    return files
