"""The cost model: the fit to timings, values in between, the knee, and estimates."""

import random

import pytest

from deployments.engine.cost import (
    MAX_ROUNDS,
    MIN_ROUNDS,
    CostModel,
    Curve,
    StageCost,
    counts_to_measure,
    fit_curve,
    measure,
    measure_shapes,
)

COUNTS = [1, 2, 4, 8, 16]
COST = CostModel(
    encode=Curve(0.010, 1, 0.001),
    forward=StageCost((((16, 16), Curve(0.020, 2, 0.010)),)),
    decode=StageCost((((16, 16), Curve(0.030, 1, 0.030)),)),
)


class Device:
    """Takes seconds of its own clock, and ten times as many in disturbed calls."""

    def __init__(self, seconds: dict[int, float], disturbed: dict[int, set[int]] | None = None) -> None:
        self._seconds = seconds
        self._disturbed = disturbed or {}
        self._now = 0.0
        self.calls = dict.fromkeys(seconds, 0)

    def __call__(self, count: int) -> None:
        slow = self.calls[count] in self._disturbed.get(count, ())
        self.calls[count] += 1
        self._now += self._seconds[count] * (10 if slow else 1)

    def clock(self) -> float:
        return self._now


@pytest.mark.parametrize(
    "truth",
    [Curve(0.01, 1, 0.004), Curve(0.02, 4, 0.005), Curve(0.02, 8, 0.001)],
    ids=["rises at once", "flat up to 4", "flat up to 8"],
)
def test_the_fit_finds_the_curve_that_made_the_timings(truth: Curve) -> None:
    fitted = fit_curve({count: truth.seconds(count) for count in COUNTS})
    for count in range(1, 33):
        assert fitted.seconds(count) == pytest.approx(truth.seconds(count))
    assert max(abs(residual) for _, residual in fitted.residuals) < 1e-9


def test_noise_is_averaged_and_reported() -> None:
    truth, rng = Curve(0.006, 1, 0.004), random.Random(0)
    noisy = {count: truth.seconds(count) * rng.uniform(0.95, 1.05) for count in range(1, 17)}
    fitted = fit_curve(noisy)
    for count in range(1, 17):
        assert fitted.seconds(count) == pytest.approx(truth.seconds(count), rel=0.03)
        assert dict(fitted.residuals)[count] == pytest.approx(noisy[count] / fitted.seconds(count) - 1)


def test_a_device_is_never_said_to_be_faster_with_more_to_do() -> None:
    fitted = fit_curve({1: 0.02, 2: 0.01, 4: 0.005})
    assert fitted.slope_s == 0
    assert fitted.seconds(100) == fitted.seconds(1) > 0


def test_of_one_count_alone_more_items_take_longer_in_proportion() -> None:
    """As where a GPU has room for one image: a decoder makes several one after another."""
    assert [fit_curve({1: 0.5}).seconds(count) for count in (1, 4)] == pytest.approx([0.5, 2.0])
    fitted = fit_curve({4: 0.02})
    assert [fitted.seconds(count) for count in (1, 4, 8)] == pytest.approx([0.02, 0.02, 0.04])
    assert fitted.residuals == ((4, 0.0),)


def test_a_shape_that_was_not_measured_counts_by_area() -> None:
    assert COST.forward.seconds((16, 32), 4) == pytest.approx(2 * COST.forward.seconds((16, 16), 4))


def test_the_knee_is_where_more_rows_stop_paying() -> None:
    """Up to 8 rows cost as much as one; then each costs as much as in a full forward."""
    assert Curve(0.08, 8, 0.01).knee(range(1, 17)) == 8


def test_the_knee_is_one_of_the_counts_that_may_be() -> None:
    assert Curve(0.08, 8, 0.01).knee([3, 6, 12]) == 12


def test_the_most_that_fits_into_a_time() -> None:
    curve = Curve(0.03, 2, 0.01)
    assert [curve.most_within(seconds) for seconds in (0.001, 0.03, 0.045, 0.101)] == [1, 2, 3, 9]


def test_measuring_takes_turns() -> None:
    calls: list[tuple[tuple[int, int], int]] = []
    counts = counts_to_measure(6)
    assert counts == [1, 2, 4, 6]
    cost = measure_shapes(lambda shape, rows: calls.append((shape, rows)), [(16, 16), (32, 16)], counts)
    assert [shape for shape, _ in cost.curves] == [(16, 16), (32, 16)]
    for shape in [(16, 16), (32, 16)]:
        rounds = [rows for called, rows in calls if called == shape]
        assert rounds[:4] == counts[::-1], "each is warmed up first, the largest before all"
        assert all(sorted(rounds[start : start + 4]) == counts for start in range(0, len(rounds), 4))


def test_a_disturbance_is_not_taken_for_the_cost() -> None:
    """A busy machine only adds to timings, so the best of the rounds counts."""
    device = Device({1: 1.0, 2: 2.0}, disturbed={2: {1, 2}})
    curve = measure(device, [1, 2], device.clock)
    assert curve.seconds(2) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("seconds", "rounds"),
    [({1: 1.0, 2: 2.0, 4: 4.0}, MIN_ROUNDS), ({1: 1.0, 2: 3.0, 4: 3.1, 8: 9.0}, MAX_ROUNDS)],
    ids=["a line", "no line"],
)
def test_measuring_stops_when_the_fit_is_close(seconds: dict[int, float], rounds: int) -> None:
    device = Device(seconds)
    measure(device, list(seconds), device.clock)
    assert device.calls == dict.fromkeys(seconds, 1 + rounds)


def test_no_cost_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no device takes base_s=0\.0"):
        Curve(0.0, 1, 0.1)
    with pytest.raises(ValueError, match="at least one latent shape"):
        StageCost(())


def test_tables_are_for_people() -> None:
    table = StageCost((((16, 24), fit_curve({1: 0.01, 2: 0.02})),)).table("rows")
    assert table.splitlines()[0] == "latents 16x24:"
    assert table.splitlines()[2].split() == ["1", "10.00", "100.0", "+0.0%"]
