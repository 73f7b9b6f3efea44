"""FlashAttention-3's `flash_attn_with_kvcache` with a page table whose pages are slots. Hopper only."""

from __future__ import annotations

import torch

from lightllm.errors import InvalidOption
from lightllm.ops.attention_backends.optional_package import import_package, is_common
from lightllm.ops.attention_metadata import AttentionMetadata
from lightllm.ops.attention_spec import AttentionSpec
from lightllm.ops.kv_layer import KvLayer


class Fa3Attention:
    graphs = True
    dense_prefill = False

    def __init__(self, device: torch.device) -> None:
        self._attend = import_package("fa3", "flash_attn_interface").flash_attn_with_kvcache
        if torch.cuda.get_device_capability(device)[0] != 9:
            raise InvalidOption(
                "--attention_backend fa3 needs a Hopper GPU.", "Use triton or flashinfer on this one."
            )

    def takes(self, spec: AttentionSpec, kv: KvLayer) -> bool:
        return is_common(spec, kv)

    def decode(
        self,
        q: torch.Tensor,
        kv: KvLayer,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
        out: torch.Tensor,
    ) -> None:
        n, tokens = metadata.num_decode, metadata.num_decode_tokens
        longest = 1 if tokens == n else metadata.max_q_len
        self._run(q[:tokens], kv, metadata, spec, out[:tokens], 0, n, metadata.q_start[: n + 1], longest)

    def prefill(
        self,
        q: torch.Tensor,
        kv: KvLayer,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
        out: torch.Tensor,
        dense: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> None:
        n, tokens = metadata.num_decode, metadata.num_decode_tokens
        starts = metadata.once(("fa3 starts",), lambda: metadata.q_start[n:] - tokens)
        last = len(metadata.rows)
        self._run(q[tokens:], kv, metadata, spec, out[tokens:], n, last, starts, metadata.max_q_len)

    def _run(
        self,
        q: torch.Tensor,
        kv: KvLayer,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
        out: torch.Tensor,
        first: int,
        last: int,
        starts: torch.Tensor,
        max_q_len: int,
    ) -> None:
        """Entries first .. last - 1, whose tokens are those of q and out."""
        pages = metadata.once(
            ("fa3 pages", first, last),
            lambda: metadata.req_to_token[:, : metadata.max_kv_len].index_select(
                0, metadata.rows[first:last]
            ),
        )
        attended = self._attend(
            q,
            kv.keys[:, None],
            kv.values[:, None],
            cache_seqlens=metadata.kv_len[first:last],
            page_table=pages,
            cu_seqlens_q=starts,
            max_seqlen_q=max_q_len,
            softmax_scale=spec.scale,
            causal=True,
            window_size=(spec.window - 1 if spec.window else -1, 0 if spec.window else -1),
            softcap=spec.softcap,
        )
        out.copy_(attended)
