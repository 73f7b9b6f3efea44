"""The bitmask kernel against its definition: one bit at a time."""

import pytest
import torch
from ops.test_token_bitmask import expected_bits, random_logits, random_words
from support.kernels import DEVICE

from lightllm.ops.triton.token_bitmask import keep_allowed_


@pytest.mark.parametrize("vocab", [1, 31, 32, 33, 1000, 1024, 3001])
@pytest.mark.parametrize("masked", [0, 1, 5])
@pytest.mark.parametrize("words", [0, -1, 1], ids=["exact", "fewer", "more"])
def test_banned_tokens_become_minus_infinity_and_all_else_keeps_its_bits(vocab, masked, words):
    wide = random_logits(5, vocab + 20, special=True)
    entries = torch.randperm(5)[:masked]
    bitmask = random_words(masked, (vocab + 31) // 32 + words)
    expected = wide.view(torch.int32).clone()
    expected[:, 3 : vocab + 3] = expected_bits(wide[:, 3 : vocab + 3], entries, bitmask)
    wide = wide.to(DEVICE)
    keep_allowed_(wide[:, 3 : vocab + 3], entries.to(DEVICE), bitmask.to(DEVICE))
    assert torch.equal(wide.view(torch.int32).cpu(), expected)


def test_rows_that_begin_beyond_two_to_the_31_elements() -> None:
    """The logits are a view with a huge stride: only its address arithmetic is large."""
    stride = 2**30
    memory = torch.empty(2 * stride + 40, dtype=torch.float32, device=DEVICE)
    logits = memory.as_strided((3, 40), (stride, 1))
    logits[2] = 1.0
    keep_allowed_(
        logits, torch.tensor([2], device=DEVICE), torch.tensor([[-2, 5]], dtype=torch.int32, device=DEVICE)
    )
    assert logits[2].isinf().nonzero().flatten().tolist() == [0, 33, 35, 36, 37, 38, 39]
