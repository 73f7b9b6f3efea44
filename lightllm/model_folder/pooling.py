"""What a model folder says of vectors: sentence-transformers' files of embeddings, config.json's of classification heads.

Facts: sentence-transformers' `modules.json` and `1_Pooling/config.json`; transformers' `id2label`, `problem_type`; vLLM's
`is_matryoshka`, `matryoshka_dimensions`, `classifier_from_token`.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from lightllm.config import ServerConfig
from lightllm.errors import InvalidModel
from lightllm.model_folder.config import read_model_config
from lightllm.model_folder.json_files import read_json_object

PoolingMethod = Literal["last", "mean", "first"]
"""Which hidden states of a prompt become its vector: the last token's, the mean of all, or the first token's (CLS)."""

_METHODS: dict[str, PoolingMethod] = {"lasttoken": "last", "mean": "mean", "cls": "first"}
_OLD_METHODS = {
    "pooling_mode_lasttoken": "lasttoken", "pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max", "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}  # fmt: skip
"""Flags of a `1_Pooling/config.json` -> what later ones call the same."""
_MODULES = ("Transformer", "Pooling", "Normalize")
_MOST_DIMENSIONS = 1 << 20


@dataclasses.dataclass(frozen=True)
class Pooling:
    method: PoolingMethod = "last"
    normalizes: bool = True
    """Embeddings have length 1."""


@dataclasses.dataclass(frozen=True)
class Matryoshka:
    """Whether embeddings may be cut (Matryoshka representation learning, arXiv 2205.13147)."""

    allowed: bool = False
    dimensions: tuple[int, ...] = ()
    """The sizes that the model was trained for; none: any."""


@dataclasses.dataclass(frozen=True)
class Classes:
    """What the outputs of a classification head are called, and what makes probabilities of them."""

    names: tuple[str, ...]
    activation: Literal["softmax", "sigmoid", "none"]


def has_pooling(model_dir: str) -> bool:
    """Whether sentence-transformers makes embeddings with this folder."""
    return any(kind == "Pooling" for kind, _ in _modules(model_dir))


def read_pooling(model_dir: str) -> Pooling:
    """As the folder's own files say; without them the last token's state, normalised. Raises `InvalidModel`."""
    modules = dict(_modules(model_dir))
    for kind in modules:
        if kind not in _MODULES:
            raise InvalidModel(
                f"modules.json: a module {kind} is not supported; {', '.join(_MODULES)} are.",
                "Serve the model with sentence-transformers.",
            )
    if "Pooling" not in modules:
        return Pooling()
    path = Path(model_dir) / modules["Pooling"] / "config.json"
    config = read_json_object(path)
    stated = config.get("pooling_mode")
    if stated is None:
        stated = [name for flag, name in _OLD_METHODS.items() if config.get(flag)]
    names = [stated] if isinstance(stated, str) else stated
    if not isinstance(names, list | tuple) or len(names) != 1 or names[0] not in _METHODS:
        raise InvalidModel(
            f"{path}: pooling {stated!r} is not supported; one of {', '.join(_METHODS)} is.",
            "Serve the model with sentence-transformers.",
        )
    return Pooling(_METHODS[names[0]], "Normalize" in modules)


def pooling_method(config: ServerConfig) -> PoolingMethod | None:
    """What a server pools by, with its model folder and its task resolved; None: its model generates. Raises `InvalidModel`."""
    if not config.pools:
        return None
    return read_pooling(config.model_dir or "").method if config.task == "embed" else "last"


def read_matryoshka(model_dir: str) -> Matryoshka:
    """`matryoshka_dimensions` and `is_matryoshka` of config.json. Raises `InvalidModel`."""
    config = read_model_config(model_dir)
    sizes = config.get("matryoshka_dimensions") or []
    if not isinstance(sizes, list) or not all(
        type(size) is int and 0 < size < _MOST_DIMENSIONS for size in sizes
    ):
        raise InvalidModel(f"config.json: matryoshka_dimensions must be a list of sizes, got {sizes!r}.")
    return Matryoshka(bool(sizes or config.get("is_matryoshka")), tuple(sizes))


def read_classes(model_dir: str) -> Classes:
    """The labels of a classification head, by `id2label`, else `num_labels`, else two of them, as in transformers. Raises
    `InvalidModel`."""
    config = read_model_config(model_dir)
    labels, count = config.get("id2label"), config.get("num_labels")
    if isinstance(labels, dict) and labels:
        names = [labels.get(str(index)) for index in range(len(labels))]
        if not all(isinstance(name, str) for name in names):
            raise InvalidModel(f"config.json: id2label must name the labels 0 to {len(labels) - 1}.")
    else:
        count = 2 if count is None else count
        if type(count) is not int or not 0 < count < _MOST_DIMENSIONS:
            raise InvalidModel(f"config.json: num_labels must be a number of labels, got {count!r}.")
        names = [f"LABEL_{index}" for index in range(count)]
    return Classes(tuple(map(str, names)), _activation(config, len(names)))


def read_token_classes(model_dir: str) -> tuple[str, str]:
    """The tokens of which a language model that judges says one: the one for no, the one for yes. Raises `InvalidModel`."""
    tokens = read_model_config(model_dir).get("classifier_from_token") or ["no", "yes"]
    if (
        not isinstance(tokens, list)
        or len(tokens) != 2
        or not all(isinstance(token, str) for token in tokens)
    ):
        raise InvalidModel(f"config.json: classifier_from_token must hold two tokens, got {tokens!r}.")
    return tokens[0], tokens[1]


def _activation(config: dict[str, Any], count: int) -> Literal["softmax", "sigmoid", "none"]:
    problem = config.get("problem_type")
    sentence = config.get("sentence_transformers")
    stated = sentence.get("activation_fn") if isinstance(sentence, dict) else None
    stated = stated or config.get("sbert_ce_default_activation_function")
    if problem == "regression" or (isinstance(stated, str) and stated.endswith(".Identity")):
        return "none"
    return "sigmoid" if count == 1 or problem == "multi_label_classification" else "softmax"


def _modules(model_dir: str) -> list[tuple[str, str]]:
    """(kind, folder) of what sentence-transformers runs one after the other. Raises `InvalidModel`."""
    path = Path(model_dir) / "modules.json"
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
        return [(module["type"].rpartition(".")[2], module.get("path") or "") for module in modules]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise InvalidModel(
            f"{path} is no list of sentence-transformers' modules ({error}).",
            "Download the model again, or correct the file.",
        ) from error
