"""Every architecture on a GPU, in bfloat16, against its float32 reference: the kernels in the combinations that models use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.model_driver import ModelDriver
from support.model_zoo import NAMES, make_zoo_model
from support.near_tie import assert_rounded_like, assert_same_or_near_tie, near_tie

from lightllm.models.registry import load_model
from lightllm.weights.checkpoint import open_checkpoint

PROMPT = [(17 * i + 3) % 380 for i in range(70)]


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_parts_from_the_reference_only_at_near_ties(
    tmp_path: Path, name: str, poisoned: None
) -> None:
    zoo_model = make_zoo_model(tmp_path, name, "bfloat16", std=0.1)
    cuda = torch.device("cuda")
    model = load_model(str(tmp_path), data_type=None, device=cuda, max_len=zoo_model.max_len)
    whole, half = zoo_model.reference(PROMPT), zoo_model.half(PROMPT)
    driver = ModelDriver(model, shuffled=True)
    steps = [driver.step([(1, PROMPT[start : start + 7])]) for start in range(0, len(PROMPT), 7)]
    assert_rounded_like(torch.cat(steps), half, whole, routed=model.config.moe is not None)
    tokens = ModelDriver(model).greedy(0, PROMPT, 16)
    expected: list[int] = []
    chosen = []
    for _ in tokens:
        chosen.append(zoo_model.reference(PROMPT + expected)[-1])
        expected.append(int(chosen[-1].argmax()))
    assert_same_or_near_tie(tokens, expected, chosen.__getitem__, near_tie(half, whole))


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt-oss"])
def test_loading_takes_the_weights_and_at_most_one_tensor_more_of_the_device(
    tmp_path: Path, name: str
) -> None:
    shape = {"hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 3, "head_dim": 64}
    make_zoo_model(tmp_path, name, "bfloat16", std=0.02, vocab_size=32768, **shape)
    cuda = torch.device("cuda")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = load_model(str(tmp_path), data_type=None, device=cuda)
    peak = torch.cuda.max_memory_allocated() - before
    largest = open_checkpoint(str(tmp_path)).largest()
    assert model.weight_bytes > 2 * largest
    assert peak <= model.weight_bytes + largest
