"""Writes the tables of docs/ that follow from the code: every option, metric and sampling parameter, every kernel's registers.

python tools/make_docs.py           write docs/options.md, docs/fields.md, docs/metrics.md, docs/models.md and the tables of docs/api.md
                                    and docs/kernels.md
python tools/make_docs.py --check   exit status 1 if one of them is stale
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fields_page import fields_page
from folder_rules import RULES
from tools_page import tools_and_reasoning_page

from lightllm import config, foreign_options
from lightllm.models import rope_config
from lightllm.models.architectures import ARCHITECTURES
from lightllm.models.hf_configs.vision_language import LANGUAGE_MODELS
from lightllm.parameter_spec import Parameter, Range
from lightllm.protocol import metric_aliases, metrics
from lightllm.sampling_params import PARAMETERS, SamplingParams

ROOT = Path(__file__).resolve().parent.parent
NOTICE = "<!-- Made by tools/make_docs.py from the code: change it there, then run `make docs`. -->"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is stale")
    parser.add_argument("--root", type=Path, default=ROOT, help="checkout to work on")
    options = parser.parse_args(argv)
    stale = [path for path, make in PAGES.items() if _read(options.root / path) != make()]
    for path in stale:
        if options.check:
            print(f"{path} is stale: run `make docs`")
        else:
            (options.root / path).parent.mkdir(parents=True, exist_ok=True)
            (options.root / path).write_text(PAGES[path](), encoding="utf-8")
            print(f"{path} written")
    return 1 if options.check and stale else 0


def _paragraph(text: str) -> str:
    """Wrapped as the hand-written pages are."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


# -- options


def options_page() -> str:
    lines = [
        NOTICE,
        "# Options",
        "",
        "Options of `lightllm serve [MODEL]` (or `python -m lightllm.server.api_server`). Dashes may stand for underscores.",
        "Each can also be given as an environment variable (`LIGHTLLM_` and its name in capitals: `LIGHTLLM_PORT=8080`)",
        "or in a YAML file (`--config FILE.yaml`, lines like `port: 8080`). The command line wins over the environment,",
        "the environment over the file.",
        "",
    ]
    group = ""
    for field, option in config.options():
        if option.group != group:
            group = option.group
            lines += ["", f"## {group}", "", "| option | value | default | meaning |", "|---|---|---|---|"]
        names = "<br>".join(f"`{name}`" for name in (f"--{field.name}", *option.aliases))
        lines.append(f"| {names} | {_value(field, option)} | {_default(field)} | {_cell(option.help)} |")
    lines += [
        "",
        "## Options of LightLLM that are not built yet",
        "",
        "Any value but the one shown ends the launch with a clear message.",
        "",
        "| option | accepted value |",
        "|---|---|",
        *(f"| `--{name}` | {_not_yet(value)} |" for name, value in foreign_options.NOT_YET.items()),
        "",
        "## Options of LightLLM that set options of ours",
        "",
        "What is given under its own name wins.",
        "",
        "| option | sets |",
        "|---|---|",
        *(
            f"| {'<br>'.join(f'`--{each}`' for each in (name, *how.get('aliases', ())))} | "
            f"{', '.join(f'`--{ours}`' for ours in how['ours'])} |"
            for name, how in foreign_options.TRANSLATED.items()
        ),
        "",
        "## Options of LightLLM without effect",
        "",
        _paragraph(
            "Accepted with a warning, so that existing launch commands go on working: "
            + ", ".join(f"`--{name}`" for name in foreign_options.WITHOUT_EFFECT)
            + "."
        ),
    ]
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def _value(field: Any, option: config.Option) -> str:
    if field.default is False:
        return "flag"
    if option.choices:
        return " ".join(f"`{choice}`" for choice in option.choices)
    name = {"int": "integer", "float": "number", "str": "text"}.get(
        option.type.__name__, option.type.__name__
    )
    several = {"+": ", one or more", "?": ", optional"}.get(option.nargs or "", "")
    return name + several + (f", {option.expects}" if option.expects else "")


def _default(field: Any) -> str:
    if field.default is None:
        return ""
    return "off" if field.default is False else f"`{field.default}`"


def _not_yet(value: Any) -> str:
    return "leave it out" if value in (None, False) else f"`{value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# -- metrics


def metrics_page() -> str:
    lines = [
        NOTICE,
        "# Metrics",
        "",
        "`GET /metrics` answers in the Prometheus text format. A counter is exposed as `NAME_total`, a histogram as",
        "`NAME_bucket`, `NAME_sum` and `NAME_count`. Every series but the last has the label `model_name`.",
        "",
        "| metric | kind | meaning | buckets |",
        "|---|---|---|---|",
    ]
    for metric in all_metrics():
        buckets = (
            f"{metric.buckets[0]:g} to {metric.buckets[-1]:g} in {len(metric.buckets)}"
            if metric.buckets
            else ""
        )
        label = f" Label `{metric.label}`: {', '.join(metric.values)}." if metric.label else ""
        lines.append(f"| `{metric.name}` | {metric.kind} | {_cell(metric.help)}{label} | {buckets} |")
    lines += [
        "",
        "## By other servers' names",
        "",
        _paragraph(
            "The same once more, for dashboards and routers that know these names: vLLM's (its Grafana dashboards, the gateway "
            "API inference extension), with the label `engine` besides, and those of LightLLM since version 1.2. A pool of "
            "servers needs no other configuration than for vLLM."
        ),
        "",
        "| metric | kind | made of |",
        "|---|---|---|",
    ]
    for alias in metric_aliases.ALIASES:
        labels = [alias.label, *(name for name, _ in alias.labels)]
        shown = ", ".join(f"`{label}`" for label in labels if label)
        lines.append(
            f"| `{alias.name}` | {alias.kind} | {alias.made_of}{f'; labels {shown}' if shown else ''} |"
        )
    return "\n".join(lines) + "\n"


def all_metrics() -> list[metrics.Metric]:
    """Every `Metric` that the module holds, alone or in (nested) tuples, once, in order of the module's text."""
    found: dict[str, metrics.Metric] = {}
    for value in vars(metrics).values():
        for metric in _metrics_in(value):
            found.setdefault(metric.name, metric)
    return list(found.values())


def _metrics_in(value: Any) -> Iterator[metrics.Metric]:
    if isinstance(value, metrics.Metric):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _metrics_in(item)


# -- sampling parameters

PARAMETERS_TABLE = (
    "<!-- The table below is made by tools/make_docs.py from lightllm/sampling_params.py. -->",
    "<!-- End of the table. -->",
)


def api_page() -> str:
    """The page as it is written by hand, but for the table of sampling parameters."""
    written = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    before, _, rest = written.partition(PARAMETERS_TABLE[0])
    after = rest.partition(PARAMETERS_TABLE[1])[2]
    lines = [
        PARAMETERS_TABLE[0],
        "",
        "| name | on /v1 | default | values | meaning |",
        "|---|---|---|---|---|",
        *(_parameter_row(name, spec) for name, spec in PARAMETERS.items() if spec.native is not None),
        "",
        PARAMETERS_TABLE[1],
    ]
    return before + "\n".join(lines) + after


def _parameter_row(name: str, spec: Parameter) -> str:
    own = spec.native or name
    default = spec.shown_default or json.dumps(getattr(SamplingParams(), name))
    openai = "no" if spec.openai is None else spec.openai or name
    openai = {own: "same", "no": "no"}.get(openai, f"`{openai}`")
    values = spec.values or "; ".join(map(_range, spec.ranges))
    cells = (f"`{own}`", openai, default, values, spec.help)
    return f"| {' | '.join(map(_cell, cells))} |"


def _range(range: Range) -> str:
    low, high = (_round_number(number) for number in (range.low, range.high))
    besides = "" if range.besides is None else f"{_round_number(range.besides)} or "
    return besides + (f"({low}, {high}]" if range.above else f"{low} to {high}")


def _round_number(number: float) -> str:
    if number < -1:
        return f"-({_round_number(-number)})"
    bits = (int(number) + 1).bit_length() - 1
    return f"2^{bits}-1" if number == 2**bits - 1 and bits > 16 else f"{number:g}"


# -- kernels

KERNELS_TABLE = (
    "<!-- The table below is made by tools/make_docs.py from docs/kernels.json (`make test-kernels`). -->"
)


def kernels_page() -> str:
    """The page's hand-written part, then a table of what was compiled."""
    written, _, _ = (ROOT / "docs/kernels.md").read_text(encoding="utf-8").partition(KERNELS_TABLE)
    report = json.loads((ROOT / "docs/kernels.json").read_text(encoding="utf-8"))
    lines = [
        KERNELS_TABLE,
        "",
        f"Compiled with Triton {report['triton']}; registers a thread and bytes of shared memory a block, by architecture.",
        "",
        "| kernel | case | configuration | registers | shared memory | spills |",
        "|---|---|---|---|---|---|",
    ]
    for case in report["cases"]:
        launch = " ".join(f"{name}={value}" for name, value in case["launch"].items())
        config = f"{case['config']}: {launch}" if launch else case["config"]
        spills = "none" if not any(case["stack"].values()) else _by_architecture(case["stack"])
        cells = [f"`{case['kernel']}`", case["case"], config, _by_architecture(case["registers"])]
        lines.append(f"| {' | '.join(map(_cell, [*cells, _by_architecture(case['shared']), spills]))} |")
    return written + "\n".join(lines) + "\n"


def _by_architecture(figures: dict[str, int]) -> str:
    """One figure where all architectures agree."""
    if len(set(figures.values())) == 1:
        names = "" if len(figures) > 1 else f" (sm_{next(iter(figures))})"
        return f"{next(iter(figures.values()))}{names}"
    return ", ".join(f"sm_{name} {value}" for name, value in figures.items())


# -- models


def models_page() -> str:
    lines = [
        NOTICE,
        "# Models",
        "",
        "An architecture is what `architectures` in a model's config.json names. Its parity test compares logits (1e-4 of the",
        "largest), greedy tokens and bfloat16 with the reference on a small random checkpoint in the published format, in",
        "chunks, in batches, from cached prefixes: `test/models/test_architectures.py`. How to add one:",
        "[adding_a_model.md](adding_a_model.md).",
        "",
        "| architecture | checkpoints, for example | beside Llama's layers | compared with | limits |",
        "|---|---|---|---|---|",
    ]
    for name, known in ARCHITECTURES.items():
        cells = (f"`{name}`", known.examples, known.features, known.reference, known.limits)
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    lines += [
        "",
        _paragraph(
            f"Rotary embeddings: {', '.join(f'`{name}`' for name in rope_config.REQUIRED)}, each compared with "
            "transformers' tables, or for `qwen_dynamic` with the published formula, also beyond the original context "
            "(`test/ops/test_rope_scaling.py`). Those that depend on the length (`dynamic`, `qwen_dynamic`, `longrope`) are "
            "fixed at the start by the longest context that is served (`--max_req_total_len`), not by each request: so cached "
            "prefixes stay valid, and a request has the same answer alone and among others. A server whose longest context is "
            "within the model's original one computes what the original does; one that serves more computes short requests "
            "too with the long factors (transformers chooses anew for each prompt), and says so at the start."
        ),
        "",
        "## Models for vectors",
        "",
        _paragraph(
            "The layers of an architecture above are served under a classification head too (`...ForSequenceClassification` in "
            "place of `...ForCausalLM`), and without any head (`...Model`): [vectors.md](vectors.md). Compared with transformers: "
            "`test/models/test_pooled_heads.py`."
        ),
        "",
        "## Models that see",
        "",
        _paragraph(
            "A checkpoint with a vision encoder is recognised by its `model_type`: "
            f"{', '.join(f'`{name}`' for name in LANGUAGE_MODELS)}, and `qwen` with a `visual` part. Its language model is one of "
            "the architectures above, the one that its `text_config` (`llm_config`) names; greedy tokens of prompts with images "
            "are compared with a reference (`test/models/vision/test_answers.py`). See [images.md](images.md#in-the-language-model)."
        ),
        "",
        "## A folder that contradicts itself",
        "",
        _paragraph(
            "What two files, two keys, or a file and an architecture's default state differently is decided by one rule, that "
            "of transformers 5 where it has one. What was overruled is said in a line at the start; what cannot be decided is "
            "refused there."
        ),
        "",
        "| stated by | counts | the rest | test |",
        "|---|---|---|---|",
        *("| " + " | ".join(_cell(cell) for cell in rule) + " |" for rule in RULES),
    ]
    return "\n".join(lines) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "docs/models.md": models_page,
    "docs/options.md": options_page,
    "docs/fields.md": lambda: fields_page(NOTICE),
    "docs/metrics.md": metrics_page,
    "docs/kernels.md": kernels_page,
    "docs/api.md": api_page,
    "docs/tools_and_reasoning.md": tools_and_reasoning_page,
}

if __name__ == "__main__":
    sys.exit(main())
