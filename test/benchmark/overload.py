"""What a server does under more load than it can bear: `python test/benchmark/overload.py`.

    python test/benchmark/overload.py                              the mock backend, with its default limits
    python test/benchmark/overload.py --server="--ttft_slo 2"      the same with a promise
    python test/benchmark/overload.py --demo                       the demo model

Starts a server, measures its capacity, then offers multiples of it, open-loop with Poisson arrivals. A twentieth of the
requests has a better priority. At the end a burst, where who is refused comes again when it was told to.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import shlex
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmark.serving.with_server import running_server  # noqa: E402

from lightllm.bench.apis import NativeApi, Outcome  # noqa: E402
from lightllm.bench.command import allow_many_connections  # noqa: E402
from lightllm.bench.dataset import Request  # noqa: E402
from lightllm.bench.http_stream import NOT_HEARD, Target  # noqa: E402
from lightllm.bench.load import arrivals, send  # noqa: E402

MOCK = ["--mock_backend", "step_ms=20,token_us=100,lengths=20:110", "--running_max_req_size", "32"]
DEMO = ["--running_max_req_size", "32", "--max_total_token_num", "20000"]
OUTPUT = 128
"""Most tokens of an answer; the mock's are shorter."""
PREFERRED = 20
"""Every so many-th request has a better priority."""
TIMEOUT = 600.0
RESULT_ROWS = (
    ("offered", "offered /s", "{:.0f}"), ("served", "served /s", "{:.1f}"), ("refused", "refused", "{:.0%}"),
    ("not_heard", "reset by the kernel, not heard of", "{:.0%}"),
    ("ttft", "TTFT p50 / p99 / max, s", "{:.2f}"), ("itl", "ITL p50 / p99, ms", "{:.0f}"),
    ("preferred", "better priority: refused; TTFT p99, s", "{}"), ("answer", "refusal p50 / p99, ms", "{:.1f}"),
    ("retry_after", "Retry-After p50 / max, s", "{:.0f}"), ("health", "/health p50 / max, ms", "{:.0f}"),
)  # fmt: skip


class Api(NativeApi):
    """Requests of one priority."""

    def __init__(self, ignore_eos: bool, priority: int = 0) -> None:
        super().__init__(ignore_eos)
        self._priority = priority

    def body(self, request: Request) -> bytes:
        body = msgspec.json.decode(super().body(request))
        body["parameters"]["priority"] = self._priority
        return msgspec.json.encode(body)


@dataclasses.dataclass
class Load:
    """What is sent, and where."""

    target: Target
    prompt_tokens: int
    ignore_eos: bool
    seed: int = 0

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)
        self._apis = Api(self.ignore_eos), Api(self.ignore_eos, priority=-1)

    async def send(self, preferred: bool = False) -> Outcome:
        output = int(self._random.integers(20, OUTPUT)) if self.ignore_eos else OUTPUT
        prompt = self._random.integers(16, 400, size=self.prompt_tokens).tolist()
        return await send(
            self.target, self._apis[preferred], Request(prompt, self.prompt_tokens, output), TIMEOUT
        )

    async def capacity(self, at_once: int, seconds: float) -> float:
        """Requests a second, of clients that each send the next request when one is answered."""
        ended: list[float] = []
        start = time.perf_counter()

        async def client() -> None:
            while time.perf_counter() < start + seconds:
                outcome = await self.send()
                if outcome.retry_after is not None:  # more at once than a promise allows
                    await asyncio.sleep(0.2)
                elif outcome.failure:
                    raise RuntimeError(f"a request failed: {outcome.detail}")
                else:
                    ended.append(outcome.ended)

        await asyncio.gather(*(client() for _ in range(at_once)))
        begin = start + seconds / 4
        return sum(begin < moment < start + seconds for moment in ended) / (0.75 * seconds)

    async def offer(self, rate: float, seconds: float) -> dict[str, list[Outcome]]:
        """Open-loop; the outcomes of both priorities."""
        outcomes: dict[str, list[Outcome]] = {"usual": [], "preferred": []}

        async def one(preferred: bool) -> None:
            outcomes["preferred" if preferred else "usual"].append(await self.send(preferred))

        await self._at_times(rate, seconds, lambda number: one(number % PREFERRED == 0))
        return outcomes

    async def burst(self, rate: float, seconds: float) -> list[list[Outcome]]:
        """For each request the outcomes of its first try and, if it was refused, of the second."""
        tries: list[list[Outcome]] = []

        async def one() -> None:
            outcomes = [await self.send()]
            if (wait := outcomes[0].retry_after) is not None:
                await asyncio.sleep(wait)
                outcomes.append(await self.send())
            tries.append(outcomes)

        await self._at_times(rate, seconds, lambda _: one())
        return tries

    async def _at_times(self, rate: float, seconds: float, make: Any) -> None:
        start = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for number, moment in enumerate(arrivals(round(rate * seconds), rate, self.seed)):
                await asyncio.sleep(max(0.0, start + moment - time.perf_counter()))
                tasks.create_task(make(number))


@contextlib.asynccontextmanager
async def health_watched(target: Target) -> Any:
    """Seconds that /health takes, asked for ten times a second."""
    found: list[float] = []

    def ask() -> None:
        with urllib.request.urlopen(f"{target.url}/health", timeout=60) as answer:
            answer.read()

    async def watch() -> None:
        while True:
            begin = time.perf_counter()
            await asyncio.to_thread(ask)
            found.append(time.perf_counter() - begin)
            await asyncio.sleep(0.1)

    watcher = asyncio.create_task(watch())
    try:
        yield found
    finally:
        watcher.cancel()


def summarize(
    outcomes: dict[str, list[Outcome]], rate: float, seconds: float, health: list[float]
) -> dict[str, Any]:
    """Figures of one load. Served: answers that were complete within the time of the arrivals, a quarter of it left out for the
    beginning."""
    usual, preferred = outcomes["usual"], outcomes["preferred"]
    every = usual + preferred
    start = min(outcome.start for outcome in every)
    accepted = [outcome for outcome in usual if not outcome.failure]
    refused = [outcome for outcome in every if outcome.retry_after is not None]
    not_heard = [outcome for outcome in every if outcome.failure == NOT_HEARD]
    known = (None, NOT_HEARD)
    broken = [outcome for outcome in every if outcome.failure not in known and outcome.retry_after is None]
    if broken:
        raise RuntimeError(f"{len(broken)} requests failed, e.g. {broken[0].detail}")
    done = [o for o in every if not o.failure and start + seconds / 4 < o.ended < start + seconds]
    chosen = [outcome.ttft for outcome in preferred if not outcome.failure]
    lost = sum(outcome.failure is not None for outcome in preferred) / len(preferred)
    return {
        "offered": [rate],
        "served": [len(done) / (0.75 * seconds)],
        "refused": [len(refused) / len(every)],
        "not_heard": [len(not_heard) / len(every)],
        "ttft": quantiles([outcome.ttft for outcome in accepted], 0.5, 0.99, 1.0),
        "itl": quantiles([1e3 * gap for o in accepted for gap in np.diff(o.times)], 0.5, 0.99),
        "preferred": [f"{lost:.0%}; {quantiles(chosen, 0.99)[0]:.2f}"],
        "answer": quantiles([1e3 * (outcome.ended - outcome.start) for outcome in refused], 0.5, 0.99),
        "retry_after": quantiles([float(outcome.retry_after or 0) for outcome in refused], 0.5, 1.0),
        "health": quantiles([1e3 * value for value in health], 0.5, 1.0),
    }


def quantiles(values: Sequence[float], *which: float) -> list[float]:
    """Zeros for no values."""
    return [float(np.quantile(values, q)) if len(values) else 0.0 for q in which]


def second_tries(tries: list[list[Outcome]]) -> dict[str, Any]:
    again = [outcomes[1] for outcomes in tries if len(outcomes) > 1]
    return {
        "requests": len(tries),
        "refused at first": len(again) / len(tries),
        "of these accepted at the second try": sum(not o.failure for o in again) / max(1, len(again)),
        "longest Retry-After, s": max((outcomes[0].retry_after or 0 for outcomes in tries), default=0),
    }


async def measure(options: argparse.Namespace, port: int) -> dict[str, Any]:
    load = Load(Target("127.0.0.1", port), 16, options.demo)
    capacity = await load.capacity(3 * 32, options.seconds)
    print(f"capacity: {capacity:.1f} requests/s", flush=True)
    columns = []
    for multiple in options.loads:
        rate = multiple * capacity
        async with health_watched(load.target) as health:
            outcomes = await load.offer(rate, options.seconds)
        columns.append(summarize(outcomes, rate, options.seconds, health))
        print(f"{multiple:g}x: {columns[-1]}", flush=True)
    burst = second_tries(await load.burst(10 * capacity, options.burst))
    return {"capacity": capacity, "loads": options.loads, "columns": columns, "burst": burst}


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| load | " + " | ".join(f"{multiple:g}x" for multiple in found["loads"]) + " |",
        "|---" * (len(found["loads"]) + 1) + "|",
    ]
    for key, title, form in RESULT_ROWS:
        cells = [" / ".join(form.format(value) for value in column[key]) for column in found["columns"]]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    burst = ", ".join(
        f"{name}: {value:.0%}" if isinstance(value, float) else f"{name}: {value}"
        for name, value in found["burst"].items()
    )
    return "\n".join([*lines, "", f"Burst: {burst}."])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--demo", action="store_true", help="the demo model instead of the mock backend")
    parser.add_argument("--server", default="", help="more options of the server, as one word")
    parser.add_argument(
        "--loads", type=float, nargs="+", default=[1.0, 2.0, 5.0, 10.0], help="multiples of the capacity"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load (default %(default)s)")
    parser.add_argument("--burst", type=float, default=2.0, help="seconds of the burst (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    options = parser.parse_args(argv)
    allow_many_connections()
    server = [*(DEMO if options.demo else MOCK), *shlex.split(options.server)]
    with running_server(server) as port:
        found = uvloop.run(measure(options, port))
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
