"""The long form: every architecture through the offline engine, eight ragged requests at once, chunks of seven and whole
prompts, with and without the prefix cache, against its reference.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.model_zoo import NAMES, make_zoo_model

from lightllm import LLM, SamplingParams

STEPS = 64
SHARED = [(31 * i + 5) % 380 for i in range(40)]
PROMPTS = [SHARED + [(17 * i + row) % 380 for i in range(3 * row)] for row in range(6)] + [[7], SHARED[:9]]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_equal_the_reference(tmp_path: Path, name: str) -> None:
    zoo_model = make_zoo_model(tmp_path / "model", name)
    params = SamplingParams(temperature=0.0, max_new_tokens=STEPS, ignore_eos=True)
    for chunk in (7, 4096):
        for cached in (False, True):
            with LLM(
                str(zoo_model.path), data_type="fp32", max_total_token_num=1500, chunked_prefill_size=chunk,
                disable_dynamic_prompt_cache=not cached, max_req_total_len=zoo_model.max_len or 200,
                running_max_req_size=8,
            ) as llm:  # fmt: skip
                for _ in range(2 if cached else 1):
                    answers = llm.generate(PROMPTS, params, use_tqdm=False)
                    for prompt, answer in zip(PROMPTS, answers, strict=True):
                        tokens = list(answer.outputs[0].token_ids)
                        logits = zoo_model.reference(prompt + tokens)[len(prompt) - 1 : -1]
                        assert logits.argmax(-1).tolist() == tokens
