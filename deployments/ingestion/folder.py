"""Finds the parts of a model in a diffusers folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deployments.engine.model_files import (
    PIPELINES,
    SCHEDULER_FILE,
    UNET_FILE,
    VAE_FILE,
    ConfigFileError,
    read_config,
    tokenizer_problems,
)
from deployments.engine.model_source import ModelLoadError
from deployments.ingestion.model_entry import IngestionError, ModelToIngest
from deployments.ingestion.parts import Part, Plan, find_tensors
from deployments.ingestion.prediction import scheduler_config
from deployments.ingestion.recognition import CONFIGS
from deployments.ingestion.vae import other_vae, vae_in_folder
from deployments.ingestion.weight_files import open_weights, tokenizer_files
from deployments.tensor_files.architectures import architecture
from deployments.tensor_files.tensor_names import Origin, clip_names

_TEXT_ENCODERS = {"CLIPTextModel": "text_encoder", "CLIPTextModelWithProjection": "text_encoder_2"}


def plan_folder(model: ModelToIngest, folder: Path) -> Plan:
    """Reads headers and configurations only. Raises IngestionError with everything that is wrong."""
    index = _config(folder, "model_index.json")
    pipeline = str(index.get("_class_name"))
    if pipeline not in PIPELINES:
        raise IngestionError(f"{folder} is a {pipeline}; served are {' and '.join(PIPELINES)}")
    if index.get("requires_aesthetics_score"):
        raise IngestionError(f"{folder} is an SDXL refiner, which makes no image from a prompt alone")
    problems: list[str] = []
    parts: list[Part] = []
    for part in ("unet", *PIPELINES[pipeline], "vae"):
        try:
            parts.append(_part(model, folder, part, index))
        except ModelLoadError as error:
            problems.append(str(error))
    tokenizers = [part.replace("text_encoder", "tokenizer") for part in PIPELINES[pipeline]]
    for tokenizer in tokenizers:
        problems += (f"{folder}: {problem}" for problem in tokenizer_problems(folder, tokenizer, {}))
    try:
        scheduler = scheduler_config(model, _config(folder, SCHEDULER_FILE), None)
    except IngestionError as error:
        problems.append(str(error))
    if problems:
        raise IngestionError("\n".join(problems))
    return Plan(
        pipeline=pipeline,
        index=index,
        parts=parts,
        tokenizers={name: tokenizer_files(folder / name) for name in tokenizers},
        scheduler=scheduler,
        source=f"the folder {folder.name}" if Path(model.source).is_dir() else f"{model.source} of the hub",
    )


def _config(folder: Path, file: str) -> Mapping[str, Any]:
    try:
        return read_config(folder, file)
    except ConfigFileError as error:
        raise IngestionError(f"{folder}: {error}") from error


def _part(model: ModelToIngest, folder: Path, part: str, index: Mapping[str, Any]) -> Part:
    if part == "vae":
        return _vae(model, folder, str(index["_class_name"]))
    if part == "unet":
        built = architecture(part, _config(folder, UNET_FILE), f"{folder}/{UNET_FILE}")
        files = open_weights(folder / part, "diffusion_pytorch_model", (model.variant,), model.allow_pickle)
        return find_tensors(built, files, lambda name: [Origin(name)])
    kind = (index.get(part) or [None, None])[1]
    if _TEXT_ENCODERS.get(str(kind)) != part:
        wanted = next(name for name, of in _TEXT_ENCODERS.items() if of == part)
        raise IngestionError(f"{folder}: its {part} is a {kind}, which is not served; {wanted} is")
    built = architecture(part, _config(folder, f"{part}/config.json"), f"{folder}/{part}/config.json")
    # diffusers takes a text encoder's plain weights where there is no variant.
    files = open_weights(folder / part, "model", (model.variant, None), model.allow_pickle)
    return find_tensors(built, files, _clip_candidates)


def _clip_candidates(name: str) -> Iterator[Origin]:
    yield from map(Origin, clip_names(name))


def _vae(model: ModelToIngest, folder: Path, pipeline: str) -> Part:
    if model.vae is None:
        return vae_in_folder(folder / "vae", model)
    # A single file has no configuration: it takes the one of the VAE that it replaces.
    family = "sdxl" if "StableDiffusionXL" in pipeline else "sd15"
    configs = folder if (folder / VAE_FILE).is_file() else CONFIGS / family
    return other_vae(model, _config(configs, VAE_FILE))
