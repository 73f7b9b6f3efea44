"""Prompts with their output lengths: a ShareGPT file, or synthetic ones with ShareGPT's length statistics."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

SHAREGPT_INPUT_MEAN = 217
SHAREGPT_OUTPUT_MEAN = 200
MAX_PROMPT = 1024
MAX_TOTAL = 2048
MIN_TOKENS = 4
_SIGMA = 1.0
"""Spread of the lognormal lengths: half of the requests lie within a factor of two of the median."""


@dataclasses.dataclass(frozen=True)
class Request:
    prompt: str | list[int]
    prompt_tokens: int
    output_tokens: int


def sharegpt(path: Path, count: int, encode: Callable[[str], list[int]], seed: int) -> list[Request]:
    """The first two turns of `count` conversations, in random order: the first is the prompt, the second's length
    the output length. Left out are turns below 4 tokens, prompts above 1024 and pairs above 2048 tokens.

    The file is a list of `{"conversations": [{"from": ..., "value": ...}, ...]}`. Raises ValueError when it is not, or
    holds nothing that fits.
    """
    entries = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(entries, list):
        raise ValueError(f"{path} is not a list of conversations")
    pairs = [texts for entry in entries if len(texts := _first_texts(entry)) == 2]
    requests: list[Request] = []
    for index in np.random.default_rng(seed).permutation(len(pairs)):
        prompt, answer = pairs[index]
        prompt_tokens, output_tokens = len(encode(prompt)), len(encode(answer))
        fits = prompt_tokens <= MAX_PROMPT and prompt_tokens + output_tokens <= MAX_TOTAL
        if min(prompt_tokens, output_tokens) >= MIN_TOKENS and fits:
            requests.append(Request(prompt, prompt_tokens, output_tokens))
        if len(requests) == count:
            break
    if not requests:
        raise ValueError(f"{path} holds no conversation of two turns that fits")
    return requests


def _first_texts(entry: object) -> list[str]:
    """The texts of an entry's first two turns, as far as it has them."""
    turns = entry.get("conversations") if isinstance(entry, dict) else None
    values = (
        [turn.get("value") for turn in turns[:2] if isinstance(turn, dict)] if isinstance(turns, list) else []
    )
    return [value for value in values if isinstance(value, str)]


def synthetic(
    count: int, vocab_size: int, seed: int, input_len: int = 0, output_len: int = 0
) -> list[Request]:
    """Random token ids below `vocab_size` as prompts; lengths lognormal with ShareGPT's means unless given."""
    random = np.random.default_rng(seed)
    inputs = _lengths(random, count, SHAREGPT_INPUT_MEAN, input_len)
    outputs = _lengths(random, count, SHAREGPT_OUTPUT_MEAN, output_len)
    first = min(16, vocab_size // 2)  # the lowest ids are often special tokens
    return [
        Request(random.integers(first, vocab_size, size=length).tolist(), int(length), int(output))
        for length, output in zip(inputs, outputs, strict=True)
    ]


def _lengths(random: np.random.Generator, count: int, mean: float, fixed: int) -> np.ndarray:
    if fixed:
        return np.full(count, fixed)
    lengths = random.lognormal(np.log(mean) - _SIGMA**2 / 2, _SIGMA, size=count)
    for _ in range(4):  # clipping lowers the mean: scale what is left until it is the wanted one
        lengths = np.clip(lengths * (mean / lengths.mean()), MIN_TOKENS, MAX_PROMPT)
    return np.rint(lengths).astype(int)
