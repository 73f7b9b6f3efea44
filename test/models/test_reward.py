"""Reward models give the scores of their references."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.model_driver import ModelDriver
from support.ranks import run_ranks
from support.reward_models import make_reward_model

from lightllm.config import ServerConfig
from lightllm.distributed.tp_group import TpGroup
from lightllm.errors import InvalidOption
from lightllm.models.registry import load_model
from lightllm.server.prepare import resolve_config

PROMPT = [(17 * i + 3) % 380 for i in range(70)]
CPU = torch.device("cpu")
ARCHITECTURES = ["InternLM2ForRewardModel", "Qwen2ForRewardModel"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_equal_the_reference(tmp_path: Path, architecture: str) -> None:
    expected = make_reward_model(tmp_path, architecture)(PROMPT)
    model = load_model(str(tmp_path), data_type=None, device=CPU)
    driver = ModelDriver(model, shuffled=True)
    scores = torch.cat([driver.step([(1, PROMPT[start : start + 7])]) for start in range(0, 70, 7)])
    assert model.scores and scores.shape == (70, 1) and scores.dtype == torch.float32
    torch.testing.assert_close(scores[:, 0], expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_two_ranks_have_the_same_scores(tmp_path: Path, architecture: str) -> None:
    expected = make_reward_model(tmp_path / "model", architecture)(PROMPT)

    def work(group: TpGroup) -> torch.Tensor:
        model = load_model(str(tmp_path / "model"), data_type=None, device=CPU, group=group)
        return ModelDriver(model).step([(0, PROMPT)])[:, 0]

    for scores in run_ranks(tmp_path, 2, work):
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_a_reward_model_and_its_option_go_together(tmp_path: Path) -> None:
    make_reward_model(tmp_path, "Qwen2ForRewardModel")
    with pytest.raises(InvalidOption, match="Add --use_reward_model"):
        resolve_config(ServerConfig(model_dir=str(tmp_path)))
    resolve_config(ServerConfig(model_dir=str(tmp_path), use_reward_model=True))
    with pytest.raises(InvalidOption, match="LlamaForCausalLM is no reward model"):
        resolve_config(ServerConfig(use_reward_model=True))
