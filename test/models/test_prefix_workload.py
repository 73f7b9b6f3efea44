"""Many prompts with a long common beginning at once: the same answers, token for token, with the prefix cache and without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.checkpoints import make_checkpoint

from lightllm import LLM, SamplingParams

REQUESTS, SHARED, OWN, NEW_TOKENS = 12, 320, 24, 12


def prompts() -> list[list[int]]:
    words = np.random.default_rng(3)
    shared = words.integers(6, 380, SHARED).tolist()
    return [shared + words.integers(6, 380, OWN).tolist() for _ in range(REQUESTS)]


def answers(path: Path, *, cached: bool, round_policy: str = "mixed") -> tuple[list[list[int]], int]:
    """(greedy answers, prompt tokens computed)"""
    params = SamplingParams(temperature=0.0, max_new_tokens=NEW_TOKENS, ignore_eos=True)
    with LLM(
        str(path), data_type="fp32", max_total_token_num=16_000, disable_dynamic_prompt_cache=not cached,
        round_policy=round_policy,
    ) as llm:  # fmt: skip
        outputs = llm.generate(prompts(), params, use_tqdm=False)
        assert llm._engine is not None
        computed = llm._engine._scheduler.snapshot().prompt_tokens
    return [output.outputs[0].token_ids for output in outputs], computed


@pytest.mark.parametrize(
    ("architecture", "policies"), [("llama", ("mixed",)), ("qwen3", ("prefill_first", "decode_first"))]
)
def test_a_shared_prefix_is_computed_once_and_changes_no_answer(
    tmp_path: Path, architecture: str, policies: tuple[str, ...]
) -> None:
    path = make_checkpoint(tmp_path / "model", architecture)
    apart, all_tokens = answers(path, cached=False)
    assert all_tokens == REQUESTS * (SHARED + OWN)
    assert len({tuple(answer) for answer in apart}) > REQUESTS // 2
    for policy in policies:
        shared, computed = answers(path, cached=True, round_policy=policy)
        assert shared == apart
        assert computed == SHARED + REQUESTS * OWN
