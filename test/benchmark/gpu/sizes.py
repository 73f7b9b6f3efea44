"""Memory of the report's sections, from shapes: what fits on a GPU is measured, and what does not is left out and not tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

USABLE = 0.85
"""Share of a GPU's free memory that a section may take: the rest is for libraries, kernels and what lies between tensors."""
_ITEM = 2
"""Bytes of a bfloat16 number."""


class DecodeCase(NamedTuple):
    rows: int
    context: int
    """Tokens, alike in all rows."""
    aim: float
    """Share of the limit that is wanted."""


def weight_bytes(shape: dict[str, Any]) -> int:
    """Embedding and head, and each layer's QKV, O, gate, up and down, in bfloat16; norms are less than a thousandth."""
    hidden, inner, size = shape["hidden_size"], shape["intermediate_size"], shape["head_dim"]
    heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
    layer = hidden * size * (2 * heads + 2 * kv_heads) + 3 * hidden * inner
    ends = hidden * shape["vocab_size"] * (1 if shape.get("tie_word_embeddings") else 2)
    return _ITEM * (shape["num_hidden_layers"] * layer + ends)


def slot_bytes(shape: dict[str, Any]) -> int:
    """Keys and values of one token."""
    return _ITEM * 2 * shape["num_hidden_layers"] * shape["num_key_value_heads"] * shape["head_dim"]


def round_bytes(shape: dict[str, Any], tokens: int, rows: int) -> int:
    """A prefill of `tokens` tokens, and float32 logits of `rows` rows three times over (the sampler's scratch buffers)."""
    heads = shape["num_attention_heads"] + 2 * shape["num_key_value_heads"]
    activations = 4 * shape["hidden_size"] + 2 * heads * shape["head_dim"] + 3 * shape["intermediate_size"]
    return _ITEM * tokens * activations + 3 * 4 * rows * shape["vocab_size"]


def needed(shape: dict[str, Any], slots: int, tokens: int, rows: int) -> int:
    """Bytes of a model with `slots` slots of KV memory and such largest rounds."""
    return weight_bytes(shape) + slots * slot_bytes(shape) + round_bytes(shape, tokens, rows)


def fitting(
    shape: dict[str, Any], cases: Sequence[DecodeCase], chunk: int, rows: int, free: float
) -> list[DecodeCase]:
    """The cases that a GPU with `free` free bytes has room for, beside prefills of `chunk` tokens."""
    return [
        case
        for case in cases
        if needed(shape, max(case.rows * case.context, chunk), chunk, rows) <= USABLE * free
    ]


def free_bytes(device: torch.device) -> float:
    """Of a GPU; a CPU's dry runs are small."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")
