"""The spans' exporter for Serve's tracing and ours, named by RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH."""

from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor


def otlp() -> list[SpanProcessor]:
    """Exports to a collector over OTLP and HTTP, by the variables OTEL_EXPORTER_OTLP_*.

    Raises ImportError if the extra `otel` is not installed.
    """
    try:
        # Imported here, because it is not needed without tracing.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ImportError(
            "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH=serve.tracing:otlp needs the extra `otel`: "
            "pip install --constraint constraints.txt --editable '.[otel]'"
        ) from error
    return [BatchSpanProcessor(OTLPSpanExporter())]
