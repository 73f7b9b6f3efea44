"""Multi-head latent attention on a CPU against a loop over tokens in float64, and its two forms against each other."""

import pytest
import torch
from support.attention_cases import LONG, SHORT, AttentionCase

from lightllm.ops.attention_plan import AttentionPlan, plan_attention
from lightllm.ops.mla_decode_attention import mla_decode_attention
from lightllm.ops.mla_prefill_attention import mla_context, mla_prefill_attention

HEADS, LATENT, ROPE, NOPE, VALUE = 5, 24, 8, 12, 16
SCALE = 0.2


class MlaCase:
    def __init__(self, kv_lens: list[int], q_lens: list[int], num_decode: int, layout: str = "run") -> None:
        self.slots = AttentionCase(kv_lens, q_lens, num_decode, layout, heads=(HEADS, 1))
        generator = torch.Generator().manual_seed(1)
        used = torch.tensor([slot for table in self.slots.tables for slot in table])
        self.kv = torch.full((self.slots.kv.shape[0], 1, LATENT + ROPE), float("nan"))
        self.kv[used] = torch.randn(len(used), 1, LATENT + ROPE, generator=generator)
        self.q = torch.randn(sum(q_lens), HEADS, NOPE + ROPE, generator=generator)
        self.up_k = torch.randn(HEADS, NOPE, LATENT, generator=generator) / LATENT**0.5
        self.up_v = torch.randn(HEADS, VALUE, LATENT, generator=generator) / LATENT**0.5

    def plan(self, token_bytes: int = LONG) -> AttentionPlan:
        s = self.slots
        return plan_attention(
            s.rows, s.q_lens, s.kv_lens, s.num_decode, s.req_to_token, self.q.dtype, token_bytes
        )

    def expected(self) -> torch.Tensor:
        """float64 [T, heads, value_dim]: keys and values of every head written out."""
        outputs: list[torch.Tensor] = []
        for table, q_len in zip(self.slots.tables, self.slots.q_lens):
            for position in range(len(table) - q_len, len(table)):
                context = self.kv[table[: position + 1], 0].double()
                latents, rope = context[:, :LATENT], context[:, LATENT:]
                q = self.q[len(outputs)].double()
                rows = []
                for head in range(HEADS):
                    keys = torch.cat((latents @ self.up_k[head].double().T, rope), -1)
                    weights = (keys @ q[head] * SCALE).softmax(0)
                    rows.append(weights @ (latents @ self.up_v[head].double().T))
                outputs.append(torch.stack(rows))
        return torch.stack(outputs)

    def computed(self, token_bytes: int) -> torch.Tensor:
        plan = self.plan(token_bytes)
        latent = torch.full((len(self.q), HEADS, LATENT), float("nan"))
        absorbed = torch.einsum("thn,hnl->thl", self.q[..., :NOPE], self.up_k)
        mla_decode_attention(torch.cat((absorbed, self.q[..., NOPE:]), -1), self.kv, plan, SCALE, latent)
        out = torch.einsum("thl,hvl->thv", latent, self.up_v)
        if plan.prefill:
            context = mla_context(self.kv, plan)
            keys = torch.einsum("cl,hnl->chn", context[:, :LATENT], self.up_k)
            rope = context[:, None, LATENT:].expand(-1, HEADS, -1)
            values = torch.einsum("cl,hvl->chv", context[:, :LATENT], self.up_v)
            mla_prefill_attention(self.q, torch.cat((keys, rope), -1), values, plan, SCALE, out)
        return out


@pytest.mark.parametrize("layout", ["run", "shuffled"])
def test_decode_and_prefill_side_by_side(layout: str) -> None:
    case = MlaCase([40, 1, 8, 7, 25, 33, 1], [1, 1, 1, 1, 25, 10, 1], 4, layout)
    expected = case.expected()
    for token_bytes in (LONG, SHORT):
        torch.testing.assert_close(case.computed(token_bytes).double(), expected, rtol=1e-5, atol=1e-5)


def test_long_chunks_are_computed_in_blocks_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightllm.ops.torch.mla_attention._SCORES", 1)
    case = MlaCase([60, 50], [40, 50], 0)
    torch.testing.assert_close(case.computed(LONG).double(), case.expected(), rtol=1e-5, atol=1e-5)
