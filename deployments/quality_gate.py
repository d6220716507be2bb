"""What quantization costs a model: a few pictures, drawn with and without it, before the model is served.

All stages are loaded for that, one engine after the other. A model is measured once with the same versions on
a kind of device, and the result lies beside the measured costs.
"""

import gc
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch
from PIL import Image

from deployments.engine.device_faults import is_out_of_memory
from deployments.engine.fingerprint import fingerprint
from deployments.engine.local_engine import Picture, engine_of
from deployments.engine.model_source import ModelRef, ModelSource, Placement, load_model_info, refusal
from deployments.engine.stage_errors import StageError
from deployments.kept_costs import KeptCosts

logger = logging.getLogger("ray.serve")

MIN_PSNR_DB = 20.0
PROMPTS = (
    "a large red star on a blue background",
    "a small white circle above a green square",
    "a photo of a cat on a wooden table, morning light",
    "a portrait of an old woman, oil painting",
    "a city street at night in the rain, neon signs",
    "a snowy mountain behind a lake, wide shot",
    "a bowl of fruit, watercolor",
    "an astronaut on a horse, pencil drawing",
)
NUM_STEPS = 8
_SIZE = 2  # guided pictures in a forward, as few as fit any device


@dataclass(frozen=True, slots=True)
class QuantizationLoss:
    """How far a quantized model's pictures are from its own, each a median over the prompts.

    psnr_db: of the pixels; latent_distance: the distance of the latents as a share of their length
    """

    psnr_db: float
    latent_distance: float


class QualityGate:
    """Refuses models whose pictures quantization changes too much. Used by one thread at a time.

    placement: with the quantization; kept: where results are; None to measure in any case
    """

    def __init__(self, placement: Placement, kept: KeptCosts | None) -> None:
        self._placement = placement
        self._kept = kept
        self._known: dict[ModelRef, QuantizationLoss] = {}

    def check(self, model: ModelRef) -> None:
        """Logs the loss, which is measured if it is not kept.

        Raises ModelLoadError if it is too large, or if the device has no room to measure it.
        """
        loss, quantization = self._known.get(model), self._placement.quantization
        if loss is None:
            loss = self._known[model] = self._loss(model)
        told = f"median PSNR {loss.psnr_db:.1f} dB, latent distance {loss.latent_distance:.4f}"
        logger.info("model.quantization: %s of %s: %s", quantization, model.source.path, told)
        if not loss.psnr_db >= MIN_PSNR_DB:
            raise refusal(
                model.source,
                f"model.quantization: {quantization} changes its pictures too much ({told}); "
                f"at least {MIN_PSNR_DB:g} dB are needed. Set model.quantization: none",
            )

    def _loss(self, model: ModelRef) -> QuantizationLoss:
        def measure() -> QuantizationLoss:
            try:
                return quantization_loss(model.source, self._placement)
            except StageError as error:
                raise refusal(model.source, f"its pictures cannot be compared: {error.detail}") from error
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            # Not in the handler: the error's traceback keeps the memory.
            _free_memory()
            raise refusal(
                model.source,
                "model.quantization: the device has no room for the model with all its bits, to compare with",
            )

        if self._kept is None:
            return measure()
        kept = KeptCosts(self._kept.folder, {"fingerprint": fingerprint(model, self._placement, 0)})
        counts = [len(PROMPTS), NUM_STEPS]
        return kept.get_or_measure("quantization", QuantizationLoss, counts, measure)[0]


def quantization_loss(source: ModelSource, placement: Placement) -> QuantizationLoss:
    """Draws `PROMPTS` with the placement's quantization and without. Raises ModelLoadError and StageError."""
    eager = replace(placement, compile_cache=None)
    exact = _drawn(source, replace(eager, quantization="none"))
    pairs = list(zip(exact, _drawn(source, eager), strict=True))
    return QuantizationLoss(
        psnr_db=median(_psnr_db(one.pixels, other.pixels) for one, other in pairs),
        latent_distance=median(
            float((one.latents - other.latents).norm() / one.latents.norm()) for one, other in pairs
        ),
    )


def _drawn(source: ModelSource, placement: Placement) -> Sequence[Picture]:
    pictures = _pictures(source, placement)
    _free_memory()
    return pictures


def _free_memory() -> None:
    gc.collect()  # an engine has cycles of references, and collections are rare (deployments/__init__.py)
    torch.cuda.empty_cache()


def _pictures(source: ModelSource, placement: Placement) -> Sequence[Picture]:
    engine = engine_of(source, placement, max_images=_SIZE)
    image = mask_image = None
    if load_model_info(source).needs_mask:  # all of a grey picture is repainted
        size = (engine.width, engine.height)
        image, mask_image = Image.new("RGB", size, "grey"), Image.new("L", size, 255)
    engine.add(*PROMPTS, num_inference_steps=NUM_STEPS, image=image, mask_image=mask_image)
    pictures: list[Picture] = []
    while engine.num_requests:
        pictures += engine.step()
    return sorted(pictures, key=lambda picture: picture.index)


def _psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    error = float(np.square(one.astype(np.float32) - other.astype(np.float32)).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf
