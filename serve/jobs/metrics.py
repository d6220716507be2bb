"""Metrics of waiting jobs and of webhooks. Ray exports them with the prefix `ray_`."""

from collections.abc import Collection, Mapping

from ray.serve import metrics

from serve.jobs.records import Waiting
from serve.jobs.webhooks import Delivered, GaveUp, Outcome, RetryIn

_OUTCOMES = {Delivered: "delivered", RetryIn: "failed", GaveUp: "given_up"}


class JobMetrics:
    """A runner's metrics. All runners report the same waiting jobs, because they share the job store."""

    def __init__(self, models: Collection[str]) -> None:
        """models: the served models; they report 0 if no job waits for them"""
        self._models_seen = set(models)
        self._waiting = metrics.Gauge("midstep_jobs_waiting", "Jobs that no runner has begun.", ("model",))
        self._oldest_s = metrics.Gauge(
            "midstep_oldest_waiting_job_seconds", "Seconds that the oldest of them has waited.", ("model",)
        )
        self._checkpoints_left = metrics.Counter(
            "midstep_job_checkpoints_left_total",
            "Unusable checkpoints, whose images started from the beginning.",
        )
        self._deliveries = metrics.Counter(
            "midstep_webhook_deliveries_total",
            "Attempts to deliver a webhook: delivered, failed (another follows) or given_up.",
            ("outcome",),
        )

    def set_waiting(self, waiting: Mapping[str, Waiting]) -> None:
        """waiting: waiting jobs by model"""
        for model in self._models_seen - waiting.keys():
            self._set_waiting(model, Waiting(0, 0.0))
        self._models_seen |= waiting.keys()
        for model, of_model in waiting.items():
            self._set_waiting(model, of_model)

    def count_left_checkpoint(self) -> None:
        self._checkpoints_left.inc()

    def _set_waiting(self, model: str, waiting: Waiting) -> None:
        self._waiting.set(waiting.jobs, {"model": model})
        self._oldest_s.set(waiting.oldest_s, {"model": model})

    def count_delivery(self, outcome: Outcome) -> None:
        self._deliveries.inc(tags={"outcome": _OUTCOMES[type(outcome)]})
