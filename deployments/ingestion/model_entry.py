"""What to ingest, and the error with the reasons why it cannot be. Nothing here needs torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from deployments.engine.model_source import ModelLoadError

HUB_FILE = re.compile(r"\w[\w.-]*/\w[\w.-]*/\w[\w./-]*\.safetensors")  # owner/name/file.safetensors


class IngestionError(ModelLoadError):
    """The model cannot be ingested. Each line of the message names a file, what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class ModelToIngest:
    """A checkpoint and how to read it.

    source: the absolute path of a single .safetensors file or of a diffusers folder, or a hub id
    revision, variant: as in `from_pretrained`, of a hub id and of a folder
    vae: another VAE: a single file, a diffusers folder of it or of a model, or a hub id
    prediction_type, zero_terminal_snr: what the checkpoint was trained for; auto: what its files say
    allow_pickle: whether a folder's weights may be pickles where there is no safetensors file
    config: a diffusers folder for single files of an architecture that is not known; it needs no weights
    fuse: adapters to merge into its weights, one after another: the absolute path of a file, or a file of the
        hub (owner/name/file.safetensors), and what its effect is multiplied by
    """

    source: str
    revision: str | None = None
    variant: str | None = None
    vae: str | None = None
    prediction_type: Literal["auto", "epsilon", "v_prediction"] = "auto"
    zero_terminal_snr: bool | Literal["auto"] = "auto"
    allow_pickle: bool = False
    config: str | None = None
    fuse: Sequence[tuple[str, float]] = ()
