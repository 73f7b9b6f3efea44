"""A server behind a controller is killed while it answers: its streams go on on the others with the same tokens."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable

import aiohttp
import httpx
import pytest
from cluster.conftest import RunningController
from support.server import LightLLMServer

OPTIONS = [
    "--data_type",
    "fp32",
    "--max_total_token_num",
    "20000",
    "--model_name",
    "m",
    "--running_max_req_size",
    "64",
]


def body(number: int) -> dict:
    sampling = {"temperature": 0} if number % 2 else {"temperature": 0.9, "seed": number}
    return {"model": "m", "prompt": f"Tell me a story about number {number}.", "max_tokens": 150, "ignore_eos": True,
            "stream": True, **sampling}  # fmt: skip


async def follow(session: aiohttp.ClientSession, url: str, number: int, on_event: Callable[[], None]) -> str:
    """The text of one stream, which must end as it should."""
    text, ended = "", False
    async with session.post(url + "/v1/completions", json=body(number)) as answer:
        assert answer.status == 200, await answer.text()
        async for line in answer.content:
            assert not line.startswith(b":"), line  # what servers tell the controller is not for clients
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                assert "error" not in event, event
                text += event["choices"][0]["text"]
                on_event()
            ended = ended or line.startswith(b"data: [DONE]")
    assert ended
    return text


async def run(url: str, count: int, on_event: Callable[[], None]) -> list[str]:
    timeout = aiohttp.ClientTimeout(total=200)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        return list(await asyncio.gather(*(follow(session, url, n, on_event) for n in range(count))))


@pytest.mark.parametrize(
    "servers, streams, kills", [(2, 16, 1), pytest.param(3, 64, 2, marks=pytest.mark.slow)]
)
def test_streams_of_a_killed_server_end_as_if_nothing_had_happened(servers, streams, kills):
    running = [LightLLMServer(OPTIONS) for _ in range(servers)]
    try:
        for server in running:
            server.__enter__()
        whole = asyncio.run(run(running[0].url, streams, lambda: None))
        controller = RunningController(
            workers=[server.url for server in running], dispatch_method="round_robin"
        )
        try:
            controller.wait_for(lambda: len(controller.registry) == servers)
            events = 0

            def on_event() -> None:
                nonlocal events
                events += 1
                for number in range(kills):
                    if events == (number + 1) * streams * 3:
                        os.killpg(running[number].process.pid, signal.SIGKILL)

            assert asyncio.run(run(controller.url, streams, on_event)) == whole
            text = httpx.get(controller.url + "/metrics").text
            broken = [
                line
                for line in text.splitlines()
                if line.startswith("lightllm_controller_broken_streams_total{")
            ]
            assert sum(float(line.rpartition(" ")[2]) for line in broken) >= kills, text
            controller.wait_for(lambda: all(worker.in_flight == 0 for worker in controller.registry))
        finally:
            controller.end()
    finally:
        for number, server in enumerate(running):
            if number < kills and server.process.poll() is not None:
                server.process.wait()
            else:
                server.__exit__(None, None, None)
