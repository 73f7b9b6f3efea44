"""Where the time of a prefill round goes: `python test/benchmark/prefill_round.py --model DIR [--prompts 4] [--tokens 1024] [--chunk 512]`.

Prompts are computed in the backend without a server, in rounds of `--chunk` tokens as the Router makes them, a prompt after the
other. Each operation's time is printed beside the limit that the fastest matrix product sets for its flops, where it has some.
Needs an idle machine.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from lightllm.backend.mode_backend import ModeBackend
from lightllm.config import ServerConfig
from lightllm.ops.attention_backends.protocol import AttentionCall
from lightllm.ops.cpu import gated_activation, rms_norm, rotary
from lightllm.ops.cpu.block_attention import BlockAttention
from lightllm.ops.cpu.panel_linear import PanelLinear
from lightllm.ops.linear import OneDnnLinear
from lightllm.protocol.arrays import int32
from lightllm.protocol.rounds import JoinRow, Round
from lightllm.sampling_params import SamplingParams


class Times:
    """Seconds and flops of each operation, by name."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = defaultdict(int)
        self.seconds: dict[str, float] = defaultdict(float)
        self.flops: dict[str, float] = defaultdict(float)

    def timed(
        self, function: Callable[..., Any], name: Callable[..., tuple[str, float]]
    ) -> Callable[..., Any]:
        """name: from the function's arguments to the operation's name and its flops."""

        def run(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = function(*args, **kwargs)
            key, flops = name(*args, **kwargs)
            self.seconds[key] += time.perf_counter() - started
            self.flops[key] += flops
            self.calls[key] += 1
            return result

        return run


def linear(self: Any, x: torch.Tensor, *args: Any) -> tuple[str, float]:
    weights = self.nbytes // 2
    outputs = weights // x.shape[1]
    return f"linear {outputs} x {x.shape[1]}", 2.0 * len(x) * weights


def attention(self: Any, call: AttentionCall) -> tuple[str, float]:
    metadata, heads, head_dim = call.metadata, *call.q.shape[1:]
    q_lens, kv_lens = np.diff(metadata.q_start.numpy()), metadata.kv_len.numpy()
    return "attention", 4.0 * heads * head_dim * float((q_lens * (kv_lens - (q_lens - 1) / 2)).sum())


@contextmanager
def measured(times: Times) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for form in (PanelLinear, OneDnnLinear):
            patch.setattr(form, "__call__", times.timed(form.__call__, linear))
        patch.setattr(BlockAttention, "prefill", times.timed(BlockAttention.prefill, attention))
        patch.setattr(
            BlockAttention, "decode", times.timed(BlockAttention.decode, lambda *_: ("decode attention", 0.0))
        )
        for module, function in (
            (gated_activation, "gated_activation"),
            (rms_norm, "rms_norm"),
            (rotary, "rotary_and_write_kv"),
        ):
            timed = times.timed(getattr(module, function), lambda *_, name=function, **__: (name, 0.0))
            patch.setattr(module, function, timed)
        yield


def rounds(prompts: int, tokens: int, chunk: int, first_seq: int) -> list[Round]:
    """Prompts of `tokens` tokens, filled into rounds of `chunk` tokens one after the other."""
    params = SamplingParams(do_sample=False, max_new_tokens=1, ignore_eos=True, logprobs=-1)
    ids = np.random.default_rng(first_seq).integers(5, 300, (prompts, tokens))
    found: list[Round] = []
    done = [0] * prompts
    while any(count < tokens for count in done):
        parts, room = [], chunk
        for row in range(prompts):
            count = min(tokens - done[row], room)
            if count:
                parts.append((row, done[row], done[row] + count))
                done[row] += count
                room -= count
        joins = [JoinRow(row, tokens, params, row, 0, []) for row, begin, _ in parts if begin == 0]
        found.append(
            Round(
                first_seq + len(found), 0, int32([row for row, _, _ in parts]), int32([end - begin for _, begin, end in parts]),
                int32([end for _, _, end in parts]), np.array([end == tokens for _, _, end in parts], dtype=np.uint8),
                int32(np.concatenate([ids[row, begin:end] for row, begin, end in parts])),
                int32(np.concatenate([np.arange(row * tokens + begin, row * tokens + end) for row, begin, end in parts])), joins,
                leaves=[row for row, begin, _ in parts if begin == 0 and first_seq],
            )
        )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--chunk", type=int, nargs="+", default=[512])
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0, help="0: as the server chooses")
    options = parser.parse_args()
    prompts, tokens = options.prompts, options.tokens
    backend = ModeBackend(
        ServerConfig(model_dir=options.model, data_type="bf16", max_total_token_num=prompts * tokens + 1024,
                     max_req_total_len=tokens + 16, cpu_threads=options.threads), 0, 1,
    )  # fmt: skip
    backend.init_model()
    seq = 0
    for chunk in options.chunk:
        seconds = []
        for _ in range(options.repeat):
            planned = rounds(prompts, tokens, chunk, seq)
            seq += len(planned)
            started = time.perf_counter()
            for round_ in planned:
                backend.execute(round_)
            seconds.append(time.perf_counter() - started)
        times = Times()
        planned = rounds(prompts, tokens, chunk, seq)
        seq += len(planned)
        started = time.perf_counter()
        with measured(times):
            for round_ in planned:
                backend.execute(round_)
        whole = time.perf_counter() - started
        print(
            f"chunks of {chunk}: {len(planned)} rounds take {' '.join(f'{s:.3f}' for s in seconds)} s; with clocks {whole:.3f}"
        )
        for name in sorted(times.seconds, key=lambda name: -times.seconds[name]):
            took, flops = times.seconds[name], times.flops[name]
            rate = f"{flops / took / 1e12:7.3f} TFLOP/s" if flops else ""
            print(
                f"  {name:24}{took:8.3f} s {took / whole:6.1%} {times.calls[name]:6} {took / times.calls[name] * 1e6:9.1f} us {rate}"
            )
        rest = whole - sum(times.seconds.values())
        print(f"  {'all else':24}{rest:8.3f} s {rest / whole:6.1%}", flush=True)


if __name__ == "__main__":
    main()
