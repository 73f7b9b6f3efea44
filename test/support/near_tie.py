"""How far apart logits are, and when two greedy runs may differ: the rule for computation in fewer bits than float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

TOLERANCE = 2e-2
"""max|a - b| / max|b| of logits against the float32 reference."""


def relative_error(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """max|a - b| / max|b|; -inf, of tokens that are never chosen, stands at the same places."""
    finite = expected.isfinite()
    assert torch.equal(logits.isfinite(), finite)
    return float((logits - expected)[finite].abs().max() / expected[finite].abs().max())


def assert_same_or_near_tie(
    tokens: Sequence[int],
    reference: Sequence[int],
    reference_logits: Callable[[int], torch.Tensor],
    tolerance: float = TOLERANCE,
) -> None:
    """`tokens` equals `reference`, or parts from it at a step where the reference's own choice was a near tie.

    reference_logits(i): the reference's logits [vocab] at output step i, given the reference's first i tokens. At the
    first difference, the logit of the token taken must lie within tolerance * max|logits| of the best. What follows
    the first difference has another context and is not compared.
    """
    assert len(tokens) == len(reference)
    for step, (token, expected) in enumerate(zip(tokens, reference)):
        if token != expected:
            logits = reference_logits(step).float()
            gap = float(logits.max() - logits[token])
            allowed = tolerance * float(logits[logits.isfinite()].abs().max())
            assert gap <= allowed, (
                f"step {step}: token {token}, not {expected}, whose logit is {gap:.4g} > {allowed:.4g} better"
            )
            return
