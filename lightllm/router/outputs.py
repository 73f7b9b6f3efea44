"""What the Router has to tell the Detokenizer, gathered until it is sent."""

from __future__ import annotations

import msgspec
import numpy as np

from lightllm.protocol.messages import Finish, FinishReason, PromptLogprobs, RoundTokens, TopLogprobs
from lightllm.protocol.rounds import RowPromptLogprobs
from lightllm.router.planning.new_tokens import NewTokens
from lightllm.router.request import Request


class Outputs:
    """New tokens and finishes since the last `drain`, in order."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.request_ids: list[int] = []
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.top: dict[int, TopLogprobs] = {}
        self.prompt_logprobs: list[PromptLogprobs] = []
        self.finished: list[Finish] = []
        self.cached_tokens: dict[int, int] = {}

    def add(self, request_ids: np.ndarray, new: NewTokens) -> None:
        """The tokens of a round, with the request of each."""
        first = len(self.token_ids)
        self.top |= {first + place: alternatives for place, alternatives in new.top.items()}
        self.request_ids += request_ids.tolist()
        self.token_ids += new.token_ids.tolist()
        self.logprobs += new.logprobs.tolist()

    def finish(self, request: Request, reason: FinishReason, error: str, error_type: str) -> None:
        self.finished.append(
            Finish(
                request.id, reason, request.prompt_len, len(request.output_ids), request.cached_tokens, error,
                error_type,
            )
        )  # fmt: skip

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
        self.prompt_logprobs.append(PromptLogprobs(request.id, part.start, part.logprobs, part.top))

    def drain(self) -> RoundTokens | None:
        if not (self.request_ids or self.finished or self.prompt_logprobs):
            return None
        tokens = RoundTokens(
            self.request_ids, self.token_ids, self.logprobs, self.top, self.prompt_logprobs, self.finished,
            self.cached_tokens,
        )  # fmt: skip
        self._clear()
        return tokens
