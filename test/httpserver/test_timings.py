"""`return_timings`: how long a request took, in its answer."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from support.fake_engine import FakeEngine

CHAT = {"messages": [{"role": "user", "content": "one"}], "max_tokens": 4}


def check(timings: dict[str, Any], prompt: int, output: int) -> None:
    assert (timings["cache_n"], timings["prompt_n"], timings["predicted_n"]) == (3, prompt - 3, output)
    assert timings["queue_ms"] >= 0 and timings["prompt_ms"] > 0
    assert timings["prompt_per_second"] == pytest.approx((prompt - 3) * 1e3 / timings["prompt_ms"], rel=0.01)
    assert timings["predicted_per_token_ms"] == pytest.approx(timings["predicted_ms"] / 3, abs=0.001)


@pytest.mark.parametrize("name", ["return_timings", "timings_per_token"])
def test_a_whole_answer_has_them_where_they_are_asked_for(
    client: httpx.Client, engine: FakeEngine, name: str
) -> None:
    engine.script.pause = 0.002
    answer = client.post(
        "/v1/completions", json={"prompt": [5, 6, 7, 8, 9], "max_tokens": 4, name: True}
    ).json()
    check(answer["timings"], 5, 4)
    assert "timings" not in client.post("/v1/completions", json={"prompt": [5], name: False}).json()
    assert "timings" not in client.post("/v1/chat/completions", json=CHAT).json()


@pytest.mark.parametrize("usage", [False, True])
def test_a_stream_has_them_in_its_last_chunk(client: httpx.Client, engine: FakeEngine, usage: bool) -> None:
    engine.script.pause = 0.002
    body = {**CHAT, "stream": True, "return_timings": True}
    if usage:
        body["stream_options"] = {"include_usage": True}
    lines = client.post("/v1/chat/completions", json=body).text.split("\n\n")
    chunks = [json.loads(line[6:]) for line in lines if line and line != "data: [DONE]"]
    assert [chunk for chunk in chunks[:-1] if "timings" in chunk] == []
    assert chunks[-1]["choices"] == [] and (chunks[-1].get("usage") is not None) == usage
    assert chunks[-1]["timings"]["predicted_n"] == 4


TURN = [{"role": "user", "content": "one"}]
APIS = {
    "/v1/responses": {"input": "one", "max_output_tokens": 4},
    "/v1/messages": {"messages": TURN, "max_tokens": 4},
    "/generate": {"inputs": "one", "parameters": {"max_new_tokens": 4}},
    "/": {"inputs": "one", "parameters": {"max_new_tokens": 4}},
}
"""Those that say it in places of their own."""


def timed(path: str, name: str | None, **fields: Any) -> dict[str, Any]:
    body = APIS[path] | fields
    asks = {} if name is None else {name: True}
    if "parameters" in body:
        return body | {"parameters": body["parameters"] | asks}
    return body | asks


@pytest.mark.parametrize("path", APIS)
def test_the_other_apis_have_them_beside_their_answer(
    client: httpx.Client, engine: FakeEngine, path: str
) -> None:
    engine.script.pause = 0.002
    for name in ("return_timings", "timings_per_token"):
        answer = client.post(path, json=timed(path, name)).json()
        answer = answer[0] if isinstance(answer, list) else answer
        found = answer["timings"]
        check(found, found["cache_n"] + found["prompt_n"], 4)
    assert "timings" not in client.post(path, json=timed(path, None)).text


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages", "/generate_stream", "/"])
def test_the_other_apis_streams_have_them_where_they_tell_of_the_end(
    client: httpx.Client, engine: FakeEngine, path: str
) -> None:
    engine.script.pause = 0.002
    of, streams = ("/generate", {}) if path == "/generate_stream" else (path, {"stream": True})
    text = client.post(path, json=timed(of, "return_timings", **streams)).text
    events = [json.loads(line.removeprefix("data:")) for line in text.splitlines() if line[:5] == "data:"]
    (last,) = [event for event in events if "timings" in json.dumps(event)]
    assert last is next(event for event in reversed(events) if event.get("type") != "message_stop")
    found = last.get("response", last)["timings"]
    check(found, found["cache_n"] + found["prompt_n"], 4)
    assert "timings" not in client.post(path, json=timed(of, None, **streams)).text


def test_one_token_has_no_rate(client: httpx.Client) -> None:
    body = {"prompt": [5, 6, 7, 8], "max_tokens": 1, "return_timings": True}
    timings = client.post("/v1/completions", json=body).json()["timings"]
    assert timings["predicted_n"] == 1 and timings["predicted_per_second"] is None
