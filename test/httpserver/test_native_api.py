"""`/generate`, `/generate_stream` and their neighbours: the exact shapes that LightLLM's clients know."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest
from httpserver.conftest import Worker
from support.fake_engine import DEFAULT_ANSWER, FakeEngine
from support.http_client import http_client

from lightllm.protocol.messages import Refused
from lightllm.tokenizer import Tokenizer


def generate(client: httpx.Client, inputs: object = "What is AI?", **parameters: object) -> httpx.Response:
    return client.post("/generate", json={"inputs": inputs, "parameters": parameters})


def stream(client: httpx.Client, **parameters: object) -> list[dict]:
    response = client.post("/generate_stream", json={"inputs": "What is AI?", "parameters": parameters})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    frames = response.content.split(b"\n\n")
    assert frames.pop() == b""
    assert all(frame.startswith(b"data:{") for frame in frames)
    return [json.loads(frame[5:]) for frame in frames]


def test_answer_has_upstreams_shape(client: httpx.Client, tokenizer: Tokenizer) -> None:
    response = generate(client, max_new_tokens=50)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    count = len(tokenizer.encode(DEFAULT_ANSWER, add_special_tokens=False)) + 1
    assert response.json() == {
        "generated_text": [DEFAULT_ANSWER],
        "count_output_tokens": count,
        "finish_reason": "stop",
        "prompt_tokens": len(tokenizer.encode("What is AI?")),
    }


def test_best_of_gives_lists(client: httpx.Client) -> None:
    answer = generate(client, best_of=3, max_new_tokens=4, return_details=True).json()
    assert len(answer["generated_text"]) == 3
    assert answer["count_output_tokens"] == [4, 4, 4]
    assert answer["finish_reason"] == ["length"] * 3
    assert [len(tokens) for tokens in answer["tokens"]] == [4, 4, 4]


def test_details_of_every_token(client: httpx.Client, tokenizer: Tokenizer) -> None:
    answer = generate(client, max_new_tokens=50, return_details=True).json()
    tokens = answer["tokens"]
    assert "".join(token["text"] for token in tokens) == DEFAULT_ANSWER
    assert set(tokens[0]) == {
        "id", "logprob", "cumlogprob", "special", "count_output_tokens", "mtp_accepted_token_num", "prompt_tokens",
        "text",
    }  # fmt: skip
    assert [token["count_output_tokens"] for token in tokens] == list(range(1, len(tokens) + 1))
    assert tokens[-1]["special"] and tokens[-1]["id"] == 2 and tokens[-1]["text"] == ""
    assert tokens[2]["cumlogprob"] == pytest.approx((-0.5 - 1.5 - 2.5) / 3)  # the running mean, as upstream


def test_stream_has_one_event_a_token_and_no_terminator(client: httpx.Client) -> None:
    events = stream(client, max_new_tokens=50)
    assert "".join(event["token"]["text"] for event in events) == DEFAULT_ANSWER
    assert set(events[0]) == {"token", "generated_text", "finished", "finish_reason", "details"}
    assert set(events[0]["token"]) == {
        "id",
        "text",
        "logprob",
        "special",
        "count_output_tokens",
        "prompt_tokens",
    }
    assert all(not e["finished"] and e["finish_reason"] is None for e in events[:-1])
    assert events[-1]["finished"] and events[-1]["finish_reason"] == "stop" and events[-1]["token"]["id"] == 2
    assert all(e["generated_text"] is None and e["details"] is None for e in events)
    assert [e["token"]["count_output_tokens"] for e in events] == list(range(1, len(events) + 1))


def test_stream_does_not_escape_text(client: httpx.Client) -> None:
    response = client.post("/generate_stream", json={"inputs": "x", "parameters": {"max_new_tokens": 50}})
    assert "🙂".encode() in response.content


def test_stream_whose_finish_comes_alone_loses_no_text(client: httpx.Client, engine: FakeEngine) -> None:
    engine.script.finish_alone = True
    events = stream(client, max_new_tokens=50)
    assert "".join(event["token"]["text"] for event in events) == DEFAULT_ANSWER + "<tail>"
    assert events[-1]["finished"] and not events[-2]["finished"]


def test_several_tokens_a_round_are_several_events(client: httpx.Client, engine: FakeEngine) -> None:
    engine.script.tokens_a_round = 3
    events = stream(client, max_new_tokens=50)
    assert "".join(event["token"]["text"] for event in events) == DEFAULT_ANSWER
    assert sum(e["finished"] for e in events) == 1


def test_parameters_may_be_missing_null_or_unknown(client: httpx.Client, engine: FakeEngine) -> None:
    bodies = [
        {"inputs": "x"},
        {"inputs": "x", "parameters": None},
        {"inputs": "x", "parameters": {"temperature": None, "max_new_tokens": None, "stop_sequences": None}},
        {"inputs": "x", "parameters": {"suggested_dp_index": 3, "move_kv_to_decode_node": {}}, "what": 1},
        {"inputs": "x", "multimodal_params": {"images": [], "audios": None}},
    ]
    for body in bodies:
        assert client.post("/generate", json=body).status_code == 200, body
    for request in engine.added:
        assert not request.params.do_sample
        assert request.params.max_new_tokens == 512 - len(request.prompt_ids)  # what fits


def test_token_ids_are_taken_as_they_are(client: httpx.Client, engine: FakeEngine) -> None:
    assert generate(client, [7, 8, 9]).status_code == 200
    assert engine.added[0].prompt_ids.tolist() == [7, 8, 9]


def test_text_gets_bos_unless_refused(client: httpx.Client, engine: FakeEngine) -> None:
    generate(client, "hello")
    generate(client, "hello", add_special_tokens=False)
    assert engine.added[0].prompt_ids[0] == 1
    assert engine.added[0].prompt_ids[1:].tolist() == engine.added[1].prompt_ids.tolist()


def test_parameters_reach_the_router(client: httpx.Client, engine: FakeEngine) -> None:
    response = generate(
        client, do_sample=True, temperature=0.5, top_k=5, seed=11, stop_sequences=["a", [3, 4]], n=2,
        logit_bias={"5": -1.5}, exponential_decay_length_penalty=[3, 1.5], min_new_tokens=2, input_penalty=True,
        presence_penalty=1, print_eos_token=True,
    )  # fmt: skip
    assert response.status_code == 200, response.text
    params = engine.added[0].params
    assert (params.temperature, params.top_k, params.seed, params.n) == (0.5, 5, 11, 2)
    assert params.stop_sequences == ["a", [3, 4]] and params.logit_bias == {5: -1.5}
    assert params.exponential_decay_length_penalty == (3, 1.5) and params.input_penalty
    assert [choice.index for choice in engine.added[0].choices] == [0, 1]


def test_every_request_has_a_seed_of_its_own(client: httpx.Client, engine: FakeEngine) -> None:
    for seed in (None, -1, None):
        generate(client, seed=seed)
    seeds = {request.params.seed for request in engine.added}
    assert len(seeds) == 3 and None not in seeds


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"top_k": 0}, "top_k must be -1 (disable), or at least 1, got 0."),
        ({"top_p": 0}, "top_p must be in (0.0, 1.0], got 0"),
        ({"temperature": -1}, "temperature must >= 0.0, got -1"),
        ({"presence_penalty": -1}, "presence_penalty must >= 0.0, got -1"),
        ({"repetition_penalty": 0.5}, "repetition_penalty must >= 1.0, got 0.5"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0."),
        (
            {"min_new_tokens": 17, "max_new_tokens": 16},
            "min_new_tokens must <= max_new_tokens, but got min 17, max 16.",
        ),
        ({"min_new_tokens": 511}, "min_new_tokens must <= max_new_tokens, but got min 511, max 510."),
        ({"best_of": 0}, "need 0 < best_of <= "),
        ({"best_of": 2, "n": 3}, "current only supported n == best_of"),
        ({"regular_constraint": "(a"}, "regular_expression '(a' has parse_pattern_error: "),
        ({"guided_grammar": "root ::= x"}, "guided_grammar 'root ::= x' has compile_grammar_error: "),
        ({"guided_json": {"type": "nonsense"}}, "has compile_grammar_error: "),
    ],
)
@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
def test_messages_that_clients_match_on(
    client: httpx.Client, path: str, parameters: dict, message: str
) -> None:
    response = client.post(path, json={"inputs": "x", "parameters": parameters})
    assert response.status_code == 400
    assert message in response.json()["message"]


def test_stream_with_best_of_is_an_error(client: httpx.Client) -> None:
    response = client.post("/generate_stream", json={"inputs": "x", "parameters": {"best_of": 2}})
    assert response.status_code == 400
    assert response.json()["message"] == "stream api only support best_of == 1"


def test_images_are_not_supported_yet(client: httpx.Client) -> None:
    body = {"inputs": "x", "multimodal_params": {"images": [{"type": "url", "data": "http://x/y.png"}]}}
    response = client.post("/generate", json=body)
    assert response.status_code == 400 and response.json()["param"] == "multimodal_params"


def test_length_limits(client: httpx.Client, engine: FakeEngine) -> None:
    for limit in (412, 413, 100_000, None):  # a limit that does not fit becomes what does
        assert generate(client, [7] * 100, max_new_tokens=limit).status_code == 200
        assert engine.added[-1].params.max_new_tokens == 412
    response = generate(client, [7] * 512, max_new_tokens=3)
    assert response.status_code == 400
    assert response.json()["message"] == "the input prompt token len 512 + max_new_tokens 1 > 512"
    assert generate(client, [7] * 512).status_code == 400
    assert generate(client, [7] * 510).status_code == 200
    assert engine.added[-1].params.max_new_tokens == 2
    assert generate(client, []).json()["message"] == "prompt_ids is empty"
    assert generate(client, []).json()["param"] == "inputs"
    response = generate(client, [10**6])
    assert response.status_code == 400 and "id > vocab_size" in response.json()["message"]


def test_output_that_names_no_limit_may_have_one(
    start_worker: Callable[..., Worker], engine: FakeEngine
) -> None:
    worker = start_worker(worker=2, httpserver_workers=3, default_max_new_tokens=16)
    with http_client(worker.url) as client:
        for asked, given in ((None, 16), (20, 20)):
            body = {"inputs": "x", "parameters": {"max_new_tokens": asked}}
            assert client.post("/generate", json=body).status_code == 200
            assert engine.added[-1].params.max_new_tokens == given
        assert client.post("/generate", json={"inputs": [7] * 505}).status_code == 200
        assert engine.added[-1].params.max_new_tokens == 7


def test_errors_have_both_shapes_of_lightllm(client: httpx.Client) -> None:
    """Before 1.2 and since."""
    response = generate(client, top_p=7)
    message = response.json()["message"]
    envelope = {"message": message, "type": "BadRequestError", "param": "top_p", "code": 400}
    assert response.json() == {"message": message, "param": "top_p", "error": envelope}
    missing = client.get("/generate/nothing").json()["error"]
    assert (missing["type"], missing["code"]) == ("NotFoundError", 404)


def test_full_waiting_list_is_503_with_retry_after(client: httpx.Client, engine: FakeEngine) -> None:
    engine.script.refuse = Refused([], "ServerOverloaded", "4096 requests wait already", retry_after=3)
    for path in ("/generate", "/generate_stream"):
        response = client.post(path, json={"inputs": "x"})
        assert response.status_code == 503
        assert response.headers["retry-after"] == "3"
        message = "4096 requests wait already"
        envelope = {"message": message, "type": "InternalServerError", "param": None, "code": 503}
        assert response.json() == {"message": message, "error": envelope}


def test_overload_is_429_where_that_is_wanted_and_a_server_that_loads_or_stops_says_503(
    start_worker: Callable[..., Worker], engine: FakeEngine
) -> None:
    worker = start_worker(1, overload_status="429", httpserver_workers=2)
    engine.script.refuse = Refused([], "ServerOverloaded", "4096 requests wait already", retry_after=3)
    with http_client(worker.url) as client:
        for path, body in (("/generate", {"inputs": "x"}), ("/v1/completions", {"prompt": "x"})):
            response = client.post(path, json=body)
            assert (response.status_code, response.headers["retry-after"]) == (429, "3")
        assert response.json()["error"]["code"] == "server_overloaded"
        engine.ready(ready=0)
        assert client.post("/generate", json={"inputs": "x"}).status_code == 503
        engine.ready()
        worker.view.draining = True
        assert client.post("/generate", json={"inputs": "x"}).status_code == 503


def test_backend_failure_before_and_in_a_stream(client: httpx.Client, engine: FakeEngine) -> None:
    engine.script.finish_error = "the device is lost"
    engine.script.error_after = 2
    response = generate(client)
    assert response.status_code == 500 and response.json()["message"] == "the device is lost"
    response = client.post("/generate_stream", json={"inputs": "x"})
    assert response.status_code == 200
    last = response.content.split(b"\n\n")[-2]
    assert json.loads(last[5:]) == {"error": "the device is lost", "finished": True}


def test_tokens_counts(client: httpx.Client, tokenizer: Tokenizer) -> None:
    text = "hello world " * 300
    expected = len(tokenizer.encode(text))
    assert client.post("/tokens", json={"text": text}).json() == {"ntokens": expected}
    assert client.request("GET", "/tokens", json={"text": text}).json() == {"ntokens": expected}
    body = {"text": text, "parameters": {"add_special_tokens": False}}
    assert client.post("/tokens", json=body).json() == {"ntokens": expected - 1}


def test_two_hundred_requests_at_once(client: httpx.Client, engine: FakeEngine) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda n: generate(client, [n + 3], max_new_tokens=50).json(), range(200)))
    assert all(answer["generated_text"] == [DEFAULT_ANSWER] for answer in answers)
    ids = [choice.request_id for request in engine.added for choice in request.choices]
    assert len(set(ids)) == 200


def test_details_say_how_much_of_the_prompt_was_cached(client: httpx.Client, engine: FakeEngine) -> None:
    engine.script.cached_tokens = 2
    assert generate(client, return_details=True).json()["cached_tokens"] == 2
    assert "cached_tokens" not in generate(client).json()


def test_flush_cache_answers_when_the_router_has_done_it(client: httpx.Client, engine: FakeEngine) -> None:
    response = client.post("/flush_cache")
    assert (response.status_code, response.json()) == (200, {"message": "Ok", "flushed_tokens": 42})
    engine.ready(ready=0)
    assert client.post("/flush_cache").status_code == 503
