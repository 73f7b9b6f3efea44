"""Qwen-VL's image encoder as its description says it (arXiv 2308.12966, section 2.1; the published visual.py), in plain torch and float32."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

PREFIX = "transformer.visual."
EPS = 1e-6


def embeddings(
    visual: dict[str, Any], weights: dict[str, torch.Tensor], pixels: torch.Tensor
) -> torch.Tensor:
    """visual: of config.json; pixels: [N, 3, size, size]. Returns [N, queries, output_dim]."""
    w = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items() if name.startswith(PREFIX)}
    x = F.conv2d(pixels, w["conv1.weight"], stride=visual["patch_size"]).flatten(2).transpose(1, 2)
    x = _norm(x.add(_table(w["positional_embedding"], x.shape[1])), w, "ln_pre")
    for layer in range(visual["layers"]):
        block = f"transformer.resblocks.{layer}."
        x = x.add(_self_attention(_norm(x, w, block + "ln_1"), w, block + "attn.", visual["heads"]))
        inner = F.gelu(_linear(_norm(x, w, block + "ln_2"), w, block + "mlp.c_fc"))
        x = x.add(_linear(inner, w, block + "mlp.c_proj"))
    x = _resampled(x, w, visual["output_dim"])
    return torch.matmul(_norm(x, w, "ln_post"), w["proj"])


def _self_attention(x: torch.Tensor, w: dict[str, torch.Tensor], name: str, heads: int) -> torch.Tensor:
    """Each head's rows of in_proj are its query, its key and its value."""
    batch, tokens, size = x.shape
    mixed = _linear(x, w, name + "in_proj").view(batch, tokens, heads, 3 * size // heads)
    q, k, v = (each.transpose(1, 2) for each in mixed.split(size // heads, dim=-1))
    scores = torch.matmul(q.div(math.sqrt(size // heads)), k.transpose(-1, -2))
    mixed = torch.matmul(torch.softmax(scores, dim=-1), v).transpose(1, 2).reshape(batch, tokens, size)
    return _linear(mixed, w, name + "out_proj")


def _resampled(x: torch.Tensor, w: dict[str, torch.Tensor], size: int) -> torch.Tensor:
    """Multi-head attention as torch's own layer computes it: queries, keys and values with a third of in_proj each."""
    name = "attn_pool."
    x = _norm(torch.matmul(x, w[name + "kv_proj.weight"].T), w, name + "ln_kv")
    q = _norm(w[name + "query"], w, name + "ln_q").add(w[name + "pos_embed"]).expand(len(x), -1, -1)
    k = x.add(_table(w[name + "pos_embed"], x.shape[1]))
    heads = size // 128
    projected = []
    for part, inputs in enumerate((q, k, x)):
        rows = slice(part * size, (part + 1) * size)
        weight, bias = w[name + "attn.in_proj_weight"][rows], w[name + "attn.in_proj_bias"][rows]
        each = torch.matmul(inputs, weight.T).add(bias)
        projected.append(each.view(len(x), -1, heads, 128).transpose(1, 2))
    scores = torch.matmul(projected[0], projected[1].transpose(-1, -2)).div(math.sqrt(128))
    mixed = torch.matmul(torch.softmax(scores, dim=-1), projected[2]).transpose(1, 2).flatten(2)
    return _linear(mixed, w, name + "attn.out_proj")


def _table(positions: torch.Tensor, tokens: int) -> torch.Tensor:
    """Learned for a square of other size: bicubic interpolation."""
    here, there = math.isqrt(len(positions)), math.isqrt(tokens)
    if here == there:
        return positions
    grid = positions.reshape(1, here, here, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(there, there), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).flatten(0, 2)


def _linear(x: torch.Tensor, w: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return torch.matmul(x, w[name + ".weight"].T).add(w[name + ".bias"])


def _norm(x: torch.Tensor, w: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"], EPS)
