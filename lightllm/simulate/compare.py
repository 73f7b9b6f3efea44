"""What the admission policies do with the same requests: the tables and plots of docs/scheduling_figures.md.

    python -m lightllm.simulate.compare --trace synthetic:sharegpt --requests 6000 --jobs 2 --plots docs/scheduling

Loads are multiples of --rate: by default the load at which goodput peaks under past_future. Each lasts as long as --requests at 1x:
of a shorter time, the beginning, in which all contexts are young, and the end, when the last ones run alone, would be too
large a part. Saturation is when --requests come at once.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tqdm import tqdm

from lightllm.errors import LightLLMError
from lightllm.simulate import plots
from lightllm.simulate.cli import make_parser, make_setting, read_rate
from lightllm.simulate.load import Setting, run
from lightllm.simulate.report import Report

LOADS = (0.5, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0)
SATURATED = float("inf")


@dataclasses.dataclass(frozen=True)
class Variant:
    name: str
    changes: dict[str, object]
    """Of the server's options."""

    def of(self, setting: Setting) -> Setting:
        return dataclasses.replace(setting, config=setting.config.with_options(**self.changes))


VARIANTS = (
    Variant("conservative", {"schedule_policy": "conservative"}),
    Variant("aggressive", {"schedule_policy": "aggressive"}),
    Variant("past_future", {"schedule_policy": "past_future"}),
    Variant("past_future, --ttft_slo 10", {"schedule_policy": "past_future", "ttft_slo": 10.0}),
)


def measure(job: tuple[Setting, float]) -> Report:
    report, _ = run(*job)
    return report


def compare(setting: Setting, peak: float, multiples: Sequence[float], jobs: int) -> dict[str, list[Report]]:
    """Variant -> reports at these multiples of `peak` requests a second, and of `SATURATED`."""
    loads = [
        *((_lasting(setting, multiple), multiple * peak) for multiple in multiples),
        (setting, SATURATED),
    ]
    work = [(variant.of(setting), load) for variant in VARIANTS for setting, load in loads]
    with ProcessPoolExecutor(jobs) as pool:
        results = map(measure, work) if jobs == 1 else pool.map(measure, work)
        done = list(tqdm(results, total=len(work), unit=" runs", disable=None))
    return {variant.name: done[i * len(loads) : (i + 1) * len(loads)] for i, variant in enumerate(VARIANTS)}


def _lasting(setting: Setting, multiple: float) -> Setting:
    return dataclasses.replace(setting, requests=round(setting.requests * max(1.0, multiple)))


def saturation_table(found: dict[str, list[Report]]) -> str:
    """Markdown, of the last report of each variant."""
    lines = ["| under saturation | requests/s | tokens/s | of aggressive | memory held | pauses a request | recomputed |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    most = found["aggressive"][-1]["throughput_rps"]
    for name, reports in found.items():
        report = reports[-1]
        lines.append(
            f"| {name} | {report['throughput_rps']:.2f} | {report['output_tokens_per_s']:.0f} | "
            f"{report['throughput_rps'] / most:.3f} | {report['memory']['mean_share']:.1%} | "
            f"{report['pauses_per_request']:.3f} | {report['recomputed_share']:.1%} |"
        )
    return "\n".join(lines)


def load_table(found: dict[str, list[Report]], multiples: Sequence[float]) -> str:
    """Markdown: goodput, refused share, and pauses at the multiples that matter."""
    shown = [i for i, multiple in enumerate(multiples) if multiple in (1.0, 1.5, 3.0)]
    head = " | ".join(f"goodput at {multiples[i]:g}x | refused | pauses" for i in shown)
    lines = [f"| policy | {head} | 3x of its own peak |", "|---" * (2 + 3 * len(shown)) + "|"]
    for name, reports in found.items():
        finite = reports[: len(multiples)]
        best = max(report["goodput_rps"] for report in finite)
        cells = " | ".join(
            f"{r['goodput_rps']:.2f} | {r['refused_share']:.0%} | {r['pauses_per_request']:.3f}"
            for r in (finite[i] for i in shown)
        )
        lines.append(f"| {name} | {cells} | {finite[-1]['goodput_rps'] / max(best, 1e-9):.2f} |")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    parser = make_parser(prog="python -m lightllm.simulate.compare")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS, help="as multiples of --rate")
    options = parser.parse_args(argv)
    try:
        if options.plots:
            plots.check()
        setting = make_setting(options)
        peak, _ = read_rate(setting, options.rate)
        found = compare(setting, peak, options.loads, options.jobs)
    except LightLLMError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    print(f"{setting.trace.name}, {setting.requests} requests, {setting.config.max_total_token_num} slots, "
          f"max_new_tokens {setting.max_new_tokens}; 1x is {peak:.2f} requests/s\n")  # fmt: skip
    print(saturation_table(found) + "\n\n" + load_table(found, options.loads))
    if options.json:
        options.json.write_text(
            json.dumps({"peak_rps": peak, "found": found}, indent=1, allow_nan=False) + "\n"
        )
    if options.plots:
        short = Path(setting.trace.name.removeprefix("synthetic:")).stem
        curves = {name: reports[:-1] for name, reports in found.items()}
        plots.plot_goodput(curves, options.plots / f"goodput_{short}.svg")
        for name in ("conservative", "past_future"):
            plots.plot_memory(found[name][-1], options.plots / f"memory_{short}_{name}.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
