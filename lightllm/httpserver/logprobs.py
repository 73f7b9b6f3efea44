"""Log-probabilities in the two shapes of the OpenAI API. Dictionaries, made only for clients that ask."""

from __future__ import annotations

from typing import Any

from lightllm.httpserver.record import ChoiceRecord, PromptRecord
from lightllm.httpserver.rendering import finite
from lightllm.protocol.messages import TopLogprobs
from lightllm.tokenizer.tokenizer import Tokenizer


class Logprobs:
    """Formats for one request; `count` alternatives a position."""

    def __init__(self, tokenizer: Tokenizer, count: int) -> None:
        self._tokenizer = tokenizer
        self._count = count

    # -- chat

    def chat(self, choice: ChoiceRecord, start: int) -> dict[str, Any]:
        """`choices[].logprobs` of a chat for the tokens from `start` on."""
        return {
            "content": [self._chat_token(choice, index) for index in range(start, len(choice.token_ids))],
            "refusal": None,
        }

    def _chat_token(self, choice: ChoiceRecord, index: int) -> dict[str, Any]:
        entry = self._chat_entry(choice.token_ids[index], choice.logprobs[index])
        alternatives = self._pairs(choice.top.get(index))
        entry["top_logprobs"] = [self._chat_entry(i, logprob) for i, logprob in alternatives]
        return entry

    def _chat_entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self._tokenizer.token_text(token_id),
            "logprob": finite(logprob),
            "bytes": list(self._tokenizer.token_bytes(token_id)),
        }

    # -- completions

    def completion(self, choice: ChoiceRecord, start: int, offset: int) -> dict[str, list[Any]]:
        """`choices[].logprobs` of a completion for the tokens from `start` on; `offset`: characters before them."""
        part = _empty()
        for index in range(start, len(choice.token_ids)):
            token_id, logprob = choice.token_ids[index], choice.logprobs[index]
            self._append(part, token_id, logprob, choice.top.get(index), offset)
            offset += len(choice.texts[index])
        return part

    def prompt(self, prompt: PromptRecord) -> dict[str, list[Any]]:
        """The same for an echoed prompt; its first token has no log-probability."""
        known: dict[int, tuple[float, TopLogprobs | None]] = {}
        for piece in prompt.logprobs:
            for position, logprob in enumerate(piece.logprobs.tolist()):
                top = piece.top[position] if position < len(piece.top) else None
                known[piece.start + position] = (logprob, top)
        part = _empty()
        offset = 0
        for index, token_id in enumerate(prompt.prompt_ids):
            if index in known and index > 0:
                logprob, top = known[index]
                self._append(part, token_id, logprob, top, offset)
            else:
                part["tokens"].append(self._tokenizer.token_text(token_id))
                part["token_logprobs"].append(None)
                part["top_logprobs"].append(None)
                part["text_offset"].append(offset)
            offset += len(part["tokens"][-1])
        return part

    def _append(
        self, part: dict[str, list[Any]], token_id: int, logprob: float, top: TopLogprobs | None, offset: int
    ) -> None:
        text = self._tokenizer.token_text
        part["tokens"].append(text(token_id))
        part["token_logprobs"].append(finite(logprob))
        alternatives = {text(i): finite(value) for i, value in self._pairs(top)}
        alternatives.setdefault(text(token_id), finite(logprob))
        part["top_logprobs"].append(alternatives)
        part["text_offset"].append(offset)

    def _pairs(self, top: TopLogprobs | None) -> list[tuple[int, float]]:
        if top is None:
            return []
        return list(zip(top.token_ids, top.logprobs, strict=True))[: self._count]


def joined(first: dict[str, list[Any]], second: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Two parts of a completion's log-probabilities, one after the other."""
    return {name: first[name] + second[name] for name in first}


def _empty() -> dict[str, list[Any]]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
