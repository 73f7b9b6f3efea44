"""How long a round takes: formulas, and constants fitted to measured rounds.

    seconds = max(floor, per_token * computed) + per_held * held + fixed

`computed`: tokens of the round (decode rows and prefill chunks). Below some number of them a round takes as long as
reading the weights: the floor. `held`: tokens of context that attention reads, over all rows.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lightllm.errors import InvalidOption


@dataclasses.dataclass(frozen=True)
class LatencyModel:
    """A device with a model on it. Times in seconds."""

    name: str
    source: str
    """Where the constants come from."""
    floor: float
    per_token: float
    per_held: float
    fixed: float
    capacity: int
    """KV slots, unless --capacity says otherwise."""
    batch_max_tokens: int
    chunked_prefill_size: int

    def seconds(self, computed: int, held: int) -> float:
        return max(self.floor, self.per_token * computed) + self.per_held * held + self.fixed


A100_7B = LatencyModel(
    name="a100-7b",
    source="Llama-7B on an A100-80G, the setting of arXiv 2507.10150",
    floor=8.4e-3, per_token=57e-6, per_held=0.33e-6, fixed=1e-3,
    capacity=120_000, batch_max_tokens=5120, chunked_prefill_size=4096,
)  # fmt: skip

H200_8B = LatencyModel(
    name="h200-8b",
    # 15.0 GB of weights read each round and 15 GFLOP a token, at 4.8 TB/s and 989 TFLOP/s; 128 KiB of KV a token. Real
    # kernels are taken to reach 80 % of the bandwidth and 60 % of the arithmetic. 141 GB * 0.9 less the weights.
    source="Llama-3.1-8B in bf16 on one H200: computed from the limits of the chip, not measured",
    floor=3.9e-3, per_token=25e-6, per_held=0.034e-6, fixed=1e-3,
    capacity=840_000, batch_max_tokens=5120, chunked_prefill_size=4096,
)  # fmt: skip


def fit(points: Sequence[Sequence[float]]) -> tuple[float, float, float, float]:
    """(floor, per_token, per_held, fixed) from rounds [(computed, held, seconds), ...], at least two.

    Least squares of relative errors. For every place where the floor could end the formula is linear; the best wins.
    Floor and fixed cost look the same below that place: the fixed cost is what remains of a round beyond it.
    """
    rounds = np.asarray(points, dtype=np.float64)
    if rounds.ndim != 2 or rounds.shape[1] != 3 or len(rounds) < 2 or not (rounds > 0).all():
        raise ValueError(
            "a latency model needs two points or more: [[computed, held, seconds], ...], all above 0"
        )
    computed, held, seconds = rounds.T
    best: tuple[float, tuple[float, float, float, float]] | None = None
    for knee in np.unique(computed):
        flat = computed <= knee
        # below the knee: floor + fixed; above: per_token * computed + fixed, and both meet at the knee
        above = np.where(flat, 0.0, computed - knee)
        design = np.stack([np.ones_like(computed), above, held], axis=1)
        first, per_token, per_held = _least_squares(design / seconds[:, None])
        floor = min(per_token * knee, first) if per_token else first
        constants = (floor, per_token, per_held, first - floor)
        error = float(np.square(design @ [first, per_token, per_held] / seconds - 1.0).sum())
        if best is None or error < best[0]:
            best = error, constants
    assert best is not None
    floor, per_token, per_held, fixed = map(float, best[1])
    return floor, per_token, per_held, fixed


def _least_squares(design: np.ndarray) -> list[float]:
    """The non-negative x with design @ x nearest to 1: what would be negative is left out, the worst first."""
    kept = list(range(design.shape[1]))
    while kept:
        found = np.linalg.lstsq(design[:, kept], np.ones(len(design)), rcond=None)[0]
        if (found >= 0).all():
            return [float(found[kept.index(i)]) if i in kept else 0.0 for i in range(design.shape[1])]
        del kept[int(found.argmin())]
    return [0.0] * design.shape[1]


def load(path: Path) -> LatencyModel:
    """A model from JSON: the fields of `LatencyModel`, or `points` ([[computed, held, seconds], ...]) instead of the four
    constants. Missing sizes are those of a100-7b. Raises `InvalidOption`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        points = values.pop("points", None)
        if points is not None:
            values |= dict(zip(("floor", "per_token", "per_held", "fixed"), fit(points), strict=True))
        values = {"name": path.stem, "source": str(path)} | values
        return dataclasses.replace(A100_7B, **values)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InvalidOption(f"--latency-model {path} is no latency model: {error}.") from error


CPU_M1_POINTS = (
    (1, 160, 0.102), (8, 2950, 0.194), (14, 4190, 0.302), (21, 5540, 0.375), (28, 6600, 0.462), (128, 128, 1.70),
    (512, 768, 6.385),
)  # fmt: skip
"""Rounds of the server that docs/benchmarks.md measures: one stream (TPOT and TTFT), 32 at once (output tokens a second in
the Router's statistics, by running requests), and 4 prompts of 1024 tokens in rounds of 512."""

CPU_M1 = LatencyModel(
    "cpu-m1", "M1 (1.1B Llama shape, bf16) on two Zen 3 cores, fitted to rounds of docs/benchmarks.md",
    *fit(CPU_M1_POINTS), capacity=95_000, batch_max_tokens=512, chunked_prefill_size=512,
)  # fmt: skip

MODELS = {model.name: model for model in (CPU_M1, A100_7B, H200_8B)}


def find(name: str) -> LatencyModel:
    """A model by its name, or from the file of that name."""
    return MODELS[name] if name in MODELS else load(Path(name))
