"""What the backends of optional packages share: importing the package, what both of them compute, and pages of one token."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from lightllm.errors import InvalidOption
from lightllm.ops.attention_metadata import AttentionMetadata
from lightllm.ops.attention_spec import AttentionSpec
from lightllm.ops.kv_layer import KvLayer


def import_package(backend: str, module: str) -> Any:
    """Raises `InvalidOption` if the package is not there."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InvalidOption(
            f"--attention_backend {backend} needs the package {module}, which cannot be imported: {error}.",
            "Install it, or leave the option out.",
        ) from error


def is_common(spec: AttentionSpec, kv: KvLayer) -> bool:
    """Windows and soft caps, over keys and values as they are, are what both packages know."""
    only_caps = spec.alibi_slopes is None and spec.sinks is None and spec.sparsity is None
    return only_caps and kv.scales is None and kv.kv_heads > 0


def page_table(metadata: AttentionMetadata, first: int, last: int) -> torch.Tensor:
    """int32 [last - first, max_kv_len]: slots of the contexts of entries first .. last - 1, whatever lies past their ends;
    gathered once a round."""

    def gather() -> torch.Tensor:
        return metadata.req_to_token[:, : metadata.max_kv_len].index_select(0, metadata.rows[first:last])

    return metadata.once(("page table", first, last), gather)
