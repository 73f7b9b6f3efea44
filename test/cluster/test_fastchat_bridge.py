"""OpenAI's API before a worker that speaks FastChat's protocol alone."""

from __future__ import annotations

import json

import httpx
import pytest
from aiohttp import web
from cluster.conftest import MockWorker, RunningController

from lightllm.cluster.fastchat_prompts import prompt_of
from lightllm.errors import InvalidParameter

MESSAGES = [
    {"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]  # fmt: skip


def template(style: int, **more) -> dict:
    names = {
        "roles": ["USER", "ASSISTANT"],
        "sep": " ",
        "sep2": "</s>",
        "system_template": "{system_message}",
    }
    return {"name": "t", "sep_style": style, "system_message": "Default.", **names, **more}


@pytest.mark.parametrize(
    "style, prompt",
    [
        (1, "Be short. USER: Hi ASSISTANT: Hello USER: Bye ASSISTANT:"), (2, "Be short. USER: Hi ASSISTANT: Hello</s>USER: Bye ASSISTANT:"),
        (3, "Be short. USER: Hi ASSISTANT: Hello USER: Bye ASSISTANT: "), (4, "Be short.USERHi ASSISTANTHello USERBye ASSISTANT"),
        (5, "Be short.USERHi ASSISTANTHello</s>USERBye ASSISTANT"), (6, "Be short. USER\nHi ASSISTANT\nHello USER\nBye ASSISTANT\n"),
        (9, "Be short. \nUSER\nHi \nASSISTANT\nHello \nUSER\nBye \nASSISTANT\n"),
        (7, "Be short.Hi ASSISTANT Hello</s>USER Bye ASSISTANT"),
    ],
)  # fmt: skip
def test_prompts_are_those_of_fastchats_conversations(style, prompt):
    assert prompt_of(template(style), MESSAGES) == prompt


def test_a_default_of_the_worker_holds_and_an_unknown_form_is_refused():
    assert prompt_of(template(1), MESSAGES[1:2]) == "Default. USER: Hi ASSISTANT:"
    with pytest.raises(InvalidParameter, match="/v1/completions"):
        prompt_of(template(99), MESSAGES)


class FastChatWorker(MockWorker):
    """Its chunks have the whole text so far."""

    chunks: tuple[str, ...] = ("Hel", "Hello", "Hello, wörld")

    def __init__(self, models: tuple[str, ...] = ("m",)) -> None:
        self.templates: list[dict] = []
        """What it was asked for its conversation template with."""
        super().__init__(models)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read() or b"{}")
        if request.path == "/worker_get_status":
            return web.json_response({"model_names": ["m"], "speed": 1, "queue_length": 0})
        if request.path == "/worker_get_conv_template":
            self.templates.append(body)
            return web.json_response({"conv": template(2, stop_str="</s>", stop_token_ids=[2])})
        self.seen.append(body)
        if request.path == "/worker_get_embeddings":
            return web.json_response({"embedding": [[1.0, 2.0]] * len(body["input"]), "token_num": 3})
        answer = web.StreamResponse()
        await answer.prepare(request)
        if body["prompt"] == "too long":
            await answer.write(json.dumps({"text": "too many tokens", "error_code": 40303}).encode() + b"\0")
            return answer
        for number, text in enumerate(self.chunks):
            usage = {"prompt_tokens": 7, "completion_tokens": number + 1, "total_tokens": 8 + number}
            finish = "length" if number == len(self.chunks) - 1 else None
            data = json.dumps(
                {"text": text, "error_code": 0, "usage": usage, "finish_reason": finish}
            ).encode()
            await answer.write(data[:9])  # as a network may cut it
            await answer.write(data[9:] + b"\0")
            if body["prompt"] == "breaks":
                failed = {"text": "out of memory", "error_code": 50002}
                await answer.write(json.dumps(failed).encode() + b"\0")
                return answer
        return answer


@pytest.fixture
def bridged(start):
    worker, running = start(FastChatWorker), start(RunningController)
    registration = {"worker_name": worker.url, "check_heart_beat": True, "worker_status": None}
    assert httpx.post(running.url + "/register_worker", json=registration).status_code == 200
    return running.url, worker


def test_a_chat_is_answered_whole(bridged):
    url, worker = bridged
    body = {"model": "m", "messages": MESSAGES, "max_tokens": 9, "stop": "x", "temperature": 0.5}
    answer = httpx.post(url + "/v1/chat/completions", json=body).json()
    assert answer["object"] == "chat.completion" and answer["usage"]["total_tokens"] == 10
    (choice,) = answer["choices"]
    assert choice["message"]["content"] == "Hello, wörld" and choice["finish_reason"] == "length"
    (seen,) = worker.seen
    assert seen["prompt"] == prompt_of(template(2), MESSAGES) and seen["stop"] == ["x", "</s>"]
    assert (seen["max_new_tokens"], seen["temperature"], seen["stop_token_ids"]) == (9, 0.5, [2])


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_stream_has_only_what_is_new_in_each_event(bridged, path):
    url, _ = bridged
    asked = {"messages": MESSAGES} if "chat" in path else {"prompt": "say"}
    body = {"model": "m", **asked, "stream": True, "stream_options": {"include_usage": True}}
    events = [line[6:] for line in httpx.post(url + path, json=body).text.split("\n\n") if line]
    assert events.pop() == "[DONE]"
    *chunks, usage = map(json.loads, events)
    choices = [chunk["choices"][0] for chunk in chunks]
    texts = [choice.get("text", choice.get("delta", {}).get("content") or "") for choice in choices]
    assert [text for text in texts if text] == ["Hel", "lo", ", wörld"] and choices[-1][
        "finish_reason"
    ] == "length"
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 3
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_errors_of_the_worker_have_openais_form(bridged):
    url, _ = bridged
    answer = httpx.post(url + "/v1/completions", json={"model": "m", "prompt": "too long"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    answer = httpx.post(url + "/v1/completions", json={"model": "m", "prompt": "breaks", "stream": True})
    assert "Hel" in answer.text and '"error"' in answer.text and "[DONE]" not in answer.text
    assert httpx.post(url + "/v1/completions", json={"model": "m", "prompt": "breaks"}).status_code == 503


@pytest.mark.parametrize(
    "path, body, param",
    [
        ("/v1/chat/completions", {"messages": "x"}, "messages"), ("/v1/chat/completions", {"messages": MESSAGES, "n": 2}, "n"),
        ("/v1/chat/completions", {"messages": MESSAGES, "tools": [{"type": "function"}]}, "tools"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ("/v1/completions", {"prompt": [1, 2]}, "prompt"), ("/v1/embeddings", {"input": [[1]]}, "input"),
    ],
)  # fmt: skip
def test_what_the_protocol_has_no_word_for_is_refused(bridged, path, body, param):
    url, worker = bridged
    answer = httpx.post(url + path, json={"model": "m", **body})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param) and worker.seen == []


def test_embeddings_are_vectors_of_the_worker_and_other_routes_do_not_exist(bridged):
    url, _ = bridged
    answer = httpx.post(url + "/v1/embeddings", json={"model": "m", "input": ["a", "b"]}).json()
    assert [entry["embedding"] for entry in answer["data"]] == [[1.0, 2.0]] * 2
    assert httpx.post(url + "/v1/messages", json={"model": "m", "messages": MESSAGES}).status_code == 404


def test_the_model_is_the_one_that_was_dispatched_whatever_the_body_says(start):
    worker, running = start(FastChatWorker), start(RunningController)
    registration = {"worker_name": worker.url, "check_heart_beat": True, "worker_status": None}
    httpx.post(running.url + "/register_worker", json=registration)
    for model in ({}, {"model": None}, {"model": ""}, {"model": 5}):
        for path, more in (
            ("/v1/completions", {"prompt": "say"}),
            ("/v1/chat/completions", {"messages": MESSAGES}),
            ("/v1/embeddings", {"input": "a"}),
        ):
            answer = httpx.post(running.url + path, json=model | more)
            assert answer.status_code == 200 and answer.json()["model"] == "m", answer.text
    assert {seen["model"] for seen in worker.seen} == {"m"} and len(worker.templates) == 1


def test_a_text_that_ends_within_a_character_is_not_shortened(bridged):
    url, worker = bridged
    worker.chunks = ("a", "a\ufffd", "ab\ufffd")
    body = {"model": "m", "prompt": "say", "stream": True}
    events = [line[6:] for line in httpx.post(url + "/v1/completions", json=body).text.split("\n\n") if line]
    texts = [json.loads(event)["choices"][0]["text"] for event in events if event != "[DONE]"]
    assert "".join(texts) == "ab\ufffd"


def test_an_error_within_a_stream_is_told_and_is_no_failure_of_the_connection(start):
    worker, running = start(FastChatWorker), start(RunningController)
    registration = {"worker_name": worker.url, "check_heart_beat": True, "worker_status": None}
    httpx.post(running.url + "/register_worker", json=registration)
    for _ in range(6):
        answer = httpx.post(
            running.url + "/v1/completions", json={"model": "m", "prompt": "breaks", "stream": True}
        )
        *_, last = (line[6:] for line in answer.text.split("\n\n") if line)
        assert json.loads(last)["error"]["message"] == "out of memory"
    (known,) = running.registry
    assert not known.breaker._failures and known.in_flight == 0
