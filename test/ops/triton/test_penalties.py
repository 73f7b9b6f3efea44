"""The penalty kernels against their definition, one token at a time."""

import pytest
import torch
from support.kernels import DEVICE

from lightllm.ops.triton.penalties import grow_end_tokens_, penalize_tokens_


@pytest.mark.parametrize(("rows", "listed"), [(1, 1), (1, 7), (1, 1500), (5, 1), (5, 1500), (33, 7)])
def test_listed_tokens_change_by_the_definition_and_the_rest_stays(rows: int, listed: int) -> None:
    vocab = 3000
    wide = (torch.randn(2 * rows, vocab + 20) * 4).to(DEVICE)
    logits, around = wide[:, 3 : vocab + 3], wide.clone()
    entries = torch.randperm(2 * rows)[:rows]
    token_ids = torch.stack([torch.randperm(vocab)[:listed] for _ in range(rows)])
    counts = torch.randint(0, 4, (rows, listed)).float()
    # Places beyond a row's list repeat its first token, as the backend's lists do.
    token_ids[:, (2 * listed) // 3 :] = token_ids[:, :1]
    counts[:, (2 * listed) // 3 :] = counts[:, :1]
    factors = torch.stack([torch.rand(rows) + 0.5, torch.rand(rows), torch.randn(rows)])
    expected = logits.clone()
    for i, entry in enumerate(entries.tolist()):
        r, f, p = factors[:, i].tolist()
        for token, count in set(zip(token_ids[i].tolist(), counts[i].tolist())):
            value = logits[entry, token].item()
            value = value / r if value > 0 else value * r
            expected[entry, token] = value - count * f - (p if count > 0 else 0)
    on_device = [t.to(DEVICE) for t in (entries, token_ids, counts, *factors)]
    penalize_tokens_(logits, *on_device)
    torch.testing.assert_close(logits, expected)
    around[:, 3 : vocab + 3] = logits
    assert torch.equal(wide, around)


def test_no_lists_change_nothing() -> None:
    logits = torch.randn(2, 10, device=DEVICE)
    before, none = logits.clone(), torch.zeros(0, device=DEVICE)
    ids = torch.zeros((0, 3), dtype=torch.int64, device=DEVICE)
    penalize_tokens_(logits, ids[:, 0], ids, ids.float(), none, none, none)
    grow_end_tokens_(logits, ids[:, 0], ids[:, 0], none)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("pairs", [1, 2, 200])
def test_end_tokens_grow_by_their_magnitude(pairs: int) -> None:
    logits = torch.randn(10, 50, device=DEVICE)
    place = torch.randperm(500)[:pairs]
    entries, ids, growth = place // 50, place % 50, torch.rand(pairs)
    expected = logits.clone()
    for entry, token, factor in zip(entries.tolist(), ids.tolist(), growth.tolist()):
        expected[entry, token] += abs(expected[entry, token]) * factor
    grow_end_tokens_(logits, entries.to(DEVICE), ids.to(DEVICE), growth.to(DEVICE))
    torch.testing.assert_close(logits, expected)
