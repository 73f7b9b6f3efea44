"""Requests for a server with API keys, CORS, a chat template that knows tools and typed content, and a scripted model. What a
template made of messages shows in the ids of the prompt."""

from __future__ import annotations

from typing import Any

from answers.exchange import Case
from answers.requests import get, numbered, post

KEY = "Authorization: Bearer key-one"
ADMIN = "Authorization: Bearer key-admin"
TEMPLATE = """{{- bos_token }}
{%- if tools %}{%- for tool in tools %}{{ '[tool]' + tool | tojson }}{%- endfor %}{%- endif %}
{%- if reasoning_effort is defined %}{{ '[effort]' + reasoning_effort }}{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' }}
{%- if message.reasoning_content %}{{ '<think>' + message.reasoning_content + '</think>' }}{%- endif %}
{%- for part in message.content or [] %}
{%- if part.type == 'text' %}{{ '{' + part.text + '}' }}{%- endif %}
{%- endfor %}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>' + call.function.name + call.function.arguments | tojson + '</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"""
_TOOL = {
    "type": "function",
    "function": {
        "name": "now",
        "description": "The time",
        "parameters": {"type": "object", "properties": {}},
    },
}
_CALL = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": '{"zone": "UTC"}'}}


def _chat(*turns: Any, **fields: Any) -> dict[str, Any]:
    messages = [turn if isinstance(turn, dict) else {"role": "user", "content": turn} for turn in turns]
    return {"messages": messages, "max_tokens": 6, "seed": 1, "return_token_ids": True, **fields}


def _called(content: Any = None, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": [_CALL], **fields}


_RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "12:00"}
_CHATS = [
    _chat("Hello"),
    _chat([{"type": "text", "text": "one"}, {"type": "input_text", "text": "two"}]),
    _chat(["one", {"type": "text", "text": "two\n"}, "three"]),
    _chat({"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, "Hello"),
    _chat({"role": "developer", "content": "Be brief."}, "Hello"),
    _chat("time?", _called(), _RESULT),
    _chat("time?", _called("I look."), _RESULT, tools=[_TOOL]),
    _chat(
        "time?",
        _called([{"type": "text", "text": "I"}, {"type": "text", "text": "look."}]),
        {**_RESULT, "content": [{"type": "text", "text": "12"}, {"type": "text", "text": "00"}]},
    ),
    _chat("a", {"role": "assistant", "content": "b", "reasoning_content": "because"}, "c"),
    _chat("a", {"role": "assistant", "content": [{"type": "thinking", "thinking": "because"}]}, "c"),
    _chat("a", {"role": "assistant", "content": None, "refusal": "No."}, "c"),
    _chat("a", {"role": "assistant", "function_call": {"name": "now", "arguments": "{}"}},
          {"role": "function", "name": "now", "content": "12"}),
    _chat("Hello", tools=[_TOOL]),
    _chat("Hello", tools=[_TOOL], tool_choice="auto"),
    _chat("Hello", tools=[_TOOL], tool_choice="none"),
    _chat("Hello", functions=[_TOOL["function"]]),
    _chat("Hello", reasoning_effort="low"),
    _chat("Hello", chat_template_kwargs={"reasoning_effort": "high"}),
    _chat("Hello", reasoning_effort="low", chat_template_kwargs={"reasoning_effort": "high"}),
    _chat("a", {"role": "assistant", "content": "open"}, continue_final_message=True, add_generation_prompt=False),
    _chat("a", {"role": "assistant", "content": [{"type": "text", "text": "op"}, {"type": "text", "text": "en"}]},
          continue_final_message=True, add_generation_prompt=False),
    _chat([{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": "http://x"}}]),
    _chat([{"type": "image", "image": "x"}]),
    _chat([{"type": "video_url", "video_url": {"url": "http://x"}}]),
    _chat([]),
    _chat("", n=2),
    _chat("long " * 1500, max_tokens=300),
]  # fmt: skip
_TEXTS: list[dict[str, Any]] = [
    {"prompt": "a", "max_tokens": 40, "seed": 1},
    {"prompt": "a", "max_tokens": 40, "seed": 2, "skip_special_tokens": False},
    {"prompt": "a", "max_tokens": 40, "seed": 3, "logprobs": 2, "echo": True},
    {"prompt": ["a", "b"], "max_tokens": 20, "seed": 4, "n": 2, "logprobs": 1},
    {"prompt": "a", "max_tokens": 60, "seed": 5, "stop": ["e", "zz"], "logprobs": 0},
    {"prompt": "long " * 1500, "max_tokens": 40, "seed": 6},
]


def scripted_cases() -> list[Case]:
    chats, completions = "/v1/chat/completions", "/v1/completions"
    streams = [body | {"stream": True, "stream_options": {"include_usage": True}} for body in _CHATS]
    texts = [body | {"stream": True} for body in _TEXTS]
    native = [{"inputs": "a", "parameters": {"max_new_tokens": 40, "seed": number}} for number in range(4)]
    streams_of_several = {"streamed": True, "several": True}
    return [
        *numbered("chat", _CHATS, chats, KEY, several=True),
        *numbered("chat_stream", streams, chats, KEY, **streams_of_several),
        *numbered("completion", _TEXTS, completions, KEY, several=True),
        *numbered("completion_stream", texts, completions, KEY, **streams_of_several),
        *numbered("generate", native, "/generate", KEY),
        *numbered("stream", native, "/generate_stream", KEY, streamed=True),
        Case("no_key", get("/v1/models")),
        Case("no_key_native", post("/generate", native[0])),
        Case("wrong_key", get("/v1/models", "Authorization: Bearer other")),
        Case("two_keys", get("/v1/models", KEY, ADMIN)),
        Case("basic", get("/v1/models", "Authorization: Basic a2V5LW9uZQ==")),
        Case("x_api_key", get("/v1/models/scripted", "x-api-key: key-two")),
        Case("azure_key", get("/version", "api-key: key-two")),
        Case("health_is_open", get("/health")),
        Case("metrics_are_not", get("/metrics")),
        Case("unknown_path_without_key", get("/nowhere")),
        Case("flush_needs_admin", post("/flush_cache", None, KEY)),
        Case("flush", post("/flush_cache", None, ADMIN)),
        Case("profile_needs_admin", post("/start_profile", None, KEY)),
        Case("abort", post("/abort_request", {"request_id": "x"}, KEY)),
        Case("cors", post("/v1/completions", _TEXTS[0], KEY, "Origin: http://a.example")),
        Case("cors_error", post("/v1/completions", {}, KEY, "Origin: http://a.example")),
        Case("cors_foreign", post("/v1/completions", _TEXTS[0], KEY, "Origin: http://b.example")),
        Case("preflight", get("/v1/completions", "Origin: http://a.example", "Access-Control-Request-Method: POST",
                              "Access-Control-Request-Headers: authorization", method="OPTIONS")),
        Case("preflight_foreign", get("/v1/completions", "Origin: http://b.example",
                                      "Access-Control-Request-Method: POST", method="OPTIONS")),
    ]  # fmt: skip
