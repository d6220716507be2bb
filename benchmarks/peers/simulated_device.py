"""A device that takes the modelled time of U-Net forwards and makes grey pictures, the same for all systems.

Step-level batching is for devices that are faster per row with more rows, which CPU cores hardly are. So the
same comparison also runs on a modelled device, which sleeps: an H200 with Stable Diffusion 1.5 at 512x512, or
a slower one, so that two cores keep up with everything except the device. It encodes and decodes in no time,
because Midstep would do that on separate devices, while its peers have one device for all.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from benchmarks.peers.environment import ROOT
from benchmarks.peers.images_api import ImageRequest
from deployments.engine.cost import CostModel, Curve, StageCost, padded
from serve.config.model import CostModelFile

# Passes the file of costs to the server's process. Without it there is no simulated device.
COST_MODEL_VARIABLE = "PEER_COST_MODEL"
MODELLED = ROOT / "cluster" / "devices" / "h200-sd15.json"
_LATENTS, _PIXELS = (64, 64), (512, 512)
_NO_TIME = Curve(1e-9, 1, 0.0)


def u_net_only(slower: float) -> CostModelFile:
    """MODELLED's costs, `slower` times as slow, without encoding and decoding."""
    modelled = CostModelFile.model_validate_json(MODELLED.read_text())
    costs = modelled.cost_model
    decode = StageCost(tuple((shape, _NO_TIME) for shape, _ in costs.decode.curves))
    curves = tuple(
        (shape, Curve(slower * curve.base_s, curve.flat_count, slower * curve.slope_s))
        for shape, curve in costs.forward.curves
    )
    costs = CostModel(encode=_NO_TIME, forward=replace(costs.forward, curves=curves), decode=decode)
    device = f"{modelled.device}, {slower:g} times slower" if slower != 1 else modelled.device
    return modelled.model_copy(update={"cost_model": costs, "device": device})


class SimulatedPipeline:
    """A pipeline's calls on the device, with two rows per image, since the benchmark asks for guidance."""

    def __init__(self, cost_model: Path) -> None:
        self._forward = CostModelFile.model_validate_json(cost_model.read_text()).cost_model.forward

    def __call__(self, requests: Sequence[ImageRequest]) -> list[Image.Image]:
        """Takes requests with equal settings."""
        # One sleep, because a pipeline launches step after step and waits for the device at the end.
        rows = padded(2 * len(requests), self._forward.padded_to)
        forward_s = self._forward.seconds(_LATENTS, rows)
        time.sleep(requests[0].settings.num_inference_steps * forward_s)
        return [Image.new("RGB", _PIXELS, "grey") for _ in requests]
