"""The parts of benchmarks/peers that decide the comparison; the servers themselves run in the benchmark."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.peers.diffusers_pipeline import MAX_IMAGES_PER_CALL
from benchmarks.peers.images_api import ImageRequest, Settings, read_body
from benchmarks.peers.ray_serve_batch import Waiting, next_group
from benchmarks.peers.simulated_device import MODELLED, SimulatedPipeline, u_net_only
from serve.config.model import CostModelFile


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    opened = asyncio.new_event_loop()
    yield opened
    opened.close()


def waiting(loop: asyncio.AbstractEventLoop, *steps: int) -> list[Waiting]:
    """Requests in order of arrival. The seed of each is its index."""
    return [
        Waiting(ImageRequest("a star", "", seed, Settings(count, 5.0, None, None)), loop.create_future())
        for seed, count in enumerate(steps)
    ]


def seeds_of_next(waiting: list[Waiting]) -> list[int]:
    return [item.request.seed for item in next_group(waiting, lambda item: item.request.settings)]


def test_the_largest_group_goes_next(loop: asyncio.AbstractEventLoop) -> None:
    assert seeds_of_next(waiting(loop, 50, 20, 4, 20)) == [1, 3]


def test_of_equal_groups_the_oldest_goes_next(loop: asyncio.AbstractEventLoop) -> None:
    assert seeds_of_next(waiting(loop, 20, 4, 4, 20)) == [0, 3]


def test_a_group_that_does_not_fit_into_a_call_counts_as_far_as_it_fits(
    loop: asyncio.AbstractEventLoop,
) -> None:
    older = [20] * MAX_IMAGES_PER_CALL
    newer = [4] * (MAX_IMAGES_PER_CALL + 1)
    assert seeds_of_next(waiting(loop, *older, *newer)) == list(range(MAX_IMAGES_PER_CALL))


def test_each_image_of_a_request_has_a_seed_of_its_own() -> None:
    body = {"prompt": "a star", "n": 2, "seed": 7, "size": "64x128", "num_inference_steps": 4}
    settings = Settings(4, 5.0, 64, 128)
    assert read_body(body) == [ImageRequest("a star", "", seed, settings) for seed in (7, 8)]


def test_the_simulated_device_takes_a_forward_for_each_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forwards have two rows per image and take three times the modelled time. The rest takes none."""
    slower = u_net_only(3.0)
    path = tmp_path / "cost_model.json"
    path.write_text(slower.model_dump_json())
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    images = SimulatedPipeline(path)([ImageRequest("a star", "", 1, Settings(4, 5.0, None, None))] * 3)
    modelled = CostModelFile.model_validate_json(MODELLED.read_text()).cost_model
    assert slept == [pytest.approx(4 * 3 * modelled.forward.seconds((64, 64), 6))]
    assert [image.size for image in images] == [(512, 512)] * 3
    assert slower.cost_model.encode.seconds(64) < 1e-6
    assert slower.cost_model.decode.seconds((64, 64), 4) < 1e-6
