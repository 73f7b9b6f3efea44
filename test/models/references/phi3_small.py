"""Phi-3-small: one sequence, no cache (arXiv 2404.14219, and the config.json and model card of Phi-3-small-8k-instruct).

LayerNorm; q, k, v in one tensor, grouped by KV head; GEGLU with interleaved halves, clamped, quick GELU; muP scales; in every
layer but each n-th attention looks only at blocks of tokens: the nearest ones, and every s-th, which differs by head.
"""

from __future__ import annotations

import torch


def sees(config: dict, head: int, length: int) -> torch.Tensor:
    """bool [length, length]: may the query (row) look at the key (column)?

    Key block b is visible from query block a if a - b < local blocks, or if (b + 1 + offset of the head) is a multiple of
    the stride; the offset grows by max(1, stride // heads) from head to head, unless all heads share one pattern.
    """
    size, near = config["blocksparse_block_size"], config["blocksparse_num_local_blocks"]
    stride, heads = config["blocksparse_vert_stride"], config["num_attention_heads"]
    offset = 0 if config["blocksparse_homo_head_pattern"] else head * max(1, stride // heads)
    query, key = torch.arange(length)[:, None], torch.arange(length)
    block = key // size
    return (key <= query) & ((query // size - block < near) | ((block + 1 + offset) % stride == 0))


def gegelu(x: torch.Tensor, limit: float) -> torch.Tensor:
    """x: [T, 2 * inner]; even elements are the gate, odd ones what it gates."""
    gate, up = x[..., 0::2].clamp(max=limit), x[..., 1::2].clamp(-limit, limit)
    return gate * torch.sigmoid(1.702 * gate) * (up + 1)


def logits(config: dict, weights: dict[str, torch.Tensor], token_ids: list[int]) -> torch.Tensor:
    """float32 [T, vocab]"""
    heads, kv_heads, hidden = (
        config["num_attention_heads"],
        config["num_key_value_heads"],
        config["hidden_size"],
    )
    size, group, length = hidden // heads, heads // kv_heads, len(token_ids)
    frequencies = config["rope_embedding_base"] ** -(torch.arange(0, size, 2).float() / size)
    positions = torch.arange(length).float() / config["rope_position_scale"]
    angles = torch.outer(positions, frequencies)
    rotation = torch.polar(torch.ones_like(angles), angles)[:, None]
    everything = torch.ones(length, length, dtype=torch.bool).tril()
    sparse = [sees(config, head, length) for head in range(heads)]
    h = weights["model.embed_tokens.weight"][torch.tensor(token_ids)] * config["mup_embedding_multiplier"]
    for layer in range(config["num_hidden_layers"]):

        def affine(x: torch.Tensor, name: str, layer: int = layer) -> torch.Tensor:
            return (
                x @ weights[f"model.layers.{layer}.{name}.weight"].T
                + weights[f"model.layers.{layer}.{name}.bias"]
            )

        def norm(x: torch.Tensor, name: str) -> torch.Tensor:
            scale, shift = weights[f"model.{name}.weight"], weights[f"model.{name}.bias"]
            centred = x - x.mean(-1, keepdim=True)
            return (
                centred
                / (centred.square().mean(-1, keepdim=True) + config["layer_norm_epsilon"]).sqrt()
                * scale
                + shift
            )

        x = affine(norm(h, f"layers.{layer}.input_layernorm"), "self_attn.query_key_value")
        x = x.view(length, kv_heads, group + 2, size)
        q, k, v = x[:, :, :group].reshape(length, heads, size), x[:, :, group], x[:, :, group + 1]
        q, k = rotate(q, rotation), rotate(k, rotation)
        dense = (layer + 1) % config["dense_attention_every_n_layers"] == 0
        outputs = []
        for head in range(heads):
            scores = q[:, head] @ k[:, head // group].T * config["mup_attn_multiplier"] / size
            visible = everything if dense else sparse[head]
            outputs.append(scores.masked_fill(~visible, float("-inf")).softmax(-1) @ v[:, head // group])
        h = h + affine(torch.cat(outputs, -1), "self_attn.dense")
        x = affine(norm(h, f"layers.{layer}.post_attention_layernorm"), "mlp.up_proj")
        h = h + affine(gegelu(x, config["gegelu_limit"]), "mlp.down_proj")
    result = (
        norm(h, "final_layernorm") @ weights["model.embed_tokens.weight"].T / config["mup_width_multiplier"]
    )
    result[:, config["dummy_token_indices"]] = float("-inf")
    return result


def rotate(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Element i and i + size / 2 as one complex number."""
    half = x.shape[-1] // 2
    turned = torch.complex(x[..., :half].contiguous(), x[..., half:].contiguous()) * rotation
    return torch.cat((turned.real, turned.imag), -1)
