"""What clients may say about the form of an output, what reaches the router of it, and what is refused before any 200."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from support.fake_engine import FakeEngine
from support.http_client import http_client

from lightllm.sampling_params import CONSTRAINTS

SCHEMA = {"type": "object", "properties": {"größe": {"type": "integer"}}, "required": ["größe"]}
SCHEMA_TEXT = json.dumps(SCHEMA, ensure_ascii=False)
ANY_OBJECT = '{"type":"object"}'
NATIVE = ("/generate", "/generate_stream")
OPENAI = ("/v1/completions", "/v1/chat/completions")
LOW = {"regular_constraint": "[ab]+", "guided_grammar": 'start: "a" | "b"', "guided_json": SCHEMA}
"""One value for each of LightLLM's names."""


def ask(client: httpx.Client, path: str, stream: bool = False, **fields: Any) -> httpx.Response:
    body: dict[str, Any] = {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}
    body = {"inputs": "x", "parameters": fields} if path in NATIVE else body | {"stream": stream} | fields
    return client.post(path, content=json.dumps(body).encode())


def refusal(client: httpx.Client, path: str, status: int = 400, **fields: Any) -> tuple[str, str]:
    """Message and field of the error; the same with `stream`."""
    response = ask(client, path, **fields)
    assert response.status_code == status, response.text
    if path in OPENAI:
        assert ask(client, path, stream=True, **fields).json() == response.json()
    body = response.json()
    error = body["error"] if path in OPENAI else body
    return error["message"], error["param"]


@pytest.mark.parametrize("path", NATIVE)
@pytest.mark.parametrize("schema", [SCHEMA, SCHEMA_TEXT], ids=["object", "text"])
def test_native_constraints_reach_the_router(
    client: httpx.Client, engine: FakeEngine, path: str, schema: Any
) -> None:
    for name, value in (LOW | {"guided_json": schema}).items():
        assert ask(client, path, **{name: value}).status_code == 200
        params = engine.added[-1].params
        assert getattr(params, name) == (SCHEMA_TEXT if name == "guided_json" else value)
        assert all(not getattr(params, other) for other in CONSTRAINTS if other != name)


WAYS: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": {"type": "json_object"}}, "guided_json", ANY_OBJECT),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, "guided_json", SCHEMA_TEXT),
    ({"response_format": {"schema": SCHEMA}}, "guided_json", SCHEMA_TEXT),
    ({"response_format": {"type": "json_object", "value": SCHEMA}}, "guided_json", SCHEMA_TEXT),
    ({"response_format": {"type": "json", "value": SCHEMA}}, "guided_json", SCHEMA_TEXT),
    ({"response_format": {"type": "json_schema", "value": {"name": "n", "schema": SCHEMA}}}, "guided_json", SCHEMA_TEXT),
    ({"response_format": {"type": "regex", "value": "[0-9]+"}}, "regular_constraint", "[0-9]+"),
    ({"response_format": {"type": "json_schema", "schema": SCHEMA_TEXT}}, "guided_json", SCHEMA_TEXT),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}}},
        "guided_json",
        SCHEMA_TEXT,
    ),
    ({"guided_json": SCHEMA}, "guided_json", SCHEMA_TEXT),
    ({"guided_json": SCHEMA_TEXT}, "guided_json", SCHEMA_TEXT),
    ({"guided_regex": "[ab]+"}, "regular_constraint", "[ab]+"),
    ({"guided_grammar": "root ::= [ab]"}, "guided_grammar", "root ::= [ab]"),
    ({"guided_choice": ["ja", 'n"ein\n']}, "guided_grammar", 'start: "ja" | "n\\"ein\\n"'),
    ({"structured_outputs": {"json": SCHEMA}}, "guided_json", SCHEMA_TEXT),
    ({"structured_outputs": {"json_object": True}}, "guided_json", ANY_OBJECT),
    ({"structured_outputs": {"regex": "[ab]+", "disable_any_whitespace": True}}, "regular_constraint", "[ab]+"),
    ({"structured_outputs": {"choice": ["a"]}}, "guided_grammar", 'start: "a"'),
    ({"structured_outputs": {"grammar": 'start: "a"'}}, "guided_grammar", 'start: "a"'),
]  # fmt: skip


@pytest.mark.parametrize("path", OPENAI)
@pytest.mark.parametrize(("fields", "name", "value"), WAYS, ids=lambda value: str(value)[:50])
def test_every_way_to_ask_becomes_one_constraint(
    client: httpx.Client, engine: FakeEngine, path: str, fields: dict, name: str, value: str
) -> None:
    assert ask(client, path, **fields).status_code == 200
    params = engine.added[-1].params
    assert {n: getattr(params, n) for n in CONSTRAINTS} == dict.fromkeys(CONSTRAINTS, "") | {name: value}


NOTHING: list[dict[str, Any]] = [
    {"response_format": None}, {"response_format": {"type": "text"}}, {"guided_json": ""}, {"guided_json": None},
    {"guided_regex": ""}, {"guided_grammar": ""}, {"guided_choice": None}, {"structured_outputs": {}},
    {"structured_outputs": None}, {"structured_outputs": {"json_object": False, "regex": "", "json": None}},
]  # fmt: skip


@pytest.mark.parametrize("fields", NOTHING, ids=str)
def test_what_asks_for_nothing(client: httpx.Client, engine: FakeEngine, fields: dict) -> None:
    assert ask(client, "/v1/completions", **fields).status_code == 200
    assert not engine.added[-1].params.constrained


def test_empty_native_constraints_are_none(client: httpx.Client, engine: FakeEngine) -> None:
    assert (
        ask(client, "/generate", regular_constraint="", guided_grammar=None, guided_json="").status_code
        == 200
    )
    assert not engine.added[-1].params.constrained


@pytest.mark.parametrize("path", NATIVE)
def test_two_native_constraints_are_refused(client: httpx.Client, engine: FakeEngine, path: str) -> None:
    values = LOW | {"allowed_token_ids": [5]}
    for size in (2, 3, 4):
        for names in itertools.combinations(values, size):
            message, param = refusal(client, path, **{name: values[name] for name in names})
            assert message == f"{' and '.join(names)} can not be used in same time" and param == names[0]
    assert engine.added == []


@pytest.mark.parametrize("path", OPENAI)
def test_two_constraints_of_openai_and_vllm_are_refused(
    client: httpx.Client, engine: FakeEngine, path: str
) -> None:
    values: dict[str, Any] = {
        "response_format": {"type": "json_object"}, "structured_outputs.regex": "a", "guided_json": {},
        "guided_regex": "a", "guided_choice": ["a"], "guided_grammar": "root ::= [a]", "allowed_token_ids": [5],
    }  # fmt: skip
    for names in itertools.combinations(values, 2):
        fields = {name: values[name] for name in names}
        if "structured_outputs.regex" in fields:
            fields["structured_outputs"] = {"regex": fields.pop("structured_outputs.regex")}
        response = ask(client, path, **fields)
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["message"] == f"{' and '.join(names)} can not be used in same time"
        assert error["param"] == names[0].split(".")[0]
    message, param = refusal(client, path, structured_outputs={"json": {}, "choice": ["a"]})
    assert message == "structured_outputs.json and structured_outputs.choice can not be used in same time"
    assert param == "structured_outputs" and engine.added == []


UNREADABLE: list[tuple[str, Any, str]] = [
    ("regular_constraint", "(", "has parse_pattern_error: unclosed group"),
    ("regular_constraint", r"(a)\1", "backreferences are not supported"),
    ("regular_constraint", "(?=a)b", "has parse_pattern_error: look-around"),
    ("regular_constraint", r"a\bc", "has parse_pattern_error: lookarounds not supported"),
    ("guided_grammar", "start: x", 'unknown name: "x"'),
    ("guided_grammar", "root ::= x", "Rule 'x' not found"),
    ("guided_grammar", "anything", "Expected ::="),
    ("regular_constraint", r"[^\s\S]", "nothing can match it"),
    ("guided_grammar", "start: start", "nothing can match it"),
    ("guided_json", "{", "not JSON: Expecting property name"),
    ("guided_json", " ", "not JSON: Expecting value"),
    ("guided_json", "5", "a schema is a JSON object"),
    ("guided_json", "[" * 60_000, "nested deeper than 64"),
    ("guided_json", {"type": "nonsense"}, "nonsense"),
    ("guided_json", {"type": "array", "uniqueItems": True}, "uniqueItems"),
    ("guided_json", {"not": {"type": "string"}}, "not"),
    ("guided_json", {"type": "string", "pattern": "("}, "unclosed group"),
    ("guided_json", {"type": "string", "format": "nonsense"}, "nonsense"),
    ("guided_json", {"allOf": [{"type": "string"}, {"type": "integer"}]}, "incompatible types"),
    ("guided_json", {"type": "integer", "minimum": 5, "maximum": 3}, "minimum (5) is greater than maximum (3)"),
    ("guided_json", {"$ref": "#/nowhere"}, "/nowhere"),
    ("guided_json", {"$ref": "http://127.0.0.1:1/schema.json"}, "does not fetch"),
    ("guided_json", {"$ref": "file:///etc/hostname"}, "does not fetch"),
    ("guided_json", '{"const": "\\ud800"}', "hex escape"),
    ("guided_json", {"const": float("nan")}, "NaN is no JSON value"),
    ("guided_json", {"const": float("inf")}, "Infinity is no JSON value"),
    ("guided_json", {"const": 10**1000}, "number out of range"),
]  # fmt: skip
VLLM = {"regular_constraint": "guided_regex"}


@pytest.mark.parametrize(("name", "value", "words"), UNREADABLE, ids=lambda value: str(value)[:40])
def test_what_cannot_be_obeyed_is_refused_and_says_why(
    client: httpx.Client, engine: FakeEngine, name: str, value: Any, words: str
) -> None:
    problem = "parse_pattern_error" if name == "regular_constraint" else "compile_grammar_error"
    for path in NATIVE:
        message, param = refusal(client, path, **{name: value})
        assert problem in message and words in message and param == name and len(message) < 500
    for path in OPENAI:
        field = VLLM.get(name, name)
        message, param = refusal(client, path, **{field: value})
        assert problem in message and words in message and param == field
    assert engine.added == []


@pytest.mark.parametrize(
    ("fields", "start"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}}, "response_format '"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex: regular_expression "),
        ({"structured_outputs": {"json": {"type": "x"}}}, "structured_outputs.json '"),
        ({"structured_outputs": {"grammar": "start: x"}}, "structured_outputs.grammar '"),
        ({"guided_regex": "("}, "guided_regex: regular_expression "),
        ({"guided_grammar": "start: x"}, "guided_grammar 'start: x' "),
        ({"guided_choice": ["x" * 70_000]}, "guided_choice has 70009 bytes, at most 32768"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
@pytest.mark.parametrize("path", OPENAI)
def test_errors_name_the_field_that_the_client_sent(
    client: httpx.Client, path: str, fields: dict, start: str
) -> None:
    message, param = refusal(client, path, **fields)
    assert message.startswith(start) and param == next(iter(fields))


BAD_FORMS: list[tuple[dict[str, Any], int, str]] = [
    ({"response_format": {"type": "yaml"}}, 400, "'yaml' is not supported: text, json_object, json_schema are"),
    ({"response_format": {"type": "structural_tag", "format": {}}}, 400, "'structural_tag' is not supported"),
    ({"response_format": {"type": "regex", "pattern": "a"}}, 400, "'regex' is not supported"),
    ({"response_format": {"type": "regex", "value": {}}}, 400, "'regex' is not supported"),
    ({"response_format": {"type": "yaml", "value": {}}}, 400, "'yaml' is not supported"),
    ({"response_format": {"type": "text", "schema": {}}}, 400, "'text' with a schema is not supported"),
    ({"response_format": {}}, 400, "'' is not supported"),
    ({"response_format": {"type": "json_schema"}}, 400, "needs json_schema.schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}, 400, "needs json_schema.schema"),
    ({"response_format": {"type": "json_schema", "json_schema": 5}}, 400, "response_format.json_schema"),
    ({"response_format": {"type": 5}}, 400, "response_format.type: Input should be a valid string"),
    ({"response_format": "json"}, 400, "response_format: Input should be an object"),
    ({"structured_outputs": {"structural_tag": "{}"}}, 400, "structured_outputs.structural_tag is not supported"),
    ({"structured_outputs": {"whitespace_pattern": " "}}, 400, "structured_outputs.whitespace_pattern is not"),
    ({"structured_outputs": {"choice": []}}, 400, "structured_outputs.choice must hold at least one text"),
    ({"structured_outputs": {"regex": 5}}, 400, "structured_outputs.regex: Input should be a valid string"),
    ({"structured_outputs": "x"}, 400, "structured_outputs: Input should be an object"),
    ({"guided_choice": []}, 400, "guided_choice must hold at least one text"),
    ({"guided_choice": "yes"}, 400, "guided_choice: Input should be a valid array"),
    ({"guided_choice": ["a", 5]}, 400, "guided_choice.1: Input should be a valid string"),
    ({"guided_choice": ["a"] * 1025}, 400, "at most 1024 items"),
    ({"guided_json": 5}, 400, "guided_json: Input should be an object or a valid string"),
    ({"guided_json": [{}]}, 400, "guided_json: Input should be an object or a valid string"),
    ({"guided_json": True}, 400, "guided_json: Input should be an object or a valid string"),
    ({"guided_regex": ["a"]}, 400, "guided_regex: Input should be a valid string"),
    ({"guided_grammar": {"a": 1}}, 400, "guided_grammar: Input should be a valid string"),
]  # fmt: skip


@pytest.mark.parametrize("path", OPENAI)
@pytest.mark.parametrize(("fields", "status", "words"), BAD_FORMS, ids=lambda value: str(value)[:60])
def test_bad_forms(client: httpx.Client, path: str, fields: dict, status: int, words: str) -> None:
    message, param = refusal(client, path, status, **fields)
    assert words in message and param == next(iter(fields))


@pytest.mark.parametrize("path", NATIVE)
@pytest.mark.parametrize(
    ("name", "value"),
    [("regular_constraint", 5), ("regular_constraint", ["a"]), ("guided_grammar", {}), ("guided_json", 5),
     ("guided_json", []), ("guided_json", False)],
)  # fmt: skip
def test_native_constraints_of_wrong_types(client: httpx.Client, path: str, name: str, value: Any) -> None:
    message, _ = refusal(client, path, 422, **{name: value})
    assert message.startswith(f"parameters.{name}: Input should be ")


@pytest.mark.parametrize("path", NATIVE)
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_too_long(client: httpx.Client, path: str, name: str) -> None:
    limit = {"regular_constraint": 16384, "guided_grammar": 32768, "guided_json": 65536}[name]
    message, param = refusal(client, path, **{name: "ä" * (limit // 2 + 1)})
    assert message == f"{name} has {limit + 2} bytes, at most {limit}" and param == name


@pytest.mark.parametrize("text", ["a\x00b", "\x00", "\x7f\u2028\U0010ffff", 'a"b\\c\n/d'])
def test_control_characters_are_texts_like_others(
    client: httpx.Client, engine: FakeEngine, text: str
) -> None:
    assert ask(client, "/v1/completions", guided_choice=[text, ""]).status_code == 200
    assert json.loads(engine.added[-1].params.guided_grammar.removeprefix("start: ").split(" | ")[0]) == text


def test_lone_surrogates_are_malformed(client: httpx.Client) -> None:
    for name in CONSTRAINTS:
        body = b'{"inputs": "x", "parameters": {"%b": "\\ud800"}}' % name.encode()
        assert client.post("/generate", content=body).status_code == 422


def test_a_server_without_constraints_says_so(start_worker: Callable[..., Any], engine: FakeEngine) -> None:
    worker = start_worker(worker=1, output_constraint_mode="none")
    with http_client(worker.url) as client:
        message, param = refusal(client, "/generate", regular_constraint="a")
        assert "--output_constraint_mode none" in message and param == "regular_constraint"
        message, param = refusal(client, "/v1/completions", response_format={"type": "json_object"})
        assert message.startswith("response_format is not available") and param == "response_format"
        assert ask(client, "/v1/completions", response_format={"type": "text"}).status_code == 200
    engine.wait_for(lambda: worker.engine.active == 0)


def test_without_the_package_the_error_says_how_to_get_it(
    client: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    message, param = refusal(client, "/generate", guided_json={})
    assert (
        message
        == "guided_json needs a package that this server does not have: pip install 'lightllm[constraints]'"
    )
    assert param == "guided_json" and engine.added == []
    for path, field, value in (
        ("/v1/completions", "guided_regex", "a"), ("/v1/completions", "ebnf", 'root ::= "a"'), ("/generate", "regex", "a")
    ):  # fmt: skip
        message, param = refusal(client, path, **{field: value})
        assert message.startswith(f"{field} needs a package") and param == field
