"""Plots of a simulation, as SVG. They need matplotlib, which the extra `bench` brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightllm.errors import InvalidOption
from lightllm.simulate.report import Report


def _pyplot() -> Any:
    """matplotlib's interface, without a display. Raises `InvalidOption` if it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise InvalidOption(
            "--plots needs matplotlib.", "Install it: pip install 'lightllm[bench]'."
        ) from error
    matplotlib.use("Agg")
    # Small files that are the same from run to run.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "lightllm", "font.size": 9})
    from matplotlib import pyplot

    return pyplot


def check() -> None:
    """Raises `InvalidOption` before a long run whose plots could not be made."""
    _pyplot()


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})
    _pyplot().close(figure)


def plot_memory(report: Report, path: Path) -> None:
    """Memory over time, above the requests that run and those that wait."""
    moments, capacity = report["timeline"], report["memory"]["capacity"]
    time = moments["time"]
    figure, (memory, load) = _pyplot().subplots(2, 1, figsize=(7, 4.5), sharex=True)
    used = [value / capacity for value in moments["slots_used"]]
    cached = [(u + c) / capacity for u, c in zip(moments["slots_used"], moments["slots_cached"], strict=True)]
    memory.fill_between(time, cached, color="0.88", label="prefix cache", linewidth=0)
    memory.fill_between(time, used, color="tab:blue", alpha=0.6, label="held by requests", linewidth=0)
    peak = [value / capacity for value in moments["estimated_peak"]]
    memory.plot(time, peak, color="tab:red", linewidth=0.6, label="predicted peak")
    memory.set_ylabel("share of the slots")
    memory.set_ylim(0, 1.1 if max(peak, default=0) < 1.1 else None)
    memory.legend(loc="lower right", fontsize=8)
    load.plot(time, moments["running"], linewidth=0.8, label="running")
    load.plot(time, moments["waiting"], linewidth=0.8, label="waiting")
    load.set_ylabel("requests")
    load.set_xlabel("time, s")
    load.legend(loc="upper right", fontsize=8)
    _save(figure, path)


def plot_goodput(curves: Mapping[str, Sequence[Report]], path: Path) -> None:
    """Goodput against load, a curve for each name; below it what share was refused."""
    figure, (good, refused) = _pyplot().subplots(
        2, 1, figsize=(7, 4.5), sharex=True, gridspec_kw={"height_ratios": [3, 1]}
    )
    for name, reports in curves.items():
        loads = [report["rate_rps"] for report in reports]
        good.plot(loads, [report["goodput_rps"] for report in reports], marker="o", markersize=3, label=name)
        refused.plot(loads, [report["refused_share"] for report in reports], marker="o", markersize=3)
    most = max((report["rate_rps"] for reports in curves.values() for report in reports), default=1.0)
    top = max((report["goodput_rps"] for reports in curves.values() for report in reports), default=1.0)
    good.plot([0, min(most, top * 1.1)], [0, min(most, top * 1.1)], color="0.7", linewidth=0.8, linestyle=":")
    good.set_ylabel("goodput, requests/s")
    good.set_ylim(bottom=0)
    good.legend(fontsize=8)
    refused.set_ylabel("refused")
    refused.set_ylim(-0.03, 1)
    refused.set_xlabel("load, requests/s")
    _save(figure, path)
