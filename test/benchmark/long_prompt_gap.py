"""How long streams stand still while a long prompt is prefilled, for each round policy.

    python test/benchmark/long_prompt_gap.py --server "--model_dir DIR --data_type bf16 --max_req_total_len 4096"

For each policy a server is started. The long prompt is sent alone first: its time to the first token, divided by its chunks, is what one
chunk takes. Then another one as long arrives while the streams decode. With `mixed` the longest gap in any stream should be below
twice a chunk's time, for each round has one chunk and a token for everybody. Needs an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import shlex
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmark.serving.with_server import running_server  # noqa: E402

from lightllm.bench.apis import NativeApi, Outcome  # noqa: E402
from lightllm.bench.dataset import Request  # noqa: E402
from lightllm.bench.http_stream import Target, post_events  # noqa: E402

POLICIES = ("mixed", "prefill_first", "decode_first")
TIMEOUT = 1800.0


class Client:
    """Streams of random token ids: no two prompts have a common prefix."""

    def __init__(self, port: int, vocab: int) -> None:
        self._target = Target("127.0.0.1", port)
        self._api = NativeApi(ignore_eos=True)
        self._random = np.random.default_rng(port)
        self._vocab = vocab

    def start(self, prompt: int, output: int) -> tuple[Outcome, asyncio.Task[None]]:
        """Sends a request; the outcome grows as its tokens come."""
        outcome = Outcome(output, start=time.perf_counter())
        ids = self._random.integers(100, self._vocab, prompt).tolist()
        body = self._api.body(Request(ids, prompt, output))

        def take(data: bytes, now: float) -> None:
            self._api.read(data, now, outcome)

        return outcome, asyncio.create_task(post_events(self._target, self._api.path, body, take, TIMEOUT))


async def measure(client: Client, options: argparse.Namespace) -> dict[str, float]:
    """Milliseconds: `chunk` a chunk of the long prompt alone; `before` the longest gap in any stream before it arrives,
    `gap` from its arrival to its first token; `ttft` its own."""
    _, warm_up = client.start(options.chunk, 2)
    await warm_up
    alone, task = client.start(options.prompt, 1)
    await task
    chunks = math.ceil(options.prompt / options.chunk)
    streams = [client.start(64, options.output) for _ in range(options.streams)]
    while any(outcome.output_tokens < 16 for outcome, _ in streams):
        await asyncio.sleep(0.01)
    first_all = max(outcome.times[0] for outcome, _ in streams)
    arrival = time.perf_counter()
    long, task = client.start(options.prompt, 4)
    await task
    for _, stream in streams:
        stream.cancel()
    await asyncio.gather(*(stream for _, stream in streams), return_exceptions=True)
    if any(outcome.times[-1] < long.times[0] for outcome, _ in streams):
        raise SystemExit("a stream ended before the long prompt was complete: raise --output")
    return {
        "chunk": alone.ttft / chunks * 1e3,
        "before": max(_longest_gap(outcome.times, first_all, arrival) for outcome, _ in streams) * 1e3,
        "gap": max(_longest_gap(outcome.times, arrival, long.times[-1]) for outcome, _ in streams) * 1e3,
        "ttft": long.ttft * 1e3,
    }


def _longest_gap(times: list[float], start: float, end: float) -> float:
    """The longest gap between two tokens that overlaps with [start, end]."""
    pairs = zip(times, times[1:], strict=False)
    return max((later - earlier for earlier, later in pairs if later > start and earlier < end), default=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--server", default="", help="options of the server")
    parser.add_argument("--policy", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=3500, help="tokens of the long prompt")
    parser.add_argument(
        "--output", type=int, default=512, help="tokens of each stream, of which the rest is cut off"
    )
    parser.add_argument("--chunk", type=int, default=512, help="the server's --chunked_prefill_size")
    parser.add_argument("--vocab", type=int, default=32_000)
    options = parser.parse_args()
    rows = []
    for policy in options.policy:
        with running_server(
            [
                *shlex.split(options.server),
                "--round_policy",
                policy,
                "--chunked_prefill_size",
                str(options.chunk),
            ]
        ) as port:
            rows.append((policy, asyncio.run(measure(Client(port, options.vocab), options))))
    print(
        f"{options.streams} streams, then a prompt of {options.prompt} tokens in chunks of {options.chunk}; milliseconds"
    )
    print(f"{'policy':14}{'chunk alone':>12}{'gap before':>12}{'longest gap':>12}{'ratio':>8}{'TTFT':>10}")
    for policy, found in rows:
        print(f"{policy:14}{found['chunk']:12.0f}{found['before']:12.0f}{found['gap']:12.0f}"
              f"{found['gap'] / found['chunk']:8.2f}{found['ttft']:10.0f}")  # fmt: skip


if __name__ == "__main__":
    main()
