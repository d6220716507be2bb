"""Reads the parts of a planned model, checks them and writes them in a folder of the cache's."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors.torch import save_file

from deployments.engine.model_files import (
    PIPELINES,
    scheduler_problems,
    tokenizer_problems,
    unet_problems,
    vae_problems,
)
from deployments.ingestion.adapters import with_adapters
from deployments.ingestion.cache import Cache, Staging, write_json
from deployments.ingestion.folder import plan_folder
from deployments.ingestion.hub import fetch_model, named_by_hub_id
from deployments.ingestion.model_entry import IngestionError, ModelToIngest
from deployments.ingestion.parts import Part, Plan, read_tensors
from deployments.ingestion.single_file import plan_single_file
from deployments.tensor_files.headers import FILE_SUFFIXES
from deployments.tensor_files.weights import byte_view

Progress = Callable[[str, float], None]
_MAX_FLOAT16 = torch.finfo(torch.float16).max
_OF_DIFFUSERS = ("unet", "vae")
_VOLATILE_TOKENIZER = ("is_local", "local_files_only", "name_or_path", "_name_or_path", "backend")
# The share of a part's time that reading it takes; then come checking, and writing with its digest.
_READ_SHARE, _CHECKED_SHARE = 0.5, 0.6


def plan(model: ModelToIngest, progress: Progress) -> Plan:
    """Where the model's parts are, from headers and configurations. Raises IngestionError."""
    source = Path(model.source)
    if source.is_dir():
        planned = plan_folder(model, source)
    elif source.is_file():
        planned = plan_single_file(model)
    elif source.is_absolute() or source.suffix in FILE_SUFFIXES:
        raise IngestionError(f"{source} is not there: give an existing file or folder, or a hub id")
    else:
        progress("fetching", 0.0)
        folder = fetch_model(model)
        with named_by_hub_id(model.source, folder, model.revision):
            planned = plan_folder(model, folder)
    if problems := list(_problems(planned)):
        raise IngestionError("\n".join(f"{model.source}: {problem}" for problem in problems))
    return replace(planned, parts=with_adapters(planned.parts, model.fuse))


def _problems(planned: Plan) -> Iterator[str]:
    if planned.pipeline not in PIPELINES:
        yield f"it is a {planned.pipeline}; served are {' and '.join(PIPELINES)}"
        return
    configs = {part.architecture.part: part.architecture.config for part in planned.parts}
    yield from unet_problems(configs["unet"])
    yield from vae_problems(configs["vae"])
    yield from scheduler_problems(planned.scheduler)


def build(planned: Plan, cache: Cache, staging: Staging, dtype: str, progress: Progress) -> dict[str, Any]:
    """Writes all parts into the staging folder, and returns the manifest. Raises IngestionError."""
    digests: dict[str, str] = {}
    beyond: list[str] = []
    total_bytes, done_bytes = max(sum(part.num_bytes for part in planned.parts), 1), 0
    for part in planned.parts:
        name, size_bytes = part.architecture.part, part.num_bytes

        def report(
            what: str, share: float, name: str = name, before: int = done_bytes, of: int = size_bytes
        ) -> None:
            progress(f"{what} {name}", (before + share * of) / total_bytes)

        digests[name] = _build_part(part, cache, staging, dtype, beyond, report)
        done_bytes += size_bytes
    for name, files in planned.tokenizers.items():
        digests[name] = _build_tokenizer(name, files, staging)
    digests["scheduler"] = _digest(planned.scheduler)
    return _manifest(planned, digests, staging, beyond)


def _build_part(
    part: Part, cache: Cache, staging: Staging, dtype: str, beyond: list[str], report: Progress
) -> str:
    """Returns the part's digest. beyond: gets the tensors whose values are beyond float16"""
    name, size_bytes, read_bytes = part.architecture.part, max(part.num_bytes, 1), 0

    def on_bytes(count: int) -> None:
        nonlocal read_bytes
        read_bytes += count
        report("reading", _READ_SHARE * read_bytes / size_bytes)

    tensors = read_tensors(part, on_bytes)
    report("checking", _READ_SHARE)
    beyond += (f"{name}: {one}" for one in _check(part, tensors, dtype))
    report("writing", _CHECKED_SHARE)
    digest = _digest(part.architecture.config, tensors)
    if not staging.take_existing(name, cache.part_folder(digest)):
        folder = staging.new_part(name)
        write_json(folder / "config.json", part.architecture.config)
        file = "diffusion_pytorch_model" if name in _OF_DIFFUSERS else "model"
        save_file(tensors, folder / f"{file}.safetensors", metadata={"format": "pt"})
    report("writing", 1.0)
    return digest


def _check(part: Part, tensors: Mapping[str, torch.Tensor], dtype: str) -> list[str]:
    """The tensors with values beyond float16's. Raises IngestionError for values that cannot be used."""
    bad: list[str] = []
    beyond: list[str] = []
    for name, tensor in tensors.items():
        if not tensor.numel():
            continue
        low, high = (float(value) for value in torch.aminmax(tensor))  # NaN if there is one
        if not (-float("inf") < low and high < float("inf")):
            bad.append(part.origins[name].name)
        elif max(-low, high) > _MAX_FLOAT16:
            beyond.append(part.origins[name].name)
    where, kind = part.files.description, part.architecture.part
    if bad:
        raise IngestionError(
            f"{where}: {len(bad)} tensors of its {kind} have values that are not finite, such as {bad[0]}. "
            "The file is damaged, or was merged wrong: take another"
        )
    if beyond and dtype == "float16":
        raise IngestionError(beyond_float16(f"{where}, {kind}: {beyond[0]}"))
    return beyond


def beyond_float16(what: str) -> str:
    """The sentence that refuses a tensor in float16."""
    return (
        f"{what} has values beyond {_MAX_FLOAT16:.0f}, which float16 does not have: use bfloat16 or float32"
    )


def _digest(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor] | None = None) -> str:
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted((tensors or {}).items()):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(byte_view(tensor))
    return digest.hexdigest()


def _build_tokenizer(name: str, files: Mapping[str, Path], staging: Staging) -> str:
    """Writes a tokenizer as this version of transformers does, so that equal ones have equal files."""
    folder, given = staging.new_part(name), staging.folder / f"given-{name}"
    given.mkdir()
    for file, path in files.items():
        shutil.copyfile(path, given / file)
    try:
        transformers.CLIPTokenizer.from_pretrained(str(given)).save_pretrained(str(folder))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise IngestionError(f"{name} cannot be loaded: {error}") from error
    shutil.rmtree(given)
    config = folder / "tokenizer_config.json"
    kept = json.loads(config.read_bytes())
    write_json(config, {key: kept[key] for key in sorted(kept) if key not in _VOLATILE_TOKENIZER})
    if problems := list(tokenizer_problems(staging.parts, name, {})):
        raise IngestionError("\n".join(problems))
    return _digest({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()})


def _manifest(
    planned: Plan, digests: Mapping[str, str], staging: Staging, beyond: list[str]
) -> dict[str, Any]:
    index = {key: value for key, value in model_index(planned).items() if key != "_diffusers_version"}
    unet = next(part.architecture for part in planned.parts if part.architecture.part == "unet")
    return {
        "version": 1,
        "digest": _digest({"index": index, "digests": dict(digests)}),
        "digests": dict(digests),
        "family": _family(planned.pipeline, unet.config),
        "pipeline": planned.pipeline,
        "prediction_type": planned.scheduler["prediction_type"],
        "zero_terminal_snr": bool(planned.scheduler.get("rescale_betas_zero_snr", False)),
        "bytes": sum(path.stat().st_size for path in staging.parts.rglob("*.safetensors")),
        "num_parameters": unet.num_parameters,
        "source": planned.source,
        "beyond_float16": beyond,
    }


def _family(pipeline: str, unet: Mapping[str, Any]) -> str:
    if "StableDiffusionXL" in pipeline:
        return "sdxl"
    return {768: "sd1", 1024: "sd2"}.get(unet.get("cross_attention_dim", 0), "other")


def model_index(planned: Plan) -> dict[str, Any]:
    """The content of model_index.json."""
    is_xl = "StableDiffusionXL" in planned.pipeline
    index: dict[str, Any] = {
        "_class_name": planned.pipeline,
        "_diffusers_version": diffusers.__version__,  # pipelines for inpainting ask for it
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", planned.scheduler["_class_name"]],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    if not is_xl:
        return index | {"safety_checker": [None, None], "requires_safety_checker": False}
    return index | {
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "force_zeros_for_empty_prompt": bool(planned.index.get("force_zeros_for_empty_prompt", True)),
    }
