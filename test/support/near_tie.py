"""How far apart logits may be, and when two greedy runs may differ: the rules for computation in fewer bits than float32.

How much rounding costs depends on the checkpoint and on the processor, so nothing here is compared with a number that one
of them reaches, but with what the reference itself loses in the checkpoint's dtype:

    assert_rounded_like(logits, half, whole)       # half, whole: the reference in that dtype, and in float32
    assert_same_or_near_tie(tokens, expected, lambda step: ..., near_tie(half, whole))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

RATIO = 1.5
"""Our error in the reference's own, at most."""
SANE = 3e-2
"""The reference's own error, at most: where it is larger the checkpoint amplifies rounding, and the test shows nothing."""


def relative_error(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """max|a - b| / max|b|; -inf, of tokens that are never chosen, stands at the same places."""
    finite = expected.isfinite()
    assert torch.equal(logits.isfinite(), finite)
    return float((logits - expected)[finite].abs().max() / expected[finite].abs().max())


def rounding_error(logits: torch.Tensor, whole: torch.Tensor, routed: bool) -> float:
    """Root mean square of the differences [T, vocab] in that of the logits.

    routed: the model chooses experts. Where two are nearly as good as each other rounding chooses, and all of that token's
    logits are others; so of the tokens' own errors the median counts.
    """
    finite = whole.isfinite()
    assert torch.equal(logits.isfinite(), finite)
    difference, size = (logits - whole).where(finite, 0.0).square(), whole.where(finite, 0.0).square()
    if routed:
        return float((difference.sum(-1) / size.sum(-1)).median().sqrt())
    return float((difference.sum() / size.sum()).sqrt())


def assert_rounded_like(
    logits: torch.Tensor, half: torch.Tensor, whole: torch.Tensor, routed: bool = False
) -> None:
    """`logits` are as near to the float32 reference as the reference in fewer bits is. All [T, vocab] of the same tokens."""
    ours, theirs = (rounding_error(each.float().cpu(), whole, routed) for each in (logits, half))
    assert 1e-4 < theirs <= SANE, f"an error of {theirs:.4g} in fewer bits: the checkpoint is of no use here"
    assert ours <= RATIO * theirs, f"an error of {ours:.4g}, the reference's own is {theirs:.4g}"


def near_tie(half: torch.Tensor, whole: torch.Tensor) -> float:
    """The difference of two logits that rounding may turn round: each may be as wrong as `half` is at its worst place,
    and half as much again."""
    finite = whole.isfinite()
    return 2 * RATIO * float((half - whole)[finite].abs().max())


def assert_same_or_near_tie(
    tokens: Sequence[int],
    reference: Sequence[int],
    reference_logits: Callable[[int], torch.Tensor],
    gap: float,
) -> None:
    """`tokens` equals `reference`, or parts from it at a step where the reference's own choice was a near tie.

    reference_logits(i): the reference's logits [vocab] at output step i, given the reference's first i tokens. At the
    first difference, the logit of the token taken must lie within `gap` of the best. What follows the first difference
    has another context and is not compared.
    """
    assert len(tokens) == len(reference)
    for step, (token, expected) in enumerate(zip(tokens, reference)):
        if token != expected:
            logits = reference_logits(step).float()
            found = float(logits.max() - logits[token])
            assert found <= gap, (
                f"step {step}: token {token}, not {expected}, whose logit is {found:.4g} > {gap:.4g} better"
            )
            return
