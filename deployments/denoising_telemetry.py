"""A denoiser's telemetry: metrics of its steps and images, its live view, and a log line for each image."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ray.serve import metrics

from deployments.engine.messages import DenoisedLatents, DenoiseEvent, DenoiseFailed, DenoiseRequest
from deployments.engine.model_source import ModelRef
from deployments.engine.reports import ForwardReport
from deployments.forwards import Forwards
from deployments.running_batch import BatchStatus, Outcome, RunningBatch

logger = logging.getLogger("ray.serve")

_OUTCOMES: dict[type, Outcome] = {DenoisedLatents: "denoised", DenoiseFailed: "failed"}


class DenoisingTelemetry:
    """A replica's telemetry. Ray exports its metrics with the prefix `ray_`."""

    def __init__(self) -> None:
        self._forwards = Forwards()
        self._batch = RunningBatch()
        self._requests = metrics.Histogram(
            "midstep_forward_requests",
            "Requests that shared a U-Net forward.",
            boundaries=[1, 2, 3, 4, 6, 8, 12, 16, 24, 32],
        )
        self._steps = metrics.Counter(
            "midstep_steps_total", "Model calls of images; a forward makes many at once."
        )
        self._running = metrics.Gauge(
            "midstep_denoising_requests", "Requests in denoising, running or waiting."
        )
        self._images = metrics.Counter(
            "midstep_denoised_images_total", "Images by outcome: denoised, failed or canceled.", ("outcome",)
        )
        self._resumed = metrics.Counter(
            "midstep_resumed_images_total", "Images that resumed from a checkpoint."
        )
        self._failed_captures = metrics.Counter(
            "midstep_failed_captures_total",
            "Shapes of steps that could not be captured as CUDA graphs and run eagerly.",
        )

    def record(self, report: ForwardReport) -> None:
        self._forwards.record(report.forward_rows, report.seconds, report.predicted_s)
        self._requests.observe(report.num_requests)
        self._steps.inc(report.num_requests)
        self._batch.forward(report.steps, report.seconds)

    def capture_failed(self) -> None:
        """A shape of steps could not be captured. May be called on any thread."""
        self._failed_captures.inc()

    def set_running(self, num_requests: int) -> None:
        self._running.set(num_requests)

    def status(self) -> BatchStatus:
        """The live view, on any thread."""
        return self._batch.status()

    @contextmanager
    def image(self, request: DenoiseRequest, model: ModelRef) -> Iterator[Callable[[DenoiseEvent], None]]:
        """Counts an image from start to end. Call the yielded function with each of its events. An image that
        is left before its last event counts as canceled."""
        if request.resume_from:
            self._resumed.inc()
        outcome: Outcome = "canceled"
        self._batch.come(request, model.digest)

        def tell(event: DenoiseEvent) -> None:
            nonlocal outcome
            outcome = _OUTCOMES.get(type(event), outcome)

        try:
            yield tell
        except Exception:
            outcome = "failed"
            raise
        finally:
            self._batch.leave(request.request_id, outcome)
            self._images.inc(tags={"outcome": outcome})
            logger.info(
                "image %s %s", request.request_id, outcome, extra={"stage": "denoise", "outcome": outcome}
            )
