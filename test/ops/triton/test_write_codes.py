"""The kernel that writes keys and values as codes, against the one in torch."""

import pytest
import torch
from support.kernels import DEVICE, DTYPES

from lightllm.ops.kv_codes import INT8, quantize
from lightllm.ops.kv_layer import KvLayer
from lightllm.ops.triton.write_codes import write_codes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kv_heads", "head_dim"), [(2, 64), (1, 80), (12, 16)])
def test_codes_and_scales_are_those_of_torch(dtype: torch.dtype, kv_heads: int, head_dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = 3 * torch.randn(5, 3 * kv_heads, head_dim, generator=generator).to(dtype)
    drawn[1, kv_heads], drawn[2, kv_heads, 3], drawn[3, -1, 1] = 0, float("nan"), float("inf")
    k, v = drawn.split(kv_heads, 1)[1:]
    slots = torch.tensor([3, 11, 2, 19, 7])
    data = torch.full((20, 2 * kv_heads, head_dim), 7, dtype=torch.int8, device=DEVICE)
    scales = torch.full((20, 2 * kv_heads, 1), 9.0, dtype=torch.bfloat16, device=DEVICE)
    write_codes(k.to(DEVICE), v.to(DEVICE), KvLayer(data, kv_heads, scales), slots.to(DEVICE))
    codes, expected = quantize(torch.cat((k, v), 1), INT8)
    data, scales = data.cpu(), scales.cpu()
    finite = expected.isfinite()
    assert torch.equal(scales[slots].isfinite(), finite)
    assert torch.equal(scales[slots][finite], expected[finite])
    off = (data[slots].int() - codes.int()).abs()[finite[..., 0]]
    assert off.max() <= 1 and (off > 0).float().mean() < 0.01
    others = [slot for slot in range(20) if slot not in slots.tolist()]
    assert (data[others] == 7).all() and (scales[others] == 9).all()
