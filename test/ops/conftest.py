"""Same random numbers in every run; operations of a CPU with its own kernels and without."""

import pytest
import torch

from lightllm.ops.cpu.library import load_kernels
from lightllm.ops.cpu.rows import RowKernels


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["kernel", "torch"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(RowKernels, "find", lambda self, dtype: None)
    else:
        assert load_kernels()
    return request.param
