"""How long jobs wait and what becomes of webhooks, as Ray exports it (with the prefix `ray_`)."""

from ray.serve import metrics

from serve.jobs.records import Waiting
from serve.jobs.webhooks import Delivered, GaveUp, Outcome, RetryIn

_OUTCOMES = {Delivered: "delivered", RetryIn: "failed", GaveUp: "given_up"}


class JobMetrics:
    """Of a runner. What waits is the same for all of them: it is the job store's."""

    def __init__(self) -> None:
        self._waiting = metrics.Gauge("midstep_jobs_waiting", "Jobs that no runner has begun.")
        self._oldest_s = metrics.Gauge(
            "midstep_oldest_waiting_job_seconds", "How long the oldest of them has waited."
        )
        self._deliveries = metrics.Counter(
            "midstep_webhook_deliveries_total",
            "Attempts to deliver a webhook: delivered, failed (another follows) or given_up.",
            ("outcome",),
        )

    def set_waiting(self, waiting: Waiting) -> None:
        self._waiting.set(waiting.jobs)
        self._oldest_s.set(waiting.oldest_s)

    def count_delivery(self, outcome: Outcome) -> None:
        self._deliveries.inc(tags={"outcome": _OUTCOMES[type(outcome)]})
