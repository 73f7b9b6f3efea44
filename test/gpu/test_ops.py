"""Every operation on the GPU against its torch form in float64, at real sizes, on memory that was poisoned."""

from __future__ import annotations

import pytest
import torch
from ops.test_round_inputs import Case
from support import broken_logits
from support.kv import layer

from lightllm.layers.rotary import RotaryTable
from lightllm.ops import sample
from lightllm.ops.attention_backends.choice import make_attention_backends
from lightllm.ops.batch import make_batch
from lightllm.ops.embedding import embedding
from lightllm.ops.gated_activation import silu_and_mul
from lightllm.ops.linear import PlainLinear, float32_linear
from lightllm.ops.rms_norm import fused_add_rms_norm, rms_norm
from lightllm.ops.rotary import rotary_and_write_kv, rotary_embedding
from lightllm.ops.round_inputs import build_round_inputs
from lightllm.ops.sample import (
    greedy_tokens,
    sample_filtered,
    sample_greedy,
    sample_random,
    token_logprobs,
    top_logprobs,
)
from lightllm.ops.uniforms import uniforms

pytestmark = pytest.mark.usefixtures("poisoned")
CUDA = torch.device("cuda")
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
"""Of ||out - reference|| / ||reference||."""
DTYPES = [torch.bfloat16, torch.float16]
TOKENS = [1, 33, 4096]


def error(out: torch.Tensor, reference: torch.Tensor) -> float:
    assert out.shape == reference.shape and torch.isfinite(out).all()
    return float((out.double() - reference.double()).norm() / reference.double().norm())


def random(generator: torch.Generator, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, device=CUDA, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", TOKENS)
def test_rms_norm_and_the_fused_addition(generator, tokens, dtype):
    x, residual = (random(generator, tokens, 4096, dtype=dtype) for _ in range(2))
    weight = random(generator, 4096, dtype=dtype)

    def reference(y):
        y = y.double()
        return y * (y.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * weight.double()

    assert error(rms_norm(x, weight, 1e-6), reference(x)) < TOLERANCE[dtype]
    total = x + residual
    assert error(fused_add_rms_norm(x, residual, weight, 1e-6), reference(total)) < TOLERANCE[dtype]
    assert torch.equal(residual, total)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", TOKENS)
def test_silu_and_mul(generator, tokens, dtype):
    x = random(generator, tokens, 2 * 14336, dtype=dtype)
    gate, up = x.double().chunk(2, -1)
    assert error(silu_and_mul(x), gate.sigmoid() * gate * up) < TOLERANCE[dtype]


def test_embedding(generator):
    table = random(generator, 128256, 4096, dtype=torch.bfloat16)
    ids = torch.randint(0, 128256, (4096,), device=CUDA, generator=generator)
    assert torch.equal(embedding(ids, table), table[ids])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", TOKENS)
def test_rotary_and_write_kv(generator, tokens, dtype):
    heads, kv_heads, size, slots = 32, 8, 128, 300_000
    qk = random(generator, tokens, heads + kv_heads, size, dtype=dtype)
    v = random(generator, tokens, kv_heads, size, dtype=dtype)
    kv = torch.zeros(slots + 1, 2 * kv_heads, size, dtype=dtype, device=CUDA)
    where = torch.randperm(slots, device=CUDA, generator=generator)[:tokens]
    where[-1] = slots - 1
    positions = torch.randint(0, 100_000, (tokens,), device=CUDA, generator=generator)
    cos, sin = RotaryTable(size, 5e5, {"rope_type": "default"}, dtype, CUDA).lookup(positions, 100_000)
    q = rotary_and_write_kv(qk, v, cos, sin, layer(kv), where)
    rotated = rotary_embedding(*(part.double().cpu() for part in (qk, cos, sin))).to(CUDA)
    assert error(q, rotated[:, :heads]) < TOLERANCE[dtype]
    assert error(kv[where][:, :kv_heads], rotated[:, heads:]) < TOLERANCE[dtype]
    assert torch.equal(kv[where][:, kv_heads:], v)
    kept = rotary_and_write_kv(qk, v, cos, sin, layer(kv), where, keep_keys=True)
    assert torch.equal(kept[:, :heads], q) and torch.equal(kept[:, heads:], kv[where][:, :kv_heads])
    kv[where] = 0
    assert not kv.any(), "another slot was written"


ATTENTION = {
    "decode, batch 1, long": ([1], [16384], 1),
    "decode, batch 64, ragged": ([1] * 64, [1 + 61 * i for i in range(64)], 64),
    "decode, batch 256": ([1] * 256, [500] * 256, 256),
    "prefill of 4096": ([4096], [4096], 0),
    "chunks behind prefixes": ([512, 1, 129], [2048, 1000, 129], 0),
    "decode beside a chunk": ([1] * 31 + [1000], [1 + 40 * i for i in range(31)] + [3000], 31),
}


@pytest.mark.parametrize("heads", [(32, 32, 128), (32, 8, 128), (40, 8, 64), (8, 1, 256)])
@pytest.mark.parametrize("name", ATTENTION)
def test_attention_over_shuffled_slots(generator, one_layer, name, heads):
    q_lens, kv_lens, num_decode = ATTENTION[name]
    query_heads, kv_heads, size = heads
    model, form = one_layer(query_heads, kv_heads, size)
    slots = sum(kv_lens) + 1000
    kv = random(generator, slots + 1, 2 * kv_heads, size, dtype=torch.bfloat16)
    table = torch.full((len(q_lens) + 1, max(kv_lens)), slots, dtype=torch.int32, device=CUDA)
    order = torch.randperm(slots, device=CUDA, generator=generator).to(torch.int32)
    ends = torch.tensor(kv_lens).cumsum(0).tolist()
    for row, (kv_len, end) in enumerate(zip(kv_lens, ends)):
        table[row, :kv_len] = order[end - kv_len : end]
    ids = torch.zeros(sum(q_lens), dtype=torch.int64, device=CUDA)
    batch = make_batch(ids, list(range(len(q_lens))), q_lens, kv_lens, num_decode, table, [layer(kv)])
    model.prepare(batch)
    q = random(generator, sum(q_lens), query_heads, size, dtype=torch.bfloat16)
    backends = make_attention_backends("triton", CUDA)
    out = backends.attend(q, layer(kv), batch.attention, form).view(q.shape)
    start = 0
    for row, (q_len, kv_len) in enumerate(zip(q_lens, kv_lens)):
        if row < 4 or row == len(q_lens) - 1:  # a reference in float32 for a few of them
            context = kv[table[row, :kv_len].long()].float().transpose(0, 1)
            group = query_heads // kv_heads
            keys, values = (part.repeat_interleave(group, 0) for part in context.chunk(2))
            scores = q[start : start + q_len].float().transpose(0, 1) @ keys.transpose(1, 2) * form.scale
            later = torch.ones(q_len, kv_len, dtype=torch.bool, device=CUDA).triu(kv_len - q_len + 1)
            expected = (scores.masked_fill(later, -torch.inf).softmax(-1) @ values).transpose(0, 1)
            assert error(out[start : start + q_len], expected) < 1e-2
        start += q_len


@pytest.fixture
def one_layer():
    from benchmark.gpu.attention import Heads, _one_layer

    from lightllm.ops.attention_spec import AttentionSpec

    def make(query, kv, size):
        return _one_layer(CUDA, Heads(query, kv, size), dry=False), AttentionSpec(size**-0.5)

    return make


def test_logits_that_are_no_numbers_are_seen_in_their_row_alone():
    broken_logits.check(sample, list(broken_logits.BROKEN), 4096, "cuda")


@pytest.mark.parametrize("rows", [1, 64, 256])
def test_sampling_equals_the_cpu(generator, rows):
    vocab = 128256
    logits = torch.randn(rows, vocab, device=CUDA, generator=generator) * 4
    logits[:, 100:110] = logits.amax(1, keepdim=True)  # ties: the lowest id wins
    scratch = torch.full_like(logits, float("nan"))
    numbers = torch.rand(rows, device=CUDA, generator=generator, dtype=torch.float64) * 0.999 + 0.0005
    on_cpu, cpu_scratch = logits.cpu(), torch.empty(rows, vocab)
    assert torch.equal(greedy_tokens(logits)[0].cpu(), greedy_tokens(on_cpu)[0])
    ids, logprobs = sample_greedy(logits.clone(), scratch)
    assert torch.equal(ids.cpu(), greedy_tokens(on_cpu)[0])
    torch.testing.assert_close(logprobs.cpu(), token_logprobs(on_cpu, ids.cpu()), atol=1e-4, rtol=1e-4)
    top_k = torch.randint(1, 200, (rows,), device=CUDA, generator=generator)
    top_p = torch.rand(rows, device=CUDA, generator=generator, dtype=torch.float64) * 0.7 + 0.3
    min_p = torch.rand(rows, device=CUDA, generator=generator, dtype=torch.float64) * 0.1
    top_k[: rows // 2] = vocab
    here = sample_filtered(logits.clone(), numbers, top_k, top_p, min_p, scratch)
    there = sample_filtered(on_cpu, numbers.cpu(), top_k.cpu(), top_p.cpu(), min_p.cpu(), cpu_scratch)
    assert (here[0].cpu() != there[0]).float().mean() <= 0.02, (
        "sums of other orders may differ in the last bit"
    )
    here = sample_random(logits.clone(), numbers, scratch)
    there = sample_random(on_cpu, numbers.cpu(), cpu_scratch)
    assert (here[0].cpu() != there[0]).float().mean() <= 0.02
    torch.testing.assert_close(here[1].cpu(), token_logprobs(on_cpu, here[0].cpu()), atol=1e-3, rtol=1e-3)
    ids, values = top_logprobs(logits, 20)
    torch.testing.assert_close(values.cpu(), top_logprobs(on_cpu, 20)[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits.log_softmax(1).gather(1, ids), values, atol=1e-4, rtol=1e-4)


def test_uniforms_are_those_of_the_cpu(generator):
    seeds = torch.randint(-(2**62), 2**62, (1000,), device=CUDA, generator=generator)
    choices = torch.randint(0, 128, (1000,), device=CUDA, generator=generator)
    positions = torch.randint(0, 1 << 20, (1000,), device=CUDA, generator=generator)
    expected = uniforms(seeds.cpu(), choices.cpu(), positions.cpu())
    assert torch.equal(uniforms(seeds, choices, positions).cpu(), expected)


def test_round_inputs_of_a_large_mixed_round():
    case = Case(
        [1] * 200 + [4000, 96], [1 + i for i in range(200)] + [9000, 96], 200, max_rows=1000, max_len=16384,
        device=CUDA,
    )  # fmt: skip
    for result, expected in zip(case.run(build_round_inputs), case.expected(), strict=True):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("rows", [1, 33, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_are_sums_in_float32(generator, rows, dtype):
    x, weight = random(generator, rows, 4096, dtype=dtype), random(generator, 32001, 4096, dtype=dtype)
    logits = float32_linear(x, PlainLinear(weight, None))
    assert logits.dtype == torch.float32
    assert error(logits, x.double() @ weight.double().T) < 1e-4
