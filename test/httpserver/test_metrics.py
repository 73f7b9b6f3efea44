"""Metrics, load, version, the model's name, and what /openapi.json says."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
from support import metrics
from support.fake_engine import FakeEngine

from lightllm.httpserver.operating import metric_routes
from lightllm.ipc.kv_map import Cells, KvMap, KvMapWriter
from lightllm.ipc.metric_history import HistoryWriter
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.protocol.messages import Refused
from lightllm.protocol.metrics import HTTP_METRICS
from lightllm.protocol.samples import Sample

FIELDS = [field.name for field in msgspec.structs.fields(Sample)]


def samples(client: httpx.Client) -> dict[str, float]:
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return metrics.samples(response.text)


def test_counts_of_requests(client: httpx.Client, engine: FakeEngine) -> None:
    before = samples(client)
    body = {"inputs": [5, 6, 7], "parameters": {"max_new_tokens": 4}}
    client.post("/generate", json=body)
    client.post("/generate_stream", json=body)
    engine.script.refuse = Refused([], "ServerOverloaded", "full", retry_after=1)
    client.post("/generate", json=body)
    engine.wait_for(
        lambda: samples(client)["lightllm_request_failure_total"] > before["lightllm_request_failure_total"]
    )
    after = samples(client)
    grown = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert grown["lightllm_request_count_total"] == 3
    assert grown["lightllm_request_success_total"] == 2
    assert grown["lightllm_request_failure_total"] == grown["lightllm_request_refused_total"] == 1
    assert grown["lightllm_request_first_token_duration_count"] == 2
    assert grown["lightllm_request_inter_token_duration_count"] == 6
    assert grown["lightllm_request_generated_tokens_sum"] == 8
    assert grown["lightllm_request_input_length_sum"] == 9
    assert grown["lightllm_request_finished_total{length}"] == 2
    assert grown["lightllm_cache_length_sum"] == 6
    assert grown["lightllm_cache_ratio_count"] == 2
    assert grown["lightllm_cache_ratio_sum"] == 2  # the engine says that it had all three tokens of each
    for phase in ("queue", "prefill", "decode", "run"):
        assert grown[f"lightllm_request_{phase}_duration_count"] == 2
    durations = [grown[f"lightllm_request_{phase}_duration_sum"] for phase in ("prefill", "decode", "run")]
    assert durations[0] + durations[1] == pytest.approx(durations[2])
    whole = grown["lightllm_request_queue_duration_sum"] + durations[2]
    assert whole == pytest.approx(grown["lightllm_request_inference_duration_sum"])
    assert (
        after["lightllm_request_first_token_duration_bucket{+Inf}"]
        == after["lightllm_request_first_token_duration_count"]
    )


def test_counts_have_vllms_names_too(client: httpx.Client, engine: FakeEngine) -> None:
    before = samples(client)
    body = {"prompt": [5, 6, 7, 8], "max_tokens": 4, "n": 2}
    assert client.post("/v1/completions", json=body).status_code == 200
    after = samples(client)
    grown = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert grown["vllm:request_success_total{length}"] == 2
    assert grown["vllm:request_prompt_tokens_sum"] == 4 and grown["vllm:request_generation_tokens_sum"] == 8
    assert grown["vllm:prefix_cache_hits_total"] == 3
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time", "request_prefill_time",
                 "request_decode_time", "request_inference_time"):  # fmt: skip
        assert grown[f"vllm:{name}_seconds_count"] == 1
    assert grown["vllm:inter_token_latency_seconds_count"] == 3


def test_gauges_are_the_routers(client: httpx.Client, engine: FakeEngine) -> None:
    engine.ready(running=3, waiting=2, slots_used=250, slots_cached=100, output_tokens=9, estimated_peak=500)
    values = samples(client)
    assert values["lightllm_batch_current_size"] == 3 and values["lightllm_queue_size"] == 2
    assert values["lightllm_slots_used"] == 250 and values["lightllm_output_tokens_total"] == 9
    load = client.get("/token_load").json()
    assert load == {"current_load": 0.25, "logical_max_load": 0.5, "dynamic_max_load": 0.5}


def test_history_is_what_the_metric_server_has_written_lately(
    client: httpx.Client, engine: FakeEngine
) -> None:
    empty = client.get("/metrics/history").json()
    assert empty["interval"] == 1 and set(empty["samples"]) == set(FIELDS)
    assert not any(empty["samples"].values())
    writer = HistoryWriter(engine.runtime.history_file)
    for ago in (700, 50, 5, 0):  # the Metric Server was away between
        values = dict.fromkeys(FIELDS, 1.0) | {"running": ago, "time": time.time() - ago, "itl_p50": math.nan}
        writer.append(Sample(**values))
    assert client.get("/metrics/history").json()["samples"]["running"] == [50, 5, 0]
    latest = client.get("/metrics/history?seconds=20").json()["samples"]
    assert (
        latest["running"] == [5, 0] and latest["itl_p50"] == [None, None] and latest["slots_used"] == [1, 1]
    )


@pytest.mark.parametrize("seconds", ["0", "601", "-1", "nan", "x", ""])
def test_seconds_of_the_history_have_a_range(client: httpx.Client, seconds: str) -> None:
    response = client.get(f"/metrics/history?seconds={seconds}")
    assert response.status_code == 400
    assert response.json()["param"] == "seconds" and "[1, 600]" in response.json()["message"]


def test_the_start_of_the_server_is_told(client: httpx.Client, engine: FakeEngine) -> None:
    assert samples(client)["process_start_time_seconds"] == pytest.approx(engine.runtime.created)
    assert engine.runtime.created <= time.time()


def test_the_load_is_counted_in_requests_and_slots(client: httpx.Client) -> None:
    load = client.get("/load").json()
    assert load.pop("slots_total") > 0 and set(load.values()) == {0}
    assert set(load) == {"server_load", "running", "waiting", "paused", "slots_used", "slots_cached"}


def test_token_load_of_an_idle_server_is_zero(client: httpx.Client) -> None:
    assert set(client.get("/token_load").json().values()) == {0.0}


def test_name_and_version(client: httpx.Client) -> None:
    assert client.get("/get_model_name").json() == {"model_name": "tiny"}
    assert client.post("/get_model_name").json() == {"model_name": "tiny"}
    assert client.get("/version").json()["version"]


def test_names_of_metrics_are_unique() -> None:
    names = [metric.name for metric in HTTP_METRICS]
    assert len(set(names)) == len(names)


def test_openapi_describes_bodies_and_errors(client: httpx.Client) -> None:
    schema: dict[str, Any] = client.get("/openapi.json").json()
    for path, model in (
        ("/generate", "GenerateRequest"),
        ("/v1/completions", "CompletionRequest"),
        ("/v1/chat/completions", "ChatRequest"),
        ("/abort_request", "AbortBody"),
        ("/get_score", "ScoreRequest"),
    ):
        operation = schema["paths"][path]["post"]
        reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        assert reference == f"#/components/schemas/{model}"
        assert {"200", "400", "401", "408", "413", "500", "503"} <= set(operation["responses"])
        assert ("422" in operation["responses"]) == (not path.startswith("/v1/"))
    text = client.get("/openapi.json").text
    for part in text.split('"$ref":"#/components/schemas/')[1:]:
        assert part.split('"')[0] in schema["components"]["schemas"]
    assert client.get("/docs").status_code == 200


def test_openapi_lists_every_route_and_method_that_works(worker: Any, client: httpx.Client) -> None:
    from fastapi.routing import APIRoute

    from lightllm.httpserver.app import create_app

    paths = client.get("/openapi.json").json()["paths"]
    listed = {(method.upper(), path) for path, item in paths.items() for method in item}
    pending, found = list(create_app(worker.state).routes), set()
    while pending:
        route = pending.pop()
        pending += list(getattr(getattr(route, "original_router", None), "routes", []))
        if isinstance(route, APIRoute):
            path = route.path.replace(":path}", "}")
            found |= {(method, path) for method in route.methods}
    own = {(method, path) for method, path in found if not path.startswith(("/docs", "/openapi", "/page/"))}
    own.remove(("GET", "/"))  # the page, for people
    assert own == listed and ("GET", "/tokens") in listed and ("POST", "/readiness") in listed


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_ping_is_health(client: httpx.Client, engine: FakeEngine, method: str) -> None:
    assert client.request(method, "/ping").status_code == 200
    engine.ready(ready=0)
    assert client.request(method, "/ping").status_code == 503


def test_the_schema_does_not_promise_images(client: httpx.Client) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for name in ("images", "audios"):
        (array, null) = schemas["MultimodalParams"]["properties"][name]["anyOf"]
        assert array["maxItems"] == 0 and null == {"type": "null"}
    assert (
        client.post("/generate", json={"inputs": "x", "multimodal_params": {"images": []}}).status_code == 200
    )
    assert (
        client.post("/generate", json={"inputs": "x", "multimodal_params": {"images": [1]}}).status_code
        == 400
    )


@pytest.fixture
def drawing(runtime: RuntimeDir) -> Iterator[KvMapWriter]:
    """A Router that draws the map when somebody looks, as the real one does in its turns."""
    writer, over = KvMapWriter(runtime.kv_map_file), threading.Event()

    def draw() -> None:
        while not over.wait(0.005):
            now = time.monotonic()
            if writer.due(now):
                writer.write(KvMap(now, 10, 2, 5, 1, 3, 4, Cells([5, 5], [2, 0], [2, 3])))

    thread = threading.Thread(target=draw)
    thread.start()
    yield writer
    over.set()
    thread.join()


def test_the_map_of_kv_memory_is_drawn_for_whoever_asks(
    client: httpx.Client, engine: FakeEngine, drawing: KvMapWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric_routes, "MAP_SECONDS", 60.0)  # on a busy machine drawing takes its time
    body = client.get("/metrics/kv_map").json()
    assert 0 <= time.monotonic() - body.pop("drawn") < 60
    assert body == {
        "slots": 10, "own": 2, "cached": 5, "read": 1, "free": 3, "nodes": 4,
        "cells": {"size": [5, 5], "own": [2, 0], "cached": [2, 3]},
    }  # fmt: skip
    engine.ready(ready=0)
    assert client.get("/metrics/kv_map").status_code == 503


def test_without_a_router_that_draws_there_is_no_map(
    client: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric_routes, "MAP_SECONDS", 0.05)
    monkeypatch.setattr(metric_routes, "DRAW_SECONDS", -1.0)  # what another test has drawn is old
    response = client.get("/metrics/kv_map")
    assert response.status_code == 503 and response.headers["retry-after"] == "1"
    assert "has drawn no map for 0.05 s" in response.text
