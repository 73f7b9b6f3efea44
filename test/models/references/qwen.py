"""Qwen 1 beyond the context that it was trained with: one sequence, no cache (Qwen technical report, arXiv 2309.16609).

RMSNorm, rotary positions with a theta that is stretched by NTK-aware interpolation, queries scaled by log_n(position)
("LogN-Scaling"), SwiGLU with half of `intermediate_size` each, biases for q, k, v only.
"""

from __future__ import annotations

import math

import torch


def logits(
    config: dict, weights: dict[str, torch.Tensor], token_ids: list[int], alpha: float
) -> torch.Tensor:
    """float32 [T, vocab]; alpha: of the interpolation, 1 for none."""
    return logits_of(config, weights, weights["transformer.wte.weight"][torch.tensor(token_ids)], alpha)


def logits_of(config: dict, weights: dict[str, torch.Tensor], h: torch.Tensor, alpha: float) -> torch.Tensor:
    """h: [T, hidden size], embeddings of tokens or of parts of images."""
    n, heads, size = config["seq_length"], config["num_attention_heads"], config["kv_channels"]
    length = len(h)
    theta = config["rotary_emb_base"] * alpha ** (size / (size - 2))
    angles = torch.outer(torch.arange(length).float(), theta ** -(torch.arange(0, size, 2).float() / size))
    rotation = torch.polar(torch.ones_like(angles), angles)[:, None]
    log_n = torch.tensor([max(1.0, math.log(position + 1, n)) for position in range(length)])
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    for layer in range(config["num_hidden_layers"]):

        def of(name: str, layer: int = layer) -> torch.Tensor:
            return weights[f"transformer.h.{layer}.{name}"]

        def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return x / (x.square().mean(-1, keepdim=True) + config["layer_norm_epsilon"]).sqrt() * weight

        x = rms(h, of("ln_1.weight")) @ of("attn.c_attn.weight").T + of("attn.c_attn.bias")
        q, k, v = (part.view(length, heads, size) for part in x.chunk(3, -1))
        q, k = rotate(q, rotation), rotate(k, rotation)
        q = q * log_n[:, None, None]
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(size)
        weights_of_keys = scores.masked_fill(future, float("-inf")).softmax(-1)
        h = h + torch.einsum("hqk,khd->qhd", weights_of_keys, v).flatten(1) @ of("attn.c_proj.weight").T
        x = rms(h, of("ln_2.weight"))
        up, gate = x @ of("mlp.w1.weight").T, x @ of("mlp.w2.weight").T
        h = h + (up * gate * gate.sigmoid()) @ of("mlp.c_proj.weight").T
    return rms(h, weights["transformer.ln_f.weight"]) @ weights["lm_head.weight"].T


def rotate(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Element i and i + size / 2 as one complex number."""
    half = x.shape[-1] // 2
    turned = torch.complex(x[..., :half].contiguous(), x[..., half:].contiguous()) * rotation
    return torch.cat((turned.real, turned.imag), -1)
