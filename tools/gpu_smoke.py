"""The first thing to run on a GPU, 90 seconds at most: does what everything else stands on work there?

    python tools/gpu_smoke.py          # prints "SMOKE OK", or what is wrong, with exit status 1
    python tools/gpu_smoke.py --dry    # tiny shapes under Triton's interpreter: does this program run?

Device facts; decode and prefill attention against float32, with and without programmatic dependent launch (PDL), which must
give equal bits; the linear layers for few rows likewise; four layers of a Llama-3.1-8B with and without graphs and PDL, which must give the same tokens; 200 rounds that
overlap. A hang ends with the stacks of all threads. What to do when it fails: tools/gpu_run.md.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "test"), str(ROOT / "tools")]
LIMIT = 90.0
"""Seconds."""
ROWS, CONTEXT, STEPS, OVERLAPPING = 8, 512, 24, 200
TOLERANCE = 1e-2
"""Of attention in bfloat16: |found - reference| / |reference|, over a whole output."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--dry", action="store_true", help="without a GPU")
    dry = parser.parse_args().dry
    if dry:
        os.environ["TRITON_INTERPRET"] = "1"
    else:
        faulthandler.dump_traceback_later(LIMIT, exit=True)
    started = time.perf_counter()
    failed = []
    checks = (("device", facts), ("attention", attention), ("linear", linear), ("backend", backend))
    for name, check in checks:
        print(f"== {name} ({time.perf_counter() - started:.0f} s)", flush=True)
        try:
            failed += [f"{name}: {problem}" for problem in check(dry)]
        except Exception as error:  # the other checks say how far it goes
            import traceback

            traceback.print_exc()
            failed.append(f"{name}: {type(error).__name__}: {error}")
    faulthandler.cancel_dump_traceback_later()
    print(
        "\n".join(failed) if failed else "SMOKE OK",
        f"after {time.perf_counter() - started:.0f} s",
        flush=True,
    )
    return 1 if failed else 0


def facts(dry: bool) -> list[str]:
    import torch
    import triton

    print(
        f"Python {sys.version.split()[0]}, torch {torch.__version__}, CUDA {torch.version.cuda}, Triton {triton.__version__}"
    )
    if not torch.cuda.is_available():
        return [] if dry else ["torch finds no GPU"]
    properties, (free, total) = torch.cuda.get_device_properties(0), torch.cuda.mem_get_info()
    print(f"{properties.name}, {properties.multi_processor_count} multiprocessors, compute capability {properties.major}."
          f"{properties.minor}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")  # fmt: skip
    return [] if free > 0.9 * total else ["something else has a part of this GPU's memory"]


@contextlib.contextmanager
def pdl(wanted: bool) -> Iterator[None]:
    from lightllm.ops.triton import launch

    before = os.environ.get(launch.PDL_VARIABLE)
    if not wanted:
        os.environ[launch.PDL_VARIABLE] = "0"
    launch.pdl_options.cache_clear()
    try:
        yield
    finally:
        os.environ.pop(launch.PDL_VARIABLE, None)
        if before is not None:
            os.environ[launch.PDL_VARIABLE] = before
        launch.pdl_options.cache_clear()


def attention(dry: bool) -> list[str]:
    """Two layers of each phase, so that the second one starts without waiting for its parts."""
    import torch

    device = torch.device("cpu" if dry else "cuda")
    torch.manual_seed(0)
    problems = []
    for phase, q_len in (("decode", 1), ("prefill", 8 if dry else 1024)):
        compute, reference = _attention_case(device, phase, 2 if dry else 16, q_len, dry)
        outputs = []
        for wanted in (True, False):
            with pdl(wanted):
                outputs.append([compute(layer) for layer in range(2)])
        expected = [reference(layer) for layer in range(2)]
        for layer in range(2):
            found = outputs[0][layer].float()
            error = float((found - expected[layer]).norm() / expected[layer].norm())
            print(f"{phase} attention, layer {layer}: off by {error:.1e}")
            if not error < TOLERANCE:
                problems.append(
                    f"{phase} attention, layer {layer}, is off by {error:.2e}, at most {TOLERANCE}"
                )
            if not torch.equal(outputs[0][layer], outputs[1][layer]):
                problems.append(f"{phase} attention, layer {layer}: PDL changes its bits (LIGHTLLM_PDL=0)")
    return problems


def _attention_case(
    device: Any, phase: str, entries: int, q_len: int, dry: bool
) -> tuple[Callable[[int], Any], Callable[[int], Any]]:
    """For one layer of two: computes with our kernel; the same in float32."""
    import torch
    from kernels.attention_problem import make_metadata, random

    from lightllm.ops.attention_backends.protocol import AttentionCall
    from lightllm.ops.attention_backends.triton import TritonAttention
    from lightllm.ops.attention_spec import AttentionSpec
    from lightllm.ops.kv_layer import KvLayer

    heads, kv_heads, size = (4, 2, 16) if dry else (32, 8, 128)
    kv_len, dtype = (32, torch.float32) if dry else (2048, torch.bfloat16)
    metadata, slots = make_metadata(device, entries, kv_len, q_len)
    layers = [KvLayer(random(device, dtype, slots, 2 * kv_heads, size), kv_heads) for _ in range(2)]
    q = random(device, dtype, entries * q_len, heads, size)
    spec, kernels = AttentionSpec(size**-0.5), TritonAttention()

    def compute(layer: int) -> Any:
        out = torch.full_like(q, float("nan"))
        getattr(kernels, phase)(AttentionCall(q, layers[layer], metadata, spec, out))
        return out

    def reference(layer: int) -> Any:
        outputs = []
        mask = torch.ones(q_len, kv_len, dtype=torch.bool, device=device).tril(kv_len - q_len)
        for entry in range(entries):
            kept = layers[layer].data[metadata.req_to_token[entry].long()].float()
            keys, values = kept.transpose(0, 1).repeat_interleave(heads // kv_heads, 0).split(heads)
            queries = q[entry * q_len : (entry + 1) * q_len].float().transpose(0, 1)
            scores = (queries @ keys.transpose(1, 2) * size**-0.5).masked_fill(~mask, -torch.inf)
            outputs.append((scores.softmax(-1) @ values).transpose(0, 1))
        return torch.cat(outputs)

    return compute, reference


def linear(dry: bool) -> list[str]:
    """The layers for few rows, each in three launches that follow one another."""
    import torch

    from lightllm.ops.triton import skinny_linear as kernels

    device, dtype = (torch.device("cpu"), torch.float32) if dry else (torch.device("cuda"), torch.bfloat16)
    hidden, inner, rows = (64, 128, 3) if dry else (4096, 14336, 8)
    torch.manual_seed(0)
    x, norm = torch.randn(rows, hidden).to(device, dtype), torch.randn(hidden).to(device, dtype)
    gate_up, down = (
        (torch.randn(shape) * shape[1] ** -0.5).to(device, dtype)
        for shape in ((2 * inner, hidden), (hidden, inner))
    )

    def compute() -> list[Any]:
        outputs = []
        for _ in range(3):
            residual = x.clone()
            product = kernels.norm_linear(residual, norm, 1e-5, gate_up, None)
            between = kernels.norm_swiglu(residual, norm, 1e-5, gate_up, None)
            kernels.linear_add_(between, down, None, residual)
            outputs += [product, between, residual]
        return outputs

    wide = x.float() * (x.float().square().mean(-1, keepdim=True) + 1e-5).rsqrt() * norm.float()
    both = wide @ gate_up.float().T
    gate, up = both.chunk(2, -1)
    middle = gate.sigmoid() * gate * up
    expected = [both, middle, x.float() + middle @ down.float().T]
    found = {}
    for wanted in (True, False):
        with pdl(wanted):
            found[wanted] = compute()
    problems = []
    for place, name in enumerate(("norm and product", "norm, gate and up", "product and residual")):
        error = float((found[True][place].float() - expected[place]).norm() / expected[place].norm())
        print(f"{name}: off by {error:.1e}")
        if not error < TOLERANCE:
            problems.append(f"{name} is off by {error:.2e} (LIGHTLLM_SKINNY_LINEAR=0)")
        if any(
            not torch.equal(found[way][other], found[False][place])
            for way in found
            for other in (place, place + 3, place + 6)
        ):
            problems.append(f"{name}: PDL or its repetition changes its bits (LIGHTLLM_SKINNY_LINEAR=0)")
    return problems


def backend(dry: bool) -> list[str]:
    import torch
    from benchmark.gpu.rounds import loaded, options
    from benchmark.gpu_report import DRY_SHAPE

    shape = DRY_SHAPE if dry else _four_layers()
    rows, context, steps = (3, 16, 3) if dry else (ROWS, CONTEXT, STEPS)
    sizes = {
        "max_total_token_num": rows * context + 64,
        "max_req_total_len": context + 64,
        "running_max_req_size": rows,
    }
    problems = []
    with loaded(shape, **sizes, **options(torch.device("cpu" if dry else "cuda"))) as (bench, ready):
        print(f"ready after {sum(ready.seconds.values()):.1f} s: {ready.seconds}")
        model = bench.backend
        found = {"graphs and PDL": _tokens(bench, rows, context, steps)}
        graphs, model._graphs = model._graphs, None
        found["PDL, no graphs"] = _tokens(bench, rows, context, steps)
        with pdl(False):
            found["neither"] = _tokens(bench, rows, context, steps)
            with torch.inference_mode():
                model.device.activate()
                model._graphs = model._capture_graphs(False)
            found["graphs, no PDL"] = _tokens(bench, rows, context, steps)
        expected = found["neither"]
        problems += [
            f"{name}: other tokens than with neither" for name, tokens in found.items() if tokens != expected
        ]
        model._graphs = graphs
        bench.enter(rows, context)
        seconds = bench.pipelined(rows, context, 10 if dry else OVERLAPPING)
        print(f"{rows} rows, context {context}: {seconds * 1e3:.3f} ms a round, overlapping")
    return problems


def _four_layers() -> dict[str, Any]:
    from model.test_llama import SHAPES

    return SHAPES["llama-3.1-8b"] | {"num_hidden_layers": 4}


def _tokens(bench: Any, rows: int, context: int, steps: int) -> list[list[int]]:
    """Of each step; greedy, and the same whenever they are computed with the same kernels."""
    bench.enter(rows, context)
    pending = [bench.submit(bench.decode_round(rows, context)) for _ in range(steps)]
    return [each.result().token_ids.tolist() for each in pending]


if __name__ == "__main__":
    sys.exit(main())
