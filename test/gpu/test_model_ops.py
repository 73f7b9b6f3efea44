"""The operations that only some models use, on the GPU at real sizes, on memory that was poisoned."""

from __future__ import annotations

import pytest
import torch
from gpu.test_ops import CUDA, DTYPES, TOKENS, TOLERANCE, error, random
from support.kv import layer
from support.moe_cases import FORMS

from lightllm.ops.gated_activation import gelu_and_mul, silu_and_mul
from lightllm.ops.layer_norm import fused_add_layer_norm, layer_norm
from lightllm.ops.moe_experts import run_experts
from lightllm.ops.moe_routing import choose_experts
from lightllm.ops.packed_experts import Expert, pack_experts
from lightllm.ops.penalties import grow_end_tokens_, penalize_tokens_
from lightllm.ops.rotary import rotary_and_write_kv, rotary_embedding
from lightllm.ops.token_bitmask import keep_allowed_
from lightllm.ops.write_kv import write_kv

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", TOKENS)
def test_layer_norm_and_the_fused_addition(generator, tokens, dtype):
    x, residual = (random(generator, tokens, 8192, dtype=dtype) for _ in range(2))
    weight, bias = (random(generator, 8192, dtype=dtype) for _ in range(2))

    def reference(y):
        return torch.nn.functional.layer_norm(y.double(), y.shape[-1:], weight.double(), bias.double(), 1e-5)

    assert error(layer_norm(x, weight, bias, 1e-5), reference(x)) < TOLERANCE[dtype]
    total = x + residual
    assert error(fused_add_layer_norm(x, residual, weight, bias, 1e-5), reference(total)) < TOLERANCE[dtype]
    assert torch.equal(residual, total)


@pytest.mark.parametrize("approximate", ["tanh", "none"])
@pytest.mark.parametrize("tokens", TOKENS)
def test_gelu_and_mul(generator, tokens, approximate):
    x = random(generator, tokens, 2 * 14336, dtype=torch.bfloat16)
    gate, up = x.double().chunk(2, -1)
    expected = torch.nn.functional.gelu(gate, approximate=approximate) * up
    assert error(gelu_and_mul(x, approximate), expected) < TOLERANCE[x.dtype]


@pytest.mark.parametrize("tokens", TOKENS)
def test_write_kv(generator, tokens):
    heads, size, slots = 32, 128, 100_000
    qkv = random(generator, tokens, 3 * heads, size, dtype=torch.bfloat16)
    kv = torch.zeros(slots + 1, 2 * heads, size, dtype=torch.bfloat16, device=CUDA)
    where = torch.randperm(slots, device=CUDA, generator=generator)[:tokens]
    write_kv(qkv[:, heads : 2 * heads], qkv[:, 2 * heads :], layer(kv), where)
    assert torch.equal(kv[where], qkv[:, heads:])
    kv[where] = 0
    assert not kv.any(), "another slot was written"


@pytest.mark.parametrize(
    ("size", "rotated", "interleaved"), [(128, 64, True), (80, 20, False), (256, 256, False)]
)
@pytest.mark.parametrize("tokens", TOKENS)
def test_norms_of_heads_and_parts_of_heads_in_the_rotation(generator, tokens, size, rotated, interleaved):
    heads, kv_heads, dtype = 12, 4, torch.bfloat16
    qk = random(generator, tokens, heads + kv_heads, size, dtype=dtype)
    v, weight = random(generator, tokens, kv_heads, size, dtype=dtype), random(generator, size, dtype=dtype)
    angles = torch.randn(tokens, 1, rotated, device=CUDA, generator=generator)
    if interleaved:
        angles = angles[..., ::2].repeat_interleave(2, -1)
    else:
        angles = torch.cat((angles[..., : rotated // 2],) * 2, -1)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    kv = torch.zeros(tokens + 1, 2 * kv_heads, size, dtype=dtype, device=CUDA)
    where = torch.randperm(tokens, device=CUDA, generator=generator)
    q = rotary_and_write_kv(qk, v, cos, sin, layer(kv), where, interleaved, weight, 1e-6)
    normed = qk.double()
    normed = normed * (normed.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * weight.double()
    expected = rotary_embedding(*(part.double().cpu() for part in (normed, cos, sin)), interleaved).to(CUDA)
    assert error(q, expected[:, :heads]) < TOLERANCE[dtype]
    assert error(kv[where][:, :kv_heads], expected[:, heads:]) < TOLERANCE[dtype]


@pytest.mark.parametrize("rows", [1, 33, 256])
def test_penalties_and_growing_end_tokens(generator, rows):
    vocab, listed = 128256, 3000
    logits = torch.randn(2 * rows, vocab, device=CUDA, generator=generator)
    entries = torch.randperm(2 * rows, device=CUDA, generator=generator)[:rows]
    ids = torch.randperm(vocab, device=CUDA, generator=generator)[:listed].expand(rows, -1).contiguous()
    counts = torch.randint(0, 4, (rows, listed), device=CUDA, generator=generator).float()
    factors = [torch.rand(rows, device=CUDA, generator=generator) + 0.5 for _ in range(3)]
    growth = torch.rand(rows, device=CUDA, generator=generator)
    arguments = [(entries, ids, counts, *factors), (entries, ids[:, 0], growth)]
    expected = logits.cpu()
    penalize_tokens_(expected, *(part.cpu() for part in arguments[0]))
    grow_end_tokens_(expected, *(part.cpu() for part in arguments[1]))
    penalize_tokens_(logits, *arguments[0])
    grow_end_tokens_(logits, *arguments[1])
    torch.testing.assert_close(logits.cpu(), expected)


@pytest.mark.parametrize("rows", [1, 33, 256])
@pytest.mark.parametrize("vocab", [128256, 151937])
def test_tokens_that_a_bitmask_allows(generator, rows, vocab):
    logits = torch.randn(2 * rows, vocab, device=CUDA, generator=generator)
    entries = torch.randperm(2 * rows, device=CUDA, generator=generator)[:rows]
    shape, words = (rows, (vocab + 31) // 32), torch.iinfo(torch.int32)
    bitmask = torch.randint(words.min, words.max, shape, dtype=torch.int32, device=CUDA, generator=generator)
    expected = logits.cpu()
    keep_allowed_(expected, entries.cpu(), bitmask.cpu())
    keep_allowed_(logits, entries, bitmask)
    assert torch.equal(logits.cpu(), expected)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("tokens", TOKENS)
def test_the_experts_of_each_token(generator, tokens, name):
    form = FORMS[name]
    logits = torch.randn(tokens, form.num_experts, device=CUDA, generator=generator)
    biased = form.scoring == "sigmoid"
    bias = torch.randn(form.num_experts, device=CUDA, generator=generator) if biased else None
    weights, experts = choose_experts(logits, form, bias)
    expected = choose_experts(logits.cpu(), form, None if bias is None else bias.cpu())
    scores = logits.cpu().double()
    if form.scoring == "softmax":
        scores = scores.softmax(-1)
    elif bias is not None:
        scores = scores.sigmoid() + bias.cpu()
    # Where two experts are as good as each other but for rounding, either may come first.
    clear = scores.sort(-1).values.diff(dim=-1).amin(-1) > 1e-6
    assert clear.double().mean() > 0.95 or tokens < 100
    assert torch.equal(experts.cpu()[clear], expected[1].to(experts.dtype)[clear])
    torch.testing.assert_close(weights.cpu()[clear], expected[0][clear], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 33, 2000])
def test_a_mixture_of_128_experts(generator, tokens):
    count, top_k, hidden, width, dtype = 128, 8, 2048, 768, torch.bfloat16
    gate_up = random(generator, count, 2 * width, hidden, dtype=dtype) / hidden**0.5
    down = random(generator, count, hidden, width, dtype=dtype) / width**0.5
    x = random(generator, tokens, hidden, dtype=dtype)
    scores = torch.rand(tokens, count, device=CUDA, generator=generator)
    weights, experts = (part.contiguous() for part in scores.topk(top_k))
    experts = experts.int()
    packed = pack_experts(CUDA, count, lambda number: Expert(gate_up[number], down[number]))
    out = run_experts(x, weights, experts, packed, silu_and_mul)
    expected = torch.zeros(tokens, hidden, device=CUDA)
    for number in range(count):
        token, place = (experts == number).nonzero(as_tuple=True)
        gate, up = (x[token].float() @ gate_up[number].float().T).chunk(2, -1)
        result = (gate.sigmoid() * gate * up) @ down[number].float().T
        expected.index_add_(0, token, result * weights[token, place][:, None])
    assert error(out, expected) < TOLERANCE[dtype]
