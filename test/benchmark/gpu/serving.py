"""The whole server: seconds from the launch command to ready, and a ShareGPT-like load through HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from benchmark.gpu.figures import Figure
from benchmark.gpu.rounds import options
from benchmark.serving.with_server import running_server
from support.checkpoints import write_tokenizer

from lightllm.bench.apis import OpenAIApi
from lightllm.bench.dataset import synthetic
from lightllm.bench.figures import summarize
from lightllm.bench.http_stream import Target
from lightllm.bench.load import run


def start_and_load(name: str, shape: dict[str, Any], device: torch.device, dry: bool) -> list[Figure]:
    """The first start compiles kernels into an empty Triton cache, the second finds them there."""
    count, rate = (8, 100.0) if dry else (2000, 200.0)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(shape | {"max_position_embeddings": 4096}))
        write_tokenizer(model, min(shape["vocab_size"], 2000))
        arguments = ["--model_dir", str(model), "--model_name", "m", "--max_req_total_len", "2100"]
        arguments += [part for key, value in options(device).items() for part in (f"--{key}", str(value))]
        if dry:
            arguments += ["--max_total_token_num", "6000"]
        os.environ["TRITON_CACHE_DIR"] = str(Path(folder) / "triton")
        try:
            cold, _ = _started(arguments, None)
            warm, figures = _started(arguments, (count, rate, shape["vocab_size"]))
        finally:
            del os.environ["TRITON_CACHE_DIR"]
    assert figures is not None
    details = {
        key: figures[key] for key in ("failed", "wrong_length", "ttft_ms", "tpot_ms", "itl_ms", "e2e_ms")
    }
    details |= {
        "output_tokens_per_s": figures["output_tokens_per_s"],
        "client_cpu": figures["client_cpu_share"],
    }
    return [
        Figure(f"{name}: launch to ready, empty Triton cache", cold, "s"),
        Figure(f"{name}: launch to ready", warm, "s", aim=30.0, lower_is_better=True),
        Figure(f"{name}: {count} ShareGPT-like requests through HTTP at {rate:g} a second", figures["requests_per_s"],
               "requests/s", aim=None if dry else 45.0, details=details),
    ]  # fmt: skip


def _started(
    arguments: list[str], load: tuple[int, float, int] | None
) -> tuple[float, dict[str, Any] | None]:
    """Seconds until the server was ready; what it did under the load."""
    launched = time.perf_counter()
    with running_server(arguments) as port:
        ready = time.perf_counter() - launched
        if load is None:
            return ready, None
        count, rate, vocab = load
        requests = synthetic(count, vocab, seed=0)
        target, api = Target.from_url(f"http://127.0.0.1:{port}"), OpenAIApi(True, "m")
        done = asyncio.run(
            run(target, api, requests, rate=rate, seed=0, max_concurrency=None, timeout=600, show_bar=False)
        )
        return ready, summarize(done)
