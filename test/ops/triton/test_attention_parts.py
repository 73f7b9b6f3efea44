"""How attention's work is cut: every token in exactly one part, parts of about equal length, never more than the grid."""

import pytest
import torch
from support.kernels import DEVICE

from lightllm.ops.attention_metadata import AttentionMetadata
from lightllm.ops.triton.attention_parts import AttentionParts, decode_parts, prefill_parts


def make_metadata(kv_lens: list[int], q_lens: list[int], num_decode: int, num_sms: int) -> AttentionMetadata:
    q_start = torch.tensor([0, *q_lens]).cumsum(0)
    return AttentionMetadata(
        rows=torch.arange(len(kv_lens), device=DEVICE),
        q_start=q_start.to(DEVICE, torch.int32),
        kv_len=torch.tensor(kv_lens, dtype=torch.int32, device=DEVICE),
        req_to_token=torch.zeros((1, 1), dtype=torch.int32, device=DEVICE),
        num_decode=num_decode,
        num_tokens=int(q_start[-1]),
        max_q_len=max(q_lens),
        max_kv_len=max(kv_lens),
        num_sms=num_sms,
    )


def counts(parts: AttentionParts, n: int) -> list[int]:
    """Parts of each entry, after checking that `first` and `entry_of` agree and nothing is beyond the grid."""
    first = parts.first.tolist()
    assert first[0] == 0 and len(first) == n + 1 and first[-1] <= len(parts.entry_of)
    expected = [entry for entry in range(n) for _ in range(first[entry], first[entry + 1])]
    assert parts.entry_of.tolist() == expected + [n] * (len(parts.entry_of) - len(expected))
    return [end - start for start, end in zip(first, first[1:])]


@pytest.mark.parametrize("num_sms", [1, 132])
@pytest.mark.parametrize("kv_heads", [1, 8])
@pytest.mark.parametrize("kv_lens", [[1], [5000], [64] * 33, list(range(1, 300)), [100_000] + [1] * 40])
def test_contexts_are_cut_into_even_parts_within_the_grid(
    kv_lens: list[int], kv_heads: int, num_sms: int
) -> None:
    n, block = len(kv_lens), 16
    parts, _ = decode_parts(make_metadata(kv_lens, [1] * n, n, num_sms), 0, kv_heads, block)
    assert parts.arrived.tolist() == [0] * (n * kv_heads)
    cut = counts(parts, n)
    sizes = [-(-kv_len // count) for kv_len, count in zip(kv_lens, cut)]
    places = max(num_sms * 2 // kv_heads, 1)
    if places >= 2 * n:
        assert sum(cut) <= places, "a small batch is computed in one wave"
    longest = max(sizes)
    assert all(count == 1 or size * 2 > longest - block for count, size in zip(cut, sizes)), (cut, sizes)


def test_a_window_shortens_contexts() -> None:
    metadata = make_metadata([1000, 20, 64], [1, 1, 1], 3, 132)
    parts, known = decode_parts(metadata, 64, 8, 16)
    shorter, _ = decode_parts(make_metadata([64, 20, 64], [1] * 3, 3, 132), 0, 8, 16)
    assert not known and counts(parts, 3) == counts(shorter, 3)
    assert decode_parts(metadata, 64, 8, 16) == (parts, True)


@pytest.mark.parametrize("tokens", [1, 16, 25])
@pytest.mark.parametrize("q_lens", [[1], [129], [16, 1, 33, 50], [1] * 200 + [77]])
@pytest.mark.parametrize("num_decode", [0, 3])
def test_chunks_are_cut_into_tiles_of_queries(q_lens: list[int], tokens: int, num_decode: int) -> None:
    metadata = make_metadata([1] * num_decode + q_lens, [1] * num_decode + q_lens, num_decode, 4)
    assert counts(prefill_parts(metadata, tokens), len(q_lens)) == [-(-q_len // tokens) for q_len in q_lens]
