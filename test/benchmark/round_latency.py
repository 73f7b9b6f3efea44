"""Measures rounds of a model on this machine and fits a latency model for the simulator to them.

python test/benchmark/round_latency.py --model DIR --json m1.json
python -m lightllm.simulate --latency-model m1.json --capacity 65536
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lightllm.backend.mode_backend import ModeBackend
from lightllm.config import ServerConfig
from lightllm.protocol.arrays import EMPTY_INT32, int32
from lightllm.protocol.rounds import JoinRow, Round
from lightllm.sampling_params import SamplingParams
from lightllm.simulate.latency import fit


class Rounds:
    """Makes rounds of equal rows, each with slots of its own side by side, and times them."""

    def __init__(self, model: str, rows: int, longest: int, data_type: str, threads: int) -> None:
        self._longest = longest
        self._seq = 0
        self._params = SamplingParams(do_sample=False, max_new_tokens=longest, ignore_eos=True, logprobs=-1)
        config = ServerConfig(
            model_dir=model, data_type=data_type, max_total_token_num=rows * longest, max_req_total_len=longest,
            running_max_req_size=rows, cpu_threads=threads,
        )  # fmt: skip
        self._backend = ModeBackend(config, 0, 1)
        self._backend.init_model()

    def prefill(self, rows: int, start: int, count: int) -> float:
        """Seconds of a round in which each of `rows` computes `count` tokens behind `start`, which are there."""
        tokens = np.random.default_rng(0).integers(5, 300, rows * count)
        joins = [] if start else [JoinRow(row, count, self._params, row, 0, []) for row in range(rows)]
        return self._run(rows, 0, start, count, int32(tokens), joins)

    def decode(self, rows: int, start: int) -> float:
        return self._run(rows, rows, start, 1, EMPTY_INT32, [])

    def _run(
        self, rows: int, decoding: int, start: int, count: int, tokens: np.ndarray, joins: list[JoinRow]
    ) -> float:
        slots = (np.arange(rows)[:, None] * self._longest + np.arange(start, start + count)).ravel()
        self._seq += 1
        round_ = Round(
            self._seq, decoding, int32(range(rows)), int32([count] * rows), int32([start + count] * rows),
            np.ones(rows, dtype=np.uint8), tokens, int32(slots), joins,
        )  # fmt: skip
        begun = time.perf_counter()
        self._backend.execute(round_)
        return time.perf_counter() - begun


def measure(rounds: Rounds, rows: list[int], contexts: list[int], repeats: int) -> list[list[float]]:
    """[[computed, held, seconds], ...], the medians of `repeats`."""
    points = []
    for count in tqdm([(r, c) for r in rows for c in contexts], unit=" points"):
        batch, context = count
        prefills = [rounds.prefill(batch, 0, context) for _ in range(min(repeats, 3))]
        points.append([batch * context, batch * context, float(np.median(prefills))])
        decodes = [rounds.decode(batch, context + i) for i in range(repeats)]
        points.append([batch, batch * (context + repeats // 2), float(np.median(decodes))])
    return points


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--contexts", type=int, nargs="+", default=[16, 64, 256, 512])
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--data_type", default="bf16")
    parser.add_argument("--threads", type=int, default=0, help="0: as the server chooses")
    parser.add_argument("--most_tokens", type=int, default=2048, help="of a round; larger ones are left out")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    longest = max(options.contexts) + options.repeats + 1
    rounds = Rounds(options.model, max(options.rows), longest, options.data_type, options.threads)
    points = []
    for rows in options.rows:
        contexts = [context for context in options.contexts if rows * context <= options.most_tokens]
        points += measure(rounds, [rows], contexts, options.repeats)
    constants = dict(zip(("floor", "per_token", "per_held", "fixed"), fit(points), strict=True))
    for computed, held, seconds in points:
        fitted = max(constants["floor"], constants["per_token"] * computed) + constants["per_held"] * held
        print(f"{computed:6d} computed {held:7d} held: {seconds * 1e3:9.1f} ms, "
              f"fitted {(fitted + constants['fixed']) * 1e3:9.1f}")  # fmt: skip
    print(constants)
    if options.json:
        options.json.write_text(json.dumps({"points": points}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
