"""A server in a small container: the memory that its sizing leaves free is enough for whatever prompts come."""

from __future__ import annotations

import json
import random
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.memory_group import memory_group
from support.server import SERVER_COMMAND, LightLLMServer

MIB = 1 << 20
PROCESSES = ("backend-0", "http-0", "router", "detokenizer")


def _generate(url: str, length: int, seed: int) -> int:
    """A request with a prompt of about `length` tokens that no other shares; returns its HTTP status."""
    digits = random.Random(seed).choices("0123456789abcdefghij", k=length)
    body = {"inputs": "".join(digits), "parameters": {"max_new_tokens": 1 + seed % 8, "ignore_eos": True}}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/generate", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as response:
        response.read()
        return int(response.status)


def _serve_in(limit: int, options: list[str], lengths: list[int]) -> dict[str, list[int]]:
    """Serves prompts of these lengths, some at a time, in a group of `limit` bytes; returns each process's resident
    memory in bytes after a third, two thirds and all of them."""
    with memory_group(limit) as group:
        if group is None:
            pytest.skip("needs a writable memory control group")
        with LightLLMServer(options, command=group.command(SERVER_COMMAND)) as server:
            server.wait_ready()
            processes = {name: server.child(name) for name in PROCESSES}
            resident: dict[str, list[int]] = {name: [] for name in PROCESSES}
            third = -(-len(lengths) // 3)
            with ThreadPoolExecutor(6) as clients:
                for first in range(0, len(lengths), third):
                    part = range(first, min(first + third, len(lengths)))
                    statuses = clients.map(
                        lambda number: _generate(server.url, lengths[number], number), part
                    )
                    assert set(statuses) == {200}, server.log
                    for name, process in processes.items():
                        resident[name].append(process.memory_info().rss)
        assert group.kills() == 0
        return resident


def _lengths(count: int, longest: int) -> list[int]:
    """`count` different ones where there are so many, in an order that no shape repeats soon."""
    spread = [1 + number * longest // count for number in range(count)]
    random.Random(1).shuffle(spread)
    return spread


def test_prompts_of_many_lengths_fit_into_a_small_container() -> None:
    # float32, so that every processor multiplies with oneDNN, which keeps something for each shape it has met.
    resident = _serve_in(700 * MIB, ["--data_type", "float32"], _lengths(99, 700))
    assert all(last - before < 60 * MIB for _, before, last in resident.values()), resident


@pytest.mark.slow
@pytest.mark.parametrize("data_type", ["float32", "bfloat16"])
@pytest.mark.parametrize("limit", [700, 1024, 1536])
def test_thousands_of_prompts_fit_into_a_small_container(limit: int, data_type: str) -> None:
    options = ["--data_type", data_type, "--max_total_token_num", "20000"]
    resident = _serve_in(limit * MIB, options, _lengths(5000, 1500))
    assert all(last - before < 30 * MIB for _, before, last in resident.values()), resident
