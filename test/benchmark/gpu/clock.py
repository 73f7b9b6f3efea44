"""Time of device work: by events on a GPU, by the clock on a CPU; and the rates that set the limits."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from statistics import median

import torch
from benchmark.gpu.figures import Figure


def measure(
    work: Callable[[], object],
    device: torch.device,
    seconds: float = 0.5,
    inner: int = 1,
    graphed: bool = False,
) -> float:
    """Median seconds of one `work()`, after a warm-up. Each sample runs it `inner` times, which hides the launches of
    short kernels; graphed: as a captured graph, as decoding runs them, so that the host's part is no part of it."""
    for _ in range(3):
        work()
    sample = functools.partial(_sample, work, device, inner)
    if graphed and device.type == "cuda":
        sample = functools.partial(_sample, _captured(work, inner), device, 1)
    samples: list[float] = []
    synchronize(device)
    deadline = time.monotonic() + seconds
    while len(samples) < 5 or (time.monotonic() < deadline and len(samples) < 200):
        samples.append(sample())
    return median(samples) / (inner if graphed and device.type == "cuda" else 1)


def _captured(work: Callable[[], object], inner: int) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(inner):
            work()
    graph.replay()
    return graph.replay


def _sample(work: Callable[[], object], device: torch.device, inner: int) -> float:
    if device.type != "cuda":
        started = time.perf_counter()
        for _ in range(inner):
            work()
        return (time.perf_counter() - started) / inner
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(inner):
        work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / inner


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_bandwidth(device: torch.device, nbytes: int) -> float:
    """Bytes per second, read and written, of a copy of `nbytes` within the device."""
    source = torch.randint(0, 255, (nbytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * nbytes / measure(lambda: target.copy_(source), device)


def matmul_rate(device: torch.device, size: int, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a square product on random data."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    b = torch.randn(size, size, device=device, dtype=dtype)
    out = torch.empty_like(a)
    return 2.0 * size**3 / measure(lambda: torch.matmul(a, b, out=out), device)


class Limits:
    """Measured once, first; or given: bytes a second of a copy, operations a second of a product."""

    def __init__(self, bandwidth: float = 0.0, flops: float = 0.0) -> None:
        self.bandwidth, self.flops = bandwidth, flops

    def measure(self, device: torch.device, dry: bool) -> list[Figure]:
        self.bandwidth = copy_bandwidth(device, 1 << (22 if dry else 32))
        self.flops = matmul_rate(device, 256 if dry else 8192, torch.float32 if dry else torch.bfloat16)
        return [
            Figure("copy within the device, bytes read and written", self.bandwidth / 1e9, "GB/s"),
            Figure("matrix product, random data", self.flops / 1e12, "TFLOP/s"),
        ]

    def seconds(self, weights: float, operations: float, kv: float = 0.0) -> float:
        """The least time of a round that reads so many bytes of weights and of KV memory. Its products overlap with the reading of
        their weights; attention comes between them, and overlaps with neither."""
        return max(weights / self.bandwidth, operations / self.flops) + kv / self.bandwidth
