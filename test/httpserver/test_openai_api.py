"""The OpenAI API through the official client, and its wire format where the client hides it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from httpserver.conftest import Worker
from support.fake_engine import DEFAULT_ANSWER, FakeEngine
from support.sse import chunks

from lightllm.protocol.messages import Refused
from lightllm.tokenizer import Tokenizer

MESSAGES: Any = [{"role": "user", "content": "What is AI?"}]


@pytest.fixture
def api(client: httpx.Client) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=str(client.base_url.join("/v1")), api_key="none", max_retries=0) as api:
        yield api


def post(client: httpx.Client, path: str = "/v1/completions", **body: Any) -> httpx.Response:
    return client.post(path, json=body)


def test_chat(api: openai.OpenAI, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    answer = api.chat.completions.create(model="tiny", messages=MESSAGES, seed=5)
    assert answer.object == "chat.completion" and answer.model == "tiny"
    assert answer.choices[0].message.content == DEFAULT_ANSWER
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].finish_reason == "stop"
    prompt = tokenizer.decode(engine.added[0].prompt_ids.tolist(), skip_special_tokens=False)
    assert prompt == "<s><|user|>What is AI?</s><|assistant|>"  # BOS once
    usage = answer.usage
    assert usage is not None and usage.prompt_tokens == len(engine.added[0].prompt_ids)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details is not None and usage.prompt_tokens_details.cached_tokens == 3
    params = engine.added[0].params
    assert params.seed == 5 and params.do_sample and params.raw_logprobs and params.repetition_counts_prompt
    assert params.max_new_tokens == 512 - usage.prompt_tokens  # the rest of the context


def test_several_answers_without_a_limit_share_the_memory(api: openai.OpenAI, engine: FakeEngine) -> None:
    api.chat.completions.create(model="tiny", messages=MESSAGES, n=4)
    (added,) = engine.added
    assert added.params.max_new_tokens == 1000 // 4 - len(added.prompt_ids)  # the engine has 1000 slots


def test_chat_stream(api: openai.OpenAI) -> None:
    stream = api.chat.completions.create(
        model="tiny", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    received = list(stream)
    assert received[-1].choices == [] and received[-1].usage is not None
    assert received[-1].usage.completion_tokens > 5
    deltas = [chunk.choices[0] for chunk in received[:-1]]
    assert deltas[0].delta.role == "assistant" and not deltas[0].delta.content
    assert all(choice.delta.role is None for choice in deltas[1:])
    assert "".join(choice.delta.content or "" for choice in deltas) == DEFAULT_ANSWER
    assert [choice.finish_reason for choice in deltas] == [None] * (len(deltas) - 1) + ["stop"]
    assert len({chunk.id for chunk in received}) == 1


def test_chat_stream_of_several_choices(client: httpx.Client) -> None:
    events = chunks(post(client, "/v1/chat/completions", messages=MESSAGES, n=3, stream=True, max_tokens=60))
    texts = dict.fromkeys(range(3), "")
    for event in events:
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
        assert "usage" not in event
    assert texts == dict.fromkeys(range(3), DEFAULT_ANSWER)
    assert sum(event["choices"][0]["finish_reason"] == "stop" for event in events) == 3


def test_chat_logprobs(api: openai.OpenAI) -> None:
    whole = api.chat.completions.create(model="tiny", messages=MESSAGES, logprobs=True, top_logprobs=2)
    content = whole.choices[0].logprobs.content  # type: ignore[union-attr]
    assert content is not None
    assert b"".join(bytes(t.bytes or []) for t in content[:-1]).decode() == DEFAULT_ANSWER
    assert content[0].logprob == -0.5 and len(content[0].top_logprobs) == 2
    assert content[0].top_logprobs[0].token == content[0].token
    streamed = []
    for chunk in api.chat.completions.create(
        model="tiny", messages=MESSAGES, logprobs=True, top_logprobs=2, stream=True
    ):
        if chunk.choices[0].logprobs is not None:
            streamed += chunk.choices[0].logprobs.content or []
    assert streamed == content


def test_completion(api: openai.OpenAI, engine: FakeEngine) -> None:
    answer = api.completions.create(model="tiny", prompt="Once", max_tokens=40, stop=["x"], n=2)
    assert answer.object == "text_completion"
    assert [choice.text for choice in answer.choices] == [DEFAULT_ANSWER] * 2
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert engine.added[0].params.stop_sequences == ["x"]
    assert engine.added[0].prompt_ids[0] == 1  # the tokenizer's BOS
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(engine.added[0].prompt_ids)


def test_completion_default_is_16_tokens(api: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script.endless = True
    answer = api.completions.create(model="tiny", prompt="Once")
    assert answer.usage is not None and answer.usage.completion_tokens == 16
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("prompt", [["a", "bc"], [[5, 6], [7]]])
@pytest.mark.parametrize("stream", [False, True])
def test_lists_of_prompts(client: httpx.Client, prompt: Any, stream: bool) -> None:
    response = post(client, prompt=prompt, n=2, max_tokens=40, stream=stream)
    texts = {}
    for event in chunks(response) if stream else [response.json()]:
        for choice in event["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    assert texts == dict.fromkeys(range(4), DEFAULT_ANSWER)


def test_usage_of_several_prompts_counts_each_prompt_once(client: httpx.Client, engine: FakeEngine) -> None:
    usage = post(client, prompt=[[5, 6], [7]], n=2, max_tokens=3).json()["usage"]
    assert usage["prompt_tokens"] == 3 and usage["completion_tokens"] == 12 and usage["total_tokens"] == 15
    assert usage["prompt_tokens_details"]["cached_tokens"] == 6


@pytest.mark.parametrize("stream", [False, True])
def test_echo_with_logprobs(client: httpx.Client, tokenizer: Tokenizer, stream: bool) -> None:
    response = post(
        client,
        prompt="Once upon",
        max_tokens=4,
        echo=True,
        logprobs=1,
        stream=stream,
        add_special_tokens=False,
    )
    text, parts = "", {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for event in chunks(response) if stream else [response.json()]:
        (choice,) = event["choices"]
        text += choice["text"]
        for name, values in (choice["logprobs"] or {}).items():
            parts[name] += values
    prompt_ids = tokenizer.encode("Once upon", add_special_tokens=False)
    assert text.startswith("Once upon")
    assert len(parts["tokens"]) == len(prompt_ids) + 4
    assert "".join(parts["tokens"]).startswith("Once upon")
    assert parts["token_logprobs"][0] is None and parts["top_logprobs"][0] is None
    assert parts["token_logprobs"][1] == -1.0 and parts["token_logprobs"][len(prompt_ids)] == -0.5
    assert parts["text_offset"][len(prompt_ids)] == len("Once upon")
    assert parts["text_offset"] == sorted(parts["text_offset"])
    assert parts["tokens"][2] in parts["top_logprobs"][2]


@pytest.mark.parametrize("stream", [False, True])
def test_echo_alone_scores_the_prompt(client: httpx.Client, tokenizer: Tokenizer, stream: bool) -> None:
    fields: dict[str, Any] = {"stream_options": {"include_usage": True}} if stream else {}
    response = post(
        client, prompt=["Once upon", "a"], max_tokens=0, echo=True, logprobs=1, stream=stream, **fields
    )
    texts, counts, usage, reasons = ["", ""], [0, 0], None, []
    for event in chunks(response) if stream else [response.json()]:
        usage = event["usage"]
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
            counts[choice["index"]] += len((choice["logprobs"] or {}).get("tokens", []))
            reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
    assert texts == ["Once upon", "a"]
    assert counts == [len(tokenizer.encode(text)) for text in texts]
    assert usage is not None and usage["prompt_tokens"] == sum(counts) and usage["completion_tokens"] == 0
    assert reasons == ["length", "length"]


def test_offsets_of_an_echo_skip_the_bos_that_the_tokenizer_added(client: httpx.Client) -> None:
    answer = post(client, prompt="Größe one", max_tokens=3, echo=True, logprobs=0).json()["choices"][0]
    parts = answer["logprobs"]
    assert parts["tokens"][0] == "<s>"
    offsets = parts["text_offset"]
    assert offsets == sorted(offsets) and offsets[:2] == [0, 0]
    for token, offset in zip(parts["tokens"][1:], offsets[1:], strict=True):
        if not token.startswith("bytes:"):
            assert answer["text"].startswith(token, offset)


def test_tokens_that_are_parts_of_characters_have_names_of_their_own(client: httpx.Client) -> None:
    parts = post(client, prompt="x", max_tokens=60, logprobs=0).json()["choices"][0]["logprobs"]
    names = [token for token in parts["tokens"] if token.startswith("bytes:")]
    data = bytes.fromhex("".join(name.removeprefix("bytes:").replace("\\x", "") for name in names))
    assert "🙂" in data.decode() and len(names) >= 4


def test_echo_of_token_ids_decodes_them(client: httpx.Client, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("Once upon", add_special_tokens=False)
    answer = post(client, prompt=ids, max_tokens=60, echo=True).json()
    assert answer["choices"][0]["text"] == "Once upon" + DEFAULT_ANSWER


def test_text_parts_and_null_content(client: httpx.Client, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": None},
        {"role": "tool", "tool_call_id": "c1", "content": "result"},
    ]
    response = post(client, "/v1/chat/completions", messages=messages, max_tokens=3)
    assert response.status_code == 200, response.text
    prompt = tokenizer.decode(engine.added[0].prompt_ids.tolist(), skip_special_tokens=False)
    assert "<|system|>one\ntwo</s><|assistant|></s><|tool|>result</s>" in prompt


def test_extensions_reach_the_router(client: httpx.Client, engine: FakeEngine) -> None:
    response = post(
        client, prompt="x", max_tokens=9, min_tokens=2, top_k=4, min_p=0.1, repetition_penalty=1.1, ignore_eos=True,
        stop_token_ids=[7], include_stop_str_in_output=True, skip_special_tokens=False, logit_bias={"3": 2}, allowed_token_ids=[3, 4],
        priority=1, timeout=60, user="me", unknown={"a": 1}, temperature=None, presence_penalty=-1.5,
    )  # fmt: skip
    assert response.status_code == 200, response.text
    params = engine.added[0].params
    assert (params.min_new_tokens, params.top_k, params.min_p, params.priority) == (2, 4, 0.1, 1)
    assert (
        params.stop_token_ids == [7]
        and params.logit_bias == {3: 2.0}
        and params.allowed_token_ids == [3, 4]
        and params.timeout == 60
    )
    assert params.ignore_eos and params.include_stop_str_in_output and not params.skip_special_tokens
    assert params.presence_penalty == -1.5


@pytest.mark.parametrize(("given", "sent"), [(-(2**63), 0), (-2, 2**63 - 2), (7, 7)])
def test_seeds_are_signed(client: httpx.Client, engine: FakeEngine, given: int, sent: int) -> None:
    assert post(client, prompt="x", seed=given).status_code == 200
    assert engine.added[0].params.seed == sent


def test_vllms_ways_to_ask_for_no_seed_and_no_top_k(client: httpx.Client, engine: FakeEngine) -> None:
    for _ in range(2):
        assert post(client, prompt="x", seed=-1, top_k=0).status_code == 200
    first, second = [message.params for message in engine.added]
    assert first.top_k == -1 and first.seed != second.seed


def test_null_means_the_default_inside_objects_too(client: httpx.Client, engine: FakeEngine) -> None:
    response = post(
        client, "/v1/chat/completions", messages=[{"role": "user", "content": "hi", "name": None}],
        chat_template_kwargs={"enable_thinking": None}, top_logprobs=0, stream=True,
        stream_options={"include_usage": None}, logit_bias={"3": None},
    )  # fmt: skip
    assert response.status_code == 200, response.text
    assert engine.added[0].params.logit_bias == {}


def test_models(api: openai.OpenAI) -> None:
    (model,) = api.models.list().data
    assert model.id == "tiny" and model.model_dump()["max_model_len"] == 512
    assert api.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        api.models.retrieve("other")


@pytest.mark.parametrize("name", ["tiny", "/models/tiny", "gpt-17", "org/a b", "dummy", None, ""])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_any_model_name_means_the_one_there_is(client: httpx.Client, path: str, name: str | None) -> None:
    start = {"messages": MESSAGES} if "chat" in path else {"prompt": "x"}
    response = post(client, path, model=name, **start)
    assert response.status_code == 200
    assert response.json()["model"] == (name or "tiny")
    events = post(client, path, model=name, stream=True, **start).content.split(b"\n\n")
    assert json.loads(events[0][6:])["model"] == (name or "tiny")


def test_a_name_that_is_too_long_to_come_back_is_refused(client: httpx.Client) -> None:
    assert post(client, prompt="x", model="x" * 256).status_code == 200
    response = post(client, prompt="x", model="x" * 257)
    assert response.status_code == 400 and response.json()["error"]["param"] == "model"


def test_a_model_may_have_several_names_and_be_strict_about_them(
    start_worker: Callable[..., Worker], engine: FakeEngine
) -> None:
    worker = start_worker(
        worker=1, httpserver_workers=2, model_name=["first", "org/second"], strict_model_name=True, model_owner="us"
    )  # fmt: skip
    api = openai.OpenAI(base_url=f"{worker.url}/v1", api_key="-", max_retries=0)
    assert [(model.id, model.owned_by) for model in api.models.list()] == [
        ("first", "us"), ("org/second", "us")
    ]  # fmt: skip
    for name in ("first", "org/second", "/models/tiny"):
        assert api.completions.create(model=name, prompt="x").model == name
        assert api.models.retrieve(name).id == name
    with pytest.raises(openai.NotFoundError) as missing:
        api.chat.completions.create(model="gpt-17", messages=MESSAGES)
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    assert "`first`, `org/second`" in missing.value.message
    assert httpx.get(f"{worker.url}/get_model_name").json() == {"model_name": "first"}
    api.close()


def test_errors_are_typed_for_the_official_client(api: openai.OpenAI, engine: FakeEngine) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        api.chat.completions.create(model="tiny", messages=MESSAGES, top_p=1.5)
    assert bad.value.param == "top_p" and "1.5" in bad.value.message
    with pytest.raises(openai.BadRequestError) as long:
        api.completions.create(model="tiny", prompt="x", max_tokens=512)
    assert long.value.code == "context_length_exceeded" and "512" in long.value.message
    with pytest.raises(openai.BadRequestError) as malformed:
        api.completions.create(model="tiny", prompt=5)  # type: ignore[call-overload]
    assert malformed.value.param == "prompt" and malformed.value.code == "malformed_body"
    engine.script.refuse = Refused([], "ServerOverloaded", "full", retry_after=2)
    with pytest.raises(openai.InternalServerError) as full:
        api.completions.create(model="tiny", prompt="x", stream=True)
    assert full.value.status_code == 503 and full.value.response.headers["retry-after"] == "2"


def test_failure_in_a_stream_is_an_error_event(api: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script.finish_error, engine.script.error_after = "the device is lost", 2
    with pytest.raises(openai.APIError, match="the device is lost"):
        list(api.chat.completions.create(model="tiny", messages=MESSAGES, stream=True))
    with api.chat.completions.with_streaming_response.create(
        model="tiny", messages=MESSAGES, stream=True
    ) as raw:
        assert "the device is lost" in (text := raw.read().decode()) and '"finish_reason":"error"' not in text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 4, "min_tokens": 5}, "min_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"guided_choice": []}, "guided_choice"),
        ({"structured_outputs": {"structural_tag": {}}, "guided_regex": "a"}, "structured_outputs"),
        ({"prompt": ["x"] * 2000, "n": 2}, "prompt"),
        ({"prompt": [[5], []]}, "prompt"),
        ({"prompt": "", "add_special_tokens": False}, "prompt"),
        ({"prompt": ["x", ""], "add_special_tokens": False}, "prompt"),
        ({"prompt": [[5], [10**6]]}, "prompt"),
    ],
)
def test_bad_completions(client: httpx.Client, body: dict, param: str) -> None:
    response = post(client, **({"prompt": "x"} | body))
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": -1}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"messages": "x"}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a": [1]}}, "chat_template_kwargs"),
        ({"tool_choice": "sometimes", "tools": [{"type": "function", "function": {"name": "f"}}]}, "tool_choice"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"messages": []}, "messages"),
    ],
)  # fmt: skip
def test_bad_chats(client: httpx.Client, body: dict, param: str) -> None:
    response = post(client, "/v1/chat/completions", **({"messages": MESSAGES} | body))
    assert response.status_code in (400, 422), response.text
    assert response.json()["error"]["param"] == param


def test_one_refused_prompt_ends_its_siblings(client: httpx.Client, engine: FakeEngine) -> None:
    engine.script.hold = True
    engine.script.refuse = Refused([], "PromptTooLong", "too long", param="prompt")
    response = post(client, prompt=["a", "b", "c"])
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
