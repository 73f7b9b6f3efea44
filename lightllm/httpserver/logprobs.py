"""Log-probabilities in the two shapes of the OpenAI API, of answers and of echoed prompts. Dictionaries, made only for clients
that ask."""

from __future__ import annotations

from typing import Any

from lightllm.httpserver.record import ChoiceRecord, PromptRecord
from lightllm.httpserver.rendering import finite
from lightllm.protocol.messages import TopLogprobs
from lightllm.tokenizer.tokenizer import Tokenizer


class TextOffsets:
    """Where the text of each output token begins, in characters: behind that of the tokens before it. The tokens are decoded
    anew, as the Detokenizer decodes them, because what it sends may be held back for a stop string."""

    def __init__(self, tokenizer: Tokenizer, prompt: PromptRecord, start: int) -> None:
        self.count = 0
        """Tokens so far."""
        self._offset = start
        self._stream = tokenizer.stream(prompt.text_ids, prompt.params.skip_special_tokens)

    def next(self, token_id: int) -> int:
        """The offset of the next token."""
        offset = self._offset
        self.count += 1
        self._offset += len(self._stream.push(token_id))
        return offset


class Logprobs:
    """Formats for one request; `count` alternatives a position."""

    def __init__(self, tokenizer: Tokenizer, count: int, as_ids: bool = False) -> None:
        """as_ids: tokens are named `token_id:7`, as vLLM does for `return_tokens_as_token_ids`."""
        self._tokenizer = tokenizer
        self._count = count
        self._as_ids = as_ids
        self._offsets: dict[int, TextOffsets] = {}
        """Choice -> where its next token begins."""

    # -- chat

    def chat(self, choice: ChoiceRecord, start: int) -> dict[str, Any]:
        """`choices[].logprobs` of a chat for the tokens from `start` on."""
        return {
            "content": [self._chat_token(choice, index) for index in range(start, len(choice.token_ids))],
            "refusal": None,
        }

    def _chat_token(self, choice: ChoiceRecord, index: int) -> dict[str, Any]:
        token_id, logprob = choice.token_ids[index], choice.logprobs[index]
        entry = self._chat_entry(token_id, logprob)
        entry["top_logprobs"] = [
            self._chat_entry(i, logprob if i == token_id else value)
            for i, value in self._pairs(choice.top.get(index))
        ]
        return entry

    def _chat_entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": f"token_id:{token_id}" if self._as_ids else self._tokenizer.token_text(token_id),
            "logprob": finite(logprob),
            "bytes": list(self._tokenizer.token_bytes(token_id)),
        }

    # -- completions

    def completion(self, choice: ChoiceRecord, echoed: int) -> dict[str, list[Any]]:
        """`choices[].logprobs` of a completion for the tokens that this has not been asked for; `echoed`: characters of the
        prompt before the first one."""
        part = _empty()
        offsets = self._offsets.get(choice.index)
        if offsets is None:
            offsets = self._offsets[choice.index] = TextOffsets(self._tokenizer, choice.prompt, echoed)
        for index in range(offsets.count, len(choice.token_ids)):
            token_id, logprob = choice.token_ids[index], choice.logprobs[index]
            self._append(part, token_id, logprob, choice.top.get(index), offsets.next(token_id))
        return part

    def prompt(self, prompt: PromptRecord) -> dict[str, list[Any]]:
        """The same for an echoed prompt; its first token has no log-probability."""
        known, part = _of_prompt(prompt), _empty()
        for index, (token_id, offset) in enumerate(
            zip(prompt.prompt_ids, self._prompt_offsets(prompt), strict=True)
        ):
            if index in known:
                logprob, top = known[index]
                self._append(part, token_id, logprob, top, offset)
            else:
                part["tokens"].append(self._name(token_id))
                part["token_logprobs"].append(None)
                part["top_logprobs"].append(None)
                part["text_offset"].append(offset)
        return part

    def prompt_table(self, prompt: PromptRecord) -> list[dict[str, Any] | None]:
        """vLLM's `prompt_logprobs`: of each prompt token, by its id, and of the alternatives to it. The first token has none; its
        rank is known where it is one of them."""
        known = _of_prompt(prompt)
        table: list[dict[str, Any] | None] = []
        for index, token_id in enumerate(prompt.prompt_ids):
            if index not in known:
                table.append(None)
                continue
            logprob, top = known[index]
            entries = {str(token_id): self._ranked(token_id, logprob, None)}
            for rank, (i, value) in enumerate(self._pairs(top), 1):
                entries[str(i)] = self._ranked(i, logprob if i == token_id else value, rank)
            table.append(entries)
        return table

    def _ranked(self, token_id: int, logprob: float, rank: int | None) -> dict[str, Any]:
        return {
            "logprob": finite(logprob),
            "rank": rank,
            "decoded_token": self._tokenizer.token_text(token_id),
        }

    def _prompt_offsets(self, prompt: PromptRecord) -> list[int]:
        """Where the text of each prompt token begins in the echoed text; special tokens that the tokenizer added take no
        room in it."""
        text = prompt.text
        stream = self._tokenizer.stream([], skip_special_tokens=False)
        special = self._tokenizer.special_ids
        offsets, offset = [], 0
        for token_id in prompt.prompt_ids:
            offsets.append(min(offset, len(text)))
            piece = stream.push(token_id)
            if token_id not in special or text.startswith(piece, offset):
                offset += len(piece)
        return offsets

    def _append(
        self, part: dict[str, list[Any]], token_id: int, logprob: float, top: TopLogprobs | None, offset: int
    ) -> None:
        name = self._name(token_id)
        alternatives: dict[str, float] = {}
        for i, value in self._pairs(top):
            alternatives.setdefault(self._name(i), finite(value))
        alternatives[name] = finite(logprob)
        part["tokens"].append(name)
        part["token_logprobs"].append(finite(logprob))
        part["top_logprobs"].append(alternatives)
        part["text_offset"].append(offset)

    def _name(self, token_id: int) -> str:
        """A token's text; parts of characters as OpenAI writes them, so that different tokens have different names."""
        if self._as_ids:
            return f"token_id:{token_id}"
        data = self._tokenizer.token_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def _pairs(self, top: TopLogprobs | None) -> list[tuple[int, float]]:
        if top is None:
            return []
        return list(zip(top.token_ids, top.logprobs, strict=True))[: self._count]


class Echo:
    """A prompt before its answers, as `/v1/completions` gives it back with `echo`. `alone`: the answer is left out."""

    def __init__(self, logprobs: Logprobs | None, alone: bool = False) -> None:
        self.alone = alone
        self._logprobs = logprobs
        self._last: tuple[PromptRecord | None, dict[str, list[Any]] | None] = None, None

    def logprobs(self, prompt: PromptRecord) -> dict[str, list[Any]] | None:
        """The same for all answers to a prompt, so it is made once."""
        if self._logprobs is not None and self._last[0] is not prompt:
            self._last = prompt, self._logprobs.prompt(prompt)
        return self._last[1]

    def size(self, choice: ChoiceRecord) -> int:
        """About how many entries the log-probabilities of the prompt have."""
        prompt = choice.prompt
        return 0 if self._logprobs is None else len(prompt.prompt_ids) * (prompt.params.prompt_logprobs + 2)


def _of_prompt(prompt: PromptRecord) -> dict[int, tuple[float, TopLogprobs | None]]:
    """Index of a prompt token, but for the first one -> its log-probability and the alternatives."""
    known: dict[int, tuple[float, TopLogprobs | None]] = {}
    for piece in prompt.logprobs:
        for position, logprob in enumerate(piece.logprobs.tolist()):
            top = piece.top[position] if position < len(piece.top) else None
            known[piece.start + position] = (logprob, top)
    known.pop(0, None)
    return known


def joined(first: dict[str, list[Any]], second: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Two parts of a completion's log-probabilities, one after the other."""
    return {name: first[name] + second[name] for name in first}


def _empty() -> dict[str, list[Any]]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
