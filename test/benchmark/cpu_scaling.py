"""What a server on a CPU gains from threads, and what it keeps when another process takes half of the cores.

    python test/benchmark/cpu_scaling.py --model DIR [--work thr]

Each server is started anew and measured with the same requests. `beside` is the server with all threads while a process that never
waits runs on each of half of the cores: a fair scheduler leaves it the others and half of these. Needs an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmark.compare_servers import OURS, measure  # noqa: E402


@contextmanager
def busy(cores: list[int]) -> Iterator[None]:
    """A process that never waits on each of them."""
    loop = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"
    processes = [subprocess.Popen([sys.executable, "-c", loop, str(core)]) for core in cores]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--work", default="thr", choices=("b1", "thr", "prefill", "prefix"))
    parser.add_argument("--ours", default=OURS, help="command with {model} and {port}")
    parser.add_argument("--start-limit", type=float, default=1200.0, help="seconds")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    threads, taken = len(cores), cores[len(cores) // 2 :]
    key, log = f"{options.work} output_tokens_per_s", Path("cpu-scaling.log")

    def tokens_per_s(count: int) -> float:
        return measure(f"{options.ours} --cpu_threads {count}", options, 0, log)[key]

    one, together = tokens_per_s(1), tokens_per_s(threads)
    with busy(taken):
        beside = tokens_per_s(threads)
    fair = (threads - len(taken) / 2) / threads
    print(
        f"{options.work}: 1 thread {one:.1f} tokens/s, {threads} threads {together:.1f}: {together / one:.2f} times"
    )
    print(
        f"beside processes on {len(taken)} of {threads} cores {beside:.1f}: {beside / together:.2f} of it, "
        f"{beside / together / fair:.2f} of a fair share of {fair:.2f}"
    )


if __name__ == "__main__":
    main()
