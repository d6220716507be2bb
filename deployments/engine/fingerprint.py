"""A fingerprint of everything besides the request that decides about an image: model, precision, engine.

Two processes with the same fingerprint can continue each other's images. A precision of `auto` counts as one,
although it may be another on another kind of device: the picture is then as good, but has other bytes.
"""

import hashlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from deployments.engine.model_source import ModelSource, Placement

# Raise this whenever the same request would give other bytes, or checkpoints would mean something else.
ENGINE_VERSION = 1

_WHOLE_BYTES = 1 << 20  # smaller files are read whole; the start of a larger one has its header
_NUM_SAMPLES = 64
_SAMPLE_BYTES = 16 << 10


def fingerprint(source: ModelSource, placement: Placement, deterministic_rows: int) -> str:
    """The fingerprint in hexadecimal. It reads about 1 MB per file of a folder, or asks the hub for a commit.

    deterministic_rows: the row count of deterministic forwards, which decides about their bytes

    Raises OSError if the model is neither a folder nor on the hub.
    """
    digest = hashlib.sha256()
    settings = (ENGINE_VERSION, placement.is_simulated, placement.dtype, placement.attention)
    digest.update(repr((*settings, deterministic_rows, source.variant)).encode())
    folders = [Path(source.path)] if source.is_folder else []
    if not folders:
        digest.update(f"\n{source.path} {_hub_commit(source)}".encode())
    if source.embeddings is not None:
        folders.append(Path(source.embeddings))
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder)
            if path.is_file() and not any(part.startswith(".") for part in name.parts):
                digest.update(f"\n{name.as_posix()} {path.stat().st_size}\n".encode())
                for part in _samples(path):
                    digest.update(part)
    return digest.hexdigest()


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
