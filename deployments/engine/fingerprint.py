"""A fingerprint of everything besides the request that decides about an image: model, precision, engine.

Two processes with the same fingerprint can continue each other's images. A precision of `auto` counts as one,
although it may be another on another kind of device: the picture is then as good, but has other bytes.
"""

import hashlib
import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from deployments.engine.model_files import UNET_FILE, ConfigFileError, read_config
from deployments.engine.model_source import ModelRef, ModelSource, Placement

# Raise this whenever the same request would give other bytes, or checkpoints would mean something else.
ENGINE_VERSION = 1

MANIFEST = "manifest.json"  # of an ingested model
_TEXT_PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
_PARTS = (*_TEXT_PARTS, "unet", "scheduler", "vae")

_WHOLE_BYTES = 1 << 20  # smaller files are read whole; the start of a larger one has its header
_NUM_SAMPLES = 64
_SAMPLE_BYTES = 16 << 10


def fingerprint(
    model: ModelRef, placement: Placement, deterministic_rows: int, deterministic_rank: int = 0
) -> str:
    """The fingerprint in hexadecimal.

    deterministic_rows: the row count of deterministic forwards, which decides about their bytes
    deterministic_rank: the rank of those with adapters, which does too; 0 without adapters
    """
    settings: tuple[object, ...] = (placement.is_simulated, placement.dtype, placement.attention)
    if placement.quantization != "none":
        settings += (placement.quantization,)
    of_forwards = (deterministic_rows, deterministic_rank) if deterministic_rank else (deterministic_rows,)
    return _digest(repr((ENGINE_VERSION, *settings, *of_forwards)), model.digest)


def model_ref(source: ModelSource) -> ModelRef:
    """The model with its digests. It reads about 1 MB per file of a folder, or asks the hub for a commit.

    Raises OSError if the model is neither a folder nor on the hub.
    """
    if source.is_folder:
        folder = Path(source.path)
        of_folder = _kept_digests(folder) or _folder_digests(folder)
        # Besides files: what a stage makes of a part depends on what the other parts are.
        reads_picture, zeroes_empty = _uses(folder)
    else:
        commit = f"{source.path} {_hub_commit(source)}"
        of_folder = {part: f"{part} {commit}" for part in (*_PARTS, "whole")}
        reads_picture = zeroes_empty = ""
    embeddings = ""
    if source.embeddings is not None:
        embeddings = _digest(*_of_files(Path(source.embeddings)))
    variant = repr(source.variant)
    text = _digest(variant, embeddings, zeroes_empty, *(of_folder.get(part, "") for part in _TEXT_PARTS))
    return ModelRef(
        source,
        digest=_digest(variant, embeddings, of_folder["whole"]),
        text=text,
        unet=_digest(variant, of_folder.get("unet", ""), of_folder.get("scheduler", "")),
        vae=_digest(variant, reads_picture, of_folder.get("vae", "")),
    )


def _uses(folder: Path) -> tuple[str, str]:
    """Whether the U-Net reads a masked picture, which the VAE encodes for it; and whether an empty negative
    prompt is encoded as zeros, as SDXL's is."""
    try:
        unet, index = read_config(folder, UNET_FILE), read_config(folder, "model_index.json")
    except ConfigFileError:
        return "", ""
    reads_picture = unet.get("in_channels") != unet.get("out_channels")
    return str(reads_picture), str(index.get("force_zeros_for_empty_prompt"))


def _kept_digests(folder: Path) -> dict[str, str] | None:
    """The digests that ingestion has written beside a model's parts; None if it has not."""
    try:
        kept = json.loads((folder / MANIFEST).read_bytes())
        return {**kept["digests"], "whole": kept["digest"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None  # another program's file may have the same name


def _folder_digests(folder: Path) -> dict[str, str]:
    """Files beside the model's parts, such as scripts and adapters, do not count."""
    parts = {part: _digest(*_of_files(folder / part)) for part in _PARTS if (folder / part).is_dir()}
    file = folder / "model_index.json"
    index = _digest(file.read_text() if file.exists() else "")
    return parts | {"whole": _digest(index, *(f"{part} {digest}" for part, digest in parts.items()))}


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _of_files(folder: Path) -> Iterator[str]:
    """Each file's name, size and a digest of its samples."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            digest = hashlib.sha256()
            for sample in _samples(path):
                digest.update(sample)
            yield f"{name.as_posix()} {path.stat().st_size} {digest.hexdigest()}"


def _samples(path: Path) -> Iterator[bytes]:
    """The whole of a small file; the start of a large one and samples at equal distances up to its end."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        yield file.read(_WHOLE_BYTES)
        left_bytes = size_bytes - _WHOLE_BYTES - _SAMPLE_BYTES
        if left_bytes <= 0:
            yield file.read()
            return
        for number in range(_NUM_SAMPLES):
            file.seek(_WHOLE_BYTES + left_bytes * number // (_NUM_SAMPLES - 1))
            yield file.read(_SAMPLE_BYTES)


def _hub_commit(source: ModelSource) -> str:
    """The revision's current commit, or the commit in the cache if the hub cannot be reached."""
    hub = import_module("huggingface_hub")
    index = hub.hf_hub_download(source.path, "model_index.json", revision=source.revision)
    return Path(index).parent.name  # .../snapshots/<commit>/model_index.json
