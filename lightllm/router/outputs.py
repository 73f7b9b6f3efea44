"""What the Router has to tell the Detokenizer, gathered until it is sent."""

from __future__ import annotations

import msgspec
import numpy as np

from lightllm.protocol.messages import Finish, FinishReason, PromptLogprobs, RoundTokens
from lightllm.protocol.rounds import RowPromptLogprobs
from lightllm.router.planning.new_tokens import NewTokens
from lightllm.router.request import Request


class Outputs:
    """New tokens and finishes since the last `drain`, in order."""

    def __init__(self) -> None:
        self._next = RoundTokens([], [], [])

    def add(self, request_ids: np.ndarray, new: NewTokens) -> None:
        """The tokens of a round, with the request of each."""
        first = len(self._next.token_ids)
        self._next.top.update({first + place: alternatives for place, alternatives in new.top.items()})
        self._next.request_ids.extend(request_ids.tolist())
        self._next.token_ids.extend(new.token_ids.tolist())
        self._next.logprobs.extend(new.logprobs.tolist())

    def begin(self, request: Request) -> None:
        """What comes with the first token of a request."""
        if request.cached_spans:
            self._next.cached_tokens[request.id] = request.cached_tokens
        if request.entered:
            self._next.entered[request.id] = request.entered
        if request.pooled is not None:
            self._next.pooled[request.id] = request.pooled

    def finish(self, request: Request, reason: FinishReason, error: str, error_type: str) -> None:
        count = len(request.output_ids) if request.pooled is None else 0
        self._next.finished.append(
            Finish(request.id, reason, request.prompt_len, count, request.cached_tokens, error, error_type)
        )

    def add_prompt_logprobs(self, request: Request, part: RowPromptLogprobs) -> None:
        """Positions that were reported before the request paused are left out."""
        known = max(0, request.prompt_logprobs_sent - part.start)
        if known >= len(part.logprobs):
            return
        if known:
            part = msgspec.structs.replace(
                part, start=part.start + known, logprobs=part.logprobs[known:], top=part.top[known:]
            )
        request.prompt_logprobs_sent = part.start + len(part.logprobs)
        self._next.prompt_logprobs.append(PromptLogprobs(request.id, part.start, part.logprobs, part.top))

    def drain(self) -> RoundTokens | None:
        tokens = self._next
        if not (tokens.request_ids or tokens.finished or tokens.prompt_logprobs):
            return None
        self._next = RoundTokens([], [], [])
        return tokens
