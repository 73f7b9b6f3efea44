"""Memory in large pages: tensors in it are apart, and it is given back."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightllm.ops.huge_pages import advise, in_huge_pages, mapped

MIB = 1 << 20


def test_tensors_side_by_side_do_not_touch_each_other() -> None:
    sizes = [1, 63, 64, 65, 3 * MIB + 1, 80 * MIB, 5, 40 * MIB, 40 * MIB]
    tensors = [in_huge_pages(size) for size in sizes]
    for number, tensor in enumerate(tensors):
        assert tensor.dtype == torch.uint8 and tensor.data_ptr() % 64 == 0
        tensor.fill_(number)
    for number, (size, tensor) in enumerate(zip(sizes, tensors, strict=True)):
        assert len(tensor) == size and bool((tensor == number).all())


def test_memory_of_its_own_begins_with_its_storage() -> None:
    tensor = mapped(5 * MIB)
    assert tensor.storage_offset() == 0 and len(tensor) == 5 * MIB and not tensor.any()


def test_memory_taken_within_inference_mode_can_be_written_to_outside_of_it() -> None:
    with torch.inference_mode():
        tensors = [in_huge_pages(70 * MIB, torch.int32), mapped(3 * MIB)[:100].view(10, 10)]
    for tensor in tensors:
        tensor[:5] = 1
        assert bool((tensor[:5] == 1).all())


def test_what_is_small_or_not_at_hand_stays_as_it_is() -> None:
    small, meta = torch.arange(5), torch.empty(4 * MIB, device="meta")
    assert advise(small) is small and advise(meta) is meta
    assert small.tolist() == [0, 1, 2, 3, 4]


SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PROGRAM = """
import re, torch
from lightllm.ops.huge_pages import in_huge_pages
def resident(): return int(re.search(r"Rss:\\s+(\\d+)", open("/proc/self/smaps_rollup").read())[1]) // 1024
tensors = [in_huge_pages(3 << 20).fill_(1) for _ in range(40)]
place, advised = tensors[20].data_ptr(), 0
for line in open("/proc/self/smaps"):
    if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
        here = int(found[1], 16) <= place < int(found[2], 16)
    elif line.startswith("VmFlags:") and here:
        advised = int(" hg" in line)
print(advised)
before = resident()
tensors = None
print(before - resident())
"""


@pytest.mark.skipif(
    not SETTING.exists() or "[never]" in SETTING.read_text(), reason="this kernel gives no large pages"
)
def test_tensors_lie_in_large_pages_and_go_with_the_last() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    advised, given_back_mib = map(int, re.findall(r"\d+", done.stdout))
    assert advised  # how many there are is the machine's to say
    assert given_back_mib >= 50  # all but the chunk that is not full
