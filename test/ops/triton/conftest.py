"""These tests run under Triton's interpreter where there is no GPU, else on the GPU (TRITON_INTERPRET=1: interpreter).

The short form has every value of every parameter; all combinations are in the long form.
"""

from collections.abc import Iterator
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


@pytest.fixture(autouse=True)
def _memory_given_back() -> Iterator[None]:
    """Tests in other processes need it: what one has used stays in its process's cache otherwise."""
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
