"""A prompt before its answers, as `/v1/completions` gives it back with `echo`."""

from __future__ import annotations

from typing import Any

from lightllm.httpserver.logprobs import Logprobs
from lightllm.httpserver.record import ChoiceRecord, PromptRecord


class Echo:
    """Of one request. `alone`: the answer is left out."""

    def __init__(self, logprobs: Logprobs | None, alone: bool = False) -> None:
        self.alone = alone
        self._logprobs = logprobs
        self._last: tuple[PromptRecord | None, dict[str, list[Any]] | None] = None, None

    def text(self, prompt: PromptRecord) -> str:
        return prompt.text or ""

    def logprobs(self, prompt: PromptRecord) -> dict[str, list[Any]] | None:
        """The same for all answers to a prompt, so it is made once."""
        if self._logprobs is None:
            return None
        known, part = self._last
        if known is not prompt:
            part = self._logprobs.prompt(prompt)
            self._last = prompt, part
        return part

    def size(self, choice: ChoiceRecord) -> int:
        """About how many entries the log-probabilities of the prompt have."""
        prompt = choice.prompt
        return 0 if self._logprobs is None else len(prompt.prompt_ids) * (prompt.params.prompt_logprobs + 2)
