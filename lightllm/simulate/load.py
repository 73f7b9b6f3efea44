"""One simulation at one load, and the load at which goodput peaks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from lightllm.router.scheduler_config import SchedulerConfig
from lightllm.simulate.latency import LatencyModel
from lightllm.simulate.report import Report, summarize
from lightllm.simulate.simulator import Simulation, Slo
from lightllm.simulate.trace import Trace

WARM_UP = 0.1
"""Share of the requests after whose end rates are measured."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """All that a run depends on, but for its load."""

    trace: Trace
    config: SchedulerConfig
    latency: LatencyModel
    slo: Slo
    requests: int
    seed: int
    max_new_tokens: int
    check_every: int = 0


Progress = Callable[[int], object]


def run(setting: Setting, rate: float, progress: Progress | None = None) -> tuple[Report, Simulation]:
    """`rate`: requests a second, inf for all at once."""
    simulation = Simulation(
        setting.config, setting.latency, setting.slo, setting.max_new_tokens,
        warm_up=int(setting.requests * WARM_UP), check_every=setting.check_every, progress=progress,
    )  # fmt: skip
    simulation.run(setting.trace.requests(setting.requests, rate, setting.seed))
    return summarize(simulation, rate), simulation


SEARCH_REQUESTS = 4000
COARSE = (0.5, 0.7, 0.85, 1.0, 1.15)
"""Loads that are tried first, as shares of what the server can bear at most."""
REFINE = 4


def find_peak(setting: Setting, tell: Callable[[str], object]) -> tuple[float, list[Report]]:
    """(the load with the highest goodput, the reports of all loads that were tried, ascending).

    Short runs with the same requests: a coarse row of loads around what the server bears when all requests come at once,
    then the middle between the best one and its neighbours, a few times. Where goodput stays at its peak (a server that
    refuses what it cannot bear) the lowest load of these is taken.
    """
    short = dataclasses.replace(setting, requests=min(setting.requests, SEARCH_REQUESTS))
    reports: dict[float, Report] = {}

    def measure(rate: float) -> None:
        reports[rate], _ = run(short, rate)
        tell(f"{rate:.2f} requests/s: goodput {reports[rate]['goodput_rps']:.2f}, "
             f"refused {reports[rate]['refused_share']:.1%}")  # fmt: skip

    bearable = run(short, float("inf"))[0]["throughput_rps"]
    for share in COARSE:
        measure(share * bearable)
    for step in range(REFINE):
        rates = sorted(reports)
        best = rates.index(_peak(reports))
        above = rates[best + 1] if best + 1 < len(rates) else rates[best] * 1.3
        below = rates[best - 1] if best else rates[best] * 0.7
        wider, narrower = sorted([(above - rates[best], above), (rates[best] - below, below)], reverse=True)
        measure((rates[best] + (wider if step % 2 == 0 else narrower)[1]) / 2)
    return _peak(reports), [reports[rate] for rate in sorted(reports)]


def _peak(reports: dict[float, Report]) -> float:
    """The lowest load within half a percent of the best goodput."""
    best = max(report["goodput_rps"] for report in reports.values())
    return min(rate for rate, report in reports.items() if report["goodput_rps"] >= 0.995 * best)
