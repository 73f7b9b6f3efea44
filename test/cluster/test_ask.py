import json

import pytest

from lightllm.cluster.ask import BLOCK_TOKENS, ask_of, read_ask
from lightllm.cluster.request_fields import DEFAULT_OUTPUT
from lightllm.errors import MalformedBody

LONG = "The quick brown fox jumps over the lazy dog. " * 40


def shared(first: dict, second: dict) -> int:
    """Leading blocks that both prompts have."""
    count = 0
    for one, other in zip(ask_of(first, "m").blocks, ask_of(second, "m").blocks):
        if one != other:
            break
        count += 1
    return count


def test_prompts_share_the_blocks_that_they_begin_with_alike():
    whole = len(LONG) // 256
    assert shared({"prompt": LONG + "a" * 300}, {"prompt": LONG + "b" * 300}) == whole
    assert shared({"prompt": "x" + LONG}, {"prompt": "y" + LONG}) == 0


def test_a_block_in_another_place_is_another_block():
    block, other = "a" * 256, "b" * 256
    first, second = (
        ask_of({"prompt": block + other}, "m").blocks,
        ask_of({"prompt": other + block}, "m").blocks,
    )
    assert not set(first) & set(second)


@pytest.mark.parametrize("field", ["prompt", "inputs", "input"])
def test_token_ids_of_one_length_are_different_prompts(field):
    first, second = list(range(256)), list(range(1, 257))
    assert shared({field: first}, {field: second}) == 0
    assert shared({field: first}, {field: [*first[:128], *second]}) == 128 // BLOCK_TOKENS
    assert ask_of({field: first}, "m").prompt_tokens == 256


def test_a_chat_shares_its_system_prompt_and_its_past():
    system = {"role": "system", "content": LONG}
    turn = [system, {"role": "user", "content": "one " * 100}]
    later = [*turn, {"role": "assistant", "content": "answer"}, {"role": "user", "content": "more " * 100}]
    other = [system, {"role": "user", "content": "two " * 100}]
    assert shared({"messages": turn}, {"messages": later}) > len(LONG) // 256
    assert shared({"messages": turn}, {"messages": other}) >= len(LONG) // 256 - 1
    tools = [{"type": "function", "function": {"name": "f", "description": LONG}}]
    assert shared({"messages": turn, "tools": tools}, {"messages": turn}) == 0


def test_the_session_is_a_header_or_a_field_and_never_a_word_of_the_prompt():
    def session(values: dict, *headers: tuple[bytes, bytes]) -> str:
        return read_ask(
            "/v1/chat/completions", json.dumps({"model": "m", **values}).encode(), list(headers)
        ).session

    assert session({"user": "ann"}) == "ann"
    assert session({"user": "ann"}, (b"x-session-id", b"7")) == "7"
    assert session({"prompt": '{"user": "bob"}'}) == ""
    assert session({"messages": [{"role": "user", "content": "hi", "user": "bob"}]}) == ""
    assert session({"user": 7}) == ""


@pytest.mark.parametrize(
    "path, values, tokens",
    [
        ("/v1/completions", {"max_tokens": 7}, 7), ("/v1/completions", {"max_completion_tokens": 1, "max_new_tokens": 1, "max_tokens": 7}, 7),
        ("/v1/completions", {"parameters": {"max_new_tokens": 1}, "max_tokens": 7}, 7), ("/v1/completions", {"max_tokens": "7"}, 7),
        ("/v1/completions", {"max_tokens": 7.0, "n": 3}, 21), ("/v1/completions", {"max_tokens": 7, "n": 2, "best_of": 5}, 35),
        ("/v1/completions", {"max_tokens": 7, "prompt": ["a", "b"]}, 14), ("/v1/completions", {"max_tokens": 7, "prompt": [1, 2]}, 7),
        ("/v1/completions", {}, DEFAULT_OUTPUT), ("/v1/completions", {"max_tokens": -1}, DEFAULT_OUTPUT),
        ("/v1/completions", {"max_tokens": 10**30}, 1 << 20), ("/v1/completions", {"max_tokens": "9" * 5000}, DEFAULT_OUTPUT),
        ("/v1/chat/completions", {"max_completion_tokens": 5, "max_tokens": 7}, 5), ("/v1/chat/completions", {"max_tokens": 7}, 7),
        ("/v1/chat/completions", {"max_completion_tokens": 0, "max_tokens": 7}, 7),
        ("/v1/responses", {"max_output_tokens": 9, "max_tokens": 1}, 9), ("/v1/messages", {"max_tokens": 9, "max_completion_tokens": 1}, 9),
        ("/generate", {"parameters": {"max_new_tokens": 3, "n": 2}, "max_new_tokens": 1}, 6), ("/", {"parameters": []}, DEFAULT_OUTPUT),
        ("/api/chat", {"options": {"num_predict": 8}, "max_tokens": 1}, 8), ("/api/chat", {"options": {"num_predict": -1}}, DEFAULT_OUTPUT),
        ("/worker_generate_stream", {"max_new_tokens": 0, "max_tokens": 4}, 4), ("/v1/embeddings", {"max_tokens": 7}, 0),
    ],
    ids=str,
)  # fmt: skip
def test_the_output_is_what_the_server_will_make_at_most_whatever_else_the_body_says(path, values, tokens):
    assert ask_of(values, "m", path=path).output_tokens == tokens


@pytest.mark.parametrize(
    "path, values, priority",
    [
        ("/v1/completions", {"priority": 3, "parameters": {"priority": -9}}, 3), ("/v1/completions", {"parameters": {"priority": -9}}, 0),
        ("/generate", {"priority": -9, "parameters": {"priority": 3}}, 3), ("/generate", {"priority": -9}, 0), ("/api/chat", {"priority": 3}, 3),
        ("/v1/completions", {"priority": "3"}, 3), ("/v1/completions", {"priority": [3]}, 0), ("/worker_generate", {"priority": -9}, 0),
    ],
    ids=str,
)  # fmt: skip
def test_the_priority_is_the_one_that_the_server_goes_by(path, values, priority):
    assert ask_of(values, "m", path=path).priority == priority


def test_the_model_is_the_default_one_where_none_is_named():
    assert read_ask("/v1/completions", b'{"model": "a"}', [], "b").model == "a"
    assert read_ask("/v1/completions", b'{"model": ""}', [], "b").model == "b"
    assert read_ask("/v1/completions", b'{"model": 7}', [], "b").model == "b"


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b'"text"', b"\xff"])
def test_what_is_no_object_is_malformed(body):
    with pytest.raises(MalformedBody):
        read_ask("/v1/completions", body, [])


@pytest.mark.parametrize(
    "values", [{"messages": 7}, {"prompt": {"a": 1}}, {"input": [[1, 2], "text", None]}, {"prompt": [2**40]}, {"tools": "x"},
               {"prompt": "\ud800" * 300}],
)  # fmt: skip
def test_a_prompt_of_a_wrong_kind_is_the_workers_to_refuse(values):
    ask_of(values, "m")
