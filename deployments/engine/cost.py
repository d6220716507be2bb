"""The cost model: device time in seconds, measured on this device and fitted to a curve.

The row cap, the order of turns and the refusal of unreachable deadlines are computed from it.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from deployments.engine.messages import LatentShape

# The knee is the fewest rows with this share of the best throughput. In a simulation with the embedded
# model's curve, a cap at 90% lost 8% of the capacity and had three times the latency at 90% load: requests
# that do not fit wait outside, which costs more than a slower forward.
KNEE_THROUGHPUT = 0.98
# Measuring continues until the fit has at most this relative error at every point, or for MAX_ROUNDS. Other
# work on the machine while a server starts only adds to timings, so the minima improve with time.
CLOSE_FIT = 0.05
MIN_ROUNDS, MAX_ROUNDS = 3, 12
# A VAE's encoder in decoders, by floating-point operations: SD 1.12 of 2.51 TFLOP, SDXL 4.88 of 10.47.
_ENCODED_PICTURE = 0.45


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds per call over `count` rows (or images, or texts): flat at first, then a straight line.

    base_s: seconds up to flat_count; slope_s: seconds for each further item
    residuals: (count, measured / fitted - 1) at every measured count
    """

    base_s: float
    flat_count: int
    slope_s: float
    residuals: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        if self.base_s <= 0 or self.slope_s < 0 or self.flat_count < 1:
            raise ValueError(
                f"no device takes base_s={self.base_s}, slope_s={self.slope_s}, flat_count={self.flat_count}"
            )

    def seconds(self, count: int) -> float:
        return self.base_s + self.slope_s * max(0, count - self.flat_count)

    def seconds_each(self, count: int) -> float:
        """Seconds per item in a call of `count` items."""
        return self.seconds(count) / count

    def knee(self, counts: Sequence[int]) -> int:
        """The lowest count that reaches KNEE_THROUGHPUT times the best throughput. counts: rising"""
        best = max(count / self.seconds(count) for count in counts)
        return next(count for count in counts if count / self.seconds(count) >= KNEE_THROUGHPUT * best)

    def most_within(self, seconds: float) -> int:
        """The most items that fit into a call of that many seconds, at least one."""
        if seconds < self.base_s:
            return 1
        if self.slope_s == 0:
            return max((count for count, _ in self.residuals), default=self.flat_count)
        return self.flat_count + int((seconds - self.base_s) / self.slope_s)

    def table(self, unit: str) -> str:
        """A table to read, with one line for every measured count."""
        lines = [f"{unit:>6} {'ms':>8} {'per second':>10} {'fit misses':>10}"]
        for count, residual in self.residuals:
            seconds = self.seconds(count)
            percent = round(100 * residual, 1) + 0.0  # no minus before a zero
            lines.append(f"{count:>6} {1000 * seconds:>8.2f} {count / seconds:>10.1f} {percent:>+9.1f}%")
        return "\n".join(lines)


def fit_curve(timings: Mapping[int, float]) -> Curve:
    """Least squares on the relative error, minimized over where the flat part could end.

    timings: seconds by count, at least one entry. One alone does not show how a device shares its time among
        items, so more items are taken to need more time in proportion.
    """
    counts = sorted(timings)
    if len(counts) == 1:
        [(count, base_s)] = timings.items()
        return Curve(base_s, count, base_s / count, ((count, 0.0),))
    seconds = np.array([timings[count] for count in counts])

    def fit(flat_count: int) -> tuple[float, Curve]:
        rising = np.maximum(0.0, np.array(counts) - flat_count)
        columns = np.stack([np.ones(len(counts)), rising], axis=1) / seconds[:, None]
        (base_s, slope_s), *_ = np.linalg.lstsq(columns, np.ones(len(counts)), rcond=None)
        if slope_s < 0 or base_s <= 0:  # only noise makes a device look faster with more work
            base_s, slope_s = 1 / np.mean(1 / seconds), 0.0
        residuals = seconds / (base_s + slope_s * rising) - 1
        pairs = tuple(zip(counts, (float(residual) for residual in residuals), strict=True))
        return float(np.square(residuals).sum()), Curve(float(base_s), flat_count, float(slope_s), pairs)

    return min((fit(count) for count in counts[:-1]), key=lambda fitted: fitted[0])[1]


@dataclass(frozen=True, slots=True)
class StageCost:
    """A stage's curve for every measured latent shape, at least one.

    padded_to: the counts, rising, that forwards of static shapes are padded to (EngineConfig); empty for none
    adapted: how many times as long a forward takes with adapters, by their rank, rising
    """

    curves: tuple[tuple[LatentShape, Curve], ...]
    padded_to: tuple[int, ...] = ()
    adapted: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        if not self.curves:
            raise ValueError("a stage's cost needs the curve of at least one latent shape")

    def curve(self, shape: LatentShape) -> Curve:
        """The shape's curve. If it was not measured, the nearest shape's curve is scaled by the area."""
        nearest, curve = min(self.curves, key=lambda known: abs(math.prod(known[0]) - math.prod(shape)))
        factor = math.prod(shape) / math.prod(nearest)
        return Curve(curve.base_s * factor, curve.flat_count, curve.slope_s * factor, curve.residuals)

    def seconds(self, shape: LatentShape, count: int, rank: int = 0) -> float:
        """Seconds per call of `count` items, padding among them. rank: of its adapters"""
        return self.curve(shape).seconds(count) * self.adapted_factor(rank)

    def adapted_factor(self, rank: int) -> float:
        """How many times as long a forward takes with adapters of this rank together."""
        if not rank or not self.adapted:
            return 1.0
        return next((factor for most, factor in self.adapted if most >= rank), self.adapted[-1][1])

    def times(self, factor: float) -> StageCost:
        """The cost of work that takes this many times as long."""
        curves = tuple(
            (shape, Curve(factor * one.base_s, one.flat_count, factor * one.slope_s))
            for shape, one in self.curves
        )
        return StageCost(curves, self.padded_to, self.adapted)

    def parts(self, shape: LatentShape, count: int, max_hold_s: float, most: int | None = None) -> list[int]:
        """Splits `count` items into calls that take at most max_hold_s each, if one item can.

        most: items of a call in any case; None for any number
        """
        most = min(most or count, self.curve(shape).most_within(max_hold_s))
        return [min(most, count - start) for start in range(0, count, most)]

    def table(self, unit: str) -> str:
        """The curves' tables, to read."""
        return "\n".join(
            f"latents {height}x{width}:\n{curve.table(unit)}" for (height, width), curve in self.curves
        )


@dataclass(frozen=True, slots=True)
class CostModel:
    """The cost of every stage: encode per text, forward per U-Net row, decode per image.

    encode_picture: per picture to start from; None if it was not measured
    load_s: seconds that a model takes to load; 0 if it is there already
    """

    encode: Curve
    forward: StageCost
    decode: StageCost
    encode_picture: StageCost | None = None
    load_s: float = 0.0

    @property
    def picture(self) -> StageCost:
        """The cost of encoding pictures, as measured or from the cost of decoding."""
        return self.encode_picture or self.decode.times(_ENCODED_PICTURE)


def padded(count: int, counts: Iterable[int]) -> int:
    """The first of the counts, rising, that `count` items fit into; `count` itself if there is none."""
    return next((one for one in counts if one >= count), count)


def counts_to_measure(most: int) -> list[int]:
    """1, 2, 4, ... up to and including `most`."""
    return sorted({*(2**power for power in range(most.bit_length())), most})


def measure(
    work: Callable[[int], None], counts: Sequence[int], clock: Callable[[], float] = time.perf_counter
) -> Curve:
    """Times `work(count)`, which must return only when the device is done, and fits a curve.

    The counts take turns, so that a disturbance does not hit only one of them.
    """
    for count in sorted(counts, reverse=True):
        work(count)  # warm-up: chooses kernels and allocates memory, the largest count first
    best = dict.fromkeys(counts, math.inf)
    order = random.Random(0)
    for done in range(1, MAX_ROUNDS + 1):
        for count in order.sample(list(counts), len(counts)):
            started = clock()
            work(count)
            best[count] = min(best[count], clock() - started)
        curve = fit_curve(best)
        if done >= MIN_ROUNDS and all(abs(residual) < CLOSE_FIT for _, residual in curve.residuals):
            break
    return curve


def measure_factors(
    work: Callable[[int], None], ranks: Sequence[int], clock: Callable[[], float] = time.perf_counter
) -> tuple[tuple[int, float], ...]:
    """How many times as long `work(rank)` takes as `work(0)`, by rank, rising. ranks: rising, above 0

    They take turns, and the best time of each counts, as in `measure`.
    """
    best = dict.fromkeys((0, *ranks), math.inf)
    for _ in range(MIN_ROUNDS + 1):  # the first round warms up
        for rank in best:
            started = clock()
            work(rank)
            best[rank] = min(best[rank], clock() - started)
    factors: list[tuple[int, float]] = []
    for rank in ranks:
        least = factors[-1][1] if factors else 1.0  # only noise makes more work look faster
        factors.append((rank, max(least, best[rank] / best[0])))
    return tuple(factors)


def measure_shapes(
    work: Callable[[LatentShape, int], None], shapes: Sequence[LatentShape], counts: Sequence[int]
) -> StageCost:
    """Measures a stage whose work depends on the latents' shape: `work(shape, count)`."""
    return StageCost(tuple((shape, measure(partial(work, shape), counts)) for shape in shapes))
