"""transformers' own continuous batching on the same shape and the same requests, beside ours."""

from __future__ import annotations

import gc
import time
from typing import Any

import numpy as np
import torch
from benchmark.gpu.clock import Limits, synchronize
from benchmark.gpu.figures import Figure
from benchmark.gpu.rounds import loaded, options, serve


def continuous_batching(
    name: str, shape: dict[str, Any], device: torch.device, limits: Limits, dry: bool
) -> list[Figure]:
    count, low, high, output = (3, 4, 8, 4) if dry else (64, 100, 1024, 256)
    dice = np.random.default_rng(0)
    prompts = [
        dice.integers(5, shape["vocab_size"], int(length)) for length in dice.integers(low, high + 1, count)
    ]
    more = {"max_total_token_num": 400} if dry else {}
    with loaded(shape, max_req_total_len=high + output + 64, **more, **options(device)) as (bench, ready):
        ours = serve(bench, ready, [(prompt, output) for prompt in prompts], limits)
    theirs = _transformers(shape, device, [prompt.tolist() for prompt in prompts], output, dry)
    what = f"{name}: {count} requests of {low}-{high} + {output} tokens, output"
    return [
        Figure(f"{what}, transformers' continuous batching", theirs, "tokens/s"),
        Figure(what, ours.tokens_per_s, "tokens/s", ours.limit, "every round's bytes and operations",
               details={"times_transformers": ours.tokens_per_s / theirs}),
    ]  # fmt: skip


def _transformers(
    shape: dict[str, Any], device: torch.device, prompts: list[list[int]], output: int, dry: bool
) -> float:
    """Output tokens per second, after a warm-up with two requests."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    fields = {
        key: value for key, value in shape.items() if key not in ("model_type", "architectures", "dtype")
    }
    config = AutoConfig.for_model(shape["model_type"], **fields, max_position_embeddings=1 << 17)
    dtype = torch.float32 if dry else torch.bfloat16
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.eval()
    settings = GenerationConfig(
        max_new_tokens=output, do_sample=False, eos_token_id=-1, pad_token_id=0, use_cache=True
    )
    try:
        model.generate_batch(inputs=prompts[:2], generation_config=settings, progress_bar=False)
        synchronize(device)
        started = time.perf_counter()
        answers = model.generate_batch(inputs=prompts, generation_config=settings, progress_bar=False)
        seconds = time.perf_counter() - started
    finally:
        del model
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    tokens = sum(len(answer.generated_tokens) for answer in answers.values())
    if tokens < len(prompts) * output // 2:
        raise RuntimeError(f"transformers answered with {tokens} tokens instead of {len(prompts) * output}")
    return tokens / seconds
