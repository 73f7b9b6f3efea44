"""Where the Triton kernels are tested: under Triton's interpreter on the CPU, or on the GPU when there is one."""

import os

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}
"""The interpreter does not round float32 to bfloat16 as a GPU does, and computes `tl.dot` on its raw bits."""
if not INTERPRETED:
    TOLERANCE[torch.bfloat16] = 1.6e-2

DTYPES = list(TOLERANCE)


def assert_close(result: torch.Tensor, expected: torch.Tensor, factor: float = 1.0) -> None:
    """`expected` of any precision; the tolerance is that of the result's dtype, times `factor`."""
    tolerance = TOLERANCE[result.dtype] * factor
    torch.testing.assert_close(result.double(), expected.double(), rtol=tolerance, atol=tolerance)
