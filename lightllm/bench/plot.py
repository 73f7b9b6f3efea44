"""Four plots of one run as a PNG: who waited how long, and how fast tokens came."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightllm.bench.apis import Outcome
from lightllm.bench.figures import tpot
from lightllm.bench.load import Run


def draw(run: Run, title: str, path: Path) -> None:
    """Writes the plots to `path`. Raises ImportError without matplotlib (extra "bench")."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    good = [outcome for outcome in run.outcomes if outcome.failure is None]
    figure, ((first, per_token), (latency, rate)) = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    figure.suptitle(title)
    _cumulative(first, [outcome.ttft for outcome in good], "time to first token [ms]")
    _cumulative(per_token, [value for outcome in good if (value := tpot(outcome)) is not None],
                "time per output token [ms]")  # fmt: skip
    latency.scatter([o.output_tokens for o in good], [o.latency for o in good], s=8, alpha=0.6)
    latency.set(xlabel="output tokens", ylabel="end-to-end latency [s]")
    _rate(rate, good)
    for axes in (first, per_token, latency, rate):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _cumulative(axes: Any, seconds: Sequence[float], label: str) -> None:
    values = np.sort(np.asarray(seconds)) * 1e3
    if len(values):
        axes.step(values, np.arange(1, len(values) + 1) / len(values), where="post")
    axes.set(xlabel=label, ylabel="share of requests", ylim=(0, 1.02))


def _rate(axes: Any, good: Sequence[Outcome]) -> None:
    """Events a second over the run, in at most 60 bins."""
    if good:
        start = min(outcome.start for outcome in good)
        times = np.concatenate([outcome.times for outcome in good]) - start
        counts, edges = np.histogram(times, bins=60)
        axes.step(edges[:-1], counts / np.diff(edges), where="post")
    axes.set(xlabel="seconds", ylabel="streamed tokens/s")
