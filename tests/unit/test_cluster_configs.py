"""The Serve configurations in cluster/: every key is right, and every replica fits on the GPUs."""

import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import pytest

from serve.checks import check
from serve.config.app import AppConfig
from serve.config.model import PROJECT_FOLDER

MULTI_GPU = sorted((PROJECT_FOLDER / "cluster").glob("serve_config.*.yaml"))
REHEARSALS = sorted((PROJECT_FOLDER / "cluster" / "rehearsal").glob("*.yaml"))
OVERLAYS = sorted((PROJECT_FOLDER / "cluster" / "kuberay" / "overlays").glob("*/serve_config.yaml"))
[PRODUCTION] = (path for path in OVERLAYS if path.parent.name == "production")
# TFLOP per U-Net row and per decoded image at the model's own size, by torch's flop counter.
TFLOP = {"sdxl": (6.761, 10.470), "sd15": (0.803, 2.515)}
# The resulting denoiser.max_rows.
ROWS = {"sdxl": 16, "sd15": 32, "shapes": 32}

Free = tuple[int, ...]  # free share of each GPU in Ray's unit, a ten-thousandth
WHOLE = 10_000


def best_fit(free: Free, share: int) -> Iterable[int]:
    """Ray's choice for a replica on one machine: the fullest GPU that has room (resource_instance_set.cc)."""
    return [min((index for index, room in enumerate(free) if room >= share), key=free.__getitem__)]


def anywhere(free: Free, share: int) -> Iterable[int]:
    """Possible places for a replica when each GPU is a separate machine."""
    return [index for index, room in enumerate(free) if room >= share]


def all_find_a_place(
    num_gpus: int, shares: dict[float, int], choice: Callable[[Free, int], Iterable[int]]
) -> bool:
    """Whether all replicas fit, in whatever order they come and wherever Ray may put them."""

    @cache
    def fits(free: Free, left: tuple[tuple[int, int], ...]) -> bool:
        for index, (share, count) in enumerate(left):
            if max(free) < share:
                return False
            rest = (*left[:index], *([(share, count - 1)] if count > 1 else []), *left[index + 1 :])
            for gpu in choice(free, share):
                if not fits(tuple(sorted((*free[:gpu], free[gpu] - share, *free[gpu + 1 :]))), rest):
                    return False
        return True

    return fits((WHOLE,) * num_gpus, tuple((round(share * WHOLE), count) for share, count in shares.items()))


def shares_of(config: AppConfig) -> dict[float, int]:
    """The most replicas of each share."""
    shares = config.num_gpus()
    assert len(set(shares.values())) == len(shares)
    return {shares[name]: stage.max_replicas for name, stage in config.stages.items()}


def num_gpus_of(path: Path) -> int:
    named = re.search(r"-(\d+)gpu", path.name)
    assert named is not None
    return int(named[1])


def test_what_cannot_be_placed_in_every_order_is_noticed() -> None:
    every_stage_on_every_gpu = {0.8: 8, 0.15: 8, 0.05: 8}
    assert not all_find_a_place(8, every_stage_on_every_gpu, best_fit)
    split = {1.0: 7, 0.4: 2, 0.1: 2}
    assert all_find_a_place(8, split, best_fit)
    assert not all_find_a_place(8, split, anywhere)


@pytest.mark.parametrize(
    "path", [*MULTI_GPU, *OVERLAYS, *REHEARSALS], ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_every_key_is_right(path: Path) -> None:
    [config] = check(path)
    assert config.limits.max_queue >= config.denoiser.max_replicas * ROWS[config.model.id] // 2


@pytest.mark.parametrize("path", [*MULTI_GPU, PRODUCTION], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_one_ingress_goes_on_when_another_dies(path: Path) -> None:
    [config] = check(path)
    assert config.ingress.min_replicas >= 2


def test_there_are_configurations() -> None:
    assert {num_gpus_of(path) for path in MULTI_GPU} == {4, 8}
    assert len(REHEARSALS) == 2
    assert {path.parent.name for path in OVERLAYS} == {"dev", "gpu", "production"}


@pytest.mark.parametrize("path", MULTI_GPU, ids=lambda path: path.name)
def test_all_replicas_find_a_place_and_no_gpu_is_idle(path: Path) -> None:
    [config] = check(path)
    shares, num_gpus = shares_of(config), num_gpus_of(path)
    assert all_find_a_place(num_gpus, shares, best_fit)
    assert not all_find_a_place(num_gpus - 1, shares, best_fit)
    for stage in (config.encoder, config.denoiser, config.decoder):
        assert stage.min_replicas == stage.max_replicas
    total = sum(share * count for share, count in shares.items())
    if config.num_gpus()["denoiser"] == 1:  # the denoisers leave whole GPUs, and the other stages fill them
        assert total == pytest.approx(num_gpus)
    assert f"= {total:g}" in path.read_text()


@pytest.mark.parametrize("path", MULTI_GPU, ids=lambda path: path.name)
def test_the_decoders_keep_up_and_the_comments_say_by_how_much(path: Path) -> None:
    [config] = check(path)
    forward, decode = TFLOP[config.model.id]
    rows = config.defaults.num_inference_steps * 2
    denoisers_per_decoder = rows * forward / decode
    busy = config.denoiser.max_replicas / denoisers_per_decoder
    assert busy < config.decoder.max_replicas
    text = " ".join(line.removeprefix("# ") for line in path.read_text().splitlines())
    assert f"{rows * forward:.1f} TFLOP of U-Net and {decode:.1f} of VAE decoding" in text
    assert f"busy with {denoisers_per_decoder:.1f} denoisers" in text
    assert f"{busy:.2f} of a GPU" in text or f"busy for {busy:.0%}" in text


def test_the_documentation_has_the_same_arithmetic() -> None:
    text = (PROJECT_FOLDER / "docs" / "multi-gpu.md").read_text()
    for forward, decode in TFLOP.values():
        for rows in (40, 4):
            per_decoder = rows * forward / decode
            share = decode / (rows * forward + decode)
            line = (
                f"| {rows * forward:.1f} | {decode:.1f} | {share:.1%} | {per_decoder:.1f} | {1 / share:.0f} |"
            )
            assert line in text


def test_denoisers_on_machines_of_their_own_find_a_place_too() -> None:
    [config] = check(PROJECT_FOLDER / "cluster" / "kuberay" / "overlays" / "production" / "serve_config.yaml")
    assert all_find_a_place(config.denoiser.max_replicas, shares_of(config), anywhere)
