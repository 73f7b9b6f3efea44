"""Rotary tables against transformers, the rotation against complex multiplication, and the write into KV slots."""

import pytest
import torch
from support.kv import layer
from support.references import rms_norm, rotated_as_complex

from lightllm.layers.rotary import RotaryTable
from lightllm.ops.rotary import inverse_frequencies, rotary_and_write_kv, rotary_embedding, rotary_table
from lightllm.ops.write_kv import write_kv

SCALINGS = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling["rope_type"])
@pytest.mark.parametrize("head_dim", [16, 128])
def test_tables_equal_those_of_transformers(scaling: dict, head_dim: int) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=131072,
        rope_parameters={"rope_theta": 500000.0, **scaling},
    )
    positions = torch.tensor([0, 1, 5, 4095, 100_000])
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None])
    table = RotaryTable(head_dim, 500000.0, scaling, torch.float32, torch.device("cpu"))
    ours_cos, ours_sin = table.lookup(positions, 100_001)
    torch.testing.assert_close(ours_cos[:, 0], cos[0])
    torch.testing.assert_close(ours_sin[:, 0], sin[0])


def test_a_table_that_grew_equals_one_made_at_once() -> None:
    inverse, _ = inverse_frequencies(8, 10000.0, SCALINGS[0])
    parts = torch.cat(
        (rotary_table(inverse, 0, 7, torch.float32), rotary_table(inverse, 7, 30, torch.float32))
    )
    assert torch.equal(parts, rotary_table(inverse, 0, 30, torch.float32))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_heads_are_rotated_by_position(dtype: torch.dtype, tolerance: float) -> None:
    x = torch.randn(5, 9, 16).to(dtype)[:, 1:7]
    positions = torch.tensor([0, 3, 3, 100, 1000])
    table = RotaryTable(16, 10000.0, SCALINGS[0], dtype, torch.device("cpu"))
    result = rotary_embedding(x, *table.lookup(positions, 1001))
    torch.testing.assert_close(
        result.double(), rotated_as_complex(x, positions, 10000.0), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [4, 12, 16])
def test_a_part_of_each_head_is_rotated_in_either_pairing(rotary_dim: int, interleaved: bool) -> None:
    x = torch.randn(5, 9, 16)[:, 1:7]
    before, positions = x.clone(), torch.tensor([0, 3, 3, 100, 1000])
    table = RotaryTable(rotary_dim, 10000.0, SCALINGS[0], torch.float32, torch.device("cpu"))
    result = rotary_embedding(x, *table.lookup(positions, 1001), interleaved=interleaved)
    expected = rotated_as_complex(x, positions, 10000.0, rotary_dim, interleaved)
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(x, before)


def test_keys_may_be_written_without_rotation() -> None:
    kv, slots = torch.full((9, 4, 8), float("nan")), torch.tensor([7, 0, 3])
    qkv = torch.randn(3, 10, 8)
    write_kv(qkv[:, 6:8], qkv[:, 8:], layer(kv), slots)
    assert torch.equal(kv[slots], qkv[:, 6:]) and kv[[1, 2, 4, 5, 6, 8]].isnan().all()


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("tokens", [1, 33])
def test_keys_and_values_land_in_their_slots_and_nowhere_else(tokens: int) -> None:
    heads, kv_heads, head_dim, hold = 6, 2, 8, 99
    qkv = torch.randn(tokens, heads + 2 * kv_heads, head_dim)
    qk, v = qkv[:, : heads + kv_heads], qkv[:, heads + kv_heads :]
    positions = torch.randint(0, 500, (tokens,))
    slots = torch.randperm(hold)[:tokens]
    kv = torch.full((hold + 1, 2 * kv_heads, head_dim), float("nan"))
    table = RotaryTable(head_dim, 10000.0, SCALINGS[0], torch.float32, torch.device("cpu"))
    q = rotary_and_write_kv(qk, v, *table.lookup(positions, 500), layer(kv), slots)
    expected = rotated_as_complex(qk, positions, 10000.0).float()
    torch.testing.assert_close(q, expected[:, :heads], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(kv[slots, :kv_heads], expected[:, heads:], rtol=1e-4, atol=1e-4)
    assert torch.equal(kv[slots, kv_heads:], v)
    untouched = torch.ones(hold + 1, dtype=torch.bool)
    untouched[slots] = False
    assert kv[untouched].isnan().all()


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("per_head", [False, True])
def test_heads_may_be_normalised_before_they_are_rotated(per_head: bool) -> None:
    heads, kv_heads, head_dim = 6, 2, 8
    qkv, slots = torch.randn(5, heads + 2 * kv_heads, head_dim), torch.tensor([4, 0, 9, 3, 7])
    weight = torch.randn(heads + kv_heads, head_dim) if per_head else torch.randn(head_dim)
    positions = torch.tensor([0, 3, 3, 100, 499])
    kv = torch.zeros(11, 2 * kv_heads, head_dim)
    table = RotaryTable(head_dim, 10000.0, SCALINGS[0], torch.float32, torch.device("cpu"))
    qk, v = qkv[:, : heads + kv_heads], qkv[:, heads + kv_heads :]
    q = rotary_and_write_kv(
        qk, v, *table.lookup(positions, 500), layer(kv), slots, norm_weight=weight, eps=1e-5
    )
    expected = rotated_as_complex(rms_norm(qk, weight, 1e-5), positions, 10000.0).float()
    torch.testing.assert_close(q, expected[:, :heads], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(kv[slots], torch.cat((expected[:, heads:], v), 1), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("weight", [None, torch.linspace(0.5, 2, 8)])
def test_rotated_keys_may_be_kept_behind_the_queries(weight: torch.Tensor | None) -> None:
    qk, v, slots = torch.randn(5, 8, 8), torch.randn(5, 2, 8), torch.tensor([4, 0, 9, 3, 7])
    table = RotaryTable(8, 10000.0, SCALINGS[0], torch.float32, torch.device("cpu"))
    angles = table.lookup(torch.tensor([0, 3, 3, 100, 499]), 500)
    kv, again = torch.zeros(2, 11, 4, 8)
    q = rotary_and_write_kv(qk, v, *angles, layer(kv), slots, norm_weight=weight, eps=1e-5)
    kept = rotary_and_write_kv(
        qk, v, *angles, layer(again), slots, norm_weight=weight, eps=1e-5, keep_keys=True
    )
    assert torch.equal(kept[:, :6], q) and torch.equal(kept[:, 6:], kv[slots, :2])
    assert torch.equal(again, kv)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [4, 12, 16])
def test_a_part_of_each_head_is_rotated_and_written_in_either_pairing(
    rotary_dim: int, interleaved: bool
) -> None:
    qk, v, slots = torch.randn(5, 9, 16)[:, 1:7], torch.randn(5, 2, 16), torch.tensor([4, 0, 9, 3, 7])
    positions, kv = torch.tensor([0, 3, 3, 100, 1000]), torch.zeros(11, 4, 16)
    table = RotaryTable(rotary_dim, 10000.0, SCALINGS[0], torch.float32, torch.device("cpu"))
    q = rotary_and_write_kv(qk, v, *table.lookup(positions, 1001), layer(kv), slots, interleaved)
    expected = rotated_as_complex(qk, positions, 10000.0, rotary_dim, interleaved).float()
    torch.testing.assert_close(q, expected[:, :4], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(kv[slots], torch.cat((expected[:, 4:], v), 1), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("implementation")
def test_padding_tokens_may_share_the_hold_slot() -> None:
    kv = torch.zeros(11, 2, 4)
    table = RotaryTable(4, 10000.0, SCALINGS[0], torch.float32, torch.device("cpu"))
    qk, v = torch.randn(4, 2, 4), torch.randn(4, 1, 4)
    rotary_and_write_kv(
        qk, v, *table.lookup(torch.zeros(4, dtype=torch.int64), 1), layer(kv), torch.tensor([3, 10, 10, 10])
    )
    assert torch.equal(kv[3, 1:], v[0]) and not kv[:3].any() and not kv[4:10].any()
