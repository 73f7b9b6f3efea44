"""Answers of `/v1/chat/completions` and `/v1/completions`, whole and streamed.

A streamed chunk without log-probabilities is a prefix made once per choice, the escaped text, and a suffix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from lightllm.errors import RequestError
from lightllm.http.error_responses import openai_body
from lightllm.httpserver.logprobs import Logprobs, joined
from lightllm.httpserver.record import ChoiceRecord, PromptRecord, RequestRecord
from lightllm.httpserver.rendering import DONE, LARGE_ANSWER, event, event_json, finish_reason, json_bytes


class Extras(NamedTuple):
    """What a client wants besides the texts."""

    usage: bool = False
    """At the end of a stream; whole answers have it always."""
    continuous_usage: bool = False
    """In every chunk of a stream."""
    token_ids: bool = False
    """Of the prompt and of the output, where vLLM has them."""


class OpenAIRenderer:
    """What both APIs share: head, usage, the loop over choices. Subclasses say what a choice looks like."""

    whole_object = ""
    chunk_object = ""

    def __init__(
        self, answer_id: str, created: int, model: str, logprobs: Logprobs | None, extras: Extras
    ) -> None:
        self._id = answer_id
        self._created = created
        self._model = model
        self._logprobs = logprobs
        self._extras = extras
        self._suffix = b',"usage":null}\n\n' if extras.usage else b"}\n\n"
        self._prefixes: dict[int, bytes] = {}

    # -- whole

    def answer(self, record: RequestRecord) -> bytes:
        return json_bytes(
            {
                **self._head(self.whole_object),
                **self.whole_fields(record),
                "choices": [self.whole_choice(choice) for choice in record.choices],
                "usage": self.usage(record),
            }
        )

    def usage(self, record: RequestRecord) -> dict[str, Any]:
        return _usage(record.prompt_tokens, record.output_tokens, record.cached_tokens)

    def whole_fields(self, record: RequestRecord) -> dict[str, Any]:
        """Beside the choices."""
        return {}

    def whole_choice(self, choice: ChoiceRecord) -> dict[str, Any]:
        raise NotImplementedError

    # -- streamed

    def preparation(self, record: RequestRecord) -> Callable[[], None] | None:
        return None

    def events(self, record: RequestRecord) -> list[bytes]:
        events: list[bytes] = []
        for choice in record.choices:
            if choice.has_news:
                if not choice.sent:
                    self.begin(choice, events)
                self.new_events(choice, events)
                if choice.finish is not None and not choice.ended:
                    choice.ended = True
                    if (
                        not choice.failed
                    ):  # else an error event follows, and no finish reason of OpenAI's fits
                        self.finish(choice, events)
        return events

    def begin(self, choice: ChoiceRecord, events: list[bytes]) -> None:
        """Events before the first text of a choice."""

    def finish(self, choice: ChoiceRecord, events: list[bytes]) -> None:
        """Events after its last text."""
        raise NotImplementedError

    def text_prefix(self, index: int) -> bytes:
        """All of a chunk up to the text."""
        raise NotImplementedError

    def text_suffix(self) -> bytes:
        """What follows the text, up to the end of `choices`."""
        raise NotImplementedError

    def choice_chunk(
        self, choice: ChoiceRecord, text: str, logprobs: Any, finish: str | None
    ) -> dict[str, Any]:
        """The same, as an object: for the chunks with more than a text."""
        raise NotImplementedError

    def new_logprobs(self, choice: ChoiceRecord) -> Any:
        """Log-probabilities of the tokens that are about to be sent."""
        raise NotImplementedError

    def error(self, error: RequestError) -> bytes:
        return event(openai_body(error))

    def end(self, record: RequestRecord) -> list[bytes]:
        if not self._extras.usage:
            return [DONE]
        return [event({**self._head(self.chunk_object), "choices": [], "usage": self.usage(record)}), DONE]

    def new_events(self, choice: ChoiceRecord, events: list[bytes]) -> None:
        """Events for all that has not been sent; counts it as sent."""
        start = choice.sent
        tokens = len(choice.token_ids) > start
        logprobs = self.new_logprobs(choice) if self._logprobs is not None and tokens else None
        text = choice.take_text()
        if self._extras.token_ids and tokens:
            ids = choice.token_ids[start : choice.sent]
            chunk = self.choice_chunk(choice, text, logprobs, None) | {"token_ids": ids}
            events.append(self.chunk_event(choice, chunk | self.first_fields(choice, start)))
        elif logprobs is not None or (text and self._extras.continuous_usage):
            events.append(self.object_event(choice, text, logprobs))
        elif text:
            prefix = self._prefixes.get(choice.index)
            if prefix is None:
                prefix = self._prefixes[choice.index] = self.text_prefix(choice.index)
            events.append(prefix + event_json(text) + self.text_suffix() + self._suffix)

    def object_event(
        self, choice: ChoiceRecord, text: str, logprobs: Any = None, finish: str | None = None
    ) -> bytes:
        return self.chunk_event(choice, self.choice_chunk(choice, text, logprobs, finish))

    def chunk_event(self, choice: ChoiceRecord, chunk: dict[str, Any], **fields: Any) -> bytes:
        """An event with one chunk of a choice; `fields` stand beside it."""
        usage: dict[str, Any] = {}
        if self._extras.continuous_usage:
            usage = {"usage": _tokens(len(choice.prompt.prompt_ids), self.shown_tokens(choice))}
        elif self._extras.usage:
            usage = {"usage": None}
        return event({**self._head(self.chunk_object), "choices": [chunk], **fields, **usage})

    def first_fields(self, choice: ChoiceRecord, start: int) -> dict[str, Any]:
        """Of a chunk with tokens from number `start` on, if it is the first."""
        return {}

    def shown_tokens(self, choice: ChoiceRecord) -> int:
        return choice.sent

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _opening(self, index: int) -> bytes:
        return b'data: %b,"choices":[{"index":%d,' % (event_json(self._head(self.chunk_object))[:-1], index)


class ChatRenderer(OpenAIRenderer):
    """`chat.completion` and `chat.completion.chunk`."""

    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def whole_choice(self, choice: ChoiceRecord) -> dict[str, Any]:
        logprobs = None if self._logprobs is None else self._logprobs.chat(choice, 0)
        whole = {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": logprobs,
            "finish_reason": finish_reason(choice.finish),
        }
        return whole | {"token_ids": choice.token_ids} if self._extras.token_ids else whole

    def whole_fields(self, record: RequestRecord) -> dict[str, Any]:
        return self._prompt_ids(record.choices[0])

    def _prompt_ids(self, choice: ChoiceRecord) -> dict[str, Any]:
        return {"prompt_token_ids": choice.prompt.prompt_ids} if self._extras.token_ids else {}

    def begin(self, choice: ChoiceRecord, events: list[bytes]) -> None:
        chunk = {
            "index": choice.index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        events.append(self.chunk_event(choice, chunk, **self._prompt_ids(choice)))

    def finish(self, choice: ChoiceRecord, events: list[bytes]) -> None:
        chunk = {
            "index": choice.index,
            "delta": {},
            "logprobs": None,
            "finish_reason": finish_reason(choice.finish),
        }
        events.append(self.chunk_event(choice, chunk))

    def text_prefix(self, index: int) -> bytes:
        return self._opening(index) + b'"delta":{"content":'

    def text_suffix(self) -> bytes:
        return b'},"logprobs":null,"finish_reason":null}]'

    def choice_chunk(
        self, choice: ChoiceRecord, text: str, logprobs: Any, finish: str | None
    ) -> dict[str, Any]:
        return {
            "index": choice.index,
            "delta": {"content": text},
            "logprobs": logprobs,
            "finish_reason": finish,
        }

    def new_logprobs(self, choice: ChoiceRecord) -> Any:
        assert self._logprobs is not None
        return self._logprobs.chat(choice, choice.sent)


class CompletionRenderer(OpenAIRenderer):
    """`text_completion`. `echo` puts the prompt's text before the answer, `echo_only` leaves the answer out."""

    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(
        self,
        answer_id: str,
        created: int,
        model: str,
        logprobs: Logprobs | None,
        extras: Extras,
        echo: bool = False,
        echo_only: bool = False,
    ) -> None:
        super().__init__(answer_id, created, model, logprobs, extras)
        self._echo = echo
        self._echo_only = echo_only
        self._openings: dict[int, bytes] = {}
        """Choice -> its event with the echo, if that was made beforehand."""
        self._prompt_part: tuple[PromptRecord | None, dict[str, list[Any]] | None] = None, None

    def usage(self, record: RequestRecord) -> dict[str, Any]:
        if self._echo_only:
            return _usage(record.prompt_tokens, 0, record.cached_tokens)
        return super().usage(record)

    def whole_choice(self, choice: ChoiceRecord) -> dict[str, Any]:
        text, logprobs = "", None
        if self._echo:
            text = choice.prompt.text or ""
            logprobs = self._prompt_logprobs(choice.prompt)
        if not self._echo_only:
            if self._logprobs is not None:
                answer = self._logprobs.completion(choice, len(text))
                logprobs = joined(logprobs, answer) if logprobs else answer
            text += choice.text
        whole = self.choice_chunk(choice, text, logprobs, self._reason(choice))
        if self._extras.token_ids:
            ids = [] if self._echo_only else choice.token_ids
            whole |= {"token_ids": ids, "prompt_token_ids": choice.prompt.prompt_ids}
        return whole

    def first_fields(self, choice: ChoiceRecord, start: int) -> dict[str, Any]:
        return {"prompt_token_ids": choice.prompt.prompt_ids} if start == 0 else {}

    def shown_tokens(self, choice: ChoiceRecord) -> int:
        return 0 if self._echo_only else choice.sent

    def preparation(self, record: RequestRecord) -> Callable[[], None] | None:
        """Echoes with log-probabilities of choices that are about to begin, where they are long together."""
        if not self._echo or self._logprobs is None:
            return None
        due = [c for c in record.choices if c.has_news and not c.sent and c.index not in self._openings]
        if sum(len(c.prompt.prompt_ids) * (c.prompt.params.prompt_logprobs + 2) for c in due) <= LARGE_ANSWER:
            return None

        def prepare() -> None:
            self._openings.update((choice.index, self._opening_event(choice)) for choice in due)

        return prepare

    def begin(self, choice: ChoiceRecord, events: list[bytes]) -> None:
        if self._echo:
            events.append(self._openings.pop(choice.index, b"") or self._opening_event(choice))

    def _opening_event(self, choice: ChoiceRecord) -> bytes:
        prompt = choice.prompt
        return self.object_event(choice, prompt.text or "", self._prompt_logprobs(prompt))

    def _prompt_logprobs(self, prompt: PromptRecord) -> dict[str, list[Any]] | None:
        """The same for all answers to a prompt, so it is made once."""
        if self._logprobs is None:
            return None
        known, part = self._prompt_part
        if known is not prompt:
            part = self._logprobs.prompt(prompt)
            self._prompt_part = prompt, part
        return part

    def finish(self, choice: ChoiceRecord, events: list[bytes]) -> None:
        events.append(self.object_event(choice, "", None, self._reason(choice)))

    def new_events(self, choice: ChoiceRecord, events: list[bytes]) -> None:
        if self._echo_only:
            choice.take_text()
        else:
            super().new_events(choice, events)

    def _reason(self, choice: ChoiceRecord) -> str | None:
        reason = finish_reason(choice.finish)
        return "length" if self._echo_only and reason == "stop" else reason

    def text_prefix(self, index: int) -> bytes:
        return self._opening(index) + b'"text":'

    def text_suffix(self) -> bytes:
        return b',"logprobs":null,"finish_reason":null}]'

    def choice_chunk(
        self, choice: ChoiceRecord, text: str, logprobs: Any, finish: str | None
    ) -> dict[str, Any]:
        return {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def new_logprobs(self, choice: ChoiceRecord) -> Any:
        assert self._logprobs is not None
        echoed = len(choice.prompt.text or "") if self._echo else 0
        return self._logprobs.completion(choice, echoed)


def _tokens(prompt: int, output: int) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


def _usage(prompt: int, output: int, cached: int) -> dict[str, Any]:
    return _tokens(prompt, output) | {"prompt_tokens_details": {"cached_tokens": cached}}
