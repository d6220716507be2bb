"""The factors of layers without an alpha, as diffusers writes them into a file's metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import sqrt
from typing import Any

from deployments.adapters.errors import AdapterFileError, shown
from deployments.tensor_files.headers import Header

_MAX_ALPHA = 1e6
_KEY = "lora_adapter_metadata"  # PEFT's LoraConfig of each part, with the part's name before each key


class Scales:
    """Without it the factor is 1, as in diffusers. Raises AdapterFileError."""

    def __init__(self, header: Header) -> None:
        self._name = header.path.name
        text = header.metadata.get(_KEY)
        try:
            self._config: Mapping[str, Any] = {} if text is None else dict(json.loads(text).items())
        except (ValueError, AttributeError, RecursionError) as error:
            raise AdapterFileError(f"{self._name}: its metadata {_KEY} is no JSON object") from error

    def of(self, part: str, module: str, rank: int) -> float:
        """The factor of a layer. rank: of its factors"""
        alpha = self._alpha(part, module)
        if alpha is None:
            return 1.0
        is_stabilised = self._config.get(f"{part}.use_rslora") is True
        return alpha / (sqrt(rank) if is_stabilised else rank)

    def _alpha(self, part: str, module: str) -> float | None:
        patterns = self._config.get(f"{part}.alpha_pattern") or {}
        alpha = self._config.get(f"{part}.lora_alpha")
        if isinstance(patterns, dict):
            # PEFT takes them as regular expressions; diffusers writes names, whole or their last parts.
            words = module.split(".")
            names = (".".join(words[first:]) for first in range(len(words)))
            alpha = next((patterns[name] for name in names if name in patterns), alpha)
        if alpha is None:
            return None
        is_number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
        if not is_number or not abs(alpha) <= _MAX_ALPHA:
            raise AdapterFileError(
                f"{self._name}: the alpha of {part} in its metadata is {shown(repr(alpha))}; a number up to "
                f"{_MAX_ALPHA:g} is needed"
            )
        return float(alpha)
