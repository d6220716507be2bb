"""The embedded model's own adapters, and what trains them."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler

from deployments.adapters.files import read_adapter_file
from deployments.adapters.reading import digest_of, read_weights
from deployments.adapters.targets import ModelTargets, targets_of_model
from deployments.engine.adapters import Weights
from deployments.engine.model_source import ModelSource
from tests.shapes import distil, evaluate, low_rank, scenes
from tests.tiny_models import SHAPES_MODEL

ADAPTERS = SHAPES_MODEL / "adapters"
MAX_BYTES = 1_000_000


@pytest.fixture(scope="module")
def model() -> ModelTargets:
    return targets_of_model(ModelSource(str(SHAPES_MODEL)))


def weights_of(path: Path, model: ModelTargets) -> Weights:
    return read_weights(path, digest_of(path), "unet", model)


@pytest.mark.parametrize("name", ["lcm", "stripes"])
def test_an_embedded_adapter_is_a_small_lora_of_all_of_the_unet(name: str, model: ModelTargets) -> None:
    path = ADAPTERS / f"{name}.safetensors"
    found = read_adapter_file(path, model)
    assert found.num_bytes <= MAX_BYTES
    assert found.ranks == {"unet": low_rank.RANK}
    assert not found.dense
    weights = weights_of(path, model)
    assert weights.keys() == model.parts["unet"].keys()
    assert all((layer.b @ layer.a).any() for layer in weights.values())


def test_a_saved_adapter_adds_what_was_learned(tmp_path: Path, model: ModelTargets) -> None:
    torch.manual_seed(0)
    unet = distil.UNet2DConditionModel.from_pretrained(SHAPES_MODEL / "unet", torch_dtype=torch.float32)
    before = {name: unet.get_submodule(name).weight.clone() for name in model.parts["unet"]}
    low_rank.add_adapter(unet)
    for change in low_rank.changes_of(unet).values():
        torch.nn.init.normal_(change.up, std=0.1)
    low_rank.save_adapter(unet, tmp_path / "adapter.safetensors")
    for name, layer in weights_of(tmp_path / "adapter.safetensors", model).items():
        learned = unet.get_submodule(name).weight - before[name]
        torch.testing.assert_close((layer.b @ layer.a).view_as(learned), learned, rtol=0.01, atol=0.005)


@pytest.mark.parametrize("num_inference_steps", [2, 4, 8])
def test_the_student_learns_at_the_samplers_timesteps(num_inference_steps: int) -> None:
    sampler = LCMScheduler()
    sampler.set_timesteps(num_inference_steps)
    assert distil.timesteps_of(num_inference_steps) == sampler.timesteps.tolist()


def test_a_target_is_the_nearest_of_a_prompts_scenes() -> None:
    candidates = torch.randn(3, 5, 8, 16, 16)
    wanted = candidates[torch.arange(3), torch.tensor([4, 0, 2])]
    assert torch.equal(distil.nearest(wanted + 0.1, candidates), wanted)


def test_the_student_learns_from_its_own_latents_and_changes_only_the_adapter() -> None:
    torch.manual_seed(0)
    student = distil.UNet2DConditionModel.from_pretrained(SHAPES_MODEL / "unet", torch_dtype=torch.float32)
    low_rank.add_adapter(student)
    scenes_of_prompts = torch.randn(3, 5, 8, 16, 16)
    distillation = distil.Distillation(scenes_of_prompts, torch.randn(3, 77, 128))
    states = distillation.met(student, distil.timesteps_of(8))
    assert states.timesteps.tolist() == [t for t in distil.timesteps_of(8) for _ in range(2)]
    assert all((scenes_of_prompts == target).all(dim=(2, 3, 4)).any() for target in states.targets)
    assert torch.equal(states.targets[:2], states.targets[2:4])  # noise alone says nothing of its target
    distillation.loss(student, states).backward()
    learned = {name for name, weight in student.named_parameters() if weight.grad is not None}
    assert learned == {name for name in dict(student.named_parameters()) if name.endswith((".down", ".up"))}


@pytest.mark.parametrize("style", scenes.STYLES)
def test_drawn_scenes_are_judged_right_and_in_their_style_only(style: str) -> None:
    rng = random.Random(0)
    for _ in range(5):
        scene = scenes.random_scene(rng)
        if style == "striped" and evaluate.hides_in_stripes(scene):
            continue
        pixels = np.asarray(scenes.draw(scene.background, scenes.place(scene, rng), style))
        verdict = evaluate.judge(scene, pixels)
        assert verdict.colour
        assert verdict.shape
        assert verdict.position is not False
        assert [evaluate.is_in_style(pixels, other) for other in scenes.STYLES] == [
            other == style for other in scenes.STYLES
        ]
