"""Keys and values as codes: what is read back, how much room they take, and how they are written into KV memory."""

import math

import pytest
import torch

from lightllm.ops.kv_codes import FORMATS, dequantize, quantize
from lightllm.ops.kv_layer import KvLayer
from lightllm.ops.rotary import rotary_and_write_kv
from lightllm.ops.write_kv import write_kv

ERROR = {"int8kv": 0.51 / 127, "fp8kv": 2**-4, "int4kv": 0.51 / 7}
"""Of a number, in units of the largest of its group."""


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) * torch.rand(*shape[:-1], 1, generator=generator) * 9


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_read_back_is_off_by_half_a_step_at_most(name: str, dtype: torch.dtype) -> None:
    x = drawn(50, 6, 64).to(dtype)
    codes, scales = quantize(x, FORMATS[name])
    largest = x.float().unflatten(-1, (scales.shape[-1], -1)).abs().amax(-1, keepdim=True)
    error = (dequantize(codes, scales, torch.float32) - x.float()).unflatten(-1, (scales.shape[-1], -1)).abs()
    assert (error / largest).max() <= ERROR[name]
    assert codes.dtype == FORMATS[name].dtype and scales.dtype == torch.bfloat16


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_stay_zeros_and_what_is_not_finite_stays_so_in_its_head_alone(name: str) -> None:
    x = drawn(4, 2, 32)
    x[0], x[1, 0, 3], x[2, 1, 5] = 0, math.nan, math.inf
    back = dequantize(*quantize(x, FORMATS[name]), torch.float32)
    assert (back[0] == 0).all() and back[3].isfinite().all()
    assert not back[1, 0].isfinite().all() and back[1, 1].isfinite().all()
    assert not back[2, 1].isfinite().all() and back[2, 0].isfinite().all()


@pytest.mark.parametrize(("head_dim", "gain"), [(64, 1.93), (80, 1.95), (128, 1.96), (256, 1.98)])
def test_int8_holds_nearly_twice_the_tokens_of_16_bits(head_dim: int, gain: float) -> None:
    assert 2 * head_dim / FORMATS["int8kv"].bytes_per_head(head_dim) > gain


def empty_layer(name: str, kv_heads: int, head_dim: int, slots: int = 20) -> KvLayer:
    codes, scales = quantize(torch.full((slots, 2 * kv_heads, head_dim), 7.0), FORMATS[name])
    return KvLayer(codes, kv_heads, scales)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_keys_and_values_are_written_as_codes_to_their_slots_alone(name: str, dtype: torch.dtype) -> None:
    k, v = drawn(5, 2, 64).to(dtype), drawn(5, 2, 64, seed=1).to(dtype)
    slots = torch.tensor([3, 11, 2, 19, 7])
    kv = empty_layer(name, 2, 64)
    write_kv(k, v, kv, slots)
    expected, back = torch.cat((k, v), 1), kv.read(slots, torch.float32)
    one_code = dequantize(*quantize(expected, FORMATS[name]), torch.float32)
    assert kv.scales is not None and torch.equal(kv.scales[slots], quantize(expected, FORMATS[name])[1])
    assert (back - one_code).abs().max() <= 1.01 * kv.scales[slots].float().max()
    assert (back - expected.float()).norm() < 1.01 * (one_code - expected.float()).norm() + 1e-6
    others = [slot for slot in range(20) if slot not in slots.tolist()]
    assert torch.equal(
        kv.read(torch.tensor(others), torch.float32),
        empty_layer(name, 2, 64).read(torch.tensor(others), torch.float32),
    )


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotated_keys_are_written_as_they_are_written_without_rotation(name: str, dtype: torch.dtype) -> None:
    qk, v = drawn(5, 6, 64).to(dtype), drawn(5, 2, 64, seed=1).to(dtype)
    angles = torch.linspace(0, 3, 5 * 32).view(5, 1, 32)
    cos, sin = (torch.cat((f(angles), f(angles)), -1).to(dtype) for f in (torch.cos, torch.sin))
    slots = torch.tensor([3, 11, 2, 19, 7])
    rotated_into, kv = empty_layer(name, 2, 64), empty_layer(name, 2, 64)
    rotated = rotary_and_write_kv(qk, v, cos, sin, rotated_into, slots, keep_keys=True)
    queries = rotary_and_write_kv(qk, v, cos, sin, rotated_into, slots)
    write_kv(rotated[:, 4:], v, kv, slots)
    assert torch.equal(queries, rotated[:, :4])
    assert torch.equal(kv.read(slots, torch.float32), rotated_into.read(slots, torch.float32))
