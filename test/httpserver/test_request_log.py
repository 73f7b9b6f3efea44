"""The request log: what a line says, what it never says, and that nothing it meets holds up a request."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.fake_engine import FakeEngine
from support.http_client import http_client
from support.metrics import samples

from lightllm.errors import StartupError
from lightllm.http.metric_store import MetricStore
from lightllm.httpserver.operating.request_log import RequestLog
from lightllm.protocol.messages import Refused
from lightllm.protocol.metrics import HTTP_METRICS

SECRET = "one two"


@pytest.fixture
def logged(worker: Any, engine: FakeEngine, tmp_path: Path):  # type: ignore[no-untyped-def]
    """A worker that keeps a log; gives its client, and what has been written so far."""
    target = tmp_path / "requests"

    def entries(count: int) -> list[dict[str, Any]]:
        engine.wait_for(lambda: target.exists() and target.read_text().count("\n") >= count)
        return [json.loads(line) for line in target.read_text().splitlines()]

    def attach(decode: Callable[[list[int]], str] | None = None) -> RequestLog:
        log = RequestLog(str(target), worker.engine.store, decode)
        worker.engine.watchers[:] = [log]
        return log

    with http_client(worker.url) as client:
        attach()
        yield client, entries, attach, target
    for log in worker.engine.watchers:
        log.close()
    worker.engine.watchers.clear()


def test_a_line_says_what_became_of_a_request_and_none_of_its_text(logged: Any, engine: FakeEngine) -> None:
    client, entries, _, target = logged
    body = {"prompt": SECRET, "max_tokens": 4, "stop": ["zwei"], "temperature": 0.5, "seed": 7, "n": 2}
    answer = client.post("/v1/completions", json=body, headers={"X-Request-Id": "mine"}).json()
    (entry,) = entries(1)
    assert entry["request_id"] == "mine" and entry["answer_id"] == answer["id"]
    assert (entry["route"], entry["stream"], entry["outcome"]) == ("/v1/completions", False, "success")
    assert entry["finish_reasons"] == ["length", "length"]
    assert (entry["output_tokens"], entry["cached_tokens"]) == (8, 3)
    assert entry["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert entry["parameters"] == {
        "n": 2, "max_new_tokens": 4, "do_sample": True, "temperature": 0.5, "top_p": 1.0, "top_k": -1, "seed": 7, "priority": 0,
    }  # fmt: skip
    parts = entry["queue_ms"] + entry["prefill_ms"] + entry["decode_ms"]
    assert entry["queue_ms"] + entry["prefill_ms"] == pytest.approx(entry["first_token_ms"], abs=0.01)
    assert 0 < parts <= entry["total_ms"] + 0.01
    text = target.read_text()
    assert SECRET not in text and "zwei" not in text and answer["choices"][0]["text"] not in text
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_prompts_and_answers_come_where_they_are_asked_for(logged: Any, tokenizer: Any) -> None:
    client, entries, attach, _ = logged
    attach(tokenizer.decode)
    body = {"prompt": [SECRET, "of"], "max_tokens": 4}
    answer = client.post("/v1/completions", json=body).json()
    (entry,) = entries(1)
    assert entry["prompts"] == [SECRET, "of"]
    assert entry["answers"] == [choice["text"] for choice in answer["choices"]]


def test_streams_refusals_failures_and_clients_that_leave(logged: Any, engine: FakeEngine) -> None:
    client, entries, _, _ = logged
    body = {"inputs": [5, 6, 7], "parameters": {"max_new_tokens": 3}}
    client.post("/generate_stream", json=body)
    engine.script.finish_error = "broken"
    client.post("/generate", json=body)
    engine.script.finish_error = ""
    engine.script.refuse = Refused([], "ServerOverloaded", "full", retry_after=1)
    client.post("/generate", json=body)
    engine.script.refuse = None
    engine.script.endless = True
    engine.script.pause = 0.01
    long = {"inputs": [5, 6, 7], "parameters": {"max_new_tokens": 400}}
    with client.stream("POST", "/generate_stream", json=long) as response:
        next(response.iter_lines())
    found = entries(4)
    assert [entry["outcome"] for entry in found] == ["success", "failure", "refused", "disconnected"]
    assert [entry["stream"] for entry in found] == [True, False, False, True]
    assert [entry.get("error", {}).get("type") for entry in found[:3]] == [
        None,
        "BackendFailed",
        "ServerOverloaded",
    ]
    assert found[2]["first_token_ms"] is None and found[2]["finish_reasons"] == []


def test_a_file_that_is_moved_away_is_made_anew(logged: Any) -> None:
    client, entries, _, target = logged
    body = {"inputs": [5, 6, 7], "parameters": {"max_new_tokens": 3}}
    client.post("/generate", json=body)
    entries(1)
    target.rename(target.with_suffix(".1"))
    client.post("/generate", json=body)
    assert len(entries(1)) == 1 and target.with_suffix(".1").read_text().count("\n") == 1


def read_more(descriptor: int, into: bytearray) -> bool:
    """What there is, without waiting."""
    os.set_blocking(descriptor, False)
    with contextlib.suppress(BlockingIOError):
        into += os.read(descriptor, 65536)
    return True


def test_a_reader_that_does_not_read_holds_up_nobody(worker: Any, engine: FakeEngine) -> None:
    reader, writer = os.pipe()
    log = RequestLog(f"/dev/fd/{writer}", worker.engine.store, None, limit=2)
    worker.engine.watchers.append(log)
    body = {"inputs": [5, 6, 7], "parameters": {"max_new_tokens": 1}}
    lost = "lightllm_request_log_lost_total"
    with http_client(worker.url) as client:
        before = samples(client.get("/metrics").text)[lost]
        os.set_blocking(writer, False)
        filled = 0
        while True:  # as a reader leaves it that has stopped
            try:
                filled += os.write(writer, b"x" * 4096)
            except BlockingIOError:
                break
        for _ in range(6):
            assert client.post("/generate", json=body).status_code == 200
        engine.wait_for(lambda: samples(client.get("/metrics").text)[lost] >= before + 3)
        while filled > 0:
            filled -= len(os.read(reader, min(filled, 65536)))
        rest = bytearray()
        engine.wait_for(lambda: read_more(reader, rest) and b'"lost":' in rest)
    worker.engine.watchers.remove(log)
    log.close()
    entries = [json.loads(line) for line in rest.splitlines()]
    assert sum(entry.get("lost", 0) for entry in entries) >= 3
    os.close(reader)
    os.close(writer)


def test_a_full_disk_is_counted_and_said_once(
    logged: Any, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    client, _, attach, target = logged
    target.unlink()
    target.symlink_to("/dev/full")
    attach()
    lost = "lightllm_request_log_lost_total"
    before = samples(client.get("/metrics").text)[lost]
    for _ in range(3):
        client.post("/generate", json={"inputs": [5], "parameters": {"max_new_tokens": 1}})
    engine.wait_for(lambda: samples(client.get("/metrics").text)[lost] == before + 3)
    assert caplog.text.count("the request log cannot be written") == 1


def test_a_file_that_cannot_be_written_ends_the_start(tmp_path: Path) -> None:
    store = MetricStore(tmp_path / "http-0", HTTP_METRICS)
    with pytest.raises(StartupError, match="--request_log .*/no/such"):
        RequestLog(str(tmp_path / "no/such"), store, None)
