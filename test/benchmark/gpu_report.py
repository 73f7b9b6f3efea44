"""What this GPU reaches, each figure with the limit that its hardware sets: writes <GPU>.json and <GPU>.md.

    python test/benchmark/gpu_report.py --out docs/benchmarks [--budget 600] [--only decode] [--add]
    python test/benchmark/gpu_report.py --dry           # tiny shapes, also on a CPU: does it run at all?

Needs an otherwise idle GPU and no checkpoint: weights are random, in the shapes of real models.
"""

from __future__ import annotations

import argparse
import functools
import gc
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from benchmark.gpu import attention, peers, rounds, serving  # noqa: E402
from benchmark.gpu.clock import Limits  # noqa: E402
from benchmark.gpu.figures import Figure, Report  # noqa: E402
from model.test_llama import SHAPES  # noqa: E402

DRY_SHAPE = SHAPES["m3"] | {"vocab_size": 512}
Work = Callable[..., Iterable[Figure]]


def sections(
    device: torch.device, limits: Limits, dry: bool
) -> list[tuple[str, Callable[[], Iterable[Figure]]]]:
    """The most wanted figures first: the time may not suffice for all of them."""

    def of(work: Work, name: str) -> Callable[[], Iterable[Figure]]:
        return functools.partial(work, name, DRY_SHAPE if dry else SHAPES[name], device, limits, dry)

    def alone(work: Work) -> Callable[[], Iterable[Figure]]:
        return functools.partial(work, device, limits, dry)

    server = functools.partial(
        serving.start_and_load, "llama-7b", DRY_SHAPE if dry else SHAPES["llama-7b"], device, dry
    )
    return [
        ("Limits", functools.partial(limits.measure, device, dry)),
        ("Llama-7B, round by round", of(rounds.decode_and_prefill, "llama-7b")),
        ("Decode attention", alone(attention.decode)),
        ("Prefill attention", alone(attention.prefill)),
        ("Llama-3.1-8B, round by round", of(rounds.decode_and_prefill, "llama-3.1-8b")),
        ("Qwen3-0.6B, mini-sglang's workload", of(rounds.offline_workload, "qwen3-0.6b")),
        ("Server, Llama-7B", server),
        ("Qwen3-14B, mini-sglang's workload", of(rounds.offline_workload, "qwen3-14b")),
        ("Beside transformers, Llama-3.1-8B", of(peers.continuous_batching, "llama-3.1-8b")),
    ]


def machine(device: torch.device, dry: bool) -> dict[str, Any]:
    import triton

    facts: dict[str, Any] = {"device": "dry run", "torch": torch.__version__, "triton": triton.__version__}
    if device.type == "cuda" and not dry:
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "device": properties.name,
            "CUDA": torch.version.cuda,
            "memory_GiB": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
        }
    return facts


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmark-out"))
    parser.add_argument(
        "--budget", type=float, default=3600.0, help="seconds after which no section begins any more"
    )
    parser.add_argument("--only", default="", help="sections whose title holds this, and the limits")
    parser.add_argument("--add", action="store_true", help="keep what the files hold of other sections")
    parser.add_argument("--dry", action="store_true", help="tiny shapes")
    given = parser.parse_args()
    if not given.dry and not torch.cuda.is_available():
        parser.error("torch finds no GPU; --dry runs on a CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report = Report(machine(device, given.dry), given.budget, given.out, given.add)
    for title, work in sections(device, Limits(), given.dry):
        if title == "Limits" or given.only.lower() in title.lower():
            report.run(title, work)
            gc.collect()
            if device.type == "cuda":  # the next section may start a server, which needs the memory
                torch.cuda.empty_cache()
    failed = [section for section in report.sections if section.error]
    for section in failed:
        print(f"{section.title}: {section.error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
