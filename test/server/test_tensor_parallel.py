"""Several ranks behind real HTTP: the tokens of one rank, and what clients see when a rank dies or hangs."""

from __future__ import annotations

import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import make_checkpoint
from support.model_zoo import make_zoo_model
from support.parallel_requests import Stream, answer, check_ended_with_an_error, expected_answers, requests
from support.server import LightLLMServer

from lightllm.ipc.rpc import RpcClient
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.protocol.control import Attach, ModelReady

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "as many KV heads as ranks": ("llama", {"attention_bias": True, "mlp_bias": True, "vocab_size": 387}),
    "one KV head": ("llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "two KV heads": ("qwen3", {"num_key_value_heads": 2}),
}


TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "MASTER_ADDR": "192.0.2.1", "MASTER_PORT": "1"}
"""A job around the server, whose ranks are not the server's."""


def make_model(path: Path, shape: str) -> Path:
    if shape not in SHAPES:
        return make_zoo_model(path, shape).path
    architecture, fields = SHAPES[shape]
    return make_checkpoint(path, architecture, **fields)


def options(path: Path, ranks: int, *more: str) -> list[str]:
    return [
        "--model_dir", str(path), "--tp", str(ranks), "--device", "cpu", "--data_type", "fp32",
        "--max_total_token_num", "4000", "--check_rounds", *more,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ranks", "shape"),
    [
        (2, "one KV head"),
        *(
            pytest.param(ranks, shape, marks=pytest.mark.slow)
            for ranks, shape in [
                (2, "as many KV heads as ranks"),
                (2, "two KV heads"),
                *((ranks, name) for ranks in (2, 4) for name in ("qwen3-moe", "deepseek-v3")),
                *((4, s) for s in SHAPES),
            ]
        ),
    ],
)
def test_several_ranks_give_the_tokens_of_one(tmp_path: Path, ranks: int, shape: str) -> None:
    path = make_model(tmp_path / "model", shape)
    expected = expected_answers(path)
    with (
        LightLLMServer(options(path, ranks, "--chunked_prefill_size", "16"), environment=TORCHRUN) as server,
        ThreadPoolExecutor(16) as pool,
    ):
        assert len({server.child(f"backend-{rank}").pid for rank in range(ranks)}) == ranks
        answers = list(pool.map(lambda request: answer(server, *request), requests()))
        assert answers == expected
        again = [pool.submit(answer, server, *request) for request in requests()]
        lose_a_router_amid_attaching(server, pool)
        assert [each.result() for each in again] == expected
        assert "backend" not in "".join(re.findall(r".* started again", server.log))


def lose_a_router_amid_attaching(server: LightLLMServer, pool: ThreadPoolExecutor) -> None:
    """It has asked rank 0, which waits for rank 1 then, when it ends."""
    (folder,) = server.runtime_folders()
    runtime = RuntimeDir(folder)
    request = Attach(runtime.begin_epoch(), 0, b"")
    asked = pool.submit(RpcClient(runtime.backend_control(0)).call, "attach", request, ModelReady)
    time.sleep(0.3)
    assert not asked.done()
    server.child("router").kill()
    server.wait_for("router was killed by SIGKILL: it is started again")


@pytest.mark.slow
def test_a_rank_that_dies_is_named_and_clients_get_an_error(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model")
    server = LightLLMServer(options(path, 2, "--max_req_total_len", "3500", "--max_restarts", "0"))
    try:
        stream = Stream(server.wait_ready())
        stream.wait_for_tokens()
        server.child("backend-1").kill()
        check_ended_with_an_error(stream, 20)
        assert server.wait() == 1
        assert "lightllm: error: backend-1 failed: was killed by SIGKILL" in server.log
        server.check_nothing_left()
    finally:
        server.abandon()


def test_a_rank_that_hangs_is_named_and_clients_get_an_error(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model")
    server = LightLLMServer(
        options(path, 2, "--max_req_total_len", "3500", "--round_timeout", "1.5", "--max_restarts", "0")
    )
    try:
        stream = Stream(server.wait_ready())
        stream.wait_for_tokens()
        server.child("backend-1").send_signal(signal.SIGSTOP)
        check_ended_with_an_error(stream, 30)
        assert server.wait() == 1
        assert "tensor parallel rank 1 did not answer within" in server.log
        server.check_nothing_left()
    finally:
        server.abandon()


def test_a_tp_that_does_not_divide_the_heads_ends_the_launch_with_one_line(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model")
    server = LightLLMServer(options(path, 3))
    try:
        assert server.wait() == 2
        errors = [line for line in server.log.splitlines() if line.startswith("lightllm: error:")]
        assert errors == ["lightllm: error: num_heads 8 cannot be split over 3 ranks. Choose another --tp."]
    finally:
        server.abandon()
