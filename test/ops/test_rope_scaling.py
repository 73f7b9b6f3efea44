"""Every type of rotary embedding against transformers' own tables, within and beyond the original context."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lightllm.layers.rotary import RotaryTable
from lightllm.models.config_fields import Fields
from lightllm.models.rope_config import REQUIRED, make_rope
from lightllm.ops.rotary import inverse_frequencies

ORIGINAL = 512
TYPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    "yarn, all fields": {
        "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": ORIGINAL, "beta_fast": 16,
        "beta_slow": 2, "attention_factor": 1.25, "truncate": False,
    },
    "deepseek yarn": {
        "rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": ORIGINAL, "mscale": 1.0,
        "mscale_all_dim": 0.707, "beta_fast": 32, "beta_slow": 1,
    },
    "longrope": {
        "rope_type": "longrope", "original_max_position_embeddings": ORIGINAL,
        "short_factor": [1.0 + 0.02 * i for i in range(32)], "long_factor": [1.0 + 1.5 * i for i in range(32)],
    },
    "longrope, attention factor": {
        "rope_type": "longrope", "original_max_position_embeddings": ORIGINAL, "attention_factor": 1.1, "factor": 16.0,
        "short_factor": [1.0] * 32, "long_factor": [4.0] * 32,
    },
}  # fmt: skip


def config_fields(given: dict[str, Any]) -> dict[str, Any]:
    stated = ORIGINAL if given["rope_type"] in ("default", "linear", "dynamic") else 16 * ORIGINAL
    return {"head_dim": 64, "max_position_embeddings": stated, "rope_theta": 50000.0}


def of_transformers(
    given: dict[str, Any], length: int, share: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [length, dim] when one prompt of that length is computed."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    fields = config_fields(given)
    rope = {"rope_theta": fields.pop("rope_theta"), **given}
    if share != 1.0:
        rope["partial_rotary_factor"] = share
    config = LlamaConfig(hidden_size=256, num_attention_heads=4, rope_parameters=rope, **fields)
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(length)[None])
    return cos[0], sin[0]


def ours(given: dict[str, Any], length: int, share: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    rope = make_rope(Fields(config_fields(given)), {**given, "partial_rotary_factor": share}, 64)
    table = RotaryTable(rope.dim, rope.theta, rope.scaling, torch.float32, torch.device("cpu"), length)
    cos, sin = table.lookup(torch.arange(length), length)
    return cos[:, 0], sin[:, 0]


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("length", [ORIGINAL // 2, ORIGINAL, ORIGINAL + 1, 5 * ORIGINAL])
def test_tables_equal_those_of_transformers(name: str, length: int) -> None:
    for table, expected in zip(ours(TYPES[name], length), of_transformers(TYPES[name], length), strict=True):
        # float32 angles of several thousand radians are exact to a few 1e-4.
        torch.testing.assert_close(table, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["linear", "llama3", "yarn"])
def test_tables_of_a_part_of_the_head_equal_those_of_transformers(name: str) -> None:
    for table, expected in zip(
        ours(TYPES[name], 600, 0.5), of_transformers(TYPES[name], 600, 0.5), strict=True
    ):
        assert table.shape == (600, 32)
        torch.testing.assert_close(table, expected, rtol=0, atol=1e-3)


def test_qwen_stretches_theta_in_powers_of_two() -> None:
    """alpha = 2^(ceil(log2(length / n)) + 1) - 1 beyond the trained length n, theta * alpha^(dim / (dim - 2))."""
    scaling = {"rope_type": "qwen_dynamic", "original_max_position_embeddings": 2048}
    default, _ = inverse_frequencies(128, 10000.0, {"rope_type": "default"})
    for length, alpha in ((None, 1), (2048, 1), (2049, 3), (4096, 3), (4097, 7), (8192, 7), (16384, 15)):
        expected = torch.tensor([(10000 * alpha ** (128 / 126)) ** -(2 * i / 128) for i in range(64)])
        frequencies, factor = inverse_frequencies(128, 10000.0, scaling, length)
        torch.testing.assert_close(frequencies, expected, rtol=1e-5, atol=0)
        assert factor == 1.0
        assert torch.equal(frequencies, default) == (alpha == 1)


def test_longrope_may_name_its_attention_factors() -> None:
    given = {**TYPES["longrope"], "short_mscale": 1.1, "long_mscale": 1.3}
    for length, factor in ((ORIGINAL, 1.1), (ORIGINAL + 1, 1.3)):
        cos, _ = ours(given, length)
        torch.testing.assert_close(cos[0], torch.full((64,), factor))


def test_every_type_that_a_config_may_name_is_tested() -> None:
    assert {given["rope_type"] for given in TYPES.values()} | {"qwen_dynamic"} == set(REQUIRED)


def test_angles_stay_exact_far_out() -> None:
    inverse, _ = inverse_frequencies(64, 10000.0, {"rope_type": "default"})
    table = RotaryTable(64, 10000.0, {"rope_type": "default"}, torch.float32, torch.device("cpu"))
    position = 100_000
    cos, _ = table.lookup(torch.tensor([position]), position + 1)
    exact = [math.cos(position * float(frequency)) for frequency in inverse]
    torch.testing.assert_close(cos[0, 0, :32], torch.tensor(exact), rtol=0, atol=5e-3)
