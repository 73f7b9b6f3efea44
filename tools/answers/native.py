"""Requests of LightLLM's own API, for the demo model."""

from __future__ import annotations

from typing import Any

from answers.exchange import Case
from answers.requests import get, numbered, post

_SCHEMA = {
    "type": "object",
    "properties": {"capital": {"type": "string", "maxLength": 12}, "n": {"type": "integer"}},
    "required": ["capital", "n"],
    "additionalProperties": False,
}


def _generate(inputs: Any = "What is AI?", **parameters: Any) -> dict[str, Any]:
    return {"inputs": inputs, "parameters": {"max_new_tokens": 16, **parameters}}


_TEXTS = [
    _generate(),
    _generate("2+3=", max_new_tokens=8),
    _generate([1, 70, 80, 90, 100]),
    _generate("Grüße, 世界 🌍", max_new_tokens=12),
    _generate("x"),
    _generate("", max_new_tokens=4),
    _generate("Count from 1 to 10.", max_new_tokens=40),
    _generate(return_details=True),
    _generate("2+3=", return_details=True, do_sample=True, seed=7),
    _generate(do_sample=True, seed=1, temperature=0.7),
    _generate(do_sample=True, seed=2, top_k=5),
    _generate(do_sample=True, seed=3, top_p=0.5),
    _generate(do_sample=True, seed=4, min_p=0.2),
    _generate(do_sample=True, seed=5, temperature=1.8, max_new_tokens=40),
    _generate(presence_penalty=0.8, frequency_penalty=1),
    _generate(repetition_penalty=1.4, input_penalty=True),
    _generate(exponential_decay_length_penalty=[2, 1.5]),
    _generate(logit_bias={"100": 30}, max_new_tokens=3),
    _generate(allowed_token_ids=[70, 71, 72], max_new_tokens=5),
    _generate(ignore_eos=True, max_new_tokens=30),
    _generate(min_new_tokens=12, max_new_tokens=14),
    _generate("Count from 1 to 10.", stop_sequences=["4, 5"], max_new_tokens=40),
    _generate("Count from 1 to 10.", stop_sequences=["4, 5"], include_stop_str_in_output=True, max_new_tokens=40),
    _generate("Count from 1 to 10.", stop="7", max_new_tokens=40),
    _generate(stop_sequences=[[100], "zz"]),
    _generate(stop_token_ids=[100, 200, 300], max_new_tokens=30),
    _generate("hi", stop_sequences=["</s>"], ignore_eos=True, logit_bias={"2": 100}),
    _generate("hi", skip_special_tokens=False, ignore_eos=True, logit_bias={"2": 100}, max_new_tokens=3),
    _generate("hi", skip_special_tokens=False, add_spaces_between_special_tokens=False, ignore_eos=True),
    _generate("hi", print_eos_token=True, logit_bias={"2": 100}),
    _generate(add_special_tokens=False, max_new_tokens=6),
    _generate("The quick brown fox jumps over the lazy dog", truncate=4),
    _generate(priority=3),
    _generate(regular_constraint="[0-9]{2}!"),
    _generate(guided_grammar='start: "yes" | "no"'),
    _generate("Capital of France?", guided_json=_SCHEMA, max_new_tokens=60),
    _generate(json_schema=_SCHEMA, max_new_tokens=60),
    _generate(regex="(ab)+c", max_new_tokens=9),
    _generate(ebnf='start: "a" | "b"'),
    _generate(grammar={"type": "regex", "value": "[abc]{3}"}),
    _generate(grammar={"type": "json", "value": _SCHEMA}, max_new_tokens=60),
    {"inputs": "What is AI?"},
    {"inputs": "What is AI?", "parameters": None, "multimodal_params": {}},
    _generate(max_new_tokens="5", do_sample="false", unheard_of=1),
]  # fmt: skip

_SEVERAL = [
    _generate(best_of=3, do_sample=True, seed=11),
    _generate(n=2, do_sample=True, seed=12, return_details=True),
    _generate(best_of=2, do_sample=True, seed=13, stop_sequences=["a"]),
]

_ERRORS: list[Any] = [
    _generate(top_p=0),
    _generate(top_k=-7),
    _generate(temperature=-1),
    _generate(temperature="hot"),
    _generate(max_new_tokens=0),
    _generate(max_new_tokens=10**6),
    _generate(min_new_tokens=20),
    _generate(best_of=0),
    _generate(best_of=2, n=3),
    _generate(best_of=10**9),
    _generate(seed=-5),
    _generate(stop="a", stop_sequences=["b"]),
    _generate(regular_constraint="("),
    _generate(guided_grammar="start: x"),
    _generate(guided_json='{"type": 7}'),
    _generate(regex="a", ebnf='start: "a"'),
    _generate(grammar={"type": "regex", "value": {}}),
    _generate(grammar={"type": "other", "value": ""}),
    _generate(allowed_token_ids=[99999]),
    _generate(stop_token_ids=["a"]),
    _generate(logit_bias={"x": 1}),
    _generate(truncate=0),
    _generate(exponential_decay_length_penalty=["x", 1]),
    _generate(exponential_decay_length_penalty=[1, "x"]),
    _generate(num_beams=4),
    _generate(max_tokens=4),
    _generate(timeout=-1),
    _generate([1, 99999]),
    _generate([]),
    _generate([1, "a"]),
    _generate("x " * 5000),
    {"inputs": "a", "max_new_tokens": 4},
    {"inputs": "a", "sampling_params": {}},
    {"inputs": "a", "multimodal_params": {"images": [{"type": "url", "data": "http://x"}]}},
    {"parameters": {}},
    {},
    [],
    None,
    b"{",
    b"\xff\xfe",
    b'{"inputs": "\\ud800"}',
    b'{"inputs": NaN}',
    b'{"inputs": ' + b"[" * 2000 + b"]" * 2000 + b"}",
    b"x" * ((1 << 20) + 1),
]


def native_cases() -> list[Case]:
    return [
        *numbered("generate", _TEXTS, "/generate"),
        *numbered("generate_several", _SEVERAL, "/generate", several=True),
        *numbered("generate_error", _ERRORS, "/generate"),
        *numbered("stream", _TEXTS, "/generate_stream", streamed=True),
        *numbered("stream_error", [_SEVERAL[0], *_ERRORS[:6], _ERRORS[12], _ERRORS[-5]], "/generate_stream"),
        Case("stream_field", post("/generate_stream", _generate() | {"stream": True}), streamed=True),
        Case(
            "generate_timed_out",
            post("/generate", _generate(timeout=0.001, ignore_eos=True, max_new_tokens=1500)),
        ),
        Case("tokens", post("/tokens", {"text": "What is AI?"})),
        Case("tokens_get", post("/tokens", {"text": "What is AI?"}, method="GET")),
        Case("tokens_plain", post("/tokens", {"text": "a b", "parameters": {"add_special_tokens": False}})),
        Case("tokens_error", post("/tokens", {"text": 3})),
        Case("tokens_images", post("/tokens", {"text": "", "multimodal_params": {"images": [1]}})),
        Case("score_refused", post("/get_score", {"chat": "hi"})),
        Case("abort_unknown", post("/abort_request", {"request_id": "none"})),
        Case("abort_empty", post("/abort_request", {"request_id": ""})),
        Case("flush", post("/flush_cache", None)),
        Case("profile_off", post("/start_profile", None)),
        Case("profile_stop", post("/stop_profile", {})),
        Case("generate_get", get("/generate")),
    ]
