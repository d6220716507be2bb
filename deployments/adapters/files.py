"""What an adapter's file is, from its header alone. It reads no weights and needs no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deployments.adapters.errors import AdapterFileError
from deployments.adapters.resolving import MAX_BYTES, MAX_HEADER_BYTES, open_adapter
from deployments.adapters.targets import ModelTargets

__all__ = [
    "MAX_BYTES",
    "MAX_HEADER_BYTES",
    "TITLES",
    "TRIGGERS",
    "AdapterFile",
    "AdapterFileError",
    "digest_of",
    "read_adapter_file",
]

TITLES = ("modelspec.title", "ss_output_name")  # the second is kohya's
TRIGGERS = "modelspec.trigger_phrase"  # https://github.com/Stability-AI/ModelSpec
_LONGEST_VALUE = 500  # characters


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """An adapter that fits a model.

    kinds: of lora, locon, loha, lokr, dora, full, norm, in this order
    ranks: the highest rank by part of the model (unet, text_encoder, text_encoder_2), if it changes it
    dense: the keys that only `fuse` can use; requests can use a file without such keys
    num_bytes: of the file
    metadata: the TITLES and TRIGGERS that the file has, cut and without control characters; a file may have
        megabytes of others, and thousands of files are known at once
    """

    kinds: tuple[str, ...]
    ranks: Mapping[str, int]
    dense: tuple[str, ...]
    num_bytes: int
    metadata: Mapping[str, str]

    @property
    def unet_rank(self) -> int:
        """The highest rank in the U-Net; 0 if it does not change it."""
        return self.ranks.get("unet", 0)

    @property
    def text_rank(self) -> int:
        """The highest rank in the text encoders; 0 if it does not change them."""
        return max((rank for part, rank in self.ranks.items() if part != "unet"), default=0)


_KINDS = ("lora", "locon", "loha", "lokr", "dora", "full", "norm")


def read_adapter_file(path: Path, model: ModelTargets, max_bytes: int = MAX_BYTES) -> AdapterFile:
    """What the file is. Raises AdapterFileError if it is no adapter, or not for this model.

    max_bytes: the largest file that is allowed
    """
    header, layers = open_adapter(path, model, max_bytes)
    kinds = {layer.kind for layer in layers} | {"dora" for layer in layers if layer.is_dora}
    ranks: dict[str, int] = {}
    for layer in layers:
        ranks[layer.part] = max(ranks.get(layer.part, 0), layer.rank)
    return AdapterFile(
        kinds=tuple(kind for kind in _KINDS if kind in kinds),
        ranks=ranks,
        dense=tuple(sorted(key for layer in layers for key in layer.dense)),
        num_bytes=path.stat().st_size,
        metadata={
            key: _printable(value) for key in (*TITLES, TRIGGERS) if (value := header.metadata.get(key))
        },
    )


def _printable(text: str) -> str:
    """An author's text for one line."""
    return "".join(mark if mark.isprintable() else " " for mark in text[:_LONGEST_VALUE]).strip()


def digest_of(path: Path) -> str:
    """SHA-256 of the file's content, in hexadecimal. Raises AdapterFileError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise AdapterFileError(f"{path.name} cannot be read: {error.strerror}") from error
