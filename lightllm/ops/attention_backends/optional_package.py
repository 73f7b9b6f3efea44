"""What the backends of optional packages share: importing the package, and what both of them compute."""

from __future__ import annotations

import importlib
from typing import Any

from lightllm.errors import InvalidOption
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
    return (
        spec.alibi_slopes is None
        and spec.sinks is None
        and spec.sparsity is None
        and kv.scales is None
        and kv.kv_heads > 0
    )
