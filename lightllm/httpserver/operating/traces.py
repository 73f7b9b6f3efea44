"""OpenTelemetry traces (`--otlp_traces_endpoint`, extra `otel`): one span a generation request, with the names that vLLM gives its
own, as a child of the span that the client's `traceparent` header names.

A span is made when its request has ended, from moments that are known by then. The SDK's thread sends spans in batches; it
holds up nothing, and drops what a collector that is gone or slow leaves behind.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from lightllm import __version__
from lightllm.httpserver.ended import Ended

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

_BATCH = 64
"""Spans that are made into one message: more at a time would hold the interpreter for long."""
_SEND_SECONDS = 5.0
_CLOSE_SECONDS = 2.0
_NAME = "llm_request"


class Traces:
    """Called with every request that has ended."""

    def __init__(self, endpoint: str, model_name: str, exporter: SpanExporter | None = None) -> None:
        """endpoint: of OTLP over HTTP, with or without its usual path /v1/traces; exporter: another way out.

        OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER and OTEL_EXPORTER_OTLP_HEADERS mean what they mean
        everywhere."""
        resource = Resource.create()
        if str(resource.attributes.get("service.name")).startswith("unknown_service"):  # nobody has named it
            resource = resource.merge(Resource({"service.name": "lightllm"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = exporter or OTLPSpanExporter(endpoint=_with_path(endpoint), timeout=_SEND_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, max_export_batch_size=_BATCH))
        self._tracer = self._provider.get_tracer("lightllm", __version__)
        self._model_name = model_name
        self._propagator = TraceContextTextMapPropagator()

    def __call__(self, ended: Ended) -> None:
        wanted = (b"traceparent", b"tracestate")
        carrier = {name.decode(): value.decode("latin-1") for name, value in ended.headers if name in wanted}
        span = self._tracer.start_span(
            _NAME, self._propagator.extract(carrier), SpanKind.SERVER, start_time=_nanoseconds(ended.arrived)
        )
        if not span.is_recording():  # the client's sampling says so, or ours
            return
        span.set_attributes(_attributes(ended, self._model_name))
        for name, moment in (("run", ended.entered), ("first_token", ended.first_token)):
            if moment:
                span.add_event(name, timestamp=_nanoseconds(moment))
        if ended.error is not None:
            span.set_attribute("error.type", type(ended.error).__name__)
            span.set_status(Status(StatusCode.ERROR, ended.error.message))
        span.end(end_time=_nanoseconds(ended.now))

    def close(self) -> None:
        """Sends what waits, if that takes no longer than two seconds."""
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        thread.join(_CLOSE_SECONDS)


def _attributes(ended: Ended, model_name: str) -> dict[str, Any]:
    record = ended.record
    params = record.prompts[0].params
    attributes = {
        "http.route": ended.route,
        "gen_ai.request.id": ended.request_id,
        "gen_ai.response.id": record.names[-1],
        "gen_ai.response.model": model_name,
        "gen_ai.request.n": params.n,
        "gen_ai.request.max_tokens": params.max_new_tokens,
        "gen_ai.request.temperature": params.temperature if params.do_sample else 0.0,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.response.finish_reasons": ended.finish_reasons,
        "gen_ai.usage.num_sequences": len(record.choices),
        "gen_ai.usage.prompt_tokens": record.prompt_tokens,
        "gen_ai.usage.completion_tokens": record.output_tokens,
        "gen_ai.usage.cached_tokens": record.cached_tokens,
        "gen_ai.latency.e2e": ended.now - ended.arrived,
        "gen_ai.latency.time_in_queue": ended.queue_seconds,
        "gen_ai.latency.time_to_first_token": ended.first_token_seconds,
        "gen_ai.latency.time_in_model_prefill": ended.prefill_seconds,
        "gen_ai.latency.time_in_model_decode": ended.decode_seconds,
        "gen_ai.latency.time_in_model_inference": ended.run_seconds,
    }
    return {name: value for name, value in attributes.items() if value is not None}


def _with_path(endpoint: str) -> str:
    return endpoint if urlsplit(endpoint).path.strip("/") else endpoint.rstrip("/") + "/v1/traces"


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
