"""Texts that are far too long cost little: they are never tokenized as a whole."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

import pytest

from lightllm.errors import InvalidParameter, PromptTooLong
from lightllm.httpserver.reading import prompts
from lightllm.httpserver.reading.prompts import Limits, PromptEncoder
from lightllm.tokenizer import Tokenizer

LIMIT = 50
TEXT = " ".join(f"word{number} of one two" for number in range(2000))


@pytest.fixture
def longest(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Characters of the longest text that was tokenized at once. Pieces have 1000 characters here."""
    lengths = [0]
    encode = tokenizer.encode

    def counted(text: str, add_special_tokens: bool = True) -> list[int]:
        lengths.append(len(text))
        return encode(text, add_special_tokens)

    monkeypatch.setattr(tokenizer, "encode", counted)
    monkeypatch.setattr(prompts, "PIECE_CHARACTERS", 1000)
    return lambda: max(lengths)


def encode(encoder: PromptEncoder, text: str, limit: int = LIMIT) -> list[int]:
    return asyncio.run(encoder.encode(text, True, limit, "inputs"))


def test_a_text_that_is_far_too_long_is_refused_piece_by_piece(
    tokenizer: Tokenizer, longest: Callable[[], int]
) -> None:
    with pytest.raises(PromptTooLong, match=f"{len(TEXT)} characters has more than 50 tokens") as error:
        encode(PromptEncoder(tokenizer), TEXT)
    assert error.value.param == "inputs" and longest() == 1000


def test_a_long_text_that_fits_is_tokenized_as_a_whole(
    tokenizer: Tokenizer, longest: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "CHARACTERS_PER_TOKEN", 0)
    ids = encode(PromptEncoder(tokenizer), TEXT, limit=10**6)
    assert longest() == len(TEXT) and tokenizer.decode(ids) == TEXT


@pytest.mark.parametrize("mode", ["head", "center"])
def test_truncation_of_a_long_text_is_the_same_without_its_dropped_part(
    tokenizer: Tokenizer, longest: Callable[[], int], mode: str
) -> None:
    limits = Limits(LIMIT, tokenizer.vocab_size, 1000)
    encoder = PromptEncoder(tokenizer, mode)
    ids, _ = encoder.fit(encode(encoder, TEXT), 8, limits, 16)
    assert longest() == (4000 if mode == "head" else 8000)
    assert ids == encoder.fit(tokenizer.encode(TEXT), 8, limits, 16)[0]


def test_max_req_input_len_bounds_the_prompt_alone(tokenizer: Tokenizer) -> None:
    limits = Limits(LIMIT, tokenizer.vocab_size, 1000)
    encoder = PromptEncoder(tokenizer, max_input=10)
    assert encoder.fit([5] * 10, 8, limits, 16) == ([5] * 10, 8)
    with pytest.raises(
        PromptTooLong, match=r"maximum context length is 10 .* 11 .* \(context_length_exceeded\)"
    ):
        encoder.fit([5] * 11, 1, limits, 16, prompt_field="messages")
    with pytest.raises(PromptTooLong, match=r"token len 11 > 10 \(max_req_input_len\)"):
        encoder.fit([5] * 11, 8, limits, 16)


@pytest.mark.parametrize(
    ("mode", "kept"), [("head", range(90, 100)), ("center", [*range(5), *range(95, 100)])]
)
def test_max_req_input_len_is_what_prompts_are_truncated_to(
    tokenizer: Tokenizer, mode: str, kept: Sequence[int]
) -> None:
    limits = Limits(1000, tokenizer.vocab_size, 1000)
    encoder = PromptEncoder(tokenizer, mode, max_input=10)
    assert encoder.fit(list(range(100)), 8, limits, 16)[0] == list(kept)
    assert len(PromptEncoder(tokenizer, mode, max_input=995).fit([5] * 1000, 8, limits, 16)[0]) == 992


def test_a_text_with_a_token_that_the_model_lacks_is_refused(tokenizer: Tokenizer) -> None:
    limits = Limits(max_req_total_len=100, vocab_size=10, slots=100)
    with pytest.raises(InvalidParameter, match="token id 10, the model has 10"):
        PromptEncoder(tokenizer).fit([3, 10], 5, limits, 16)


def test_a_tokenizer_that_is_slow_with_a_short_text_leaves_the_event_loop(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, encode, clock = [], tokenizer.encode, [0.0]

    def slow(text: str, add_special_tokens: bool = True) -> list[int]:
        threads.append(threading.current_thread())
        clock[0] += 1.0 if text == "slow" else 0.001
        return encode(text, add_special_tokens)

    monkeypatch.setattr(prompts.time, "thread_time", lambda: clock[0])
    encoder = PromptEncoder(tokenizer)
    monkeypatch.setattr(tokenizer, "encode", slow)
    for text in ("quick", "slow", "quick"):
        asyncio.run(encoder.encode(text, True, LIMIT, "inputs"))
    assert [thread is threading.main_thread() for thread in threads] == [True, True, False]
