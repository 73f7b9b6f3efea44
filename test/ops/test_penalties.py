"""Penalties against their definition, one token at a time."""

import torch

from lightllm.ops.penalties import grow_end_tokens_, penalize_tokens_


def test_penalties_equal_the_definition_for_listed_tokens_and_leave_the_rest():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)) * 4
    entries = torch.tensor([0, 2, 3])
    token_ids = torch.tensor([[4, 9, 49], [0, 0, 0], [1, 2, 1]])
    counts = torch.tensor([[1.0, 0.0, 3.0], [2.0, 2.0, 2.0], [5.0, 1.0, 5.0]])
    repetition, frequency, presence = torch.tensor([[1.3, 1.0, 0.8], [0.5, 0.0, 1.5], [0.25, 2.0, -1.0]])
    expected = logits.clone()
    for i, entry in enumerate(entries.tolist()):
        for token, count in set(zip(token_ids[i].tolist(), counts[i].tolist())):
            value = logits[entry, token]
            value = value / repetition[i] if value > 0 else value * repetition[i]
            expected[entry, token] = value - count * frequency[i] - (presence[i] if count > 0 else 0)
    penalize_tokens_(logits, entries, token_ids, counts, repetition, frequency, presence)
    torch.testing.assert_close(logits, expected)


def test_end_tokens_grow_by_their_magnitude():
    logits = torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, 6.0]])
    grow_end_tokens_(logits, torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([0.5, 0.5]))
    assert logits.tolist() == [[1.5, -1.0, 3.0], [4.0, 5.0, 6.0]]
