"""What constrained output costs the streams of a server: their tokens a second with and without a constraint, and the time
between the tokens of other streams while huge schemas are compiled.

    python test/benchmark/constrained_serving.py --server "--model_dir DIR --data_type bf16 --max_req_total_len 4096" \
        [--only throughput | itl] [--batch 16] [--pairs 6] [--output 96] [--streams 8] [--seconds 3]

Throughput: `--batch` requests at once, with a schema under which they never end, and without, in turns; the ratio of each pair.
Between tokens: `--streams` streams run all the time; in turns for `--seconds` each they are alone, beside one short request after
the other, and beside such requests with a schema of `--kib` KiB each that no one has sent before. Percentiles are of each turn, and
of those the middle one counts. Needs an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import shlex
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmark.serving.with_server import running_server  # noqa: E402

from lightllm.bench.apis import NativeApi, Outcome  # noqa: E402
from lightllm.bench.http_stream import Target, post_events  # noqa: E402

TIMEOUT = 600.0
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 24},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
        "note": {"type": ["string", "null"]},
    },
    "required": ["name", "age", "tags", "note"],
    "additionalProperties": False,
}
ENDLESS = {"type": "array", "items": PERSON, "minItems": 10_000}


def huge_schema(kib: int, number: int) -> str:
    """Of `kib` KiB: objects of all kinds of properties; a different one for each number."""
    kinds: list[dict[str, Any]] = [
        {"type": "string", "maxLength": 40}, {"type": "integer", "minimum": -7, "maximum": 12345}, {"type": "number"},
        {"enum": [f"value {number} {i}" for i in range(20)]}, {"type": "array", "items": PERSON, "maxItems": 5}, PERSON,
        {"anyOf": [PERSON, {"type": "null"}, {"type": "string"}]}, {"type": "string", "format": "email"},
        {"type": "string", "format": "date-time"},
    ]  # fmt: skip
    properties: dict[str, Any] = {}
    size = 0
    for i in itertools.count():
        name, kind = f"property {number} {i}", kinds[i % (len(kinds) if i < 440 else 7)]
        size += len(json.dumps({name: kind})) + len(json.dumps(name)) + 2
        if size > kib * 1024 - 100:
            break
        properties[name] = kind
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return json.dumps(schema | {"additionalProperties": False})


class Client:
    def __init__(self, port: int, vocab: int) -> None:
        self._target = Target("127.0.0.1", port)
        self._api = NativeApi(ignore_eos=True)
        self._random = np.random.default_rng(port)
        self._vocab = vocab

    def start(self, output: int, schema: Any = None) -> tuple[Outcome, asyncio.Task[None]]:
        """Sends a request of 32 random tokens; the outcome grows as its tokens come."""
        outcome = Outcome(output, start=time.perf_counter())
        ids = self._random.integers(100, self._vocab, 32).tolist()
        parameters = {"max_new_tokens": output, "ignore_eos": True, "do_sample": True, "temperature": 1.0}
        if schema is not None:
            parameters["guided_json"] = schema
        body = json.dumps({"inputs": ids, "parameters": parameters}).encode()

        def take(data: bytes, now: float) -> None:
            self._api.read(data, now, outcome)

        return outcome, asyncio.create_task(post_events(self._target, self._api.path, body, take, TIMEOUT))


async def rate(client: Client, options: argparse.Namespace, schema: Any) -> tuple[float, float]:
    """Output tokens a second from when all streams have begun to when the first ends, and as many as there were if every round
    took as long as the middle one: other work on the machine makes single rounds long."""
    streams = [client.start(options.output, schema) for _ in range(options.batch)]
    await asyncio.gather(*(task for _, task in streams))
    begin = max(outcome.times[0] for outcome, _ in streams)
    end = min(outcome.times[-1] for outcome, _ in streams)
    tokens = sum(begin < now <= end for outcome, _ in streams for now in outcome.times)
    middle = float(np.median(gaps(streams, begin, end)))
    return tokens / (end - begin), options.batch / middle * 1e3


async def throughput(client: Client, options: argparse.Namespace) -> None:
    for schema in (ENDLESS, None):
        await rate(client, options, schema)  # warm
    found = []
    for _ in range(options.pairs):
        found.append((await rate(client, options, ENDLESS), await rate(client, options, None)))
        (mean, middle), (mean_without, middle_without) = found[-1]
        print(
            f"batch {options.batch}, tokens/s with a schema / without: {mean:.1f} / {mean_without:.1f}, by the middle "
            f"round {middle:.1f} / {middle_without:.1f}",
            flush=True,
        )
    ratios = sorted(constrained[1] / free[1] for constrained, free in found)
    print(
        f"ratio by the middle round: {statistics.median(ratios):.3f} of {ratios[0]:.3f} to {ratios[-1]:.3f}"
    )


async def others(client: Client, schemas: Iterator[Any], until: float) -> list[float]:
    """Sends requests of two tokens one after the other; seconds to the first token of each."""
    seconds = []
    while time.perf_counter() < until:
        outcome, task = client.start(2, next(schemas))
        await task
        seconds.append(outcome.ttft)
    return seconds


def gaps(streams: list[tuple[Outcome, asyncio.Task[None]]], begin: float, end: float) -> list[float]:
    """Milliseconds between tokens of one stream within a time."""
    found = []
    for outcome, _ in streams:
        times = [now for now in outcome.times if begin <= now <= end]
        found += [(later - now) * 1e3 for now, later in itertools.pairwise(times)]
    return found


async def between_tokens(client: Client, options: argparse.Namespace) -> None:
    numbers = itertools.count(int(time.time()))
    ways: dict[str, Iterator[Any] | None] = {
        "alone": None,
        "beside short requests": itertools.repeat(None),
        "beside those with schemas": (huge_schema(options.kib, number) for number in numbers),
    }
    found: dict[str, list[list[float]]] = {name: [] for name in ways}
    waited: list[float] = []
    streams = [client.start(3500) for _ in range(options.streams)]
    while any(outcome.output_tokens < 8 for outcome, _ in streams):
        await asyncio.sleep(0.01)
    for _ in range(options.pairs):
        for name, schemas in ways.items():
            begin = time.perf_counter()
            if schemas is None:
                await asyncio.sleep(options.seconds)
            else:
                seconds = await others(client, schemas, begin + options.seconds)
                waited += seconds if "schemas" in name else []
            found[name].append(gaps(streams, begin, time.perf_counter()))
    for _, stream in streams:
        stream.cancel()
    await asyncio.gather(*(stream for _, stream in streams), return_exceptions=True)
    for name, windows in found.items():
        print(f"{name:26} ms between tokens, median of {len(windows)} windows: " + ", ".join(
            f"p{part} {statistics.median(float(np.percentile(window, part)) for window in windows):.1f}" for part in (50, 90, 99)
        ))  # fmt: skip
    print(f"{len(waited)} schemas of {options.kib} KiB, first token after {statistics.median(waited):.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--server", default="", help="options of the server")
    parser.add_argument("--only", choices=("throughput", "itl"))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--output", type=int, default=96, help="tokens of each request")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--kib", type=int, default=63)
    parser.add_argument("--vocab", type=int, default=32_000)
    options = parser.parse_args()
    with running_server(shlex.split(options.server)) as port:
        client = Client(port, options.vocab)
        if options.only != "itl":
            asyncio.run(throughput(client, options))
        if options.only != "throughput":
            asyncio.run(between_tokens(client, options))


if __name__ == "__main__":
    main()
