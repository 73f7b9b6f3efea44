"""Whether the output head is the embedding: config.json says one thing, the tensors may say another."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from support.altered_checkpoints import ABSENT, FORMATS, alter_tensors, edit_json, logits_of_transformers
from support.model_driver import ModelDriver
from support.model_zoo import make_zoo_model
from support.near_tie import relative_error
from support.ranks import run_ranks

from lightllm.distributed.tp_group import TpGroup
from lightllm.errors import InvalidModel
from lightllm.models.registry import load_model

PROMPT = [(17 * i + 3) % 380 for i in range(20)]
EMBEDDING = {"bloom, prefixed": "transformer.word_embeddings", "starcoder": "transformer.wte"}
TIED = [
    # architecture, tie_word_embeddings of its config.json
    ("llama", True),
    ("qwen2", True),
    ("qwen3", True),
    ("gemma2", ABSENT),
    ("gemma3", ABSENT),
    ("cohere", ABSENT),
    ("starcoder2", ABSENT),
    ("bloom, prefixed", ABSENT),
    ("starcoder", True),
]


def load(path: Path, **options: Any) -> Any:
    return load_model(str(path), **{"data_type": None, "device": torch.device("cpu"), **options})


def logits(model: Any) -> torch.Tensor:
    return ModelDriver(model).step([(0, PROMPT)])


def set_head(name: str, head: torch.Tensor | None) -> Any:
    """head: None for the embedding itself."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        embedding = tensors[f"{EMBEDDING.get(name, 'model.embed_tokens')}.weight"]
        tensors["lm_head.weight"] = embedding.clone() if head is None else head

    return change


def another_head() -> torch.Tensor:
    return torch.randn(384, 64, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize(("name", "flag"), TIED)
def test_a_head_of_its_own_is_used_although_the_config_ties_it_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, flag: Any, weight_format: str
) -> None:
    make_zoo_model(tmp_path, name)
    alter_tensors(tmp_path, set_head(name, another_head()), weight_format)
    edit_json(tmp_path / "config.json", tie_word_embeddings=flag)
    with caplog.at_level(logging.WARNING, "lightllm"):
        served = logits(load(tmp_path))
    assert relative_error(served, logits_of_transformers(tmp_path, PROMPT)) <= 1e-4
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("lightllm")]
    assert "lm_head.weight" in line and "tie_word_embeddings" in line


@pytest.mark.parametrize("weight_format", FORMATS)
def test_a_head_that_is_the_embedding_again_is_no_news(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, weight_format: str
) -> None:
    make_zoo_model(tmp_path, "gemma2")
    expected = logits(load(tmp_path))
    alter_tensors(tmp_path, set_head("gemma2", None), weight_format)
    with caplog.at_level(logging.INFO, "lightllm"):
        model = load(tmp_path)
    assert torch.equal(logits(model), expected) and not caplog.records


def test_a_head_that_differs_in_its_last_row_only_is_used(tmp_path: Path) -> None:
    make_zoo_model(tmp_path, "llama", tie_word_embeddings=True)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        set_head("llama", None)(tensors)
        tensors["lm_head.weight"][-1, -1] += 1

    before = logits(load(tmp_path))
    alter_tensors(tmp_path, change)
    after = logits(load(tmp_path))
    assert torch.equal(after[:, :-1], before[:, :-1]) and not torch.equal(after[:, -1], before[:, -1])


def test_a_tied_checkpoint_may_hold_its_matrix_as_the_head_alone(tmp_path: Path) -> None:
    make_zoo_model(tmp_path, "llama", tie_word_embeddings=True)
    expected = logits(load(tmp_path))
    alter_tensors(tmp_path, lambda t: t.update({"lm_head.weight": t.pop("model.embed_tokens.weight")}))
    assert torch.equal(logits(load(tmp_path)), expected)
    assert relative_error(expected, logits_of_transformers(tmp_path, PROMPT)) <= 1e-4


@pytest.mark.parametrize("flag", [False, ABSENT])
@pytest.mark.parametrize("weight_format", FORMATS)
def test_an_untied_model_without_its_head_is_refused_by_the_tensors_name(
    tmp_path: Path, flag: Any, weight_format: str
) -> None:
    make_zoo_model(tmp_path, "llama")
    alter_tensors(tmp_path, lambda tensors: tensors.pop("lm_head.weight"), weight_format)
    edit_json(tmp_path / "config.json", tie_word_embeddings=flag)
    with pytest.raises(InvalidModel, match=r"lacks tensor 'lm_head\.weight'"):
        load(tmp_path)


def test_every_rank_decides_alike_where_the_head_differs_in_one_ranks_rows(tmp_path: Path) -> None:
    make_zoo_model(tmp_path, "llama", tie_word_embeddings=True)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        set_head("llama", None)(tensors)
        tensors["lm_head.weight"][-1] += 1

    alter_tensors(tmp_path, change)

    def work(group: TpGroup) -> torch.Tensor:
        return logits(load(tmp_path, group=group))

    for part in run_ranks(tmp_path, 2, work):
        assert relative_error(part, logits(load(tmp_path))) <= 1e-5
