"""How an engine batches: row counts, the row cap, and estimates of a request alone and among others."""

from dataclasses import replace

import pytest
import torch

from deployments.engine.cost import Curve, StageCost
from deployments.engine.engine_config import EngineConfig
from deployments.engine.step_scheduler import Group

USUAL, OTHER, RARE = (16, 16), (16, 32), (16, 24)
COST = StageCost(((USUAL, Curve(0.020, 2, 0.010)),))
PLAIN = EngineConfig(16, 16, 8, USUAL)
PADDED = replace(PLAIN, row_counts=(2, 4, 8, 16), other_shapes=(OTHER,))


def group(shape: tuple[int, int], deterministic: bool = False) -> Group:
    return Group(shape, deterministic)


def test_row_counts_suit_the_device() -> None:
    config = EngineConfig(24, None, 8, USUAL, row_counts=None)
    assert config.for_device(torch.device("cpu")).row_counts == ()
    assert config.for_device(torch.device("cuda")).row_counts == (1, 2, 4, 6, 8, 12, 16, 24)


def test_the_row_cap_is_a_count_that_forwards_can_have() -> None:
    """The knee of this curve is at 20 rows, which would be padded to 24."""
    cost = StageCost(((USUAL, Curve(0.018, 2, 0.006)),))
    plain = EngineConfig(32, None, 8, USUAL)
    padded = replace(plain, row_counts=(2, 4, 8, 16, 24, 32), other_shapes=(OTHER,))
    assert plain.row_cap(group(USUAL), cost) == 20
    assert padded.row_cap(group(USUAL), cost) == 24
    assert padded.row_cap(group(OTHER), cost) == 8
    assert replace(padded, other_shapes=()).row_cap(group(OTHER), cost) == 12


def test_only_static_shapes_are_padded() -> None:
    assert PADDED.static_shapes == (USUAL, OTHER)
    assert PLAIN.static_shapes == ()
    assert [PADDED.forward_rows(group(shape), 5) for shape in (USUAL, OTHER, RARE)] == [8, 8, 5]
    assert [PADDED.has_static_inputs(group(shape)) for shape in (USUAL, OTHER, RARE)] == [True, True, False]
    assert PADDED.forward_rows(group(RARE, deterministic=True), 5) == 8
    assert PADDED.has_static_inputs(group(RARE, deterministic=True))
    assert not PLAIN.has_static_inputs(group(USUAL))


def test_padded_forwards_cost_what_they_are_padded_to() -> None:
    of_rows = {rows: COST.seconds(USUAL, rows) for rows in (3, 4, 16, 17)}
    assert PLAIN.seconds(group(USUAL), COST, 3) == of_rows[3]
    assert PADDED.seconds(group(USUAL), COST, 3) == of_rows[4]
    assert PADDED.seconds(group(USUAL), COST, 17) == of_rows[17]
    assert PADDED.seconds(group(RARE), COST, 3) == pytest.approx(1.5 * of_rows[3])


def test_a_forward_of_a_rank_is_padded_to_the_next_bucket() -> None:
    config = replace(PLAIN, max_rank=128)
    assert [config.forward_rank(rank) for rank in (0, 16, 48, 128)] == [0, 16, 64, 128]


def test_estimates() -> None:
    """Ten calls of two rows alone; beside six rows of others; two images; eight where four rows fit."""

    def denoise_s(
        config: EngineConfig, num_images: int = 1, other_rows: int = 0, fixed: bool = False
    ) -> float:
        return config.denoise_s(group(USUAL, fixed), COST, {2: 10}, num_images, other_rows)

    assert denoise_s(PLAIN) == pytest.approx(10 * 0.020)
    assert denoise_s(PLAIN, other_rows=6) == pytest.approx(10 * 0.080)
    assert denoise_s(PLAIN, num_images=2) == pytest.approx(10 * 0.040)
    assert denoise_s(replace(PLAIN, rows_per_forward=4), num_images=8) == pytest.approx(4 * 10 * 0.040)
    assert denoise_s(PLAIN, fixed=True) == pytest.approx(10 * 0.080)
    assert denoise_s(PLAIN, num_images=5, fixed=True) == pytest.approx(2 * 10 * 0.080)
    assert denoise_s(PADDED, other_rows=3) == pytest.approx(10 * 0.080), "five rows are padded to eight"
    adapted = replace(COST, adapted=((16, 1.5), (128, 2.0)))
    config = replace(PLAIN, max_rank=128)
    assert config.denoise_s(group(USUAL), adapted, {2: 10}, 1, rank=16) == pytest.approx(10 * 1.5 * 0.020)
