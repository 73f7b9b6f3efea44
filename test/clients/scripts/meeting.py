"""What the scripts of this folder have in common: the servers, the questions that their models know, and what is asked of each client."""

from __future__ import annotations

import asyncio
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

DEMO, AGENT, EMBEDDER = sys.argv[1:4]
"""A server with the demo model, one whose model thinks and calls `add`, and one that gives vectors."""
KEY = "secret"
CAPITAL = "What is the capital of France?"
"""The demo model answers with Paris, the other one that it does not know."""
SUM, TWO_SUMS = "What is 7 plus 5?", "What are 7 plus 5 and 20 plus 3?"
"""The agent's model calls `add`, for the second one twice, and then tells what it was told."""
IN_JSON = "Describe Paris as JSON."
"""The agent's model does, with `city` and `inhabitants`."""
STORY = "Tell a long story."
"""The agent's model tells one for many seconds."""
LONG = "hello " * 5000
"""More than the context of both."""
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "Adds two numbers.", "parameters": SCHEMA},
}


def add(a: int, b: int) -> str:
    """Adds two numbers."""
    return f"the sum is {a + b}"


@contextmanager
def refused(error: type[BaseException], *words: str) -> Iterator[list[BaseException]]:
    """What is done within fails with exactly this error, whose text has the words; it is in the list afterwards."""
    found: list[BaseException] = []
    try:
        yield found
    except error as refusal:
        assert type(refusal) is error and all(word in str(refusal) for word in words), repr(refusal)
        found.append(refusal)
    else:
        raise AssertionError(f"no {error.__name__}")


@contextmanager
def freed() -> Iterator[None]:
    """What is done within leaves a stream of the agent's server, which ends the request."""
    before = _metric("lightllm_router_aborted_total")
    yield
    for _ in _until_aborted(before):
        time.sleep(0.02)


@asynccontextmanager
async def freed_meanwhile() -> AsyncIterator[None]:
    """The same for a client that takes leave in the event loop, some time after."""
    before = _metric("lightllm_router_aborted_total")
    yield
    for _ in _until_aborted(before):
        await asyncio.sleep(0.02)


def _until_aborted(before: float) -> Iterator[None]:
    deadline = time.monotonic() + 60
    while _metric("lightllm_router_aborted_total") == before or _metric("lightllm_batch_current_size"):
        assert time.monotonic() < deadline, "the request goes on"
        yield


def _metric(name: str) -> float:
    request = urllib.request.Request(f"{AGENT}/metrics", headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request) as answer:
        lines = [line for line in answer.read().decode().splitlines() if line.startswith(name + "{")]
    return float(lines[0].rpartition(" ")[2])
