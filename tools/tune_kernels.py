"""Measures configurations of the Triton kernels on this machine's GPU and keeps the best of each size.

    python tools/tune_kernels.py                     every kernel; minutes
    python tools/tune_kernels.py rms_norm sample     some of them

Writes lightllm/ops/triton/configs/<GPU name>.json, which ships with the package: nothing is tuned at start-up. Kernels that
are not tuned keep their entries. A candidate is measured in a captured graph, as decoding runs it, with what it reads in the
cache where it fits; one that does not compile or wants too much of the GPU is left out. Then compile what was found for
spills: `make test-kernels`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import pkgutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import triton
from kernels.tuning_case import TuningCase

from lightllm.ops.triton import launch

CASES = "kernels"
"""The package beside this file that lists what is measured."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("kernels", nargs="*", help="names of configurations; all if none is given")
    parser.add_argument("--device", default="cuda", help="cpu: the interpreter, to try this tool out")
    parser.add_argument("--write", type=Path, help="another file for the result")
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            parser.error("torch finds no usable GPU")
        device = torch.device("cuda", torch.cuda.current_device())
    cases = [case for case in tuning_cases() if not options.kernels or case.config in options.kernels]
    unknown = set(options.kernels) - {case.config for case in cases}
    if unknown:
        parser.error(f"nothing to tune is called {', '.join(sorted(unknown))}")
    name = launch.gpu_name(device) if device.type == "cuda" else "interpreter"
    found: dict[str, list[dict[str, Any]]] = {}
    for case in cases:
        entry = {"up_to": dict(case.up_to), **best_candidate(case, device)}
        found.setdefault(case.config, []).append(entry if case.up_to else {**entry, "up_to": {}})
    path = options.write or launch.CONFIGS / f"{name}.json"
    write(path, name, device, found)
    print(f"{path} written")
    return 0


def tuning_cases() -> Iterator[TuningCase]:
    package = importlib.import_module(CASES)
    for info in pkgutil.iter_modules(package.__path__):
        yield from getattr(importlib.import_module(f"{CASES}.{info.name}"), "TUNING_CASES", [])


def best_candidate(case: TuningCase, device: torch.device) -> dict[str, int]:
    """Raises `RuntimeError` if none can be launched."""
    run = case.make(device)
    timed: list[tuple[float, Mapping[str, int]]] = []
    for candidate in case.candidates:
        with launch.fixed_config(case.config, dict(candidate)):
            try:
                timed.append((microseconds(run, device), candidate))
            except Exception as error:  # whatever the compiler or the driver says: it is no candidate
                print(f"  {case.config} {dict(candidate)}: {type(error).__name__}")
    if not timed:
        raise RuntimeError(f"{case.config} {dict(case.sizes)}: no candidate can be launched")
    duration, best = min(timed, key=lambda pair: pair[0])
    slowest = max(pair[0] for pair in timed)
    print(
        f"{case.config} {dict(case.sizes)}: {dict(best)} {duration:.2f} us (slowest {slowest:.2f})",
        flush=True,
    )
    return dict(best)


def microseconds(run: Callable[[], object], device: torch.device) -> float:
    """Median duration of one launch."""
    for _ in range(
        3
    ):  # attention has another variant where its parts are made already: none is compiled while the clock runs
        run()
    if device.type == "cuda":
        return triton.testing.do_bench_cudagraph(run, rep=20, return_mode="median") * 1000
    durations = []
    for _ in range(3):
        started = time.perf_counter()
        run()
        durations.append(time.perf_counter() - started)
    return statistics.median(durations) * 1e6


def write(path: Path, name: str, device: torch.device, found: dict[str, list[dict[str, Any]]]) -> None:
    """Adds to what the file holds already."""
    known: dict[str, Any] = {"kernels": {}, "measured": []}
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
    kernels = {**known["kernels"], **{kernel: merged(entries) for kernel, entries in found.items()}}
    capability = [90] if device.type != "cuda" else [_architecture(device)]
    head = {
        "gpu": name.replace("_", " "),
        "architectures": known.get("architectures", capability),
        "measured": sorted({*known["measured"], *found}),
        "triton": triton.__version__,
        **{key: value for key, value in known.items() if key == "pdl"},
    }
    path.write_text(text_of(head, kernels), encoding="utf-8")


def _architecture(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


def merged(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbours with the same choice are one entry, up to the larger of their bounds."""
    result: list[dict[str, Any]] = []
    for entry in entries:
        previous = result[-1] if result else {}
        same = {**previous, "up_to": None} == {**entry, "up_to": None}
        bounds = previous.get("up_to", {}), entry["up_to"]
        if same and all(bounds[0].get(key, math.inf) <= bound for key, bound in bounds[1].items()):
            result[-1] = entry
        else:
            result.append(entry)
    return [{key: value for key, value in entry.items() if key != "up_to" or value} for entry in result]


def text_of(head: dict[str, Any], kernels: dict[str, list[dict[str, Any]]]) -> str:
    """One line an entry, as the files are written by hand."""
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    parts = []
    for kernel in sorted(kernels):
        entries = ",\n".join("      " + json.dumps(entry) for entry in kernels[kernel])
        parts.append(f"    {json.dumps(kernel)}: [\n{entries}\n    ]")
    return "\n".join(["{", *lines, '  "kernels": {\n' + ",\n".join(parts) + "\n  }", "}"]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
