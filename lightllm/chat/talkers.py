"""Who answers: a running server, or a model in this process."""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from lightllm.chat.conversation import Message
from lightllm.client import Server
from lightllm.errors import InvalidImage


class Piece(NamedTuple):
    """A further piece of an answer."""

    text: str
    kind: Literal["content", "reasoning"] = "content"
    tokens: int | None = None
    """Of the answer so far, where this piece says so."""


class Talker(Protocol):
    name: str

    def answer(self, messages: list[Message]) -> Generator[Piece, None, None]:
        """The next answer, piece by piece. Closing the generator ends it. Raises `LightLLMError`."""

    def close(self) -> None: ...


class RemoteServer:
    def __init__(self, server: Server, parameters: Mapping[str, Any] | None = None) -> None:
        """parameters: fields of every request besides its messages."""
        self._server = server
        self._fields = {"stream_options": {"include_usage": True}, **(parameters or {})}
        self.name = f"{server.model} at {server.base}"

    def answer(self, messages: list[Message]) -> Generator[Piece, None, None]:
        chunks = self._server.stream("/chat/completions", {"messages": messages, **self._fields})
        try:
            for chunk in chunks:
                delta = _delta(chunk)
                reasoning = delta.get("reasoning_content") or delta.get("reasoning")
                if reasoning:
                    yield Piece(str(reasoning), "reasoning")
                if delta.get("content"):
                    yield Piece(str(delta["content"]))
                usage = chunk.get("usage")
                if usage:
                    yield Piece("", tokens=int(usage.get("completion_tokens", 0)))
        finally:
            chunks.close()

    def close(self) -> None:
        """Nothing is held between answers."""


class LocalModel:
    """The offline engine."""

    def __init__(
        self, model_dir: str | None, options: Mapping[str, Any], parameters: Mapping[str, Any] | None = None
    ) -> None:
        """parameters: by OpenAI's names, in place of the model's own defaults."""
        from lightllm.llm import LLM

        given = dict(parameters or {})
        if "max_tokens" in given:
            options = {**options, "default_max_tokens": given.pop("max_tokens")}
        # a line of a terminal is a text: no vision encoder is needed
        self._llm = LLM(model_dir, show_bar=sys.stderr.isatty(), disable_vision=True, **options)
        self._llm.default_sampling_params = msgspec.structs.replace(
            self._llm.default_sampling_params, **given
        )
        self.name = self._llm.model_dir

    def answer(self, messages: list[Message]) -> Generator[Piece, None, None]:
        if not all(isinstance(message["content"], str) for message in messages):
            raise InvalidImage("images need a running server: --url instead of --model_dir")
        pieces = self._llm.stream(self._llm.chat_prompt(messages))
        try:
            for count, text in enumerate(pieces, 1):
                yield Piece(text, tokens=count)
        finally:
            pieces.close()

    def close(self) -> None:
        self._llm.close()


def _delta(chunk: dict[str, Any]) -> dict[str, Any]:
    choices = chunk.get("choices") or [{}]
    return choices[0].get("delta") or {}
