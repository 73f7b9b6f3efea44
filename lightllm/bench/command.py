"""Measures a running server: Poisson arrivals, streamed answers, throughput and latencies.

    lightllm bench --dataset synthetic --num-prompts 200 --request-rate 8
    lightllm bench --tokenizer DIR --dataset ShareGPT.json --api openai --url http://127.0.0.1:8000

`--api native` (the default) asks LightLLM's `/generate_stream`; `--api openai` any server with `/v1/completions`.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import uvloop

from lightllm.bench.apis import Api, NativeApi, OpenAIApi
from lightllm.bench.dataset import Request, sharegpt, synthetic
from lightllm.bench.figures import Goal, report, summarize
from lightllm.bench.http_stream import Target
from lightllm.bench.load import Run, run, send
from lightllm.command_line import CommandParser
from lightllm.errors import InvalidOption

_VOCAB_WITHOUT_TOKENIZER = 512
OTHER_NAMES = {
    # vllm bench serve, sglang.bench_serving
    "base_url": "url", "backend": "api", "endpoint_type": "api", "endpoint": "api", "served_model_name": "model",
    "dataset_name": "dataset", "dataset_path": "dataset", "random_input_len": "input_len", "random_output_len": "output_len",
    "random_input": "input_len", "random_output": "output_len", "num_warmups": "warmups", "warmup_requests": "warmups",
    "result_filename": "output_json", "save_result": "output_json", "output_file": "output_json",
    "disable_tqdm": "no_progress", "goodput": "goodput_ttft", "num_prompt": "num_prompts",
}  # fmt: skip
"""Options of other load generators, and ours for the same."""


def main(argv: Sequence[str] | None = None) -> int:
    try:
        options = make_parser().parse_args(argv)
    except InvalidOption as error:
        print(f"lightllm bench: error: {error}", file=sys.stderr)
        return 2
    allow_many_connections()
    try:
        target = Target.from_url(options.url or f"http://{options.host}:{options.port}", options.api_key)
        requests = load_requests(options)
        api = make_api(options, target)
        result = uvloop.run(measure(options, target, api, requests))
    except (ValueError, OSError) as error:
        print(f"lightllm bench: error: {error}", file=sys.stderr)
        return 1
    figures = summarize(result, Goal(options.goodput_ttft, options.goodput_tpot))
    print(report(figures))
    if options.output_json:
        write_json(options, target, figures, result)
    if options.plot:
        from lightllm.bench.plot import draw

        draw(
            result,
            f"{target.url}{api.path}: {len(requests)} requests, rate {options.request_rate:g}/s",
            options.plot,
        )
    return 0 if figures["completed"] else 1


def make_parser() -> argparse.ArgumentParser:
    parser = CommandParser(others=OTHER_NAMES, prog="lightllm bench", description="Measure a running server.")
    server = parser.add_argument_group("server")
    server.add_argument("--url", help="base address; overrides --host and --port")
    server.add_argument("--host", default="127.0.0.1")
    server.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    server.add_argument("--api", choices=("native", "openai"), default="native")
    server.add_argument("--model", help="model name for --api openai (default: the first of /v1/models)")
    server.add_argument("--api_key", help="sent as `Authorization: Bearer`")
    data = parser.add_argument_group("requests")
    data.add_argument(
        "--tokenizer",
        help="model folder; needed for a ShareGPT file, sets the vocabulary of synthetic prompts",
    )
    data.add_argument("--dataset", default="synthetic", help="`synthetic`, or a ShareGPT JSON file")
    data.add_argument("--num_prompts", type=positive_int, default=1000)
    data.add_argument(
        "--input_len", type=positive_int, default=0, help="synthetic: every prompt has this length"
    )
    data.add_argument(
        "--output_len", type=positive_int, default=0, help="synthetic: every output has this length"
    )
    data.add_argument(
        "--vocab_size", type=positive_int, help="synthetic: token ids below this (without --tokenizer: 512)"
    )
    data.add_argument("--ignore_eos", action="store_true", default=True,
                      help="generate the data set's output lengths exactly (the default)")  # fmt: skip
    data.add_argument(
        "--no_ignore_eos", action="store_false", dest="ignore_eos", help="as the model ends them"
    )
    data.add_argument("--seed", type=int, default=0)
    load = parser.add_argument_group("load")
    load.add_argument(
        "--request_rate", type=positive_float, default=math.inf, help="requests/s, Poisson; inf: all at once"
    )
    load.add_argument("--max_concurrency", type=positive_int, help="at most this many at once")
    load.add_argument("--warmups", type=int, default=1, help="requests before the measurement")
    load.add_argument("--timeout", type=positive_float, default=3600.0, help="seconds for one request")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output_json", type=Path, metavar="FILE", help="all figures and every request's times"
    )
    output.add_argument("--plot", type=Path, metavar="FILE.png", help="needs matplotlib (extra `bench`)")
    output.add_argument(
        "--goodput_ttft", type=positive_float, metavar="MS", help="count requests with at most this TTFT"
    )
    output.add_argument("--goodput_tpot", type=positive_float, metavar="MS", help="... and at most this TPOT")
    output.add_argument("--no_progress", action="store_true", help="no progress bar")
    return parser


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def positive_float(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be more than 0, got {text}")
    return value


def load_requests(options: argparse.Namespace) -> list[Request]:
    if options.dataset != "synthetic" and not options.tokenizer:
        raise ValueError("--dataset FILE needs --tokenizer, to count tokens")
    tokenizer = None
    if options.tokenizer:
        from lightllm.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(options.tokenizer)
    if options.dataset == "synthetic":
        vocab_size = options.vocab_size or (tokenizer.vocab_size if tokenizer else _VOCAB_WITHOUT_TOKENIZER)
        return synthetic(options.num_prompts, vocab_size, options.seed, options.input_len, options.output_len)
    assert tokenizer is not None
    return sharegpt(Path(options.dataset), options.num_prompts, tokenizer.encode, options.seed)


def make_api(options: argparse.Namespace, target: Target) -> Api:
    if options.api == "native":
        return NativeApi(options.ignore_eos)
    return OpenAIApi(options.ignore_eos, options.model or first_model(target))


def first_model(target: Target) -> str:
    request = urllib.request.Request(f"{target.url}/v1/models")
    if target.api_key:
        request.add_header("Authorization", f"Bearer {target.api_key}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return str(json.load(answer)["data"][0]["id"])
    except (urllib.error.URLError, KeyError, IndexError) as error:
        raise ValueError(f"{target.url}/v1/models names no model ({error}): give --model") from error


async def measure(options: argparse.Namespace, target: Target, api: Api, requests: list[Request]) -> Run:
    for request in requests[: options.warmups]:
        outcome = await send(target, api, request, options.timeout)
        if outcome.failure:
            raise ValueError(f"the first request failed: {outcome.detail}")
    return await run(
        target, api, requests, rate=options.request_rate, seed=options.seed, timeout=options.timeout,
        max_concurrency=options.max_concurrency, show_bar=not options.no_progress,
    )  # fmt: skip


def write_json(options: argparse.Namespace, target: Target, figures: dict[str, object], result: Run) -> None:
    """Times of a request are seconds from its start."""
    arguments = {
        key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()
    }
    if math.isinf(options.request_rate):
        arguments["request_rate"] = "inf"
    arguments.pop("api_key")
    begin = min(outcome.start for outcome in result.outcomes)
    requests = [
        {
            "start": outcome.start - begin,
            "prompt_tokens": outcome.prompt_tokens,
            "output_tokens": outcome.output_tokens,
            "wanted_tokens": outcome.wanted_tokens,
            "times": [round(moment - outcome.start, 6) for moment in outcome.times],
            "failure": outcome.failure,
        }
        for outcome in sorted(result.outcomes, key=lambda outcome: outcome.start)
    ]
    content = {"url": target.url, "arguments": arguments, "figures": figures, "requests": requests}
    options.output_json.parent.mkdir(parents=True, exist_ok=True)
    options.output_json.write_text(json.dumps(content))


def allow_many_connections() -> None:
    """A connection for each request in flight: raises the soft limit of open files to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
