"""A stream that is cut anywhere goes on on another server as if nothing had happened: the same bytes, but for how events were cut."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator

import httpx
import msgspec
import pytest
from support.server import LightLLMServer

from lightllm.protocol.resume import ASKS, ROUTE, TELLS, News, unmark

pytestmark = pytest.mark.slow
"""The short form is `test_cluster_kills.py`, which needs such servers, too."""
CHAT = {"model": "lightllm-demo", "messages": [{"role": "user", "content": "Tell me a story."}]}
TEXT = {"model": "lightllm-demo", "prompt": "Tell me a story."}
SEEDED = {"temperature": 0.8, "seed": 7, "max_tokens": 40}
GREEDY = {"temperature": 0, "max_tokens": 40}
ASKED = {ASKS.decode(): "1"}


@pytest.fixture(scope="module")
def servers() -> Iterator[list[str]]:
    options = ["--data_type", "fp32", "--max_total_token_num", "6000", "--model_name", "lightllm-demo"]
    with LightLLMServer(options) as first, LightLLMServer(options) as second:
        yield [first.url, second.url]


def events_of(answer: httpx.Response) -> list[tuple[bytes, list[News] | None]]:
    raw = answer.read()
    assert answer.status_code == 200, raw
    return [unmark(part + b"\n\n") for part in raw.split(b"\n\n") if part]


def begin(url: str, path: str, body: dict) -> tuple[str, list[tuple[bytes, list[News] | None]]]:
    with httpx.stream("POST", url + path, json=body, headers=ASKED, timeout=60) as answer:
        return answer.headers[TELLS], events_of(answer)


def up_to(events: list[tuple[bytes, list[News] | None]], count: int) -> tuple[list[bytes], dict[int, News]]:
    """What a client has got of the first `count` events, and how far its choices have come."""
    passed: list[bytes] = []
    held: list[bytes] = []
    choices: dict[int, News] = {}
    for event, news in events[:count]:
        held.append(event)
        if news is None:
            continue
        passed += held
        held = []
        for part in news:
            if part.choice in choices:
                choices[part.choice].add(part)
            else:
                choices[part.choice] = copy.deepcopy(part)
    return passed, choices


def resume(url: str, path: str, body: dict, identity: str, choices: dict[int, News]) -> list[bytes]:
    state = {"path": path, "body": body, "identity": json.loads(identity),
             "choices": msgspec.to_builtins(list(choices.values()))}  # fmt: skip
    with httpx.stream("POST", url + ROUTE, json=state, headers=ASKED, timeout=60) as answer:
        return [event for event, _ in events_of(answer)]


def meaning(events: list[bytes]) -> dict:
    """What a client makes of a stream: ids, texts by choice, and why they ended; however its events were cut."""
    found: dict = {"ids": set(), "text": {}, "finish": {}, "usage": None, "tokens": [], "kinds": []}
    for event in events:
        data = event.partition(b"data:")[2].strip()
        if not data.startswith(b"{"):
            found["kinds"].append(data)
            continue
        value = json.loads(data)
        found["ids"] |= {(value.get("id"), value.get("created"))} if "id" in value else set()
        found["usage"] = value.get("usage") or found["usage"]
        for choice in value.get("choices", ()):
            index = choice["index"]
            delta = choice.get("delta") or {}
            for text in (choice.get("text"), delta.get("content"), delta.get("role")):
                found["text"][index] = found["text"].get(index, "") + (text or "")
            found["finish"][index] = choice["finish_reason"] or found["finish"].get(index)
        if "token" in value:
            found["tokens"].append((value["token"]["id"], value["token"]["text"], value["finish_reason"]))
        if "type" in value:
            text = (value.get("delta") or {}).get("text")
            if text is None:
                found["kinds"].append(value["type"])
            else:
                found["text"][0] = found["text"].get(0, "") + text
    return found


CASES = {
    "chat, greedy": ("/v1/chat/completions", CHAT | GREEDY | {"stream": True, "stream_options": {"include_usage": True}}),
    "chat, seeded": ("/v1/chat/completions", CHAT | SEEDED | {"stream": True}),
    "chat, a seed that the server chose": ("/v1/chat/completions", CHAT | {"temperature": 0.8, "max_tokens": 40, "stream": True}),
    "completion, three choices": ("/v1/completions", TEXT | SEEDED | {"n": 3, "stream": True, "logprobs": 0}),
    "completion that ends at a stop string": ("/v1/completions", TEXT | GREEDY | {"stop": [" the"], "stream": True}),
    "completion with an echo": ("/v1/completions", TEXT | GREEDY | {"echo": True, "stream": True}),
    "constrained": ("/v1/chat/completions", CHAT | SEEDED | {"stream": True, "response_format": {
        "type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object", "properties": {"a": {"type": "string", "maxLength": 20},
        "b": {"enum": [1, 2]}}, "required": ["a", "b"], "additionalProperties": False}}}}),
    "messages": ("/v1/messages", CHAT | {"temperature": 0.8, "max_tokens": 40} | {"stream": True}),
    "native": ("/generate_stream", {"inputs": "Tell me a story.", "parameters": {"do_sample": True, "seed": 5, "max_new_tokens": 30,
               "frequency_penalty": 1.0}}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_stream_goes_on_elsewhere_from_any_event(servers, name):
    path, body = CASES[name]
    identity, events = begin(servers[0], path, body)
    whole = meaning([event for event, _ in events])
    assert len(events) > 5
    step = max(1, len(events) // 5)
    for count in range(1, len(events), step):
        passed, choices = up_to(events, count)
        if not passed:
            continue
        rest = resume(servers[1], path, body, identity, choices)
        assert meaning(passed + rest) == whole, (name, count)


def test_a_stream_that_goes_on_can_break_off_again(servers):
    path, body = CASES["chat, seeded"]
    identity, events = begin(servers[0], path, body)
    whole = meaning([event for event, _ in events])
    passed, choices = up_to(events, 6)
    state = {"path": path, "body": body, "identity": json.loads(identity),
             "choices": msgspec.to_builtins(list(choices.values()))}  # fmt: skip
    with httpx.stream("POST", servers[1] + ROUTE, json=state, headers=ASKED, timeout=60) as answer:
        assert answer.headers[TELLS] == identity
        more, later = up_to(events_of(answer), 8)
    for index, news in later.items():
        choices[index].add(news)
    assert meaning(passed + more + resume(servers[0], path, body, identity, choices)) == whole


def test_without_the_wish_a_stream_tells_nothing(servers):
    path, body = CASES["chat, greedy"]
    with httpx.stream("POST", servers[0] + path, json=body, timeout=60) as answer:
        assert TELLS not in answer.headers and b"\n: " not in answer.read()


IDENTITY = {"id": "x", "created": 1, "seed": 1}


@pytest.mark.parametrize(
    "state",
    [{}, {"path": "/v1/completions"}, {"path": "/v1/completions", "body": TEXT, "identity": IDENTITY, "choices": [{"choice": 128}]},
     {"path": "/v1/completions", "body": TEXT, "identity": IDENTITY, "choices": [{"choice": -1}]},
     {"path": "/v1/completions", "body": TEXT, "identity": IDENTITY, "choices": [{"choice": 0}, {"choice": 0}]},
     {"path": "/v1/completions", "body": TEXT | {"stream": True}, "identity": IDENTITY, "choices": [{"choice": 1}]},
     {"path": "/v1/completions", "body": TEXT, "identity": IDENTITY, "choices": [{"choice": 0, "token_ids": [1]}]},
     {"path": "/v1/completions", "body": TEXT, "identity": IDENTITY,
      "choices": [{"choice": 0, "token_ids": [10**6], "texts": [""], "logprobs": [0.0]}]},
     {"path": "/v1/completions", "body": TEXT | {"stream": True, "max_tokens": 1}, "identity": IDENTITY,
      "choices": [{"choice": 0, "token_ids": [1], "texts": ["a"], "logprobs": [0.0]}]},
     {"path": "/v1/completions", "body": {"model": 7}, "identity": IDENTITY, "choices": []},
     {"path": "/nowhere", "body": {}, "identity": IDENTITY, "choices": []}, {"path": ROUTE, "body": {}, "identity": IDENTITY, "choices": []}],
)  # fmt: skip
def test_what_cannot_go_on_is_refused_and_disturbs_nobody(servers, state):
    answer = httpx.post(servers[0] + ROUTE, json=state, headers=ASKED, timeout=60)
    assert 400 <= answer.status_code < 500 and "message" in answer.text
    assert (
        httpx.post(servers[0] + "/v1/completions", json=TEXT | {"max_tokens": 2}, timeout=60).status_code
        == 200
    )
