"""Answers of `/v1/chat/completions` and `/v1/completions`, whole and streamed: one renderer, which a shape tells what a choice
looks like, and whose parsers say what of the text is content.

A streamed chunk with nothing but content is a prefix made once per choice, the escaped text, and a suffix.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from lightllm import __version__
from lightllm.errors import RequestError
from lightllm.http.error_responses import openai_body
from lightllm.httpserver.logprobs import Echo, Logprobs, joined
from lightllm.httpserver.openai.shapes import Shape, choice_of
from lightllm.httpserver.record import ChoiceRecord, RequestRecord
from lightllm.httpserver.rendering import DONE, LARGE_ANSWER, event, event_json, finish_reason, json_bytes
from lightllm.httpserver.timings import timings
from lightllm.parsers.deltas import ContentParser, Delta, DeltaParser, tokens_within

FINGERPRINT = f"lightllm-{__version__}"
"""OpenAI's field may be left out, but there are clients that do not work without it (text-generation)."""


class Answer(NamedTuple):
    """What all chunks of an answer begin with."""

    id: str
    created: int
    model: str


class Extras(NamedTuple):
    """What a client wants besides the texts."""

    logprobs: Logprobs | None = None
    usage: bool = False
    """At the end of a stream; whole answers have it always."""
    continuous_usage: bool = False
    """In every chunk of a stream."""
    token_ids: bool = False
    """Of the prompt and of the output, where vLLM has them."""
    echo: Echo | None = None
    prompt_logprobs: Logprobs | None = None
    """Of the prompt, where vLLM has them; whole answers only."""
    timings: bool = False
    """At the end of an answer, or in the last chunk of a stream."""


@dataclasses.dataclass(slots=True)
class _Stream:
    """One choice of a stream."""

    parser: DeltaParser
    prefix: bytes
    """All of a chunk up to its text."""
    called: bool = False
    """There was a tool call."""


class OpenAIRenderer:
    """The renderer of one request (`responses.Renderer`)."""

    def __init__(
        self,
        answer: Answer,
        shape: Shape,
        extras: Extras,
        make_parser: Callable[[], DeltaParser] = ContentParser,
    ) -> None:
        self._answer = answer
        self._shape = shape
        self._extras = extras
        self._make_parser = make_parser
        self._suffix = b'%b,"logprobs":null,"finish_reason":null}]%b}\n\n' % (
            shape.content_frame[1],
            b',"usage":null' if extras.usage else b"",
        )
        self._streams: dict[int, _Stream] = {}
        self._reasoning_tokens: int | None = None
        """Of the choices that have ended; None: nothing is taken for reasoning."""
        self._openings: dict[int, bytes] = {}
        """Choice -> its event with the echo, if that was made beforehand."""
        self._echo_alone = extras.echo is not None and extras.echo.alone
        self._detailed = not self._echo_alone and (
            extras.logprobs is not None or extras.token_ids or extras.continuous_usage
        )
        """Chunks hold more than a text."""

    # -- whole

    def answer(self, record: RequestRecord) -> bytes:
        return json_bytes(
            {
                **self._head(self._shape.whole_object),
                **self._prompt_ids(record.choices[0], beside=True),
                **self._prompt_logprobs(record.choices[0], beside=True),
                "choices": [self._whole(choice) for choice in record.choices],
                "usage": self._usage(record),
                **self._timings(record),
            }
        )

    def _whole(self, choice: ChoiceRecord) -> dict[str, Any]:
        echo, extras = self._extras.echo, self._extras
        deltas: list[Delta] = []
        logprobs, called = None, False
        if echo is not None:
            deltas.append(Delta(choice.prompt.text))
            logprobs = echo.logprobs(choice.prompt)
        if not self._echo_alone:
            if extras.logprobs is not None:
                own = self._shape.logprobs(extras.logprobs, choice, self._echoed(choice))
                logprobs = joined(logprobs, own) if logprobs else own
            parser = self._make_parser()
            deltas += [*parser.push(choice.text), *parser.end()]
            self._count_reasoning(choice, parser)
            called = any(delta.kind == "tool_call" for delta in deltas)
        whole = choice_of(choice.index, self._shape.whole(deltas), logprobs, self._reason(choice, called))
        whole |= self._prompt_logprobs(choice, beside=False)
        if extras.token_ids:
            whole["token_ids"] = [] if self._echo_alone else choice.token_ids
            whole |= self._prompt_ids(choice, beside=False)
        return whole

    # -- streamed

    def preparation(self, record: RequestRecord) -> Callable[[], None] | None:
        """Echoes with log-probabilities of choices that are about to begin, where they are long together."""
        echo = self._extras.echo
        if echo is None or self._extras.logprobs is None:
            return None
        begun = self._streams.keys() | self._openings.keys()
        due = [choice for choice in record.choices if choice.has_news and choice.index not in begun]
        if sum(map(echo.size, due)) <= LARGE_ANSWER:
            return None

        def prepare() -> None:
            self._openings.update((choice.index, self._echo_event(choice, echo)) for choice in due)

        return prepare

    def events(self, record: RequestRecord) -> list[bytes]:
        events: list[bytes] = []
        for choice in record.choices:
            if choice.has_news:
                stream = self._streams.get(choice.index) or self._begin(choice, events)
                self._new_events(choice, stream, events)
                if choice.finish is not None and not choice.ended:
                    choice.ended = True
                    # of a failure an error event follows, and no finish reason of OpenAI's fits
                    if not choice.failed:
                        reason = self._reason(choice, stream.called)
                        chunk = choice_of(choice.index, self._shape.closing, reason=reason)
                        events.append(self._chunk_event(choice, chunk))
        return events

    def error(self, error: RequestError) -> bytes:
        return event(openai_body(error))

    def end(self, record: RequestRecord) -> list[bytes]:
        last = {"usage": self._usage(record)} if self._extras.usage else {}
        last |= self._timings(record)
        if not last:
            return [DONE]
        return [event({**self._head(self._shape.chunk_object), "choices": [], **last}), DONE]

    def _begin(self, choice: ChoiceRecord, events: list[bytes]) -> _Stream:
        """The state of a choice that has its first news; adds the events before its first text."""
        shape, index = self._shape, choice.index
        head = event_json(self._head(shape.chunk_object))[:-1]
        prefix = b'data: %b,"choices":[{"index":%d,%b' % (head, index, shape.content_frame[0])
        if shape.opening is not None:
            chunk = choice_of(index, shape.opening)
            events.append(self._chunk_event(choice, chunk, self._prompt_ids(choice, beside=True)))
        if self._extras.echo is not None:
            events.append(self._openings.pop(index, b"") or self._echo_event(choice, self._extras.echo))
        stream = self._streams[index] = _Stream(self._make_parser(), prefix)
        return stream

    def _new_events(self, choice: ChoiceRecord, stream: _Stream, events: list[bytes]) -> None:
        """Events for all that has not been sent; counts it as sent."""
        details = self._details(choice) if self._detailed else None
        text = choice.take_text()
        if self._echo_alone:
            return
        deltas = stream.parser.push(text) if text else []
        if choice.finish is not None:
            deltas = [*deltas, *stream.parser.end()]
            self._count_reasoning(choice, stream.parser)
        if details and not deltas:
            deltas = [Delta("")]
        for delta in deltas:
            if details is None and delta.kind == "content":
                events.append(stream.prefix + event_json(delta.text) + self._suffix)
                continue
            stream.called = stream.called or delta.kind == "tool_call"
            chunk = choice_of(choice.index, self._shape.part(delta)) | (details or {})
            events.append(self._chunk_event(choice, chunk))
            details = details and {}  # the first delta has them

    def _details(self, choice: ChoiceRecord) -> dict[str, Any]:
        """What a chunk with the tokens that have not been sent holds besides their text."""
        details: dict[str, Any] = {}
        if len(choice.token_ids) == choice.sent:
            return details
        if self._extras.logprobs is not None:
            details["logprobs"] = self._shape.logprobs(self._extras.logprobs, choice, self._echoed(choice))
        if self._extras.token_ids:
            details["token_ids"] = choice.token_ids[choice.sent :]
            if not choice.sent:
                details |= self._prompt_ids(choice, beside=False)
        return details

    def _echo_event(self, choice: ChoiceRecord, echo: Echo) -> bytes:
        part = self._shape.part(Delta(choice.prompt.text))
        return self._chunk_event(choice, choice_of(choice.index, part, echo.logprobs(choice.prompt)))

    def _chunk_event(
        self, choice: ChoiceRecord, chunk: dict[str, Any], beside: dict[str, Any] | None = None
    ) -> bytes:
        """An event with one chunk of a choice; `beside` it other fields."""
        fields = {**self._head(self._shape.chunk_object), "choices": [chunk], **(beside or {})}
        if self._extras.continuous_usage:
            shown = 0 if self._echo_alone else choice.sent
            fields["usage"] = _tokens(len(choice.prompt.prompt_ids), shown)
        elif self._extras.usage:
            fields["usage"] = None
        return event(fields)

    # -- both

    def _head(self, kind: str) -> dict[str, Any]:
        answer = self._answer
        return {
            "id": answer.id,
            "object": kind,
            "created": answer.created,
            "model": answer.model,
            "system_fingerprint": FINGERPRINT,
        }

    def _prompt_ids(self, choice: ChoiceRecord, beside: bool) -> dict[str, Any]:
        """The fields with the ids of the prompt in one of the two places where they may stand."""
        if not self._extras.token_ids or beside != self._shape.prompt_ids_beside:
            return {}
        return {"prompt_token_ids": choice.prompt.text_ids}

    def _prompt_logprobs(self, choice: ChoiceRecord, beside: bool) -> dict[str, Any]:
        """They stand where the prompt's ids do."""
        logprobs = self._extras.prompt_logprobs
        if logprobs is None or beside != self._shape.prompt_ids_beside:
            return {}
        return {"prompt_logprobs": logprobs.prompt_table(choice.prompt)}

    def _echoed(self, choice: ChoiceRecord) -> int:
        """Characters before the first one of the answer."""
        return 0 if self._extras.echo is None else len(choice.prompt.text)

    def _reason(self, choice: ChoiceRecord, called: bool) -> str | None:
        reason = finish_reason(choice.finish)
        if reason == "stop" and (self._echo_alone or called):
            return "length" if self._echo_alone else self._shape.called
        return reason

    def _timings(self, record: RequestRecord) -> dict[str, Any]:
        return {"timings": timings(record)} if self._extras.timings else {}

    def _usage(self, record: RequestRecord) -> dict[str, Any]:
        output = 0 if self._echo_alone else record.output_tokens
        details = {"cached_tokens": record.cached_tokens}
        if images := record.image_tokens:
            details["image_tokens"] = images
        usage = _tokens(record.prompt_tokens, output) | {"prompt_tokens_details": details}
        if self._reasoning_tokens is not None:
            usage["completion_tokens_details"] = {"reasoning_tokens": self._reasoning_tokens}
        return usage

    def _count_reasoning(self, choice: ChoiceRecord, parser: DeltaParser) -> None:
        """Of a choice that ends now."""
        if parser.spans is not None:
            self._reasoning_tokens = (self._reasoning_tokens or 0) + tokens_within(choice.texts, parser.spans)


def _tokens(prompt: int, output: int) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
