"""Measures how long tensor parallel ranks take to load a checkpoint together: wall time, from the start to the last one.

    python test/benchmark/loading_ranks.py                       # writes a Llama shape of 790 MB to a temporary folder
    python test/benchmark/loading_ranks.py --model DIR --ranks 1 2 4 --repeats 5

One process a rank with its share of the cores, as in the server; imports are done before the clock starts. Each number of
ranks is measured in turn, `--repeats` times, with the files out of the page cache (as far as POSIX_FADV_DONTNEED goes) and
in it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def load(model: str, rank: int, world: int) -> None:
    """A rank's main: says when it is ready, waits for a line, loads, says what it found."""
    import torch

    from lightllm.distributed.tp_group import TpGroup
    from lightllm.machine import rank_threads
    from lightllm.models.registry import load_model

    cpu = torch.device("cpu")
    torch.set_num_threads(rank_threads(world))
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.process_time()
    with torch.inference_mode():
        loaded = load_model(model, data_type=None, device=cpu, group=TpGroup(rank, world))
    cpu_seconds = time.process_time() - started
    print(json.dumps({"cpu_seconds": cpu_seconds, "weights": loaded.weight_bytes}), flush=True)


def measure(model: Path, world: int, cold: bool) -> dict[str, Any]:
    """Seconds until the last of `world` ranks has loaded; of one rank the processor's seconds and the bytes it holds."""
    command = [sys.executable, __file__, "--model", str(model), "--load"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "test")])}
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(world)], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for rank in range(world)
    ]  # fmt: skip
    for rank in ranks:
        assert rank.stdout is not None and rank.stdout.readline() == "ready\n"
    for file in model.glob("*.safetensors"):
        if cold:
            forget(file)
        else:
            file.read_bytes()
    started = time.perf_counter()
    for rank in ranks:
        assert rank.stdin is not None
        rank.stdin.write("go\n")
        rank.stdin.flush()
    found = [json.loads(rank.stdout.readline()) for rank in ranks if rank.stdout is not None]
    seconds = time.perf_counter() - started
    for rank in ranks:
        rank.communicate()
    return {**found[0], "seconds": seconds, "cpu_seconds": max(rank["cpu_seconds"] for rank in found)}


def forget(file: Path) -> None:
    """Takes a file out of the page cache, once it is on disk."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def write_model(path: Path) -> Path:
    """Half a dozen layers of TinyLlama's shape, in shards of 200 MB."""
    sys.path.insert(0, str(ROOT / "test"))
    from support.checkpoints import make_checkpoint

    return make_checkpoint(
        path, dtype="bfloat16", vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=6,
        num_attention_heads=32, num_key_value_heads=4, head_dim=64, std=0.02, max_shard_size="200MB",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a folder with safetensors; default: random weights")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--load", nargs=2, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        return load(arguments.model, *arguments.load)
    with tempfile.TemporaryDirectory(prefix="lightllm-loading-") as folder:
        model = Path(arguments.model) if arguments.model else write_model(Path(folder) / "model")
        size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
        print(f"{size / 1e6:.0f} MB, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        runs: dict[tuple[bool, int], list[float]] = {}
        for _ in range(arguments.repeats):
            for cold in (True, False):
                for world in arguments.ranks:
                    found = measure(model, world, cold)
                    runs.setdefault((cold, world), []).append(found["seconds"])
                    print(f"  {world} ranks, {'cold' if cold else 'warm'}: {found['seconds']:.2f} s, "
                          f"{found['cpu_seconds']:.2f} s of the processor and {found['weights'] / 1e6:.0f} MB each", flush=True)  # fmt: skip
        for (cold, world), seconds in runs.items():
            print(f"{world} ranks, {'cold' if cold else 'warm'}: median {statistics.median(seconds):.2f} s")


if __name__ == "__main__":
    main()
