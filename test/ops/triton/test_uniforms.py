"""The kernel of counter-based random numbers: bit for bit those of the CPU."""

import pytest
import torch
from support.kernels import DEVICE

from lightllm.ops.triton.uniforms import uniforms
from lightllm.ops.uniforms import uniforms as on_cpu


@pytest.mark.parametrize("count", [0, 1, 33, 129])
def test_numbers_equal_those_of_the_cpu(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    seeds = torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator)
    choices = torch.randint(2**31, (count,), generator=generator)
    positions = torch.randint(2**20, (count,), generator=generator)
    result = uniforms(seeds.to(DEVICE), choices.to(DEVICE), positions.to(DEVICE))
    assert torch.equal(result.cpu(), on_cpu(seeds, choices, positions))
