"""KV memory of one layer from a plain tensor."""

import torch

from lightllm.ops.kv_layer import KvLayer


def layer(data: torch.Tensor) -> KvLayer:
    """data: [slots + 1, 2 * kv_heads, head_dim], keys first."""
    return KvLayer(data, data.shape[1] // 2)
