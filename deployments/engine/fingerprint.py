"""The fingerprint of whatever decides about an image beside its request: model, precision, engine.

Two processes with the same fingerprint can go on with each other's images.
"""

import hashlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from deployments.engine.model_source import ModelSource, Placement

# To be raised whenever the same request would give other bytes, or checkpoints would mean something else.
ENGINE_VERSION = 1

_WHOLE_BYTES = 1 << 20  # a file up to this size is read whole; of a larger one the start has its header
_NUM_SAMPLES = 64
_SAMPLE_BYTES = 16 << 10


def fingerprint(source: ModelSource, placement: Placement, deterministic_rows: int) -> str:
    """Hexadecimal digits. Of a folder it reads about a MB a file, of a hub id it asks for the revision.

    deterministic_rows: of every deterministic forward, which decide about its bytes

    Raises OSError where the model is neither a folder nor on the hub.
    """
    digest = hashlib.sha256()
    settings = (ENGINE_VERSION, placement.is_simulated, placement.dtype, placement.attention)
    digest.update(repr((*settings, deterministic_rows, source.variant)).encode())
    folder = Path(source.path)
    if folder.is_dir():
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder)
            if path.is_file() and not any(part.startswith(".") for part in name.parts):
                digest.update(f"\n{name.as_posix()} {path.stat().st_size}\n".encode())
                for part in _samples(path):
                    digest.update(part)
    else:
        digest.update(f"\n{source.path} {_hub_commit(source)}".encode())
    return digest.hexdigest()


def _samples(path: Path) -> Iterator[bytes]:
    """All of a small file; of a large one its start and samples at equal distances, up to its end."""
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
    """The commit of the revision as it is now, or as it is in the cache where the hub cannot be reached."""
    hub = import_module("huggingface_hub")
    index = hub.hf_hub_download(source.path, "model_index.json", revision=source.revision)
    return Path(index).parent.name  # .../snapshots/<commit>/model_index.json
