"""No kernel is compiled while requests run: the start meets every variant of it. And what graphs read stays where it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.graph_reads import GraphReads

ROOT = Path(__file__).parents[2]
KERNELS = {
    "codes": {"write_codes_kernel"},
    "dense": {"decode_attention_kernel", "prefill_attention_kernel", "sample_kernel", "penalties_kernel"},
    "experts": {"grouped_gemm_kernel", "place_pairs_kernel", "choose_experts_kernel", "uniforms_kernel"},
    "latent": {"mla_decode_attention_kernel", "mla_context_kernel"},
}
"""Some of those that a shape is there for."""


def served(*arguments: str) -> dict[str, Any]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "test")])
    run = subprocess.run(
        [sys.executable, "-m", "support.variants_while_serving", *arguments],
        env=os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["experts"], id="experts"),
        *(pytest.param([shape, "--many"], id=f"{shape}, many", marks=pytest.mark.slow) for shape in KERNELS),
    ],
)
def test_no_variant_of_a_kernel_is_new_after_the_start_and_graphs_read_what_lives(
    arguments: list[str],
) -> None:
    found = served(*arguments)
    assert KERNELS[arguments[0]] <= set(found["kernels"])
    assert found["variants"] >= len(found["kernels"])
    assert found["late"] == []
    assert found["different"] == [] and found["launches"] > 1000
    assert found["graphs"] > 5 and min(found["read"]) > 10
    assert found["freed"] == [] and found["asked"] == []


def test_memory_that_is_freed_behind_a_capture_and_questions_inside_it_are_seen() -> None:
    weight, kept = torch.ones(300), torch.ones(200)
    with GraphReads() as reads:
        inside = (kept + weight[:200]) * 2
        inside.sum().item()
    assert len(reads.outside) == 2 and any("_local_scalar_dense" in name for name in reads.asked)
    assert reads.freed() == []
    del weight
    assert [text.partition(" of ")[0] for text in reads.freed()] == ["aten::slice.Tensor"]
    reads.launched([kept, torch.ones(7)])
    assert reads.freed()[1:] == ["a kernel of torch.float32 [7]"]


@pytest.mark.slow
def test_a_cache_that_was_filled_ahead_holds_what_a_start_asks_for(tmp_path: Path) -> None:
    def fill() -> set[str]:
        tool = [sys.executable, str(ROOT / "tools/prewarm.py"), "--out", str(tmp_path), "--shapes", "m3"]
        subprocess.run(tool, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
        return {str(path) for path in tmp_path.rglob("*.cubin")}

    first = fill()
    assert {"decode_attention_kernel.cubin", "sample_kernel.cubin"} <= {Path(path).name for path in first}
    times = {path: os.stat(path).st_mtime_ns for path in first}
    assert fill() == first and {path: os.stat(path).st_mtime_ns for path in first} == times
