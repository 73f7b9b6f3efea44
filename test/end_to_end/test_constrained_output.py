"""Constrained decoding as clients meet it: the demo model (fp32) behind real HTTP and the openai client. The output of a
request that ends with "stop" matches its regular expression, is a sentence of its grammar, or fits its schema."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import jsonschema_rs
import openai
import pytest
from pydantic import BaseModel, Field
from support.http_client import http_client
from support.server import LightLLMServer

import lightllm.demo
from lightllm.tokenizer import Tokenizer, load_tokenizer

REGEX = r"[A-Z][a-z]{2,7}(, [a-z]{3,5}){0,2}: [0-9]{1,3}!"
SUM = re.compile(r"\d{1,2}(\+\d{1,2}){0,3}=\((y|no)\)")
GBNF = """root ::= sum "=" answer
sum ::= number ("+" number){0,3}  # at most four
number ::= [0-9] [0-9]?
answer ::= "(" ("y" | "no") ")"
"""
LARK = 'start: NUMBER ("+" NUMBER){0,3} "=" "(" ("y" | "no") ")"\nNUMBER: /[0-9]{1,2}/\n'
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "colours": {"type": "array", "items": {"enum": ["red", "grün"]}, "maxItems": 2},
        "home": {"$ref": "#/$defs/home"},
    },
    "required": ["name", "age", "colours", "home"],
    "additionalProperties": False,
    "$defs": {"home": {"anyOf": [{"type": "null"}, {"const": {"city": "Berlin"}}]}},
}
CHOICES = ["yes", "no, never", 'perhaps: "so"\n']
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"


class Address(BaseModel):
    street: Annotated[str, Field(max_length=10)]
    number: int | None


class Person(BaseModel):
    """As in OpenAI's examples."""

    name: Annotated[str, Field(max_length=12)]
    mood: Literal["glad", "sad"]
    addresses: Annotated[list[Address], Field(max_length=1)]


@pytest.fixture(scope="module")
def server() -> Iterator[LightLLMServer]:
    options = ["--model_name", "demo", "--data_type", "fp32", "--max_total_token_num", "20000"]
    with LightLLMServer([*options, "--httpserver_workers", "2"]) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: LightLLMServer) -> Iterator[httpx.Client]:
    with http_client(server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def api(server: LightLLMServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as api:
        yield api


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(str(Path(lightllm.demo.__file__).parent))


def native(client: httpx.Client, **parameters: Any) -> dict[str, Any]:
    body = {"inputs": "What is AI?", "parameters": {"max_new_tokens": 120} | parameters}
    response = client.post("/generate", json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


def native_stream(client: httpx.Client, **parameters: Any) -> tuple[str, str]:
    """Text and finish reason."""
    body = {"inputs": "What is AI?", "parameters": {"max_new_tokens": 120} | parameters}
    response = client.post("/generate_stream", json=body)
    assert response.status_code == 200, response.text
    events = [json.loads(event[5:]) for event in response.content.split(b"\n\n")[:-1]]
    return "".join(event["token"]["text"] for event in events), events[-1]["finish_reason"]


def openai_body(path: str, **fields: Any) -> dict[str, Any]:
    prompt: dict[str, Any] = {"prompt": "What is AI?"}
    if path == CHAT:
        prompt = {"messages": [{"role": "user", "content": "What is AI?"}]}
    return {"max_tokens": 120, "temperature": 0} | prompt | fields


def choices(client: httpx.Client, path: str, **fields: Any) -> list[tuple[str, str]]:
    """Text and finish reason of each choice."""
    response = client.post(path, json=openai_body(path, **fields))
    assert response.status_code == 200, response.text
    return [
        (choice["message"]["content"] if path == CHAT else choice["text"], choice["finish_reason"])
        for choice in response.json()["choices"]
    ]


def streamed(client: httpx.Client, path: str, **fields: Any) -> list[tuple[str, str]]:
    response = client.post(path, json=openai_body(path, stream=True, **fields))
    assert response.status_code == 200, response.text
    frames = response.content.split(b"\n\n")
    assert frames.pop() == b"" and frames.pop() == b"data: [DONE]"
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for frame in frames:
        for choice in json.loads(frame[6:])["choices"]:
            index = choice["index"]
            text = choice["delta"].get("content") if path == CHAT else choice["text"]
            texts[index] = texts.get(index, "") + (text or "")
            if choice["finish_reason"]:
                reasons[index] = choice["finish_reason"]
    return [(texts[index], reasons[index]) for index in sorted(texts)]


def fits(schema: dict[str, Any]) -> Callable[[str], bool]:
    return lambda text: jsonschema_rs.is_valid(schema, json.loads(text))


def matches(pattern: str | re.Pattern[str]) -> Callable[[str], bool]:
    return lambda text: re.fullmatch(pattern, text) is not None


NATIVE_WAYS: dict[str, tuple[dict[str, Any], Callable[[str], bool]]] = {
    "regex": ({"regular_constraint": REGEX}, matches(REGEX)),
    "GBNF": ({"guided_grammar": GBNF}, matches(SUM)),
    "Lark": ({"guided_grammar": LARK}, matches(SUM)),
    "schema": ({"guided_json": SCHEMA}, fits(SCHEMA)),
    "schema as text": ({"guided_json": json.dumps(SCHEMA)}, fits(SCHEMA)),
}


@pytest.mark.parametrize(
    "way",
    [pytest.param(way, marks=pytest.mark.slow if way == "schema as text" else ()) for way in NATIVE_WAYS],
)
def test_native_outputs_obey(client: httpx.Client, way: str) -> None:
    parameters, obeys = NATIVE_WAYS[way]
    answer = native(client, **parameters)
    (text,) = answer["generated_text"]
    assert answer["finish_reason"] == "stop" and obeys(text), text
    assert native_stream(client, **parameters) == (text, "stop")
    drawn = [native(client, do_sample=True, temperature=1.3, seed=seed, **parameters) for seed in range(2)]
    for answer in drawn:
        assert answer["finish_reason"] == "stop" and obeys(answer["generated_text"][0])
    assert len({answer["generated_text"][0] for answer in drawn}) > 1


def test_a_schema_is_the_same_as_object_and_as_text(client: httpx.Client) -> None:
    assert native(client, guided_json=SCHEMA)["generated_text"] == native(client, guided_json=json.dumps(SCHEMA))["generated_text"]  # fmt: skip


SMALL = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99, "minimum": 1}}, "required": ["n"],
         "additionalProperties": False}  # fmt: skip
OPENAI_WAYS: dict[str, tuple[dict[str, Any], Callable[[str], bool]]] = {
    "json_schema": ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}}, fits(SCHEMA)),
    "strict": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SMALL, "strict": True}}},
        fits(SMALL),
    ),
    "schema beside the type": ({"response_format": {"type": "json_object", "schema": SMALL}}, fits(SMALL)),
    "schema alone": ({"response_format": {"schema": SMALL}}, fits(SMALL)),
    "guided_json": ({"guided_json": SMALL}, fits(SMALL)),
    "guided_regex": ({"guided_regex": REGEX}, matches(REGEX)),
    "guided_choice": ({"guided_choice": CHOICES}, CHOICES.__contains__),
    "guided_grammar": ({"guided_grammar": GBNF}, matches(SUM)),
    "structured json": ({"structured_outputs": {"json": json.dumps(SMALL)}}, fits(SMALL)),
    "structured regex": ({"structured_outputs": {"regex": REGEX}}, matches(REGEX)),
    "structured choice": ({"structured_outputs": {"choice": CHOICES}}, CHOICES.__contains__),
    "structured grammar": ({"structured_outputs": {"grammar": LARK}}, matches(SUM)),
}  # fmt: skip


BOTH_ROUTES = ("strict", "guided_regex", "guided_grammar", "structured choice")
"""Ways of which the short form asks both routes: one of each kind; of the others it asks the chat alone."""


@pytest.mark.parametrize(
    ("way", "path"),
    [
        pytest.param(
            way, path, marks=pytest.mark.slow if path == COMPLETION and way not in BOTH_ROUTES else ()
        )
        for way in OPENAI_WAYS
        for path in (CHAT, COMPLETION)
    ],
)
def test_openai_and_vllm_outputs_obey(client: httpx.Client, path: str, way: str) -> None:
    fields, obeys = OPENAI_WAYS[way]
    ((text, reason),) = choices(client, path, **fields)
    assert reason == "stop" and obeys(text), text
    assert streamed(client, path, **fields) == [(text, "stop")]
    several = choices(client, path, n=2, temperature=1, seed=5, **fields)
    assert [reason for _, reason in several] == ["stop"] * 2 and all(obeys(text) for text, _ in several)
    assert streamed(client, path, n=2, temperature=1, seed=5, **fields) == several


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"response_format": {"type": "json_object"}}),
        (COMPLETION, {"structured_outputs": {"json_object": True}}),
        pytest.param(COMPLETION, {"response_format": {"type": "json_object"}}, marks=pytest.mark.slow),
        pytest.param(CHAT, {"structured_outputs": {"json_object": True}}, marks=pytest.mark.slow),
    ],
)
def test_any_object(client: httpx.Client, tokenizer: Tokenizer, path: str, fields: dict[str, Any]) -> None:
    bias = {
        str(token_id): 9.0 for text in '"}' for token_id in tokenizer.encode(text, add_special_tokens=False)
    }
    drawn = [choices(client, path, seed=seed, temperature=1, logit_bias=bias, **fields) for seed in range(4)]
    whole = [text for ((text, reason),) in drawn if reason == "stop"]
    assert len(whole) > 1 and all(isinstance(json.loads(text), dict) for text in whole)
    ((text, reason),) = choices(client, path, max_tokens=1, **fields)
    assert text.startswith("{") and reason == "length"


TEXTS = ["", " ", "a", "</s>", "<|user|>", "\x00\x01\x7f", '"\\/\n\t\r', "größe 🙂 \u2028", "(a|b)*[c]{3}", "root ::= x", "%", "x" * 20]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_any_text_can_be_a_choice(client: httpx.Client, text: str) -> None:
    assert choices(client, COMPLETION, guided_choice=[text]) == [(text, "stop")]
    assert choices(client, CHAT, structured_outputs={"choice": [text, text]}) == [(text, "stop")]


def test_a_choice_that_begins_another_can_be_taken(client: httpx.Client) -> None:
    drawn = choices(client, COMPLETION, guided_choice=["b", "bb", "bbb"], temperature=4, n=60, seed=1)
    assert {text for text, _ in drawn} == {"b", "bb", "bbb"}


MESSAGES: Any = [{"role": "user", "content": "Who are you?"}]


def test_the_official_client_parses_into_a_model(api: openai.OpenAI) -> None:
    answer = api.chat.completions.parse(
        model="demo", messages=MESSAGES, response_format=Person, max_tokens=200
    )
    assert isinstance(answer.choices[0].message.parsed, Person)
    with api.chat.completions.stream(
        model="demo", messages=MESSAGES, response_format=Person, max_tokens=200, seed=3
    ) as stream:
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Person)


def test_extensions_through_the_official_client(api: openai.OpenAI) -> None:
    answer = api.completions.create(
        model="demo", prompt="2+3=", max_tokens=20, extra_body={"guided_regex": "[xyz]{4}"}
    )
    assert re.fullmatch("[xyz]{4}", answer.choices[0].text) and answer.choices[0].finish_reason == "stop"
    chat = api.chat.completions.create(
        model="demo", messages=MESSAGES, max_tokens=20, extra_body={"structured_outputs": {"choice": CHOICES}}
    )
    assert chat.choices[0].message.content in CHOICES
    with pytest.raises(openai.BadRequestError) as bad:
        api.chat.completions.create(
            model="demo", messages=MESSAGES, stream=True, extra_body={"guided_regex": "("}
        )
    assert bad.value.param == "guided_regex"


def test_openai_logprobs_are_those_of_the_untouched_logits(
    client: httpx.Client, tokenizer: Tokenizer
) -> None:
    fields: dict[str, Any] = {"guided_regex": REGEX, "logprobs": 3, "max_tokens": 120, "temperature": 0}
    choice = client.post(COMPLETION, json={"prompt": "What is AI?"} | fields).json()["choices"][0]
    ids = [t["id"] for t in native(client, regular_constraint=REGEX, return_details=True)["tokens"]]
    given = choice["logprobs"]["token_logprobs"]
    assert len(given) == len(ids) and "".join(choice["logprobs"]["tokens"][:-1]) == choice["text"]
    before = tokenizer.encode("What is AI?")
    scored = client.post(
        COMPLETION, json={"prompt": before + ids, "echo": True, "max_tokens": 0, "logprobs": 0}
    ).json()["choices"][0]["logprobs"]["token_logprobs"][len(before) :]
    assert given == pytest.approx(scored, abs=1e-3)
    for token, logprob, top in zip(
        choice["logprobs"]["tokens"], given, choice["logprobs"]["top_logprobs"], strict=True
    ):
        assert top[token] == logprob and sum(math.exp(value) for value in top.values()) <= 1.001


def test_native_logprobs_are_among_the_allowed_tokens(client: httpx.Client) -> None:
    answer = native(client, regular_constraint="abc", return_details=True)
    assert [token["text"] for token in answer["tokens"]] == ["a", "b", "c", ""]
    assert [token["logprob"] for token in answer["tokens"][:3]] == pytest.approx([0.0] * 3, abs=1e-6)
    assert 0 >= answer["tokens"][3]["logprob"] >= -math.log(2)  # the demo has two tokens that end an output
    answer = native(client, regular_constraint="[ab]", return_details=True)
    assert 0 >= answer["tokens"][0]["logprob"] >= -math.log(2)  # the likelier one of two


def test_stop_strings_beside_a_constraint(client: httpx.Client) -> None:
    answer = native(client, regular_constraint="abcdef", stop_sequences=["cd"])
    assert answer["generated_text"] == ["ab"] and answer["finish_reason"] == "stop"
    answer = native(client, regular_constraint="abcdef", stop_sequences="cd", include_stop_str_in_output=True)
    assert answer["generated_text"] == ["abcd"] and answer["finish_reason"] == "stop"
    assert choices(client, CHAT, guided_regex="abcdef", stop=["e"]) == [("abcd", "stop")]


def test_a_limit_cuts_and_says_so(client: httpx.Client) -> None:
    answer = native(client, regular_constraint="abcdef", max_new_tokens=3)
    assert answer["generated_text"] == ["abc"] and answer["finish_reason"] == "length"
    ((text, reason),) = choices(client, CHAT, response_format={"schema": SCHEMA}, max_tokens=4)
    assert reason == "length" and text.startswith("{") and not text.endswith("}")


def test_the_least_number_of_tokens_is_kept_where_the_constraint_allows_it(client: httpx.Client) -> None:
    free = native(client, regular_constraint="[ab]{2,40}")
    assert free["count_output_tokens"] < 30
    answer = native(client, regular_constraint="[ab]{2,40}", min_new_tokens=30)
    assert answer["count_output_tokens"] >= 30 and re.fullmatch("[ab]{2,40}", answer["generated_text"][0])
    for more in ({}, {"do_sample": True, "temperature": 2.0, "seed": 1}, {"do_sample": True, "top_k": 3, "top_p": 0.5}):  # fmt: skip
        answer = native(client, regular_constraint="[ab]{2}", min_new_tokens=30, **more)
        assert len(answer["generated_text"][0]) == 2 and answer["finish_reason"] == "stop"


def test_eos_that_is_ignored_is_all_that_follows(client: httpx.Client) -> None:
    answer = native(
        client, regular_constraint="[ab]{2}", ignore_eos=True, max_new_tokens=12, return_details=True
    )
    assert re.fullmatch("[ab]{2}", answer["generated_text"][0])
    assert answer["count_output_tokens"] == 12 and answer["finish_reason"] == "length"
    assert {token["text"] for token in answer["tokens"][2:]} == {""}


def test_other_parameters_choose_among_what_is_allowed(client: httpx.Client, tokenizer: Tokenizer) -> None:
    against = {text: {str(tokenizer.encode(text, add_special_tokens=False)[0]): -100} for text in "ab"}
    assert native(client, regular_constraint="[ab]", logit_bias=against["b"])["generated_text"] == ["a"]
    assert native(client, regular_constraint="[ab]", logit_bias=against["a"])["generated_text"] == ["b"]
    assert native(client, regular_constraint="b", logit_bias=against["b"])["generated_text"] == ["b"]
    answer = native(client, regular_constraint="[abc]{12}", do_sample=True, top_k=2, top_p=0.9, min_p=0.01,
                    temperature=2.0, repetition_penalty=1.5, presence_penalty=1.0)  # fmt: skip
    assert re.fullmatch("[abc]{12}", answer["generated_text"][0])


Ask = Callable[[httpx.Client], Any]


def mixed(count: int) -> list[Ask]:
    """Requests of which every second one is constrained, greedy and drawn."""

    def one(number: int) -> Ask:
        more = {"do_sample": number % 3 > 0, "seed": number, "temperature": 1.2, "max_new_tokens": 60}
        ways = [values for values, _ in NATIVE_WAYS.values()]
        constraint = {} if number % 2 else ways[number // 2 % len(ways)]
        details = {"return_details": True, "ignore_eos": bool(number % 2)}
        return lambda client: native(client, **more, **details, **constraint)

    return [one(number) for number in range(count)]


@pytest.mark.parametrize("count", [16, pytest.param(32, marks=pytest.mark.slow)])
def test_many_at_once_answer_as_they_do_alone(client: httpx.Client, count: int) -> None:
    """Seeds and greedy decoding alike: the tokens of each are the same with and without neighbours."""
    asks = mixed(count)
    alone = [ask(client) for ask in asks[: count // 2]]
    with ThreadPoolExecutor(count) as pool:
        together = list(pool.map(lambda ask: ask(client), asks))
    for one, other in zip(alone, together[: count // 2], strict=True):
        assert [token["id"] for token in one["tokens"]] == [token["id"] for token in other["tokens"]]
        assert one["generated_text"] == other["generated_text"]
    obeyed = [
        NATIVE_WAYS[way][1](answer["generated_text"][0])
        for number, answer in enumerate(together)
        if number % 2 == 0 and answer["finish_reason"] == "stop"
        for way in [list(NATIVE_WAYS)[number // 2 % len(NATIVE_WAYS)]]
    ]
    assert len(obeyed) >= count // 4 and all(obeyed)


def test_a_client_that_leaves_a_constrained_stream_frees_its_slots(client: httpx.Client) -> None:
    body = {"inputs": "x", "parameters": {"regular_constraint": "[ab]{1500,}", "max_new_tokens": 1600}}
    with client.stream("POST", "/generate_stream", json=body) as stream:
        lines = stream.iter_lines()  # kept: the connection closes with its iterator
        next(lines)
    end = time.monotonic() + 5
    while client.get("/token_load").json()["current_load"] > 0:
        assert time.monotonic() < end
        time.sleep(0.02)
