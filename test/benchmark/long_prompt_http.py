"""What a long prompt costs around the model: time to the first token with a backend that computes nothing.

    python test/benchmark/long_prompt_http.py [--model_dir DIR] [--tokens 16000] [--runs 31]

Sends one prompt at a time to `/v1/completions` of a server with the mock backend: its text (slices of Python's own library, read
by the model's tokenizer), then its token ids. What is measured is reading the request, its JSON and its text, handing it to
Router and Detokenizer, and the way back of one token; the line with 16 tokens is what all of that takes without a prompt.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import sysconfig
import time
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmark.serving.with_server import running_server  # noqa: E402

from lightllm.bench.http_stream import Target, post_events  # noqa: E402
from lightllm.model_folder.location import resolve_model_dir  # noqa: E402
from lightllm.tokenizer import Tokenizer, load_tokenizer  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model_dir", help="its tokenizer is used; without it the demo model's")
    parser.add_argument("--tokens", type=int, default=16000)
    parser.add_argument("--runs", type=int, default=31)
    options = parser.parse_args()
    tokenizer = load_tokenizer(resolve_model_dir(options.model_dir, print))
    length = options.tokens + 100
    server = ["--host", "127.0.0.1", "--mock_backend", "", "--max_req_total_len", str(length), "--batch_max_tokens", str(length),
              "--chunked_prefill_size", str(length)]  # fmt: skip
    if options.model_dir is not None:
        server += ["--model_dir", options.model_dir]
    library = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    source = "".join(file.read_text(errors="ignore") for file in library)
    with running_server(server) as port:
        target = Target("127.0.0.1", port)
        for count in (16, options.tokens):
            texts = [text_of(source, count, seed, tokenizer) for seed in range(options.runs + 3)]
            size = len(texts[0].encode())
            report(f"{count} tokens as text ({size} bytes)", [ttft(target, text) for text in texts])
            ids = [tokenizer.encode(text)[-count:] for text in reversed(texts)]
            report(f"{count} token ids", [ttft(target, tokens) for tokens in ids])


def text_of(source: str, tokens: int, seed: int, tokenizer: Tokenizer) -> str:
    """So many tokens, but for one or two where it was cut."""
    start = random.Random(seed).randrange(len(source) - 10 * tokens)
    return tokenizer.decode(tokenizer.encode(source[start : start + 10 * tokens])[:tokens])


def ttft(target: Target, prompt: str | list[int]) -> float:
    """Seconds from sending a request to its first token; the connection, a new one, is part of it."""
    body = {"model": "m", "prompt": prompt, "max_tokens": 1, "stream": True, "temperature": 0}
    arrivals: list[float] = []
    encoded = msgspec.json.encode(body)
    started = time.perf_counter()
    asyncio.run(post_events(target, "/v1/completions", encoded, lambda _, now: arrivals.append(now), 60))
    return arrivals[0] - started


def report(what: str, seconds: list[float]) -> None:
    """Without the first ones, which warm the server."""
    values = sorted(1e3 * value for value in seconds[3:])
    print(f"{what}: p50 {statistics.median(values):.1f} ms, least {values[0]:.1f}, most {values[-1]:.1f}")


if __name__ == "__main__":
    main()
