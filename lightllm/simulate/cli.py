"""The command line of the simulator: options in, figures out."""

from __future__ import annotations

import argparse
import cProfile
import dataclasses
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lightllm.config import ServerConfig
from lightllm.config import options as server_options
from lightllm.config_sources import verify
from lightllm.errors import InvalidOption, LightLLMError
from lightllm.router.scheduler_config import resolve
from lightllm.simulate import latency, plots
from lightllm.simulate.load import Setting, find_peak, run
from lightllm.simulate.report import Report, as_text
from lightllm.simulate.simulator import Slo
from lightllm.simulate.synthetic import TRACES
from lightllm.simulate.trace import EOS, Trace
from lightllm.simulate.trace_files import FileTrace

SERVER_OPTIONS = [
    (field, option)
    for field, option in server_options()
    if option.group == "Scheduling" or field.name == "max_req_total_len"
]
"""The server's options that the simulator has too."""
SHORT_NAMES = {"schedule_policy": "policy"}
DEFAULTS: dict[str, Any] = {
    "max_req_total_len": 1 << 15,
    "max_waiting_requests": 1 << 22,
    "max_waiting_seconds": 0.0,
}
"""Where they are not the server's. How long queues get is what a simulation shows, so that any number may wait."""


def main(argv: Sequence[str]) -> int:
    """Exit status 0, or 2 with one line on standard error when an option is wrong."""
    options = make_parser().parse_args(argv)
    try:
        report = simulate(options)
    except LightLLMError as error:
        print(f"simulate: {error}", file=sys.stderr)
        return 2
    print(as_text(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return 0


def make_parser(prog: str = "python -m lightllm.simulate") -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, allow_abbrev=False,
        description="Drives the real scheduler through a trace of requests, on a virtual clock.",
    )  # fmt: skip
    _add_run_options(parser)
    _add_scheduler_options(parser)
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    add = _Adder(parser)
    add(
        "trace",
        default="synthetic:sharegpt",
        help=", ".join(TRACES) + ", or a file: Mooncake, BurstGPT, Azure",
    )
    add("requests", type=_whole, default=10_000, help="how many of the trace (default %(default)s)")
    add("rate", default="auto", metavar="R|Kx|auto", help="requests a second; auto (default): where goodput peaks; "
        "1.5x: 1.5 times that; inf: all at once; recorded: as a file has them")  # fmt: skip
    add("seed", type=int, default=0)
    add("max-new-tokens", type=_whole, help="what requests declare; default: the trace's")
    add("latency-model", default="a100-7b", metavar="NAME|FILE",
        help=f"{', '.join(latency.MODELS)}, or a JSON file (docs/scheduling_figures.md)")  # fmt: skip
    add("gap_slo", type=_seconds, default=Slo.gap, metavar="S",
        help="longest gap between two tokens that counts as good (default %(default)s)")  # fmt: skip
    add("check", type=int, default=0, metavar="N", help="check the scheduler's books every N rounds")
    add("json", type=Path, metavar="FILE", help="write the figures")
    add(
        "plots",
        type=Path,
        metavar="FOLDER",
        help="draw memory over time, and goodput against load after a search",
    )
    add("profile", type=Path, metavar="FILE", help="write a profile of the whole run, for python -m pstats")


def _add_scheduler_options(parser: argparse.ArgumentParser) -> None:
    """As those of the server; `--policy` is its `--schedule_policy`, `--capacity` its `--max_total_token_num`."""
    add = _Adder(parser)
    for field, option in SERVER_OPTIONS:
        default = DEFAULTS.get(field.name, field.default)
        shown = "" if default is None else f" (default: {default})"
        kind: dict[str, Any] = {"action": "store_true"}
        if field.default is not False:
            kind = {"type": option.type, "choices": option.choices, "default": default}
        add(SHORT_NAMES.get(field.name, field.name), help=option.help.replace("%", "%%") + shown, **kind)
    add("capacity", type=_whole, help="KV slots; default: the latency model's")


class _Adder:
    """Adds an option to a parser, with `_` and with `-` in its name."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._parser = parser

    def __call__(self, name: str, **more: Any) -> None:
        spellings = dict.fromkeys([name, name.replace("_", "-"), name.replace("-", "_")])
        self._parser.add_argument(*(f"--{spelling}" for spelling in spellings), **more)


def simulate(options: argparse.Namespace) -> Report:
    """Runs what the options say; raises `LightLLMError` where they make no sense."""
    if options.plots:
        plots.check()
    setting = make_setting(options)
    rate, curve = read_rate(setting, options.rate)
    profile = cProfile.Profile() if options.profile else None
    # In a log file, a line every half minute.
    often = 0.2 if sys.stderr.isatty() else 30.0
    bar = tqdm(total=setting.requests, unit=" requests", mininterval=often, delay=often)
    with bar, profile or nullcontext():
        report, _ = run(setting, rate, bar.update)
    if profile is not None:
        profile.dump_stats(options.profile)
    asked = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    report["options"] = asked
    config = dataclasses.asdict(setting.config)
    scheduling = {field.name: config["options"][field.name] for field, _ in SERVER_OPTIONS}
    report["limits"] = scheduling | {name: value for name, value in config.items() if name != "options"}
    report["latency_model"] = dataclasses.asdict(setting.latency)
    report["load_curve"] = curve
    if options.plots:
        plots.plot_memory(report, options.plots / "memory.svg")
        if curve:
            plots.plot_goodput({options.policy: curve}, options.plots / "goodput.svg")
    return report


def make_setting(options: argparse.Namespace) -> Setting:
    trace = open_trace(options.trace)
    device = latency.find(options.latency_model)
    asked = {
        field.name: getattr(options, SHORT_NAMES.get(field.name, field.name)) for field, _ in SERVER_OPTIONS
    }
    server = verify(ServerConfig(**asked))
    batch = server.batch_max_tokens or device.batch_max_tokens
    chunk = min(server.chunked_prefill_size or device.chunked_prefill_size, batch)
    server = dataclasses.replace(server, batch_max_tokens=batch, chunked_prefill_size=chunk)
    longest = server.max_req_total_len or DEFAULTS["max_req_total_len"]
    config = resolve(server, options.capacity or device.capacity, "cuda", longest, [EOS])
    return Setting(
        trace, config, device, Slo(options.ttft_slo or Slo.ttft, options.gap_slo), options.requests, options.seed,
        options.max_new_tokens or trace.max_new_tokens, options.check,
    )  # fmt: skip


def open_trace(name: str) -> Trace:
    """`synthetic:NAME`, or a file. Raises `InvalidOption`."""
    if name in TRACES:
        return TRACES[name]
    if name.startswith("synthetic:"):
        raise InvalidOption(f"--trace {name} is unknown.", f"Known: {', '.join(TRACES)}.")
    return FileTrace(Path(name))


def read_rate(setting: Setting, text: str) -> tuple[float, list[Report]]:
    """(requests a second, reports of the search for the peak) that --rate asks for. Raises `InvalidOption`."""
    if text == "recorded":
        if not isinstance(setting.trace, FileTrace):
            raise InvalidOption("--rate recorded is for trace files.")
        return setting.trace.recorded_rate(setting.requests), []
    times = text == "auto" or text.endswith("x")
    try:
        value = float(text.removesuffix("x")) if text != "auto" else 1.0
    except ValueError:
        value = 0.0
    if not value > 0 or (times and value == float("inf")):
        raise InvalidOption(f"--rate {text} is neither a number above 0, nor auto, nor a multiple like 1.5x.")
    if not times:
        return value, []
    peak, curve = find_peak(setting, lambda line: print(line, file=sys.stderr))
    return peak * value, curve


def _seconds(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def _whole(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value
