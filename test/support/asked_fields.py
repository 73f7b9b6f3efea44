"""Requests that differ in some fields alone, to each route that generates."""

from __future__ import annotations

from typing import Any

import httpx

from lightllm.sampling_params import SamplingParams
from support.fake_engine import FakeEngine

CHAT, COMPLETION, NATIVE = "/v1/chat/completions", "/v1/completions", "/generate"


def ask(client: httpx.Client, path: str, **fields: Any) -> httpx.Response:
    if path == NATIVE:
        return client.post(path, json={"inputs": "x", "parameters": fields})
    start: dict[str, Any] = (
        {"prompt": "x"} if path == COMPLETION else {"messages": [{"role": "user", "content": "x"}]}
    )
    return client.post(path, json=start | fields)


def used(client: httpx.Client, engine: FakeEngine, path: str, **fields: Any) -> SamplingParams:
    """What the engine got."""
    response = ask(client, path, **fields)
    assert response.status_code == 200, response.text
    return engine.added[-1].params
