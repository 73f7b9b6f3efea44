"""These tests run under Triton's interpreter where there is no GPU, else on the GPU (TRITON_INTERPRET=1: interpreter)."""

import pytest
import torch
from support.kernels import INTERPRETED


@pytest.fixture(autouse=True)
def _somewhere_to_run() -> None:
    if not INTERPRETED and not torch.cuda.is_available():
        pytest.skip("torch finds no GPU and TRITON_INTERPRET=1 is not set")
