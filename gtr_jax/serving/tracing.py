"""Spans of requests, to a collector of OpenTelemetry."""

import os
from typing import Any

from gtr_jax.errors import InputError


def traced(app: Any) -> Any:
  """An ASGI application that sends a span for each request to where OpenTelemetry's own variables say.

  OTEL_EXPORTER_OTLP_ENDPOINT (default: http://localhost:4318), OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER and others.

  Raises:
    InputError: OpenTelemetry is not installed.
  """
  try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
  except ModuleNotFoundError as e:
    raise InputError(f"--opentelemetry needs {e.name}: pip install 'gtr_jax[opentelemetry]'") from e
  named = {} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: "gtr_jax"}
  # At the end nobody waits for a collector that is not there: spans go out while the server runs.
  provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
  provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
  return OpenTelemetryMiddleware(app, tracer_provider=provider, exclude_spans=["receive", "send"],
                                 excluded_urls="health,metrics")
