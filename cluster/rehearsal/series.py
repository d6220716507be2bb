"""A rehearsal over time, as numbers to draw and keep."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.bench.answers import Kind
from cluster.bench.load import RequestOutcome
from cluster.bench.mix import PlannedRequest
from cluster.rehearsal.rehearsal import Rehearsal

Array = npt.NDArray[np.float64]
_NUM_WINDOWS = 40


@dataclass(frozen=True)
class Series:
    """Values per window, all of one length. Window i starts at at_s[i] and lasts at_s[1] - at_s[0] seconds.

    arrivals_per_s, done_per_s: images; queue_s: mean device-seconds of denoising that were due and not done;
    replicas: mean of each stage, including those that wait for a GPU; latency_*: of completed requests that
    were due in the window, None if there were none; gpu_seconds: paid for up to its end
    """

    at_s: Sequence[float]
    arrivals_per_s: Sequence[float]
    done_per_s: Sequence[float]
    queue_s: Sequence[float]
    replicas: Mapping[str, Sequence[float]]
    latency_p50_s: Sequence[float | None]
    latency_p95_s: Sequence[float | None]
    gpu_seconds: Sequence[float]


def series_of(rehearsal: Rehearsal, work_s: Callable[[PlannedRequest], float]) -> Series:
    """work_s: device-seconds of denoising a request."""
    outcomes = rehearsal.outcomes
    end_s = max([seen.at_s for seen in rehearsal.sightings] + [one.answer.ended_s for one in outcomes])
    edges = np.linspace(0.0, end_s, _NUM_WINDOWS + 1)
    width_s = edges[1]
    completed = [one for one in outcomes if one.answer.kind is Kind.COMPLETED]

    def images(times: Sequence[float], of: Sequence[RequestOutcome]) -> list[float]:
        counts, _ = np.histogram(times, edges, weights=[one.request.num_images for one in of])
        return [float(count) for count in counts / width_s]

    def latency_s(rank: float) -> list[float | None]:
        windows = np.digitize([one.request.due_s for one in completed], edges) - 1
        latencies = np.array([one.latency_s for one in completed])
        of_window = [latencies[windows == index] for index in range(_NUM_WINDOWS)]
        return [float(np.percentile(values, rank)) if len(values) else None for values in of_window]

    fine = np.linspace(0.0, end_s, 10 * _NUM_WINDOWS, endpoint=False)
    due = np.array([one.request.due_s for one in completed])
    ended = np.array([one.answer.ended_s for one in completed])
    work = np.array([work_s(one.request) for one in completed])
    queue = [float(work[(due <= time) & (time < ended)].sum()) for time in fine]
    seen_at = np.array([seen.at_s for seen in rehearsal.sightings])
    held = np.array([gpus for _, gpus in rehearsal.gpus_held()])
    paid = np.concatenate([[0.0], np.cumsum(np.diff(seen_at) * held[:-1])])
    return Series(
        at_s=[float(edge) for edge in edges[:-1]],
        arrivals_per_s=images([one.request.due_s for one in outcomes], outcomes),
        done_per_s=images([one.answer.ended_s for one in completed], completed),
        queue_s=_means(queue),
        replicas={
            stage: _means(_last_seen(fine, seen_at, [seen.replicas[stage] for seen in rehearsal.sightings]))
            for stage in rehearsal.gpus
        },
        latency_p50_s=latency_s(50),
        latency_p95_s=latency_s(95),
        gpu_seconds=[float(value) for value in np.interp(edges[1:], seen_at, paid)],
    )


def _means(fine: Sequence[float]) -> list[float]:
    """The mean of each window."""
    return [float(mean) for mean in np.reshape(fine, (_NUM_WINDOWS, -1)).mean(axis=1)]


def _last_seen(times: Array, seen_at: Array, counts: Sequence[int]) -> list[float]:
    """The last count seen at each of the times; before the first sighting, the first count."""
    last = np.maximum(0, np.searchsorted(seen_at, times, side="right") - 1)
    return [float(count) for count in np.array(counts)[last]]
