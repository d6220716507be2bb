"""The costs of forwards of many models, from the one that was measured on this device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from threading import Lock
from typing import Any

import diffusers
import torch
from torch.utils.flop_counter import FlopCounterMode

from deployments.engine.conditions import MAX_TOKENS, UNetShape, architecture, random_conditions
from deployments.engine.cost import StageCost
from deployments.engine.model_files import sample_size
from deployments.engine.model_source import ModelRef, load_unet_config

_NOWHERE = torch.device("meta")


class ForwardCosts:
    """Costs by model. Models of the measured one's architecture cost the same. For others, the measured
    cost is scaled by the floating-point operations that a latent takes.

    measured: the cost of `model`
    """

    def __init__(self, measured: StageCost, model: ModelRef) -> None:
        self._measured = measured
        self._config = load_unet_config(model.source)
        self._architecture = architecture(self._config)
        self._known = {self._architecture: measured}  # by architecture
        self._flops: float | None = None  # of the measured model
        self._counting = Lock()

    def of(self, model: ModelRef) -> StageCost:
        """May be called on any thread. Raises ModelLoadError if there is no such model."""
        config = load_unet_config(model.source)
        key = architecture(config)
        with self._counting:
            if key not in self._known:
                self._known[key] = self._scaled_to(config)
            return self._known[key]

    def _scaled_to(self, config: Mapping[str, Any]) -> StageCost:
        mine, other = _on_meta(self._config), _on_meta(config)
        if architecture(mine.config) == architecture(other.config):
            return self._measured  # one of the files leaves defaults out
        if self._flops is None:
            self._flops = _flops_per_latent(mine)
        return self._measured.times(_flops_per_latent(other) / self._flops)


def _on_meta(config: Mapping[str, Any]) -> diffusers.UNet2DConditionModel:
    with torch.device(_NOWHERE):
        return diffusers.UNet2DConditionModel.from_config(dict(config))


def _flops_per_latent(module: diffusers.UNet2DConditionModel) -> float:
    """Operations of a forward of one row in the model's own size, for each latent."""
    shape = sample_size(module.config)
    assert shape is not None, "unet_problems checks it"
    unet = UNetShape.of(module.config, _NOWHERE, torch.float32)
    conditions = random_conditions(1, shape, unet)
    latents = torch.empty(1, module.config.in_channels, *shape, device=_NOWHERE)
    added = {"text_embeds": conditions.pooled_prompt_embeds, "time_ids": conditions.time_ids}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(
            latents,
            torch.zeros(1, device=_NOWHERE),
            encoder_hidden_states=torch.empty(1, MAX_TOKENS, unet.embeds_width, device=_NOWHERE),
            added_cond_kwargs=added if unet.time_ids_width else None,
        )
    return float(counter.get_total_flops()) / math.prod(shape)
