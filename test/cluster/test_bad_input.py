"""What a client sends may be wrong in any way: it gets an error in its protocol's form, and no worker is thought to have failed."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from aiohttp import web
from cluster.conftest import MockWorker, RunningController
from cluster.test_fastchat_bridge import FastChatWorker
from fastapi import FastAPI

from lightllm.cluster.fastchat_protocol import PARAMETERS, checked
from lightllm.cluster.paths import FASTCHAT_PATHS
from lightllm.cluster.worker import State
from lightllm.cluster.workers.base import BaseModelWorker
from lightllm.cluster.workers.config import WorkerConfig
from lightllm.cluster.workers.model_worker import ModelWorker
from lightllm.cluster.workers.openai_server import OpenAIServer
from lightllm.cluster.workers.routes import worker_routes
from lightllm.errors import InvalidParameter

GENERATIONS = [
    {"max_new_tokens": [1]}, {"max_new_tokens": {}}, {"max_new_tokens": "many"}, {"max_new_tokens": 10**30}, {"temperature": [0.5]},
    {"temperature": "hot"}, {"top_p": {}}, {"top_k": 1.5}, {"stop": 5}, {"stop": [5]}, {"stop_token_ids": "x"}, {"stop_token_ids": [[1]]},
    {"prompt": [{}]}, {"prompt": 7}, {"echo": "loud"}, {"repetition_penalty": []}, {"logprobs": "all"}, {"messages": [1]}, {"model": []},
]  # fmt: skip
MORE_THAN_OPEN_A_BREAKER = 6


def ask_worker(worker_of, path: str, values: Any) -> list[dict]:
    """The chunks of an answer, or the one object."""

    async def asked() -> httpx.Response:
        server = OpenAIServer("http://127.0.0.1:1")
        app = FastAPI()
        app.include_router(worker_routes(worker_of(server)))
        try:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://w") as client:
                content = values if isinstance(values, bytes) else json.dumps(values).encode()
                return await client.post(path, content=content)
        finally:
            await server.close()

    answer = asyncio.run(asked())
    assert answer.status_code == 200, answer.text
    return [json.loads(part) for part in answer.content.split(b"\0") if part]


def model_worker(server: OpenAIServer) -> ModelWorker:
    return ModelWorker(WorkerConfig(no_register=True), "http://here", ["m"], server)


@pytest.mark.parametrize("path", ["/worker_generate_stream", "/worker_generate"])
@pytest.mark.parametrize("wrong", GENERATIONS, ids=str)
def test_a_worker_tells_which_parameter_is_of_a_wrong_type(path, wrong):
    (chunk,) = ask_worker(model_worker, path, {"prompt": "a"} | wrong)
    (name,) = wrong
    assert chunk["error_code"] == 40001 and chunk["text"].startswith(name)


@pytest.mark.parametrize(
    "path, values",
    [("/worker_get_embeddings", {"input": 5}), ("/worker_get_embeddings", {"input": "a", "encoding_format": 1}), ("/count_token", {"prompt": []}),
     ("/worker_get_conv_template", {"model": {}}), ("/model_details", {"model": 1}), ("/worker_generate_stream", b"{"),
     ("/worker_generate", b"[]"), ("/worker_generate_stream", b"[" * 100_000), ("/count_token", b"\xff")],
)  # fmt: skip
def test_each_route_of_a_worker_refuses_in_fastchats_form(path, values):
    (chunk,) = ask_worker(model_worker, path, values)
    assert chunk["error_code"] == 40001 and chunk["text"]


def test_numbers_may_come_as_texts_and_null_is_nothing():
    given = {"max_new_tokens": "256", "top_p": 1, "stop": None, "temperature": None, "beams": 3}
    assert checked("/worker_generate", given) == {"max_new_tokens": 256, "top_p": 1.0, "beams": 3}
    with pytest.raises(InvalidParameter, match=r"stop\[1\]: Expected str, got int") as refused:
        checked("/worker_generate", {"stop": ["a", 1]})
    assert refused.value.param == "stop"


def test_every_route_of_fastchats_workers_has_a_table():
    assert PARAMETERS.keys() == FASTCHAT_PATHS


class Defective(BaseModelWorker):
    def __init__(self, server: OpenAIServer) -> None:
        super().__init__(WorkerConfig(no_register=True), "http://here", ["m"])

    async def generate_stream_gate(self, params):
        if params["prompt"] == "late":
            yield {"text": "so far", "error_code": 0}
        raise KeyError("a secret of the worker's")

    async def count_token(self, params):
        raise TypeError("a secret of the worker's")

    async def model_details(self, params=None):
        raise OSError("a secret of the worker's")


@pytest.mark.parametrize(
    "path, prompt, before",
    [("/worker_generate_stream", "early", 0), ("/worker_generate_stream", "late", 1), ("/worker_generate", "late", 0),
     ("/count_token", "", 0), ("/model_details", "", 0), ("/worker_get_embeddings", "", 0)],
)  # fmt: skip
def test_a_defect_of_a_worker_is_a_chunk_that_tells_nothing_of_it(path, prompt, before):
    chunks = ask_worker(Defective, path, {"prompt": prompt})
    assert len(chunks) == before + 1 and chunks[-1]["error_code"] == 50001
    assert "secret" not in chunks[-1]["text"]


class Strict(FastChatWorker):
    """As FastChat's own: what is of a wrong type breaks the answer off."""

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        values = json.loads(await request.read() or b"{}")
        if "prompt" in values:
            (
                int(values.get("max_new_tokens", 1)),
                float(values.get("temperature", 1)),
                [*values.get("stop", ())],
            )
        return await super()._answer(request)


def register(running: RunningController, worker: MockWorker, *models: str) -> None:
    status = {"model_names": [*models] or ["m"], "speed": 1, "queue_length": 0}
    registration = {"worker_name": worker.url, "check_heart_beat": True, "worker_status": status}
    assert httpx.post(running.url + "/register_worker", json=registration).status_code == 200


def assert_trusted(running: RunningController) -> None:
    assert {(worker.state, worker.breaker.is_open) for worker in running.registry} == {(State.READY, False)}
    assert not any(worker.breaker._failures for worker in running.registry)


@pytest.fixture
def foreign(start):
    worker, running = start(Strict), start(RunningController)
    register(running, worker)
    return running, worker


def test_a_controller_checks_types_before_a_foreign_worker_sees_them(foreign):
    running, worker = foreign
    with httpx.Client(base_url=running.url) as client:
        for wrong in GENERATIONS[:-1]:
            for path in ("/worker_generate_stream", "/worker_generate"):
                answer = client.post(path, json={"model": "m", "prompt": "a"} | wrong)
                (chunk,) = (json.loads(part) for part in answer.content.split(b"\0") if part)
                assert chunk["error_code"] == 40001, wrong
        whole = client.post(
            "/worker_generate_stream", json={"prompt": "a", "max_new_tokens": None, "stop": "x"}
        )
    assert whole.content.endswith(b"\0") and len(worker.seen) == 1
    assert worker.seen == [{"model": "m", "prompt": "a", "stop": "x"}]
    assert_trusted(running)


@pytest.mark.parametrize(
    "wrong, param",
    [({"stop": 5}, "stop"), ({"stop": [None]}, "stop"), ({"max_tokens": [1]}, "max_tokens"), ({"max_tokens": 0}, "max_tokens"),
     ({"max_completion_tokens": "x"}, "max_completion_tokens"), ({"temperature": {}}, "temperature"), ({"top_k": []}, "top_k"),
     ({"stop_token_ids": 2}, "stop_token_ids")],
)  # fmt: skip
def test_the_bridge_refuses_wrong_types_by_openais_names(foreign, wrong, param):
    running, worker = foreign
    for path, prompt in (
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ):
        if param == "max_completion_tokens" and path == "/v1/completions":
            continue  # it is of chats alone
        for _ in range(MORE_THAN_OPEN_A_BREAKER):
            answer = httpx.post(running.url + path, json={"model": "m"} | prompt | wrong)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
            assert param in answer.json()["error"]["message"]
    assert worker.seen == []
    assert_trusted(running)


class Refusing(FastChatWorker):
    """FastChat's framework, where a body is not as it wants it: an HTTP status, and no chunk."""

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/worker_get_status":
            return await super()._answer(request)
        return web.json_response({"detail": "no"}, status=self.status)


@pytest.mark.parametrize("status", [400, 422, 500])
@pytest.mark.parametrize(
    "path, body",
    [("/v1/completions", {"prompt": "a"}), ("/v1/embeddings", {"input": "a"}), ("/v1/chat/completions", {"messages": [{"content": "a"}]})],
)  # fmt: skip
def test_a_status_of_a_fastchat_worker_is_an_answer(start, path, body, status):
    worker, running = start(Refusing), start(RunningController)
    worker.status = status
    register(running, worker)
    for _ in range(MORE_THAN_OPEN_A_BREAKER):
        answer = httpx.post(running.url + path, json={"model": "m"} | body)
        assert answer.status_code == (502 if "messages" in body else status) and answer.json()["error"]
    assert_trusted(running)


@pytest.mark.parametrize(
    "path, body",
    [("/v1/completions", b'{"model": "m", "prompt": "a"}'), ("/v1/completions?x=%zz&y=%00<|>[]#&&=", b'{"model": "m"}'),
     ("/v1/chat/completions", b'{"model": "m", "messages": [{"content": %d}]}' % 10**30), ("/v1/completions", b"[" * 100_000),
     ("/v1/completions", b"\xff"), ("/v1/responses", b'{"model": "m", "previous_response_id": "../x"}')],
)  # fmt: skip
def test_what_a_server_refuses_is_no_failure_of_its_connection(cluster, path, body):
    running, workers = cluster(2)
    for worker in workers:
        worker.status = 400
    for _ in range(2 * MORE_THAN_OPEN_A_BREAKER):
        answer = httpx.post(running.url + path, content=body)
        assert 400 <= answer.status_code < 500, answer.text
    assert_trusted(running)


class Full(MockWorker):
    """Refuses a body before it has read it."""

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        answer = web.json_response({"error": {"message": "too large"}}, status=413)
        answer.force_close()
        return answer


def test_a_body_that_is_too_large_for_a_server_is_no_failure_of_its_connection(start):
    worker = start(Full)
    running = start(RunningController, workers=[worker.url])
    running.wait_for(lambda: len(running.registry))
    body = json.dumps({"model": "m", "prompt": "a" * (24 << 20)}).encode()
    for _ in range(2):
        assert httpx.post(running.url + "/v1/completions", content=body, timeout=30).status_code == 413
    assert_trusted(running)
