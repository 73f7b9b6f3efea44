"""From what a client wrote to token ids that fit: tokenization, vocabulary check, length check, truncation."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from lightllm.errors import InvalidParameter, PromptTooLong, RequestError
from lightllm.images.layouts.layout import Layout
from lightllm.images.prompt import encode as encode_markers
from lightllm.templating.process import MAX_PROCESSES
from lightllm.tokenizer.tokenizer import Tokenizer

_Result = TypeVar("_Result")
INLINE_CHARACTERS = 2000
"""Texts up to this length, those of a request together, are tokenized in the event loop, and that many tokens decoded; a
thread costs more than it spares."""
_INLINE_SECONDS = 0.05
"""Of processor time: what a short text holds the event loop at most, but for the first one that takes longer; usual is 1 ms."""
PIECE_CHARACTERS = 65536
"""Texts up to this length are tokenized at once, whatever comes out."""
CHARACTERS_PER_TOKEN = 8
"""More than in any ordinary text."""
_TOKENS_OF_A_CUT = 16
"""How many tokens a cut through a text may add, generously."""
DEFAULT_MAX_NEW_TOKENS = 16
MAX_TOKENIZED = 1 << 18
"""Tokens of a text that is only tokenized; texts that have far more are refused."""
_TOKENIZER_THREADS = 2
_OPENAI_FIELDS = ("messages", "prompt", "input")
"""What the prompt is called on /v1."""


class Limits(NamedTuple):
    """What bounds a request now."""

    max_req_total_len: int
    """prompt + output, tokens"""
    vocab_size: int
    slots: int
    """KV slots of all requests together; the answers of one prompt run side by side."""


class PromptEncoder:
    """Makes prompts for the engine. Safe to use from concurrent requests."""

    def __init__(
        self, tokenizer: Tokenizer, truncation: str | None = None, max_input: int | None = None
    ) -> None:
        """truncation: what becomes of too long prompts, None: an error; max_input: their longest, in tokens, None:
        whatever the whole request leaves room for."""
        self.tokenizer = tokenizer
        self._max_input = max_input
        self._truncation = truncation
        self._encodes_inline = True
        """Until a short text has once taken long: some tokenizers' regular expressions take seconds for some texts."""
        self._threads = ThreadPoolExecutor(_TOKENIZER_THREADS, thread_name_prefix="tokenize")
        self._chat_threads = ThreadPoolExecutor(MAX_PROCESSES, thread_name_prefix="chat-template")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._chat_threads.shutdown(wait=False, cancel_futures=True)
        self.tokenizer.close()

    async def encode(
        self,
        text: str,
        add_special_tokens: bool,
        limit: int,
        field: str,
        keep: int | None = None,
        layout: Layout | None = None,
    ) -> list[int]:
        """Token ids of a text, maybe none: all, or the last `keep`. layout: of a text that may have markers of images, which
        become placeholders. Raises `PromptTooLong` if there are far more than `limit`."""
        (ids,) = await self.encode_all([text], add_special_tokens, limit, field, keep, layout)
        return ids

    async def encode_inputs(
        self, texts: Sequence[str], special: bool, limit: int, field: str, keep: int | None, left: bool
    ) -> list[list[int]]:
        """As `encode_all`, of texts behind which nothing is generated. keep: of each so many tokens are kept at most, special
        tokens among them; left: its beginning is dropped, not its end."""
        if keep is None:
            return await self.encode_all(texts, special, limit, field)
        size = max(PIECE_CHARACTERS, keep * CHARACTERS_PER_TOKEN)

        def encode() -> list[list[int]]:
            return [cut(text[-size:] if left else text[:size]) for text in texts]

        def cut(text: str) -> list[int]:
            ids = self.tokenizer.encode(text, special)
            if len(ids) <= keep:
                return ids
            plain = self.tokenizer.encode(text, False) if special else ids
            return cut_between(ids, plain, keep, left)

        return await self.apart(encode)

    async def apart(self, work: Callable[[], _Result]) -> _Result:
        """Its result; it tokenizes much, in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def bounded(self, text: str, limit: int, field: str) -> str:
        """The text. Raises `PromptTooLong` if it has far more than `limit` tokens."""
        return self._bounded(text, limit, field, None)

    async def encode_all(
        self,
        texts: Sequence[str],
        add_special_tokens: bool,
        limit: int,
        field: str,
        keep: int | None = None,
        layout: Layout | None = None,
    ) -> list[list[int]]:
        """The same for several texts; where they are long together, in a thread."""

        def encode_one(text: str) -> list[int]:
            text, tokenize = self._bounded(text, limit, field, keep), self.tokenizer.encode
            if layout is None:
                return last(tokenize(text, add_special_tokens), keep)
            return last(encode_markers(text, layout, tokenize, add_special_tokens), keep)

        def encode() -> list[list[int]]:
            return [encode_one(text) for text in texts]

        if self._encodes_inline and sum(map(len, texts)) <= INLINE_CHARACTERS:
            started = time.thread_time()
            try:
                return encode()
            finally:
                self._encodes_inline = time.thread_time() - started < _INLINE_SECONDS
        return await asyncio.get_running_loop().run_in_executor(self._threads, encode)

    def encode_part(self, text: str) -> list[int]:
        """Token ids of a short text, without BOS and the like."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    async def decode_all(self, prompts: Sequence[list[int]], skip_special_tokens: bool = False) -> list[str]:
        """The text of token ids; where there are many together, in a thread."""

        def decode() -> list[str]:
            return [self.tokenizer.decode(ids, skip_special_tokens) for ids in prompts]

        if sum(map(len, prompts)) <= INLINE_CHARACTERS:
            return decode()
        return await asyncio.get_running_loop().run_in_executor(self._threads, decode)

    def _bounded(self, text: str, limit: int, field: str, keep: int | None) -> str:
        """A text that does not have far more than `limit` tokens: to tokenize megabytes at once takes minutes, and
        gigabytes of memory. So a long text is counted piece by piece first, or, if it may be truncated, loses what would
        be dropped anyway."""
        size = max(PIECE_CHARACTERS, limit * CHARACTERS_PER_TOKEN)
        if len(text) <= size:
            return text
        if self._truncation is not None or keep is not None:
            front = text[: size * 4] if keep is None and self._truncation == "center" else ""
            return text if len(text) <= size * 8 else front + text[-size * 4 :]
        tokens = 0
        for start in range(0, len(text), size):
            piece = self.tokenizer.encode(text[start : start + size], add_special_tokens=False)
            tokens += max(0, len(piece) - _TOKENS_OF_A_CUT)
            if tokens > limit:
                raise PromptTooLong(_text_too_long(len(text), limit, field), param=field)
        return text

    async def render_chat(self, messages: list[dict[str, Any]], **options: Any) -> str:
        """`Tokenizer.apply_chat_template`, never in the event loop: a template is a program of the model folder."""
        render = functools.partial(self.tokenizer.apply_chat_template, messages, **options)
        return await asyncio.get_running_loop().run_in_executor(self._chat_threads, render)

    async def check_chat_templates(self) -> None:
        """Ahead of the first chat, which is then answered sooner; what is wrong with a template is in the log at once."""
        try:
            await asyncio.get_running_loop().run_in_executor(
                self._chat_threads, self.tokenizer.chat_templates.check
            )
        except RequestError as error:
            logging.getLogger(__name__).warning(
                "%s; it is tried again when the first chat comes", error.message
            )

    def fit_input(self, ids: list[int], limits: Limits, field: str) -> list[int]:
        """As `fit`, for a prompt behind which nothing is generated."""
        if not ids:
            raise InvalidParameter(f"{field} has no tokens", param=field)
        if max(ids) >= limits.vocab_size:
            raise InvalidParameter(
                f"{field} holds token id {max(ids)}, the model has {limits.vocab_size}", param=field
            )
        room = min(limits.max_req_total_len, self._max_input or limits.max_req_total_len)
        if len(ids) <= room:
            return ids
        if self._truncation is None:
            raise PromptTooLong(
                f"This model's maximum context length is {room} tokens. However, your {field} resulted in {len(ids)} tokens. "
                f"Please reduce the length of the {field}.",
                param=field,
            )
        return _truncate(ids, room, self._truncation)

    def fit(
        self,
        prompt_ids: list[int],
        max_new_tokens: int | None,
        limits: Limits,
        default: int,
        n: int = 1,
        prompt_field: str = "inputs",
        length_field: str = "max_new_tokens",
        extra: int | None = None,
        clip: bool = False,
    ) -> tuple[list[int], int]:
        """Checks a prompt against the limits; returns it, truncated if the server is set so, with its output length.

        extra: how many tokens more it will have when images take the places of their markers; it is never truncated then.
        clip: a `max_new_tokens` that the prompt leaves no room for becomes what it leaves, unless the prompt is truncated.

        Without `max_new_tokens` each of the `n` outputs gets `default` tokens, or what the prompt leaves. Raises `InvalidParameter`
        for an empty prompt, `PromptTooLong` with the numbers.
        """
        if not prompt_ids:
            raise InvalidParameter("prompt_ids is empty", param=prompt_field)
        if max(prompt_ids) >= limits.vocab_size:  # of a text: the tokenizer has tokens that the model lacks
            raise InvalidParameter(
                f"the prompt holds token id {max(prompt_ids)}, the model has {limits.vocab_size}",
                param=prompt_field,
            )
        limit, length = limits.max_req_total_len, len(prompt_ids) + (extra or 0)
        truncation = self._truncation if extra is None else None
        if max_new_tokens is None:
            room = min(limit, limits.slots // n)
            max_new_tokens = max(1, min(default, room - length))
        elif clip and truncation is None:
            max_new_tokens = max(1, min(max_new_tokens, limit - length))
        room = limit - max_new_tokens
        if self._max_input is not None and self._max_input < min(room, length):
            if truncation is None:
                raise PromptTooLong(
                    _input_too_long(length, self._max_input, prompt_field), param=prompt_field
                )
            room = self._max_input
        if length > room:
            if truncation is None or room < 1:
                error = PromptTooLong(
                    _too_long(length, max_new_tokens, limit, prompt_field),
                    param=length_field if length < limit else prompt_field,
                )
                error.counts = length, max_new_tokens, limit
                raise error
            prompt_ids = _truncate(prompt_ids, room, truncation)
        return prompt_ids, max_new_tokens


def last(ids: list[int], keep: int | None) -> list[int]:
    """The last `keep` token ids, or all."""
    return ids if keep is None else ids[-keep:]


def cut_between(ids: list[int], plain: list[int], keep: int, left: bool) -> list[int]:
    """`keep` of more token ids: of those in `plain` the first, or (left) the last; what stands before and behind these in `ids`
    stays."""
    extra = len(ids) - len(plain)
    for before in range(extra + 1):
        behind = before + len(plain)
        room = keep - extra
        if room > 0 and ids[before:behind] == plain:
            return ids[:before] + (plain[-room:] if left else plain[:room]) + ids[behind:]
    return ids[-keep:] if left else ids[:keep]


def check_vocabulary(prompt_ids: list[int], vocab_size: int, param: str) -> None:
    """Raises `InvalidParameter` for token ids that the model does not know."""
    if prompt_ids and max(prompt_ids) >= vocab_size:
        raise InvalidParameter(
            f"prompt List[int] format contain id > vocab_size: ids must be in [0, {vocab_size})", param=param
        )


def _too_long(prompt: int, output: int, limit: int, field: str) -> str:
    if field not in _OPENAI_FIELDS:
        return f"the input prompt token len {prompt} + max_new_tokens {output} > {limit}"
    requested = (
        f"you requested {prompt + output} tokens ({prompt} in the {field}, {output} in the completion)"
    )
    return _in_openais_words(limit, requested, f"{field} or completion")


def _input_too_long(prompt: int, limit: int, field: str) -> str:
    if field not in _OPENAI_FIELDS:
        return f"the input prompt token len {prompt} > {limit} (max_req_input_len)"
    return _in_openais_words(limit, f"your {field} resulted in {prompt} tokens (max_req_input_len)", field)


def _text_too_long(characters: int, limit: int, field: str) -> str:
    if field not in _OPENAI_FIELDS:
        return f"the text of {characters} characters has more than {limit} tokens, the most that are taken"
    return _in_openais_words(limit, f"your {field} of {characters} characters resulted in more", field)


def _in_openais_words(limit: int, requested: str, too_long: str) -> str:
    """There are clients that know an overflow by these words (litellm), and others that look in them for the code (langchain)."""
    return (
        f"This model's maximum context length is {limit} tokens. However, {requested}. Please reduce the length of the "
        f"{too_long}. (context_length_exceeded)"
    )


def _truncate(prompt_ids: list[int], room: int, mode: str) -> list[int]:
    """head drops the beginning; center drops the middle."""
    if mode == "head":
        return prompt_ids[-room:]
    front = room // 2
    return prompt_ids[:front] + prompt_ids[len(prompt_ids) - (room - front) :]
