"""What a model is for, from the files of its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightllm.config import ServerConfig
from lightllm.errors import InvalidModel, StartupError
from lightllm.model_folder.pooling import (
    Classes,
    Matryoshka,
    Pooling,
    read_classes,
    read_matryoshka,
    read_pooling,
    read_token_classes,
)
from lightllm.models.architectures import ARCHITECTURES, find_architecture
from lightllm.models.tasks import resolve_task

QWEN = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
CLASSIFIER = {"architectures": ["Qwen3ForSequenceClassification"], "model_type": "qwen3"}
BARE = {"architectures": ["MistralModel"], "model_type": "mistral"}
FLAGS = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": False}


def folder(path: Path, config: dict[str, Any], *kinds: str, pooling: Any = None, **files: Any) -> str:
    """kinds: of sentence-transformers' modules; files: more of them, without their suffix."""
    path.mkdir(exist_ok=True)
    files = {"config": config, **files}
    if kinds:
        files["modules"] = [{"path": kind, "type": f"sentence_transformers.models.{kind}"} for kind in kinds]
        (path / "Pooling").mkdir()
        (path / "Pooling" / "config.json").write_text(json.dumps(FLAGS | (pooling or {})))
    for name, content in files.items():
        (path / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


EMBEDDER = ("Transformer", "Pooling", "Normalize")
LAST = {"pooling_mode_lasttoken": True}


@pytest.mark.parametrize(
    ("config", "files", "task"),
    [
        (QWEN, {}, "generate"),
        (CLASSIFIER, {}, "classify"),
        (BARE, {}, "embed"),
        (QWEN, {"kinds": EMBEDDER, "pooling": LAST}, "embed"),
        ({**QWEN, "classifier_from_token": ["no", "yes"]}, {}, "score"),
        (QWEN, {"config_sentence_transformers": {"model_type": "CrossEncoder"}}, "score"),
        (QWEN, {"config_sentence_transformers": {"model_type": "SentenceTransformer"}}, "generate"),
        ({"architectures": ["InternLM2ForRewardModel"], "model_type": "internlm2"}, {}, "generate"),
    ],
)  # fmt: skip
def test_the_folder_says_what_its_model_is_for(
    tmp_path: Path, config: dict[str, Any], files: dict[str, Any], task: str
) -> None:
    kinds = files.pop("kinds", ())
    path = folder(tmp_path / "model", config, *kinds, **files)
    assert resolve_task(path, "auto") == task


@pytest.mark.parametrize(
    ("config", "asked", "task"),
    [(QWEN, "embed", "embed"), (QWEN, "score", "score"), (CLASSIFIER, "score", "classify"), (CLASSIFIER, "embed", "embed")],
)  # fmt: skip
def test_a_task_that_the_model_can_do_may_be_asked_for(
    tmp_path: Path, config: Any, asked: str, task: str
) -> None:
    assert resolve_task(folder(tmp_path, config), asked) == task


@pytest.mark.parametrize(
    ("config", "asked", "says"),
    [
        (QWEN, "classify", "has no classification head"),
        (CLASSIFIER, "generate", "has no output head"),
        (BARE, "score", "has no output head"),
        ({**QWEN, "is_causal": False}, "embed", "attend in both directions"),
        ({**BARE, "use_bidirectional_attention": True}, "auto", "attend in both directions"),
        ({"model_type": "qwen2_vl", "architectures": ["Qwen2VLForConditionalGeneration"]}, "embed", "models that see"),
        ({"architectures": ["Qwen2ForRewardModel"], "model_type": "qwen2"}, "embed", "is a reward model"),
        ({**CLASSIFIER, "id2label": {"1": "x"}}, "auto", "id2label"),
        ({**CLASSIFIER, "num_labels": 0}, "auto", "num_labels"),
        ({**QWEN, "classifier_from_token": ["yes"]}, "auto", "classifier_from_token"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_at_the_start(
    tmp_path: Path, config: Any, asked: str, says: str
) -> None:
    with pytest.raises(StartupError, match=says):
        resolve_task(folder(tmp_path, config), asked)


@pytest.mark.parametrize("name", ["BertModel", "XLMRobertaForSequenceClassification", "NomicBertModel"])
def test_an_encoder_is_refused_with_the_reason(name: str) -> None:
    kind = {"BertModel": "bert", "NomicBertModel": "nomic_bert"}.get(name, "xlm-roberta")
    with pytest.raises(InvalidModel, match=f"{name} is an encoder: its tokens attend in both directions"):
        find_architecture({"architectures": [name], "model_type": kind})


@pytest.mark.parametrize("end", ["Model", "ForSequenceClassification"])
def test_layers_are_known_under_another_head_and_without_one(end: str) -> None:
    for name, known in ARCHITECTURES.items():
        stem = name.removesuffix("ForCausalLM")
        if stem != name:
            assert find_architecture({"architectures": [stem + end], "model_type": known.model_type}) == name


@pytest.mark.parametrize(
    ("kinds", "pooling", "expected"),
    [
        (EMBEDDER, LAST, Pooling("last", True)),
        (EMBEDDER[:2], {"pooling_mode_mean_tokens": True}, Pooling("mean", False)),
        (EMBEDDER, {"pooling_mode_cls_token": True}, Pooling("first", True)),
        (EMBEDDER, {"pooling_mode": "mean"}, Pooling("mean", True)),
        ((), {}, Pooling("last", True)),
    ],
)
def test_pooling_is_that_of_sentence_transformers_files(
    tmp_path: Path, kinds: tuple[str, ...], pooling: Any, expected: Pooling
) -> None:
    assert read_pooling(folder(tmp_path, QWEN, *kinds, pooling=pooling)) == expected


@pytest.mark.parametrize(
    ("kinds", "pooling", "says"),
    [
        ((*EMBEDDER, "Dense"), LAST, "Dense is not supported"),
        (EMBEDDER, {"pooling_mode_max_tokens": True}, "'max'"),
        (EMBEDDER, {**LAST, "pooling_mode_mean_tokens": True}, "not supported"),
        (EMBEDDER, {}, "not supported"),
        (EMBEDDER, {"pooling_mode": 5}, "not supported"),
    ],
)
def test_pooling_that_is_not_computed_is_refused(
    tmp_path: Path, kinds: tuple[str, ...], pooling: Any, says: str
) -> None:
    with pytest.raises(InvalidModel, match=says):
        resolve_task(folder(tmp_path, QWEN, *kinds, pooling=pooling), "auto")


@pytest.mark.parametrize("modules", ["{", "5", "[5]", '[{"type": 5}]', "[{}]"])
def test_modules_that_are_none_are_refused(tmp_path: Path, modules: str) -> None:
    with pytest.raises(InvalidModel, match="is no list of sentence-transformers' modules"):
        resolve_task(folder(tmp_path, QWEN, modules=modules), "auto")


def test_labels_and_sizes_are_those_of_config_json(tmp_path: Path) -> None:
    def read(**fields: Any) -> str:
        return folder(tmp_path, {**CLASSIFIER, **fields})

    assert read_classes(read()) == Classes(("LABEL_0", "LABEL_1"), "softmax")
    assert read_classes(read(id2label={"0": "no", "1": "yes"})).names == ("no", "yes")
    assert read_classes(read(num_labels=1)) == Classes(("LABEL_0",), "sigmoid")
    assert read_classes(read(num_labels=3, problem_type="multi_label_classification")).activation == "sigmoid"
    assert read_classes(read(problem_type="regression")).activation == "none"
    assert read_token_classes(read()) == ("no", "yes")
    assert read_token_classes(read(classifier_from_token=["0", "1"])) == ("0", "1")
    assert read_matryoshka(read()) == Matryoshka()
    assert read_matryoshka(read(is_matryoshka=True)) == Matryoshka(True)
    assert read_matryoshka(read(matryoshka_dimensions=[32, 64])) == Matryoshka(True, (32, 64))
    with pytest.raises(InvalidModel, match="matryoshka_dimensions"):
        read_matryoshka(read(matryoshka_dimensions=["32"]))


def test_a_server_pools_once_its_task_says_so() -> None:
    assert not ServerConfig().pools and ServerConfig(use_reward_model=True).serves == "reward"
    assert ServerConfig(task="embed").pools and ServerConfig(task="embed").serves == "embed"
