"""Tokens that a bitmask does not allow, against its definition: one bit at a time."""

import numpy as np
import pytest
import torch

from lightllm.ops.token_bitmask import keep_allowed_


def rows_of(bitmask: torch.Tensor, vocab: int) -> list[list[bool]]:
    """Whether token t may come, for each row."""
    words = bitmask.tolist()
    return [
        [t // 32 < len(row) and (row[t // 32] >> (t % 32)) & 1 == 1 for t in range(vocab)] for row in words
    ]


def random_words(*shape: int, density: float = 0.5) -> torch.Tensor:
    """Words of int32, also those whose sign is set. Half the words are all or nothing, as real masks have them."""
    bits = torch.rand(*shape, 32) < density
    bits = torch.where(torch.rand(*shape, 1) < 0.5, bits, bits[..., :1])
    packed = np.packbits(bits.numpy(), axis=-1, bitorder="little")
    return torch.from_numpy(packed.view("<i4")[..., 0].astype(np.int32))


def random_logits(rows: int, vocab: int, special: bool) -> torch.Tensor:
    logits = torch.randn(rows, vocab) * 4
    if special:
        values = torch.tensor([float("nan"), float("inf"), float("-inf"), -0.0, 0.0])
        where = torch.rand(rows, vocab) < 0.3
        logits[where] = values[torch.randint(len(values), (int(where.sum()),))]
    return logits


def expected_bits(logits: torch.Tensor, entries: torch.Tensor, bitmask: torch.Tensor) -> torch.Tensor:
    expected = logits.clone()
    for entry, row in zip(entries.tolist(), rows_of(bitmask, logits.shape[1])):
        for token, allowed in enumerate(row):
            if not allowed:
                expected[entry, token] = float("-inf")
    return expected.view(torch.int32)


@pytest.mark.parametrize("vocab", [1, 31, 32, 33, 1000])
@pytest.mark.parametrize("masked", [0, 1, 7])
@pytest.mark.parametrize("words", [0, -1, 1], ids=["exact", "fewer", "more"])
def test_banned_tokens_become_minus_infinity_and_all_else_keeps_its_bits(vocab, masked, words):
    logits = random_logits(7, vocab, special=True)
    entries = torch.randperm(7)[:masked]
    bitmask = random_words(masked, (vocab + 31) // 32 + words)
    expected = expected_bits(logits, entries, bitmask)
    keep_allowed_(logits, entries, bitmask)
    assert torch.equal(logits.view(torch.int32), expected)


@pytest.mark.parametrize("density", [0.0005, 0.5, 0.9995])
def test_a_large_vocabulary(density):
    logits = random_logits(3, 151_936, special=False)
    entries, bitmask = torch.tensor([2, 0]), random_words(2, 4748, density=density)
    expected = expected_bits(logits, entries, bitmask)
    keep_allowed_(logits, entries, bitmask)
    assert torch.equal(logits.view(torch.int32), expected)


def test_rows_of_a_wider_tensor():
    wide = random_logits(4, 100, special=True)
    expected, bitmask = wide.clone(), random_words(2, 3)
    expected[:, 5:75] = expected_bits(wide[:, 5:75], torch.tensor([3, 1]), bitmask).view(torch.float32)
    keep_allowed_(wide[:, 5:75], torch.tensor([3, 1]), bitmask)
    assert torch.equal(wide.view(torch.int32), expected.view(torch.int32))
