"""Checkpoints: an image finished by another engine equals the image that the first would have made."""

import math
import pickle
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from deployments.engine.messages import Checkpoint
from deployments.engine.samplers import SAMPLERS
from tests.conftest import LoadedModel, finish, finish_with_checkpoints
from tests.unit.test_least_slack import CPU_LIKE, Simulation

Load = Callable[..., LoadedModel]


@pytest.mark.parametrize("family", ["shapes", "sd2"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_resumed_from_any_step_the_bytes_are_the_same(load_model: Load, family: str, sampler: str) -> None:
    model = load_model(family)
    wanted = model.request("wanted", sampler=sampler, num_inference_steps=5, deterministic=True)
    engine = model.engine(checkpoint_interval_s=0.0)
    engine.add(wanted)
    undisturbed, checkpoints = finish_with_checkpoints(engine)
    assert [checkpoint.call for checkpoint in checkpoints] == list(range(1, len(checkpoints) + 1))
    for checkpoint in checkpoints:
        travelled = pickle.loads(pickle.dumps(checkpoint))  # like between replicas
        engine = model.engine()
        engine.add(replace(wanted, resume_from=travelled))
        [resumed] = finish(engine).values()
        assert torch.equal(resumed, undisturbed), checkpoint.call


def test_checkpoints_hold_no_more_than_the_sampler_still_reads(load_model: Load) -> None:
    model = load_model("shapes")
    sizes = {}
    for sampler in ("Euler", "DPM++ 2M", "UniPC"):
        engine = model.engine(checkpoint_interval_s=0.0)
        engine.add(model.request(sampler, sampler=sampler, num_inference_steps=8))
        engine.step()
        engine.step()
        [checkpoint] = engine.step().events
        assert isinstance(checkpoint, Checkpoint)
        sizes[sampler] = len(checkpoint.state)
    assert sizes["Euler"] == 1
    assert sizes["Euler"] < sizes["DPM++ 2M"] <= sizes["UniPC"]


def test_checkpoints_come_by_time_and_not_by_step() -> None:
    """A checkpoint comes at the first step that ends 100 ms or more after the last one."""
    simulation = Simulation(CPU_LIKE, checkpoint_interval_s=0.1)
    simulation.add("wanted", steps=20)
    times = []
    while simulation.engine.num_requests:
        report = simulation.engine.step()
        times += [simulation.now - 1000.0 for event in report.events if isinstance(event, Checkpoint)]
    forward_s = CPU_LIKE.seconds(2)
    apart = math.ceil(0.1 / forward_s)
    assert 1 < apart < 10
    assert times == pytest.approx([forward_s * steps for steps in range(apart, 20, apart)], abs=1e-6)


def test_an_isolated_request_shares_no_forward(load_model: Load) -> None:
    model = load_model("shapes")
    engine = model.engine()
    engine.add(model.request("isolated", isolated=True))
    for index in range(3):
        engine.add(model.request(f"other {index}"))
    items, batches = engine.waiting, []
    while engine.num_requests:
        calls = [item.call for item in items]
        engine.step()
        batches.append(
            {item.request.request_id for item, call in zip(items, calls, strict=True) if item.call > call}
        )
    assert {"isolated"} in batches
    assert all(batch == {"isolated"} or "isolated" not in batch for batch in batches)
