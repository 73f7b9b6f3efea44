"""Traces: one span a request, with vLLM's names, under the client's; a collector that is gone holds up nothing."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from support.fake_engine import FakeEngine
from support.http_client import http_client

pytest.importorskip("opentelemetry.sdk")
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from lightllm.httpserver.operating.traces import Traces

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
BODY = {"prompt": [5, 6, 7], "max_tokens": 4, "temperature": 0.5, "top_p": 0.9}


@pytest.fixture
def traced(worker: Any, engine: FakeEngine) -> Iterator[tuple[httpx.Client, Callable[[], list[Any]]]]:
    spans = InMemorySpanExporter()
    traces = Traces("http://unused", "tiny", spans)
    worker.engine.watchers.append(traces)

    def finished() -> list[Any]:
        traces._provider.force_flush()
        return list(spans.get_finished_spans())

    with http_client(worker.url) as client:
        yield client, finished
    worker.engine.watchers.remove(traces)
    traces.close()


def test_a_span_tells_of_queue_prefill_and_decode(traced: Any, engine: FakeEngine) -> None:
    client, finished = traced
    before = time.time_ns()
    client.post("/v1/completions", json=BODY, headers={"X-Request-Id": "mine"})
    engine.wait_for(lambda: len(finished()) == 1)
    (span,) = finished()
    assert span.name == "llm_request" and span.kind is SpanKind.SERVER and span.parent is None
    assert span.resource.attributes["service.name"] == "lightllm"
    attributes = dict(span.attributes)
    latency = {
        name.rpartition(".")[2]: attributes.pop(name) for name in list(attributes) if ".latency." in name
    }
    assert attributes.pop("gen_ai.response.id").startswith("cmpl-")
    assert attributes == {
        "http.route": "/v1/completions", "gen_ai.request.id": "mine", "gen_ai.response.model": "tiny",
        "gen_ai.request.n": 1, "gen_ai.request.max_tokens": 4, "gen_ai.request.temperature": 0.5, "gen_ai.request.top_p": 0.9,
        "gen_ai.response.finish_reasons": ("length",), "gen_ai.usage.num_sequences": 1, "gen_ai.usage.prompt_tokens": 3,
        "gen_ai.usage.completion_tokens": 4, "gen_ai.usage.cached_tokens": 3,
    }  # fmt: skip
    prefill, decode = latency["time_in_model_prefill"], latency["time_in_model_decode"]
    assert latency["time_in_model_inference"] == pytest.approx(prefill + decode, abs=1e-5)
    assert latency["time_to_first_token"] == pytest.approx(latency["time_in_queue"] + prefill, abs=1e-5)
    assert latency["time_in_queue"] + prefill + decode <= latency["e2e"] + 1e-5
    assert before - 10**7 <= span.start_time < span.end_time <= time.time_ns() + 10**7
    assert [event.name for event in span.events] == ["run", "first_token"]
    moments = [span.start_time, *(event.timestamp for event in span.events), span.end_time]
    assert moments == sorted(moments)


def test_the_clients_trace_goes_on(traced: Any, engine: FakeEngine) -> None:
    client, finished = traced
    client.post(
        "/v1/completions", json=BODY, headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=b"}
    )
    client.post("/v1/completions", json=BODY, headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    client.post("/v1/completions", json=BODY, headers={"traceparent": "nonsense"})
    engine.wait_for(lambda: len(finished()) == 2)
    sampled, broken = finished()
    assert (f"{sampled.context.trace_id:032x}", f"{sampled.parent.span_id:016x}") == (TRACE, PARENT)
    assert sampled.context.trace_state.get("a") == "b"
    assert broken.parent is None


def test_a_failure_is_one(traced: Any, engine: FakeEngine) -> None:
    client, finished = traced
    engine.script.finish_error = "broken"
    client.post("/v1/completions", json=BODY)
    engine.wait_for(lambda: len(finished()) == 1)
    (span,) = finished()
    assert span.status.status_code is StatusCode.ERROR and span.attributes["error.type"] == "BackendFailed"
    assert "gen_ai.latency.time_to_first_token" not in span.attributes


class Collector:
    """Takes OTLP over HTTP; or takes connections and never answers."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.paths: list[str] = []

    def serve(self) -> http.server.ThreadingHTTPServer:
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                message = ExportTraceServiceRequest.FromString(
                    self.rfile.read(int(self.headers["Content-Length"]))
                )
                scopes = [scope for resource in message.resource_spans for scope in resource.scope_spans]
                collector.paths.append(self.path)
                collector.names += [span.name for scope in scopes for span in scope.spans]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: object) -> None: ...

        return http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)


def test_a_collector_gets_spans_over_http(
    worker: Any, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "")
    collector = Collector()
    with collector.serve() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        traces = Traces(f"http://127.0.0.1:{server.server_address[1]}", "tiny")
        worker.engine.watchers.append(traces)
        httpx.post(worker.url + "/v1/completions", json=BODY, timeout=30)
        engine.wait_for(lambda: worker.engine.active == 0)
        traces.close()
        worker.engine.watchers.remove(traces)
        engine.wait_for(lambda: collector.names)
        server.shutdown()
        thread.join()
    assert collector.names == ["llm_request"] and collector.paths == ["/v1/traces"]


def test_a_collector_that_is_gone_holds_up_neither_requests_nor_the_end(
    worker: Any, engine: FakeEngine
) -> None:
    traces = Traces("http://127.0.0.1:9/v1/traces", "tiny")
    worker.engine.watchers.append(traces)
    with http_client(worker.url) as client:
        for _ in range(3):
            assert client.post("/v1/completions", json=BODY).status_code == 200
    engine.wait_for(lambda: worker.engine.active == 0)
    worker.engine.watchers.remove(traces)
    begun = time.monotonic()
    traces.close()
    assert time.monotonic() - begun < 10
