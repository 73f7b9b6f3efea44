"""FlashInfer's paged wrappers with pages of one token. They plan each round on the host, so decoding with them is not
captured."""

from __future__ import annotations

from typing import Any

import torch

from lightllm.ops.attention_backends.optional_package import import_package, is_common, page_table
from lightllm.ops.attention_backends.protocol import AttentionCall
from lightllm.ops.attention_metadata import AttentionMetadata
from lightllm.ops.kv_layer import KvLayer

_WORKSPACE = 128 << 20
"""Bytes of a wrapper's workspace, as the package's documentation recommends."""


class FlashInferAttention:
    graphs = False
    dense_prefill = False
    takes = staticmethod(is_common)

    def __init__(self, device: torch.device) -> None:
        package = import_package("flashinfer", "flashinfer")
        # One workspace each: a mixed round plans both before it runs either. Decoding without tensor cores knows some
        # group sizes only (1, 2, 3, 4 and 8).
        self._decode = package.BatchDecodeWithPagedKVCacheWrapper(
            _workspace(device), "NHD", use_tensor_cores=True
        )
        self._prefill = package.BatchPrefillWithPagedKVCacheWrapper(_workspace(device), "NHD")
        self._planned: dict[str, tuple[Any, ...]] = {}

    def decode(self, call: AttentionCall) -> None:
        call = call._replace(metadata=call.metadata.decode_by_token())
        n = call.metadata.num_decode
        if self._is_new("decode", call):
            self._decode.plan(*_pages(call.metadata, 0, n), *_shape(call), **_options(call))
        self._decode.run(call.q[:n], _paged(call.kv), out=call.out[:n])

    def prefill(self, call: AttentionCall) -> None:
        metadata = call.metadata
        n, tokens = metadata.num_decode, metadata.num_decode_tokens
        if self._is_new("prefill", call):
            pages = _pages(metadata, n, len(metadata.rows))
            starts = metadata.q_start[n:] - tokens
            self._prefill.plan(starts, *pages, *_shape(call), causal=True, **_options(call))
        self._prefill.run(call.q[tokens:], _paged(call.kv), out=call.out[tokens:])

    def _is_new(self, phase: str, call: AttentionCall) -> bool:
        """A wrapper holds one plan: it is made anew when the round or the layers' spec changes."""
        key = (call.metadata, call.spec.scale, call.spec.window, call.spec.softcap)
        if self._planned.get(phase) == key:
            return False
        self._planned[phase] = key
        return True


def _workspace(device: torch.device) -> torch.Tensor:
    """Zeros, as the package wants it the first time."""
    return torch.zeros(_WORKSPACE, dtype=torch.uint8, device=device)


def _paged(kv: KvLayer) -> torch.Tensor:
    """[slots + 1, 2, 1, kv_heads, head_dim]: pages, keys and values, tokens of a page."""
    return kv.data.unflatten(1, (2, 1, kv.kv_heads))


def _shape(call: AttentionCall) -> tuple[int, int, int, int]:
    """Query heads, KV heads, head dimension, tokens of a page."""
    return call.q.shape[1], call.kv.kv_heads, call.q.shape[2], 1


def _pages(
    metadata: AttentionMetadata, first: int, last: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Starts of the entries' pages, the pages, and the tokens in each last page."""

    def make() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        lengths, table = metadata.kv_len[first:last], page_table(metadata, first, last)
        inside = torch.arange(table.shape[1], device=table.device) < lengths[:, None]
        starts = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        return starts, table[inside], torch.ones_like(lengths)

    return metadata.once(("flashinfer pages", first, last), make)


def _options(call: AttentionCall) -> dict[str, Any]:
    spec = call.spec
    return {
        "sm_scale": spec.scale,
        "window_left": spec.window - 1 if spec.window else -1,
        "logits_soft_cap": spec.softcap or None,
        "q_data_type": call.q.dtype,
    }
