"""From the outputs of a round to what it adds to the vectors of its prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch

from lightllm.backend.device import Device, HostCopy, upload
from lightllm.backend.pending import Computed, PendingResult
from lightllm.backend.pooled_spans import PooledSpan
from lightllm.backend.submitted_round import NOT_FINITE
from lightllm.protocol.rounds import Round, RoundResult, RowError, RowPooled


def add_up(outputs: torch.Tensor, spans: Sequence[PooledSpan], device: Device) -> torch.Tensor:
    """outputs: float32 [positions, size], of `pooled_positions`. Returns float32 [spans, size]. The order in which a span is
    added up is its own, whatever is beside it."""
    if not spans:
        return outputs
    if any(span.count > 1 for span in spans):
        lengths, weights = upload(
            device,
            np.array([span.count for span in spans], dtype=np.int64),
            np.array([[span.weight] for span in spans], dtype=np.float32),
        )
        return torch.segment_reduce(outputs, "sum", lengths=lengths, axis=0) * weights
    (weights,) = upload(device, np.array([[span.weight] for span in spans], dtype=np.float32))
    return outputs * weights


def pool_round(
    round: Round,
    spans: Sequence[PooledSpan],
    outputs: torch.Tensor,
    device: Device,
    rank: int,
    errors: dict[int, RowError],
    took: Callable[[float], float],
    started: float,
) -> PendingResult:
    """The result of a round, on its way: rank 0 has it, all have computed it. outputs: as of `add_up`; errors: what is known
    already, by entry; took: as in `SubmittedRound`."""
    if rank:
        return Computed(RoundResult(round.seq))
    arrival = device.download([add_up(outputs, spans, device)])
    return PooledRound(round.seq, int(round.samples.sum()), spans, arrival, errors, took, started)


@dataclasses.dataclass(frozen=True)
class PooledRound:
    """A round of a model for vectors that is on the device."""

    seq: int
    sampled: int
    """Entries whose prompts end in this round: each brings a token, which means nothing."""
    spans: Sequence[PooledSpan]
    arrival: HostCopy
    errors: dict[int, RowError]
    took: Callable[[float], float]
    started: float

    def ready(self) -> bool:
        return self.arrival.ready()

    def wait(self) -> None:
        self.arrival.wait()

    def result(self) -> RoundResult:
        (values,) = self.arrival.arrays()
        seconds = self.took(self.started)
        broken = {
            span.entry: NOT_FINITE
            for span, row in zip(self.spans, values, strict=True)
            if not np.isfinite(row).all()
        }
        return RoundResult(
            seq=self.seq,
            token_ids=np.zeros(self.sampled, dtype=np.int32),
            logprobs=np.zeros(self.sampled, dtype=np.float32),
            pooled=[RowPooled(span.entry, row) for span, row in zip(self.spans, values, strict=True)],
            errors=broken | self.errors,
            seconds=seconds,
        )
