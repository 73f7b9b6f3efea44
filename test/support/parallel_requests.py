"""Requests for a server of several ranks, what one rank answers to them, and a long stream to be cut off."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from lightllm import LLM, SamplingParams
from support.server import LightLLMServer

NEW_TOKENS = 12


def requests() -> list[tuple[str, dict[str, Any]]]:
    """Greedy and random ones of ragged lengths, some with a history, some constrained."""
    texts = [("The quick brown fox " * n)[: 7 * n] for n in range(1, 9)]
    greedy = [(text, {"do_sample": False}) for text in texts]
    random = [(text, {"do_sample": True, "temperature": 0.7, "seed": n}) for n, text in enumerate(texts[:4])]
    penalized = [(texts[-1], {"do_sample": False, "frequency_penalty": 1.0, "top_p": 0.9})]
    schema = '{"type":"object","properties":{"age":{"type":"integer"}},"required":["age"],"additionalProperties":false}'
    constrained = [
        (texts[3], {"do_sample": False, "regular_constraint": "[a-z ]{4,40}!"}),
        (texts[5], {"do_sample": True, "temperature": 0.9, "seed": 9, "guided_json": schema}),
    ]
    return [*greedy, *random, *penalized, *constrained]


def expected_answers(path: Path) -> list[list[int]]:
    """The tokens of one rank, request by request."""
    with LLM(str(path), data_type="fp32", max_total_token_num=4000, cpu_threads=1) as llm:
        params = [
            SamplingParams(max_new_tokens=NEW_TOKENS, ignore_eos=True, **fields) for _, fields in requests()
        ]
        answers = llm.generate([text for text, _ in requests()], params, use_tqdm=False)
    return [answer.outputs[0].token_ids for answer in answers]


def answer(server: LightLLMServer, text: str, fields: dict[str, Any]) -> list[int]:
    parameters = {"max_new_tokens": NEW_TOKENS, "ignore_eos": True, "return_details": True, **fields}
    response = httpx.post(
        f"{server.url}/generate", json={"inputs": text, "parameters": parameters}, timeout=60
    )
    response.raise_for_status()
    return [token["id"] for token in response.json()["tokens"]]


class Stream:
    """A long streamed answer, read in a thread: what has come, and how it ended."""

    def __init__(self, url: str) -> None:
        self.text = ""
        self.pool = ThreadPoolExecutor(1)
        self.first = self.pool.submit(lambda: None)
        self.done = self.pool.submit(self._read, url)

    def _read(self, url: str) -> None:
        parameters = {"max_new_tokens": 3000, "ignore_eos": True, "do_sample": False}
        body = {"inputs": "The quick brown fox", "parameters": parameters}
        with httpx.stream("POST", f"{url}/generate_stream", json=body, timeout=60) as response:
            for text in response.iter_text():
                self.text += text

    def wait_for_tokens(self) -> None:
        deadline = time.monotonic() + 20
        while self.text.count("data:") < 3:
            assert time.monotonic() < deadline and not self.done.done(), self.text[-500:]
            time.sleep(0.02)


def check_ended_with_an_error(stream: Stream, timeout: float) -> None:
    """An error event, not a hang and not a complete answer."""
    stream.done.exception(timeout)
    assert "error" in stream.text, stream.text[-500:]
