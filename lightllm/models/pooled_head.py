"""What a model for vectors gives at a position instead of the logits of the vocabulary. Loads no torch."""

from __future__ import annotations

import dataclasses

CLASSIFIER = "score"
"""What transformers calls the head of a `...ForSequenceClassification`: a linear layer without bias."""


@dataclasses.dataclass(frozen=True)
class PooledHead:
    """Neither labels nor tokens: the hidden state after the last norm."""

    labels: int = 0
    """Outputs of the classification head."""
    token_ids: tuple[int, ...] = ()
    """The logits of these tokens alone."""
