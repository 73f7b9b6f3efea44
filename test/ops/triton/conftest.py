"""These tests run under Triton's interpreter where there is no GPU, else on the GPU (TRITON_INTERPRET=1: interpreter).

The short form has every value of every parameter; all combinations are in the long form.
"""

from pathlib import Path

import pytest
import torch
from support import covering
from support.kernels import INTERPRETED


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    short = [
        item
        for item in items
        if Path(__file__).parent in item.path.parents and not item.get_closest_marker("slow")
    ]
    for item in covering.split(short)[1]:
        item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _somewhere_to_run() -> None:
    if not INTERPRETED and not torch.cuda.is_available():
        pytest.skip("torch finds no GPU and TRITON_INTERPRET=1 is not set")
