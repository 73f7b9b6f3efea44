"""The parts that keep loading within a share and one tensor: a budget for copies, and pages of files that are released."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightllm.weights.checkpoint import open_checkpoint
from lightllm.weights.memory_budget import MemoryBudget


def test_copies_of_many_threads_never_take_more_than_the_budget() -> None:
    budget, lock = MemoryBudget(100), threading.Lock()
    together, most = 0, 0
    alone: list[bool] = []

    def work(nbytes: int) -> None:
        nonlocal together, most
        for _ in range(50):
            with budget(nbytes):
                with lock:
                    together += nbytes
                    if nbytes > 100:
                        alone.append(together == nbytes)
                    else:
                        most = max(most, together)
                with lock:
                    together -= nbytes

    threads = [threading.Thread(target=work, args=(size,)) for size in (30, 40, 60, 100, 250)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads)
    assert most <= 100 and len(alone) == 50 and all(alone)


def test_the_budget_is_whole_again_after_an_error() -> None:
    budget = MemoryBudget(100)
    with pytest.raises(ValueError, match="broken"), budget(100):
        raise ValueError("broken")
    with budget(100):
        pass


def mapped_bytes() -> int:
    """Of this process's memory, what files are mapped to."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile")) * 1024


@pytest.mark.parametrize("weight_format", ["safetensors", "bin"])
def test_released_pages_leave_memory_and_can_be_read_again(tmp_path: Path, weight_format: str) -> None:
    weight = torch.randn(4096, 2048)
    if weight_format == "bin":
        torch.save({"a": weight}, tmp_path / "pytorch_model.bin")
    else:
        save_file({"a": weight}, tmp_path / "model.safetensors")
    source = open_checkpoint(str(tmp_path))
    assert source.largest() == weight.nbytes
    read = source.read("a", weight.shape)
    assert torch.equal(read, weight)
    before = mapped_bytes()
    source.release_pages(read[100:1000, 3:40])
    source.release_pages(read[1000:])
    assert mapped_bytes() < before - 0.9 * weight.nbytes
    assert torch.equal(read, weight)


def test_what_is_no_part_of_a_file_is_not_touched(tmp_path: Path) -> None:
    save_file({"a": torch.randn(64, 64)}, tmp_path / "model.safetensors")
    source = open_checkpoint(str(tmp_path))
    own = torch.randn(1024, 1024)
    expected = own.clone()
    source.release_pages(own)
    source.release_pages(own[:0])
    assert torch.equal(own, expected)
