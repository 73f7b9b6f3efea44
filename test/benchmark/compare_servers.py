"""Ours and a peer in one run: each server is started in turn, measured with the same requests, and stopped; ratios.

    python test/benchmark/compare_servers.py --model DIR \
        --peer "vllm serve {model} --served-model-name m --host 127.0.0.1 --port {port} --dtype bfloat16 --max-model-len 2048"

Needs an otherwise idle machine. Any server with OpenAI's /v1/completions that takes token ids and `ignore_eos` can be the peer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmark.serving.with_server import free_port  # noqa: E402

from lightllm.bench.apis import OpenAIApi  # noqa: E402
from lightllm.bench.dataset import Request  # noqa: E402
from lightllm.bench.figures import summarize  # noqa: E402
from lightllm.bench.http_stream import Target  # noqa: E402
from lightllm.bench.load import run  # noqa: E402

OURS = (
    "{python} -m lightllm.server.api_server --model_dir {model} --model_name m --host 127.0.0.1 --port {port} "
    "--data_type bf16 --max_req_total_len 2048"
)
SHOWN = (
    "ready_s", "idle_pss_mib", "seconds", "requests_per_s", "output_tokens_per_s", "tpot_ms", "ttft_ms", "longest_gap_ms",
    "cpu_ms_per_token", "failed", "wrong_length",
)  # fmt: skip


def workload(name: str, vocab: int, repetition: int) -> tuple[list[Request], int]:
    """(requests, how many at once). Lengths are the same in every repetition, contents are not."""
    words, lengths = np.random.default_rng([repetition, len(name)]), np.random.default_rng(1234)

    def requests(ins: Any, outs: Any) -> list[Request]:
        return [
            Request(words.integers(100, vocab, int(i)).tolist(), int(i), int(o)) for i, o in zip(ins, outs)
        ]

    if name == "b1":  # one stream
        return requests([128], [64]), 1
    if name == "thr":  # 32 at once, lognormal lengths
        ins = np.clip(lengths.lognormal(np.log(200) - 0.18, 0.6, 32), 8, 512)
        return requests(ins, np.clip(lengths.lognormal(np.log(100) - 0.18, 0.6, 32), 8, 256)), 32
    if name == "prefill":
        return requests([1024] * 4, [1] * 4), 4
    if name == "prefix":  # 16 prompts that share their first 768 tokens
        shared = words.integers(100, vocab, 768).tolist()
        own = [words.integers(100, vocab, 32).tolist() for _ in range(16)]
        return [Request(shared + tail, 800, 16) for tail in own], 16
    if name == "overhead":  # for models that compute nothing: the server itself
        return requests([64] * 200, [64] * 200), 32
    raise SystemExit(f"unknown workload {name!r}: b1, thr, prefill, prefix or overhead")


def wait_ready(process: subprocess.Popen[bytes], port: int, limit: float) -> float:
    """Seconds from the start until the server answers a request."""
    start = time.monotonic()
    body = json.dumps({"model": "m", "prompt": [100, 101], "max_tokens": 1}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"}
    )
    while time.monotonic() < start + limit:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with status {process.returncode} before it was ready")
        try:
            urllib.request.urlopen(request, timeout=60).read()
            return time.monotonic() - start
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise SystemExit(f"no answer within {limit:g} s")


def tree(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    root = psutil.Process(process.pid)
    return [root, *root.children(recursive=True)]


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    return sum(sum(member.cpu_times()[:2]) for member in tree(process))


def measure(command: str, options: argparse.Namespace, repetition: int, log: Path) -> dict[str, float]:
    """One server's figures, by "workload figure"."""
    port = free_port()
    words = shlex.split(command.format(python=sys.executable, model=options.model, port=port))
    vocab = json.loads((Path(options.model) / "config.json").read_text())["vocab_size"]
    figures: dict[str, float] = {}
    with log.open("ab") as file:
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)
    try:
        figures["server ready_s"] = wait_ready(process, port, options.start_limit)
        time.sleep(2)
        figures["server idle_pss_mib"] = sum(m.memory_full_info().pss for m in tree(process)) / 2**20
        target, api = Target.from_url(f"http://127.0.0.1:{port}"), OpenAIApi(True, "m")
        for name in options.work.split(","):
            requests, at_once = workload(name, vocab, repetition)
            cpu = cpu_seconds(process)
            done = asyncio.run(
                run(target, api, requests, rate=float("inf"), seed=0, max_concurrency=at_once, timeout=3600)
            )
            cpu = cpu_seconds(process) - cpu
            all_figures = summarize(done)
            all_figures["cpu_ms_per_token"] = 1e3 * cpu / max(all_figures["output_tokens"], 1)
            all_figures["longest_gap_ms"] = all_figures["itl_ms"].get("max")
            for key in SHOWN:
                value = all_figures.get(key)
                value = value.get("p50") if isinstance(value, dict) else value
                if value is not None:
                    figures[f"{name} {key}"] = float(value)
    finally:
        process.terminate()
        process.wait(120)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--work", default="b1,thr,prefill", help="of b1, thr, prefill, prefix, overhead")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--ours", default=OURS)
    parser.add_argument("--peer", default="", help="command with {model} and {port}; serves the model as `m`")
    parser.add_argument("--start-limit", type=float, default=1200.0, help="seconds")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sides = {"ours": options.ours} | ({"peer": options.peer} if options.peer else {})
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for repetition in range(options.repeat):
        for side, command in sides.items():
            found[side].append(measure(command, options, repetition, Path(f"compare-{side}.log")))
    middle = {side: {key: median(r[key] for r in runs) for key in runs[0]} for side, runs in found.items()}
    print(f"{'workload and figure':<32}{'ours':>12}{'peer':>12}{'ours/peer':>11}")
    for key, value in middle["ours"].items():
        other = middle.get("peer", {}).get(key)
        ratio = f"{value / other:11.3g}" if other else ""
        print(f"{key:<32}{value:12.4g}{'' if other is None else format(other, '12.4g')}{ratio}")
    if options.json:
        options.json.write_text(json.dumps(middle, indent=1))


if __name__ == "__main__":
    main()
