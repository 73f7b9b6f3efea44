"""Wall and CPU time of decode rounds in the backend, without a server.

python test/benchmark/decode_round.py --model DIR [--rows 32] [--context 96] [--rounds 100] [--threads 1] [--shared 768] [--cached] \
    [--beside-eager] [--quant_type TYPE] [--beside TYPE_OR_FILE ...]

It runs with the OpenMP runtime that the server's backend has. With --beside-eager every second round is called from Python, kernel by
kernel, instead of being replayed. With --beside the same model is held once more for each --quant_type or file of --quant_cfg that is
named, and their rounds take turns: how fast memory is read changes within a minute on some machines, and their ratio does not.

With --cached the context is not computed but found in the prefix cache, which makes long ones possible, and the line says how much
longer a round takes than reading the weights and the KV of all rows once takes this machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

import numpy as np
import torch

from lightllm.backend.mode_backend import ModeBackend
from lightllm.config import ServerConfig
from lightllm.protocol.arrays import EMPTY_INT32, int32
from lightllm.protocol.rounds import JoinRow, Round
from lightllm.sampling_params import SamplingParams
from lightllm.server.environment import backend_environment


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--context", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, default=0, help="0: as the server chooses")
    parser.add_argument(
        "--shared", type=int, default=0, help="tokens of a prefix that all rows have in common"
    )
    parser.add_argument(
        "--cached", action="store_true", help="all of the context but its last token is there already"
    )
    parser.add_argument("--beside-eager", action="store_true")
    parser.add_argument("--quant_type", default="none")
    parser.add_argument("--quant_cfg")
    parser.add_argument("--beside", nargs="+", default=[], metavar="TYPE_OR_FILE")
    parser.add_argument("--llm_kv_type", default="None")
    options = parser.parse_args()
    variables = backend_environment(
        ServerConfig(model_dir=options.model, data_type="bf16", cpu_threads=options.threads)
    )
    if any(os.environ.get(name) != value for name, value in variables.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | variables)
    backends = {options.quant_cfg or options.quant_type: make(options, options.quant_type, options.quant_cfg)}
    for name in options.beside:
        kind, file = ("none", name) if os.path.exists(name) else (name, None)
        backends[name] = make(options, kind, file)
    middles = measure(backends, options)
    for name, middle in middles.items():
        if options.beside:
            print(f"{name}: {next(iter(middles.values())) / middle:.2f} times as fast as the first")
        if options.cached:
            print_limit(backends[name], options.rows * (options.context + options.rounds // 2), middle)


def room_of(options: argparse.Namespace) -> int:
    """Slots of a row."""
    return options.context + options.rounds + 20


def make(options: argparse.Namespace, quant_type: str, quant_cfg: str | None) -> ModeBackend:
    """A backend that has computed the context."""
    rows, context, room = options.rows, options.context, room_of(options)
    backend = ModeBackend(
        ServerConfig(model_dir=options.model, data_type="bf16", max_total_token_num=rows * room,
                     max_req_total_len=room, cpu_threads=options.threads, quant_type=quant_type,
                     quant_cfg=quant_cfg, llm_kv_type=options.llm_kv_type), 0, 1,
    )  # fmt: skip
    backend.init_model()
    params = SamplingParams(do_sample=False, max_new_tokens=room, ignore_eos=True, logprobs=-1)
    ones, sampled = int32([1] * rows), np.ones(rows, dtype=np.uint8)
    tokens = np.random.default_rng(0).integers(5, 300, rows * context)
    own = np.arange(rows)[:, None] * room + np.arange(context)
    own[:, : options.shared] = own[0, : options.shared]
    there = context - 1 if options.cached else 0
    if there:
        with torch.inference_mode():
            for layer in backend.memory.kv:
                layer.data.normal_()
    computed = context - there
    backend.execute(
        Round(0, 0, int32(range(rows)), ones * computed, ones * context, sampled, int32(tokens[: rows * computed]),
              int32(own[:, there:].ravel()),
              [JoinRow(row, context, params, row, 0, [], prefix_slots=int32(own[row, :there])) for row in range(rows)])
    )  # fmt: skip
    return backend


def measure(backends: dict[str, ModeBackend], options: argparse.Namespace) -> dict[str, float]:
    """Returns the median of a round in milliseconds, by the backend's name."""
    rows, room = options.rows, room_of(options)
    ones, sampled = int32([1] * rows), np.ones(rows, dtype=np.uint8)
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in backends}
    cpu = dict.fromkeys(backends, 0.0)
    replays = {name: backend.model.replays for name, backend in backends.items()}
    for number in range(1, options.rounds + 1):
        kv_len = options.context + number
        slots = int32([row * room + kv_len - 1 for row in range(rows)])
        eager = options.beside_eager and number % 2 == 1
        for name, backend in backends.items():
            round_ = Round(number, rows, int32(range(rows)), ones, ones * kv_len, sampled, EMPTY_INT32, slots)
            backend.model.replays = None if eager else replays[name]
            started, before = time.perf_counter(), time.process_time()
            backend.execute(round_)
            if number > 5:
                seconds[name][eager].append(time.perf_counter() - started)
                cpu[name] += 0 if eager else time.process_time() - before
    for name, (replayed, called) in seconds.items():
        if options.beside:
            print(f"{name}, {backends[name].model.weight_bytes / 1e9:.2f} GB of weights")
        print_seconds(rows, replayed, called, cpu[name])
        own = replays[name]
        if own is not None and own.refusal:
            print(f"nothing was replayed: {own.refusal}")
    return {name: float(np.median(own[0])) * 1e3 for name, own in seconds.items()}


def print_seconds(rows: int, replayed: list[float], called: list[float], cpu: float) -> None:
    middle, low = float(np.median(replayed)) * 1e3, min(replayed) * 1e3
    print(
        f"{rows} rows: a round takes {middle:.2f} ms (best {low:.2f}), {cpu / len(replayed) * 1e3:.2f} ms of CPU"
    )
    if called:
        print(f"called from Python {float(np.median(called)) * 1e3:.2f} ms (best {min(called) * 1e3:.2f})")


def print_limit(backend: ModeBackend, tokens: int, milliseconds: float) -> None:
    """How long a round over so many tokens of KV takes beside reading what it has to read."""
    token_bytes = sum(layer.data[0].nbytes for layer in backend.memory.kv)
    size = backend.model.weight_bytes + tokens * token_bytes
    data = torch.ones(1 << 28)  # 1 GiB
    reading = []
    for _ in range(8):
        started = time.perf_counter()
        data.sum()
        reading.append(time.perf_counter() - started)
    limit = size / (data.nbytes / min(reading)) * 1e3
    print(f"{size / 1e9:.2f} GB are read in {limit:.1f} ms: a round takes {milliseconds / limit:.2f} of that")


if __name__ == "__main__":
    main()
