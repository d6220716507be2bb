"""Requests with a second pass: what each pass is, and what both come to."""

import pytest

from deployments.engine.cost import CostModel, Curve, StageCost
from serve.calls.denoise_requests import denoise_request
from serve.calls.image_metadata import image_metadata
from serve.capacity.estimator import Estimator
from serve.config.app import AppConfig
from serve.generation import GenerationRequest, HiresPass
from tests.generation_requests import generation_request
from tests.unit.test_images_schema import INFO

HIRES = HiresPass(
    upscaler="lanczos",
    scale=2.0,
    height=256,
    width=256,
    latent_shape=(32, 32),
    strength=0.5,
    num_inference_steps=20,
    num_calls=10,
)


def request(**changes: object) -> GenerationRequest:
    return generation_request(**{"hires": HIRES, "num_images": 2, **changes})


def test_the_second_pass_is_the_first_in_another_size() -> None:
    first, second = request().passes
    assert (first.height, first.strength, first.num_steps) == (128, None, 10)
    assert (second.height, second.strength, second.num_steps) == (256, 0.5, 10)
    assert (first.seed, first.sampler) == (second.seed, second.sampler)
    assert (request().steps_per_image, request().output_size) == (20, (256, 256))
    assert [request().steps_before(in_pass) for in_pass in (0, 1)] == [0, 10]


@pytest.mark.parametrize(
    ("num_previews", "expected"), [(0, [[], []]), (1, [[], []]), (2, [[7], [3]]), (3, [[5], [5]])]
)
def test_previews_are_spaced_over_both(num_previews: int, expected: list[list[int]]) -> None:
    """One at the end of the first pass would be its last step, after which there are only latents."""
    wanted = request(num_previews=num_previews)
    steps = [
        sorted(denoise_request(wanted, "", 0, in_pass, None, None, None).preview_steps)  # type: ignore[arg-type]
        for in_pass in (0, 1)
    ]
    assert steps == expected


def test_work_and_time_are_of_both() -> None:
    cost = CostModel(
        Curve(0.01, 2, 0.0),
        StageCost((((16, 16), Curve(0.01, 1, 0.01)),)),
        StageCost((((16, 16), Curve(0.02, 1, 0.02)),)),
    )
    estimator = Estimator(AppConfig().engine_config(INFO))
    whole, first = request(), request(hires=None)
    second = generation_request(
        num_images=2,
        height=256,
        width=256,
        latent_shape=(32, 32),
        strength=0.5,
        num_inference_steps=20,
        num_calls=10,
    )
    assert estimator.work_s(whole, cost) == pytest.approx(
        estimator.work_s(first, cost) + estimator.work_s(second, cost)
    )
    texts, decoded, picture = 0.01, 4 * 0.04, 4 * 0.45 * 0.04
    assert estimator.latency_s(whole, cost) == pytest.approx(
        estimator.latency_s(first, cost) + estimator.latency_s(second, cost) - texts + picture
    )
    assert decoded > picture


def test_a_pass_has_its_part_of_the_work() -> None:
    wanted = request(work_s=10.0)
    parts = [
        denoise_request(wanted, "", 0, in_pass, None, None, None).work_s  # type: ignore[arg-type]
        for in_pass in (0, 1)
    ]
    assert parts == [1.0, 4.0], "one of two images; four times as many latents in as many calls"


def test_guidance_in_one_pass_alone_needs_the_negative_prompt() -> None:
    """Of three calls none is between 0.5 and 0.6, and of ten there is one."""
    wanted = request(num_inference_steps=3, num_calls=3, guidance_start=0.5, guidance_end=0.6)
    assert [one.is_guided for one in wanted.passes] == [False, True]
    assert wanted.needs_negative
    assert wanted.rows_per_image == 2


def test_the_file_says_both() -> None:
    text = image_metadata(request(), 7)
    assert (text["hires_scale"], text["hires_strength"], text["num_inference_steps"]) == ("2.0", "0.5", "10")
    assert "Denoising strength: 0.5, Hires upscale: 2.0, Hires steps: 20" in text["parameters"]
