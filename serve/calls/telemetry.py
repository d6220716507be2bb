"""Metrics and OpenTelemetry spans of requests and of their stages."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Status, StatusCode, Tracer
from ray.serve import metrics

from serve.errors import MidstepError
from serve.generation import GenerationRequest

_SECONDS = [0.1, 0.2, 0.5, 1, 2, 3, 5, 8, 12, 20, 30, 45, 60, 90, 120, 300, 600]


class Telemetry:
    """The telemetry of a process that calls the stages. Ray exports its metrics with the prefix `ray_`.

    tracer: replaces the tracer of the process's OpenTelemetry provider. Without a provider, spans do nothing
        and cost almost nothing
    """

    def __init__(self, tracer: Tracer | None = None) -> None:
        self._tracer = tracer or trace.get_tracer("midstep")
        self._requests = metrics.Counter(
            "midstep_requests_total",
            "Requests that ended: completed, canceled, or the code of the error that ended them.",
            ("outcome",),
        )
        self._request_latency = metrics.Histogram(
            "midstep_request_latency_seconds",
            "Seconds from a request's start to its last image.",
            boundaries=_SECONDS,
        )
        self._stage_latency = metrics.Histogram(
            "midstep_stage_latency_seconds",
            "Seconds that a stage took for its caller, with waiting and further attempts.",
            boundaries=_SECONDS,
            tag_keys=("stage",),
        )

    @contextmanager
    def request(self, request: GenerationRequest) -> Iterator[Context]:
        """Measures a whole request. It yields the context for the stages.

        Its span is never made the current one, because it surrounds an async generator that may be left from
        another task with another context.
        """
        started, outcome = time.monotonic(), "canceled"
        span = self._tracer.start_span("generate")
        span.set_attribute("midstep.request_id", request.request_id)
        span.set_attribute("midstep.num_images", request.num_images)
        try:
            yield trace.set_span_in_context(span)
            outcome = "completed"
            self._request_latency.observe(time.monotonic() - started)
        except Exception as error:
            outcome = error.code if isinstance(error, MidstepError) else MidstepError.code
            span.record_exception(error)
            span.set_status(Status(StatusCode.ERROR, str(error)))
            raise
        finally:
            self._requests.inc(tags={"outcome": outcome})
            span.set_attribute("midstep.outcome", outcome)
            span.end()

    @contextmanager
    def stage(
        self, stage: str, request: GenerationRequest, context: Context, **attributes: str | int | bool
    ) -> Iterator[None]:
        """Measures one stage's work on a request. Work that did not finish is not counted as latency."""
        started = time.monotonic()
        attributes["request_id"] = request.request_id
        named = {f"midstep.{name}": value for name, value in attributes.items()}
        with self._tracer.start_as_current_span(stage, context, attributes=named):
            yield
        self._stage_latency.observe(time.monotonic() - started, tags={"stage": stage})
