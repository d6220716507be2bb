"""The engine: other requests in the batch do not show in a picture, and every request gets a turn."""

import random
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from deployments.engine.engine import Engine
from deployments.engine.messages import DenoisedLatents, StepProgress
from deployments.engine.samplers import SAMPLERS, UnsupportedSamplerError
from deployments.engine.step_scheduler import MAX_TURNS_WAITED
from tests.conftest import FORWARD_COST, LoadedModel, finish, finish_with_checkpoints

Load = Callable[..., LoadedModel]
FAMILIES = ("sd1", "sd2", "sdxl")


def close(left: torch.Tensor, right: torch.Tensor) -> bool:
    return bool((left - right).abs().max() < 2e-4 * right.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_any_mix_shares_one_forward(load_model: Load, family: str) -> None:
    """All samplers, with different steps, scales and seeds, share one forward, each as if alone."""
    model = load_model(family)
    requests = [
        model.request(
            sampler,
            sampler=sampler,
            num_inference_steps=3 + index % 3,
            guidance_scale=[1.0, 4.0, 7.5][index % 3],
        )
        for index, sampler in enumerate(SAMPLERS)
    ]
    alone = {}
    for request in requests:
        engine = model.engine(max_rows=64, rows_per_forward=64)
        engine.add(request)
        alone |= finish(engine)
    engine = model.engine(max_rows=64, rows_per_forward=64)
    for request in requests:
        engine.add(request)
    forward = engine.step().forward
    assert forward.num_requests == len(SAMPLERS)
    assert forward.rows == sum(request.rows_at(0) for request in requests)
    together = finish(engine)
    for request in requests:
        assert close(together[request.request_id], alone[request.request_id]), request.request_id


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_late_joiner_gets_the_image_it_gets_alone(
    load_model: Load, family: str, deterministic: bool
) -> None:
    """Its neighbours have other samplers, and some abort midway. The bytes are equal if deterministic."""
    model = load_model(family)
    wanted = model.request("wanted", sampler="DPM++ 2M SDE", deterministic=deterministic)
    engine = model.engine()
    engine.add(wanted)
    [alone] = finish(engine).values()

    engine = model.engine()
    for index, sampler in enumerate(["Euler a", "Heun", "UniPC"]):
        changes = {
            "sampler": sampler,
            "seed": 100 + index,
            "num_inference_steps": 9,
            "deterministic": deterministic,
        }
        engine.add(model.request(f"neighbour {index}", "a green circle", **changes))
    engine.step()
    engine.step()
    engine.add(wanted)
    engine.step()
    engine.abort("neighbour 0")
    engine.step()
    engine.abort("neighbour 2")
    late = finish(engine)
    assert set(late) == {"wanted", "neighbour 1"}
    assert torch.equal(late["wanted"], alone) if deterministic else close(late["wanted"], alone)


def test_deterministic_images_do_not_depend_on_slot_or_neighbours(load_model: Load) -> None:
    model = load_model("shapes")
    wanted = model.request("wanted", deterministic=True)
    results = []
    for place in range(4):
        engine = model.engine()
        for index in range(4):
            other = model.request(
                f"other {index}", "a small white square", seed=place * 10 + index, deterministic=True
            )
            engine.add(wanted if index == place else other)
        assert engine.step().forward.forward_rows == 8
        results.append(finish(engine)["wanted"])
    assert all(torch.equal(result, results[0]) for result in results)


def test_when_guidance_ends_another_request_takes_the_free_row(load_model: Load) -> None:
    model = load_model("shapes")
    engine = model.engine(max_rows=4, rows_per_forward=4)
    for index in range(3):
        half = model.request(f"half {index}", num_inference_steps=4, guidance_end=0.5, seed=index)
        engine.add(half)
    forwards = []
    while engine.num_requests:
        forward = engine.step().forward
        forwards.append((forward.num_requests, forward.rows))
    two_guided, two_without_and_one_guided, last = (2, 4), (3, 4), (1, 1)
    assert forwards == [*[two_guided] * 2, *[two_without_and_one_guided] * 2, *[last] * 2]


def test_a_guidance_interval_shows_in_no_neighbour_and_survives_a_checkpoint(load_model: Load) -> None:
    model = load_model("shapes")
    wanted = model.request(
        "wanted",
        sampler="Heun",
        deterministic=True,
        guidance_start=0.2,
        guidance_end=0.6,
        num_inference_steps=3,
    )
    engine = model.engine(checkpoint_interval_s=0.0)
    engine.add(wanted)
    alone, checkpoints = finish_with_checkpoints(engine)
    assert len(checkpoints) == wanted.num_calls - 1
    for checkpoint in checkpoints:
        engine = model.engine()
        engine.add(replace(wanted, resume_from=checkpoint))
        for index in range(3):
            others = {"deterministic": True, "guidance_end": (1 + index) / 4, "seed": index}
            engine.add(model.request(f"other {index}", "a green circle", **others))
        assert torch.equal(finish(engine)["wanted"], alone), checkpoint.call


def test_mixed_latent_shapes_all_finish_and_none_waits_past_the_bound(load_model: Load) -> None:
    """An open-loop load has four shapes. No group is passed over more often than the scheduler's bound."""
    model = load_model("sd1")
    engine = model.engine(max_rows=4, rows_per_forward=4)
    rng = random.Random(0)
    sizes = [(16, 16), (16, 24), (24, 16), (24, 24)]
    factor = model.info.scale_factor
    pending = [
        model.request(
            f"{index}",
            height=height * factor,
            width=width * factor,
            num_inference_steps=rng.randint(2, 12),
            guidance_scale=rng.choice([1.0, 5.0]),
        )
        for index in range(40)
        for height, width in [rng.choice(sizes)]
    ]
    shapes = {request.request_id: (request.height // factor, request.width // factor) for request in pending}
    present: set[str] = set()
    waited: dict[tuple[int, int], int] = {}
    done = set()
    while pending or engine.num_requests:
        for request in [pending.pop() for _ in range(min(len(pending), rng.choice([0, 1, 2])))]:
            engine.add(request)
            present.add(request.request_id)
        if not engine.num_requests:
            continue
        report = engine.step()
        groups = {shapes[request_id] for request_id in present}
        waited = {
            shape: 0 if shape == report.forward.latent_shape else waited.get(shape, 0) + 1 for shape in groups
        }
        assert max(waited.values()) <= (MAX_TURNS_WAITED + 1) * (len(sizes) - 1)
        finished = {event.request_id for event in report.events if isinstance(event, DenoisedLatents)}
        done |= finished
        present -= finished
    assert done == set(shapes)


def test_a_short_request_is_not_held_up_by_long_ones(load_model: Load) -> None:
    model = load_model("sd1")
    engine = model.engine(max_rows=4, rows_per_forward=4)
    for index in range(4):
        engine.add(model.request(f"long {index}", num_inference_steps=40))
    engine.step()
    engine.add(model.request("short", num_inference_steps=2))
    order = list(finish(engine))
    assert order[0] == "short"


def test_an_aborted_request_frees_its_rows_in_the_next_step(load_model: Load) -> None:
    model = load_model("sd1")
    engine = model.engine()
    engine.add(model.request("stays"))
    engine.add(model.request("goes"))
    assert engine.step().forward.rows == 4
    engine.abort("goes")
    assert engine.step().forward.rows == 2
    assert set(finish(engine)) == {"stays"}


def test_without_guidance_a_request_is_one_row(load_model: Load) -> None:
    model = load_model("sdxl")
    engine = model.engine()
    engine.add(model.request("plain", guidance_scale=1.0))
    assert engine.step().forward.rows == 1


def test_a_forward_tells_what_it_did_for_each_request(load_model: Load) -> None:
    """Heun calls the model twice for each step but the last. Guidance ends before the last step."""
    model = load_model("sd1")
    engine = model.engine()
    engine.add(model.request("heun", sampler="Heun", num_inference_steps=3, guidance_scale=1.0))
    engine.step()
    engine.add(model.request("euler", sampler="Euler", num_inference_steps=3, guidance_end=0.6))
    forwards = [engine.step().forward for _ in range(4)]
    assert [{(one.request_id, one.step, one.rows) for one in forward.steps} for forward in forwards] == [
        {("heun", 2, 1), ("euler", 1, 2)},
        {("heun", 2, 1), ("euler", 2, 2)},
        {("heun", 3, 1), ("euler", 3, 1)},
        {("heun", 3, 1)},
    ]
    assert [forward.rows for forward in forwards] == [3, 3, 2, 1]


def test_previews_come_at_the_steps_asked_for_and_near_the_result(load_model: Load) -> None:
    model = load_model("shapes")
    engine = model.engine()
    engine.add(model.request("image", sampler="Heun", num_inference_steps=8, preview_steps=frozenset({3, 6})))
    events = []
    while engine.num_requests:
        events += engine.step().events
    previews = [event for event in events if isinstance(event, StepProgress)]
    assert [preview.step for preview in previews] == [3, 6]
    final = events[-1]
    assert isinstance(final, DenoisedLatents)
    errors = [float((preview.preview_latents - final.latents).square().mean()) for preview in previews]
    assert errors[1] < errors[0]
    assert errors[1] < float(final.latents.square().mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_to_static_shapes_does_not_show(load_model: Load, family: str) -> None:
    """Three guided requests and a plain one are seven rows, padded to eight; later there are fewer."""
    model = load_model(family)
    requests = [
        model.request(
            f"{index}",
            seed=index,
            num_inference_steps=3 + index,
            guidance_scale=[5.0, 1.0, 4.0, 7.0][index],
            sampler="Euler a",
        )
        for index in range(4)
    ]
    images = []
    for row_counts in ((), (2, 4, 8, 16)):
        engine = model.engine(row_counts=row_counts)
        for request in requests:
            engine.add(request)
        forward_rows, latents = [], {}
        while engine.num_requests:
            report = engine.step()
            forward_rows.append(report.forward.forward_rows)
            assert report.forward.predicted_s == FORWARD_COST.seconds((16, 16), report.forward.forward_rows)
            events = [event for event in report.events if isinstance(event, DenoisedLatents)]
            latents |= {event.request_id: event.latents for event in events}
        images.append(latents)
        assert forward_rows == ([8, 8, 8, 8, 4, 2] if row_counts else [7, 7, 7, 5, 4, 2])
    assert all(close(images[1][name], latents) for name, latents in images[0].items())


def test_a_larger_shape_gets_fewer_rows(load_model: Load) -> None:
    """The row cap is for the usual shape: four times the area gets a quarter of the rows."""
    model = load_model("sd1")
    engine = model.engine(max_rows=16, rows_per_forward=16)
    for index in range(8):
        engine.add(model.request(f"large {index}", height=64, width=64))
    assert engine.step().forward.rows == 4


def test_a_far_deadline_is_no_wish_to_be_last(load_model: Load) -> None:
    model = load_model("sd1")
    engine = model.engine(max_rows=2, rows_per_forward=2)
    engine.add(model.request("far", deadline=time.time() + 3600))
    for index in range(3):
        engine.add(model.request(f"plain {index}"))
    assert next(iter(finish(engine))) == "far"


def test_what_cannot_be_denoised_is_refused_at_the_door(load_model: Load) -> None:
    model = load_model("sd1")
    engine: Engine = model.engine()
    with pytest.raises(UnsupportedSamplerError):
        engine.add(model.request("lcm", sampler="LCM", num_inference_steps=60))
    engine.add(model.request("once"))
    with pytest.raises(ValueError, match="'once' is being denoised already"):
        engine.add(model.request("once"))
    assert engine.num_requests == 1
