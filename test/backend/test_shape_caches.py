"""The libraries' caches of matrix shapes are bounded, and the bound is counted."""

import os
import subprocess
import sys

import pytest

from lightllm.backend.shape_caches import ENTRIES, ENTRY_BYTES, FEW_ENTRIES, SOME_ENTRIES, bound_shape_caches

ONEDNN, IDEEP = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"


@pytest.mark.parametrize(
    "available, entries",
    [(16 << 30, ENTRIES), (4 << 30, SOME_ENTRIES), (1 << 30, SOME_ENTRIES), (700 << 20, FEW_ENTRIES)],
)
def test_little_memory_keeps_few_entries(available: int, entries: int) -> None:
    environ: dict[str, str] = {}
    assert bound_shape_caches(available, environ) == entries * ENTRY_BYTES
    assert (environ[ONEDNN], environ[IDEEP]) == (str(entries), str(entries))


@pytest.mark.parametrize("text, entries", [("1024", 1024), ("", ENTRIES), ("many", ENTRIES)])
def test_a_bound_of_the_environment_wins_and_is_counted(text: str, entries: int) -> None:
    environ = {ONEDNN: text}
    assert bound_shape_caches(16 << 30, environ) == entries * ENTRY_BYTES
    assert environ[ONEDNN] == text


def test_a_bound_that_a_parent_measured_for_itself_is_measured_anew() -> None:
    environ: dict[str, str] = {}
    bound_shape_caches(16 << 30, environ)
    program = f"""
from lightllm.backend.shape_caches import bound_shape_caches
print(bound_shape_caches({700 << 20}), bound_shape_caches({16 << 30}))
"""
    answer = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environ},
    ).stdout
    assert (
        answer.split() == [str(FEW_ENTRIES * ENTRY_BYTES)] * 2
    )  # the second time the libraries have read it
    environ[IDEEP] = "7"  # a user's for the child
    environ["LIGHTLLM_SHAPE_CACHES"] = f"0:{ENTRIES}"
    assert bound_shape_caches(700 << 20, environ) == FEW_ENTRIES * ENTRY_BYTES
    assert (environ[ONEDNN], environ[IDEEP]) == (str(FEW_ENTRIES), "7")


def test_a_process_that_multiplies_hundreds_of_shapes_grows_by_what_is_counted() -> None:
    program = f"""
import torch
from lightllm.backend.shape_caches import bound_shape_caches
counted = bound_shape_caches({700 << 20})
torch.set_num_threads(1)
def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) << 10
weights = [torch.randn(rows, 64) for rows in (64, 128, 192)]
packed = [torch.ops.mkldnn._reorder_linear_weight(weight, 512) for weight in weights]
def multiply(rows):
    for weight in packed:
        torch.ops.mkldnn._linear_pointwise.default(torch.ones(rows, 64), weight, None, "none", [], "")
multiply(1)
before = resident()
for rows in range(1, 200):
    multiply(rows)
print(resident() - before, counted)
"""
    if not torch_has_onednn():
        pytest.skip("torch was built without oneDNN")
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    grown, counted = map(int, answer.split())
    assert grown < counted + (8 << 20)


def torch_has_onednn() -> bool:
    import torch

    return bool(torch.backends.mkldnn.is_available())
