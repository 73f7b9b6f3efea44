"""Fields of other servers: what would change the answer is used or refused by its name, the rest disturbs nobody."""

from __future__ import annotations

import json
import logging
from typing import Any

import httpx
import pytest
from support.asked_fields import CHAT, COMPLETION, NATIVE, ask, used
from support.fake_engine import FakeEngine

from lightllm.httpserver.native.models import GenerateRequest, Parameters
from lightllm.httpserver.openai.models import ChatRequest, CompletionRequest
from lightllm.httpserver.reading import other_fields
from lightllm.tokenizer import Tokenizer

OPENAI = (COMPLETION, CHAT)
OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}}


def refused(client: httpx.Client, path: str, **fields: Any) -> str:
    response = ask(client, path, **fields)
    assert response.status_code == 400, response.text
    answer = response.json()
    answer = answer.get("error", answer)
    assert answer["param"] in fields
    return str(answer["message"])


# -- refused


@pytest.mark.parametrize("path", OPENAI)
@pytest.mark.parametrize("name", sorted(other_fields.OPENAI_REFUSED))
def test_what_v1_cannot_do_is_refused_by_its_name(
    client: httpx.Client, engine: FakeEngine, path: str, name: str
) -> None:
    model = CompletionRequest if path == COMPLETION else ChatRequest
    if name in model.model_fields:
        pytest.skip("this body has a field of that name")
    assert refused(client, path, **{name: ["something"]}).startswith(f"{name} is not supported")
    assert engine.added == []
    if path == COMPLETION:
        for value in (None, *other_fields.OPENAI_REFUSED[name].neutral):
            assert ask(client, path, **{name: value}).status_code == 200, value


@pytest.mark.parametrize("name", sorted(other_fields.NATIVE_REFUSED))
def test_what_generate_cannot_do_is_refused_by_its_name(
    client: httpx.Client, engine: FakeEngine, name: str
) -> None:
    assert name not in Parameters.model_fields
    assert refused(client, NATIVE, **{name: ["something"]}).startswith(f"{name} is not supported")
    assert engine.added == []
    for value in (None, *other_fields.NATIVE_REFUSED[name].neutral):
        assert ask(client, NATIVE, **{name: value}).status_code == 200, value


def test_a_refusal_says_what_to_use(client: httpx.Client) -> None:
    assert "use max_tokens" in refused(client, CHAT, max_new_tokens=5)
    assert "use max_new_tokens" in refused(client, NATIVE, max_tokens=5)
    assert "use guided_json" in refused(client, NATIVE, response_format={"type": "json_object"})
    assert "use repetition_penalty" in refused(client, COMPLETION, repeat_penalty=1.1)


@pytest.mark.parametrize("path", [*OPENAI, NATIVE])
def test_what_is_empty_asks_for_nothing(client: httpx.Client, path: str) -> None:
    for value in (None, False, "", [], {}):
        names = ("lora_path", "use_beam_search", "top_n_tokens" if path == NATIVE else "audio")
        assert ask(client, path, **dict.fromkeys(names, value)).status_code == 200, value


def test_two_names_with_one_value_are_no_contradiction(client: httpx.Client, engine: FakeEngine) -> None:
    """guidellm names the limit of a completion both ways; clients of several servers do so too."""
    assert used(client, engine, COMPLETION, max_tokens=5, max_completion_tokens=5).max_new_tokens == 5
    assert used(client, engine, CHAT, max_tokens=5, max_new_tokens=5).max_new_tokens == 5
    assert used(client, engine, NATIVE, max_new_tokens=5, max_tokens=5).max_new_tokens == 5
    assert "use max_tokens" in refused(client, COMPLETION, max_tokens=5, max_completion_tokens=6)
    assert "use max_tokens" in refused(client, COMPLETION, max_completion_tokens=5)


def test_zero_asks_for_something_where_it_does(client: httpx.Client) -> None:
    refused(client, COMPLETION, num_beams=0)
    refused(client, NATIVE, typical_p=0.2)
    assert ask(client, NATIVE, typical_p=1.0, top_n_tokens=0).status_code == 200


@pytest.mark.parametrize("path", OPENAI)
def test_audio_is_refused_and_text_alone_is_not(client: httpx.Client, path: str) -> None:
    assert ask(client, path, modalities=["text"]).status_code == 200
    refused(client, path, modalities=["text", "audio"])
    refused(client, path, audio={"voice": "alloy", "format": "wav"})


def test_fields_beside_inputs(client: httpx.Client, engine: FakeEngine) -> None:
    for name, value in (
        ("max_new_tokens", 5),
        ("temperature", 0.5),
        ("sampling_params", {"top_k": 1}),
        ("stream", True),
    ):
        response = client.post(NATIVE, json={"inputs": "x", name: value})
        assert response.status_code == 400 and response.json()["param"] == name
    assert client.post("/generate_stream", json={"inputs": "x", "stream": True}).status_code == 200
    assert (
        client.post(NATIVE, json={"inputs": "x", "stream": False, "max_new_tokens": None}).status_code == 200
    )


# -- harmless and unknown


@pytest.mark.parametrize("path", OPENAI)
def test_what_changes_nothing_is_accepted(
    client: httpx.Client, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    own = ChatRequest.model_fields if "chat" in path else ()
    fields = dict.fromkeys(other_fields.OPENAI_HARMLESS.difference(own), {"a": [1]})
    assert ask(client, path, **fields).status_code == 200
    assert "no effect" not in caplog.text


@pytest.mark.parametrize("path", [*OPENAI, NATIVE])
def test_a_typing_error_is_in_the_log_once(
    client: httpx.Client, path: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(other_fields, "_unknown_names", other_fields.UnknownNames())
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert ask(client, path, tempreature=0.5).status_code == 200
    assert caplog.text.count("'tempreature'") == 1


def test_the_log_of_unknown_names_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    names = other_fields.UnknownNames()
    with caplog.at_level(logging.WARNING):
        for number in range(1000):
            names.tell(f"{number}\n" + "x" * 10_000, "/v1")
    assert len(caplog.messages) == 100
    assert all(len(line) < 200 and "\n" not in line for line in caplog.messages)


@pytest.mark.parametrize("path", [*OPENAI, NATIVE])
@pytest.mark.parametrize(
    "name", ["streamed", "constraint", "model_extra", "sampling", "__dict__", "asked", "self"]
)
def test_names_of_our_own_are_names_as_others(client: httpx.Client, path: str, name: str) -> None:
    assert ask(client, path, **{name: 5}).status_code == 200


def test_no_field_is_in_two_tables() -> None:
    assert not other_fields.OPENAI_HARMLESS & other_fields.OPENAI_REFUSED.keys()
    assert not other_fields.NATIVE_HARMLESS & other_fields.NATIVE_REFUSED.keys()
    assert not GenerateRequest.model_fields.keys() & other_fields.NATIVE_BESIDE.keys()


# -- used


@pytest.mark.parametrize("path", [*OPENAI, NATIVE])
@pytest.mark.parametrize(
    ("field", "value", "constraint"),
    [
        ("regex", "[0-9]+", "regular_constraint"),
        ("ebnf", 'root ::= "a"', "guided_grammar"),
        ("json_schema", OBJECT, "guided_json"),
        ("json_schema", json.dumps(OBJECT), "guided_json"),
    ],
)
def test_sglangs_constraints(
    client: httpx.Client, engine: FakeEngine, path: str, field: str, value: Any, constraint: str
) -> None:
    given = getattr(used(client, engine, path, **{field: value}), constraint)
    assert (json.loads(given) if constraint == "guided_json" else given) == (
        OBJECT if constraint == "guided_json" else value
    )


@pytest.mark.parametrize("path", [*OPENAI, NATIVE])
def test_a_constraint_that_cannot_be_read_is_named_as_the_client_names_it(
    client: httpx.Client, path: str
) -> None:
    assert refused(client, path, regex="(").startswith("regex: ")
    assert refused(client, path, ebnf="root ::= (").startswith("ebnf ")
    assert refused(client, path, json_schema={"type": 5}).startswith("json_schema ")
    assert "same time" in refused(client, path, regex="a", ebnf='root ::= "a"')


def test_tgis_grammars(client: httpx.Client, engine: FakeEngine) -> None:
    for kind, value in (("json", OBJECT), ("json_schema", {"name": "n", "schema": OBJECT})):
        assert (
            json.loads(used(client, engine, NATIVE, grammar={"type": kind, "value": value}).guided_json)
            == OBJECT
        )
    assert (
        used(client, engine, NATIVE, grammar={"type": "regex", "value": "[0-9]"}).regular_constraint
        == "[0-9]"
    )
    refused(client, NATIVE, grammar={"type": "regex", "value": {}})
    assert "same time" in refused(client, NATIVE, grammar={"type": "regex", "value": "a"}, guided_json=OBJECT)
    response = ask(client, NATIVE, grammar={"type": "lark", "value": "a"})
    assert response.status_code == 422 and "grammar" in response.text


def test_tgis_stops(client: httpx.Client, engine: FakeEngine) -> None:
    assert used(client, engine, NATIVE, stop=["a", "b"]).stop_sequences == ["a", "b"]
    assert used(client, engine, NATIVE, stop="a").stop_sequences == ["a"]
    refused(client, NATIVE, stop=["a"], stop_sequences=["b"])


@pytest.mark.parametrize("path", OPENAI)
def test_other_names_for_the_form_of_a_text(client: httpx.Client, engine: FakeEngine, path: str) -> None:
    params = used(client, engine, path, no_stop_trim=True, spaces_between_special_tokens=False)
    assert params.include_stop_str_in_output and not params.add_spaces_between_special_tokens
    both = used(client, engine, path, no_stop_trim=True, include_stop_str_in_output=False)
    assert not both.include_stop_str_in_output


@pytest.mark.parametrize(("path", "field"), [(COMPLETION, "truncate_prompt_tokens"), (NATIVE, "truncate")])
def test_a_prompt_is_cut_to_its_end(client: httpx.Client, engine: FakeEngine, path: str, field: str) -> None:
    for prompt in (list(range(5, 95)), [5 + i % 90 for i in range(800)]):
        start = (
            {"inputs": prompt, "parameters": {field: 7}} if path == NATIVE else {"prompt": prompt, field: 7}
        )
        assert client.post(path, json=start).status_code == 200
        assert engine.added[-1].prompt_ids.tolist() == prompt[-7:]
    for wrong in (0, -2, 513, 2**40):
        assert field in refused(client, path, **{field: wrong})


def test_long_texts_are_cut_to_their_end(
    client: httpx.Client, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    text = " ".join(f"word{number}" for number in range(8_000))
    expected = tokenizer.encode(text)[-20:]
    for path, body in (
        (COMPLETION, {"prompt": text, "truncate_prompt_tokens": 20}),
        (NATIVE, {"inputs": text, "parameters": {"truncate": 20}}),
    ):
        assert client.post(path, json=body).status_code == 200
        assert engine.added[-1].prompt_ids.tolist() == expected
    messages = [{"role": "user", "content": text}]
    assert client.post(CHAT, json={"messages": messages, "truncate_prompt_tokens": 20}).status_code == 200
    assert len(engine.added[-1].prompt_ids) == 20


@pytest.mark.parametrize("path", OPENAI)
def test_a_prompt_is_cut_to_what_fits(client: httpx.Client, engine: FakeEngine, path: str) -> None:
    text = "hello " * 3000
    start: dict[str, Any] = (
        {"prompt": text} if path == COMPLETION else {"messages": [{"role": "user", "content": text}]}
    )
    assert client.post(path, json=start | {"truncate_prompt_tokens": -1, "max_tokens": 12}).status_code == 200
    assert len(engine.added[-1].prompt_ids) == 500 and engine.added[-1].params.max_new_tokens == 12


def test_an_echo_is_of_the_prompt_that_was_used(
    client: httpx.Client, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode("one two three four", False)
    answer = client.post(
        COMPLETION,
        json={"prompt": "one two three four", "echo": True, "max_tokens": 0, "truncate_prompt_tokens": 2},
    ).json()
    assert answer["choices"][0]["text"] == tokenizer.decode(ids[-2:], skip_special_tokens=False)
    assert answer["usage"]["prompt_tokens"] == 2


def chunks(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line[6:] for line in response.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("path", OPENAI)
def test_usage_in_every_chunk(client: httpx.Client, path: str) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    parts = chunks(ask(client, path, stream=True, stream_options=options, max_tokens=4, n=2))
    last = parts.pop()["usage"]
    assert last["completion_tokens"] == 8
    counts: dict[int, list[int]] = {0: [], 1: []}
    for part in parts:
        usage = part["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert usage["prompt_tokens"] == last["prompt_tokens"]
        counts[part["choices"][0]["index"]].append(usage["completion_tokens"])
    assert all(count == sorted(count) and count[-1] == 4 for count in counts.values())
    quiet = chunks(ask(client, path, stream=True, stream_options={"continuous_usage_stats": True}))
    assert all("usage" not in part for part in quiet)  # as vLLM has it: only with include_usage


@pytest.mark.parametrize("path", OPENAI)
@pytest.mark.parametrize("logprobs", [None, 1])
def test_token_ids_come_back(
    client: httpx.Client, engine: FakeEngine, path: str, logprobs: int | None
) -> None:
    fields: dict[str, Any] = {
        "max_tokens": 5,
        "n": 2,
        "seed": 3,
        "return_token_ids": True,
        "logprobs": logprobs,
    }
    whole = ask(client, path, **fields).json()
    prompt = engine.added[-1].prompt_ids.tolist()
    assert len(whole["choices"]) == 2
    for choice in whole["choices"]:
        assert len(choice["token_ids"]) == 5
        assert (whole if path == CHAT else choice)["prompt_token_ids"] == prompt
    streamed: dict[int, list[int]] = {0: [], 1: []}
    prompts = []
    for part in chunks(ask(client, path, **fields, stream=True)):
        (choice,) = part["choices"]
        streamed[choice["index"]] += choice.get("token_ids") or []
        prompts += [place["prompt_token_ids"] for place in (part, choice) if "prompt_token_ids" in place]
    assert streamed == {choice["index"]: choice["token_ids"] for choice in whole["choices"]}
    assert prompts == [prompt, prompt]
    assert "token_ids" not in ask(client, path, **fields | {"return_token_ids": False}).text


@pytest.mark.parametrize("path", OPENAI)
def test_logprobs_name_tokens_by_their_ids(client: httpx.Client, path: str) -> None:
    fields = {"max_tokens": 3, "return_token_ids": True, "return_tokens_as_token_ids": True}
    more = {"logprobs": 2} if path == COMPLETION else {"logprobs": True, "top_logprobs": 2}
    (choice,) = ask(client, path, **fields, **more).json()["choices"]
    names = [f"token_id:{token}" for token in choice["token_ids"]]
    if path == COMPLETION:
        assert choice["logprobs"]["tokens"] == names
        assert all(key.startswith("token_id:") for top in choice["logprobs"]["top_logprobs"] for key in top)
    else:
        assert [entry["token"] for entry in choice["logprobs"]["content"]] == names


# -- empty prompts


def test_an_empty_text_is_a_prompt_where_the_tokenizer_puts_a_token_before_it(
    client: httpx.Client, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    special = tokenizer.encode("", True)
    for path, body in (
        (COMPLETION, {"prompt": ""}),
        (NATIVE, {"inputs": ""}),
        (COMPLETION, {"prompt": ["", "x"]}),
    ):
        response = client.post(path, json=body)
        assert response.status_code == (200 if special else 400), response.text
        if special:
            assert (
                engine.added[-1 if path == NATIVE or body["prompt"] == "" else -2].prompt_ids.tolist()
                == special
            )
    for path, body in (
        (COMPLETION, {"prompt": "", "add_special_tokens": False}),
        (COMPLETION, {"prompt": []}),
        (COMPLETION, {"prompt": [[]]}),
        (NATIVE, {"inputs": "", "parameters": {"add_special_tokens": False}}),
        (NATIVE, {"inputs": []}),
    ):
        response = client.post(path, json=body)
        assert response.status_code == 400 and "empty" in response.text, response.text
