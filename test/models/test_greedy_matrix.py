"""The long form of model equality: every shape through the offline engine, alone and 32 at once, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import make_checkpoint

from lightllm import LLM, SamplingParams

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "one KV head": {"num_key_value_heads": 1},
    "four KV heads, tied": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "eight KV heads, untied": {"num_key_value_heads": 8},
    "bias": {"attention_bias": True, "tie_word_embeddings": True},
    "linear rope": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama3 rope": {"rope_scaling": LLAMA3},
}
NEW_TOKENS = 48


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    lengths = torch.randint(1, 90, (32,), generator=generator).tolist()
    return [torch.randint(6, 380, (length,), generator=generator).tolist() for length in lengths]


def reference(path: Path) -> list[list[int]]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    answers = []
    for prompt in prompts():
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        out = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        answers.append(out[0, len(prompt) :].tolist())
    return answers


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_tokens_equal_transformers(tmp_path: Path, architecture: str, shape: str) -> None:
    path = make_checkpoint(tmp_path / "model", architecture, **SHAPES[shape])
    expected = reference(path)
    assert len({tuple(answer) for answer in expected}) > 16
    params = SamplingParams(temperature=0.0, max_new_tokens=NEW_TOKENS, ignore_eos=True)
    for chunk in (16, 4096):
        for cached in (False, True):
            with LLM(
                str(path), data_type="fp32", max_total_token_num=6000, chunked_prefill_size=chunk,
                disable_dynamic_prompt_cache=not cached,
            ) as llm:  # fmt: skip
                together = llm.generate(prompts(), params, use_tqdm=False)
                assert [answer.outputs[0].token_ids for answer in together] == expected
                for prompt, tokens in zip(prompts(), expected, strict=True):
                    (alone,) = llm.generate([prompt], params, use_tqdm=False)
                    assert alone.outputs[0].token_ids == tokens
