"""FlashAttention-3's `flash_attn_with_kvcache` with a page table whose pages are slots. Hopper only."""

from __future__ import annotations

import torch

from lightllm.errors import InvalidOption
from lightllm.ops.attention_backends.optional_package import import_package, is_common, page_table
from lightllm.ops.attention_backends.protocol import AttentionCall


class Fa3Attention:
    graphs = True
    dense_prefill = False
    takes = staticmethod(is_common)

    def __init__(self, device: torch.device) -> None:
        self._attend = import_package("fa3", "flash_attn_interface").flash_attn_with_kvcache
        if torch.cuda.get_device_capability(device)[0] != 9:
            raise InvalidOption(
                "--attention_backend fa3 needs a Hopper GPU.", "Use triton or flashinfer on this one."
            )

    def decode(self, call: AttentionCall) -> None:
        metadata = call.metadata
        n, tokens = metadata.num_decode, metadata.num_decode_tokens
        longest = 1 if tokens == n else metadata.max_q_len
        self._run(call, slice(tokens), slice(n), metadata.q_start[: n + 1], longest)

    def prefill(self, call: AttentionCall) -> None:
        metadata = call.metadata
        n, tokens = metadata.num_decode, metadata.num_decode_tokens
        starts = metadata.once(("fa3 starts",), lambda: metadata.q_start[n:] - tokens)
        self._run(call, slice(tokens, None), slice(n, len(metadata.rows)), starts, metadata.max_q_len)

    def _run(
        self, call: AttentionCall, tokens: slice, entries: slice, starts: torch.Tensor, max_q_len: int
    ) -> None:
        q, kv, metadata, spec, out, _ = call
        attended = self._attend(
            q[tokens],
            kv.keys[:, None],
            kv.values[:, None],
            cache_seqlens=metadata.kv_len[entries],
            page_table=page_table(metadata, entries.start or 0, entries.stop),
            cu_seqlens_q=starts,
            max_seqlen_q=max_q_len,
            softmax_scale=spec.scale,
            causal=True,
            window_size=(spec.window - 1 if spec.window else -1, 0 if spec.window else -1),
            softcap=spec.softcap,
        )
        out[tokens].copy_(attended)
