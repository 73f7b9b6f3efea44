"""Milliseconds of every form of a linear layer on this CPU: what `lightllm/ops/torch/linear.py` chooses from.

    python test/benchmark/cpu_linear.py --threads 2 --out_features 5632 --in_features 2048

Weights take turns, so that they come from memory and not from a cache. The best form of each row is marked.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from lightllm.ops.torch.linear import Fp16PackedLinear, OneDnnLinear

TURNS = 4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out_features", type=int, default=5632)
    parser.add_argument("--in_features", type=int, default=2048)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    weights = [torch.randn(args.out_features, args.in_features) * 0.02 for _ in range(TURNS)]
    halves = [weight.bfloat16() for weight in weights]
    forms: dict[str, tuple[torch.dtype, list[Callable[[torch.Tensor], torch.Tensor]]]] = {
        "fp32 plain": (torch.float32, [lambda x, w=w: F.linear(x, w) for w in weights]),  # type: ignore[misc]
        "fp32 oneDNN": (torch.float32, [OneDnnLinear(w, None) for w in weights]),
        "bf16 plain": (torch.bfloat16, [lambda x, w=w: F.linear(x, w) for w in halves]),  # type: ignore[misc]
    }
    if "fbgemm" in torch.backends.quantized.supported_engines:
        forms["fp16 packed"] = (torch.float32, [Fp16PackedLinear(w, None) for w in halves])
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        forms["bf16 oneDNN"] = (torch.bfloat16, [OneDnnLinear(w, None) for w in halves])
    print(
        f"[{args.out_features}, {args.in_features}], {args.threads} threads, {torch.backends.cpu.get_cpu_capability()}; ms"
    )
    print(f"{'rows':>5}" + "".join(f"{name:>14}" for name in forms))
    for rows in args.rows:
        measured = {
            name: milliseconds(calls, rows, args.in_features, dtype) for name, (dtype, calls) in forms.items()
        }
        fastest = min(measured.values())
        print(
            f"{rows:>5}" + "".join(f"{ms:>13.2f}{'*' if ms == fastest else ' '}" for ms in measured.values())
        )


@torch.inference_mode()
def milliseconds(
    calls: list[Callable[[torch.Tensor], torch.Tensor]], rows: int, in_features: int, dtype: torch.dtype
) -> float:
    """The fastest of a few rounds over all turns, for one call."""
    x = torch.randn(rows, in_features).to(dtype)
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        for call in calls:
            call(x)
        best = min(best, (time.perf_counter() - began) / len(calls))
    return best * 1e3


if __name__ == "__main__":
    main()
