"""The cost model: measured points, what lies between them, and the knee."""

import pytest

from deployments.engine.cost import CostModel, measure, row_counts

CURVE = CostModel({(16, 16): ((1, 1.0), (2, 1.1), (4, 1.4), (8, 2.8), (16, 5.6))})


@pytest.mark.parametrize(("rows", "seconds"), [(1, 1.0), (3, 1.25), (8, 2.8), (12, 4.2), (32, 11.2)])
def test_seconds_are_linear_between_and_past_the_points(rows: int, seconds: float) -> None:
    assert CURVE.seconds((16, 16), rows) == pytest.approx(seconds)


def test_a_shape_that_was_not_measured_counts_by_area() -> None:
    assert CURVE.seconds((16, 32), 4) == pytest.approx(2 * 1.4)


def test_the_knee_is_where_more_rows_stop_paying() -> None:
    """4 rows take 1.4 s, 8 rows twice that: nothing is gained beyond four."""
    assert CURVE.knee((16, 16)) == 4


def test_measuring_covers_every_shape_up_to_the_most_rows() -> None:
    calls: list[tuple[tuple[int, int], int]] = []
    model = measure(
        lambda shape, rows: calls.append((shape, rows)), [(16, 16), (32, 16)], max_rows=6, repeats=2
    )
    assert row_counts(6) == [1, 2, 4, 6]
    assert {shape: [rows for rows, _ in curve] for shape, curve in model.curves.items()} == {
        (16, 16): [1, 2, 4, 6],
        (32, 16): [1, 2, 4, 6],
    }
    assert len(calls) == 2 * 4 * 3, "one call to warm up and two to time"
