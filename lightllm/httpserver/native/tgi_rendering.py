"""Answers in the shape of text-generation-inference, with what LightLLM adds to it (`--use_tgi_api`): at `POST /`."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

from lightllm.errors import RequestError
from lightllm.http.error_responses import tgi_body
from lightllm.httpserver.record import ChoiceRecord, RequestRecord
from lightllm.httpserver.rendering import event_json, finish_reason, finite, json_bytes
from lightllm.httpserver.timings import timings
from lightllm.tokenizer.tokenizer import Tokenizer


class TgiRenderer:
    """The renderer of one request (`responses.Renderer`). Of several answers the likeliest one counts, by the mean of its tokens'
    log-probabilities; the others stand in its details."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        ends: Set[int | None],
        begin: str,
        details: bool,
        in_list: bool,
        timed: bool = False,
    ) -> None:
        """ends: tokens after which an answer is not ended by a stop sequence; begin: what stands before the generated text;
        in_list: a whole answer is a list with it; timed: tell how long it took."""
        self._special = tokenizer.special_ids
        self._ends = ends
        self._begin = begin
        self._details = details
        self._in_list = in_list
        self._timed = timed

    def answer(self, record: RequestRecord) -> bytes:
        best, *others = sorted(record.choices, key=_mean_logprob, reverse=True)
        answer: dict[str, Any] = {"generated_text": self._begin + best.text}
        if self._details:
            details = {**self._sequence(best), "prompt_tokens": record.prompt_tokens}
            if others:
                details["best_of_sequences"] = [
                    {"generated_text": self._begin + other.text, **self._sequence(other)} for other in others
                ]
            answer["details"] = details
        if self._timed:
            answer["timings"] = timings(record)
        return json_bytes([answer] if self._in_list else answer)

    def preparation(self, record: RequestRecord) -> Callable[[], None] | None:
        return None

    def events(self, record: RequestRecord) -> list[bytes]:
        """One for each token; the last one has the whole text. Where the finish came alone it repeats the last token."""
        (choice,) = record.choices
        count = len(choice.token_ids)
        events = [self._event(choice, index, choice.texts[index]) for index in range(choice.sent, count)]
        if choice.finish is not None:
            choice.ended = True
            text = choice.texts[-1] if events else choice.tail
            events[-1:] = [self._event(choice, count - 1, text, last=True)]
        choice.sent = count
        return events

    def error(self, error: RequestError) -> bytes:
        return b"data:%b\n\n" % event_json(tgi_body(error))

    def end(self, record: RequestRecord) -> list[bytes]:
        return []

    def _event(self, choice: ChoiceRecord, index: int, text: str, last: bool = False) -> bytes:
        """index: of the token; -1: there is none."""
        prompt_tokens = len(choice.prompt.prompt_ids)
        token = self._token(choice, index, text) if index >= 0 else _NO_TOKEN
        token |= {"count_output_tokens": index + 1, "prompt_tokens": prompt_tokens}
        fields: dict[str, Any] = {"index": index + 1, "token": token, "generated_text": None}
        fields |= {
            "finished": last,
            "finish_reason": finish_reason(choice.finish) if last else None,
            "details": None,
        }
        if last:
            fields["generated_text"] = self._begin + choice.text
            if self._timed:
                fields["timings"] = timings(choice.request)
            fields["details"] = {
                "finish_reason": self._reason(choice),
                "generated_tokens": choice.output_tokens,
                "seed": choice.prompt.params.seed,
                "input_length": prompt_tokens,
                "prompt_tokens": prompt_tokens,
            }
        return b"data:%b\n\n" % event_json(fields)

    def _sequence(self, choice: ChoiceRecord) -> dict[str, Any]:
        texts = [*choice.texts[:-1], *(text + choice.tail for text in choice.texts[-1:])]
        return {
            "finish_reason": self._reason(choice),
            "generated_tokens": choice.output_tokens,
            "seed": choice.prompt.params.seed,
            "prefill": [],
            "tokens": [self._token(choice, index, text) for index, text in enumerate(texts)],
        }

    def _token(self, choice: ChoiceRecord, index: int, text: str) -> dict[str, Any]:
        token_id, logprob = choice.token_ids[index], finite(choice.logprobs[index])
        return {"id": token_id, "text": text, "logprob": logprob, "special": token_id in self._special}

    def _reason(self, choice: ChoiceRecord) -> str | None:
        reason = finish_reason(choice.finish)
        if reason != "stop":
            return reason
        return "eos_token" if choice.token_ids and choice.token_ids[-1] in self._ends else "stop_sequence"


_NO_TOKEN = {"id": -1, "text": "", "logprob": 0.0, "special": True}
"""Stands in the event of a finish before the first token."""


def _mean_logprob(choice: ChoiceRecord) -> float:
    return sum(map(finite, choice.logprobs)) / max(1, len(choice.logprobs))
