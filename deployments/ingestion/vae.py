"""Finds the tensors of a VAE, alone or in a model, in diffusers' names or those of single files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deployments.engine.model_files import ConfigFileError, read_config
from deployments.ingestion.hub import fetch_vae, named_by_hub_id
from deployments.ingestion.model_entry import IngestionError, ModelToIngest
from deployments.ingestion.parts import Part, find_tensors
from deployments.ingestion.recognition import VAE_PREFIXES
from deployments.ingestion.weight_files import open_weights
from deployments.tensor_files.architectures import architecture
from deployments.tensor_files.headers import FILE_SUFFIXES, read_header
from deployments.tensor_files.tensor_names import Origin, vae_ldm, vae_old
from deployments.tensor_files.weights import SafetensorsFiles, TensorFiles


def other_vae(model: ModelToIngest, config: Mapping[str, Any]) -> Part:
    """The VAE that the entry names. config: of the model's own VAE, which a single file takes"""
    assert model.vae is not None, "the caller asks"
    path = Path(model.vae)
    if path.is_dir():
        return vae_in_folder(path / "vae" if (path / "vae").is_dir() else path, model)
    if path.is_file():
        return vae_part(SafetensorsFiles([read_header(path)], str(path)), config, str(path))
    if path.is_absolute() or path.suffix in FILE_SUFFIXES:
        raise IngestionError(f"{path} is not there, which the model names as its `vae`")
    folder = fetch_vae(model.vae, model.variant, model.allow_pickle)
    with named_by_hub_id(model.vae, folder):
        return vae_in_folder(folder, model)


def vae_in_folder(folder: Path, model: ModelToIngest) -> Part:
    """The VAE in a folder of its own: config.json and weights."""
    try:
        config = read_config(folder, "config.json")
    except ConfigFileError as error:
        raise IngestionError(f"the VAE in {folder}: {error}") from error
    if config.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        raise IngestionError(f"{folder} is a {config['_class_name']}; as VAEs, AutoencoderKL are served")
    variants = (model.variant, None) if model.vae else (model.variant,)
    return vae_part(
        open_weights(folder, "diffusion_pytorch_model", variants, model.allow_pickle), config, str(folder)
    )


def vae_part(files: TensorFiles, config: Mapping[str, Any], where: str) -> Part:
    """A VAE whose names may be diffusers', its older ones, or those of single files, alone or in a model."""
    built = architecture("vae", config, where)
    blocks = len(built.config["up_block_types"])

    def candidates(name: str) -> Iterator[Origin]:
        yield Origin(name)
        yield Origin(vae_old(name))
        yield from (Origin(prefix + vae_ldm(name, blocks)) for prefix in ("", *VAE_PREFIXES))

    return find_tensors(built, files, candidates)
