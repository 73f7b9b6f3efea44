"""Requests of the OpenAI API, for the demo model."""

from __future__ import annotations

from typing import Any

from answers.exchange import Case
from answers.requests import get, numbered, post

_USAGE = {"include_usage": True}
_SCHEMA = {
    "type": "object",
    "properties": {"capital": {"type": "string", "maxLength": 12}},
    "required": ["capital"],
    "additionalProperties": False,
}
_TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}


def _complete(prompt: Any = "2+3=", **fields: Any) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": 12, "temperature": 0, **fields}


def _chat(*turns: Any, **fields: Any) -> dict[str, Any]:
    """`turns`: messages, or contents of a user message."""
    messages = [
        turn if isinstance(turn, dict) else {"role": "user", "content": turn}
        for turn in turns or ("What is AI?",)
    ]
    return {"messages": messages, "max_tokens": 16, "temperature": 0, **fields}


_BOTH: list[dict[str, Any]] = [
    {},
    {"model": "demo"},
    {"temperature": 1, "seed": 3},
    {"temperature": 1, "seed": -4, "top_p": 0.8, "top_k": 20, "min_p": 0.01},
    {"temperature": None, "seed": 9, "top_k": 0},
    {"presence_penalty": 1, "frequency_penalty": 0.5},
    {"repetition_penalty": 1.3},
    {"logit_bias": {"100": 30, "5": None}},
    {"allowed_token_ids": [70, 71, 72]},
    {"stop": "a"},
    {"stop": ["5", " "], "include_stop_str_in_output": True},
    {"stop": ["x"], "no_stop_trim": True},
    {"stop_token_ids": [100, 200]},
    {"min_tokens": 5, "max_tokens": 6},
    {"ignore_eos": True, "max_tokens": 24},
    {"ignore_eos": True, "logit_bias": {"2": 100}, "skip_special_tokens": False, "max_tokens": 3},
    {"truncate_prompt_tokens": 3},
    {"truncate_prompt_tokens": -1},
    {"return_token_ids": True},
    {"return_token_ids": True, "stop": "e"},
    {"user": "u", "store": True, "never_heard_of": 1},
    {"guided_regex": "[0-9]{3}"},
    {"guided_choice": ["yes", "no"]},
    {"guided_json": _SCHEMA, "max_tokens": 60},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": _SCHEMA}}, "max_tokens": 60},
    {"response_format": {"type": "text"}},
    {"structured_outputs": {"regex": "ab*c"}},
    {"ebnf": 'start: "a" | "b"'},
]  # fmt: skip

_COMPLETIONS = [
    *(_complete(**fields) for fields in _BOTH),
    _complete("What is AI?", logprobs=0),
    _complete("What is AI?", logprobs=3),
    _complete("What is AI?", logprobs=3, return_tokens_as_token_ids=True),
    _complete("What is AI?", logprobs=1, return_token_ids=True),
    _complete("Grüße 🌍", logprobs=2, temperature=1, seed=5, max_tokens=24),
    _complete("What is AI?", echo=True),
    _complete("What is AI?", echo=True, logprobs=2),
    _complete("What is AI?", echo=True, logprobs=2, max_tokens=0),
    _complete("What is AI?", echo=True, max_tokens=0),
    _complete("What is AI?", echo=True, return_token_ids=True),
    _complete([1, 70, 80, 90]),
    _complete([1, 70, 80, 90], echo=True, logprobs=1),
    _complete("What is AI?", stop="e", logprobs=1),
    _complete("hi", max_tokens=None),
]
_SEVERAL_COMPLETIONS = [
    _complete(["2+3=", "What is AI?", "hi"]),
    _complete([[1, 70, 80], [1, 71, 81]], echo=True),
    _complete(["2+3=", "hi"], n=2, temperature=1, seed=8),
    _complete(n=3, best_of=3, temperature=1, seed=21),
    _complete(n=2, temperature=1, seed=22, logprobs=1),
    _complete(["2+3=", "hi"], echo=True, logprobs=1, max_tokens=4),
]
_CHATS = [
    *(_chat(**fields) for fields in _BOTH),
    _chat({"role": "system", "content": "Be brief."}, "What is 2+3?"),
    _chat("What is 2+3?", {"role": "assistant", "content": "5"}, "And 4+4?"),
    _chat([{"type": "text", "text": "What is"}, {"type": "text", "text": "AI?"}], return_token_ids=True),
    _chat([{"type": "text", "text": ""}], return_token_ids=True),
    _chat(["one", "two"], return_token_ids=True),
    _chat("a", {"role": "assistant", "content": None}, "b", return_token_ids=True),
    _chat("a", {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, "b", return_token_ids=True),
    _chat("Count", {"role": "assistant", "content": "1, 2, 3"}, continue_final_message=True, add_generation_prompt=False),
    _chat(add_generation_prompt=False, return_token_ids=True),
    _chat(add_special_tokens=True, return_token_ids=True),
    _chat(chat_template_kwargs={"enable_thinking": False}),
    _chat(logprobs=True),
    _chat(logprobs=True, top_logprobs=3),
    _chat(logprobs=True, top_logprobs=2, return_tokens_as_token_ids=True),
    _chat("Grüße 🌍", logprobs=True, top_logprobs=1, temperature=1, seed=5, max_tokens=24),
    _chat(logprobs=True, return_token_ids=True),
    _chat(max_completion_tokens=5),
    _chat(max_tokens=None, max_completion_tokens=None, stop="."),
    _chat(tools=[_TOOL], tool_choice="none"),
]  # fmt: skip
_SEVERAL_CHATS = [
    _chat(n=3, temperature=1, seed=31),
    _chat(n=2, temperature=1, seed=32, logprobs=True, top_logprobs=1),
    _chat(n=2, temperature=1, seed=33, return_token_ids=True),
]
_STREAM_OPTIONS: list[dict[str, Any]] = [
    {},
    _USAGE,
    {"include_usage": True, "continuous_usage_stats": True},
    {"continuous_usage_stats": True},
]

_COMPLETION_ERRORS: list[Any] = [
    _complete(model="other"),
    _complete(max_tokens=0),
    _complete(max_tokens=10**6),
    _complete(n=0),
    _complete(n=2, best_of=3),
    _complete(suffix="x"),
    _complete(logprobs=99),
    _complete(top_p=2),
    _complete(seed=2**70),
    _complete(stream_options=_USAGE),
    _complete(min_tokens=13),
    _complete(truncate_prompt_tokens=0),
    _complete(prompt_embeds="x"),
    _complete(guided_regex="a", guided_choice=["b"]),
    _complete(guided_choice=[]),
    _complete(response_format={"type": "other"}),
    _complete(response_format={"type": "json_schema"}),
    _complete(structured_outputs={"structural_tag": "x"}),
    _complete(structured_outputs={"regex": "("}),
    _complete([99999]),
    _complete([]),
    _complete(""),
    _complete([["a"]]),
    _complete(["a"] * 1000, n=5),
    {},
    b"nonsense",
]
_CHAT_ERRORS: list[Any] = [
    _chat(model="other"),
    _chat(max_tokens=-1),
    _chat(max_completion_tokens=0),
    _chat(top_logprobs=3),
    _chat(logprobs=True, top_logprobs=99),
    _chat([{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]),
    _chat([{"type": "text", "text": "a"}, {"type": "input_audio", "input_audio": {}}]),
    _chat([{"type": "text"}]),
    _chat({"role": "user"}),
    _chat({"role": "", "content": "a"}),
    _chat({"role": "tool", "content": "a", "tool_call_id": "1"}),
    _chat("a", {"role": "assistant", "content": "b", "prefix": True}),
    _chat({"role": "user", "content": "a", "audio": {}}),
    _chat(tools=[_TOOL], tool_choice="required"),
    _chat(tools=[_TOOL], tool_choice={"type": "function", "function": {"name": "now"}}),
    _chat(tools=[_TOOL]),
    _chat(tools=[_TOOL], functions=[{"name": "now"}]),
    _chat(function_call="auto", tool_choice="auto"),
    _chat(tools=[{"type": "function"}]),
    _chat(continue_final_message=True),
    _chat(continue_final_message=True, add_generation_prompt=True),
    _chat(reasoning_effort="high"),
    _chat(chat_template_kwargs={"messages": 1}),
    _chat(chat_template_kwargs={"a": []}),
    _chat(echo=True),
    _chat(modalities=["audio"]),
    _chat(reasoning={"effort": "low"}),
    _chat("x " * 5000),
    {"messages": []},
    {"messages": "a"},
    {"messages": [3]},
    {},
    b"[1",
]


def _streamed(bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The bodies as streams, each with one of the stream options in turn."""
    result = []
    for number, body in enumerate(bodies):
        options = _STREAM_OPTIONS[number % len(_STREAM_OPTIONS)]
        result.append(body | {"stream": True} | ({"stream_options": options} if options else {}))
    return result


def openai_cases() -> list[Case]:
    completions, chats = "/v1/completions", "/v1/chat/completions"
    return [
        *numbered("completion", _COMPLETIONS, completions),
        *numbered("completion_several", _SEVERAL_COMPLETIONS, completions, several=True),
        *numbered("completion_stream", _streamed(_COMPLETIONS), completions, streamed=True),
        *numbered(
            "completion_stream_several",
            _streamed(_SEVERAL_COMPLETIONS),
            completions,
            streamed=True,
            several=True,
        ),
        *numbered("completion_error", _COMPLETION_ERRORS, completions),
        *numbered("completion_stream_error", _streamed(_COMPLETION_ERRORS[:-2]), completions, streamed=True),
        *numbered("chat", _CHATS, chats),
        *numbered("chat_several", _SEVERAL_CHATS, chats, several=True),
        *numbered("chat_stream", _streamed(_CHATS), chats, streamed=True),
        *numbered("chat_stream_several", _streamed(_SEVERAL_CHATS), chats, streamed=True, several=True),
        *numbered("chat_error", _CHAT_ERRORS, chats),
        *numbered("chat_stream_error", _streamed(_CHAT_ERRORS[:20]), chats, streamed=True),
        Case("models", get("/v1/models")),
        Case("model", get("/v1/models/demo")),
        Case("model_unknown", get("/v1/models/a/b")),
        Case(
            "completion_timed_out",
            post(completions, _complete(timeout=0.001, ignore_eos=True, max_tokens=1500)),
        ),
    ]
