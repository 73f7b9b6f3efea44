"""What of `ops/triton/sample.py` is compiled ahead of time and tuned on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from kernels.compile_case import CompileCase
from kernels.tuning_case import TuningCase, grid
from lightllm.ops.triton.sample import EACH, FILTERED, GREEDY, RANDOM, sample_filtered, sample_kernel


def _case(label: str, kind: int, vocab: int, logprobs: bool = True, short: bool = True) -> CompileCase:
    def given(wanted: bool, kind_of_pointer: str) -> Any:
        return kind_of_pointer if wanted else None

    filtered = kind >= FILTERED
    return CompileCase(
        kernel=sample_kernel,
        label=label,
        arguments={
            "logits_ptr": "*fp32:16", "scratch_ptr": given(kind != GREEDY, "*fp32:16"),
            "kinds_ptr": given(kind == EACH, "*i32:16"), "scales_ptr": given(kind == EACH, "*fp32:16"),
            "uniforms_ptr": given(kind != GREEDY, "*fp64:16"), "top_k_ptr": given(filtered, "*i64:16"),
            "top_p_ptr": given(filtered, "*fp64:16"), "min_p_ptr": given(filtered, "*fp64:16"),
            "tokens_ptr": "*i64:16", "logprobs_ptr": "*fp32:16",
            "stride": "i32:16", "scratch_stride": "i32:16", "vocab": "i32:16",
            "KIND": kind, "SCALED": kind == EACH, "LOGPROBS": logprobs, "SUMS": 64,
        },
        config="sample",
        sizes={"vocab": vocab},
        short=short,
    )  # fmt: skip


COMPILE_CASES = [
    _case("greedy, no log-probabilities", GREEDY, 128256, logprobs=False),
    _case("greedy", GREEDY, 128256),
    _case("random", RANDOM, 128256, short=False),
    _case("filtered", FILTERED, 128256, short=False),
    _case("each row as it says", EACH, 128256),
    _case("each row as it says, small vocabulary", EACH, 512, short=False),
]


def _problem(vocab: int) -> Callable[[torch.device], Callable[[], object]]:
    def make(device: torch.device) -> Callable[[], object]:
        rows = 64 if device.type == "cuda" else 1
        logits = torch.randn(rows, vocab, device=device) * 3
        scratch, uniforms = torch.empty_like(logits), torch.rand(rows, dtype=torch.float64, device=device)
        top_k = torch.full((rows,), 50, device=device)
        top_p, min_p = (torch.full((rows,), p, dtype=torch.float64, device=device) for p in (0.9, 0.0))
        return lambda: sample_filtered(logits, uniforms, top_k, top_p, min_p, scratch)

    return make


TUNING_CASES = [
    TuningCase(
        config="sample",
        sizes={"vocab": vocab},
        up_to={"vocab": vocab} if vocab < 128256 else {},
        candidates=grid(ROWS=(2, 4, 8), COLUMNS=(256, 512, 1024), num_warps=(4, 8), maxnreg=(255,)),
        make=_problem(vocab),
    )
    for vocab in (4096, 32000, 128256)
]
