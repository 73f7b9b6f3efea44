"""From outcomes to figures: throughput, TTFT, TPOT, ITL, end-to-end latency, failures by kind."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from lightllm.bench.apis import Outcome
from lightllm.bench.load import Run

_BUSY_CLIENT = 0.85


@dataclasses.dataclass(frozen=True)
class Goal:
    """Limits in milliseconds that a request must keep to count as good; None: no limit."""

    ttft: float | None = None
    tpot: float | None = None

    def __bool__(self) -> bool:
        return self.ttft is not None or self.tpot is not None


def tpot(outcome: Outcome) -> float | None:
    """Time per output token after the first (seconds), as vLLM defines it: (latency - TTFT) / (output tokens - 1)."""
    if outcome.output_tokens < 2:
        return None
    return (outcome.latency - outcome.ttft) / (outcome.output_tokens - 1)


def spread(values: Sequence[float]) -> dict[str, float]:
    """mean, p50, p90, p99 and max in milliseconds; zeros for no values."""
    if not values:
        return dict.fromkeys(("mean", "p50", "p90", "p99", "max"), 0.0)
    array = np.asarray(values) * 1e3
    p50, p90, p99 = np.percentile(array, [50, 90, 99])
    return {"mean": float(array.mean()), "p50": float(p50), "p90": float(p90), "p99": float(p99),
            "max": float(array.max())}  # fmt: skip


def summarize(run: Run, goal: Goal | None = None) -> dict[str, Any]:
    """All figures of a run, ready for JSON. Rates count complete requests only."""
    good = [outcome for outcome in run.outcomes if outcome.failure is None]
    failures = collections.Counter(outcome.failure for outcome in run.outcomes if outcome.failure)
    samples: dict[str, str] = {}
    for outcome in run.outcomes:
        if outcome.failure:
            samples.setdefault(outcome.failure, outcome.detail)
    input_tokens = sum(outcome.prompt_tokens for outcome in good)
    output_tokens = sum(outcome.output_tokens for outcome in good)
    figures: dict[str, Any] = {
        "seconds": run.seconds,
        "completed": len(good),
        "failed": len(run.outcomes) - len(good),
        "failures": dict(failures),
        "failure_samples": samples,
        "wrong_length": sum(outcome.output_tokens != outcome.wanted_tokens for outcome in good),
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "requests_per_s": len(good) / run.seconds,
        "input_tokens_per_s": input_tokens / run.seconds,
        "output_tokens_per_s": output_tokens / run.seconds,
        "ttft_ms": spread([outcome.ttft for outcome in good]),
        "tpot_ms": spread([value for outcome in good if (value := tpot(outcome)) is not None]),
        "itl_ms": spread([gap for outcome in good for gap in np.diff(outcome.times)]),
        "e2e_ms": spread([outcome.latency for outcome in good]),
        "client_cpu_share": run.client_cpu / run.seconds,
    }
    if goal:
        figures["goodput_requests_per_s"] = sum(_is_good(outcome, goal) for outcome in good) / run.seconds
    return figures


def _is_good(outcome: Outcome, goal: Goal) -> bool:
    fast_start = goal.ttft is None or outcome.ttft * 1e3 <= goal.ttft
    per_token = tpot(outcome)
    return fast_start and (goal.tpot is None or per_token is None or per_token * 1e3 <= goal.tpot)


def report(figures: dict[str, Any]) -> str:
    """The figures as text for a terminal."""
    lines = [
        f"{'Total time':<28}{figures['seconds']:>12.2f} s",
        f"{'Completed requests':<28}{figures['completed']:>12}",
        f"{'Failed requests':<28}{figures['failed']:>12}",
        f"{'Wrong output length':<28}{figures['wrong_length']:>12}",
        f"{'Input tokens':<28}{figures['input_tokens']:>12}",
        f"{'Output tokens':<28}{figures['output_tokens']:>12}",
        f"{'Requests':<28}{figures['requests_per_s']:>12.2f} /s",
        f"{'Input tokens':<28}{figures['input_tokens_per_s']:>12.1f} /s",
        f"{'Output tokens':<28}{figures['output_tokens_per_s']:>12.1f} /s",
    ]
    if "goodput_requests_per_s" in figures:
        lines.append(f"{'Goodput (requests)':<28}{figures['goodput_requests_per_s']:>12.2f} /s")
    lines.append(
        f"\n{'milliseconds':<28}" + "".join(f"{name:>12}" for name in ("mean", "p50", "p90", "p99", "max"))
    )
    for key, title in (
        ("ttft_ms", "Time to first token"),
        ("tpot_ms", "Time per output token"),
        ("itl_ms", "Inter-token latency"),
        ("e2e_ms", "End-to-end latency"),
    ):
        lines.append(f"{title:<28}" + "".join(f"{value:>12.2f}" for value in figures[key].values()))
    for kind, number in sorted(figures["failures"].items(), key=lambda item: -item[1]):
        lines.append(f"\n{number} x {kind}, e.g. {figures['failure_samples'][kind]}")
    if figures["client_cpu_share"] > _BUSY_CLIENT:
        share = figures["client_cpu_share"]
        lines.append(f"\nThe client used {share:.0%} of a core: these figures may be its own limit.")
    return "\n".join(lines)
