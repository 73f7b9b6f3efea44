"""What a model is for: texts, or vectors, and which. Decided once, at the start, from the folder's own files. Loads no torch.

generate   texts
embed      a vector of each prompt, made of hidden states
classify   a number for each label of a classification head (`...ForSequenceClassification`)
score      a language model that judges: the logits of its tokens for "no" and "yes" behind the prompt
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightllm.errors import InvalidModel, InvalidOption
from lightllm.model_folder.config import read_whole_config
from lightllm.model_folder.json_files import read_json_object
from lightllm.model_folder.pooling import has_pooling, read_classes, read_pooling, read_token_classes
from lightllm.models.architectures import ARCHITECTURES, is_without_output_head
from lightllm.models.hf_configs.vision_language import sees

_CLASSIFIER = "ForSequenceClassification"


def resolve_task(model_dir: str, asked: str) -> str:
    """The task of a model, `asked` being `--task`. Raises `InvalidOption` for one that the model cannot do, `InvalidModel` for
    a model whose vectors would be wrong."""
    raw = read_whole_config(model_dir)
    task = _own_task(model_dir, raw) if asked == "auto" else asked
    name = _name(raw)
    if task == "score" and name.endswith(_CLASSIFIER):
        task = "classify"
    if task == "classify" and not name.endswith(_CLASSIFIER):
        raise InvalidOption(
            f"--task classify: {name} has no classification head.",
            f"Models called ...{_CLASSIFIER} have one.",
        )
    if task in ("generate", "score") and is_without_output_head(name):
        raise InvalidOption(f"--task {task}: {name} has no output head.", "Leave --task out.")
    if task != "generate":
        _check(model_dir, raw, task, name)
    return task


def _own_task(model_dir: str, raw: dict[str, Any]) -> str:
    """Without `--task`."""
    name = _name(raw)
    if name.endswith(_CLASSIFIER):
        return "classify"
    sentence = read_json_object(Path(model_dir) / "config_sentence_transformers.json")
    if raw.get("classifier_from_token") or sentence.get("model_type") == "CrossEncoder":
        return "score"
    return "embed" if is_without_output_head(name) or has_pooling(model_dir) else "generate"


def _check(model_dir: str, raw: dict[str, Any], task: str, name: str) -> None:
    if raw.get("is_causal") is False or raw.get("use_bidirectional_attention"):
        raise InvalidModel(
            f"The tokens of this {name} attend in both directions, which is not computed here.",
            "Vectors are made by models whose tokens see what is before them alone.",
        )
    if sees(raw):
        raise InvalidOption(f"--task {task}: vectors of models that see are not supported.")
    if name in ARCHITECTURES and ARCHITECTURES[name].scores:
        raise InvalidOption(
            f"--task {task}: {name} is a reward model.", "Leave it out, and give --use_reward_model."
        )
    if task == "embed":
        read_pooling(model_dir)
    elif task == "classify":
        read_classes(model_dir)
    else:
        read_token_classes(model_dir)


def _name(raw: dict[str, Any]) -> str:
    """The first architecture that a config.json names; what is wrong with it `find_architecture` says."""
    named = raw.get("architectures")
    first = named[0] if isinstance(named, list) and named else raw.get("model_type")
    return first if isinstance(first, str) else ""
