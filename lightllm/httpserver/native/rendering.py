"""Answers of LightLLM's own API: `/generate` and `/generate_stream`."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from lightllm.errors import RequestError
from lightllm.httpserver.logprobs import Logprobs
from lightllm.httpserver.record import ChoiceRecord, RequestRecord
from lightllm.httpserver.rendering import event_json, finish_reason, finite, json_bytes
from lightllm.httpserver.timings import timings
from lightllm.tokenizer.tokenizer import Tokenizer

_EVENT = (
    b'data:{"token": {"id": %d, "text": %b, "logprob": %b, "special": %b, "count_output_tokens": %d, '
    b'"prompt_tokens": %d}, "generated_text": null, "finished": %b, "finish_reason": %b, "details": null%b}\n\n'
)
_FALSE, _TRUE, _NULL = b"false", b"true", b"null"


class NativeRenderer:
    """One event a token, framed `data:` without a space; no terminator. `generated_text` is always a list."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        details: bool = False,
        begin: str = "",
        prompt_logprobs: Logprobs | None = None,
        timed: bool = False,
    ) -> None:
        """begin: what stands before each text of a whole answer; prompt_logprobs: of the prompt, in a whole answer too; timed:
        tell how long it took."""
        self._timed = timed
        self._begin = begin
        self._prompt_logprobs = prompt_logprobs
        self._special = tokenizer.special_ids
        self._details = details

    def answer(self, record: RequestRecord) -> bytes:
        choices = record.choices
        answer: dict[str, Any] = {
            "generated_text": [self._begin + choice.text for choice in choices],
            "count_output_tokens": [choice.output_tokens for choice in choices],
            "finish_reason": [finish_reason(choice.finish) for choice in choices],
            "prompt_tokens": record.prompt_tokens,
        }
        if usage := _input_usage(record):
            answer["input_usage"] = usage
        if self._prompt_logprobs is not None:
            prompt = choices[0].prompt
            answer["prompt_token_ids"] = prompt.text_ids
            answer["prompt_logprobs"] = self._prompt_logprobs.prompt_table(prompt)
        if self._details:
            answer["cached_tokens"] = record.cached_tokens
            answer["tokens"] = [self._tokens(choice) for choice in choices]
        if self._timed:
            answer["timings"] = timings(record)
        if len(choices) == 1:
            for name in ("count_output_tokens", "finish_reason", *(["tokens"] if self._details else [])):
                answer[name] = answer[name][0]
        return json_bytes(answer)

    def preparation(self, record: RequestRecord) -> None:
        return None

    def events(self, record: RequestRecord) -> list[bytes]:
        """The last one says finished; where the finish came alone, it repeats the last token with the rest of the text (an empty
        one, unless the end let a held-back part go)."""
        (choice,) = record.choices
        count = len(choice.token_ids)
        usage = _event_usage(record)
        events = [
            self._event(choice, index, choice.texts[index], usage) for index in range(choice.sent, count)
        ]
        if choice.finish is not None:
            choice.ended = True
            text = choice.texts[-1] if events else choice.tail
            if self._timed:
                usage += b', "timings": %b' % json_bytes(timings(record))
            events[-1:] = [self._event(choice, count - 1, text, usage, json_bytes(choice.finish.reason))]
        choice.sent = count
        return events

    def error(self, error: RequestError) -> bytes:
        return b"data:%b\n\n" % event_json({"error": error.message, "finished": True})

    def end(self, record: RequestRecord) -> list[bytes]:
        return []

    def _event(
        self, choice: ChoiceRecord, index: int, text: str, usage: bytes, reason: bytes = _NULL
    ) -> bytes:
        """index: of the token; -1: there is none. reason: why the answer is finished, as JSON."""
        token_id, logprob = (choice.token_ids[index], choice.logprobs[index]) if index >= 0 else (-1, 0.0)
        special = index < 0 or token_id in self._special
        return _EVENT % (
            token_id, event_json(text), json_bytes(finite(logprob)), _TRUE if special else _FALSE, index + 1,
            len(choice.prompt.prompt_ids), _FALSE if reason is _NULL else _TRUE, reason, usage,
        )  # fmt: skip

    def _tokens(self, choice: ChoiceRecord) -> list[dict[str, Any]]:
        logprobs = [*map(finite, choice.logprobs)]
        texts = [*choice.texts[:-1], *(text + choice.tail for text in choice.texts[-1:])]
        return [
            {
                "id": token_id,
                "logprob": logprobs[index],
                "cumlogprob": total / (index + 1),
                "special": token_id in self._special,
                "count_output_tokens": index + 1,
                "mtp_accepted_token_num": 0,
                "prompt_tokens": len(choice.prompt.prompt_ids),
                "text": texts[index],
            }
            for index, (token_id, total) in enumerate(zip(choice.token_ids, accumulate(logprobs)))
        ]


class ScoreRenderer(NativeRenderer):
    """The answer of `/get_score`, which is not streamed."""

    def answer(self, record: RequestRecord) -> bytes:
        (choice,) = record.choices
        assert choice.pooled is not None
        return json_bytes(
            {
                "score": float(choice.pooled[0]),
                "prompt_tokens": record.prompt_tokens,
                "finish_reason": "length",  # LightLLM's way to a score is to generate one token
            }
        )


def _input_usage(record: RequestRecord) -> dict[str, int]:
    """What the prompt's tokens stand for, of a request with images; else {}."""
    images = record.image_tokens
    if not images:
        return {}
    text = record.prompt_tokens - images
    return {"input_text_tokens": text, "input_audio_tokens": 0, "input_image_tokens": images}


def _event_usage(record: RequestRecord) -> bytes:
    """The same as the last field of an event."""
    usage = _input_usage(record)
    return b', "input_usage": ' + json_bytes(usage) if usage else b""
