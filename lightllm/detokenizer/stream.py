"""The text of one choice of one request."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lightllm.detokenizer.stop_strings import StopMatcher, TokenMatcher
from lightllm.protocol.messages import AddRequest, worker_of
from lightllm.sampling_params import SamplingParams
from lightllm.tokenizer import TextStream, Tokenizer


@dataclasses.dataclass(frozen=True)
class Rules:
    """What the choices of a request have in common."""

    prompt_tokens: int
    params: SamplingParams
    end_token_ids: frozenset[int]
    """Tokens that end the request: no text, unless the client asks for it."""
    hidden_ids: frozenset[int]
    """Special tokens that are left out of the text; stop strings see them."""
    stop_texts: tuple[str, ...]
    stop_ids: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, request: AddRequest, tokenizer: Tokenizer, eos_token_ids: frozenset[int]) -> "Rules":
        params = request.params
        end_token_ids = frozenset(params.stop_token_ids) | (
            frozenset() if params.ignore_eos else eos_token_ids
        )
        hidden_ids = tokenizer.special_ids if params.skip_special_tokens else frozenset()
        texts: list[str] = []
        ids: list[tuple[int, ...]] = []
        for stop in params.stop_sequences:
            text = stop if isinstance(stop, str) else _sequence_text(stop, tokenizer)
            if isinstance(stop, str) or not (text == "" or "\ufffd" in text or hidden_ids.issuperset(stop)):
                texts.append(text)
            else:
                ids.append(tuple(stop))
        return cls(len(request.prompt_ids), params, end_token_ids, hidden_ids, tuple(texts), tuple(ids))


class ChoiceStream:
    """Tokens in, certain text out; notices stop strings. Once `stopped`, it only waits for the Router's finish."""

    __slots__ = (
        "_end_token_ids", "_hidden_ids", "_ids", "_matcher", "_min_tokens", "_push", "_rules", "_text", "_tokenizer", "cached_tokens",
        "output_tokens", "prompt_tokens", "stopped", "worker",
    )  # fmt: skip

    def __init__(
        self,
        request_id: int,
        rules: Rules,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        output_ids: Sequence[int],
    ) -> None:
        """`output_ids`: tokens whose text was sent before (a restored request). They run through the same steps, so
        that what was held back after them is held back again."""
        params = rules.params
        self.worker = worker_of(request_id)
        self.prompt_tokens = rules.prompt_tokens
        self.cached_tokens = 0
        """Prompt tokens that the cache held, as the Router says with the first token."""
        self.output_tokens = 0
        self.stopped = False
        """A stop string was found."""
        self._rules = rules
        self._tokenizer = tokenizer
        self._end_token_ids = rules.end_token_ids
        self._hidden_ids = rules.hidden_ids
        self._min_tokens = params.min_new_tokens
        self._matcher = StopMatcher(rules.stop_texts) if rules.stop_texts else None
        self._ids = TokenMatcher(rules.stop_ids) if rules.stop_ids else None
        self._text: TextStream = tokenizer.stream(prompt_ids, params.skip_special_tokens)
        self._push = self._text.push
        for token_id in output_ids:
            self.push(token_id)
            if self.stopped:
                break

    @property
    def stop(self) -> str:
        """The stop string that was found; "" if none was, or one that is known by its tokens only."""
        return "" if self._matcher is None else self._matcher.hit or ""

    def push(self, token_id: int) -> str:
        """The text that is certain with this token; sets `stopped` if the token completed a stop string."""
        self.output_tokens += 1
        if token_id in self._end_token_ids:
            return self._end_text(token_id)
        text = self._push(token_id)
        if self._matcher is not None:
            if text:
                text = self._release(text)
            if token_id in self._hidden_ids and not self.stopped:
                text += self._release(self._tokenizer.token_text(token_id), hidden=True)
        if self._ids is not None and not self.stopped:
            self._match_ids(token_id)
        return text

    def finish(self) -> str:
        """The rest of the text; sets `stopped` if that completes a stop string."""
        rest = self._text.finish()
        if self._matcher is None:
            return rest
        rest = self._release(rest) if rest else ""
        if self.stopped:
            return rest
        held, self._matcher.held = self._matcher.held, ""
        return rest + held

    def _end_text(self, token_id: int) -> str:
        """`print_eos_token` shows any end token; `include_stop_str_in_output` shows it as any other token is shown. What is
        not shown may still complete a stop string, which takes what was held back for it."""
        params = self._rules.params
        shown = params.print_eos_token
        if not shown and params.include_stop_str_in_output:
            shown = token_id not in self._hidden_ids
        text = self._tokenizer.token_text(token_id)
        if shown:
            return self.finish() + text
        return "" if self._matcher is None else self._release(text, hidden=True)

    def _release(self, text: str, hidden: bool = False) -> str:
        """What is certain behind `text`, with the stop string if that is asked for: as it is written, hidden or not."""
        matcher = self._matcher
        assert matcher is not None
        push = matcher.push_hidden if hidden else matcher.push
        text = push(text, self.output_tokens >= self._min_tokens)
        if matcher.hit is None:
            return text
        self.stopped = True
        return text + matcher.hit if self._rules.params.include_stop_str_in_output else text

    def _match_ids(self, token_id: int) -> None:
        assert self._ids is not None
        if self._ids.push(token_id) and self.output_tokens >= self._min_tokens:
            self.stopped = True


def _sequence_text(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The text of a stop token sequence in the middle of a text: with its leading space."""
    return b"".join(map(tokenizer.token_bytes, ids)).decode(errors="replace")
