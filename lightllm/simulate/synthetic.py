"""Traces that are drawn: lengths as real services see them, and five ways of arriving."""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np

from lightllm.simulate.trace import TraceRequest, unique_ids, words

BLOCK = 1024
"""Requests that are drawn at once."""


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Lognormal, at most `most`; `mean` is that of what is drawn, the cut included. Tokens."""

    mean: float
    sigma: float
    most: int

    def draw(self, random: np.random.Generator, count: int) -> np.ndarray:
        """int64 [count]"""
        lengths = random.lognormal(self._mu, self.sigma, count)
        return np.clip(np.rint(lengths), 1, self.most).astype(np.int64)

    @cached_property
    def _mu(self) -> float:
        """E[min(X, c)] = exp(mu + sigma^2 / 2) * P(Z < d - sigma) + c * P(Z > d) with d = (ln c - mu) / sigma grows with mu."""
        low, high = 0.0, math.log(self.most)
        for _ in range(50):
            mu = (low + high) / 2
            d = (math.log(self.most) - mu) / self.sigma
            mean = math.exp(mu + self.sigma**2 / 2) * _normal(d - self.sigma) + self.most * _normal(-d)
            low, high = (mu, high) if mean < self.mean else (low, mu)
        return low


def _normal(x: float) -> float:
    return (1 + math.erf(x / math.sqrt(2))) / 2


PROMPTS = Lengths(217, 1.0, 2048)
ANSWERS = Lengths(200, 0.9, 2048)
"""Means of ShareGPT's first turns, as the vLLM paper has them in benchmarks since."""
QUESTIONS = Lengths(200, 1.0, 2048)
REASONING = Lengths(1500, 0.9, 8192)
"""The standard deviation is the mean, as in the exponential distribution that ServeGen (arXiv 2505.09999) finds for the outputs
of a large service; one in a hundred is cut off."""

Arrivals = Callable[[np.random.Generator, int, int], Iterator[np.ndarray]]
"""(random, count, block) -> blocks of arrival times, one request a time unit on the average."""


def poisson(random: np.random.Generator, count: int, block: int) -> Iterator[np.ndarray]:
    now = 0.0
    for start in range(0, count, block):
        times = now + np.cumsum(random.exponential(1.0, min(block, count - start)))
        now = float(times[-1])
        yield times


BURST_RATE, QUIET_RATE = 4.0, 0.4
BURST_REQUESTS, QUIET_REQUESTS = 600.0, 300.0
"""Means. A burst of 150 time units at 4, then 750 at 0.4: one a unit on the average."""


def bursts(random: np.random.Generator, count: int, block: int) -> Iterator[np.ndarray]:
    """Poisson, with a rate that switches between two values after gamma-distributed times (shape 4)."""
    edges, levels = [0.0], [0.0]  # expected requests until then, piecewise linear
    for unit in poisson(random, count, block):
        while levels[-1] < unit[-1]:
            burst = len(edges) % 2 == 0
            requests = random.gamma(4.0, (BURST_REQUESTS if burst else QUIET_REQUESTS) / 4.0)
            edges.append(edges[-1] + requests / (BURST_RATE if burst else QUIET_RATE))
            levels.append(levels[-1] + requests)
        yield np.interp(unit, levels, edges)
        past = max(0, len(edges) - 3) // 2 * 2  # the order of quiet and burst stays
        del edges[:past], levels[:past]


DAY_SWING = 0.6
"""Load goes from 0.4 of the mean at night to 1.6 at noon."""


def day(random: np.random.Generator, count: int, block: int) -> Iterator[np.ndarray]:
    """The whole trace is one day that begins at midnight: rate(t) = 1 - swing * cos(2 pi t / count)."""
    t = np.linspace(0.0, 1.0, 4097)
    level = count * (t - DAY_SWING * np.sin(2 * np.pi * t) / (2 * np.pi))
    for unit in poisson(random, count, block):
        yield np.interp(unit % count, level, t * count) + unit // count * count


@dataclasses.dataclass(frozen=True)
class SyntheticTrace:
    """Requests that have nothing in common."""

    name: str
    max_new_tokens: int
    prompts: Lengths
    outputs: Lengths
    arrivals: Arrivals = poisson

    def requests(self, count: int, rate: float, seed: int) -> Iterator[TraceRequest]:
        times, lengths = np.random.default_rng(seed).spawn(2)
        serial = 0
        for block in self.arrivals(times, count, BLOCK):
            prompts = self.prompts.draw(lengths, BLOCK).tolist()
            outputs = self.outputs.draw(lengths, BLOCK).tolist()
            for arrival, prompt, output in zip((block / rate).tolist(), prompts, outputs, strict=False):
                yield TraceRequest(arrival, unique_ids(serial, prompt), output)
                serial += 1


@dataclasses.dataclass(frozen=True)
class ChatTrace:
    """Conversations of several turns below a few system prompts: each turn's prompt is all that was said before.

    A turn comes when the answer before has been read: `reading` seconds after it, on the average. Answers are taken to
    come at `speed` tokens a second; a server that is slower gets the next turn all the same.
    """

    name: str = "synthetic:chat"
    max_new_tokens: int = 2048
    systems: int = 8
    system_len: int = 600
    turns: float = 4.0
    """Mean, geometric."""
    messages: Lengths = Lengths(60, 1.0, 1024)
    answers: Lengths = Lengths(200, 0.9, 1024)
    reading: float = 15.0
    speed: float = 20.0

    def requests(self, count: int, rate: float, seed: int) -> Iterator[TraceRequest]:
        random = np.random.default_rng(seed)
        next_start, serial, made = 0.0, 0, 0
        later: list[tuple[float, int, np.ndarray]] = []
        """Heap of (arrival, serial, prompt so far)."""
        while made < count:
            if not later or next_start <= later[0][0]:
                arrival, history = next_start, self._system(int(random.integers(self.systems)))
                next_start += random.exponential(self.turns / rate)
            else:
                arrival, _, history = heapq.heappop(later)
            message = int(self.messages.draw(random, 1)[0])
            answer = int(self.answers.draw(random, 1)[0])
            prompt = np.concatenate([history, unique_ids(self.systems + serial, message)])
            serial += 1
            made += 1
            yield TraceRequest(arrival, prompt, answer)
            if random.random() < 1 - 1 / self.turns:
                pause = answer / self.speed + random.exponential(self.reading)
                heapq.heappush(later, (arrival + pause, serial, np.concatenate([prompt, words(answer - 1)])))

    def _system(self, number: int) -> np.ndarray:
        return unique_ids(number, self.system_len)


@dataclasses.dataclass(frozen=True)
class TenantTrace:
    """Applications that each put a long prompt of their own before every question. A few are popular (Zipf)."""

    name: str = "synthetic:tenants"
    max_new_tokens: int = 512
    tenants: int = 160
    system_len: int = 4000
    skew: float = 0.5
    """Tenant number k has a share in proportion to k ** -skew."""
    questions: Lengths = Lengths(120, 0.8, 1024)
    answers: Lengths = Lengths(100, 0.7, 512)

    def requests(self, count: int, rate: float, seed: int) -> Iterator[TraceRequest]:
        random = np.random.default_rng(seed)
        bounds = np.cumsum(np.arange(1, self.tenants + 1) ** -self.skew)
        bounds /= bounds[-1]
        systems = [unique_ids(number * self.system_len, self.system_len) for number in range(self.tenants)]
        now = 0.0
        for serial in range(count):
            now += random.exponential(1 / rate)
            tenant = int(bounds.searchsorted(random.random(), side="right"))
            question = unique_ids(
                self.tenants * self.system_len + serial, int(self.questions.draw(random, 1)[0])
            )
            answer = int(self.answers.draw(random, 1)[0])
            yield TraceRequest(now, np.concatenate([systems[tenant], question]), answer)


TRACES = {
    trace.name: trace
    for trace in (
        SyntheticTrace("synthetic:sharegpt", 2048, PROMPTS, ANSWERS),
        SyntheticTrace("synthetic:reasoning", 8192, QUESTIONS, REASONING),
        ChatTrace(),
        ChatTrace(
            "synthetic:agents",
            systems=32,
            system_len=3000,
            turns=8.0,
            messages=Lengths(300, 1.0, 4096),
            answers=Lengths(80, 0.8, 512),
            reading=2.0,
            speed=40.0,
        ),
        TenantTrace(),
        SyntheticTrace("synthetic:burst", 2048, PROMPTS, ANSWERS, bursts),
        SyntheticTrace("synthetic:day", 2048, PROMPTS, ANSWERS, day),
    )
}
