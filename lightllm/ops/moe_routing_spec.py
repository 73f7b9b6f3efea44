"""How a mixture of experts chooses: made once with the layer, read by every implementation. Loads no torch."""

from __future__ import annotations

import dataclasses

TINY = 1e-20
"""Added to the sum that weights are divided by, as the published gate of DeepSeek-V3 does: all scores may be 0."""


@dataclasses.dataclass(frozen=True)
class MoeRoutingSpec:
    """Which `top_k` of all experts compute a token, and with which weights, from one logit an expert.

    1. scores = softmax(logits) or sigmoid(logits), or the logits as they are ("top_k_softmax");
    2. the best `top_groups` of `groups` equal runs of experts stay (DeepSeek-V2, arXiv 2405.04434, section 2.2): a run is as
       good as its best expert, or as the sum of its best two if there is a bias;
    3. the best `top_k` experts of those by score, plus the bias if there is one (DeepSeek-V3, arXiv 2412.19437, section 2.1.2);
    4. their weights are their scores without the bias, divided by their sum plus `TINY` (`normalise`), times `scale`;
       "top_k_softmax": the softmax over the chosen logits alone.

    The experts of a token are different ones that exist whatever its logits are, NaN included; then its weights are NaN.
    """

    num_experts: int
    top_k: int
    scoring: str = "softmax"
    """"softmax", "sigmoid" or "top_k_softmax"."""
    normalise: bool = False
    groups: int = 1
    top_groups: int = 1
    scale: float = 1.0
