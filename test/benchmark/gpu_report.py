"""What this GPU reaches, each figure with the limit that its hardware sets: writes <GPU>.json and <GPU>.md.

    python test/benchmark/gpu_report.py --out docs/benchmarks [--budget 600] [--only decode] [--add]
    python test/benchmark/gpu_report.py --dry           # tiny shapes, also on a CPU: does it run at all?

Needs an otherwise idle GPU and no checkpoint: weights are random, in the shapes of real models.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import signal
import subprocess
import sys
import time
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
LIMITS = "Limits"
TITLES = [
    LIMITS,
    "Llama-7B, round by round",
    "Decode attention",
    "Prefill attention",
    "Llama-3.1-8B, round by round",
    "Qwen3-0.6B, mini-sglang's workload",
    "Server, Llama-7B",
    "Qwen3-14B, mini-sglang's workload",
    "Beside transformers, Llama-3.1-8B",
]
"""The most wanted figures first: the time may not suffice for all of them."""
SECONDS, SECONDS_OTHERWISE = {LIMITS: 60.0, "Server, Llama-7B": 300.0}, 180.0
"""After which a section's process is ended."""
Work = Callable[..., Iterable[Figure]]


def sections(
    device: torch.device, limits: Limits, dry: bool
) -> list[tuple[str, Callable[[], Iterable[Figure]]]]:
    """Each of `TITLES` with what it runs."""

    def of(work: Work, name: str) -> Callable[[], Iterable[Figure]]:
        return functools.partial(work, name, DRY_SHAPE if dry else SHAPES[name], device, limits, dry)

    def alone(work: Work) -> Callable[[], Iterable[Figure]]:
        return functools.partial(work, device, limits, dry)

    server = functools.partial(
        serving.start_and_load, "llama-7b", DRY_SHAPE if dry else SHAPES["llama-7b"], device, dry
    )
    works: list[Callable[[], Iterable[Figure]]] = [
        functools.partial(limits.measure, device, dry),
        of(rounds.decode_and_prefill, "llama-7b"),
        alone(attention.decode),
        alone(attention.prefill),
        of(rounds.decode_and_prefill, "llama-3.1-8b"),
        of(rounds.offline_workload, "qwen3-0.6b"),
        server,
        of(rounds.offline_workload, "qwen3-14b"),
        of(peers.continuous_batching, "llama-3.1-8b"),
    ]
    return list(zip(TITLES, works, strict=True))


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
    given = parse_args()
    if not given.dry and not torch.cuda.is_available():
        given.parser.error("torch finds no GPU; --dry runs on a CPU")
    if given.apart:
        return run_apart(given)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report = Report(machine(device, given.dry), given.budget, given.out, given.add)
    limits = Limits(*given.rates)
    for title, work in sections(device, limits, given.dry):
        if wanted(title, given) and not (title == LIMITS and given.rates):
            report.run(title, work)
            gc.collect()
            if device.type == "cuda":  # the next section may start a server, which needs the memory
                torch.cuda.empty_cache()
    failed = [section for section in report.sections if section.error]
    for section in failed:
        print(f"{section.title}: {section.error}", file=sys.stderr)
    return 1 if failed else 0


def parse_args() -> argparse.Namespace:
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
    parser.add_argument(
        "--apart", action=argparse.BooleanOptionalAction, help="a process for each section; on a GPU it is so"
    )
    parser.add_argument(
        "--rates", type=float, nargs=2, default=[], help="bytes and operations a second, measured before"
    )
    given = parser.parse_args()
    given.apart = not given.dry if given.apart is None else given.apart
    given.parser = parser
    return given


def wanted(title: str, given: argparse.Namespace) -> bool:
    return title == LIMITS or given.only.lower() in title.lower()


def run_apart(given: argparse.Namespace) -> int:
    """Each section in a process of its own, which has a GPU without leftovers; one that crashes or hangs ends alone."""
    deadline = time.monotonic() + given.budget
    report: Report | None = None
    failed = []
    for title in TITLES:
        if not wanted(title, given):
            continue
        left = deadline - time.monotonic()
        rates = [] if report is None else rates_of(report)
        status = run_section(title, given, rates, left) if left > 0 else "not run: the time was up"
        if report is None:
            facts = newest_machine(given.out)
            if status or facts is None:
                print(f"{LIMITS}: {status or 'nothing was measured'}", file=sys.stderr)
                return 1
            report = Report(facts, 0.0, given.out, add=True)
        else:
            report.read_again()
        if status:
            failed.append(f"{title}: {status}")
            report.mark(title, status)
    print("\n".join(failed), file=sys.stderr)
    return 1 if failed else 0


def rates_of(report: Report) -> list[str]:
    bandwidth, flops = report.figures(LIMITS)
    return [str(bandwidth.value * 1e9), str(flops.value * 1e12)]


def run_section(title: str, given: argparse.Namespace, rates: list[str], left: float) -> str:
    """Why it failed, or nothing. What it had measured until then is in the report's files."""
    command = [sys.executable, __file__, "--no-apart", "--only", title, "--out", str(given.out)]
    command += ["--dry"] if given.dry else []
    command += ["--rates", *rates] if rates else []
    command += ["--add"] if rates or given.add else []
    limit = min(left, SECONDS.get(title, SECONDS_OTHERWISE))
    with subprocess.Popen(command) as process:
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # what it has measured so far is written
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
            return f"ended after {limit:.0f} s"
    if status < 0:
        return f"died of {signal.Signals(-status).name}"
    return "failed: see its output" if status else ""


def newest_machine(out: Path) -> dict[str, Any] | None:
    files = sorted(out.glob("*.json"), key=lambda path: path.stat().st_mtime)
    return json.loads(files[-1].read_text())["machine"] if files else None


if __name__ == "__main__":
    sys.exit(main())
