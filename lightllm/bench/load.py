"""Sends the requests as they arrive and collects what becomes of them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import time
from collections.abc import AsyncIterator, Sequence

import numpy as np
from tqdm import tqdm

from lightllm.bench.apis import Api, Outcome
from lightllm.bench.dataset import Request
from lightllm.bench.http_stream import StreamFailed, Target, post_events

_PROGRESS_SECONDS = 0.5


@dataclasses.dataclass
class Run:
    outcomes: list[Outcome]
    seconds: float
    """From the first arrival to the last answer."""
    client_cpu: float
    """CPU seconds of this process: near `seconds`, the client is the bottleneck."""


def arrivals(count: int, rate: float, seed: int) -> np.ndarray:
    """Seconds from the start at which each request comes: a Poisson process of `rate` requests/s; infinite: all at 0."""
    if math.isinf(rate):
        return np.zeros(count)
    gaps = np.random.default_rng(seed).exponential(1.0 / rate, size=count)
    return np.cumsum(gaps) - gaps[0]


async def send(target: Target, api: Api, request: Request, timeout: float) -> Outcome:
    """One request to its end. Never raises for what the server does: failures are part of the outcome."""
    outcome = Outcome(request.output_tokens, request.prompt_tokens)
    body = api.body(request)
    problems: list[StreamFailed] = []

    def take(data: bytes, now: float) -> None:
        try:
            api.read(data, now, outcome)
        except StreamFailed as problem:
            problems.append(problem)

    outcome.start = time.perf_counter()
    try:
        await post_events(target, api.path, body, take, timeout)
    except StreamFailed as problem:
        problems.append(problem)
    if not problems and not outcome.times:
        problems.append(StreamFailed("no token arrived"))
    if problems:
        outcome.failure, outcome.detail = problems[0].kind, str(problems[0])
        outcome.retry_after = problems[0].retry_after
    outcome.ended = time.perf_counter()
    return outcome


async def run(
    target: Target,
    api: Api,
    requests: Sequence[Request],
    *,
    rate: float,
    seed: int,
    max_concurrency: int | None,
    timeout: float,
    show_bar: bool = True,
) -> Run:
    """Sends all requests at their times (later where `max_concurrency` holds them back) and waits for all answers."""
    gate = asyncio.Semaphore(max_concurrency or len(requests))
    outcomes: list[Outcome] = []

    async def one(request: Request) -> None:
        async with gate:
            outcomes.append(await send(target, api, request, timeout))

    cpu, start = time.process_time(), time.perf_counter()
    async with _progress(len(requests), outcomes, show_bar), asyncio.TaskGroup() as tasks:
        for request, moment in zip(requests, arrivals(len(requests), rate, seed), strict=True):
            delay = start + moment - time.perf_counter()
            if delay > 0:
                await asyncio.sleep(delay)
            tasks.create_task(one(request))
    return Run(outcomes, time.perf_counter() - start, time.process_time() - cpu)


@contextlib.asynccontextmanager
async def _progress(count: int, outcomes: list[Outcome], show: bool) -> AsyncIterator[None]:
    """A bar that shows finished requests and the rate of output tokens so far."""
    start = time.perf_counter()
    with tqdm(total=count, unit="req", disable=not show, dynamic_ncols=True) as bar:

        def refresh() -> None:
            tokens = sum(outcome.output_tokens for outcome in outcomes)
            bar.n = len(outcomes)
            bar.set_postfix_str(f"{tokens / (time.perf_counter() - start):.0f} tok/s")

        async def watch() -> None:
            while True:
                await asyncio.sleep(_PROGRESS_SECONDS)
                refresh()

        watcher = asyncio.create_task(watch())
        try:
            yield
        finally:
            watcher.cancel()
            refresh()
