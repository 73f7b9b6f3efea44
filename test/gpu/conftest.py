"""Tests on a real GPU: correctness at real sizes, and what only a device can show. Skipped without one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="torch finds no GPU"))


@pytest.fixture
def generator() -> torch.Generator:
    """Fresh numbers for every run; the seed is in the output of a failed test."""
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    return torch.Generator("cuda").manual_seed(seed)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """What torch hands out next is full of NaN: an element that nobody wrote shows."""
    blocks = [
        torch.full((1 << size,), float("nan"), device="cuda") for size in range(8, 27) for _ in range(3)
    ]
    del blocks
    yield


@pytest.fixture(autouse=True)
def _memory_given_back() -> Iterator[None]:
    """Tests in other processes need it: what one has used stays in its process's cache otherwise."""
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
