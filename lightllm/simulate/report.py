"""The figures of a simulation, as JSON and as text."""

from __future__ import annotations

import dataclasses
import math
import resource
from typing import Any

from lightllm.simulate.figures import Moment
from lightllm.simulate.simulator import Simulation

Report = dict[str, Any]


def summarize(simulation: Simulation, rate: float) -> Report:
    """Rates are those from the warm-up to the end of the load; everything else is of the whole run. Seconds, tokens."""
    begin, end = simulation.begin, simulation.end
    seconds = max(end.time - begin.time, 1e-9)
    accepted = end.arrived - end.refused
    capacity = simulation.config.max_total_token_num
    intercept, slope = simulation.costs.line()
    return {
        "rate_rps": rate if math.isfinite(rate) else None,
        "goodput_rps": (end.good - begin.good) / seconds,
        "throughput_rps": (end.finished - begin.finished) / seconds,
        "output_tokens_per_s": (end.output_tokens - begin.output_tokens) / seconds,
        "refused_share": end.refused / max(end.arrived, 1),
        "too_long": simulation.too_long,
        "pauses": simulation.scheduler.pauses,
        "pauses_per_request": simulation.scheduler.pauses / max(accepted, 1),
        "recomputed_tokens": simulation.recomputed_tokens,
        "recomputed_share": simulation.recomputed_tokens / max(simulation.prefilled_tokens, 1),
        "cached_share": simulation.cached_tokens / max(simulation.prompt_tokens, 1),
        "ttft_p50_s": simulation.ttft.quantile(0.5),
        "ttft_p99_s": simulation.ttft.quantile(0.99),
        "tpot_p50_s": simulation.tpot.quantile(0.5),
        "tpot_p99_s": simulation.tpot.quantile(0.99),
        "gap_p50_s": simulation.gap.quantile(0.5),
        "gap_p99_s": simulation.gap.quantile(0.99),
        "starvation": {
            "longest_ttft_s": simulation.ttft.max,
            "longest_gap_s": simulation.gap.max,
            "most_overtaken": simulation.overtaking.most,
        },
        "memory": {
            "capacity": capacity,
            "mean_share": simulation.timeline.mean_used(begin.time, end.time) / capacity,
            "most_share": simulation.timeline.most_used() / capacity,
        },
        "device_busy_share": (end.busy - begin.busy) / seconds,
        "requests": end.arrived,
        "finished": simulation.ttft.count,
        "rounds": simulation.rounds,
        "simulated_s": simulation.now,
        "measured_s": seconds,
        "process_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "timeline": _columns(simulation),
        "scheduler_cpu": {
            "mean_us": simulation.costs.all.mean * 1e6,
            "p50_us": simulation.costs.all.quantile(0.5) * 1e6,
            "p99_us": simulation.costs.all.quantile(0.99) * 1e6,
            "line_us": [intercept * 1e6, slope * 1e6],
            "add_mean_us": simulation.costs.adding.mean * 1e6,
            "by_rows": simulation.costs.table(),
        },
    }


TIMELINE = 200
"""Moments that a report has at most."""


def _columns(simulation: Simulation) -> dict[str, list[float]]:
    moments = simulation.timeline.moments
    moments = moments[:: -(-len(moments) // TIMELINE) or 1]
    return {
        field.name: [round(getattr(moment, field.name), 3) for moment in moments]
        for field in dataclasses.fields(Moment)
    }


def as_text(report: Report) -> str:
    memory, hunger, cpu = report["memory"], report["starvation"], report["scheduler_cpu"]
    load = "all at once" if report["rate_rps"] is None else f"{report['rate_rps']:.2f} requests/s"
    lines = [
        f"load              {load}, {report['requests']} requests, "
        f"{report['simulated_s']:.0f} s, {report['rounds']} rounds",
        f"goodput           {report['goodput_rps']:.2f} requests/s within the SLO; "
        f"refused {report['refused_share']:.1%}",
        f"throughput        {report['throughput_rps']:.2f} requests/s, {report['output_tokens_per_s']:.0f} tokens/s",
        f"TTFT              p50 {report['ttft_p50_s']:.3f} s, p99 {report['ttft_p99_s']:.3f} s",
        f"TPOT              p50 {report['tpot_p50_s'] * 1e3:.1f} ms, p99 {report['tpot_p99_s'] * 1e3:.1f} ms",
        f"longest gap       p50 {report['gap_p50_s']:.3f} s, p99 {report['gap_p99_s']:.3f} s",
        f"memory            mean {memory['mean_share']:.1%}, at most {memory['most_share']:.1%} "
        f"of {memory['capacity']} slots",
        f"pauses            {report['pauses_per_request']:.4f} a request; recomputed {report['recomputed_tokens']} "
        f"tokens ({report['recomputed_share']:.2%} of what was prefilled)",
        f"prefix cache      {report['cached_share']:.1%} of the prompt tokens",
        f"starvation        longest TTFT {hunger['longest_ttft_s']:.2f} s, longest gap {hunger['longest_gap_s']:.2f} s, "
        f"overtaken by {hunger['most_overtaken']} at most",
        f"scheduler         {cpu['mean_us']:.0f} us of CPU a round (p50 {cpu['p50_us']:.0f}), about "
        f"{cpu['line_us'][0]:.0f} + {cpu['line_us'][1]:.2f} a row; {cpu['add_mean_us']:.0f} us a request",
        f"this process      {report['process_peak_mib']:.0f} MiB at most",
    ]
    for entry in cpu["by_rows"]:
        lines.append(f"{'':18}{entry['rows']:6.0f} rows: p50 {entry['p50_us']:.0f} us, mean {entry['mean_us']:.0f} us "
                     f"({entry['rounds']} rounds)")  # fmt: skip
    return "\n".join(lines)
