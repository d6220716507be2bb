"""The decoding stage takes as many images at once as its device has room for."""

import asyncio
from collections.abc import Sequence

import pytest
import torch

from deployments import vae_decoder
from deployments.cost_measurement import CostMeasurement
from deployments.device_memory import ImageRoom
from deployments.engine.cost import CostModel, Curve, StageCost
from deployments.engine.fingerprint import model_ref
from deployments.engine.images import Pixels
from deployments.engine.messages import ImageFormat, LatentShape
from deployments.engine.model_source import Placement
from deployments.engine.simulated import SimulatedDecoder
from deployments.engine.stage_errors import StageError
from deployments.vae_decoder import VaeDecoder
from serve.config.app import AppConfig

FAST = StageCost((((16, 16), Curve(0.02, 1, 0.001)),))
COST = CostModel(FAST.curves[0][1], FAST, FAST)


def test_a_call_has_as_many_images_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room for two images of one size, or for one of another."""
    given: list[float | None] = []
    calls: list[tuple[LatentShape, int]] = []
    decode_really = SimulatedDecoder.decode

    def room(_: object, __: object, share: float | None, most: int, num_models: int) -> ImageRoom:
        given.append(share)
        return ImageRoom(most, per_latent=1.0, num_bytes=2 * 16 * 16)

    def counted(self: SimulatedDecoder, latents: Sequence[torch.Tensor]) -> list[Pixels | StageError]:
        height, width = latents[0].shape[1:]
        calls.append(((height, width), len(latents)))
        return decode_really(self, latents)

    async def decode(*shapes: LatentShape) -> None:
        measurement, model = (
            CostMeasurement(((16, 16), (16, 32)), COST),
            model_ref(AppConfig().model.source()),
        )
        decoder = VaeDecoder(model, Placement("simulated"), 4, 1, 1, 0.25, 1.0, measurement)
        assert max(count for _, count in calls) == 1, "to warm up: as many as have room in each size"
        calls.clear()
        latents = [torch.zeros(4, *shape) for shape in shapes]
        image_format = ImageFormat("image/png")
        await asyncio.gather(*(decoder.decode(model, one, image_format, {}, False) for one in latents))

    monkeypatch.setattr(vae_decoder, "image_room", room)
    monkeypatch.setattr(SimulatedDecoder, "decode", counted)
    asyncio.run(decode(*4 * [(16, 16)], *4 * [(16, 32)]))
    assert given == [0.25]
    most = {(16, 16): 2, (16, 32): 1}
    assert all(count <= most[shape] for shape, count in calls)
    assert sum(count for _, count in calls) == 8
    assert ((16, 16), 2) in calls
