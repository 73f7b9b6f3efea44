"""Multi-head latent attention written as plainly as possible, and random batches to compare implementations with it."""

from typing import Protocol

import torch

from lightllm.ops.attention_metadata import AttentionMetadata
from lightllm.ops.kv_layer import KvLayer
from support.attention_cases import AttentionCase

LATENT, ROPE, NOPE, VALUE = 24, 8, 12, 16
SCALE = 0.2


class MlaOps(Protocol):
    """The three operations, of one implementation."""

    def mla_decode_attention(self, q, kv, metadata, scale, out) -> None: ...
    def mla_context(self, kv, metadata) -> torch.Tensor: ...
    def mla_prefill_attention(self, q, k, v, metadata, scale, out) -> None: ...


class MlaCase:
    """A batch with random contents; KV slots that belong to nobody are NaN."""

    def __init__(
        self,
        kv_lens: list[int],
        q_lens: list[int],
        num_decode: int,
        layout: str = "run",
        heads: int = 5,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.slots = AttentionCase(kv_lens, q_lens, num_decode, layout, heads=(heads, 1))
        self.heads = heads
        generator = torch.Generator().manual_seed(1)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        used = torch.tensor([slot for table in self.slots.tables for slot in table])
        self.kv = torch.full((self.slots.kv.shape[0], 1, LATENT + ROPE), float("nan"), dtype=dtype)
        self.kv[used] = random(len(used), 1, LATENT + ROPE).to(dtype)
        self.q = random(sum(q_lens), heads, NOPE + ROPE).to(dtype)
        self.up_k = random(heads, NOPE, LATENT).to(dtype) / LATENT**0.5
        self.up_v = random(heads, VALUE, LATENT).to(dtype) / LATENT**0.5

    def expected(self) -> torch.Tensor:
        """float64 [T, heads, value_dim]: keys and values of every head written out."""
        outputs: list[torch.Tensor] = []
        for table, q_len in zip(self.slots.tables, self.slots.q_lens):
            for position in range(len(table) - q_len, len(table)):
                context = self.kv[table[: position + 1], 0].double()
                latents, rope = context[:, :LATENT], context[:, LATENT:]
                q = self.q[len(outputs)].double()
                rows = []
                for head in range(self.heads):
                    keys = torch.cat((latents @ self.up_k[head].double().T, rope), -1)
                    weights = (keys @ q[head] * SCALE).softmax(0)
                    rows.append(weights @ (latents @ self.up_v[head].double().T))
                outputs.append(torch.stack(rows))
        return torch.stack(outputs)

    def layer_on(self, device: torch.device) -> KvLayer:
        return KvLayer(self.kv.to(device), 0)

    def computed(
        self, ops: MlaOps, metadata: AttentionMetadata, device: torch.device, expanded: int = 1 << 30
    ) -> torch.Tensor:
        """[T, heads, value_dim] through both forms, with the up-projections that a layer would do around them; contexts
        are expanded `expanded` tokens at a time."""
        q, up_k, up_v = (tensor.to(device) for tensor in (self.q, self.up_k, self.up_v))
        kv = self.layer_on(device)
        latent = torch.full((len(q), self.heads, LATENT), float("nan"), device=device, dtype=q.dtype)
        absorbed = torch.einsum("thn,hnl->thl", q[..., :NOPE], up_k)
        ops.mla_decode_attention(torch.cat((absorbed, q[..., NOPE:]), -1), kv, metadata, SCALE, latent)
        out = torch.einsum("thl,hvl->thv", latent, up_v)
        for piece in metadata.prefill_pieces(expanded):
            context = ops.mla_context(kv, piece)
            keys = torch.einsum("cl,hnl->chn", context[:, :LATENT], up_k)
            rope = context[:, None, LATENT:].expand(-1, self.heads, -1)
            values = torch.einsum("cl,hvl->chv", context[:, :LATENT], up_v)
            ops.mla_prefill_attention(q, torch.cat((keys, rope), -1), values, piece, SCALE, out)
        return out.cpu()
