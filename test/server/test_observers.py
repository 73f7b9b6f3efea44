"""Who keeps what became of requests, with a real server: the request log on standard output, and traces."""

from __future__ import annotations

import http.server
import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.metrics import samples
from support.model_folder import make_model_folder
from support.server import LightLLMServer

from lightllm.config import ServerConfig
from lightllm.errors import InvalidOption
from lightllm.server import prepare

TRACE = "0af7651916cd43dd8448eb211c80319c"


def test_a_request_is_logged_on_standard_output_and_traced(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    spans = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                spans.extend(span for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    folder = make_model_folder(tmp_path / "m")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        options = ["--mock_backend", "--model_dir", str(folder), "--request_log", "-", "--request-log-prompts",
                   "--otlp-traces-endpoint", f"http://127.0.0.1:{collector.server_address[1]}/v1/traces"]  # fmt: skip
        environment = {"no_proxy": "127.0.0.1", "OTEL_SERVICE_NAME": "mine", "OTEL_BSP_SCHEDULE_DELAY": "100"}
        try:
            with LightLLMServer(options, environment=environment) as server:
                body = {"prompt": "Hello", "max_tokens": 4, "ignore_eos": True}
                headers = {"X-Request-Id": "mine", "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
                answer = httpx.post(
                    server.url + "/v1/completions", json=body, headers=headers, timeout=30
                ).json()
                line = server.wait_for(r"(?m)^\{.*\}$")[0]
                check_metrics(server.url, body, answer["usage"]["prompt_tokens"])
                end = time.monotonic() + 60
                while len(spans) < 4 and time.monotonic() < end:
                    time.sleep(0.01)
        finally:
            collector.shutdown()
            thread.join()
    entry = json.loads(line)
    assert (entry["request_id"], entry["outcome"], entry["output_tokens"]) == ("mine", "success", 4)
    assert entry["prompts"] == ["Hello"] and entry["answers"] == [answer["choices"][0]["text"]]
    assert entry["queue_ms"] + entry["prefill_ms"] == pytest.approx(entry["first_token_ms"], abs=0.01)
    assert len(spans) == 4
    span = min(spans, key=lambda span: span.start_time_unix_nano)
    assert span.name == "llm_request" and span.trace_id.hex() == TRACE
    names = {attribute.key for attribute in span.attributes}
    assert {"gen_ai.latency.time_in_queue", "gen_ai.latency.time_in_model_decode"} <= names


def check_metrics(url: str, body: dict[str, Any], prompt_tokens: int) -> None:
    """One answer with 4 tokens there has been; two more, one of them a stream, and one that two clients share."""
    httpx.post(url + "/v1/completions", json=body, timeout=30)
    httpx.post(url + "/v1/completions", json={**body, "stream": True}, timeout=30)
    httpx.post(url + "/v1/completions", json={**body, "n": 2}, timeout=30)
    assert httpx.post(url + "/v1/completions", json={**body, "max_tokens": 0}, timeout=30).status_code == 400
    end = time.monotonic() + 60
    while (values := samples(httpx.get(url + "/metrics", timeout=30).text))[
        "lightllm_request_success_total"
    ] < 4:
        assert time.monotonic() < end
    assert values["lightllm_request_count_total"] == values["lightllm_request_success_total"] == 4
    assert (
        values["lightllm_request_finished_total{length}"] == values["vllm:request_success_total{length}"] == 5
    )
    assert values["lightllm_output_tokens_total"] == values["vllm:generation_tokens_total"] == 20
    assert values["lightllm_request_generated_tokens_sum"] == 20
    assert values["lightllm_request_input_length_sum"] == 4 * prompt_tokens
    for name in ("queue", "prefill", "decode", "run", "first_token", "inference"):
        assert values[f"lightllm_request_{name}_duration_count"] == 4
    parts = sum(values[f"lightllm_request_{name}_duration_sum"] for name in ("queue", "prefill", "decode"))
    assert parts == pytest.approx(values["lightllm_request_inference_duration_sum"])
    assert values["lightllm_num_running_reqs"] == values["vllm:num_requests_waiting"] == 0


def test_prompts_alone_are_no_log() -> None:
    with pytest.raises(InvalidOption, match="--request_log_prompts is of no use alone"):
        prepare.resolve_config(ServerConfig(request_log_prompts=True))


def test_traces_without_their_packages_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "_OTEL", ("json", "no_such_package.trace"))
    with pytest.raises(InvalidOption, match=r"pip install 'lightllm\[otel\]'"):
        prepare.resolve_config(ServerConfig(otlp_traces_endpoint="http://127.0.0.1:4318"))


def test_a_log_that_cannot_be_written_ends_the_start(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "m")
    server = LightLLMServer(
        ["--mock_backend", "--model_dir", str(folder), "--request_log", str(tmp_path / "no/such")]
    )
    try:
        assert server.wait() == 2 and "--request_log" in server.log
    finally:
        server.abandon()
