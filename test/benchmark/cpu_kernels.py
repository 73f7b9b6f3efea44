"""CPU kernels beside what the machine allows and beside torch: `python test/benchmark/cpu_kernels.py`. Needs an idle machine.

Decode attention reads each key and value once, so its limit is the rate at which this machine reads memory, measured in the
same run. Keys and values of a shape lie in as many layers as do not fit into any cache.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from lightllm.ops.attention_backends.cpu import CpuAttention  # noqa: E402
from lightllm.ops.attention_backends.protocol import AttentionCall  # noqa: E402
from lightllm.ops.attention_backends.torch import TorchAttention  # noqa: E402
from lightllm.ops.attention_metadata import AttentionMetadata  # noqa: E402
from lightllm.ops.attention_spec import AttentionSpec  # noqa: E402
from lightllm.ops.cpu.library import load_kernels  # noqa: E402
from lightllm.ops.cpu_kind import described  # noqa: E402
from lightllm.ops.kv_layer import KvLayer  # noqa: E402

SHAPES = [
    # entries, context, KV heads, query heads of each, head_dim
    (32, 250, 8, 2, 128),  # Qwen3 0.6B under load
    (32, 250, 4, 8, 64),  # TinyLlama 1.1B under load
    (8, 500, 32, 1, 128),  # Llama 2 7B
    (1, 4096, 8, 2, 128),
    (1, 16384, 4, 8, 64),
    (1, 4096, 8, 4, 128),  # Llama 3 8B
]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument(
        "--cpu_time", action="store_true", help="seconds of the processor, one thread: on a busy machine"
    )
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    if options.cpu_time:
        torch.set_num_threads(1)
    rate = read_rate(options.repeat, clock)
    print(f"processor: {described()}, {torch.get_num_threads()} threads, reads {rate / 1e9:.1f} GB/s")
    print(f"{'decode attention':34}{'ms':>8}{'GB/s':>8}{'of limit':>10}{'torch ms':>10}{'ratio':>8}")
    for shape in SHAPES:
        for name in options.dtypes:
            ours, torchs, size = decode_attention(shape, getattr(torch, name), options.repeat, clock)
            entries, length, kv_heads, group, head_dim = shape
            words = f"{entries} x {length}, {kv_heads * group}/{kv_heads} x {head_dim} {name}"
            print(
                f"{words:34}{ours * 1e3:8.2f}{size / ours / 1e9:8.1f}{size / ours / rate:10.2f}"
                f"{torchs * 1e3:10.2f}{ours / torchs:8.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
