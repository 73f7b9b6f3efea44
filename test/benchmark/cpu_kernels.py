"""CPU kernels beside what the machine allows and beside torch: `python test/benchmark/cpu_kernels.py`. Needs an idle machine.

Decode attention reads each key and value once, so its limit is the rate at which this machine reads memory, measured in the
same run. Keys and values of a shape lie in as many layers as do not fit into any cache. Prefill attention is set beside the
rate of the fastest matrix product, of which softmax leaves it a part: its flops are those of the scores that count. What computes rows finds them in the
caches, where the operation before has left them; its times are of one call with all that Python does for it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from lightllm.ops.attention_backends.cpu import CpuAttention  # noqa: E402
from lightllm.ops.attention_backends.protocol import AttentionCall  # noqa: E402
from lightllm.ops.attention_backends.torch import TorchAttention  # noqa: E402
from lightllm.ops.attention_metadata import AttentionMetadata  # noqa: E402
from lightllm.ops.attention_spec import AttentionSpec  # noqa: E402
from lightllm.ops.cpu import gated_activation, greedy_tokens, rms_norm, rotary  # noqa: E402
from lightllm.ops.cpu.library import load_kernels  # noqa: E402
from lightllm.ops.cpu.rows import RowKernels  # noqa: E402
from lightllm.ops.cpu_kind import described  # noqa: E402
from lightllm.ops.gated_activation import gelu_and_mul, silu_and_mul  # noqa: E402
from lightllm.ops.kv_codes import FORMATS, quantize  # noqa: E402
from lightllm.ops.kv_layer import KvLayer  # noqa: E402
from lightllm.ops.linear import activation_dtype, pack_linear  # noqa: E402
from lightllm.ops.rms_norm import fused_add_rms_norm  # noqa: E402
from lightllm.ops.rotary import rotary_and_write_kv  # noqa: E402
from lightllm.ops.sample import greedy_tokens as choose  # noqa: E402

SHAPES = [
    # entries, context, KV heads, query heads of each, head_dim
    (32, 250, 8, 2, 128),  # Qwen3 0.6B under load
    (32, 250, 4, 8, 64),  # TinyLlama 1.1B under load
    (8, 500, 32, 1, 128),  # Llama 2 7B
    (1, 4096, 8, 2, 128),
    (1, 16384, 4, 8, 64),
    (1, 4096, 8, 4, 128),  # Llama 3 8B
]
PREFILLS = [
    # context, new tokens, KV heads, query heads of each, head_dim
    (256, 256, 4, 8, 64),  # TinyLlama 1.1B
    (1024, 1024, 4, 8, 64),
    (2048, 256, 4, 8, 64),
    (1024, 1024, 8, 2, 128),  # Qwen3 0.6B
    (1024, 1024, 32, 1, 128),  # Llama 2 7B
    (4096, 512, 8, 4, 128),  # Llama 3 8B
]
CODED = [(32, 1000, 4, 8, 64), (32, 1000, 8, 2, 128), (32, 1000, 8, 4, 128)]
"""Decoding over KV memory of few bits, beside bfloat16; as SHAPES."""
ROWS = (1, 32, 512)
COLD_BYTES = 256 << 20


def least(run: Callable[[int], None], repeat: int, clock: Callable[[], float]) -> float:
    """Seconds of the fastest of some runs, which are given their number."""
    seconds = []
    for number in range(repeat + 1):
        start = clock()
        run(number)
        seconds.append(clock() - start)
    return min(seconds[1:])


def read_rate(repeat: int, clock: Callable[[], float]) -> float:
    """Bytes a second that all threads together read."""
    data = torch.ones(COLD_BYTES // 4)
    return data.numel() * 4 / least(lambda _: data.sum(), repeat, clock)


def decode_attention(
    shape: tuple[int, ...], dtype: torch.dtype, repeat: int, clock: Callable[[], float]
) -> tuple[float, float, int]:
    """Seconds of a layer with the kernel and with torch, and the bytes it reads."""
    entries, length, kv_heads, group, head_dim = shape
    slots = entries * length
    size = slots * 2 * kv_heads * head_dim * dtype.itemsize
    layers = [
        KvLayer(torch.randn(slots + 1, 2 * kv_heads, head_dim).to(dtype), kv_heads)
        for _ in range(max(COLD_BYTES // size, 1))
    ]
    q = torch.randn(entries, kv_heads * group, head_dim).to(dtype)
    metadata = AttentionMetadata(
        rows=torch.arange(entries), q_start=torch.arange(entries + 1, dtype=torch.int32),
        kv_len=torch.full((entries,), length, dtype=torch.int32),
        req_to_token=torch.arange(slots, dtype=torch.int32).view(entries, length),
        num_decode=entries, num_tokens=entries, max_q_len=1, max_kv_len=length,
    )  # fmt: skip
    seconds = []
    for backend in (CpuAttention(load_kernels()), TorchAttention()):
        out, spec, batch = torch.empty_like(q), AttentionSpec(head_dim**-0.5), metadata.anew()

        def run(number: int) -> None:
            backend.decode(AttentionCall(q, layers[number % len(layers)], batch, spec, out))  # noqa: B023

        seconds.append(least(run, repeat, clock))
    return seconds[0], seconds[1], size


def coded_attention(
    shape: tuple[int, ...], name: str, repeat: int, clock: Callable[[], float]
) -> tuple[float, int]:
    """Seconds of a layer of bfloat16 that decodes over this kind of KV memory ("None": bfloat16 too), and the bytes it reads."""
    entries, length, kv_heads, group, head_dim = shape
    slots, dtype = entries * length, torch.bfloat16
    data = torch.randn(slots + 1, 2 * kv_heads, head_dim).to(dtype)
    parts = (data,) if name == "None" else quantize(data, FORMATS[name])
    size = sum(part.numel() * part.itemsize for part in parts)
    layers = [
        KvLayer(parts[0].clone(), kv_heads, *(part.clone() for part in parts[1:]))
        for _ in range(max(COLD_BYTES // size, 1))
    ]
    metadata = AttentionMetadata(
        rows=torch.arange(entries), q_start=torch.arange(entries + 1, dtype=torch.int32),
        kv_len=torch.full((entries,), length, dtype=torch.int32),
        req_to_token=torch.arange(slots, dtype=torch.int32).view(entries, length),
        num_decode=entries, num_tokens=entries, max_q_len=1, max_kv_len=length,
    )  # fmt: skip
    q = torch.randn(entries, kv_heads * group, head_dim).to(dtype)
    out, spec, backend = torch.empty_like(q), AttentionSpec(head_dim**-0.5), CpuAttention(load_kernels())
    found = least(
        lambda number: backend.decode(AttentionCall(q, layers[number % len(layers)], metadata, spec, out)),
        repeat,
        clock,
    )
    return found, size


def product_rate(repeat: int, clock: Callable[[], float]) -> float:
    """Flops a second of a bfloat16 layer of 5632 x 2048 with 512 rows, as the model computes it."""
    layer = pack_linear(torch.randn(5632, 2048).to(torch.bfloat16), None)
    x = torch.randn(512, 2048).to(activation_dtype(torch.device("cpu"), torch.bfloat16))
    return 2 * 512 * 2048 * 5632 / least(lambda _: layer(x), repeat, clock)


def prefill_attention(
    shape: tuple[int, ...], repeat: int, clock: Callable[[], float]
) -> tuple[float, float, float]:
    """Seconds of a layer in bfloat16 with the kernel and with torch, and the flops."""
    length, tokens, kv_heads, group, head_dim = shape
    kv = KvLayer(torch.randn(length + 1, 2 * kv_heads, head_dim).to(torch.bfloat16), kv_heads)
    q = torch.randn(tokens, kv_heads * group, head_dim).to(torch.bfloat16)
    metadata = AttentionMetadata(
        rows=torch.zeros(1, dtype=torch.int64), q_start=torch.tensor([0, tokens], dtype=torch.int32),
        kv_len=torch.tensor([length], dtype=torch.int32),
        req_to_token=torch.arange(length, dtype=torch.int32).view(1, length),
        num_decode=0, num_tokens=tokens, max_q_len=tokens, max_kv_len=length,
    )  # fmt: skip
    seconds = []
    for backend in (CpuAttention(load_kernels()), TorchAttention()):
        call = AttentionCall(q, kv, metadata.anew(), AttentionSpec(head_dim**-0.5), torch.empty_like(q))
        seconds.append(least(lambda _: backend.prefill(call), repeat, clock))  # noqa: B023
    scores = (length * (length + 1) - (length - tokens) * (length - tokens + 1)) / 2
    return seconds[0], seconds[1], 4 * scores * kv_heads * group * head_dim


def row_operations(rows: int, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Those of a layer of TinyLlama 1.1B or Qwen3 0.6B, and the choice of tokens."""
    x, residual, gates = (torch.randn(rows, size).to(dtype) for size in (2048, 2048, 2 * 5632))
    weight, logits = torch.randn(2048).to(dtype), torch.randn(rows, 32000).to(dtype)
    kv, slots = KvLayer(torch.zeros(2 * rows + 1, 16, 128, dtype=dtype), 8), torch.randperm(2 * rows)[:rows]
    qkv, angles = torch.randn(rows, 32, 128).to(dtype), torch.randn(2, rows, 1, 128).to(dtype)
    told = (qkv[:, :24], qkv[:, 24:], *angles, kv, slots)
    return {
        "add, norm 2048": lambda: fused_add_rms_norm(x, residual, weight, 1e-6),
        "rotate, write 16/8 x 128": lambda: rotary_and_write_kv(*told),
        "norm, rotate, write 16/8 x 128": lambda: rotary_and_write_kv(
            *told, norm_weight=weight[:128], eps=1e-6
        ),
        "silu 5632": lambda: silu_and_mul(gates),
        "gelu 5632": lambda: gelu_and_mul(gates),
        "greedy 32000": lambda: choose(logits),
    }


def seconds_of_a_call(run: Callable[[], object], repeat: int, clock: Callable[[], float]) -> list[float]:
    """With the kernel in one thread, in all of them, and with torch."""

    def several(_: int) -> None:
        for _ in range(10):
            run()

    def measured() -> float:
        return least(several, repeat, clock) / 10

    found = []
    with pytest.MonkeyPatch.context() as patch:
        for most in (sys.maxsize, -1):
            for module in (gated_activation, greedy_tokens, rms_norm, rotary):
                patch.setattr(module._kernels, "at_once", most)
            found.append(measured())
        patch.setattr(RowKernels, "find", lambda self, dtype: None)
        return [*found, measured()]


def print_decode_attention(dtypes: list[str], repeat: int, clock: Callable[[], float]) -> None:
    rate = read_rate(repeat, clock)
    print(f"memory is read at {rate / 1e9:.1f} GB/s")
    print(f"{'decode attention':34}{'ms':>8}{'GB/s':>8}{'of limit':>10}{'torch ms':>10}{'ratio':>8}")
    for shape in SHAPES:
        for name in dtypes:
            ours, torchs, size = decode_attention(shape, getattr(torch, name), repeat, clock)
            entries, length, kv_heads, group, head_dim = shape
            words = f"{entries} x {length}, {kv_heads * group}/{kv_heads} x {head_dim} {name}"
            print(
                f"{words:34}{ours * 1e3:8.2f}{size / ours / 1e9:8.1f}{size / ours / rate:10.2f}"
                f"{torchs * 1e3:10.2f}{ours / torchs:8.2f}",
                flush=True,
            )


def print_coded_attention(repeat: int, clock: Callable[[], float]) -> None:
    if "coded_attention_bfloat16" not in load_kernels():
        return
    print(f"{'decode attention of bfloat16 over':34}{'ms':>8}{'GB/s':>8}{'bf16 ms':>10}{'times':>8}")
    for shape in CODED:
        entries, length, kv_heads, group, head_dim = shape
        for name in FORMATS:
            plain, _ = coded_attention(shape, "None", repeat, clock)
            ours, size = coded_attention(shape, name, repeat, clock)
            words = f"{entries} x {length}, {kv_heads * group}/{kv_heads} x {head_dim} {name}"
            print(
                f"{words:34}{ours * 1e3:8.2f}{size / ours / 1e9:8.1f}{plain * 1e3:10.2f}{plain / ours:8.2f}",
                flush=True,
            )


def print_prefill_attention(repeat: int, clock: Callable[[], float]) -> None:
    if "block_attention_bfloat16" not in load_kernels():
        return
    rate = product_rate(repeat, clock)
    print(f"prefill attention; the matrix product computes {rate / 1e12:.2f} TFLOP/s")
    print(f"{'':34}{'ms':>8}{'TFLOP/s':>8}{'of it':>10}{'torch ms':>10}{'ratio':>8}")
    for shape in PREFILLS:
        ours, torchs, flops = prefill_attention(shape, repeat, clock)
        length, tokens, kv_heads, group, head_dim = shape
        words = f"{tokens} of {length}, {kv_heads * group}/{kv_heads} x {head_dim}"
        print(
            f"{words:34}{ours * 1e3:8.2f}{flops / ours / 1e12:8.3f}{flops / ours / rate:10.2f}"
            f"{torchs * 1e3:10.2f}{ours / torchs:8.2f}",
            flush=True,
        )


def print_rows(dtypes: list[str], repeat: int, clock: Callable[[], float]) -> None:
    print(f"{'rows':46}{'one thread us':>15}{'all us':>8}{'torch us':>10}{'ratio':>8}")
    for name in dtypes:
        for rows in ROWS:
            for operation, run in row_operations(rows, getattr(torch, name)).items():
                alone, together, torchs = (s * 1e6 for s in seconds_of_a_call(run, repeat, clock))
                ratio = min(alone, together) / torchs
                words = f"{rows:3} {operation}, {name}"
                print(f"{words:46}{alone:15.1f}{together:8.1f}{torchs:10.1f}{ratio:8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--only", choices=("attention", "coded", "rows"))
    parser.add_argument(
        "--cpu_time", action="store_true", help="seconds of the processor, one thread: on a busy machine"
    )
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    if options.cpu_time:
        torch.set_num_threads(1)
    print(f"processor: {described()}, {torch.get_num_threads()} threads")
    if options.only == "coded":
        print_coded_attention(options.repeat, clock)
        return
    if options.only != "rows":
        print_decode_attention(options.dtypes, options.repeat, clock)
        print_coded_attention(options.repeat, clock)
        print_prefill_attention(options.repeat, clock)
    if options.only != "attention":
        print_rows(options.dtypes, options.repeat, clock)


if __name__ == "__main__":
    main()
