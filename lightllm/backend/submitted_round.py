"""A round that is on the device, and how what it brings back becomes a `RoundResult`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch

from lightllm.backend.device import Device, HostCopy, upload
from lightllm.backend.round_inputs import PromptSpan
from lightllm.backend.sampler import Sampled, TopTokens, list_top
from lightllm.ops.sample import token_logprobs, top_logprobs
from lightllm.protocol.messages import TopLogprobs
from lightllm.protocol.rounds import RoundResult, RowError, RowPromptLogprobs

NOT_FINITE = RowError(
    "the model's output holds values that are no numbers (NaN or infinity): its checkpoint is damaged, or its data type "
    "(--data_type) too narrow",
    "not_finite",
)


@dataclasses.dataclass(frozen=True)
class SubmittedRound:
    """A round on the device, whose results are on their way."""

    took: Callable[[float], float]
    """Called when the results are there, with `started`; answers how long the device had for this round."""
    seq: int
    sampled_entries: np.ndarray
    """int64: which entries of the round sample."""
    started: float
    arrival: HostCopy
    sampled: Sampled
    spans: list[PromptSpan]
    prompts: list[tuple[torch.Tensor, TopTokens | None]]
    errors: dict[int, RowError]
    """What is known already, by entry."""

    def ready(self) -> bool:
        return self.arrival.ready()

    def wait(self) -> None:
        self.arrival.wait()

    def result(self) -> RoundResult:
        arrays = iter(self.arrival.arrays())
        seconds = self.took(self.started)
        token_ids, logprobs = next(arrays), next(arrays)
        finite = np.isfinite(logprobs)
        broken = [] if finite.all() else self.sampled_entries[~finite].tolist()
        top: dict[int, TopLogprobs] = {}
        for part in self.sampled.top:
            top.update(zip(part.positions, list_top(part.counts, next(arrays), next(arrays)), strict=True))
        prompt_logprobs = []
        for span, (_, alternatives) in zip(self.spans, self.prompts, strict=True):
            values = next(arrays)
            if not (values < np.inf).all():  # -inf is the log-probability of a token that the model rules out
                broken.append(span.entry)
            lists = list_top(alternatives.counts, next(arrays), next(arrays)) if alternatives else []
            prompt_logprobs.append(RowPromptLogprobs(span.entry, span.start, values, lists))
        return RoundResult(
            seq=self.seq,
            token_ids=token_ids.astype(np.int32),
            logprobs=logprobs,
            top=dict(sorted(top.items())),
            prompt_logprobs=prompt_logprobs,
            errors=dict.fromkeys(broken, NOT_FINITE) | self.errors,
            seconds=seconds,
        )


@dataclasses.dataclass(frozen=True)
class FollowedRound:
    """A round on the device of a rank that answers nothing: an error there shows in this round, not in one after it."""

    seq: int
    arrival: HostCopy

    def ready(self) -> bool:
        return self.arrival.ready()

    def wait(self) -> None:
        self.arrival.wait()

    def result(self) -> RoundResult:
        self.arrival.arrays()
        return RoundResult(self.seq)


def prompt_logprobs_of(
    device: Device, spans: list[PromptSpan], logits: torch.Tensor
) -> list[tuple[torch.Tensor, TopTokens | None]]:
    """logits [all positions of all spans, V]. For each span the log-probabilities and, if it wants them, the
    alternatives."""
    results = []
    first = 0
    for span in spans:
        count = len(span.token_ids)
        part = logits[first : first + count].float()
        first += count
        (token_ids,) = upload(device, span.token_ids)
        top = None
        if span.alternatives:
            counts = np.full(count, span.alternatives)
            top = TopTokens(list(range(count)), counts, *top_logprobs(part, span.alternatives))
        results.append((token_logprobs(part, token_ids), top))
    return results
