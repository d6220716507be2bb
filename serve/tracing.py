"""Where spans go: named by RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH, for Serve's tracing and ours."""

from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor


def otlp() -> list[SpanProcessor]:
    """To a collector over OTLP and HTTP, as the variables OTEL_EXPORTER_OTLP_* say.

    Raises ImportError where the extra `otel` is not installed.
    """
    try:
        # Only here: without tracing nobody needs it.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ImportError(
            "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH=serve.tracing:otlp needs the extra `otel`: "
            "pip install --constraint constraints.txt --editable '.[otel]'"
        ) from error
    return [BatchSpanProcessor(OTLPSpanExporter())]
