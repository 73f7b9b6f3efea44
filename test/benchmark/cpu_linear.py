"""Milliseconds of every form of a linear layer on this CPU: what `lightllm/ops/linear.py` chooses from.

    python test/benchmark/cpu_linear.py --threads 2 --out_features 5632 --in_features 2048

Weights take turns, so that they come from memory and not from a cache; so do the forms. `pieces` is what a weight too large to
be packed at once becomes; `--clock cpu` counts the processor's time, for a machine that is not idle. The best form of each row is
marked. The last columns are weights in few bits: int8 with a scale for each output, int4 for each 128 inputs, MXFP4, fp8 with a scale for
each block of 128 x 128; for activations in bf16 where there are kernels for them, and (32) in fp32. `--only` measures the forms whose
names begin so.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from lightllm.ops.cpu.panel_linear import panel_linear
from lightllm.ops.linear import Fp16PackedLinear, OneDnnLinear, PackedLinear, SideBySide, pack_linear
from lightllm.ops.quantized_linear import DequantisedOnUse, pack_quantized
from lightllm.ops.quantized_weight import NIBBLES, QuantizedWeight
from lightllm.ops.weight_rows import WeightRows, as_rows

TURNS = 4
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Form = tuple[torch.dtype, list[Callable[[torch.Tensor], torch.Tensor]]]
"""The inputs' dtype, and the same form of every weight."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out_features", type=int, default=5632)
    parser.add_argument("--in_features", type=int, default=2048)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512])
    parser.add_argument("--budget_mib", type=int, default=250, help="the largest tensor, which bounds pieces")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    weights = [torch.randn(args.out_features, args.in_features) * 0.02 for _ in range(TURNS)]
    halves = [weight.bfloat16() for weight in weights]
    forms: dict[str, Form] = {
        "fp32 plain": (torch.float32, [lambda x, w=w: F.linear(x, w) for w in weights]),  # type: ignore[misc]
        "fp32 oneDNN": (torch.float32, [OneDnnLinear(w, None) for w in weights]),
        "bf16 plain": (torch.bfloat16, [lambda x, w=w: F.linear(x, w) for w in halves]),  # type: ignore[misc]
    }
    if "fbgemm" in torch.backends.quantized.supported_engines:
        forms["fp16 packed"] = (torch.float32, [Fp16PackedLinear(w, None) for w in halves])
        pieces = [in_pieces(w, args.budget_mib << 20) for w in halves]
        if isinstance(pieces[0], SideBySide):
            forms["fp16 pieces"] = (torch.float32, list(pieces))
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        forms["bf16 oneDNN"] = (torch.bfloat16, [OneDnnLinear(w, None) for w in halves])
    if own := [layer for w in halves if (layer := panel_linear(as_rows(w), None)) is not None]:
        forms["bf16 panels"] = (torch.bfloat16, list(own))
    for name, element, group in (
        ("int8", "int8", args.in_features),
        ("int4", "int4", 128),
        ("mxfp4", "e2m1", 32),
        ("fp8", "e4m3", 128),
    ):
        few = [random_codes(element, args.out_features, args.in_features, group) for _ in range(TURNS)]
        for dtype, suffix in ((torch.bfloat16, ""), (torch.float32, " 32")):
            packed = [pack_quantized(w, None, dtype, in_place=False) for w in few]
            if not isinstance(packed[0], DequantisedOnUse):
                forms[name + suffix] = (dtype, list(packed))
    if args.only:
        forms = {name: form for name, form in forms.items() if name.startswith(tuple(args.only))}
    print(
        f"[{args.out_features}, {args.in_features}], {args.threads} threads, {torch.backends.cpu.get_cpu_capability()}; ms"
    )
    print(f"{'rows':>5}" + "".join(f"{name:>14}" for name in forms))
    for rows in args.rows:
        measured = milliseconds(forms, rows, args.in_features, args.repeats, CLOCKS[args.clock])
        fastest = min(measured.values())
        print(
            f"{rows:>5}" + "".join(f"{ms:>13.2f}{'*' if ms == fastest else ' '}" for ms in measured.values())
        )


def random_codes(element: str, outputs: int, inputs: int, group: int) -> QuantizedWeight:
    width = inputs // 2 if element in NIBBLES else inputs
    codes = torch.randint(0, 127, (outputs, width), dtype=torch.uint8)
    if element == "e4m3":
        shared = torch.arange(outputs).int() // group
        scales = torch.rand(-(-outputs // group), inputs // group) * 0.01
        return QuantizedWeight(element, codes.view(torch.float8_e4m3fn), scales, None, group, shared)
    scales = torch.rand(outputs, inputs // group) * 0.01
    return QuantizedWeight(
        element, codes.view(torch.int8) if element == "int8" else codes, scales, None, group
    )


def in_pieces(weight: torch.Tensor, budget_bytes: int) -> PackedLinear:
    return pack_linear(WeightRows([weight], weight.dtype, weight.device, budget_bytes=budget_bytes), None)


@torch.inference_mode()
def milliseconds(
    forms: dict[str, Form], rows: int, in_features: int, repeats: int, clock: Callable[[], float]
) -> dict[str, float]:
    """The fastest of a few rounds over all turns, for one call of each form."""
    best = dict.fromkeys(forms, float("inf"))
    for _ in range(repeats):
        for name, (dtype, calls) in forms.items():
            x = torch.randn(rows, in_features).to(dtype)
            began = clock()
            for call in calls:
                call(x)
            best[name] = min(best[name], (clock() - began) / len(calls) * 1e3)
    return best


if __name__ == "__main__":
    main()
