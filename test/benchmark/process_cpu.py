"""CPU time that each process of the server takes for a streamed token: `python test/benchmark/process_cpu.py`.

    python test/benchmark/process_cpu.py [--server "--model_dir DIR"] [--streams 256] [--input 32] [--output 300] [--runs 3]

Starts a server (without options: the demo model), sends as many streams at once as many times, and takes from /proc what each process
used meanwhile, in its own code and in the kernel. The sum of Http Server, Router and Detokenizer is what the server adds to a
model. Needs an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmark.serving.with_server import running_server  # noqa: E402

from lightllm.bench.apis import OpenAIApi  # noqa: E402
from lightllm.bench.command import allow_many_connections  # noqa: E402
from lightllm.bench.dataset import synthetic  # noqa: E402
from lightllm.bench.http_stream import Target  # noqa: E402
from lightllm.bench.load import Run, run  # noqa: E402

SERVES = ("http", "router", "detokenizer")
"""Processes whose time a model does not need."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--server", default="", help="its options, as one word")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--input", type=int, default=32, help="tokens")
    parser.add_argument("--output", type=int, default=300, help="tokens")
    parser.add_argument("--vocab_size", type=int, default=400, help="prompts are of ids below it")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    allow_many_connections()
    with running_server(["--host", "127.0.0.1", *shlex.split(options.server)]) as port:
        server = next(
            child for child in psutil.Process().children() if "lightllm" in " ".join(child.cmdline())
        )
        load(port, options, 0)  # warm
        for number in range(1, options.runs + 1):
            before = used(server)
            result = load(port, options, number)
            time.sleep(0.5)  # the last results are on their way
            after = used(server)
            tokens = sum(outcome.output_tokens for outcome in result.outcomes)
            failed = sum(outcome.failure is not None for outcome in result.outcomes)
            print(f"run {number}: {tokens} tokens, {tokens / result.seconds:.0f} a second, {failed} failed")
            report(before, after, tokens)
            print(f"  {'client':14}{result.client_cpu / tokens * 1e6:8.1f} us a token")


def load(port: int, options: argparse.Namespace, seed: int) -> Run:
    requests = synthetic(options.streams, options.vocab_size, seed, options.input, options.output)
    api = OpenAIApi(True, "m")
    target = Target("127.0.0.1", port)
    return asyncio.run(
        run(target, api, requests, rate=float("inf"), seed=seed, max_concurrency=None, timeout=600, show_bar=False)
    )  # fmt: skip


def used(server: psutil.Process) -> dict[str, tuple[float, float]]:
    """Seconds of each process in its own code and in the kernel, by its title."""
    found = {}
    for process in (server, *server.children()):
        title = process.cmdline()[0].removeprefix("lightllm ")
        times = process.cpu_times()
        found[title] = (times.user, times.system)
    return found


def report(
    before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]], tokens: int
) -> None:
    served = 0.0
    for title, (user, system) in sorted(after.items()):
        user, system = (now - then for now, then in zip((user, system), before[title], strict=True))
        own, kernel = user / tokens * 1e6, system / tokens * 1e6
        if title.startswith(SERVES):
            served += own + kernel
        if own + kernel > 0.5:
            print(f"  {title:14}{own + kernel:8.1f} us a token ({own:.1f} own, {kernel:.1f} kernel)")
    print(f"  {'served':14}{served:8.1f} us a token: Http Server, Router and Detokenizer")


if __name__ == "__main__":
    main()
