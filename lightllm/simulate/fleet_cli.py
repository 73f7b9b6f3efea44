"""`python -m lightllm.simulate fleet`: many servers behind a dispatch policy, and policies beside each other."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lightllm.cluster.dispatch.policies import POLICIES
from lightllm.errors import InvalidOption, LightLLMError
from lightllm.simulate import latency
from lightllm.simulate.cli import make_parser as scheduler_parser
from lightllm.simulate.cli import make_setting
from lightllm.simulate.fleet import Fleet, FleetReport, Incident
from lightllm.simulate.load import Setting
from lightllm.simulate.synthetic import TRACES

_COLUMNS = ("throughput_rps", "output_tokens_per_s", "ttft_p50", "ttft_p99", "hit_rate", "hot_spot")


def main(argv: Sequence[str]) -> int:
    """Exit status 0, or 2 with one line on standard error when an option is wrong."""
    options = make_parser().parse_args(argv)
    try:
        setting = make_setting(_scheduler_options(options))
        rows = list(compare(options, setting))
    except LightLLMError as error:
        print(f"simulate fleet: {error}", file=sys.stderr)
        return 2
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lightllm.simulate fleet", allow_abbrev=False,
        description="Drives the real schedulers of many servers behind the real dispatch policies, on a virtual clock.",
    )  # fmt: skip
    add = parser.add_argument
    add("--servers", type=int, default=8)
    add("--dispatch_method", "--dispatch-method", nargs="+", choices=tuple(POLICIES), default=["round_robin", "prefix_aware"],
        help="one line each (default: %(default)s)")  # fmt: skip
    add("--trace", default="synthetic:tenants", help=", ".join(TRACES))
    add("--requests", type=int, default=4000)
    add("--rate", type=float, nargs="+", default=[18.0], help="requests a second, of all servers together")
    add("--seed", type=int, default=0)
    add("--latency_model", "--latency-model", default="a100-7b", help=", ".join(latency.MODELS))
    add("--dies", metavar="SERVER:SECONDS", nargs="*", default=[], help="servers that are lost, and when")
    add(
        "--slow",
        metavar="SERVER:TIMES",
        nargs="*",
        default=[],
        help="servers whose rounds take so many times as long",
    )
    add("--coarse", action="store_true",
        help="pass over the rounds in which nothing changes: an approximation, many times as fast (docs/dispatch.md)")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write the figures")
    return parser


def compare(options: argparse.Namespace, setting: Setting) -> list[dict[str, float | str]]:
    """One run for each rate and policy, printed as it ends. Raises `InvalidOption`."""
    incidents = read_incidents(options)
    print(
        f"{'policy':16} {'rate':>6} "
        + " ".join(f"{name:>19}" for name in _COLUMNS)
        + "  refused  moved  CPU s"
    )
    rows: list[dict[str, float | str]] = []
    for rate in options.rate:
        for method in options.dispatch_method:
            begun = time.process_time()
            report = run_fleet(setting, options.servers, method, rate, incidents, options.coarse)
            seconds = time.process_time() - begun
            figures = dataclasses.asdict(report)
            rows.append({"policy": method, "rate": rate, **figures, "cpu_seconds": seconds})
            shown = " ".join(f"{figures[name]:19.3f}" for name in _COLUMNS)
            print(
                f"{method:16} {rate:6.1f} {shown}  {report.refused:7} {report.moved:6} {seconds:6.1f}",
                flush=True,
            )
    return rows


def run_fleet(
    setting: Setting,
    servers: int,
    method: str,
    rate: float,
    incidents: Sequence[Incident] = (),
    coarse: bool = False,
) -> FleetReport:
    fleet = Fleet(
        servers, method, setting.config, setting.latency, setting.max_new_tokens, setting.seed, coarse=coarse
    )
    return fleet.run(setting.trace.requests(setting.requests, rate, setting.seed), incidents)


def read_incidents(options: argparse.Namespace) -> list[Incident]:
    """Raises `InvalidOption`."""
    incidents = []
    for name, texts in (("dies", options.dies), ("slow", options.slow)):
        for text in texts:
            server, _, value = text.partition(":")
            try:
                number, amount = int(server), float(value)
            except ValueError:
                raise InvalidOption(f"--{name} {text} is not SERVER:NUMBER.") from None
            if not 0 <= number < options.servers or not amount > 0:
                raise InvalidOption(
                    f"--{name} {text}: servers are 0 to {options.servers - 1}, and the number is above 0."
                )
            incidents.append(Incident(amount, number) if name == "dies" else Incident(0.0, number, amount))
    if len(options.dies) >= options.servers:
        raise InvalidOption("--dies leaves no server.")
    return incidents


def _scheduler_options(options: argparse.Namespace) -> argparse.Namespace:
    """Those of `python -m lightllm.simulate`, at their defaults but for what both have."""
    words = ["--trace", options.trace, "--requests", str(options.requests), "--seed", str(options.seed),
             "--latency-model", options.latency_model]  # fmt: skip
    return scheduler_parser().parse_args(words)
