"""What stands in the place of the output head: hidden states, labels, the logits of two tokens; on one rank and on two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.model_driver import ModelDriver
from support.pooling_models import Reference, make_classifier, make_embedding_model, make_judge
from support.ranks import run_ranks

from lightllm.backend.pooling_task import pooled_head
from lightllm.config import ServerConfig
from lightllm.distributed.tp_group import TpGroup
from lightllm.errors import InvalidModel
from lightllm.models.registry import load_model
from lightllm.models.tasks import resolve_task

PROMPT = [(17 * i + 3) % 380 for i in range(40)]
CPU = torch.device("cpu")
MAKERS: dict[str, Callable[[Path], Reference]] = {
    "embedding": make_embedding_model,
    "layers alone": lambda path: make_embedding_model(path, bare=True),
    "classifier": make_classifier,
    "one label": lambda path: make_classifier(path, 1),
    "judge": make_judge,
    "judge with a head of its own": lambda path: make_judge(path, tied=False),
}


def config_of(path: Path) -> ServerConfig:
    return ServerConfig(model_dir=str(path), task=resolve_task(str(path), "auto"), device="cpu")


@pytest.mark.parametrize("kind", MAKERS)
def test_outputs_equal_transformers_on_one_rank_and_on_two(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model"
    expected = MAKERS[kind](path)(PROMPT)
    head = pooled_head(config_of(path))
    assert head is not None

    def work(group: TpGroup) -> torch.Tensor:
        model = load_model(str(path), data_type=None, device=CPU, group=group, pooled=head)
        return ModelDriver(model).step([(0, PROMPT)])[-1]

    for outputs in (work(TpGroup()), *run_ranks(tmp_path, 2, work)):
        assert outputs.dtype == torch.float32
        torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_an_embedding_of_a_classifier_leaves_its_head_alone(tmp_path: Path) -> None:
    make_classifier(tmp_path)
    head = pooled_head(ServerConfig(model_dir=str(tmp_path), task="embed"))
    model = load_model(str(tmp_path), data_type=None, device=CPU, pooled=head)
    assert ModelDriver(model).step([(0, PROMPT)]).shape == (40, 64)


@pytest.mark.parametrize("tokens", [["n", "no such token"], ["n"]])
def test_a_judge_without_its_tokens_is_refused(tmp_path: Path, tokens: Any) -> None:
    make_judge(tmp_path)
    config = config_of(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('["n", "y"]', str(tokens).replace("'", '"')))
    with pytest.raises(InvalidModel, match="classifier_from_token"):
        pooled_head(config)
